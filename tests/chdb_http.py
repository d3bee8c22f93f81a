"""A ClickHouse server for tests: the engine of chDB behind enough of ClickHouse's HTTP interface for real clients.

What it knows: queries in the body, in the address, or half in each; query parameters; settings, for one request as on a
server; inserts with data in any format; compressed and chunked bodies; errors with their code; a user with a password.
What it does not: sessions, external data, progress, streaming of results.
"""

import base64
import gzip
import json
import os
import re
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, quote, urlsplit

import chdb
import lz4.frame

# Part of the address, but no settings of the engine.
_NOT_SETTINGS = {
    "query", "database", "default_format", "user", "password", "query_id", "session_id", "session_timeout", "session_check",
    "compress", "decompress", "enable_http_compression", "buffer_size", "wait_end_of_query", "client_protocol_version", "role",
    "quota_key", "send_progress_in_http_headers", "http_headers_progress_interval_ms",
}  # fmt: skip

_INSERT_WITH_DATA = re.compile(rb"\s*(INSERT\s+INTO\s.*?)\s(?:SETTINGS\s(.*?)\s)?FORMAT\s+(\w+)[ ;]*\r?\n", re.DOTALL | re.I)
_GIVES_ROWS = re.compile(rb"\s*(SELECT|WITH|SHOW|DESC|DESCRIBE|EXISTS|EXPLAIN|CHECK)\b", re.I)
_ERROR_CODE = re.compile(r"Code: (\d+)\.")
_AUTHENTICATION_FAILED = 516

_DECODERS = {"gzip": gzip.decompress, "lz4": lz4.frame.decompress}
_ENCODERS = {"lz4": lz4.frame.compress, "gzip": gzip.compress}


class ChdbHttp:
    """The server, as a context manager; on a free port of 127.0.0.1.

    path: the directory of the engine; one process can have one. user, password: who may come in.
    """

    def __init__(self, path: Path, user: str = "default", password: str = "") -> None:
        self.path = os.path.realpath(path)
        self.user = user
        self.password = password
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.chdb_http = self  # type: ignore[attr-defined]
        # The engine starts with the first connection and ends with the last: this one keeps it running between requests.
        self._keeps_running = chdb.connect(self.path)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def dsn(self, database: str) -> str:
        """The data source name of one of its databases."""
        return f"http://{quote(self.user)}:{quote(self.password)}@127.0.0.1:{self.port}/{database}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._keeps_running.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if urlsplit(self.path).path == "/ping":
            self._answer(200, b"Ok.\n")
        else:
            self._run(b"")

    def do_POST(self) -> None:
        self._run(self._body())

    def _run(self, body: bytes) -> None:
        address = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        if not self._may_come_in(address):
            self._fail(403, _AUTHENTICATION_FAILED, "Code: 516. DB::Exception: Authentication failed. (AUTHENTICATION_FAILED)")
            return
        query = address.get("query", "").encode()
        sql = query + b"\n" + body if query and body else query or body
        settings = {
            name: value for name, value in address.items() if name not in _NOT_SETTINGS and not name.startswith("param_")
        }
        parameters = {name[len("param_") :]: value for name, value in address.items() if name.startswith("param_")}
        connection = chdb.connect(self._engine.path)
        try:
            if address.get("database"):
                connection.query(f"USE `{address['database']}`")
            for name, value in settings.items():
                connection.query(f"SET {name} = {_quoted(value)}")
            if insert := _INSERT_WITH_DATA.match(sql):
                result = _insert(connection, insert, sql[insert.end() :])
            else:
                result_format = address.get("default_format", "TabSeparated")
                result = connection.query(sql.decode(), result_format, params=parameters)
        except RuntimeError as error:
            found = _ERROR_CODE.search(str(error))
            self._fail(500, int(found[1]) if found else 0, str(error))
            return
        finally:
            connection.close()
        summary = {"read_rows": "0", "written_rows": str(result.rows_read() if insert else 0)}
        headers = {"X-ClickHouse-Summary": json.dumps(summary), "X-ClickHouse-Timezone": "UTC"}
        if _GIVES_ROWS.match(sql):
            headers["X-ClickHouse-Format"] = "TabSeparated"
        self._answer(200, result.bytes() or b"", headers, compress=address.get("enable_http_compression") == "1")

    @property
    def _engine(self) -> ChdbHttp:
        engine: ChdbHttp = self.server.chdb_http  # type: ignore[attr-defined]
        return engine

    def _may_come_in(self, address: dict[str, str]) -> bool:
        user, password = address.get("user", "default"), address.get("password", "")
        if (authorization := self.headers.get("Authorization", "")).startswith("Basic "):
            user, _, password = base64.b64decode(authorization[len("Basic ") :]).decode().partition(":")
        return (user, password) == (self._engine.user, self._engine.password)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(self._chunks())
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        encoding = self.headers.get("Content-Encoding")
        return _DECODERS[encoding](body) if encoding else body

    def _chunks(self) -> Any:
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None, compress: bool = False) -> None:
        self.send_response(status)
        if compress and body:
            offered = [name.split(";")[0].strip() for name in self.headers.get("Accept-Encoding", "").split(",")]
            for name, encode in _ENCODERS.items():
                if name in offered:
                    body = encode(body)
                    self.send_header("Content-Encoding", name)
                    break
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _fail(self, status: int, code: int, message: str) -> None:
        self._answer(status, message.encode(), {"X-ClickHouse-Exception-Code": str(code)})

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: test output stays readable."""


def _insert(connection: Any, insert: re.Match[bytes], data: bytes) -> Any:
    """Run an insert with its data. The engine takes text only, so the data goes through a file."""
    into, settings, data_format = (part.decode() if part else "" for part in insert.groups())
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        clause = f" SETTINGS {settings}" if settings else ""
        return connection.query(f"{into} FROM INFILE {_quoted(file.name)}{clause} FORMAT {data_format}")


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
