"""Migrations and the reporting days, in process and over HTTP."""

import re
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import pytest
from clickhouse_migrations.migrator import Migrator

from processors.domain.days import Calendar
from schemas.activity import ACTIVITY_SCHEMA, ActivityRow
from schemas.days import DayMark, DayRow, Settled
from views import migrate as migrate_module
from views.migrate import MIGRATIONS, MigrationRefused, TimezoneChanged, migrate
from views.store import connect

pytestmark = pytest.mark.both_ways

_CREATED = re.compile(r"^CREATE (?:OR REPLACE )?(TABLE|VIEW|MATERIALIZED VIEW) (?:IF NOT EXISTS )?(\w+)", re.MULTILINE)

# What is stored and refused is the same over HTTP, and each migration takes a second or two.
IN_PROCESS = pytest.mark.parametrize("new_database", ["chdb"], indirect=True)

_DROPPED = re.compile(r"^DROP TABLE (\w+)", re.MULTILINE)


def rows_of(dsn: str, query: str) -> list[tuple[Any, ...]]:
    client = connect(dsn)
    try:
        return [tuple(row) for row in client.query(query).result_rows]
    finally:
        client.close()


def test_a_second_run_changes_nothing(new_database: Callable[[], str]) -> None:
    dsn = new_database()
    contents = (
        "SELECT version, md5, created_at FROM schema_versions ORDER BY version",
        "SELECT * FROM settings ORDER BY name",
        "SELECT count(), max(written_at) FROM calendar",
        "SELECT name, create_table_query FROM system.tables WHERE database = currentDatabase() ORDER BY name",
    )
    migrate(dsn, "Europe/Paris")
    before = [rows_of(dsn, query) for query in contents]
    migrate(dsn, "Europe/Paris")
    assert [rows_of(dsn, query) for query in contents] == before
    assert len(before[0]) == len(list(MIGRATIONS.glob("*.sql")))


def test_the_database_holds_what_the_files_create(database: str) -> None:
    files = [file.read_text() for file in MIGRATIONS.glob("*.sql")]
    dropped = {name for text in files for name in _DROPPED.findall(text)}
    in_files = {name: kind for text in files for kind, name in _CREATED.findall(text) if name not in dropped}
    kinds = {"View": "VIEW", "MaterializedView": "MATERIALIZED VIEW", "ReplacingMergeTree": "TABLE"}
    tables = rows_of(database, "SELECT name, engine FROM system.tables WHERE database = currentDatabase()")
    in_database = {name: kinds[engine] for name, engine in tables if name != "schema_versions"}
    assert in_database == in_files


def test_every_table_honours_deduplication_tokens(database: str) -> None:
    """Without the window ClickHouse ignores a token and says nothing."""
    tables = rows_of(
        database,
        "SELECT name, create_table_query FROM system.tables "
        "WHERE database = currentDatabase() AND engine LIKE '%MergeTree' AND name != 'schema_versions'",
    )
    assert len(tables) == 14
    for name, created in tables:
        assert "non_replicated_deduplication_window = 10000" in created, name


def columns_of(dsn: str, table: str) -> list[str]:
    return [
        name
        for (name,) in rows_of(
            dsn,
            "SELECT name FROM system.columns WHERE database = currentDatabase() "
            f"AND table = '{table}' AND default_kind != 'MATERIALIZED' ORDER BY position",
        )
    ]


def test_the_columns_are_those_of_the_contract(database: str) -> None:
    assert columns_of(database, "activity") == ACTIVITY_SCHEMA.names
    assert columns_of(database, "days") == [*(field.name for field in msgspec.structs.fields(DayRow)), "restated"]
    assert columns_of(database, "settled") == [field.name for field in msgspec.structs.fields(Settled)]
    assert set(columns_of(database, "marks")) == {field.name for field in msgspec.structs.fields(DayMark)} - {"timezone"}


@IN_PROCESS
@pytest.mark.parametrize("timezone", ["Pacific/Apia", "America/Sao_Paulo", "America/Vancouver", "Africa/Casablanca"])
def test_the_calendar_is_the_worker_s(database_in: Callable[[str], str], timezone: str) -> None:
    stored = rows_of(
        database_in(timezone),
        "SELECT day, toUnixTimestamp64Milli(starts_at), toUnixTimestamp64Milli(ends_at) FROM calendar FINAL ORDER BY day",
    )
    assert stored[0][0] == date(1970, 1, 1)
    assert stored[-1][0] > date.today().replace(year=date.today().year + 15)
    calendar = Calendar(timezone)
    for day, starts_at, ends_at in stored:
        bounds = calendar.bounds(day)
        if bounds is None:
            assert starts_at == ends_at
        else:
            assert (starts_at, ends_at) == (bounds.start, bounds.end)


@IN_PROCESS
def test_days_that_new_rules_move_are_written_again(new_database: Callable[[], str]) -> None:
    dsn = new_database()
    migrate(dsn, "Europe/Paris")
    of_one_day = "SELECT starts_at, ends_at FROM calendar FINAL WHERE day = '2030-07-01'"
    right = rows_of(dsn, of_one_day)
    client = connect(dsn)
    client.command(
        "INSERT INTO calendar SELECT day, starts_at + 3600, ends_at + 3600, written_at + 0.001 FROM calendar "
        "WHERE day = '2030-07-01'"
    )
    client.close()
    assert rows_of(dsn, of_one_day) != right
    migrate(dsn, "Europe/Paris")
    assert rows_of(dsn, of_one_day) == right
    assert rows_of(dsn, "SELECT count() FROM calendar WHERE day > '2030-07-01' AND day < '2030-08-01'") == [(30,)]


@IN_PROCESS
def test_another_time_zone_is_refused_once_there_are_days(
    new_database: Callable[[], str], put: Callable[..., None], day_row: Callable[..., DayRow]
) -> None:
    dsn = new_database()
    migrate(dsn, "Europe/Paris")
    client = connect(dsn)
    put(client, day_row("2026-11-20", "Europe/Paris"))
    client.close()
    with pytest.raises(TimezoneChanged, match="Europe/Paris, but SEATMARK_TIMEZONE is UTC"):
        migrate(dsn, "UTC")
    migrate(dsn, "Europe/Paris")


@IN_PROCESS
def test_an_empty_store_takes_another_time_zone(new_database: Callable[[], str]) -> None:
    dsn = new_database()
    migrate(dsn, "Pacific/Apia")
    migrate(dsn, "UTC")
    migrate(dsn, "Pacific/Apia")
    migrate(dsn, "UTC")
    assert rows_of(dsn, "SELECT value FROM settings FINAL WHERE name = 'timezone'") == [("UTC",)]
    assert rows_of(dsn, "SELECT count() FROM calendar FINAL WHERE ends_at - starts_at != 86400") == [(0,)]


@IN_PROCESS
def test_a_time_zone_that_is_none_is_refused(new_database: Callable[[], str]) -> None:
    with pytest.raises(ValueError, match="Mars/Olympus"):
        migrate(new_database(), "Mars/Olympus")


@IN_PROCESS
def test_marks_of_before_the_column_count_as_unsettled_since_then(
    new_database: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dsn = new_database()
    for file in MIGRATIONS.glob("000[1-5]_*.sql"):
        (tmp_path / file.name).write_text(file.read_text())
    with monkeypatch.context() as patched:
        patched.setattr(migrate_module, "MIGRATIONS", tmp_path)
        migrate(dsn, "UTC")
    client = connect(dsn)
    client.command("INSERT INTO marks VALUES ('ent-1', 'seats', '2026-11-20', '2026-11-21', 281474976710663)")
    client.close()
    migrate(dsn, "UTC")
    assert rows_of(dsn, "SELECT position, since FROM marks") == [(281474976710663, 281474976710663)]


@IN_PROCESS
def test_the_new_engine_of_the_raw_log_keeps_its_rows_also_when_it_is_run_again(
    new_database: Callable[[], str], put: Callable[..., None], activity_row: Callable[..., ActivityRow]
) -> None:
    """Run once; and ended after each of its statements in turn, and run again."""
    dsn = new_database()
    migrate(dsn, "UTC")
    before, after = (
        Migrator.script_to_statements(next(MIGRATIONS.glob(name)).read_text(), True) for name in ("0002_*.sql", "0008_*.sql")
    )
    terms = activity_row(type="entitlement.changed", offset=7, event=b'{"data":{"elements":{"seats":{"limit":1}}}}')
    repeat = terms._replace(offset=8, event=b'{"data":{"elements":{"seats":{"limit":2}}}}')
    of_other_months = [activity_row(id=f"seat-{month}", offset=9 + month, time=month * 31 * 86_400_000) for month in range(3)]
    rows = "SELECT id, offset, level FROM activity FINAL WHERE type = 'entitlement.changed' ORDER BY id"
    limits = "SELECT id, offset, `limit` FROM terms FINAL ORDER BY id"
    counts = "SELECT (SELECT count() FROM activity), (SELECT uniqExact(id) FROM activity_history), (SELECT count() FROM terms)"
    client = connect(dsn)
    for number in range(len(after)):
        client.command("DROP VIEW terms_from_activity")
        for table in ("activity", "terms"):
            client.command(f"DROP TABLE {table} SYNC")
        for statement in before:
            client.command(statement)
        # Merged, the two arrivals would be one row, the wrong one.
        for table in ("activity", "terms"):
            client.command(f"SYSTEM STOP MERGES {table}")
        put(client, terms)
        put(client, repeat)
        put(client, *of_other_months)

        for statement in [*after[:number], *after]:
            client.command(statement)

        assert client.query(counts).first_row == (5, 4, 2), number
        assert client.query(rows).result_rows == [("id-1", 7, 1)]
        assert client.query(limits).result_rows == [("id-1", 7, 1)]
        # The tables are the ones that are written to and merged.
        put(client, repeat._replace(offset=200))
        put(client, terms._replace(id="id-2", offset=201))
        for table in ("activity", "terms"):
            client.command(f"OPTIMIZE TABLE {table} FINAL")
        assert client.query(counts).first_row == (5, 5, 2)
        assert client.query(rows).result_rows == [("id-1", 7, 1), ("id-2", 201, 1)]
        assert client.query(limits).result_rows == [("id-1", 7, 1), ("id-2", 201, 1)]
    client.close()


def test_a_migration_that_was_changed_afterwards_is_refused(
    new_database: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dsn = new_database()
    migrate(dsn, "UTC")
    for file in MIGRATIONS.glob("*.sql"):
        (tmp_path / file.name).write_text(file.read_text() + "-- changed\n")
    monkeypatch.setattr(migrate_module, "MIGRATIONS", tmp_path)
    with pytest.raises(MigrationRefused, match="md5"):
        migrate(dsn, "UTC")
