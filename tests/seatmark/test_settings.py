"""Settings: unknown names and bad values fail at start, by name; the README documents each."""

import os
import re
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from seatmark.settings import Settings, SettingsWrong, load_settings

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
    ],
)
def test_a_bad_value_is_refused_by_name(variable: str, value: str, message: str) -> None:
    with pytest.raises(SettingsWrong, match=message) as refused:
        load_settings({variable: value})
    assert variable in str(refused.value)
    assert value in str(refused.value)


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


def test_the_readme_documents_each_setting_with_its_default_and_description() -> None:
    rows = re.findall(r"^\| `SEATMARK_(\w+)` \| (?:`([^`]*)`)? ?\| (.*) \|$", README.read_text(), re.MULTILINE)
    documented = {name.lower(): (default, description) for name, default, description in rows}
    assert set(documented) == set(Settings.model_fields)
    for name, field in Settings.model_fields.items():
        default, description = documented[name]
        assert description == field.description
        parsed = load_settings({f"SEATMARK_{name.upper()}": default})
        assert getattr(parsed, name) == getattr(load_settings({}), name), f"the README's default of {name}"
