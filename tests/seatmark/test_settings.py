"""Settings: unknown names and bad values fail at start, by name; the README documents each."""

import os
import re
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from seatmark.settings import Settings, SettingsWrong, known_variables, load_settings

README = Path(__file__).parents[2] / "README.md"


def test_defaults_need_no_environment() -> None:
    settings = load_settings({"PATH": "/bin"})
    assert settings.brokers == "127.0.0.1:19092"
    assert settings.timezone == "UTC"
    assert settings.late_after == 3_600_000
    assert (settings.lease_policy, settings.lease_grace) == ("release", 60_000)


@pytest.mark.parametrize(
    ("text", "milliseconds"), [("200ms", 200), ("90s", 90_000), ("5m", 300_000), ("1h", 3_600_000), ("2d", 172_800_000)]
)
def test_durations(text: str, milliseconds: int) -> None:
    assert load_settings({"SEATMARK_LATE_AFTER": text}).late_after == milliseconds


def test_an_unknown_setting_is_refused_by_name_with_the_nearest_one() -> None:
    with pytest.raises(SettingsWrong, match="SEATMARK_BROKER is not a setting; did you mean SEATMARK_BROKERS"):
        load_settings({"SEATMARK_BROKER": "kafka:9092"})


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("SEATMARK_TIMEZONE", "Mars/Olympus", "IANA time zone"),
        ("SEATMARK_LATE_AFTER", "1 hour", "a number and a unit"),
        ("SEATMARK_LEASE_GRACE", "60", "a number and a unit"),
        ("SEATMARK_LEASE_POLICY", "forget", "'release' or 'keep'"),
        ("SEATMARK_PARTITIONS", "0", "greater than or equal to 1"),
        ("SEATMARK_WEB_PORT", "eighty", "valid integer"),
        ("SEATMARK_LOG_LEVEL", "LOUD", "match"),
        ("SEATMARK_BROKERS", "", "expected host:port, comma separated"),
        ("SEATMARK_BROKERS", "kafka", "expected host:port, comma separated"),
        ("SEATMARK_BROKERS", "kafka:port", "expected host:port, comma separated"),
        ("SEATMARK_BROKERS", "kafka:0", "expected host:port, comma separated"),
        ("SEATMARK_BROKERS", "kafka:65536", "expected host:port, comma separated"),
        ("SEATMARK_BROKERS", "a:9093;b:9093", "expected host:port, comma separated"),
        ("SEATMARK_BROKERS", "a:9093,", "expected host:port, comma separated"),
        ("SEATMARK_BROKERS", "SASL_SSL://host:9093", "expected host:port, comma separated"),
        ("SEATMARK_BROKERS", "::1:9092", "an IPv6 address in brackets"),
    ],
)
def test_a_bad_value_is_refused_by_name(variable: str, value: str, message: str) -> None:
    with pytest.raises(SettingsWrong, match=message) as refused:
        load_settings({variable: value})
    assert variable in str(refused.value)
    assert value in str(refused.value)


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("kafka-0.kafka:9093, kafka_1:9093", "kafka-0.kafka:9093,kafka_1:9093"),
        ("10.0.0.1:9092,[::1]:9092", "10.0.0.1:9092,[::1]:9092"),
    ],
)
def test_addresses_of_brokers(value: str, read: str) -> None:
    assert load_settings({"SEATMARK_BROKERS": value}).brokers == read


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(SettingsWrong) as refused:
        load_settings({"SEATMARK_WEB_PORT": "x", "SEATMARK_TIMEZONE": "x"})
    assert {"SEATMARK_WEB_PORT", "SEATMARK_TIMEZONE"} <= set(re.findall(r"SEATMARK_\w+", str(refused.value)))


def test_a_worker_must_not_be_taken_for_stuck_while_it_waits_for_others() -> None:
    with pytest.raises(SettingsWrong, match="SEATMARK_STUCK_AFTER must be longer than SEATMARK_REBALANCE_TIMEOUT"):
        load_settings({"SEATMARK_STUCK_AFTER": "60s"})
    assert load_settings({"SEATMARK_STUCK_AFTER": "61s"}).stuck_after == 61_000


def test_the_dsn_is_a_secret() -> None:
    settings = load_settings({"SEATMARK_CLICKHOUSE_DSN": "http://seatmark:hunter2@db:8123/x"})
    assert "hunter2" not in repr(settings)
    assert "hunter2" in settings.clickhouse_dsn.get_secret_value()


@pytest.mark.parametrize(
    "dsn",
    [
        "http://127.0.0.1:8123/default",
        "https://clickhouse.example/db",
        "http://seatmark@db/x?connect_timeout=3",
        "http://seatmark:p%40ss%2Fw%23o%3Frd%25@[::1]:8123/db",
        "chdb:///var/lib/seat%23mark",
        "chdb:///var/lib/seatmark?database=x",
    ],
)
def test_a_dsn_that_is_one(dsn: str) -> None:
    assert load_settings({"SEATMARK_CLICKHOUSE_DSN": dsn}).clickhouse_dsn.get_secret_value() == dsn


# "geheim" is the password or a part of it, where there is one.
@pytest.mark.parametrize(
    "dsn",
    [
        "",
        "127.0.0.1:8123",
        "clickhouse://seatmark:geheim@db:9000/x",
        "http://",
        "http://:8123/x",
        "http://seatmark:geheim@db:port/x",
        "http://seatmark:geheim@db:123456/x",
        "http://seatmark:geh/geheim@db:8123/x",
        "http://seatmark:1/geheim@db:8123/x",
        "http://seatmark:geh#geheim@db:8123/x",
        "http://seatmark:1#geheim@db:8123/x",
        "http://seatmark:1?geheim@db:8123/x",
        "http://seatmark:[geheim@db:8123/x",
        "http://db/x/geheim",
        "chdb:",
        "chdb://data/clickhouse",
        "chdb://memory",
        "chdb:///data/#1",
        "chdb:///data#",
        "chdb:///data/clickhouse?1",
        "chdb:///data/clickhouse?1=2",
    ],
)
def test_a_dsn_that_is_none_is_refused_without_showing_any_of_it(dsn: str) -> None:
    with pytest.raises(SettingsWrong) as refused:
        load_settings({"SEATMARK_CLICKHOUSE_DSN": dsn})
    told = str(refused.value)
    assert told == (
        "SEATMARK_CLICKHOUSE_DSN: expected chdb:///directory or http(s)://user:password@host:8123/database. In user, "
        "password, directory and database write # as %23, ? as %3F, @ as %40, % as %25, and a / that is no separator as %2F"
    )
    shown = "".join(traceback.format_exception(refused.value))
    assert "geheim" not in shown


def test_the_command_line_tells_a_bad_dsn_in_one_line() -> None:
    """And not in a traceback, which would show parts of the password."""
    done = subprocess.run(
        [sys.executable, "-m", "seatmark", "migrate"],
        env={**os.environ, "SEATMARK_CLICKHOUSE_DSN": "http://seatmark:pa/geheim@db:8123/x"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("seatmark: SEATMARK_CLICKHOUSE_DSN: expected chdb:///directory")
    assert done.stderr.count("\n") == 1
    assert "geheim" not in done.stderr


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"SECURITY": "ssl"}, "SEATMARK_KAFKA_SECURITY: Input should be 'plaintext'"),
        ({"USER": "u"}, "SEATMARK_KAFKA_USER is of no use with SEATMARK_KAFKA_SECURITY=plaintext"),
        ({"SECURITY": "tls", "PASSWORD": "geheim"}, "SEATMARK_KAFKA_PASSWORD is of no use with SEATMARK_KAFKA_SECURITY=tls"),
        ({"CERTIFICATE_FILE": __file__}, "SEATMARK_KAFKA_CERTIFICATE_FILE is of no use with SEATMARK_KAFKA_SECURITY=plaintext"),
        ({"SECURITY": "tls", "KEY_FILE": __file__}, "KEY_FILE is of no use without SEATMARK_KAFKA_CERTIFICATE_FILE"),
        ({"SECURITY": "tls", "CA_FILE": "/no/ca"}, "SEATMARK_KAFKA_CA_FILE: cannot read '/no/ca': No such file or directory"),
        ({"SECURITY": "tls", "CA_FILE": "/"}, "SEATMARK_KAFKA_CA_FILE: cannot read '/': Is a directory"),
        ({"SECURITY": "sasl_tls", "USER": "u"},
         "PASSWORD is needed with SEATMARK_KAFKA_SECURITY=sasl_tls and SEATMARK_KAFKA_SASL_MECHANISM=scram-sha-512"),
        ({"SECURITY": "sasl_plaintext", "USER": "u", "PASSWORD": "geheim", "CA_FILE": __file__},
         "SEATMARK_KAFKA_CA_FILE is of no use with SEATMARK_KAFKA_SECURITY=sasl_plaintext"),
        ({"SECURITY": "sasl_tls", "SASL_MECHANISM": "oauthbearer", "USER": "u"}, "SEATMARK_KAFKA_USER is of no use with"),
        ({"SECURITY": "sasl_tls", "SASL_MECHANISM": "oauthbearer"}, "SEATMARK_KAFKA_OAUTH_CLIENT_SECRET is needed with"),
        ({"SECURITY": "sasl_tls", "USER": "u", "PASSWORD": "geheim", "OAUTH_SCOPE": "s"}, "OAUTH_SCOPE is of no use"),
        ({"OAUTH_TOKEN_URL": "http://id.example/token"}, "SEATMARK_KAFKA_OAUTH_TOKEN_URL: expected https://"),
    ],
)  # fmt: skip
def test_contradictory_settings_of_kafka_are_refused_by_name(variables: dict[str, str], told: str) -> None:
    with pytest.raises(SettingsWrong) as refused:
        load_settings({f"SEATMARK_KAFKA_{name}": value for name, value in variables.items()})
    assert told in str(refused.value)
    assert "geheim" not in str(refused.value)


def test_empty_settings_of_kafka_say_nothing() -> None:
    """As where Compose fills in variables that are not set."""
    names = ("USER", "PASSWORD", "CA_FILE", "CERTIFICATE_FILE", "KEY_FILE", "KEY_PASSWORD", "OAUTH_TOKEN_URL", "OAUTH_SCOPE")
    assert load_settings({f"SEATMARK_KAFKA_{name}": "" for name in names}) == load_settings({})


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CLICKHOUSE_DSN", "http://seatmark:geheim@db:8123/x"), ("TOKEN", "geheim"), ("KAFKA_PASSWORD", "geheim"),
        ("SEAT_KEY", "geheim-geheim-geheim"),
        ("KAFKA_KEY_PASSWORD", "geheim"), ("KAFKA_OAUTH_CLIENT_SECRET", "geheim"),
    ],
)  # fmt: skip
def test_a_secret_may_come_from_a_file(variable: str, value: str, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(value + "\n")
    others = {
        "KAFKA_PASSWORD": {"SECURITY": "sasl_tls", "USER": "u"},
        "KAFKA_KEY_PASSWORD": {"SECURITY": "tls", "CERTIFICATE_FILE": __file__},
        "KAFKA_OAUTH_CLIENT_SECRET": {
            "SECURITY": "sasl_tls", "SASL_MECHANISM": "oauthbearer", "OAUTH_TOKEN_URL": "https://id/", "OAUTH_CLIENT_ID": "c"
        },
    }.get(variable, {})  # fmt: skip
    given = {f"SEATMARK_KAFKA_{name}": other for name, other in others.items()} | {f"SEATMARK_{variable}_FILE": str(file)}
    settings = load_settings(given)
    assert getattr(settings, variable.lower()).get_secret_value() == value
    assert "geheim" not in repr(settings)
    with pytest.raises(SettingsWrong, match=f"SEATMARK_{variable}_FILE and SEATMARK_{variable} say the same"):
        load_settings(given | {f"SEATMARK_{variable}": value})


def test_a_secret_in_place_of_its_file_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(SettingsWrong) as refused:
        load_settings({"SEATMARK_KAFKA_PASSWORD_FILE": "geheim"})
    assert str(refused.value) == ("SEATMARK_KAFKA_PASSWORD_FILE: cannot read the file that it names: No such file or directory")
    (tmp_path / "dsn").write_text("http://seatmark:geheim@db:no-port/x")
    with pytest.raises(SettingsWrong, match="SEATMARK_CLICKHOUSE_DSN: expected") as refused:
        load_settings({"SEATMARK_CLICKHOUSE_DSN_FILE": str(tmp_path / "dsn")})
    assert "geheim" not in str(refused.value)


def test_the_readme_documents_each_setting_with_its_default_and_description() -> None:
    rows = re.findall(r"^\| `SEATMARK_(\w+)` \| (?:`([^`]*)`)? ?\| (.*) \|$", README.read_text(), re.MULTILINE)
    documented = {name.lower(): (default, description) for name, default, description in rows}
    assert set(documented) == set(Settings.model_fields)
    for variable in known_variables():
        assert f"`{variable}`" in README.read_text()
    for name, field in Settings.model_fields.items():
        default, description = documented[name]
        assert description == field.description
        parsed = load_settings({f"SEATMARK_{name.upper()}": default})
        assert getattr(parsed, name) == getattr(load_settings({}), name), f"the README's default of {name}"
