"""The store: parameters, threads, and what it says when ClickHouse is not there."""

import contextlib
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError

from schemas.days import DayRow
from seatmark.chdb_http import ChdbHttp
from views.store import Store, StoreUnavailable, address_of, chdb_directory, chdb_dsn, connect, named_queries

pytestmark = pytest.mark.both_ways

# What a reader of everything gives each query.
ALL: dict[str, Any] = {"everyone": True, "customers": []}


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    opened = Store(database)
    yield opened
    opened.close()


@pytest.mark.parametrize(
    "text", ["it's", 'a"b', "tab\tline\nend", "back\\slash", "{entitlement:String}", "é 日本 🪑", "' OR 1 = 1 --"]
)
def test_parameters_are_data(
    store: Store, client: Client, put: Callable[..., None], day_row: Callable[..., DayRow], entitlement: str, text: str
) -> None:
    odd = entitlement + text
    put(client, day_row("2026-11-20", entitlement=odd, element=text, closing=1))
    assert [row["element"] for row in store.query("entitlement", entitlement=odd, **ALL)] == [text]
    window = {"first_day": "2026-11-20", "last_day": "2026-11-21"}
    assert [day["closing"] for day in store.query("usage_days", entitlement=odd, element=text, **window, visible=[text])] == [1]
    assert store.query("entitlement", entitlement=text + "'", **ALL) == []


def test_threads_do_not_disturb_each_other(
    store: Store, client: Client, put: Callable[..., None], day_row: Callable[..., DayRow], entitlement: str
) -> None:
    put(client, *(day_row("2026-11-20", entitlement=f"{entitlement}{n}", closing=n) for n in range(4)))
    answers: dict[int, list[int]] = {}

    def ask(n: int) -> None:
        answers[n] = [store.query("entitlement", entitlement=f"{entitlement}{n}", **ALL)[0]["level"] for _ in range(10)]

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {n: [n] * 10 for n in range(4)}


def test_a_closed_store_opens_again(store: Store) -> None:
    assert store.query("reporting_timezone") == [{"timezone": "UTC"}]
    store.close()
    assert store.query("reporting_timezone") == [{"timezone": "UTC"}]


def test_unknown_queries_are_told_from_failures(store: Store) -> None:
    with pytest.raises(KeyError):
        store.query("no_such_query")


def test_queries_are_whole_without_the_lines_of_filters_that_are_not_set(client: Client) -> None:
    for name, text in named_queries().items():
        shortest = "\n".join(line for line in text.split("\n") if " -- if " not in line)
        for left in (text, shortest):
            spelled = client.command("SELECT formatQuery({left:String})", parameters={"left": left})
            assert f"{spelled}".startswith(("SELECT", "WITH")), name
        for line in text.split("\n"):
            condition, marked, parameter = line.partition(" -- if ")
            # These two have conditions over several lines.
            if marked and parameter not in ("search", "standing"):
                assert re.fullmatch(rf" +AND \w+ (=|IN) {{{parameter}:[\w()]+}}", condition), f"{name}: {line}"


def test_errors_that_are_ours_stay_what_they_are(store: Store) -> None:
    with pytest.raises(DatabaseError):
        store.query("usage_day_before", entitlement="e", element="seats", first_day="not a date", visible=["seats"])


def test_a_database_without_tables(new_database: Callable[[], str]) -> None:
    with pytest.raises(StoreUnavailable, match="run the migrations"):
        Store(new_database()).query("reporting_timezone")


def test_nobody_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(StoreUnavailable) as refused:
            Store(f"http://seatmark:geheim@127.0.0.1:{port}/db").query("reporting_timezone")
    assert f"http://127.0.0.1:{port}" in str(refused.value)
    assert "geheim" not in str(refused.value)


def test_a_wrong_password(chdb_http: ChdbHttp) -> None:
    dsn = f"http://seatmark:geheim@127.0.0.1:{chdb_http.port}/db"
    with pytest.raises(StoreUnavailable, match="refuses the user") as refused:
        connect(dsn)
    assert "geheim" not in str(refused.value)


def test_a_certificate_that_nobody_here_trusts() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)

    def shake_hands() -> None:
        # Once for each attempt of the client; the last one ends with the server's socket.
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True):
                    pass

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=shake_hands)
        thread.start()
        with pytest.raises(StoreUnavailable) as refused:
            connect(f"https://seatmark:geheim@127.0.0.1:{server.getsockname()[1]}/db")
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert "is not trusted (unable to get local issuer certificate)" in str(refused.value)
    assert "?ca_cert=/etc/ssl/ca.pem" in str(refused.value)
    assert "geheim" not in str(refused.value)


def test_a_port_without_tls(chdb_http: ChdbHttp) -> None:
    with pytest.raises(StoreUnavailable, match=r"do not agree on TLS \(WRONG_VERSION_NUMBER\): is that its port for https"):
        connect(f"https://seatmark:geheim@127.0.0.1:{chdb_http.port}/db")


def test_another_process_has_the_directory(chdb_http: ChdbHttp) -> None:
    program = (
        "import sys\nfrom views.store import connect, StoreUnavailable\n"
        "try:\n    connect(sys.argv[1])\nexcept StoreUnavailable as error:\n    print(error)\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", program, chdb_dsn(chdb_http.directory)], capture_output=True, text=True, timeout=60, check=False
    )
    assert f"cannot open the embedded ClickHouse at chdb://{chdb_http.directory}: another process has it open" in child.stdout


def test_the_embedded_store_is_in_the_directory_that_was_named(tmp_path: Path) -> None:
    """In a process of its own: one can open a single directory."""
    directory = tmp_path / "a #1 100%25 é&'b"
    program = (
        "import sys\nfrom pathlib import Path\nfrom views.migrate import migrate\nfrom views.store import Store, chdb_dsn\n"
        "dsn = chdb_dsn(Path(sys.argv[1]))\nmigrate(dsn, 'UTC')\nprint(Store(dsn).address)\n"
        "print(Store(dsn).query('reporting_timezone'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(directory)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"chdb://{directory}\n[{{'timezone': 'UTC'}}]\n"
    assert list(tmp_path.iterdir()) == [directory]
    assert (directory / "data").is_dir()


def test_a_directory_that_chdb_would_take_apart_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match=r"cannot use the directory .*/a\?b: choose one without a question mark"):
        connect(chdb_dsn(tmp_path / "a?b"))
    assert list(tmp_path.iterdir()) == []


def test_a_server_has_no_directory() -> None:
    with pytest.raises(StoreUnavailable, match=r"http://127\.0\.0\.1:8123 is a server") as refused:
        chdb_directory("http://seatmark:geheim@127.0.0.1:8123/default")
    assert "geheim" not in str(refused.value)


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        ("http://user:secret@clickhouse.example:8123/db", "http://clickhouse.example:8123"),
        ("https://user:secret@clickhouse.example/db", "https://clickhouse.example"),
        ("chdb:///var/lib/seatmark?database=x", "chdb:///var/lib/seatmark"),
        ("chdb:///var/lib/seat%23mark", "chdb:///var/lib/seat#mark"),
    ],
)
def test_what_is_shown_of_a_dsn(dsn: str, shown: Any) -> None:
    assert address_of(dsn) == Store(dsn).address == shown
