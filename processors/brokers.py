"""Where the Kafka brokers are and how to sign in there: what every client of theirs is made with."""

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import KafkaConnectionError, KafkaError, SaslAuthenticationFailed, UnsupportedSaslMechanismError

from schemas.errors import Explained, loggable

logger = logging.getLogger(__name__)

_CONNECT_MS = 2000
# Supervisors wait for 30 s before they kill.
STOP_SECONDS = 10.0


class AccessRefused(Explained):
    """A broker answers, and the two do not trust each other; the message says why. No secret is in it."""


class NoToken(KafkaConnectionError):  # type: ignore[misc]
    """There is no token to sign in with. For aiokafka that is a broker which cannot be reached now: it tries again."""


@dataclass(frozen=True)
class Brokers:
    """Kafka brokers, as clients need to know them.

    addresses: host:port, comma separated. security: aiokafka's arguments for TLS and sign-in; none: neither.
    """

    addresses: str
    security: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def client(self) -> dict[str, Any]:
        """The arguments with which aiokafka's clients are made, beside those that say what they do."""
        return {"bootstrap_servers": self.addresses, **self.security}

    async def refuse_if_refused(self) -> None:
        """Knock where there is TLS or sign-in: aiokafka's clients only say that they could not connect, and log why.

        The first that answers decides; brokers that cannot be reached are no reason.
        Raises AccessRefused.
        """
        if not self.security:
            return
        for host, port, _ in collect_hosts(self.addresses):
            try:
                connection = await create_conn(host, port, request_timeout_ms=_CONNECT_MS, **self.security)
            except (OSError, KafkaError) as error:
                why = _why_refused(error, self.security.get("sasl_mechanism"))
                if why:
                    raise AccessRefused(f"the Kafka broker {host}:{port} cannot be used: {why}") from error
            else:
                connection.close()
                return


async def ended_in_time(work: Awaitable[object], what: str) -> bool:
    """Wait for the last that a client has to do, and not for ever, as aiokafka does where brokers are away.

    what: names it, in the log. Gives whether it was done; whatever else came of it is in the log.
    """
    ending = asyncio.ensure_future(work)
    # Not a timeout: what it cancels may go on all the same.
    await asyncio.wait({ending}, timeout=STOP_SECONDS)
    if not ending.done():
        ending.cancel()
        logger.warning("%s was not waited for: it had not ended %.0f s after the stop", what, STOP_SECONDS)
        return False
    if ending.cancelled():
        logger.warning("%s was not waited for: what it waits for has broken off", what)
        return False
    if (error := ending.exception()) is not None:
        logger.warning("%s did not come about: %s", what, loggable(error))
        return False
    return True


def _why_refused(error: BaseException, mechanism: str | None) -> str:
    """Why we were not let in, and what to look at; empty where that is not what happened."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not trusted ({error.verify_message}); SEATMARK_KAFKA_CA_FILE says who may have signed it, "
            "SEATMARK_BROKERS which name must be in it"
        )
    # With TLS 1.3 a client learns that its certificate was refused only when it reads an answer.
    refused = error if isinstance(error, ssl.SSLError) else error.__cause__
    if isinstance(refused, ssl.SSLError):
        return (
            f"no TLS ({refused.reason or refused}); does this port expect what SEATMARK_KAFKA_SECURITY says, and the "
            "certificate in SEATMARK_KAFKA_CERTIFICATE_FILE?"
        )
    if isinstance(error, NoToken):
        return str(error.args[0])
    if isinstance(error, SaslAuthenticationFailed):
        signed_in_with = (
            "SEATMARK_KAFKA_OAUTH_CLIENT_ID and SEATMARK_KAFKA_OAUTH_CLIENT_SECRET"
            if mechanism == "OAUTHBEARER"
            else "SEATMARK_KAFKA_USER and SEATMARK_KAFKA_PASSWORD"
        )
        return f"it refuses who we say that we are; look at SEATMARK_KAFKA_SASL_MECHANISM, {signed_in_with}"
    if isinstance(error, UnsupportedSaslMechanismError):
        return "it does not know the mechanism of SEATMARK_KAFKA_SASL_MECHANISM"
    return ""
