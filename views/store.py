"""The store: named queries (views/queries/*.sql) against ClickHouse, a server or the engine inside this process.

A data source name (DSN) says which: `http(s)://user:password@host:8123/database`, or `chdb:///directory`, which one
process at a time can open. Both speak the same SQL. `?database=name` names a database inside the directory. In a DSN, what
has a meaning of its own there (such as #, ? and @) is written as %23, %3F and %40.
"""

import os
import re
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError, ProgrammingError

from schemas.errors import Explained
from views.reporting import ReportingDays

_QUERIES = Path(__file__).parent / "queries"
_MIGRATIONS = Path(__file__).parent / "migrations"
# A line of a query that is left out where this parameter is empty: the condition of a filter that nobody set. ClickHouse would
# find out by itself that it lets everything through, and take half a millisecond for each.
_IF_GIVEN = re.compile(r" -- if (\w+)$")
_VISIBLE_ELEMENTS = "visible_elements(everyone = {everyone:Bool}, customers = {customers:Array(String)})"

# ClickHouse's numbers of errors: UNKNOWN_TABLE, UNKNOWN_DATABASE.
_NOT_MIGRATED = {60, 81}
# TIMEOUT_EXCEEDED, TOO_SLOW, MEMORY_LIMIT_EXCEEDED.
_TOO_MUCH = {159, 160, 241}
# UNKNOWN_USER, WRONG_PASSWORD, REQUIRED_PASSWORD, ACCESS_DENIED, AUTHENTICATION_FAILED.
_REFUSED = {192, 193, 194, 497, 516}
# max_execution_time: in seconds; somebody waits for it. FINAL need not compare rows of different partitions: of all tables the
# partition is made of columns of the sort key, so all versions of a row are in the same one.
_QUERY_SETTINGS = {"max_execution_time": 30, "do_not_merge_across_partitions_select_final": 1}
# Of effect only where tables are spread over a cluster (views/cluster.py). An insert is acknowledged when every shard has its
# part, and not when this server has it in a queue. What a subquery or a join looks up is on the shard of its rows.
_ON_A_CLUSTER = {"distributed_foreground_insert": 1, "distributed_product_mode": "local"}

# In ms since 1970, as everywhere in Seatmark: ClickHouse takes longer to turn times into numbers.
_FORMATS = {"DateTime64": "int"}
# For so long the reporting time zone is not asked for again: only `migrate` of an empty store, and `rebuild`, change it.
_TIMEZONE_SECONDS = 10.0


class QueryTooLarge(Explained):
    """ClickHouse gave a query up: it took too long, or too much memory."""


class StoreUnavailable(Explained):
    """ClickHouse does not answer, or not to us. The message names the host and what to do, never the password."""


def chdb_dsn(directory: Path) -> str:
    """The DSN of the embedded ClickHouse in a directory."""
    return f"chdb://{quote(str(directory.absolute()))}"


def chdb_directory(dsn: str) -> str:
    """The directory that a `chdb:` DSN names, spelled as the engine knows it: of two spellings it would make two.

    Raises StoreUnavailable: it is the DSN of a server; or chDB cannot open the directory, because it takes what follows a
    question mark for options.
    """
    parts = urlsplit(dsn)
    if parts.scheme != "chdb":
        raise StoreUnavailable(f"{address_of(dsn)} is a server: expected an embedded ClickHouse, chdb:///directory")
    directory = os.path.realpath(unquote(parts.path))
    if "?" in directory:
        raise StoreUnavailable(
            f"the embedded ClickHouse cannot use the directory {directory}: choose one without a question mark in its path"
        )
    return directory


def connect(dsn: str, *, answer_seconds: int = 300) -> Client:
    """A client for one thread. Opening one costs some queries: keep it.

    answer_seconds: how long a server may be silent.
    Raises StoreUnavailable: nobody answers there, the user or the database is refused, or the directory cannot be opened.
    """
    try:
        if dsn.startswith("chdb:"):
            # The client would take the directory as it is written in the DSN.
            return clickhouse_connect.get_client(dsn=urlunsplit(urlsplit(dsn)._replace(path="")), path=chdb_directory(dsn))
        # Without a session, calls do not have to wait for each other on the server. The scheme is named again because
        # the client does not take it from the DSN.
        return clickhouse_connect.get_client(
            dsn=dsn,
            interface=urlsplit(dsn).scheme,
            autogenerate_session_id=False,
            connect_timeout=5,
            send_receive_timeout=answer_seconds,
            settings=_ON_A_CLUSTER,
        )
    except DatabaseError as error:
        raise explained(dsn, error) from error


class Store:
    """Runs the named queries. Safe to share between threads: a client is used by one of them at a time.

    It has as many clients as queries ran at once, and keeps them.
    """

    def __init__(self, dsn: str) -> None:
        """Nothing is opened before the first query."""
        self._dsn = dsn
        self._queries = named_queries()
        self._idle: list[Client] = []
        self._reporting: tuple[float, ReportingDays] | None = None

    @property
    def address(self) -> str:
        """Where the store is, without user and password."""
        return address_of(self._dsn)

    def query(self, name: str, **parameters: Any) -> list[dict[str, Any]]:
        """The rows of a named query, as dicts. Times (DateTime64) are in ms since 1970.

        name: a file of views/queries without `.sql`.
        parameters: for each `{parameter:Type}` in it; bound by ClickHouse, never pasted into the text. Lines that end with
            `-- if parameter` are left out where that one is empty.
        Raises StoreUnavailable: ClickHouse does not answer, or has no tables yet.
        Raises QueryTooLarge: it took longer than 30 seconds, or too much memory.
        Raises KeyError: no such query.
        """
        text = self._queries[name]
        if " -- if " in text:
            text = "\n".join(_IF_GIVEN.sub("", line) for line in text.split("\n") if _is_wanted(line, parameters))
        with self._client() as client:
            try:
                found = client.query(text, parameters=parameters, settings=_QUERY_SETTINGS, query_formats=_FORMATS)
                return list(found.named_results())
            except DatabaseError as error:
                raise explained(self._dsn, error) from error

    def reporting_days(self) -> ReportingDays:
        """The days of the reporting time zone, at most ten seconds old. Raises StoreUnavailable."""
        held = self._reporting
        if held is None or time.monotonic() - held[0] > _TIMEZONE_SECONDS:
            timezone = self.reporting_timezone()
            days = held[1] if held is not None and held[1].timezone == timezone else ReportingDays(timezone)
            self._reporting = held = (time.monotonic(), days)
        return held[1]

    def reporting_timezone(self) -> str:
        """The name of the reporting time zone, as it is now. Raises StoreUnavailable."""
        for row in self.query("reporting_timezone"):
            return str(row["timezone"])
        raise StoreUnavailable(f"ClickHouse at {self.address} has no reporting days: run the migrations")

    def close(self) -> None:
        """Close the clients; no query may be running. An embedded store can then be opened by another process."""
        while self._idle:
            self._idle.pop().close()

    @contextmanager
    def _client(self) -> Iterator[Client]:
        """A client that nobody else uses meanwhile."""
        # Taking from and appending to a list's end are one step each, whatever other threads do.
        try:
            client = self._idle.pop()
        except IndexError:
            client = connect(self._dsn)
        try:
            yield client
        finally:
            self._idle.append(client)


def named_queries() -> dict[str, str]:
    """The text of each query, by its name, as ClickHouse gets it.

    In the place of the view `visible_elements` stands what the migrations say that it is. ClickHouse puts it there too, but
    takes 3 ms for that each time. Its columns are those of the table that it reads, each looked at if it is named. Lines of
    comment are left out: the client looks for parameters in them.
    """
    migrations = "".join(file.read_text("utf-8") for file in sorted(_MIGRATIONS.glob("*.sql")))
    latest = re.findall(r"VIEW (?:IF NOT EXISTS )?visible_elements AS\nSELECT[^;]+?\n(FROM [^;]+);", migrations)[-1]
    visible = f"(\nSELECT *\n{latest}\n)"
    texts = {file.stem: re.sub(r"^--.*\n", "", file.read_text("utf-8"), flags=re.M) for file in _QUERIES.glob("*.sql")}
    return {name: text.replace(_VISIBLE_ELEMENTS, visible) for name, text in texts.items()}


def _is_wanted(line: str, parameters: dict[str, Any]) -> bool:
    condition = _IF_GIVEN.search(line)
    return condition is None or bool(parameters[condition[1]])


def address_of(dsn: str) -> str:
    """What may be shown of a DSN: scheme, host and port, or the directory."""
    parts = urlsplit(dsn)
    if parts.scheme == "chdb":
        return f"chdb://{unquote(parts.path)}"
    host = parts.hostname or ""
    return f"{parts.scheme}://{host}:{parts.port}" if parts.port else f"{parts.scheme}://{host}"


def explained(dsn: str, error: DatabaseError) -> Exception:
    """StoreUnavailable where somebody has to do something outside of this program, else the error as it is."""
    address = address_of(dsn)
    if error.code in _REFUSED:
        return StoreUnavailable(
            f"ClickHouse at {address} refuses the user: check user, password and rights in SEATMARK_CLICKHOUSE_DSN"
        )
    if error.code in _NOT_MIGRATED:
        return StoreUnavailable(f"ClickHouse at {address} lacks Seatmark's tables: run the migrations")
    if error.code in _TOO_MUCH:
        return QueryTooLarge("that is too much to answer at once: ask for fewer days, or for one entitlement")
    if isinstance(error, ProgrammingError) and dsn.startswith("chdb:"):
        return StoreUnavailable(
            f"cannot open the embedded ClickHouse at {address}: another process has it open, or its directory cannot "
            f"be written ({error})"
        )
    if (tls := _of_tls(error)) is not None:
        if isinstance(tls, ssl.SSLCertVerificationError):
            return StoreUnavailable(
                f"the certificate of ClickHouse at {address} is not trusted ({tls.verify_message}): give the file of its "
                "authority in SEATMARK_CLICKHOUSE_DSN, as in `?ca_cert=/etc/ssl/ca.pem`"
            )
        return StoreUnavailable(
            f"ClickHouse at {address} and we do not agree on TLS ({tls.reason}): is that its port for https? Correct "
            "SEATMARK_CLICKHOUSE_DSN"
        )
    if isinstance(error, OperationalError) or (type(error) is DatabaseError and error.code is None):
        return StoreUnavailable(f"ClickHouse at {address} does not answer: start it, or correct SEATMARK_CLICKHOUSE_DSN")
    return error


def _of_tls(error: BaseException | None) -> ssl.SSLError | None:
    """What was wrong with TLS, if that is what an error came from."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error
