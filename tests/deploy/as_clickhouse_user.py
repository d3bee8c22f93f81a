"""ClickHouse's engine as a user of a server: a process of its own, with a configuration. Reads requests from stdin, a line of JSON
each, and answers with one: `rows`, or the number of the `error`.

    python -m tests.deploy.as_clickhouse_user CONFIGURATION DIRECTORY
"""

import json
import sys
from pathlib import Path
from typing import Any

from clickhouse_connect.driver.exceptions import DatabaseError

from views import store
from views.migrate import migrate


def main(configuration: str, directory: str) -> None:
    # What follows a question mark are options of the engine.
    store.chdb_directory = lambda dsn: f"{directory}?config-file={configuration}"
    dsn = f"chdb://{directory}?database=seatmark"
    for line in sys.stdin:
        try:
            answer = {"rows": _answer(dsn, **json.loads(line))}
        except DatabaseError as error:
            answer = {"error": error.code}
        print(json.dumps(answer, default=str), flush=True)


def _answer(
    dsn: str, migrate_in: str = "", sql: str = "", query: str = "", parameters: dict[str, Any] | None = None
) -> list[Any]:
    """migrate_in: a time zone; sql: a statement; query: the name of one of views/queries."""
    if migrate_in:
        migrate(dsn, migrate_in)
        return []
    if query:
        return store.Store(dsn).query(query, **(parameters or {}))
    client = store.connect(dsn)
    if sql.startswith("SELECT"):
        return [list(row) for row in client.query(sql).result_rows]
    client.command(sql)
    return []


if __name__ == "__main__":
    main(str(Path(sys.argv[1])), str(Path(sys.argv[2])))
