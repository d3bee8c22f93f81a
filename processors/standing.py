"""How elements stand in the store, and their raw rows: what restatement and audit begin with."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import cached_property
from itertools import groupby
from typing import Any, Protocol

import pyarrow as pa

from processors.exact import RawRow
from schemas.activity import ACTIVITY_SCHEMA

# (entitlement, element)
Key = tuple[str, str]

# Elements that one query asks for together. Their ids travel in the address of an HTTP request.
_BATCH_ELEMENTS = 100
_BATCH_ID_BYTES = 16_000

# Versions of raw rows: 0 and 1 are a worker's (schemas/activity.py).
RESTATED_VERSIONS_FROM = 2
# The columns of a raw row that say what its event did.
EFFECT_COLUMNS = ("t", "late", "delta", "level", "limit", "hard_limit", "terms_known", "state", "customer", "product")


class RawLogStore(Protocol):
    """What restatement and audit read and write; views/raw_log.py says what each gives."""

    def marked_elements(self, today: date, entitlement: str = "") -> list[Key]: ...
    def marks(self, elements: Sequence[Key]) -> list[tuple[str, str, str, str, int, int]]: ...
    def standing(self, elements: Sequence[Key]) -> list[tuple[str, str, int, int, str, int, int]]: ...
    def checkpoints(self, elements: Sequence[Key]) -> list[tuple[str, str, str, int]]: ...
    def checkpoint_states(self, elements: Sequence[Key], day: str) -> dict[Key, bytes]: ...
    def stored_days(self, elements: Sequence[Key], first_day: str, until: str) -> dict[Key, list[str]]: ...
    def watermarks(self) -> dict[int, int]: ...
    def newest_before(self, elements: Sequence[Key], before_ms: int) -> dict[Key, int]: ...
    def repeats(self, elements: Sequence[Key], from_ms: int) -> list[tuple[str, str, str, int, int]]: ...
    def rows(self, elements: Sequence[Key], from_ms: int) -> Iterator[pa.RecordBatch]: ...
    def logged_elements(self, entitlement: str = "") -> list[Key]: ...
    def day_rows(self, elements: Sequence[Key], since: date) -> list[dict[str, Any]]: ...
    def alert_rows(self, elements: Sequence[Key]) -> list[dict[str, Any]]: ...
    def live_states(self, elements: Sequence[Key]) -> list[dict[str, Any]]: ...
    def levels_held(self, elements: Sequence[Key], first: date, last: date) -> list[dict[str, Any]]: ...
    def insert(self, table: str, rows: pa.Table) -> None: ...


@dataclass(frozen=True)
class Mark:
    """Days of an element that may differ from the exact ones; see schemas.days.DayMark."""

    first_day: str
    last_day: str
    position: int
    since: int


@dataclass
class Standing:
    """What is known of one element before it is folded. Positions are 0 where there is nothing."""

    marks: list[Mark] = field(default_factory=list)
    settled: int = 0
    restated: int = 0
    through: str = ""
    live_position: int = 0
    live_level: int = 0
    checkpoints: list[tuple[str, int]] = field(default_factory=list)

    @property
    def newest_mark(self) -> Mark:
        """The one with the highest position."""
        return max(self.marks, key=lambda mark: mark.position)

    @property
    def unsettled_since(self) -> int | None:
        """The position from which on the live state may differ from the exact one; None where it does not."""
        newest = self.newest_mark
        return newest.since if newest.since and newest.position > self.settled else None

    def ranges(self, today: str) -> list[tuple[str, str]]:
        """The marked days, as (first, last), that are over and were not restated since their mark."""
        yesterday = (date.fromisoformat(today) - timedelta(days=1)).isoformat()
        found = []
        for mark in self.marks:
            first = mark.first_day if mark.position > self.restated else max(mark.first_day, self.through)
            last = min(mark.last_day, yesterday)
            if first <= last:
                found.append((first, last))
        return found

    def marked(self, day: str) -> int:
        """The position of the newest mark on a day; 0 without one."""
        return max((mark.position for mark in self.marks if mark.first_day <= day <= mark.last_day), default=0)

    def first_day_that_may_differ(self, ranges: Iterable[tuple[str, str]], today: str) -> str:
        """No day before this one has changed since it was restated, live or exactly."""
        since = self.unsettled_since
        of_marks = [mark.first_day for mark in self.marks if since is not None and mark.position >= since]
        return min([today, *(first for first, _ in ranges), *of_marks])

    def checkpoint_before(self, day: str) -> tuple[str, int] | None:
        """The latest checkpoint, as (day, position), at the start of a day up to this one, that no mark has outdated."""
        for checkpoint_day, position in sorted(self.checkpoints, reverse=True):
            outdated = any(mark.position > position and mark.first_day < checkpoint_day for mark in self.marks)
            if checkpoint_day <= day and not outdated:
                return checkpoint_day, position
        return None


def standings_of(store: RawLogStore, elements: Sequence[Key]) -> dict[Key, Standing]:
    """How each of these elements stands."""
    standings = {key: Standing() for key in elements}
    for entitlement, element, settled, restated, through, live_position, live_level in store.standing(elements):
        standing = standings[entitlement, element]
        standing.settled, standing.restated, standing.through = settled, restated, through
        standing.live_position, standing.live_level = live_position, live_level
    for entitlement, element, first_day, last_day, position, since in store.marks(elements):
        standings[entitlement, element].marks.append(Mark(first_day, last_day, position, since))
    for entitlement, element, day, position in store.checkpoints(elements):
        standings[entitlement, element].checkpoints.append((day, position))
    return standings


class StoredBatch:
    """Raw rows as they were read."""

    def __init__(self, rows: pa.RecordBatch) -> None:
        self.rows = rows

    @cached_property
    def effects(self) -> list[tuple[Any, ...]]:
        """What is stored of each row's effect, in the order of `EFFECT_COLUMNS`."""
        columns = [self.rows.column(name) for name in EFFECT_COLUMNS]
        texts = ("state", "customer", "product")
        return list(zip(*(
            column.cast(pa.string()).to_pylist() if name in texts
            else column.cast(pa.int64()).to_pylist() if name == "t"
            else column.to_pylist()
            for name, column in zip(EFFECT_COLUMNS, columns, strict=True)
        ), strict=True))  # fmt: skip


@dataclass(slots=True)
class StoredRow:
    """A raw row, and where it is in the batch that it came in."""

    raw: RawRow
    partition: int
    batch: StoredBatch
    index: int

    @property
    def effect(self) -> tuple[Any, ...]:
        """What is stored of its effect."""
        return self.batch.effects[self.index]


def stored_rows(batches: Iterable[pa.RecordBatch], watermarks: dict[int, int]) -> Iterator[StoredRow]:
    """The rows up to the watermark of their partition; of a partition without one, all."""
    for rows in batches:
        batch = StoredBatch(rows)
        names = ("entitlement", "element", "epoch", "offset", "event", "partition")
        columns = [rows.column(name).to_pylist() for name in names]
        for index, (entitlement, element, epoch, offset, event, partition) in enumerate(zip(*columns, strict=True)):
            raw = RawRow(entitlement.decode(), element.decode(), epoch, offset, event)
            if raw.position <= watermarks.get(partition, raw.position):
                yield StoredRow(raw, partition, batch, index)


def rows_anew(rows: Sequence[StoredRow], least_versions: Sequence[int], replaced: Mapping[str, Sequence[Any]]) -> pa.Table:
    """Raw rows as they are stored, with other values in some columns, and versions that are not below their own.

    least_versions: for each row. replaced: by the column's name, a value for each row. Rows of one batch follow each other.
    """
    if not rows:
        return ACTIVITY_SCHEMA.empty_table()
    parts = []
    for _, group in groupby(rows, key=lambda row: id(row.batch)):
        of_batch = list(group)
        stored = of_batch[0].batch.rows.select(ACTIVITY_SCHEMA.names)
        parts.append(stored.take(pa.array([row.index for row in of_batch])))
    table = pa.Table.from_batches(parts)
    versions = zip(least_versions, table.column("version").to_pylist(), strict=True)
    for name, values in {"version": [max(pair) for pair in versions], **replaced}.items():
        column = ACTIVITY_SCHEMA.field(name)
        table = table.set_column(table.schema.get_field_index(name), column, pa.array(values, column.type))
    return table


def batches_of(elements: Sequence[Key]) -> Iterator[list[Key]]:
    """Elements, so many at a time as one query may ask for."""
    batch: list[Key] = []
    size = 0
    for key in elements:
        length = sum(2 * len(part.encode()) for part in key)
        if batch and (len(batch) == _BATCH_ELEMENTS or size + length > _BATCH_ID_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(key)
        size += length
    if batch:
        yield batch
