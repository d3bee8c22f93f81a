"""The embedded engine over HTTP, as programs of others meet it: what they can do, what not, and how they are told."""

import contextlib
import gzip
import logging
import socket
import threading
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import clickhouse_connect
import httpx
import lz4.frame
import pyarrow as pa
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError, StreamFailureError

from processors.sink import INSERT_SETTINGS
from seatmark import chdb_http as module
from seatmark.chdb_http import ChdbHttp, PortTaken
from views.migrate import migrate
from views.raw_log import RawLog
from views.store import Store, chdb_dsn, connect

ACCESS_DENIED, READONLY, SYNTAX_ERROR, TOO_MANY_BYTES, NOT_IMPLEMENTED = 497, 164, 62, 307, 48


@pytest.fixture(scope="module")
def front(chdb_http: ChdbHttp) -> Iterator[ChdbHttp]:
    """The interface as `seatmark store` opens it, to the engine that the tests have open."""
    with ChdbHttp(chdb_http.directory, 0) as server:
        yield server


@pytest.fixture(scope="module")
def dsn(chdb_http: ChdbHttp, front: ChdbHttp) -> str:
    """Of a migrated database, as a user without a name or a password reaches it."""
    migrate(f"{chdb_dsn(chdb_http.directory)}?database=of_others", "UTC")
    return f"http://127.0.0.1:{front.port}/of_others"


@pytest.fixture
def other(dsn: str) -> Iterator[Client]:
    client = connect(dsn)
    yield client
    client.close()


@pytest.fixture
def http(front: ChdbHttp) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{front.port}") as client:
        yield client


def code_of(answer: httpx.Response) -> int:
    """ClickHouse's number of the error; header and text agree on it."""
    code = int(answer.headers["X-ClickHouse-Exception-Code"])
    assert answer.text.startswith(f"Code: {code}. DB::Exception: ")
    return code


def test_a_client_reads_what_is_stored_and_inserts_arrow(dsn: str, other: Client, entitlement: str) -> None:
    rows = pa.table(
        {
            "entitlement": [entitlement] * 3, "element": ["seats"] * 3, "day": [date(2026, 11, day) for day in (20, 21, 22)],
            "position": pa.array([2**62, 2, 3], pa.uint64()), "state": ["{}", "é\t'", ""],
        }
    )  # fmt: skip
    for _ in range(2):
        other.insert_arrow("exact_states", rows, settings=INSERT_SETTINGS | {"insert_deduplication_token": entitlement})
    query = "SELECT day, position, state FROM exact_states WHERE entitlement = {entitlement:String} ORDER BY day"
    stored = other.query(query, parameters={"entitlement": entitlement})
    assert stored.result_rows == [
        (date(2026, 11, 20), 2**62, "{}"), (date(2026, 11, 21), 2, "é\t'"), (date(2026, 11, 22), 3, ""),
    ], "the repeat was dropped by its token"  # fmt: skip
    with other.query_row_block_stream(query, parameters={"entitlement": entitlement}) as blocks:
        assert [tuple(row) for block in blocks for row in block] == stored.result_rows
    # Rows the other way, columns of Python values, compressed by the client.
    other.insert("settings", [["a name", "a value"]], column_names=["name", "value"])
    assert other.query("SELECT value FROM settings WHERE name = 'a name'").result_rows == [("a value",)]
    assert other.query_arrow("SELECT 1 AS a").to_pylist() == [{"a": 1}]
    store = Store(dsn)
    assert (
        store.query(
            "usage_days",
            entitlement=entitlement + " of nobody",
            element="seats",
            first_day="2026-11-24",
            last_day="2026-11-24",
            visible=["seats"],
        )
        == []
    )
    store.close()


def test_the_exact_fold_finds_what_it_asks_for(other: Client, dsn: str, entitlement: str) -> None:
    """All queries of the raw log, as restatement and audit ask them."""
    log, key = RawLog(other, f"entitlement-events of {entitlement}"), (entitlement, "seats")
    row: dict[str, Any] = {"entitlement": [entitlement], "element": ["seats"]}
    position = {"position": pa.array([7], pa.uint64())}
    log.insert("marks", pa.table(row | position | {"first_day": [date(2026, 1, 5)], "last_day": [date(2026, 1, 6)]}))
    log.insert("restatements", pa.table(row | position | {"through": [date(2026, 1, 6)]}))
    assert log.marked_elements(date(2026, 1, 7), entitlement) == [key]
    assert log.marks([key]) == [(*key, "2026-01-05", "2026-01-06", 7, 7)]
    assert log.standing([key]) == [(*key, 0, 7, "2026-01-06", 0, 0)]
    nothing = [
        log.checkpoints([key]), log.repeats([key], 0), list(log.rows([key], 0)), log.day_rows([key], date(2026, 1, 1)),
        log.alert_rows([key]), log.live_states([key]), log.logged_elements(entitlement),
    ]  # fmt: skip
    assert nothing == [[]] * len(nothing)
    assert log.checkpoint_states([key], "2026-01-05") == log.newest_before([key], 0) == log.watermarks() == {}
    assert log.stored_days([key], "2026-01-01", "2026-01-07") == {}


def test_a_client_with_a_session_reads_too(front: ChdbHttp, dsn: str) -> None:
    """As clickhouse-connect opens it, without our options."""
    client = clickhouse_connect.get_client(dsn=dsn)
    assert client.query("SELECT count() FROM live_levels").result_rows == [(0,)]
    client.close()


READING = [
    "SELECT 1", "SELECT 1;", "WITH 1 AS x SELECT x", "FROM numbers(1) SELECT number", "(SELECT 1)", "SHOW TABLES",
    "DESC settings", "DESCRIBE TABLE (SELECT 1)", "EXISTS TABLE settings", "EXPLAIN SELECT 1", "SHOW CREATE TABLE settings",
    "SELECT 'INTO OUTFILE file(' AS `profile's`", "/* file() */ SELECT 1 -- file('/etc/passwd')",
    "SELECT * FROM usage(entitlement = '', element = '', last_day = '2026-11-24', days = 1, at = now64(3))",
]  # fmt: skip


@pytest.mark.parametrize("query", READING)
def test_reading_is_allowed(http: httpx.Client, dsn: str, query: str) -> None:
    answer = http.post("/", params={"database": "of_others"}, content=query)
    assert (answer.status_code, answer.headers.get("X-ClickHouse-Format")) == (200, "TabSeparated"), answer.text


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that others must not read."""
    path = tmp_path_factory.mktemp("private") / "key"
    path.write_text("geheim\n")
    return path


# @ is the secret file, # a file in its directory that must not come into being.
REACHING_OUT = [
    "SELECT file('@')",
    "SELECT `f\\x69le`('@')",
    "SELECT \"file\"('@')",
    "SELECT file /* of the system */ ('@')",
    "SELECT 1 AS `'`, file('@') AS `'`",
    "SELECT 'a\\\\', file('@'), '\\\\'",
    "SELECT * APPLY(file) FROM (SELECT '@')",
    "SELECT * APPLY file FROM (SELECT '@')",
    "SELECT arrayMap(file, ['@'])",
    "WITH file('@') AS x SELECT x",
    "EXPLAIN SELECT file('@')",
    "SELECT * FROM file('@', LineAsString)",
    "SELECT * FROM default.`@`",
    "SELECT * FROM default.{t:Identifier}",
    "SELECT * FROM view(SELECT * FROM file('@', LineAsString))",
    "SELECT * FROM loop(file('@', LineAsString))",
    "SELECT * FROM deltaLakeLocal('#')",
    "SELECT * FROM sqlite('@', 't')",
    "SELECT * FROM executable('cat', 'LineAsString', 'l String', (SELECT 1))",
    "SELECT * FROM python(request)",
    "SELECT * FROM url('http://127.0.0.1:1/', LineAsString)",
    "SELECT * FROM remote('127.0.0.1:1', system.one)",
    "DESCRIBE TABLE file('@')",
    "DESCRIBE TABLE url('http://127.0.0.1:1/')",
    "DESCRIBE TABLE (SELECT * FROM file('@'))",
    "EXPLAIN TABLE OVERRIDE mysql('127.0.0.1:1', 'a', 'b', 'c', 'd') COLUMNS (a Int32)",
    "SELECT 1 INTO OUTFILE '#'",
    "SELECT 1 INTO /**/ OUTFILE '#' FORMAT CSV",
    "SHOW TABLES INTO OUTFILE '#'",
    "SELECT 1 FORMAT Template SETTINGS format_template_resultset = '@'",
    "SELECT 1 SETTINGS readonly = 0",
    "SET readonly = 0",
    "INSERT INTO FUNCTION file('#', 'LineAsString', 'l String') FORMAT LineAsString\nx",
    "INSERT INTO FUNCTION file('#', 'LineAsString', 'l String') FORMAT TSV\nx",
    "INSERT INTO FUNCTION file('#', 'LineAsString', 'l String') SELECT 'x'",
    "INSERT INTO settings (name, value) FORMAT Values\n('x', file('@'))",
    "INSERT INTO settings (name, value) VALUES ('x', file('@'))",
    "INSERT INTO settings (name, value) SELECT 'x', file('@')",
    "INSERT INTO settings (name, value) SETTINGS format_template_row = '@' FORMAT Template\nx",
    "INSERT INTO settings (name, value) SETTINGS format_csv_delimiter = ';' FORMAT CSV\na;geheim",
    "INSERT INTO settings (name, value) FROM INFILE '@' FORMAT CSV",
    "CREATE TABLE t (l String) ENGINE = File(LineAsString, '#')",
    "CREATE TABLE t (a Int32) ENGINE = Memory",
    "CREATE FUNCTION f AS x -> file(x)",
    "DROP TABLE settings",
    "ALTER TABLE settings DELETE WHERE 1",
    "TRUNCATE TABLE settings",
    "OPTIMIZE TABLE settings",
    "SYSTEM SHUTDOWN",
    "KILL QUERY WHERE 1",
    "BACKUP TABLE settings TO File('#')",
    "SELECT 1; DROP TABLE settings",
    "USE system",
]


@pytest.mark.parametrize("query", REACHING_OUT)
def test_what_goes_beyond_the_tables_is_refused(http: httpx.Client, dsn: str, secret: Path, query: str) -> None:
    made = secret.parent / "made"
    text = query.replace("@", str(secret)).replace("#", str(made))
    answer = http.post("/", params={"database": "of_others", "param_t": str(secret)}, content=text)
    assert answer.status_code >= 400, answer.text
    assert code_of(answer) in (ACCESS_DENIED, READONLY, SYNTAX_ERROR), answer.text
    assert "geheim" not in answer.text
    assert not made.exists()
    kept = http.post("/", params={"database": "of_others"}, content="SELECT count() FROM settings WHERE value LIKE '%geheim%'")
    assert kept.text == "0\n"


@pytest.mark.parametrize(
    "setting",
    [
        "allow_experimental_eval_table_function", "dialect", "format_template_resultset", "format_schema",
        "output_format_schema", "additional_result_filter", "no such setting; DROP TABLE settings",
    ],
)  # fmt: skip
def test_settings_that_reach_further_are_refused(http: httpx.Client, setting: str) -> None:
    answer = http.post("/", params={setting: "1"}, content="SELECT 1")
    assert (code_of(answer), setting in answer.text) == (452, True)


def test_parameters_of_any_length_and_content(other: Client) -> None:
    """Long ones do not fit into an address: the client sends a form."""
    odd = "it's \\ \t\n\r\n é 🪑 --boundary {x:String} %41 \x00"
    for count in (1, 100, 20_000):
        texts = [f"{odd}{number}" for number in range(count)]
        asked = "SELECT arrayJoin({texts:Array(String)}) AS a, {pairs:Array(Tuple(String, UInt8))}[1].1"
        found = other.query(asked, parameters={"texts": texts, "pairs": [(odd, 1)]}).result_rows
        assert found == [(text, odd) for text in texts]


def test_a_form_with_more_than_a_query_is_refused(http: httpx.Client) -> None:
    assert http.post("/", files={"query": (None, "SELECT {a:UInt8}"), "param_a": (None, "7")}).text == "7\n"
    with_data = http.post("/", files={"query": (None, "SELECT 1"), "t": ("t.tsv", "1\n")})
    assert (with_data.status_code, code_of(with_data)) == (501, NOT_IMPLEMENTED)
    broken = http.post("/", headers={"Content-Type": "multipart/form-data; boundary=x"}, content="SELECT 1")
    assert (broken.status_code, code_of(broken)) == (501, NOT_IMPLEMENTED)
    not_text = http.post("/", files={"query": (None, b"SELECT '\xff'")})
    assert (not_text.status_code, code_of(not_text)) == (400, SYNTAX_ERROR)
    written = http.post("/", files={"query": (None, "INSERT INTO of_others.settings (name, value) FORMAT TSV\na\tb\n")})
    assert written.status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_an_insert_that_is_cut_off_stores_nothing(front: ChdbHttp, http: httpx.Client, dsn: str, chunked: bool) -> None:
    insert = b"INSERT INTO of_others.settings (name, value) FORMAT TSV\ncut\toff\n"
    length = b"Transfer-Encoding: chunked\r\n\r\n3e8\r\n" if chunked else b"Content-Length: 1000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", front.port)) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + length + insert)
        connection.shutdown(socket.SHUT_WR)
        assert connection.makefile("rb").read() == b""
    assert http.post("/", content="SELECT count() FROM of_others.settings WHERE name = 'cut'").text == "0\n"


def test_settings_hold_for_one_request_and_threads_do_not_see_each_other_s(front: ChdbHttp, dsn: str) -> None:
    answers: dict[int, set[str]] = {}

    def ask(limit: int) -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{front.port}") as client:
            query = "SELECT getSetting('max_block_size'), currentDatabase(), {n:UInt32}"
            answers[limit] = {
                client.post(
                    "/", params={"max_block_size": limit, "database": "of_others", "param_n": limit}, content=query
                ).text
                for _ in range(10)
            }

    threads = [threading.Thread(target=ask, args=(limit,)) for limit in range(101, 107)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {limit: {f"{limit}\tof_others\t{limit}\n"} for limit in range(101, 107)}


def test_reading_with_get_and_no_changing(http: httpx.Client, dsn: str) -> None:
    assert http.get("/", params={"query": "SELECT 1"}).text == "1\n"
    query = "INSERT INTO of_others.settings (name, value) FORMAT TSV\na\tb\n"
    assert code_of(http.get("/", params={"query": query})) == ACCESS_DENIED
    assert http.get("/ping").text == "Ok.\n"


def test_even_who_may_do_everything_changes_nothing_with_get(chdb_http: ChdbHttp) -> None:
    answer = httpx.get(
        f"http://127.0.0.1:{chdb_http.port}/",
        params={"query": "CREATE DATABASE by_get"}, auth=(chdb_http.user, chdb_http.password),
    )  # fmt: skip
    assert code_of(answer) == READONLY


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}, {"Host": "evil.example:8123"},
        {"Host": "127.0.0.1.evil.example"}, {"Host": ""},
    ],
)  # fmt: skip
def test_web_pages_are_refused(http: httpx.Client, headers: dict[str, str]) -> None:
    answer = http.post("/", headers=headers, content="SELECT 1")
    assert (answer.status_code, code_of(answer)) == (403, ACCESS_DENIED)


@pytest.mark.parametrize(
    ("headers", "address"),
    [
        ({"Authorization": "Basic c2VhdG1hcms6cHc="}, {}), ({"Authorization": "Basic \u00e9"}, {}),
        ({"X-ClickHouse-User": "default", "X-ClickHouse-Key": "pw"}, {}), ({}, {"user": "admin"}),
    ],
)  # fmt: skip
def test_an_unknown_user_is_refused(http: httpx.Client, headers: dict[str, str], address: dict[str, str]) -> None:
    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    answer = http.post("/", headers=encoded, params=address, content="SELECT 1")
    assert (answer.status_code, code_of(answer)) == (403, 516)


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"SELEC 1", 400, SYNTAX_ERROR), (b"\xff", 400, SYNTAX_ERROR), (b"", 400, SYNTAX_ERROR),
        (b"SELECT * FROM nowhere", 404, 60), (b"SELECT * FROM nowhere.at_all", 404, 81), (b"SELECT a", 404, 47),
        (b"SELECT toUInt8('x')", 500, 6),
    ],
)  # fmt: skip
def test_errors_are_clickhouse_s(http: httpx.Client, content: bytes, status: int, code: int) -> None:
    answer = http.post("/", content=content)
    assert (answer.status_code, code_of(answer)) == (status, code)
    assert http.post("/", content="SELECT 1").text == "1\n", "the connection goes on"


def test_the_format_is_the_query_s_own_or_the_default_one(http: httpx.Client) -> None:
    for query, params, expected in (
        ("SELECT 1 AS a FORMAT JSONEachRow", {}, ("JSONEachRow", '{"a":1}\n')),
        ("SELECT 1 AS a", {"default_format": "CSVWithNames"}, ("CSVWithNames", '"a"\n1\n')),
        ("SELECT 1 AS a WHERE 0", {"default_format": "CSVWithNames"}, ("CSVWithNames", '"a"\n')),
        ("SELECT 1 AS a WHERE 0", {}, ("TabSeparated", "")),
    ):
        answer = http.post("/", params=params, content=query)
        assert (answer.headers["X-ClickHouse-Format"], answer.text) == expected


@pytest.mark.parametrize("encode", [None, gzip.compress, lz4.frame.compress])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_may_be_compressed_and_come_in_chunks(http: httpx.Client, encode: Any, chunked: bool) -> None:
    query = b"SELECT 'a long query'" + b" " * 100_000
    body = query if encode is None else encode(query)
    headers = {} if encode is None else {"Content-Encoding": "gzip" if encode is gzip.compress else "lz4"}
    pieces = iter([body[:10], body[10:]])
    for _ in range(2):
        answer = http.post("/", content=pieces if chunked else body, headers=headers)
        assert answer.text == "a long query\n"
        pieces = iter([body])


@pytest.mark.parametrize("name", ["DataFrame", "arrowtable", "datastore", "NoSuchFormat"])
def test_a_format_that_is_none_is_refused(http: httpx.Client, name: str) -> None:
    answer = http.post("/", params={"default_format": name}, content="SELECT 1")
    assert (answer.status_code, code_of(answer)) == (400, 73)


def test_what_cannot_be_decompressed_is_refused(http: httpx.Client) -> None:
    unknown = http.post("/", content=b"SELECT 1", headers={"Content-Encoding": "br"})
    assert (unknown.status_code, code_of(unknown)) == (501, NOT_IMPLEMENTED)
    cut = gzip.compress(b"SELECT 1")[:-4]
    for content in (b"SELECT 1", cut):
        answer = http.post("/", content=content, headers={"Content-Encoding": "gzip"})
        assert (answer.status_code, code_of(answer)) == (400, 36)
    assert code_of(http.post("/", params={"compress": "1"}, content="SELECT 1")) == NOT_IMPLEMENTED
    assert http.post("/", content="SELECT 1").text == "1\n"


def test_a_request_that_is_too_large_is_refused_however_it_comes(front: ChdbHttp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BODY_BYTES", 1000)
    largest, larger = b"SELECT 1" + b" " * 992, b"SELECT 1" + b" " * 993
    url = f"http://127.0.0.1:{front.port}/"
    assert httpx.post(url, content=largest).text == httpx.post(url, content=iter([largest[:500], largest[500:]])).text == "1\n"
    bomb = {"content": gzip.compress(larger), "headers": {"Content-Encoding": "gzip"}}
    for request in ({"content": larger}, {"content": iter([larger[:500], larger[500:]])}, bomb):
        answer = httpx.post(url, **request)
        assert (answer.status_code, code_of(answer)) == (413, TOO_MANY_BYTES)


@pytest.mark.parametrize("length", ["-1", "ten", "1e3", "9" * 40])
def test_a_length_that_is_none_is_refused(front: ChdbHttp, length: str) -> None:
    with socket.create_connection(("127.0.0.1", front.port)) as connection:
        connection.sendall(f"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\n\r\n".encode())
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 400 ")


def test_an_old_client_is_answered_in_one_piece(front: ChdbHttp) -> None:
    with socket.create_connection(("127.0.0.1", front.port)) as connection:
        connection.sendall(b"GET /?query=SELECT+7 HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
        answer = connection.makefile("rb").read()
    assert answer.endswith(b"Content-Length: 2\r\nConnection: close\r\n\r\n7\n")


def test_a_large_result_comes_in_pieces(http: httpx.Client, other: Client) -> None:
    with http.stream("POST", "/", content="SELECT number FROM numbers(1000000)") as answer:
        assert answer.headers["Transfer-Encoding"] == "chunked"
        numbers = sum(1 for _ in answer.iter_lines())
    assert numbers == 1_000_000
    with other.query_column_block_stream("SELECT number FROM numbers(1000000)") as blocks:
        sizes = [len(block[0]) for block in blocks]
    assert (sum(sizes), len(sizes) > 5) == (1_000_000, True)


def test_a_query_that_fails_in_the_middle_is_not_taken_for_its_beginning(http: httpx.Client, other: Client) -> None:
    query = "SELECT number, throwIf(number = 900000, 'so it is') FROM numbers(1000000)"
    with pytest.raises(httpx.RemoteProtocolError):
        http.post("/", params={"max_threads": 1}, content=query)
    with pytest.raises(StreamFailureError, match="so it is") as failed:
        list(other.query(query, settings={"max_threads": 1}).result_rows)
    assert failed.value.code == 395
    assert other.query("SELECT 1").result_rows == [(1,)]


def test_nothing_of_a_query_is_logged_whatever_becomes_of_it(
    front: ChdbHttp, http: httpx.Client, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG):
        for query in (
            "SELECT 'geheim'",
            "SELECT geheim",
            "SELEC geheim",
            "SELECT throwIf(number = 900000, 'geheim') FROM numbers(1000000)",
        ):
            with contextlib.suppress(httpx.RemoteProtocolError):
                http.post("/", params={"log_comment": "geheim"}, content=query)
        # A client that goes away in the middle.
        with http.stream("POST", "/", content="SELECT number, 'geheim' FROM numbers(100000000)") as answer:
            next(answer.iter_bytes())
        assert http.post("/", content="SELECT 1").text == "1\n"
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    assert (ours, capfd.readouterr().err) == ([], "")


def test_a_taken_port_is_told(front: ChdbHttp, chdb_http: ChdbHttp) -> None:
    with pytest.raises(PortTaken, match=rf"127.0.0.1:{front.port} .*choose another SEATMARK_CLICKHOUSE_PORT"):
        ChdbHttp(chdb_http.directory, front.port)


def test_our_own_errors_stay_what_they_are(other: Client) -> None:
    with pytest.raises(DatabaseError) as refused:
        other.command("DROP TABLE settings")
    assert refused.value.code == ACCESS_DENIED
    other.insert_arrow("settings", pa.table({"name": ["x"], "value": ["y"]}))
