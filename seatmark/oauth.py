"""Tokens for brokers that let clients in by OAUTHBEARER."""

import asyncio
import threading
import time
from urllib.parse import quote_plus

import httpx
from aiokafka.abc import AbstractTokenProvider

from processors.brokers import NoToken

_ANSWER_SECONDS = 10.0
# After this much of a token's life a new one is asked for; the rest is time for a server that is away.
_USED_SHARE = 0.8
# Where the server does not say how long it lives.
_USUAL_SECONDS = 300


class ClientCredentials(AbstractTokenProvider):  # type: ignore[misc]
    """Asks a server for tokens by the client-credentials flow of OAuth 2.0 (RFC 6749, 4.4), each well before the last one ends.

    A process has one, whose token all its connections share. More than one thread asks for it: Faust's consumer has its own.
    """

    def __init__(self, url: str, client_id: str, client_secret: str, scope: str) -> None:
        """scope: empty for none."""
        self._url = url
        # Encoded as forms are before they become a header: RFC 6749, 2.3.1.
        self._auth = (quote_plus(client_id), quote_plus(client_secret))
        self._form = {"grant_type": "client_credentials"} | ({"scope": scope} if scope else {})
        self._one_at_a_time = threading.Lock()
        self._token = ""
        self._renew_at = self._ends_at = 0.0

    async def token(self) -> str:
        """A token that is valid for some time still. Raises NoToken: the server gives none; no secret is in the message."""
        return await asyncio.to_thread(self._current)

    def _current(self) -> str:
        with self._one_at_a_time:
            now = time.monotonic()
            if now >= self._renew_at:
                try:
                    self._token, seconds = self._ask()
                except NoToken:
                    if now >= self._ends_at:
                        raise
                else:
                    self._renew_at, self._ends_at = now + _USED_SHARE * seconds, now + seconds
            return self._token

    def _ask(self) -> tuple[str, float]:
        try:
            answer = httpx.post(self._url, data=self._form, auth=self._auth, timeout=_ANSWER_SECONDS)
        except httpx.HTTPError as error:
            raise self._no_token(f"cannot be reached ({type(error).__name__})") from error
        try:
            document = answer.json()
        except ValueError:
            document = {}
        if not isinstance(document, dict):
            document = {}
        if answer.status_code != httpx.codes.OK:
            # By its name only: what else the server says may quote what it was sent.
            raise self._no_token(f"answers {answer.status_code} {document.get('error', '')}".rstrip())
        try:
            return str(document["access_token"]), float(document.get("expires_in", _USUAL_SECONDS))
        except (KeyError, TypeError, ValueError) as error:
            raise self._no_token("answers without a token (access_token, expires_in)") from error

    def _no_token(self, what: str) -> NoToken:
        return NoToken(f"no token: SEATMARK_KAFKA_OAUTH_TOKEN_URL ({self._url}) {what}")
