"""The tables on a ClickHouse cluster: statements for one server, in the form that a cluster needs.

Seatmark's database has in it, on every server, what it has on a single one, by the same names; so who reads and who inserts
need not know of the cluster. What is behind a name is one of three:

- **Views** are as on one server.
- **Tables with rows of entitlements** are spread over the shards: a `Distributed` table here, and behind it, in a second
  database, the `Replicated` table with this shard's part. An entitlement is on one shard with all that is of it. So all
  versions of a row are on one shard, where FINAL finds them; and what a query joins or looks up in a subquery is on the
  shard of the rows that it is for.
- **Tables that belong to no entitlement** are `Replicated`, on every server whole.

Everything else follows: a table's columns change in both places, its rows and parts behind it only.
"""

import re
from dataclasses import dataclass
from typing import Any

from clickhouse_connect.driver.client import Client

EVERYWHERE = frozenset({"settings", "calendar", "progress", "tokens", "schema_versions"})
"""The tables that belong to no entitlement, and the one in which the migrations are noted."""

_SHARD = "_shard"

_NAME = r"[`\"]?(\w+)[`\"]?"
# Where the statement begins: comments come before it.
_CREATE_DATABASE = re.compile(rf"^CREATE DATABASE IF NOT EXISTS {_NAME}", re.M)
_CREATE_TABLE = re.compile(rf"^CREATE TABLE (IF NOT EXISTS )?{_NAME}(?: AS {_NAME})?", re.M)
_CREATE_MATERIALIZED_VIEW = re.compile(rf"^CREATE MATERIALIZED VIEW (IF NOT EXISTS )?{_NAME} TO {_NAME}", re.M)
_CREATE_VIEW = re.compile(rf"^CREATE (OR REPLACE )?VIEW (IF NOT EXISTS )?{_NAME}", re.M)
_ALTER = re.compile(rf"^ALTER TABLE {_NAME}(?=\s+(\w+ \w+))", re.M)
_EXCHANGE = re.compile(rf"^EXCHANGE TABLES {_NAME} AND {_NAME}", re.M)
_DROP = re.compile(rf"^DROP TABLE (IF EXISTS )?{_NAME}", re.M)
_ROWS = re.compile(rf"^(TRUNCATE TABLE|OPTIMIZE TABLE) {_NAME}", re.M)

_ENGINE = re.compile(r"(?<=ENGINE = )(\w*MergeTree)(?:\(([^)]*)\))?")
_FROM = re.compile(rf"\bFROM {_NAME}")
_FROM_VIEW = re.compile(r"\bFROM (\w+)\(")
_WINDOW = re.compile(r"\bnon_replicated_deduplication_window = (\d+)")
# By default a replicated table forgets tokens after an hour. A sink that was away for a weekend tries its last insert again.
_WINDOW_SECONDS = 7 * 24 * 3600


class NoClusterForm(ValueError):
    """A statement of a kind that no migration had so far: this file has to learn it."""


@dataclass(frozen=True)
class Cluster:
    """A cluster of `remote_servers` by its name, and Seatmark's database on it.

    Each server must have the macros `shard` and `replica`.
    """

    name: str
    database: str

    @property
    def shard_database(self) -> str:
        """The database with each shard's part of the tables."""
        return self.database + _SHARD

    def statements(self, statement: str) -> list[str]:
        """What a statement for a single server is here, one after the other; to be run on any one server.

        statement: of a migration, or any other that changes tables by name; without a database's name before a table's.
        Raises NoClusterForm.
        """
        if found := _CREATE_DATABASE.search(statement):
            return [f"CREATE DATABASE IF NOT EXISTS `{found[1]}{suffix}` {self._on}" for suffix in ("", _SHARD)]
        if found := _CREATE_TABLE.search(statement):
            return self._create_table(statement, found)
        if found := _CREATE_MATERIALIZED_VIEW.search(statement):
            head = f"CREATE MATERIALIZED VIEW {found[1] or ''}{self._part(found[2])} {self._on} TO {self._part(found[3])}"
            return [head + _FROM.sub(lambda source: f"FROM {self._part(source[1])}", statement[found.end() :])]
        if found := _CREATE_VIEW.search(statement):
            head = f"CREATE {found[1] or ''}VIEW {found[2] or ''}{self._whole(found[3])} {self._on}"
            # A view with parameters is looked for in the database of who asks, unless one is named.
            return [head + _FROM_VIEW.sub(lambda view: f"FROM {self._whole(view[1])}(", statement[found.end() :])]
        if found := _ALTER.search(statement):
            return self._alter(statement, found)
        if found := _EXCHANGE.search(statement):
            first, second = self._place(found[1]), self._place(found[2])
            return [f"EXCHANGE TABLES {first} AND {second} {self._on}{statement[found.end() :]}"]
        if found := _DROP.search(statement):
            # The whole one first: nobody finds one without a part behind it.
            places = [self._whole(found[2])] + ([] if found[2] in EVERYWHERE else [self._part(found[2])])
            return [f"DROP TABLE {found[1] or ''}{place} {self._on}{statement[found.end() :]}" for place in places]
        if found := _ROWS.search(statement):
            return [f"{found[1]} {self._place(found[2])} {self._on}{statement[found.end() :]}"]
        raise NoClusterForm(f"there is no cluster form of this statement: {statement}")

    @property
    def _on(self) -> str:
        return f"ON CLUSTER `{self.name}`"

    def _whole(self, table: str) -> str:
        return f"`{self.database}`.`{table}`"

    def _part(self, table: str) -> str:
        return f"`{self.shard_database}`.`{table}`"

    def _place(self, table: str) -> str:
        """Where a table's rows are."""
        return self._whole(table) if table in EVERYWHERE else self._part(table)

    def _create_table(self, statement: str, found: re.Match[str]) -> list[str]:
        if_not_exists, table, like = found[1] or "", found[2], found[3]
        columns = f" AS {self._place(like)}" if like else ""
        made = f"CREATE TABLE {if_not_exists}{self._place(table)} {self._on}{columns}"
        rest = statement[found.end() :]
        # One replica of all that there are, or one of its shard's. By the table's id, which it keeps when it is exchanged.
        place = "'/clickhouse/tables/{uuid}/{shard}', '{replica}'"
        if table in EVERYWHERE:
            place = "'/clickhouse/tables/{uuid}/all', '{shard}-{replica}'"
        rest = _ENGINE.sub(lambda engine: f"Replicated{engine[1]}({', '.join(filter(None, [place, engine[2]]))})", rest)
        rest = _WINDOW.sub(
            rf"replicated_deduplication_window = \1, replicated_deduplication_window_seconds = {_WINDOW_SECONDS}", rest
        )
        if table in EVERYWHERE:
            return [made + rest]
        distributed = f"Distributed(`{self.name}`, `{self.shard_database}`, `{table}`, cityHash64(entitlement))"
        whole = f"CREATE TABLE {if_not_exists}{self._whole(table)} {self._on} AS {self._part(table)} ENGINE = {distributed}"
        return [made + rest, whole]

    def _alter(self, statement: str, found: re.Match[str]) -> list[str]:
        rest = _FROM.sub(lambda source: f"FROM {self._place(source[1])}", statement[found.end() :])
        altered = [f"ALTER TABLE {self._place(found[1])} {self._on}{rest}"]
        if found[2].endswith(" COLUMN") and found[1] not in EVERYWHERE:
            altered.append(f"ALTER TABLE {self._whole(found[1])} {self._on}{rest}")
        return altered


def change_tables(client: Client, statement: str, cluster: str, parameters: dict[str, Any] | None = None) -> None:
    """Run a statement that changes tables of the client's database by name.

    cluster: the name of the cluster that they are spread over, '' for one server.
    Raises clickhouse_connect's DatabaseError. On a cluster statements are run one by one: ended in the middle, some are done.
    """
    for one in Cluster(cluster, client.database or "").statements(statement) if cluster else [statement]:
        client.command(one, parameters=parameters)
