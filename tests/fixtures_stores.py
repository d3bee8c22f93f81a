"""Fixtures with ClickHouse databases: in this process, and over HTTP; a plugin that ``tests/conftest.py`` names.

A process can have one engine, so all databases of a session are in one directory, whichever way they are reached. Files
about the ways themselves are marked `both_ways`; what a query says does not depend on how it was sent.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pytest
from clickhouse_connect.driver.client import Client

from seatmark.chdb_http import ChdbHttp
from views.migrate import migrate
from views.store import chdb_dsn, connect


@pytest.fixture(scope="session")
def chdb_http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChdbHttp]:
    """The engine, with its HTTP interface as a server's: its user has a password and may do everything."""
    directory = tmp_path_factory.mktemp("clickhouse")
    with ChdbHttp(directory, 0, user="seatmark", password="p@ss'word", unrestricted=True) as server:
        yield server


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "new_database" in metafunc.fixturenames and metafunc.definition.get_closest_marker("both_ways"):
        chosen = [mark for mark in metafunc.definition.iter_markers("parametrize") if mark.args[0] == "new_database"]
        if not chosen:
            metafunc.parametrize("new_database", ["chdb", "http"], indirect=True, scope="session")


@pytest.fixture(scope="session")
def new_database(request: pytest.FixtureRequest, chdb_http: ChdbHttp) -> Callable[[], str]:
    """Gives the DSN of a database that does not exist yet: in process, and where a file says `both_ways` over HTTP too."""

    def dsn() -> str:
        database = f"test_{uuid.uuid4().hex}"
        return (
            chdb_http.dsn(database)
            if getattr(request, "param", "chdb") == "http"
            else f"{chdb_dsn(chdb_http.directory)}?database={database}"
        )

    return dsn


@pytest.fixture(scope="session")
def database_in(new_database: Callable[[], str]) -> Callable[[str], str]:
    """Gives the DSN of a migrated database with a reporting time zone: one for the session, so use entitlements of your own."""
    made: dict[str, str] = {}

    def dsn(timezone: str) -> str:
        if timezone not in made:
            fresh = new_database()
            migrate(fresh, timezone)
            made[timezone] = fresh
        return made[timezone]

    return dsn


@pytest.fixture(scope="session")
def database(database_in: Callable[[str], str]) -> str:
    """The DSN of a migrated database, in UTC."""
    return database_in("UTC")


@pytest.fixture
def client(database: str) -> Iterator[Client]:
    """A client of `database`."""
    opened = connect(database)
    yield opened
    opened.close()


@pytest.fixture
def entitlement() -> str:
    """The id of an entitlement that no other test has; not a tidy one."""
    return f"ent/{uuid.uuid4().hex} 'x\\'"
