"""ClickHouse's HTTP interface in front of the embedded engine: one process has the data open, the others ask it.

It knows: queries in the body, in the address, half in each, or in a form with their parameters; settings, for one request as
on a server; inserts with data; compressed and chunked bodies; errors with their code; a user with a password. Large results
are sent as they are made. It does not know: sessions, external data, progress, compressed answers, ClickHouse's own block
compression.

It listens on 127.0.0.1. Who reaches it may read everything and insert data into tables, and nothing else. For the engine
is no server that is confined to its tables: its SQL reads and writes the files of whoever started it. So what is not one
of ours runs as a reader, which the engine itself keeps from the disk and the network, but for what `_check_reading` refuses.
"""

import base64
import email
import json
import logging
import re
import secrets
import sys
import tempfile
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qsl, quote, urlsplit

import chdb
import lz4.frame

from schemas.errors import Explained

logger = logging.getLogger(__name__)

# Of a request, compressed or not; it is held in memory.
MAX_BODY_BYTES = 256 * 1024 * 1024
# A connection that nothing comes on, or that nobody reads from, for this long is closed.
_SILENT_SECONDS = 300.0

# Part of the address, but no settings of the engine.
_NOT_SETTINGS = {
    "query", "database", "default_format", "user", "password", "query_id", "session_id", "session_timeout", "session_check",
    "compress", "decompress", "enable_http_compression", "buffer_size", "wait_end_of_query", "client_protocol_version", "role",
    "quota_key", "send_progress_in_http_headers", "http_headers_progress_interval_ms",
}  # fmt: skip
# What others may set: limits, formats, how inserts are taken. Other settings hold paths or SQL, or allow what is not allowed.
_SETTINGS_OF_OTHERS = re.compile(
    r"(max|min|insert|async_insert|wait_for_async_insert|deduplicate|date_time|input_format|output_format(?!_schema))_\w+"
    r"|\w+_overflow_mode|async_insert|cast_string_to_dynamic_use_inference|cancel_http_readonly_queries_on_client_close"
    r"|distributed_(foreground_insert|product_mode)|do_not_merge_across_partitions_select_final|extremes|final|join_use_nulls|log_comment"
    r"|readonly|session_timezone"
)
# Formats of data that are data only. Values has expressions, others read a schema from a file.
_DATA_FORMATS = re.compile(r"Native|Arrow|ArrowStream|Parquet|(RowBinary|TabSeparated|TSV|CSV|JSON)\w*")

_INSERT_WITH_DATA = re.compile(rb"\s*INSERT\s+INTO\s.*?\sFORMAT\s+\w+[ ;]*\r?\n", re.DOTALL | re.I)

# The following look at statements as the engine spells them, on one line.
_TEXT_OR_NAME = re.compile(r"'(?:[^'\\]|\\.)*'|`(?:[^`\\]|\\.)*`", re.DOTALL)
_INSERT = re.compile(r"(?P<into>INSERT INTO .*?)(?: SETTINGS (?P<settings>.*))? FORMAT (?P<format>\w+)")
_INSERT_INTO_TABLE = re.compile(r"INSERT INTO (?!FUNCTION )[\w.]+( \([\w, ]+\))?")
_GIVES_ROWS = re.compile(r"(SELECT|WITH|SHOW|DESCRIBE|EXISTS|EXPLAIN|CHECK)\b")
# Describing a function asks it, and the engine does not take that for reading.
_READS = re.compile(r"(SELECT|WITH|SHOW|EXISTS|DESCRIBE TABLE(?! \w+\()|EXPLAIN(?! TABLE OVERRIDE))\b")
# `file`: the function, in a call or as the argument of another function; the engine takes it for one without side effects.
_REACHES_OUT = re.compile(r"\bINTO OUTFILE\b|\bfile\b")
# Clients ask this first. To a reader the engine would say that nothing can be set; but inserts have settings.
_ASKS_FOR_SETTINGS = re.compile(r"SELECT [\w, ]+ FROM system\.settings( LIMIT \d+)?( FORMAT \w+)?")
_FORMAT = re.compile(r" FORMAT (\w+)(?: SETTINGS .*)?$")
# For chDB these are no formats of data: it would make Python objects.
_PYTHON_OBJECTS = {"arrowtable", "dataframe", "datastore"}
# Formats that stay what they are when they are cut into pieces; chDB repeats the head of others in each piece.
_STREAMED = re.compile(r"Native|TabSeparated|TSV|CSV|RowBinary|JSONEachRow")

_OUR_HOST = re.compile(r"(127\.0\.0\.1|localhost)(:\d+)?", re.I)
_ERROR_CODE = re.compile(r"Code: (\d+)\.")
# By the number of the error, as ClickHouse answers; 500 for the rest.
_HTTP_STATUS = {36: 400, 46: 404, 47: 404, 48: 501, 60: 404, 62: 400, 73: 400, 81: 404, 307: 413, 497: 403, 516: 403}


class PortTaken(Explained):
    """Nothing can listen on the port."""


class _Refused(Exception):
    """The request is not run. code, name: ClickHouse's for the error."""

    def __init__(self, code: int, name: str, why: str) -> None:
        super().__init__(f"Code: {code}. DB::Exception: {why}. ({name})")


class ChdbHttp:
    """The interface to the engine in a directory, as a context manager; several threads answer.

    directory: the engine's; one process can have one open, and this one then has.
    port: of 127.0.0.1; 0 takes a free one. Raises PortTaken.
    user, password: who may come in.
    unrestricted: run every statement. Whoever knows the password can then do what this process can.
    """

    def __init__(
        self, directory: Path, port: int, *, user: str = "default", password: str = "", unrestricted: bool = False
    ) -> None:
        self.directory = directory.resolve()
        self.user = user
        self.password = password
        self.unrestricted = unrestricted
        try:
            self._server = _Server(("127.0.0.1", port), self)
        except OSError as error:
            raise PortTaken(
                f"cannot listen on 127.0.0.1:{port} ({error.strerror}) for the embedded ClickHouse: "
                "choose another SEATMARK_CLICKHOUSE_PORT"
            ) from error
        # The engine starts with the first connection and ends with the last: this one keeps it running between requests.
        self._keeps_running = chdb.connect(str(self.directory))

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def dsn(self, database: str) -> str:
        """The data source name of one of its databases."""
        user = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}@" if self.password else ""
        return f"http://{user}127.0.0.1:{self.port}/{quote(database, safe='')}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._keeps_running.close()


class _Server(ThreadingHTTPServer):
    # Not waited for at the end: most threads wait for a client's next request.
    daemon_threads = True

    def __init__(self, address: tuple[str, int], engine: ChdbHttp) -> None:
        self.engine = engine
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say what went wrong, but no more: messages quote queries."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError | TimeoutError):
            logger.error("a query was not answered to its end: %s", type(error).__name__)


class _Request(NamedTuple):
    """What is asked for. sql: with the data of an insert. settings, parameters: by name."""

    sql: bytes
    database: str
    settings: dict[str, str]
    parameters: dict[str, str]
    default_format: str


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _SILENT_SECONDS
    server: _Server

    def do_GET(self) -> None:
        """Answer a query that reads: as on a server, GET changes nothing."""
        if urlsplit(self.path).path == "/ping":
            self._send(200, {}, b"Ok.\n")
        else:
            self._answer(may_insert=False)

    def do_POST(self) -> None:
        """Answer a query."""
        self._answer(may_insert=True)

    def _answer(self, may_insert: bool) -> None:
        try:
            request = self._read()
            connection = chdb.connect(str(self.server.engine.directory))
            try:
                self._run(connection, request, may_insert)
            finally:
                connection.close()
        except (_Refused, RuntimeError) as error:
            # RuntimeErrors are chDB's, with ClickHouse's text.
            code, text = _told(error)
            self._send(_HTTP_STATUS.get(code, 500), {"X-ClickHouse-Exception-Code": str(code)}, f"{text}\n".encode())

    def _read(self) -> _Request:
        body = self._body()
        self._check_sender()
        parts = urlsplit(self.path)
        address = dict(parse_qsl(parts.query, keep_blank_values=True))
        self._check_user(address)
        if self.headers.get_content_type() == "multipart/form-data":
            address |= self._form(body)
            body = b""
        for name in ("compress", "decompress"):
            if address.get(name, "0") != "0":
                raise _Refused(48, "NOT_IMPLEMENTED", f"{name}=1 is not supported: use Content-Encoding, or no compression")
        unrestricted = self.server.engine.unrestricted
        settings = {}
        for name, value in address.items():
            if name in _NOT_SETTINGS or name.startswith("param_"):
                continue
            if not re.fullmatch(r"\w+", name) or not (unrestricted or _SETTINGS_OF_OTHERS.fullmatch(name)):
                raise _Refused(452, "SETTING_CONSTRAINT_VIOLATION", f"Setting {name} should not be changed")
            settings[name] = value
        query = address.get("query", "").encode()
        return _Request(
            sql=query + b"\n" + body if query and body else query or body,
            database=address.get("database") or self.headers.get("X-ClickHouse-Database") or "",
            settings=settings,
            parameters={name.removeprefix("param_"): value for name, value in address.items() if name.startswith("param_")},
            default_format=address.get("default_format") or self.headers.get("X-ClickHouse-Format") or "TabSeparated",
        )

    def _form(self, body: bytes) -> dict[str, str]:
        """The fields of a form, which clients send where parameters are too long for an address."""
        message = email.message_from_bytes(f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode() + body)
        fields = {}
        for part in message.get_payload():
            if isinstance(part, str) or part.get_filename() is not None:
                raise _Refused(48, "NOT_IMPLEMENTED", "Of forms, only those with a query and its parameters are supported")
            value = part.get_payload(decode=True)
            assert isinstance(value, bytes)
            fields[str(part.get_param("name", header="content-disposition"))] = _text(value)
        return fields

    def _check_sender(self) -> None:
        """A web page that is open in a browser on this machine could send requests too: these say where they are from."""
        ours = _OUR_HOST.fullmatch(self.headers.get("Host", ""))
        if not ours or self.headers.get("Origin") or self.headers.get("Sec-Fetch-Site"):
            raise _Refused(497, "ACCESS_DENIED", "This is not for web pages: ask 127.0.0.1, from a program")

    def _check_user(self, address: dict[str, str]) -> None:
        user = self.headers.get("X-ClickHouse-User") or address.get("user", "default")
        password = self.headers.get("X-ClickHouse-Key") or address.get("password", "")
        if (authorization := self.headers.get("Authorization", "")).startswith("Basic "):
            try:
                user, _, password = base64.b64decode(authorization.removeprefix("Basic ")).decode().partition(":")
            except ValueError:
                user = ""
        if (user, password) != (self.server.engine.user, self.server.engine.password):
            raise _Refused(516, "AUTHENTICATION_FAILED", "Authentication failed: wrong user or password")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(self._chunks())
        else:
            body = self._exactly(self._length(self.headers.get("Content-Length", "0"), 10, MAX_BODY_BYTES))
        encoding = self.headers.get("Content-Encoding")
        return _decompressed(body, encoding) if encoding else body

    def _chunks(self) -> Iterator[bytes]:
        left = MAX_BODY_BYTES
        while size := self._length(self.rfile.readline(100).split(b";")[0].decode("latin-1").strip(), 16, left):
            left -= size
            yield self._exactly(size)
            self.rfile.readline(100)
        self.rfile.readline(100)

    def _exactly(self, size: int) -> bytes:
        body = self.rfile.read(size)
        if len(body) < size:
            # Half of an insert is not to be stored.
            raise ConnectionResetError("the client went away in the middle of its request")
        return body

    def _length(self, digits: str, base: int, limit: int) -> int:
        # What was announced is not read on a refusal, so nothing that comes after it can be understood.
        closes, self.close_connection = self.close_connection, True
        if not re.fullmatch(r"[0-9a-fA-F]{1,16}" if base == 16 else r"[0-9]{1,16}", digits):
            raise _Refused(36, "BAD_ARGUMENTS", "The length of the request cannot be read")
        size = int(digits, base)
        if size > limit:
            raise _Refused(307, "TOO_MANY_BYTES", f"The request is larger than {MAX_BODY_BYTES} bytes: send it in parts")
        self.close_connection = closes
        return size

    def _run(self, connection: Any, request: _Request, may_insert: bool) -> None:
        for name, value in request.settings.items():
            connection.query(f"SET {name} = {_quoted(value)}")
        if request.database:
            connection.query(f"USE {_quoted(request.database, '`')}")
        unrestricted = self.server.engine.unrestricted
        head = _INSERT_WITH_DATA.match(request.sql) if may_insert else None
        if head is not None and (insert := _INSERT.fullmatch(_as_spelled(connection, head[0]))):
            if not unrestricted:
                _check_insert(insert)
            result = _insert(connection, insert, request.sql[head.end() :])
            self._send(200, _headers(written=result.rows_read()), b"")
            return
        spelled = _as_spelled(connection, request.sql)
        if not unrestricted:
            _check_reading(spelled)
        if not (may_insert and unrestricted) and not _ASKS_FOR_SETTINGS.fullmatch(spelled):
            connection.query("SET readonly = 1")
        own_format = _FORMAT.search(spelled)
        result_format = own_format[1] if own_format else request.default_format
        if result_format.lower() in _PYTHON_OBJECTS:
            raise _Refused(73, "UNKNOWN_FORMAT", f"Unknown format {result_format}")
        headers = _headers(result_format=result_format if _GIVES_ROWS.match(spelled) else None)
        sql = _text(request.sql)
        streamed = spelled.startswith(("SELECT", "WITH")) and _STREAMED.fullmatch(result_format)
        if streamed and self.request_version == "HTTP/1.1":
            with connection.send_query(sql, result_format, params=request.parameters) as stream:
                self._stream(headers, (piece for block in stream if (piece := block.bytes())))
        else:
            result = connection.query(sql, result_format, params=request.parameters)
            self._send(200, headers, result.bytes() or b"")

    def _stream(self, headers: dict[str, str], pieces: Iterator[bytes]) -> None:
        # Most errors come with the first piece, when the status can still be told. After that, as ClickHouse does it: the
        # error comes between marks that are no data, and the last chunk is missing.
        piece = next(pieces, b"")
        mark = secrets.token_hex(8)
        self._head(200, headers | {"Transfer-Encoding": "chunked", "X-ClickHouse-Exception-Tag": mark})
        try:
            while piece:
                self._chunk(piece)
                piece = next(pieces, b"")
            self._chunk(b"")
        except RuntimeError as error:
            self.close_connection = True
            _, text = _told(error)
            self._chunk(f"\r\n__exception__\r\n{mark}\r\n{text}\n{len(text.encode())} {mark}\r\n__exception__\r\n".encode())

    def _chunk(self, piece: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self._head(status, headers | {"Content-Length": str(len(body))})
        self.wfile.write(body)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged: addresses hold queries."""


def _told(error: Exception) -> tuple[int, str]:
    """ClickHouse's number of an error, and its text without what chDB says before it."""
    text = str(error)
    found = _ERROR_CODE.search(text)
    return (int(found[1]), text[found.start() :]) if found else (0, text)


def _headers(*, written: int = 0, result_format: str | None = None) -> dict[str, str]:
    summary = {"read_rows": "0", "written_rows": str(written)}
    headers = {"X-ClickHouse-Summary": json.dumps(summary), "X-ClickHouse-Timezone": "UTC"}
    return headers if result_format is None else headers | {"X-ClickHouse-Format": result_format}


def _as_spelled(connection: Any, statement: bytes) -> str:
    """A statement as the engine understands it, on one line: no comments, keywords in capitals, plain names without quotes.

    Raises chDB's error where it is none, or more than one.
    """
    spelled: str = connection.query(f"SELECT formatQuerySingleLine({_quoted(_text(statement))})", "TSVRaw").bytes().decode()
    return spelled.removesuffix("\n")


def _text(part: bytes) -> str:
    try:
        return part.decode()
    except UnicodeDecodeError:
        raise _Refused(62, "SYNTAX_ERROR", "The query is not UTF-8") from None


def _check_reading(spelled: str) -> None:
    """Refuse what is not reading, and what the engine lets a reader do although it goes beyond the tables."""
    without_texts = _TEXT_OR_NAME.sub(lambda found: "''" if found[0][0] == "'" else found[0], spelled)
    if not _READS.match(spelled) or _REACHES_OUT.search(without_texts):
        raise _Refused(
            497, "ACCESS_DENIED", "The embedded ClickHouse lets others read its tables and insert data, and no more than that"
        )


def _check_insert(insert: re.Match[str]) -> None:
    """Refuse an insert into anything but a table, and data that is more than data."""
    plain = _TEXT_OR_NAME.sub(lambda found: "name" if found[0][0] == "`" else found[0], insert["into"])
    if not _INSERT_INTO_TABLE.fullmatch(plain) or insert["settings"] or not _DATA_FORMATS.fullmatch(insert["format"]):
        raise _Refused(
            497,
            "ACCESS_DENIED",
            "The embedded ClickHouse lets others insert data into its tables as INSERT INTO table (columns) FORMAT ..., in a "
            "format such as Native, Arrow, CSV or JSONEachRow, with settings in the address only",
        )


def _insert(connection: Any, insert: re.Match[str], data: bytes) -> Any:
    """Run an insert with its data. The engine takes text only, so the data goes through a file."""
    with tempfile.NamedTemporaryFile(prefix="seatmark-insert-") as file:
        file.write(data)
        file.flush()
        settings = f" SETTINGS {insert['settings']}" if insert["settings"] else ""
        return connection.query(f"{insert['into']} FROM INFILE {_quoted(file.name)}{settings} FORMAT {insert['format']}")


def _decompressed(body: bytes, encoding: str) -> bytes:
    """A body as it was before its Content-Encoding."""
    decompressors = {"gzip": lambda: zlib.decompressobj(wbits=31), "lz4": lz4.frame.LZ4FrameDecompressor}
    if encoding not in decompressors:
        raise _Refused(48, "NOT_IMPLEMENTED", f"Content-Encoding {encoding} is not supported, but gzip, lz4 and none are")
    decompressor = decompressors[encoding]()
    try:
        plain: bytes = decompressor.decompress(body, MAX_BODY_BYTES + 1)
    except (zlib.error, RuntimeError) as error:
        raise _Refused(36, "BAD_ARGUMENTS", f"The request is not {encoding}") from error
    if len(plain) > MAX_BODY_BYTES:
        raise _Refused(307, "TOO_MANY_BYTES", f"The request is larger than {MAX_BODY_BYTES} bytes: send it in parts")
    if not decompressor.eof:
        raise _Refused(36, "BAD_ARGUMENTS", f"The request ends before its {encoding} does")
    return plain


def _quoted(text: str, quote: str = "'") -> str:
    return quote + text.replace("\\", "\\\\").replace(quote, "\\" + quote) + quote
