"""The form of the tables on a cluster: read by ClickHouse's engine, and run on it as far as it goes without a keeper.

The engine has `Distributed` tables over shards that are this process itself, macros, and `Replicated` tables (with a keeper for
tests, enough to make them). It has no ON CLUSTER, and its replicas do not become active.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_migrations.migrator import Migrator

from tests.deploy.clickhouse_process import ClickhouseProcess
from views.cluster import EVERYWHERE, Cluster, NoClusterForm
from views.migrate import MIGRATIONS
from views.store import named_queries

FILES = Path(__file__).parents[2] / "deploy" / "clickhouse"

CLUSTER = Cluster("main", "seatmark")
STATEMENTS = [
    statement
    for file in sorted(MIGRATIONS.glob("*.sql"))
    for statement in Migrator.script_to_statements(file.read_text(), True)
]
HERE = "<replica><host>127.0.0.1</host><port>9000</port></replica>"
SHARD = f"<shard><internal_replication>true</internal_replication>{HERE}</shard>"
CONFIGURATION = f"""
    <zookeeper><implementation>testkeeper</implementation></zookeeper>
    <tcp_port>9000</tcp_port>
    <macros><shard>1</shard><replica>a</replica></macros>
    <remote_servers><main>{SHARD}</main><twice>{SHARD}{SHARD}</twice></remote_servers>
"""
QUERIES = {
    **named_queries(),
    **{f"exact/{file.stem}": file.read_text() for file in (MIGRATIONS.parent / "queries" / "exact").glob("*.sql")},
}
VIEWS = {
    # Its numbers are those of this instant, which is another one each time.
    "usage_by_day": "SELECT entitlement, element, day, opening, `max` FROM usage_by_day ORDER BY entitlement, element, day",
    "usage": "SELECT * "
    "FROM usage(entitlement = '', element = '', last_day = '2026-11-24', days = 30, at = '2026-11-24 10:00:00') "
    "ORDER BY entitlement, element, day",
    "live_levels": "SELECT * FROM live_levels ORDER BY entitlement, element",
    "overdrawn_now": "SELECT * FROM overdrawn_now ORDER BY entitlement, element",
    "activity_history": "SELECT * FROM activity_history",
    "compared, as for `rebuild`": "SELECT count() "
    "FROM (SELECT (entitlement, element) AS key, true AS is_there FROM days FINAL) AS now "
    "FULL OUTER JOIN (SELECT (entitlement, element) AS key, true AS is_there FROM elements FINAL) AS anew USING key",
}
_VALUES = {
    "Bool": "true",
    "String": "''",
    "UInt16": "30",
    "UInt32": "100",
    "Int64": "9000000000000",
    "Date32": "toDate32('2026-11-23')",
    "DateTime64(3, 'UTC')": "toDateTime64('2026-11-24 12:00:00', 3, 'UTC')",
    "Array(String)": "['ent-1', 'ent-2', 'ent-3', 'seats']",
    # The days from 20 to 24 November 2026.
    "Array(Int64)": "CAST([1795132800000, 1795219200000, 1795305600000, 1795392000000, 1795478400000], 'Array(Int64)')",
    "Array(Tuple(String, String))": "[('ent-1', 'seats'), ('ent-2', 'seats')]",
}
_OF_ENT_1 = {
    "entitlement": "'ent-1'",
    "element": "'seats'",
    "first_day": "toDate32('2026-11-20')",
    "from_ms": "0",
    "from": "toDateTime64('2026-11-20 00:00:00', 3, 'UTC')",
    "epoch": "0",
}
_OF_ENT_1 |= {"offset": "-1", "after_key": "0", "topic": "'entitlement-events'"}


def with_values(query: str) -> str:
    """A query's text with a value in the place of each parameter."""

    def value(found: re.Match[str]) -> str:
        return _OF_ENT_1.get(found[1]) or _VALUES[found[2]]

    return re.sub(r"\{(\w+):([^{}]+)\}", value, query).rstrip().rstrip(";")


# --- The text


def test_the_engine_reads_every_statement_of_every_migration(client: Client) -> None:
    for statement in STATEMENTS:
        for one in CLUSTER.statements(statement):
            [(spelled,)] = client.query("SELECT formatQuerySingleLine({one:String})", parameters={"one": one}).result_rows
            assert "ON CLUSTER main" in spelled


def test_tables_without_entitlements_are_on_every_server_and_no_others() -> None:
    tables = {
        found[1]: "\n    entitlement " in found[2]
        for statement in STATEMENTS
        for found in re.finditer(r"^CREATE TABLE IF NOT EXISTS (\w+)\n\((.*?)^\)", statement, flags=re.M | re.S)
    }
    assert len(tables) == 14
    # The last is the migration tool's own.
    assert {table for table, has_entitlements in tables.items() if not has_entitlements} == EVERYWHERE - {"schema_versions"}


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (
            'CREATE DATABASE IF NOT EXISTS "seatmark"',
            ["CREATE DATABASE IF NOT EXISTS `seatmark` ON C", "CREATE DATABASE IF NOT EXISTS `seatmark_shard` ON C"],
        ),
        (
            "-- Rows.\nCREATE TABLE IF NOT EXISTS days (day Date) ENGINE = ReplacingMergeTree(version)\nORDER BY day\n"
            "SETTINGS non_replicated_deduplication_window = 10000",
            [
                "CREATE TABLE IF NOT EXISTS `seatmark_shard`.`days` ON C (day Date) "
                "ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/{uuid}/{shard}', '{replica}', version)\n"
                "ORDER BY day\n"
                "SETTINGS replicated_deduplication_window = 10000, replicated_deduplication_window_seconds = 604800",
                "CREATE TABLE IF NOT EXISTS `seatmark`.`days` ON C AS `seatmark_shard`.`days` "
                "ENGINE = Distributed(`main`, `seatmark_shard`, `days`, cityHash64(entitlement))",
            ],
        ),
        (
            "CREATE TABLE tokens (id String) ENGINE = MergeTree ORDER BY id",
            [
                "CREATE TABLE `seatmark`.`tokens` ON C (id String) "
                "ENGINE = ReplicatedMergeTree('/clickhouse/tables/{uuid}/all', '{shard}-{replica}') ORDER BY id"
            ],
        ),
        (
            "CREATE TABLE days_rebuilt AS days",
            [
                "CREATE TABLE `seatmark_shard`.`days_rebuilt` ON C AS `seatmark_shard`.`days`",
                "CREATE TABLE `seatmark`.`days_rebuilt` ON C AS `seatmark_shard`.`days_rebuilt` "
                "ENGINE = Distributed(`main`, `seatmark_shard`, `days_rebuilt`, cityHash64(entitlement))",
            ],
        ),
        (
            "CREATE MATERIALIZED VIEW IF NOT EXISTS v TO elements AS\nSELECT 1\nFROM days\nWHERE x",
            [
                "CREATE MATERIALIZED VIEW IF NOT EXISTS `seatmark_shard`.`v` ON C TO `seatmark_shard`.`elements` AS\nSELECT 1\n"
                "FROM `seatmark_shard`.`days`\nWHERE x"
            ],
        ),
        (
            "CREATE OR REPLACE VIEW v AS SELECT 1 FROM days",
            ["CREATE OR REPLACE VIEW `seatmark`.`v` ON C AS SELECT 1 FROM days"],
        ),
        (
            "CREATE VIEW v AS SELECT 1 FROM usage(a = 1)",
            ["CREATE VIEW `seatmark`.`v` ON C AS SELECT 1 FROM `seatmark`.`usage`(a = 1)"],
        ),
        (
            "ALTER TABLE marks ADD COLUMN since UInt64",
            [
                "ALTER TABLE `seatmark_shard`.`marks` ON C ADD COLUMN since UInt64",
                "ALTER TABLE `seatmark`.`marks` ON C ADD COLUMN since UInt64",
            ],
        ),
        ("ALTER TABLE settings DELETE WHERE x", ["ALTER TABLE `seatmark`.`settings` ON C DELETE WHERE x"]),
        ("ALTER TABLE days DELETE WHERE x", ["ALTER TABLE `seatmark_shard`.`days` ON C DELETE WHERE x"]),
        (
            "ALTER TABLE a ATTACH PARTITION ALL FROM b",
            ["ALTER TABLE `seatmark_shard`.`a` ON C ATTACH PARTITION ALL FROM `seatmark_shard`.`b`"],
        ),
        ("EXCHANGE TABLES a AND b", ["EXCHANGE TABLES `seatmark_shard`.`a` AND `seatmark_shard`.`b` ON C"]),
        (
            "DROP TABLE IF EXISTS a SYNC",
            ["DROP TABLE IF EXISTS `seatmark`.`a` ON C SYNC", "DROP TABLE IF EXISTS `seatmark_shard`.`a` ON C SYNC"],
        ),
        ("TRUNCATE TABLE marks", ["TRUNCATE TABLE `seatmark_shard`.`marks` ON C"]),
        ("OPTIMIZE TABLE `schema_versions` FINAL", ["OPTIMIZE TABLE `seatmark`.`schema_versions` ON C FINAL"]),
    ],
)
def test_statements(statement: str, expected: list[str]) -> None:
    comment = "-- Rows.\n"
    found = [re.sub(r"\s*(ON CLUSTER `main`)\s+", " ON C ", one + " ").rstrip() for one in CLUSTER.statements(statement)]
    assert [one.removeprefix(comment) for one in found] == expected


def test_a_statement_that_nobody_thought_of_is_refused() -> None:
    with pytest.raises(NoClusterForm, match="RENAME"):
        CLUSTER.statements("RENAME TABLE a TO b")


# --- Run


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickhouseProcess]:
    """The same rows on one server, over one shard, and over two shards that are the same server."""
    directory = tmp_path_factory.mktemp("clickhouse-cluster")
    process = ClickhouseProcess(CONFIGURATION, directory / "data", directory / "server.xml")
    try:
        for database, cluster in {"single": "", "spread": "main", "doubled": "twice"}.items():
            assert process.ask(migrate_in="UTC", database=database, cluster=cluster) == {"rows": []}
        for database in ("single", "spread"):
            for insert in INSERTS:
                process.run(insert, database)
        yield process
    finally:
        process.close()


_SETTINGS = (
    "SETTINGS async_insert = 0, deduplicate_blocks_in_dependent_materialized_views = 1, distributed_foreground_insert = 1"
)
INSERTS = [
    "INSERT INTO activity "
    "(entitlement, element, time, source, id, type, customer, epoch, offset, t, version, delta, level) "
    f"{_SETTINGS} SELECT 'ent-' || toString(1 + number % 3), 'seats', "
    "toDateTime64('2026-11-20 00:00:00', 3, 'UTC') + number * 3600, '/s', toString(number), "
    "if(number < 3, 'entitlement.changed', 'seat.activated'), 'acme', 1, number, "
    "toDateTime64('2026-11-20 00:00:00', 3, 'UTC') + number * 3600, number % 2, 1, number FROM numbers(60)",
    "INSERT INTO days "
    "(entitlement, element, day, customer, kind, closing, closing_limit, max, peak_overage, state, as_of, position) "
    f"{_SETTINGS} SELECT 'ent-' || toString(1 + number % 3), 'seats', toDate32('2026-11-20') + intDiv(number, 3) % 4, 'acme', "
    "'pool', number, 3, number, number % 5, 'overdraft', '2026-11-23 10:00:00', number FROM numbers(24)",
    f"INSERT INTO marks (entitlement, element, first_day, last_day, position, since) {_SETTINGS} "
    "VALUES ('ent-1', 'seats', '2026-11-20', '2026-11-21', 9, 9)",
    f"INSERT INTO alerts (entitlement, element, at, id, type, entered_at, peak) {_SETTINGS} "
    "VALUES ('ent-1', 'seats', '2026-11-22 10:00:00', 'a', 'overdraft.left', '2026-11-21 10:00:00', 5)",
    f"INSERT INTO progress (topic, partition, epoch, offset, incarnation) {_SETTINGS} "
    "VALUES ('entitlement-events', 0, 1, 59, 'i')",
]


def test_what_is_spread_is_found_by_the_same_names(engine: ClickhouseProcess) -> None:
    names = "SELECT name FROM system.tables WHERE database = currentDatabase() AND engine != 'MaterializedView' ORDER BY name"
    assert engine.rows(names, "spread") == engine.rows(names, "single")
    columns = (
        "SELECT table, name, type FROM system.columns "
        "WHERE database = currentDatabase() AND table NOT LIKE '%_from_%' ORDER BY ALL"
    )
    assert engine.rows(columns, "spread") == engine.rows(columns, "single")
    engines = dict(engine.rows("SELECT name, engine FROM system.tables WHERE database = currentDatabase()", "spread"))
    assert {name for name, kind in engines.items() if kind.endswith("MergeTree")} == EVERYWHERE
    assert {kind for name, kind in engines.items() if name not in EVERYWHERE} == {"Distributed", "View"}


@pytest.mark.parametrize("name", sorted(QUERIES | VIEWS))
def test_every_query_answers_as_on_one_server(engine: ClickhouseProcess, name: str) -> None:
    query = with_values((QUERIES | VIEWS)[name])
    answer = engine.ask(select=query, database="single")
    assert "rows" in answer
    assert engine.ask(select=f"{query} SETTINGS distributed_product_mode = 'local'", database="spread") == answer
    # With two shards ClickHouse refuses what it cannot do on each by itself.
    assert "rows" in engine.ask(select=f"{query} SETTINGS distributed_product_mode = 'local'", database="doubled")


def test_a_repeat_of_an_insert_is_dropped_by_its_token_on_the_shard_and_in_its_views(engine: ClickhouseProcess) -> None:
    counts = "SELECT (SELECT count() FROM activity), (SELECT count() FROM terms)"
    before = engine.rows(counts, "spread")[0]
    repeated = (
        INSERTS[0].replace("SETTINGS ", "SETTINGS insert_deduplication_token = '{}', ").replace("numbers(60)", "numbers(3)")
    )
    for token, rows in {"first": 3, "second": 6}.items():
        for _ in range(2):
            engine.run(repeated.format(token), "spread")
        assert engine.rows(counts, "spread") == [[before[0] + rows, before[1] + rows]]


def test_tables_of_one_form_are_not_taken_for_those_of_the_other(engine: ClickhouseProcess) -> None:
    for database, cluster in {"spread": "", "single": "main"}.items():
        refused = engine.ask(migrate_in="UTC", database=database, cluster=cluster)["refused"]
        assert "SEATMARK_CLICKHOUSE_CLUSTER" in refused
        assert engine.ask(migrate_in="UTC", database=database, cluster="" if cluster else "main") == {"rows": []}


def test_replicated_tables_can_be_made(tmp_path: Path) -> None:
    """The engine knows their arguments and settings, and that the macros are there. It does not make them active."""
    engine = ClickhouseProcess(CONFIGURATION, tmp_path / "data", tmp_path / "server.xml")
    try:
        for database in ("seatmark", "seatmark_shard"):
            engine.run(f"CREATE DATABASE {database}", "default")
        tables = [statement for statement in STATEMENTS if "CREATE TABLE IF NOT EXISTS" in statement]
        for number, statement in enumerate(tables, 1):
            table = CLUSTER.statements(statement)[0]
            # ON CLUSTER would have chosen the id.
            engine.run(
                table.replace("ON CLUSTER `main`", f"UUID '00000000-0000-0000-0000-0000000000{number:02}'", 1), "default"
            )
        of_a_shard = "countIf(replica_name = 'a' AND endsWith(zookeeper_path, '/1'))"
        of_all = "countIf(replica_name = '1-a' AND endsWith(zookeeper_path, '/all'))"
        assert engine.rows(f"SELECT {of_a_shard}, {of_all} FROM system.replicas", "default") == [[10, 4]]
    finally:
        # Left alone it waits for its replicas.
        engine.kill()


# --- deploy/clickhouse/cluster


def test_the_server_s_files_say_who_is_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLICKHOUSE_CLUSTER_SECRET", "s")
    monkeypatch.setenv("CLICKHOUSE_SHARD", "2")
    monkeypatch.setenv("CLICKHOUSE_REPLICA", "b")
    files = (FILES / "config.d" / "seatmark.xml", FILES / "cluster" / "config.d" / "cluster.xml")
    inside = "".join(file.read_text().split("<clickhouse>")[1].split("</clickhouse>")[0] for file in files)
    # Of these the engine in process has its own.
    inside = re.sub(r"<(logger|user_directories)\b.*?</\1>", "", inside, flags=re.S)
    engine = ClickhouseProcess(inside, tmp_path / "data", tmp_path / "server.xml")
    try:
        shards = "SELECT shard_num, count() FROM system.clusters WHERE cluster = 'seatmark' GROUP BY ALL ORDER BY ALL"
        assert engine.rows(shards, "default") == [[1, 2], [2, 2]]
        assert engine.rows("SELECT macro, substitution FROM system.macros ORDER BY macro", "default") == [
            ["replica", "b"],
            ["shard", "2"],
        ]
        # Each number in config.d is one that the engine knows.
        numbers = dict(re.findall(r"^    <(\w+)>(\d+)</", files[0].read_text(), flags=re.M))
        assert len(numbers) == 3
        known = "SELECT name FROM system.server_settings WHERE changed AND name IN ({}) ORDER BY name"
        assert engine.rows(known.format(", ".join(f"'{name}'" for name in numbers)), "default") == [
            [name] for name in sorted(numbers)
        ]
    finally:
        engine.kill()


def test_analysts_on_a_cluster_are_those_on_one_server() -> None:
    """Grants in both databases, policies where the rows are."""
    single, cluster = ((FILES / place / "analysts.sql").read_text() for place in (".", "cluster"))
    grants, policies = single.split("-- An element belongs")
    grants_there, policies_there = cluster.split("-- An element belongs")
    assert policies_there == policies.replace("seatmark.", "seatmark_shard.")
    granted, granted_there = (
        set(re.findall(r"^GRANT SELECT ON (\w+\.\w+) ", text, flags=re.M)) for text in (grants, grants_there)
    )
    parts = {f"seatmark_shard.{name}" for name in ("activity", "terms", "days", "marks", "elements", "alerts")}
    assert granted_there == granted | parts
    assert {f"seatmark.{part.partition('.')[2]}" for part in parts} <= granted
    limits, limits_there = (set(re.findall(r"^    (\w+ = [\w' ]+)", text, flags=re.M)) for text in (grants, grants_there))
    assert limits < limits_there


def test_the_writer_and_the_reader_have_the_shards_database_too() -> None:
    root = ElementTree.parse(FILES / "cluster" / "users.d" / "cluster.xml").getroot()
    there = {user.tag: {query.text for query in user.findall("grants/query")} for user in root.findall("users/*")}
    single = ElementTree.parse(FILES / "users.d" / "seatmark.xml").getroot()
    for name, grants in there.items():
        here = {query.text for query in single.findall(f"users/{name}/grants/query")}
        assert here <= grants
        assert {grant.replace("seatmark.", "seatmark_shard.") for grant in here if grant} <= grants
    assert set(there) == {"seatmark_writer", "seatmark_reader"}
