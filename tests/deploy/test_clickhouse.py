"""deploy/clickhouse, tried on ClickHouse's engine: it takes the same users, grants, profiles and row policies as a server.

The engine in process has one user, `default`, and keeps none that SQL makes. So each user of the files is given to it as
`default`, in a process of its own, over the same data; what analysts.sql says is written as XML for that.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_migrations.migrator import Migrator

from tests.deploy.clickhouse_process import ClickhouseProcess

ROOT = Path(__file__).parents[2]
FILES = ROOT / "deploy" / "clickhouse"
ANALYSTS = (FILES / "analysts.sql").read_text()

ACCESS_DENIED, CONSTRAINT_VIOLATION, READONLY = 497, 452, 164

# Rows of `elements` in the order of their positions: entitlement and the customer that it names. What ent-2 named first was
# globex; ent-3 was acme's for a while.
ELEMENTS = [
    ("ent-1", "acme"),
    ("ent-2", "globex"),
    ("ent-2", "acme"),
    ("ent-3", "globex"),
    ("ent-3", "acme"),
    ("ent-3", "globex"),
    ("ent-4", None),
    ("ent-5", "o'neil & sons"),
]
ENTITLEMENTS = ["ent-1", "ent-2", "ent-3", "ent-4", "ent-5"]
ANN_HAS = ["acme", "o'neil & sons"]
ANN_SEES = ["ent-1", "ent-2", "ent-5"]
# Seatmark keeps these for itself. The last is a view that takes from the reader whose rows are shown.
NOT_FOR_ANALYSTS = {
    "tokens", "progress", "settled", "restatements", "exact_states", "levels_held", "settings", "schema_versions",
    "visible_elements",
}  # fmt: skip


def child(element: Element, tag: str) -> Element:
    found = element.find(tag)
    assert found is not None, tag
    return found


def users_where_default_is(name: str) -> Element:
    """users.d/seatmark.xml, where `default` is that user, without a password."""
    root = ElementTree.parse(FILES / "users.d" / "seatmark.xml").getroot()
    SubElement(child(root, "profiles"), "default")
    users = child(root, "users")
    for user in list(users):
        if user.tag != name:
            users.remove(user)
    user = child(users, name)
    user.tag = "default"
    user.remove(child(user, "password_sha256_hex"))
    SubElement(user, "password")
    return root


def policies() -> dict[str, str]:
    """By table, the condition of its row policy in analysts.sql."""
    found = re.findall(
        r"^CREATE ROW POLICY OR REPLACE seatmark_customers\s+ON ([^;]*?)\s+USING ([^;]*?)\s+TO ([^;]*);", ANALYSTS, flags=re.M
    )
    assert {who for _, _, who in found} == {"ALL EXCEPT default, seatmark_writer, seatmark_reader"}
    assert len(found) == len(re.findall("^CREATE ROW POLICY", ANALYSTS, flags=re.M))
    return {table: condition for tables, condition, _ in found for table in re.findall(r"seatmark\.(\w+)", tables)}


def granted() -> set[str]:
    """What analysts.sql lets analysts read."""
    grants = re.findall(r"^GRANT (.*);", ANALYSTS, flags=re.M)
    tables = [re.fullmatch(r"SELECT ON seatmark\.(\w+) TO seatmark_analyst", grant) for grant in grants]
    return {table[1] for table in tables if table is not None} if all(tables) else set()


def users_where_default_is_an_analyst(customers: list[str]) -> Element:
    """What analysts.sql makes of a user who has these customers' roles, as XML."""
    root = users_where_default_is("seatmark_reader")
    user = child(child(root, "users"), "default")
    user.remove(child(user, "grants"))
    grants = SubElement(user, "grants")
    for table in granted():
        SubElement(grants, "query").text = f"GRANT SELECT ON seatmark.{table}"
    roles = ", ".join(f"'customer:{escaped(customer)}'" for customer in customers)
    tables = SubElement(SubElement(user, "databases"), "seatmark")
    for table, condition in policies().items():
        SubElement(SubElement(tables, table), "filter").text = condition.replace(
            "enabledRoles()", f"['seatmark_analyst', {roles}]"
        )
    [settings] = re.findall(r"^CREATE SETTINGS PROFILE .* SETTINGS\n([^;]*)\n *TO seatmark_analyst;", ANALYSTS, flags=re.M)
    profile = child(child(root, "profiles"), "seatmark_reader")
    profile.clear()
    constraints = SubElement(profile, "constraints")
    for name, value, const, least, most in re.findall(
        r"^ *(\w+) = (\w+)(?: (CONST)| MIN (\d+) MAX (\d+))?,?$", settings, flags=re.M
    ):
        SubElement(profile, name).text = value
        constraint = SubElement(constraints, name)
        if const:
            SubElement(constraint, "const")
        elif least:
            SubElement(constraint, "min").text, SubElement(constraint, "max").text = least, most
    assert len(profile) - 1 == settings.count(" = ")
    return root


def escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'")


def process(directory: Path, name: str, users: Element) -> ClickhouseProcess:
    of_users = directory / f"{name}.xml"
    ElementTree.ElementTree(users).write(of_users)
    return ClickhouseProcess(f"<users_config>{of_users}</users_config>", directory / "data", directory / f"{name}-server.xml")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clickhouse-users")


@pytest.fixture(scope="module")
def written(directory: Path) -> dict[str, Any]:
    """What the writer was answered, by what it tried: it migrates an empty server, and stores rows in every table."""
    writer = process(directory, "writer", users_where_default_is("seatmark_writer"))
    try:
        answers: dict[str, Any] = {
            "migrate": writer.ask(migrate_in="UTC"),
            "columns": writer.rows("SELECT table, name FROM system.columns WHERE database = 'seatmark'"),
            "engines": dict(writer.rows("SELECT name, engine FROM system.tables WHERE database = 'seatmark'")),
            "another database": writer.error("CREATE DATABASE other"),
            "a user": writer.error("CREATE USER somebody"),
            "a file": writer.error("SELECT * FROM file('/etc/passwd', 'LineAsString')"),
        }
        for table in sorted(tables_of_customers(answers)):
            if table != "elements":
                rows = ", ".join(f"('{entitlement}', 'seats')" for entitlement in ENTITLEMENTS)
                writer.run(f"INSERT INTO {table} (entitlement, element) VALUES {rows}")
        # One by one, and not merged, so that rows that were replaced are still there.
        writer.run("SYSTEM STOP MERGES elements")
        for position, (entitlement, customer) in enumerate(ELEMENTS, 1):
            named = "NULL" if customer is None else f"'{escaped(customer)}'"
            writer.run(
                "INSERT INTO elements (entitlement, element, customer, kind, level, state, position) "
                f"VALUES ('{entitlement}', 'seats', {named}, 'pool', 1, 'overdraft', {position})"
            )
        answers["rows that were replaced"] = writer.rows("SELECT count() FROM elements WHERE position > 0")[0][0] - len(
            ENTITLEMENTS
        )
        return answers
    finally:
        writer.close()


def tables_of_customers(written: dict[str, Any]) -> set[str]:
    """The tables that have an entitlement's rows."""
    return {
        table
        for table, column in written["columns"]
        if column == "entitlement" and written["engines"][table].endswith("MergeTree")
    }


@pytest.fixture(scope="module")
def one_at_a_time(directory: Path, written: dict[str, Any]) -> Iterator[Callable[[str], ClickhouseProcess]]:
    """Gives the engine as the reader or as ann; one process at a time can have the data open."""
    users = {"reader": users_where_default_is("seatmark_reader"), "ann": users_where_default_is_an_analyst(ANN_HAS)}
    running: dict[str, ClickhouseProcess] = {}

    def close() -> None:
        while running:
            running.popitem()[1].close()

    def started(name: str) -> ClickhouseProcess:
        if name not in running:
            close()
            running[name] = process(directory, name, users[name])
        return running[name]

    yield started
    close()


@pytest.fixture
def reader(one_at_a_time: Callable[[str], ClickhouseProcess]) -> ClickhouseProcess:
    return one_at_a_time("reader")


@pytest.fixture
def ann(one_at_a_time: Callable[[str], ClickhouseProcess]) -> ClickhouseProcess:
    """An analyst with the roles of two customers."""
    return one_at_a_time("ann")


# --- The writer


def test_the_writer_makes_the_database_and_migrates(written: dict[str, Any]) -> None:
    assert written["migrate"] == {"rows": []}
    assert {"activity", "days", "usage", "tokens"} <= set(written["engines"])


def test_the_writer_can_do_nothing_elsewhere(written: dict[str, Any]) -> None:
    assert {written[what] for what in ("another database", "a user", "a file")} == {ACCESS_DENIED}


# --- The reader


def test_the_reader_reads_everything_and_writes_nothing(reader: ClickhouseProcess) -> None:
    assert reader.rows("SELECT count() FROM live_levels") == [[len(ENTITLEMENTS)]]
    assert reader.ask(query="token", parameters={"id": "0123456789ab"}) == {"rows": []}
    assert reader.ask(query="entitlement", parameters={"entitlement": "ent-1", "everyone": True, "customers": []})["rows"] != []
    assert reader.error("INSERT INTO tokens (id) VALUES ('x')") == ACCESS_DENIED
    assert reader.error("TRUNCATE TABLE days") == ACCESS_DENIED
    assert reader.error("SELECT * FROM file('/etc/passwd', 'LineAsString')") == ACCESS_DENIED


@pytest.mark.parametrize(
    ("setting", "allowed"),
    [
        # What the web gives each query.
        ("max_execution_time = 30", True),
        ("do_not_merge_across_partitions_select_final = 1", True),
        ("max_execution_time = 60", True),
        ("max_execution_time = 61", False),
        ("max_execution_time = 0", False),
        ("max_memory_usage = 2000000001", False),
        ("max_memory_usage = 0", False),
    ],
)
def test_the_reader_sets_limits_but_does_not_lift_them(reader: ClickhouseProcess, setting: str, allowed: bool) -> None:
    assert reader.error(f"SELECT 1 SETTINGS {setting}") == (None if allowed else CONSTRAINT_VIOLATION)


# --- Analysts


def test_every_table_of_customers_data_has_a_policy(written: dict[str, Any]) -> None:
    assert tables_of_customers(written) == set(policies())


def test_what_analysts_may_read_is_decided_for_every_table_and_view(written: dict[str, Any]) -> None:
    readable = {name for name, engine in written["engines"].items() if engine != "MaterializedView"}
    assert granted() | NOT_FOR_ANALYSTS == readable
    assert not granted() & NOT_FOR_ANALYSTS


def test_rows_that_were_replaced_are_there_to_be_seen(written: dict[str, Any]) -> None:
    assert written["rows that were replaced"] == len(ELEMENTS) - len(ENTITLEMENTS)


@pytest.mark.parametrize("table", sorted(granted() - {"usage", "calendar"}))
def test_an_analyst_sees_the_entitlements_that_name_her_customers_now(ann: ClickhouseProcess, table: str) -> None:
    assert ann.rows(f"SELECT DISTINCT entitlement FROM {table} ORDER BY entitlement") == [[name] for name in ANN_SEES]


def test_an_analyst_sees_the_usage_of_her_customers_only(ann: ClickhouseProcess) -> None:
    asked = "last_day = '2026-11-24', days = 2, at = '2026-11-24 10:00:00.000'"
    found = ann.rows(f"SELECT DISTINCT entitlement FROM usage(entitlement = '', element = '', {asked}) ORDER BY entitlement")
    assert found == [[name] for name in ANN_SEES]
    assert ann.rows(f"SELECT * FROM usage(entitlement = 'ent-3', element = '', {asked})") == []


def test_an_analyst_does_not_see_what_a_row_was_before(ann: ClickhouseProcess) -> None:
    assert ann.rows("SELECT entitlement, customer FROM elements ORDER BY entitlement") == [
        ["ent-1", "acme"],
        ["ent-2", "acme"],
        ["ent-5", "o'neil & sons"],
    ]
    assert ann.error("SELECT * FROM elements SETTINGS final = 0") == CONSTRAINT_VIOLATION
    assert ann.error("SELECT * FROM elements SETTINGS apply_row_policy_after_final = 0") == CONSTRAINT_VIOLATION


@pytest.mark.parametrize("table", sorted(NOT_FOR_ANALYSTS - {"visible_elements"}))
def test_an_analyst_reads_nothing_that_is_not_granted(ann: ClickhouseProcess, table: str) -> None:
    assert ann.error(f"SELECT * FROM {table}") == ACCESS_DENIED


def test_an_analyst_writes_nothing_and_does_not_lift_the_limits(ann: ClickhouseProcess) -> None:
    assert ann.error("INSERT INTO days (entitlement) VALUES ('ent-1')") in {ACCESS_DENIED, READONLY}
    assert ann.error("SELECT 1 SETTINGS max_execution_time = 0") == CONSTRAINT_VIOLATION
    assert ann.error("SELECT 1 SETTINGS max_memory_usage = 0") == CONSTRAINT_VIOLATION
    assert ann.error("SELECT 1 SETTINGS max_concurrent_queries_for_user = 0") == CONSTRAINT_VIOLATION


def test_the_engine_reads_every_statement_of_the_file(client: Client) -> None:
    statements = Migrator.script_to_statements(ANALYSTS, True)
    assert len(statements) > 10
    for statement in statements:
        client.command("SELECT formatQuery({statement:String})", parameters={"statement": statement})
    # What the tests put something else in the place of.
    client.command("SELECT enabledRoles()")
