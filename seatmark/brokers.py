"""What clients of Kafka make of the settings: the one place that knows."""

import ssl
from functools import lru_cache
from typing import Any

from processors.brokers import Brokers
from seatmark.oauth import ClientCredentials
from seatmark.settings import Settings, SettingsWrong

_PROTOCOLS = {"plaintext": "PLAINTEXT", "tls": "SSL", "sasl_plaintext": "SASL_PLAINTEXT", "sasl_tls": "SASL_SSL"}


async def opened_brokers(settings: Settings) -> Brokers:
    """The brokers of the settings, to which a first connection was tried: what is wrong with it is told here, and clearly.

    Raises SettingsWrong. Raises processors.brokers.AccessRefused. Brokers that cannot be reached are left to who uses them.
    """
    brokers = brokers_of(settings)
    await brokers.refuse_if_refused()
    return brokers


# So that all clients of a process share one token, and files are read once.
@lru_cache(maxsize=1)
def brokers_of(settings: Settings) -> Brokers:
    """The brokers of the settings, without a connection.

    Raises SettingsWrong: a certificate or a key cannot be used.
    """
    if settings.kafka_security == "plaintext":
        return Brokers(settings.brokers)
    security: dict[str, Any] = {"security_protocol": _PROTOCOLS[settings.kafka_security]}
    if settings.kafka_security.endswith("tls"):
        security["ssl_context"] = _tls(settings)
    if settings.kafka_security.startswith("sasl_"):
        security["sasl_mechanism"] = settings.kafka_sasl_mechanism.upper()
        if settings.kafka_sasl_mechanism == "oauthbearer":
            security["sasl_oauth_token_provider"] = ClientCredentials(
                settings.kafka_oauth_token_url,
                settings.kafka_oauth_client_id,
                settings.kafka_oauth_client_secret.get_secret_value(),
                settings.kafka_oauth_scope,
            )
        else:
            security["sasl_plain_username"] = settings.kafka_user
            security["sasl_plain_password"] = settings.kafka_password.get_secret_value()
    return Brokers(settings.brokers, security)


def _tls(settings: Settings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.kafka_ca_file or None)
    except ssl.SSLError as error:
        raise SettingsWrong(f"SEATMARK_KAFKA_CA_FILE: {settings.kafka_ca_file} has no certificates in PEM form") from error
    if settings.kafka_certificate_file:
        try:
            # Given a password, even an empty one, OpenSSL does not ask for one on the terminal.
            context.load_cert_chain(
                settings.kafka_certificate_file,
                settings.kafka_key_file or None,
                settings.kafka_key_password.get_secret_value(),
            )
        except ssl.SSLError as error:
            raise SettingsWrong(
                "SEATMARK_KAFKA_CERTIFICATE_FILE, SEATMARK_KAFKA_KEY_FILE, SEATMARK_KAFKA_KEY_PASSWORD: expected a certificate "
                f"and its own key, both in PEM form, and the key's password if it has one ({error.reason or 'no PEM'})"
            ) from error
    return context
