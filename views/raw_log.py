"""What the exact fold reads and writes in ClickHouse: the raw log, and how far it is settled and restated."""

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
from clickhouse_connect.driver.client import Client

from schemas.errors import Explained
from schemas.personal import REWRITTEN
from views.cluster import change_tables
from views.store import named_queries

_QUERIES = Path(__file__).parent / "queries" / "exact"

Key = tuple[str, str]

_REWRITTEN = {"rewritten": REWRITTEN.decode()}

# Acknowledged means stored: what comes after relies on it.
_INSERT_SETTINGS: dict[str, Any] = {
    "async_insert": 0,
    "deduplicate_blocks_in_dependent_materialized_views": 1,
    "max_partitions_per_insert_block": 0,
}


_FORGETTING = "forgetting"


class HalfForgotten(Explained):
    """Of a person some rows may have new seat ids and others the old ones: what is folded from them would be wrong."""


def open_raw_log(client: Client, topic: str) -> "RawLog":
    """A raw log that can be folded; see `RawLog`. Raises HalfForgotten."""
    log = RawLog(client, topic)
    if log.forgetting() is not None:
        raise HalfForgotten(
            "a person is being forgotten, and has new seat ids in some rows only. If `seatmark forget` does not run any more, "
            "it was ended before it was done: run it again with the same options, before anything else"
        )
    return log


class RawLog:
    """Runs the queries of views/queries/exact over one client; for one thread at a time.

    topic: the source topic whose events the raw log holds.
    cluster: the name of the one that the tables are spread over, '' for one server; it matters to what deletes rows.
    Its methods raise what clickhouse_connect raises (`DatabaseError`).
    """

    def __init__(self, client: Client, topic: str, cluster: str = "") -> None:
        self._client = client
        self._topic = topic
        self._cluster = cluster
        self._queries = {file.stem: file.read_text("utf-8") for file in _QUERIES.glob("*.sql")}

    def marked_elements(self, today: date, entitlement: str = "") -> list[Key]:
        """The elements that are unsettled, or have marked days before today that are not restated; '': of all."""
        return [(row[0], row[1]) for row in self._rows("marked_elements", today=today, entitlement=entitlement)]

    def marks(self, elements: Sequence[Key]) -> list[tuple[str, str, str, str, int, int]]:
        """Marks as (entitlement, element, first day, last day, position, since)."""
        return self._of("marks", elements)

    def standing(self, elements: Sequence[Key]) -> list[tuple[str, str, int, int, str, int, int]]:
        """(entitlement, element, settled at, restated at, restated through, live position, live level) of each."""
        return self._of("standing", elements)

    def checkpoints(self, elements: Sequence[Key]) -> list[tuple[str, str, str, int]]:
        """Checkpoints as (entitlement, element, day, position)."""
        return self._of("checkpoints", elements)

    def checkpoint_states(self, elements: Sequence[Key], day: str) -> dict[Key, bytes]:
        """The checkpoints of one day."""
        rows = self._of("checkpoint_states", elements, day=date.fromisoformat(day))
        return {(row[0], row[1]): row[2] for row in rows}

    def stored_days(self, elements: Sequence[Key], first_day: str, until: str) -> dict[Key, list[str]]:
        """The days from first_day to before until that have a row."""
        rows = self._of("stored_days", elements, first_day=date.fromisoformat(first_day), until=date.fromisoformat(until))
        return {(row[0], row[1]): row[2] for row in rows}

    def watermarks(self) -> dict[int, int]:
        """By source partition, the position up to which all raw rows can be seen."""
        return {row[0]: row[1] for row in self._rows("watermarks", topic=self._topic)}

    def newest_before(self, elements: Sequence[Key], before_ms: int) -> dict[Key, int]:
        """The highest position of the events with a time before that instant."""
        return {(row[0], row[1]): row[2] for row in self._of("newest_before", elements, before=_moment(before_ms))}

    def repeats(self, elements: Sequence[Key], from_ms: int) -> list[tuple[str, str, str, int, int]]:
        """Events that came several times as (entitlement, source, id, position of the first arrival, of the second)."""
        return self._rows("repeats", **_parameters(elements), **{"from": _moment(from_ms)})

    def rows(self, elements: Sequence[Key], from_ms: int) -> Iterator[pa.RecordBatch]:
        """Raw rows with a time from that instant on: by entitlement, element, time, position. Texts are binary columns."""
        parameters = _parameters(elements) | {"from": _moment(from_ms)}
        with self._client.query_arrow_stream(self._queries["rows"], parameters=parameters, use_strings=False) as batches:
            yield from batches

    def logged_elements(self, entitlement: str = "") -> list[Key]:
        """All elements that there is anything of; '': of all entitlements."""
        return [(row[0], row[1]) for row in self._rows("logged_elements", entitlement=entitlement)]

    def day_rows(self, elements: Sequence[Key], since: date) -> list[dict[str, Any]]:
        """Stored days, in the fields of schemas.days.DayRow, `restated` and `version`."""
        return self._dicts("day_rows", elements, since=since)

    def alert_rows(self, elements: Sequence[Key]) -> list[dict[str, Any]]:
        """Stored alerts in order of time."""
        return self._dicts("alert_rows", elements)

    def live_states(self, elements: Sequence[Key]) -> list[dict[str, Any]]:
        """Level, limits and state as the worker told them last."""
        return self._dicts("live_states", elements)

    def highest_epoch(self) -> int:
        """The highest epoch that anything is of; 0 without anything."""
        return int(self._rows("highest_epoch")[0][0])

    def progress(self) -> list[tuple[int, str, int]]:
        """How far each source partition is stored: (partition, incarnation, offset)."""
        return [(row[0], row[1], row[2]) for row in self._rows("progress", topic=self._topic)]

    def elements_of_person(self, texts: Sequence[str], entitlement: str = "", customer: str = "") -> list[Key]:
        """The elements that may have one of these texts in their events; '': of all entitlements, all customers."""
        rows = self._rows("elements_of_person", **_searched(texts), entitlement=entitlement, customer=customer)
        return [(row[0], row[1]) for row in rows]

    def months_of_replaced(self, texts: Sequence[str]) -> list[int]:
        """The months, such as 202603, of rows with one of these texts that were replaced and are still on the disk."""
        return [row[0] for row in self._rows("months_of_replaced", **_searched(texts))]

    def expired_months(self, before: date) -> list[int]:
        """The months before that day (UTC), such as 202603, with personal data in them."""
        since_1970 = (before - date(1970, 1, 1)).days
        return [row[0] for row in self._rows("expired_months", before=_moment(since_1970 * 86_400_000), **_REWRITTEN)]

    def expired_elements(self, month: int) -> list[Key]:
        """The elements with personal data in one month."""
        return [(row[0], row[1]) for row in self._rows("expired_elements", month=month, **_REWRITTEN)]

    def expired_rows(self, elements: Sequence[Key], month: int) -> Iterator[pa.RecordBatch]:
        """Raw rows of one month with personal data in them; as `rows` gives them, in no order."""
        parameters = _parameters(elements) | _REWRITTEN | {"month": month}
        with self._client.query_arrow_stream(
            self._queries["expired_rows"], parameters=parameters, use_strings=False
        ) as batches:
            yield from batches

    def forgetting(self) -> str | None:
        """What `begin_forgetting` has noted; None where nobody is being forgotten."""
        rows = self._client.query(
            "SELECT value FROM settings FINAL WHERE name = {name:String}", parameters={"name": _FORGETTING}
        ).result_rows
        return rows[0][0] if rows else None

    def begin_forgetting(self, note: str) -> None:
        """Note that somebody is being forgotten: until that is done, `open_raw_log` refuses."""
        self._client.insert("settings", [[_FORGETTING, note]], column_names=["name", "value"], settings=_INSERT_SETTINGS)

    def end_forgetting(self) -> None:
        """Delete the note."""
        self._change("ALTER TABLE settings DELETE WHERE name = {name:String} SETTINGS mutations_sync = 2", name=_FORGETTING)

    def drop_checkpoints(self, elements: Sequence[Key]) -> None:
        """Delete the exact states of some elements."""
        if elements:
            self._change(
                "ALTER TABLE exact_states DELETE WHERE (entitlement, element) IN {elements:Array(Tuple(String, String))} "
                "SETTINGS mutations_sync = 2",
                elements=list(elements),
            )

    def drop_replaced(self, month: int) -> None:
        """Write the raw log of one month, such as 202603, anew without the rows that were replaced. Needs room for a copy."""
        self._change(f"OPTIMIZE TABLE activity PARTITION ID '{month:06}' FINAL")

    def days_to_add_up(self, first: date, last: date) -> list[dict[str, Any]]:
        """Day rows whose levels are not added up, as entitlement, element, day, version; and the generation that counts."""
        found = self._client.query(self._queries["days_to_add_up"], parameters={"first_day": first, "last_day": last})
        return list(found.named_results())

    def levels_of_days(
        self, elements: Sequence[Key], starts: Sequence[int], from_ms: int, to_ms: int
    ) -> dict[tuple[str, str, int], dict[str, Any]]:
        """What elements held on days, by entitlement, element and the day's start: as the overdraft report reads it.

        starts: of all days from the one that begins at from_ms. Up to and with to_ms. Times in ms since 1970.
        """
        parameters = {
            "visible": list(elements), "entitlements": sorted({entitlement for entitlement, _ in elements}),
            "starts": list(starts), "from": _moment(from_ms), "to": _moment(to_ms),
        }  # fmt: skip
        rows = self._client.query(named_queries()["levels_of_days"], parameters=parameters).named_results()
        return {(row["entitlement"], row["element"], row["start_ms"]): row for row in rows}

    def levels_held(self, elements: Sequence[Key], first: date, last: date) -> list[dict[str, Any]]:
        """What was added up of the days from first to last, as the overdraft report reads it. Times in ms since 1970."""
        parameters = {
            "visible": list(elements), "entitlements": sorted({entitlement for entitlement, _ in elements}),
            "first_day": first, "last_day": last,
        }  # fmt: skip
        found = self._client.query(named_queries()["levels_held"], parameters=parameters, query_formats={"DateTime64": "int"})
        return list(found.named_results())

    def insert(self, table: str, rows: pa.Table) -> None:
        """Store rows; done once ClickHouse has acknowledged."""
        if rows.num_rows:
            self._client.insert_arrow(table, rows, settings=_INSERT_SETTINGS)

    def _change(self, statement: str, **parameters: Any) -> None:
        change_tables(self._client, statement, self._cluster, parameters)

    def _of(self, name: str, elements: Sequence[Key], **more: Any) -> list[Any]:
        return self._rows(name, **_parameters(elements), **more)

    def _dicts(self, name: str, elements: Sequence[Key], **more: Any) -> list[dict[str, Any]]:
        parameters = _parameters(elements) | more
        return list(self._client.query(self._queries[name], parameters=parameters).named_results())

    def _rows(self, name: str, **parameters: Any) -> list[Any]:
        # The only column that is no text; others of this name there are none.
        found = self._client.query(self._queries[name], parameters=parameters, column_formats={"state": "bytes"})
        return list(found.result_rows)


def _parameters(elements: Sequence[Key]) -> dict[str, Any]:
    # The entitlements alone as well: by them the sort key prunes, by pairs it does not.
    return {"elements": list(elements), "entitlements": sorted({entitlement for entitlement, _ in elements})}


def _searched(texts: Sequence[str]) -> dict[str, Any]:
    """The texts, and how they are written in JSON."""
    escaped = {json.dumps(text, ensure_ascii=ascii_only)[1:-1] for text in texts for ascii_only in (True, False)}
    return {"texts": list(texts), "escaped": sorted(escaped)}


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
