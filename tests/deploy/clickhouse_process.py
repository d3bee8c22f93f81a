"""ClickHouse's engine with a server's configuration, in a process of its own: a process can have one engine only.

The other end reads requests from stdin, a line of JSON each, and answers with one: `rows`, or the number of the `error`, or why
a migration was `refused`.
"""

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from clickhouse_connect.driver.exceptions import DatabaseError

from views import cluster, store
from views.migrate import MigrationRefused, migrate
from views.store import Store, connect

ROOT = Path(__file__).parents[2]


class ClickhouseProcess:
    """The engine over a directory. configuration: what is between <clickhouse> and its end; it goes to the file."""

    def __init__(self, configuration: str, directory: Path, file: Path) -> None:
        file.write_text(f"<clickhouse>{configuration}</clickhouse>")
        command = [sys.executable, "-m", "tests.deploy.clickhouse_process", str(file), str(directory)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to a request; its fields are the arguments of `_Engine.answer`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def rows(self, select: str, database: str = "seatmark") -> list[list[Any]]:
        """The rows of a query that succeeds."""
        answer = self.ask(select=select, database=database)
        assert "rows" in answer, (select, answer)
        rows: list[list[Any]] = answer["rows"]
        return rows

    def run(self, statement: str, database: str = "seatmark") -> None:
        """Run a statement that succeeds."""
        answer = self.ask(statement=statement, database=database)
        assert "rows" in answer, (statement, answer)

    def error(self, statement: str) -> int | None:
        """The number of a statement's error."""
        error: int | None = self.ask(statement=statement).get("error")
        return error

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait() == 0

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.wait()


def without_keeper(statement: str) -> str:
    """A statement for a cluster, without what the engine in process cannot do: it has no keeper, and no queue of tasks."""
    statement = re.sub(r" ON CLUSTER `\w+`", "", statement)
    statement = re.sub(r"Replicated(\w*MergeTree)\('[^']*', '[^']*'(?:, )?", r"\1(", statement)
    statement = re.sub(r", replicated_deduplication_window_seconds = \d+", "", statement)
    return re.sub(r"\breplicated_deduplication_window\b", "non_replicated_deduplication_window", statement)


class _Engine:
    """What the other end has open: a client and a store for each database."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._client = cache(lambda database: connect(self._dsn(database)))
        self._store = cache(lambda database: Store(self._dsn(database)))

    def answer(
        self,
        *,
        database: str = "seatmark",
        migrate_in: str = "",
        cluster: str = "",
        statement: str = "",
        select: str = "",
        query: str = "",
        parameters: dict[str, Any] | None = None,
    ) -> list[Any]:
        """migrate_in: a time zone. query: the name of one of views/queries."""
        if migrate_in:
            migrate(self._dsn(database), migrate_in, cluster)
            return []
        if query:
            return self._store(database).query(query, **(parameters or {}))
        if select:
            return [list(row) for row in self._client(database).query(select).result_rows]
        self._client(database).command(statement)
        return []

    def _dsn(self, database: str) -> str:
        return f"chdb://{self._directory}?database={database}"


def _main(configuration: str, directory: str) -> None:
    # What follows a question mark are options of the engine.
    store.chdb_directory = lambda dsn: f"{directory}?config-file={configuration}"
    on_a_cluster = cluster.Cluster.statements
    cluster.Cluster.statements = lambda *of: [without_keeper(one) for one in on_a_cluster(*of)]  # type: ignore[method-assign]
    engine = _Engine(directory)
    for line in sys.stdin:
        try:
            answer = {"rows": engine.answer(**json.loads(line))}
        except DatabaseError as error:
            answer = {"error": error.code}
        except MigrationRefused as error:
            answer = {"refused": str(error)}
        print(json.dumps(answer, default=str), flush=True)


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2])
