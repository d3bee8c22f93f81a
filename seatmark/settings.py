"""Settings: read from SEATMARK_* variables of the environment, checked at start, each documented in the README's table."""

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from processors.domain.days import Calendar
from schemas.errors import Explained

PREFIX = "SEATMARK_"

# Each may also be in a file that SEATMARK_..._FILE names. None is ever shown.
_SECRETS = (
    "clickhouse_dsn", "token", "collect_tokens", "seat_key", "kafka_password", "kafka_key_password", "kafka_oauth_client_secret"
)  # fmt: skip
_SECRET_FILES = {f"{PREFIX}{name.upper()}_FILE": name for name in _SECRETS}

_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
# A name or an IPv4 address, or an IPv6 address in brackets; and a port.
_ADDRESS = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+(?:%[\w.-]+)?\]):([0-9]{1,5})")
_DURATION = re.compile(r"(\d+)(ms|s|m|h|d)")


class SettingsWrong(Explained):
    """One or more settings are unknown or have a bad value; the message names each."""


def _brokers(value: str) -> str:
    for address in value.split(","):
        match = _ADDRESS.fullmatch(address.strip())
        if match is None or not 1 <= int(match[1]) <= 65535:
            raise ValueError(
                "expected host:port, comma separated, such as kafka-1:9092,kafka-2:9092; an IPv6 address in brackets, such as "
                "[::1]:9092; what the brokers want is said by SEATMARK_KAFKA_SECURITY"
            )
    return ",".join(address.strip() for address in value.split(","))


def _milliseconds(value: Any) -> Any:
    if isinstance(value, int):
        return value
    match = _DURATION.fullmatch(str(value).strip())
    if match is None:
        raise ValueError("expected a number and a unit of ms, s, m, h or d, such as 90s or 1h")
    return int(match[1]) * _UNITS_MS[match[2]]


def _timezone(value: Any) -> Any:
    return Calendar(str(value)).timezone


def _clickhouse_dsn(value: SecretStr) -> SecretStr:
    """Check a DSN's form. The message quotes nothing of it: any part may be one of the password."""
    dsn = value.get_secret_value()
    try:
        parts = urlsplit(dsn)
        if parts.scheme == "chdb":
            formed = not parts.netloc and parts.path.startswith("/") and parts.query.partition("=")[0] in ("", "database")
        else:
            # Where a password has a / in it, what comes before that is read as host and port, and the rest as the path.
            # Reading the port raises ValueError where it is no number.
            formed = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
            formed = formed and "/" not in parts.path.strip("/") and "@" not in parts.path + parts.query
    except ValueError:
        formed = False
    if not formed or "#" in dsn:
        raise ValueError(
            "expected chdb:///directory or http(s)://user:password@host:8123/database. In user, password, directory and "
            "database write # as %23, ? as %3F, @ as %40, % as %25, and a / that is no separator as %2F"
        )
    return value


def _seat_key(value: SecretStr) -> SecretStr:
    if value.get_secret_value() and not re.fullmatch(r"[!-~]{16,}", value.get_secret_value()):
        raise ValueError("expected a secret of at least 16 visible ASCII characters")
    return value


def _collect_tokens(value: SecretStr) -> SecretStr:
    tokens = value.get_secret_value()
    if tokens and not all(re.fullmatch(r"[!-~]{16,}", token) for token in tokens.split(",")):
        raise ValueError("expected secrets of at least 16 visible ASCII characters, comma separated")
    return value


def _token_url(value: str) -> str:
    parts = urlsplit(value)
    if value and parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost")):
        raise ValueError("expected https://..., because the client's secret is sent there; http:// only on this machine")
    return value


Duration = Annotated[int, BeforeValidator(_milliseconds)]


class Settings(BaseSettings):
    """All settings. Durations in milliseconds once read."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    brokers: Annotated[str, AfterValidator(_brokers)] = Field(
        "127.0.0.1:19092", description="Kafka brokers, host:port, comma separated"
    )
    topic_prefix: str = Field("", pattern=r"^[a-zA-Z0-9._-]*$", description="put in front of every topic's name")
    partitions: int = Field(4, ge=1, le=10_000, description="partitions of each topic; the most workers that can share")
    replication: int = Field(1, ge=1, le=10, description="replicas of each topic's partitions; 3 in production")
    fencing: Literal["on", "off"] = Field(
        "on",
        description="`on`: brokers keep a worker that was frozen from writing state, by transactions; `off`: for brokers that "
        "have none, where only one worker may run",
    )
    clickhouse_dsn: Annotated[SecretStr, AfterValidator(_clickhouse_dsn)] = Field(
        SecretStr("http://127.0.0.1:8123/default"),
        description="`chdb:///directory` (in process) or `http(s)://user:password@host:8123/database`",
    )
    clickhouse_port: int = Field(
        8123, ge=1, le=65535, description="port of 127.0.0.1 on which an embedded ClickHouse (`chdb:`) answers other programs"
    )
    clickhouse_cluster: str = Field(
        "",
        pattern=r"^\w*$",
        description="name of the ClickHouse cluster that the tables are spread over (docs/clickhouse.md); empty: one server",
    )
    url: str = Field("http://127.0.0.1:8000", description="where the command line finds the web")
    timezone: Annotated[str, BeforeValidator(_timezone)] = Field(
        "UTC", description="reporting time zone, an IANA name; fixed once there is data"
    )
    late_after: Duration = Field(3_600_000, description="an event this much older than its element's newest has no live effect")
    lease_policy: Literal["release", "keep"] = Field(
        "release", description="what becomes of a hold whose lease ran out: `release` or `keep`; terms may say otherwise"
    )
    lease_grace: Duration = Field(60_000, description="a lease has run out this long after its end")
    dead_letter_percent: int = Field(
        50,
        ge=1,
        le=100,
        description="a worker stops when a larger share of a partition's records, and more than 100, is refused; 100: never",
    )
    dead_letter_count: int = Field(
        10_000, ge=0, description="a worker stops when more of a partition's records are refused; 0: never"
    )
    dead_letter_window: Duration = Field(
        3_600_000, description="both count in the running one of these spans and the one before; `0s`: a worker never stops"
    )
    ip_truncation: Literal["on", "off"] = Field(
        "off", description="`on`: of each IP address only the network is kept, of IPv4 24 bits, of IPv6 48"
    )
    personal_retention: Duration = Field(
        0, description="the sink takes users, hosts and addresses out of the raw log after this long; `0d`: never"
    )
    seat_key: Annotated[SecretStr, AfterValidator(_seat_key)] = Field(
        SecretStr(""),
        description="with this secret `import flexnet` makes seat ids that name nobody: 16 characters or more, always the same",
    )
    web_host: str = Field("127.0.0.1", description="address that the web listens on")
    web_port: int = Field(8000, ge=1, le=65535, description="port that the web listens on")
    auth: Literal["on", "off"] = Field(
        "on", description="`on`: the web asks for a token (`seatmark tokens make`); `off`: only with a web host of this machine"
    )
    token: SecretStr = Field(SecretStr(""), description="the token with which the command line asks the web")
    collect_host: str = Field("127.0.0.1", description="address that the collector listens on")
    collect_port: int = Field(8001, ge=1, le=65535, description="port that the collector listens on")
    collect_tokens: Annotated[SecretStr, AfterValidator(_collect_tokens)] = Field(
        SecretStr(""),
        description="what licence servers must send to the collector: secrets of 16 characters or more, comma separated",
    )
    metrics_port: int = Field(
        0,
        ge=0,
        le=65535,
        description="port, of all addresses of the machine, on which each part serves `/metrics`, and worker and sink `/livez` "
        "and `/readyz`; 0: none",
    )
    stuck_after: Duration = Field(
        120_000, ge=5000, description="a worker or sink that does not get on for this long, for no reason outside, ends itself"
    )
    session_timeout: Duration = Field(10_000, description="a worker or sink not heard of for this long loses its partitions")
    rebalance_timeout: Duration = Field(60_000, description="how long workers may take to join when partitions move")
    flush_interval: Duration = Field(1000, description="the sink inserts at least this often")
    restate_interval: Duration = Field(
        60_000, ge=1000, description="the sink looks this often for days and levels to put right"
    )
    audit_interval: Duration = Field(
        86_400_000, ge=60_000, description="the sink compares all numbers with the exact ones this often"
    )
    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="what is logged, to stderr")
    log_format: Literal["auto", "json", "text"] = Field(
        "auto",
        description="how the parts log: `json`, an object a line; `text`, for people; `auto`: text where stderr is a terminal",
    )

    # How to sign in to Kafka: docs/security.md. seatmark/brokers.py says what clients make of it.
    kafka_security: Literal["plaintext", "tls", "sasl_plaintext", "sasl_tls"] = Field(
        "plaintext",
        description="`plaintext`, `tls`, `sasl_plaintext` or `sasl_tls`: whether brokers want TLS, a sign-in, or both",
    )
    kafka_sasl_mechanism: Literal["scram-sha-512", "scram-sha-256", "plain", "oauthbearer"] = Field(
        "scram-sha-512", description="how to sign in: `scram-sha-512`, `scram-sha-256`, `plain` or `oauthbearer`"
    )
    kafka_user: str = Field("", description="the user, of scram and plain")
    kafka_password: SecretStr = Field(SecretStr(""), description="the user's password")
    kafka_ca_file: str = Field("", description="certificates of who may sign the brokers', PEM; without it the system's")
    kafka_certificate_file: str = Field("", description="our certificate, for brokers that ask for one, PEM")
    kafka_key_file: str = Field("", description="its private key, PEM; without it the key is in the certificate's file")
    kafka_key_password: SecretStr = Field(SecretStr(""), description="with which that key is encrypted")
    kafka_oauth_token_url: Annotated[str, AfterValidator(_token_url)] = Field(
        "", description="https address that gives tokens (OAuth 2.0 client credentials), of oauthbearer"
    )
    kafka_oauth_client_id: str = Field("", description="who asks there")
    kafka_oauth_client_secret: SecretStr = Field(SecretStr(""), description="with this secret")
    kafka_oauth_scope: str = Field("", description="and for this scope, if it wants one")


def known_variables() -> set[str]:
    """All variables that may be set: SEATMARK_ and a setting's name; for a secret also that and _FILE."""
    return {PREFIX + name.upper() for name in Settings.model_fields} | set(_SECRET_FILES)


def load_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """Read the settings. environment: default the process's.

    Raises SettingsWrong: naming each unknown variable and each bad value (never the value of a secret).
    """
    variables = os.environ if environment is None else environment
    known = {PREFIX + name.upper(): name for name in Settings.model_fields}
    problems: list[str] = []
    values: dict[str, str] = {}
    for variable, value in variables.items():
        if not variable.startswith(PREFIX):
            continue
        if variable in known:
            values[known[variable]] = value
        elif variable in _SECRET_FILES:
            if variable.removesuffix("_FILE") in variables:
                problems.append(f"{variable} and {variable.removesuffix('_FILE')} say the same: set one of the two")
            try:
                values[_SECRET_FILES[variable]] = Path(value).read_text().rstrip("\r\n")
            except (OSError, UnicodeDecodeError) as error:
                # Not its name: somebody may have set the secret itself.
                problems.append(f"{variable}: cannot read the file that it names: {_why_unreadable(error)}")
        else:
            near = difflib.get_close_matches(variable, known_variables(), n=1)
            problems.append(f"{variable} is not a setting" + (f"; did you mean {near[0]}?" if near else ""))
    try:
        settings = Settings.model_construct() if problems else Settings.model_validate(values)
    except ValidationError as error:
        for problem in error.errors():
            name = str(problem["loc"][0])
            shown = "" if name in _SECRETS else f" (it is {values.get(name)!r})"
            problems.append(f"{PREFIX}{name.upper()}: {problem['msg'].removeprefix('Value error, ')}{shown}")
    if not problems:
        problems = [*_contradictions(settings), *_kafka_contradictions(settings)]
    if problems:
        raise SettingsWrong("\n".join(problems))
    return settings


def _contradictions(settings: Settings) -> Iterator[str]:
    if settings.stuck_after <= settings.rebalance_timeout:
        yield (
            "SEATMARK_STUCK_AFTER must be longer than SEATMARK_REBALANCE_TIMEOUT, for which workers wait for each other "
            f"(they are {settings.stuck_after} ms and {settings.rebalance_timeout} ms)"
        )
    if settings.clickhouse_cluster and settings.clickhouse_dsn.get_secret_value().startswith("chdb:"):
        yield "SEATMARK_CLICKHOUSE_CLUSTER is for servers: SEATMARK_CLICKHOUSE_DSN is an embedded ClickHouse"


def _kafka_contradictions(settings: Settings) -> Iterator[str]:
    """What is set and of no use, what is missing, and files that cannot be read."""
    security, mechanism = settings.kafka_security, settings.kafka_sasl_mechanism
    tls = {"kafka_ca_file", "kafka_certificate_file", "kafka_key_file", "kafka_key_password"}
    oauth = {"kafka_oauth_token_url", "kafka_oauth_client_id", "kafka_oauth_client_secret"}
    how, used, needed = f"SEATMARK_KAFKA_SECURITY={security}", {"kafka_security"}, set()
    if security.endswith("tls"):
        used |= tls
    if security.startswith("sasl_"):
        how += f" and SEATMARK_KAFKA_SASL_MECHANISM={mechanism}"
        needed = oauth if mechanism == "oauthbearer" else {"kafka_user", "kafka_password"}
        used |= needed | {"kafka_sasl_mechanism"} | ({"kafka_oauth_scope"} if mechanism == "oauthbearer" else set())
    # An empty value says nothing, as where Compose fills in a variable that is not set.
    fields = {name: field for name, field in Settings.model_fields.items() if name.startswith("kafka_")}
    given = {name for name, field in fields.items() if getattr(settings, name) != field.default}
    for name in fields:
        if name in given - used:
            yield f"{PREFIX}{name.upper()} is of no use with {how}: leave it out, or set that right"
        if name in needed - given:
            yield f"{PREFIX}{name.upper()} is needed with {how}"
        if name in given & used and name.endswith("_file"):
            try:
                Path(getattr(settings, name)).read_bytes()
            except OSError as error:
                yield f"{PREFIX}{name.upper()}: cannot read {getattr(settings, name)!r}: {_why_unreadable(error)}"
    for name in ("kafka_key_file", "kafka_key_password"):
        if name in given & used and "kafka_certificate_file" not in given:
            yield f"{PREFIX}{name.upper()} is of no use without SEATMARK_KAFKA_CERTIFICATE_FILE"


def _why_unreadable(error: OSError | UnicodeDecodeError) -> str:
    return str(error.strerror) if isinstance(error, OSError) else "it is no text in UTF-8"
