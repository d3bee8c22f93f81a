"""Day rows, levels and alerts that were made anew: in tables of their own, compared with the present ones, then exchanged."""

from collections.abc import Iterator
from dataclasses import dataclass

from clickhouse_connect.driver.client import Client

from processors.domain.days import Calendar
from views.cluster import change_tables
from views.levels import begin_generation
from views.migrate import set_timezone, write_calendar

_TABLES = ("days", "elements", "alerts")
# What hangs on numbers that are gone with the exchange.
_EMPTIED = ("marks", "settled", "restatements", "exact_states", "levels_held")

_DAY = (
    "opening, closing, min, max, limit, hard_limit, terms_known, overdraft_ms, unit_ms, peak_overage, activations, "
    "deactivations, refreshes, denials, units_used, as_of, day_start, day_end"
)
_COMPARED = {
    "days": ("entitlement, element, day", _DAY),
    "elements": ("entitlement, element", "level, limit, hard_limit, terms_known, state"),
    "alerts": ("entitlement, element, id", "type, from_state, to_state, level, at"),
}

# Compared as text: of two tuples with a NULL in them ClickHouse does not say that they are equal.
_COMPARE = """
SELECT
    countIf(now.is_there AND anew.is_there AND toString(now.value) = toString(anew.value)),
    countIf(now.is_there AND anew.is_there AND toString(now.value) != toString(anew.value)),
    countIf(NOT now.is_there),
    countIf(NOT anew.is_there)
FROM (SELECT ({key}) AS key, ({value}) AS value, true AS is_there FROM {table} FINAL) AS now
FULL OUTER JOIN (SELECT ({key}) AS key, ({value}) AS value, true AS is_there FROM {table}_rebuilt FINAL) AS anew USING key
"""

_ELEMENTS = """
INSERT INTO elements_rebuilt
SELECT entitlement, element, customer, product, name, kind, closing AS level, closing_limit AS `limit`,
    closing_hard_limit AS hard_limit, closing_terms_known AS terms_known, state, entered_at, peak, day, as_of, position
FROM days_rebuilt
"""


@dataclass(frozen=True)
class Difference:
    """How many rows of a table are as they were, have other values, are new, and are gone."""

    same: int
    changed: int
    new: int
    gone: int


@dataclass(frozen=True)
class Comparison:
    """What was made anew beside what there is, by table."""

    tables: dict[str, Difference]

    @property
    def differs(self) -> bool:
        """Whether anything would be another number than before."""
        return any(table.changed or table.new or table.gone for table in self.tables.values())

    def lines(self) -> Iterator[tuple[str, str]]:
        """What to tell of each table."""
        names = {"days": "days", "elements": "levels", "alerts": "alerts"}
        for table, found in self.tables.items():
            yield names[table], f"{found.same:,} the same, {found.changed:,} changed, {found.new:,} new, {found.gone:,} gone"


class RebuiltTables:
    """The tables `days_rebuilt`, `elements_rebuilt` and `alerts_rebuilt`, from their making to their exchange."""

    def __init__(self, client: Client, cluster: str) -> None:
        """cluster: the name of the cluster that the tables are spread over, '' for one server."""
        self._client = client
        self._cluster = cluster

    def make(self) -> None:
        """Make them, empty."""
        self.drop()
        for table in _TABLES:
            self._change(f"CREATE TABLE {table}_rebuilt AS {table}")

    def drop(self) -> None:
        """Drop them, if they are there."""
        for table in _TABLES:
            self._change(f"DROP TABLE IF EXISTS {table}_rebuilt SYNC")

    def compare(self) -> Comparison:
        """Work out the levels from the day rows, and compare all with the present tables."""
        self._client.command(_ELEMENTS)
        found = {}
        for table, (key, value) in _COMPARED.items():
            key, value = (", ".join(f"`{name}`" for name in names.split(", ")) for names in (key, value))
            [row] = self._client.query(_COMPARE.format(table=table, key=key, value=value)).result_rows
            found[table] = Difference(*row)
        return Comparison(found)

    def exchange(self, timezone: str) -> None:
        """Put them in the place of the present ones; the reporting time zone is then this one."""
        for table in _TABLES:
            self._change(f"EXCHANGE TABLES {table} AND {table}_rebuilt")
        for table in _EMPTIED:
            self._change(f"TRUNCATE TABLE {table}")
        begin_generation(self._client)
        set_timezone(self._client, timezone)
        write_calendar(self._client, Calendar(timezone))

    def _change(self, statement: str) -> None:
        change_tables(self._client, statement, self._cluster)
