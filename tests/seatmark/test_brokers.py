"""From settings to what clients of Kafka are made with; tokens of OAUTHBEARER."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth

from deploy.kafka.cluster import free_ports
from processors.batching import credentials_of
from processors.brokers import Brokers, NoToken
from seatmark.brokers import brokers_of, opened_brokers
from seatmark.oauth import ClientCredentials
from seatmark.settings import SettingsWrong, load_settings
from tests.secured import Authority, Tokens, token_server

MECHANISM = "SEATMARK_KAFKA_SASL_MECHANISM"
SASL = {"SEATMARK_KAFKA_USER": "worker", "SEATMARK_KAFKA_PASSWORD": "geheim"}
OAUTH = {
    MECHANISM: "oauthbearer",
    "SEATMARK_KAFKA_OAUTH_TOKEN_URL": "https://id.example/token",
    "SEATMARK_KAFKA_OAUTH_CLIENT_ID": "worker",
    "SEATMARK_KAFKA_OAUTH_CLIENT_SECRET": "geheim",
}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates") / "authority")


def test_without_settings_there_is_neither_tls_nor_sign_in() -> None:
    brokers = brokers_of(load_settings({"SEATMARK_BROKERS": "kafka:9092"}))
    assert brokers == Brokers("kafka:9092")
    assert brokers.client == {"bootstrap_servers": "kafka:9092"}


@pytest.mark.parametrize(
    ("given", "protocol", "mechanism"),
    [
        ({"SEATMARK_KAFKA_SECURITY": "tls"}, "SSL", None),
        (SASL | {"SEATMARK_KAFKA_SECURITY": "sasl_tls"}, "SASL_SSL", "SCRAM-SHA-512"),
        (SASL | {"SEATMARK_KAFKA_SECURITY": "sasl_plaintext"}, "SASL_PLAINTEXT", "SCRAM-SHA-512"),
        (SASL | {"SEATMARK_KAFKA_SECURITY": "sasl_tls", MECHANISM: "scram-sha-256"}, "SASL_SSL", "SCRAM-SHA-256"),
        (SASL | {"SEATMARK_KAFKA_SECURITY": "sasl_tls", MECHANISM: "plain"}, "SASL_SSL", "PLAIN"),
        (OAUTH | {"SEATMARK_KAFKA_SECURITY": "sasl_tls"}, "SASL_SSL", "OAUTHBEARER"),
        (OAUTH | {"SEATMARK_KAFKA_SECURITY": "sasl_plaintext"}, "SASL_PLAINTEXT", "OAUTHBEARER"),
    ],
)  # fmt: skip
def test_each_scheme_becomes_the_arguments_of_clients_and_faust_makes_the_same_of_it(
    given: dict[str, str], protocol: str, mechanism: str | None
) -> None:
    brokers = brokers_of(load_settings(given))
    security = brokers.security
    assert security["security_protocol"] == protocol
    assert security.get("sasl_mechanism") == mechanism
    assert isinstance(security.get("ssl_context"), ssl.SSLContext) is protocol.endswith("SSL")
    if mechanism == "OAUTHBEARER":
        assert isinstance(security["sasl_oauth_token_provider"], ClientCredentials)
    elif mechanism:
        assert (security["sasl_plain_username"], security["sasl_plain_password"]) == ("worker", "geheim")
    assert "geheim" not in repr(brokers)
    of_faust = credentials_to_aiokafka_auth(credentials_of(security))
    assert {name: value for name, value in of_faust.items() if value is not None} == security


def test_brokers_certificates_and_their_names_are_checked() -> None:
    context = brokers_of(load_settings({"SEATMARK_KAFKA_SECURITY": "tls"})).security["ssl_context"]
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED


def test_certificate_and_key_may_be_in_two_files_and_the_key_encrypted(authority: Authority, tmp_path: Path) -> None:
    both = authority.certificate("worker").read_text()
    key, _, certificates = both.partition("-----BEGIN CERTIFICATE-----")
    (tmp_path / "certificate").write_text("-----BEGIN CERTIFICATE-----" + certificates)
    (tmp_path / "key").write_text(key)
    settings = {
        "SEATMARK_KAFKA_SECURITY": "tls",
        "SEATMARK_KAFKA_CERTIFICATE_FILE": str(tmp_path / "certificate"),
        "SEATMARK_KAFKA_KEY_FILE": str(tmp_path / "key"),
    }
    brokers_of(load_settings(settings))
    encrypt(tmp_path / "key", b"geheim")
    brokers_of(load_settings(settings | {"SEATMARK_KAFKA_KEY_PASSWORD": "geheim"}))
    # Without a password OpenSSL would ask for one, on the terminal.
    for password in ({}, {"SEATMARK_KAFKA_KEY_PASSWORD": "another geheim"}):
        with pytest.raises(SettingsWrong, match="the key's password") as refused:
            brokers_of(load_settings(settings | password))
        assert "geheim" not in str(refused.value)


def encrypt(key: Path, password: bytes) -> None:
    from cryptography.hazmat.primitives import serialization as keys

    private = keys.load_pem_private_key(key.read_bytes(), None)
    how = keys.BestAvailableEncryption(password)
    key.write_bytes(private.private_bytes(keys.Encoding.PEM, keys.PrivateFormat.PKCS8, how))


def test_files_that_are_no_certificates_are_refused_by_name(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("nothing")
    wrong = {"SEATMARK_KAFKA_SECURITY": "tls"}
    with pytest.raises(SettingsWrong, match=r"SEATMARK_KAFKA_CA_FILE: .*no\.pem has no certificates in PEM form"):
        brokers_of(load_settings(wrong | {"SEATMARK_KAFKA_CA_FILE": str(tmp_path / "no.pem")}))
    with pytest.raises(SettingsWrong, match="SEATMARK_KAFKA_CERTIFICATE_FILE, "):
        brokers_of(load_settings(wrong | {"SEATMARK_KAFKA_CERTIFICATE_FILE": str(tmp_path / "no.pem")}))
    one, other = authority.certificate("one"), authority.certificate("other")
    with pytest.raises(SettingsWrong, match="its own key"):
        brokers_of(load_settings(wrong | {"SEATMARK_KAFKA_CERTIFICATE_FILE": str(one), "SEATMARK_KAFKA_KEY_FILE": str(other)}))


async def test_brokers_that_are_away_are_not_refusing_us() -> None:
    """A part waits for them, as without a sign-in."""
    settings = SASL | {"SEATMARK_KAFKA_SECURITY": "sasl_tls", "SEATMARK_BROKERS": f"127.0.0.1:{free_ports(1)[0]}"}
    assert (await opened_brokers(load_settings(settings))).addresses == settings["SEATMARK_BROKERS"]


# --- Tokens


@pytest.fixture
def server() -> Iterator[Tokens]:
    with token_server("seat mark", "geh/eim:%+") as tokens:
        yield tokens


async def test_a_token_is_asked_for_once_with_client_and_scope(server: Tokens) -> None:
    provider = ClientCredentials(server.url, server.client, server.secret, "kafka")
    first = await asyncio.gather(*(provider.token() for _ in range(8)))
    # Also from another event loop, as Faust's consumer has one.
    other = await asyncio.to_thread(lambda: asyncio.run(provider.token()))
    assert len({*first, other}) == 1
    assert server.asked == [{"grant_type": ["client_credentials"], "scope": ["kafka"]}]


async def test_a_new_token_comes_before_the_old_one_ends(server: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("seatmark.oauth.time.monotonic", lambda: now)
    server.seconds = 100
    provider = ClientCredentials(server.url, server.client, server.secret, "")
    tokens = [await provider.token()]
    for seconds in (79.0, 2.0):
        now += seconds
        tokens.append(await provider.token())
    assert tokens[0] == tokens[1] != tokens[2]
    assert server.asked == [{"grant_type": ["client_credentials"]}] * 2


async def test_the_old_token_serves_while_the_server_is_away(server: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("seatmark.oauth.time.monotonic", lambda: now)
    server.seconds = 100
    provider = ClientCredentials(server.url, server.client, server.secret, "")
    first = await provider.token()
    server.answer = (503, b"")
    now += 90
    assert await provider.token() == first
    now += 11
    with pytest.raises(NoToken, match="answers 503"):
        await provider.token()


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (400, b'{"error": "invalid_scope", "error_description": "geh/eim:%+"}', "answers 400 invalid_scope"),
        (502, b"<html>geh/eim:%+</html>", "answers 502"),
        (200, b"[]", "answers without a token"),
        (200, b'{"access_token": "geheim", "expires_in": "soon"}', "answers without a token"),
    ],
)
async def test_a_server_that_gives_no_token_is_named_and_no_secret(server: Tokens, status: int, body: bytes, told: str) -> None:
    server.answer = (status, body)
    with pytest.raises(NoToken) as refused:
        await ClientCredentials(server.url, server.client, server.secret, "").token()
    assert f"no token: SEATMARK_KAFKA_OAUTH_TOKEN_URL ({server.url}) {told}" in str(refused.value)
    assert "geh" not in str(refused.value)


async def test_a_wrong_secret_and_a_server_that_is_away(server: Tokens) -> None:
    with pytest.raises(NoToken, match="answers 401 invalid_client"):
        await ClientCredentials(server.url, server.client, "falsch", "").token()
    with pytest.raises(NoToken, match=r"cannot be reached \(ConnectError\)"):
        await ClientCredentials(f"http://127.0.0.1:{free_ports(1)[0]}/", "client", "geheim", "").token()
