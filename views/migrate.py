"""Brings the tables of a store up to date, and keeps the reporting days in it.

Safe to run at every start and by several processes: what is there already stays as it is.
"""

import datetime
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit, urlunsplit

import pyarrow as pa
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError
from clickhouse_migrations.clickhouse_cluster import ClickhouseCluster
from clickhouse_migrations.connection import CLICKHOUSE_CONNECT, ClickhouseConnectConnection, Connection
from clickhouse_migrations.exceptions import MigrationException

from processors.domain.days import Calendar
from schemas.errors import Explained
from views.cluster import change_tables
from views.store import address_of, connect, explained

MIGRATIONS = Path(__file__).parent / "migrations"

_ONE_DAY = datetime.timedelta(days=1)
_FIRST_DATE = datetime.date(1970, 1, 1)
# Who never restarts within this time sees the window end; every start moves it on.
_YEARS_AHEAD = 20
_MS = pa.timestamp("ms", tz="UTC")


class MigrationRefused(Explained):
    """The tables are not as this version's migrations leave them."""


class TimezoneChanged(Explained):
    """The stored days have other bounds than those of the time zone that is now set."""


def migrate(dsn: str, timezone: str, cluster: str = "") -> None:
    """Apply the migrations that are missing, then write the days of the reporting time zone.

    dsn: as for `views.store.connect`. A database that does not exist is created.
    timezone: an IANA name. It is kept with the first day rows, and from then on only that name is accepted.
    cluster: the name of the cluster that the tables are spread over (`views.cluster`), '' for one server.
    Raises StoreUnavailable: see there.
    Raises TimezoneChanged: there are day rows of another time zone.
    Raises ValueError: there is no such time zone.
    Raises MigrationRefused: the store is newer than this program, or a migration that was applied is not the same any more.
    """
    calendar = Calendar(timezone)
    try:
        _Cluster(dsn, cluster).apply(MIGRATIONS)
        client = connect(dsn)
        try:
            refuse_other_timezone(client, timezone)
            set_timezone(client, timezone)
            write_calendar(client, calendar)
        finally:
            client.close()
    except DatabaseError as error:
        raise explained(dsn, error) from error
    except MigrationException as error:
        raise MigrationRefused(
            f"the tables in {address_of(dsn)} were made by another version of Seatmark, newer or changed: {error}. "
            "Run that version, or choose another database"
        ) from error


class _Cluster(ClickhouseCluster):  # type: ignore[misc]
    """A ClickHouse for the migration tool, opened as the rest of Seatmark opens it: the tool itself refuses chdb://."""

    def __init__(self, dsn: str, cluster: str) -> None:
        parts = urlsplit(dsn)
        if parts.scheme == "chdb":
            [database] = parse_qs(parts.query).get("database", ["default"])
            self._server_dsn = urlunsplit(parts._replace(query=""))
        else:
            database = unquote(parts.path.strip("/")) or "default"
            self._server_dsn = urlunsplit(parts._replace(path=""))
        self._cluster = cluster
        super().__init__(db_name=database, driver=CLICKHOUSE_CONNECT)

    def apply(self, directory: Path) -> None:
        """Run the migrations of a directory that this database does not have yet."""
        with self.connection("") as connection:
            # Asked first, because many users of a server may not create databases.
            exists = self.default_db_name in (row["name"] for row in connection.query("SHOW DATABASES"))
            if exists:
                self._refuse_tables_of_the_other_form(connection)
        self.migrate(None, directory, create_db_if_no_exists=not exists, migration_log_format="compact")

    def connection(self, db_name: str | None = None) -> Connection:
        """A connection to a database: '' the one that the server chooses, None the one of the DSN."""
        client = connect(self._server_dsn)
        client.database = (self.default_db_name if db_name is None else db_name) or None
        return _ClusterConnection(client, self._cluster)

    def _refuse_tables_of_the_other_form(self, connection: Connection) -> None:
        engines = connection.query(
            f"SELECT engine FROM system.tables WHERE database = '{self.default_db_name}' AND name = 'activity'"
        )
        spread = [row["engine"] == "Distributed" for row in engines]
        if spread and spread != [bool(self._cluster)]:
            raise MigrationRefused(
                f"the tables in {address_of(self._server_dsn)} are those of {'a cluster' if spread[0] else 'one server'}, but "
                f"SEATMARK_CLICKHOUSE_CLUSTER {'names one' if self._cluster else 'is empty'}: correct it, or choose another "
                "database"
            )


class _ClusterConnection(ClickhouseConnectConnection):  # type: ignore[misc]
    """A connection whose statements are put in the form for a cluster, if there is one."""

    def __init__(self, client: Client, cluster: str) -> None:
        super().__init__(client)
        self._cluster = cluster

    def command(self, statement: str, log_statement: str | None = None) -> None:
        change_tables(self._client, statement, self._cluster)


def _stored_timezone(client: Client) -> str | None:
    stored = client.query("SELECT value FROM settings FINAL WHERE name = 'timezone'").result_rows
    return stored[0][0] if stored else None


def refuse_other_timezone(client: Client, timezone: str) -> None:
    """Before days are written: those that are stored are of one time zone. Raises TimezoneChanged."""
    stored = _stored_timezone(client)
    if stored not in (None, timezone) and client.query("SELECT 1 FROM days LIMIT 1").result_rows:
        raise TimezoneChanged(
            f"the stored days are those of the time zone {stored}, but SEATMARK_TIMEZONE is {timezone}: "
            f"set it back to {stored}, or run `seatmark rebuild` with the new one"
        )


def set_timezone(client: Client, timezone: str) -> None:
    """Keep the name of the reporting time zone."""
    if _stored_timezone(client) != timezone:
        client.insert_arrow("settings", pa.table({"name": ["timezone"], "value": [timezone], "written_at": _now(1)}))


def write_calendar(client: Client, calendar: Calendar) -> None:
    """Write the days whose bounds are not the stored ones: all at first, later those that new rules move."""
    stored = {
        day: (start, end)
        for day, start, end in client.query(
            "SELECT day, toUnixTimestamp64Milli(starts_at), toUnixTimestamp64Milli(ends_at) FROM calendar FINAL"
        ).result_rows
    }
    last_date = datetime.datetime.now(datetime.UTC).date() + _YEARS_AHEAD * 365 * _ONE_DAY
    days, starts, ends = [], [], []
    day = _FIRST_DATE
    start_of_next = 0
    while day <= last_date:
        bounds = calendar.bounds(day)
        start, end = (bounds.start, bounds.end) if bounds is not None else (start_of_next, start_of_next)
        start_of_next = end
        if stored.get(day) != (start, end):
            days.append(day)
            starts.append(start)
            ends.append(end)
        day += _ONE_DAY
    if days:
        client.insert_arrow(
            "calendar",
            pa.table(
                {
                    "day": pa.array(days, pa.date32()),
                    "starts_at": pa.array(starts, _MS),
                    "ends_at": pa.array(ends, _MS),
                    "written_at": _now(len(days)),
                }
            ),
        )


def _now(rows: int) -> pa.Array:
    """A column with the present instant: makes each of these inserts another one, never a repeat of an earlier one."""
    return pa.array([datetime.datetime.now(datetime.UTC)] * rows, _MS)
