"""Restatement: days that saw disorder are put right once they are over, and live levels that came out wrong are corrected.

One pass looks at the elements that are unsettled or have marked days that are over. It folds each exactly, from the
last midnight before which nothing changed, and

1. writes the marked days as they are exactly, with the position that the fold has seen (the `basis`) as their version,
2. writes the raw rows of those days with their exact effect,
3. keeps the exact state at today's first instant as a checkpoint for the next pass,
4. notes what is restated, so that the next pass need not look again, and last
5. where the element is unsettled, sends what differs between the exact and the live state, as a correction that goes
   through the log like any event (processors/domain/corrections.py). One that finds nothing settles the element.

A crash between any two of these repeats some of them, and the same versions and ids come again.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from itertools import groupby
from typing import Any

import msgspec
import pyarrow as pa

from processors import metrics
from processors.codec import UnreadableState, decode_element
from processors.domain.corrections import corrections_between
from processors.domain.days import Calendar, DayBounds
from processors.domain.ledger import Outcome
from processors.exact import History, Identity, Plan, RawRow, exact_history
from processors.partitions import partition_of
from processors.sink import days_table
from processors.standing import (
    EFFECT_COLUMNS,
    RESTATED_VERSIONS_FROM,
    Key,
    RawLogStore,
    Standing,
    StoredRow,
    batches_of,
    rows_anew,
    standings_of,
    stored_rows,
)
from schemas.alerts import seatmark_id
from schemas.corrections import encode_correction
from schemas.days import DayRow
from schemas.events import Event

logger = logging.getLogger(__name__)


@dataclass
class Report:
    """What a pass did. elements: looked at. days, rows: written. corrections: sent; differing: those that change something."""

    elements: int = 0
    days: int = 0
    rows: int = 0
    corrections: int = 0
    differing: int = 0

    def add(self, other: "Report") -> None:
        """Sum up."""
        self.elements += other.elements
        self.days += other.days
        self.rows += other.rows
        self.corrections += other.corrections
        self.differing += other.differing


@dataclass(frozen=True)
class Outgoing:
    """A correction as a record of entitlement-events. key: the entitlement, which also tells the partition."""

    key: bytes
    value: bytes


Send = Callable[[Outgoing], Awaitable[object]]


class Restater:
    """Makes passes over what there is to restate.

    store: called in a thread of its own. send: sends a correction; done when the broker has acknowledged it.
    partitions: of the source topic.
    """

    def __init__(self, store: RawLogStore, send: Send, *, calendar: Calendar, late_after_ms: int, partitions: int) -> None:
        self._store = store
        self._partitions = partitions
        self._send = send
        self._calendar = calendar
        self._late_after_ms = late_after_ms
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="seatmark-restate")

    async def run(
        self,
        now_ms: int,
        *,
        entitlement: str = "",
        owns: Callable[[str], bool] = lambda entitlement: True,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Report:
        """One pass. entitlement: only this one. owns: whether this process looks after an entitlement.

        on_progress(done, total): called with the number of elements.
        Raises what the store raises; what was written until then stays, and nothing is half done for good.
        """
        loop = asyncio.get_running_loop()
        today = self._calendar.day_of(now_ms)
        started = time.perf_counter()
        elements = await loop.run_in_executor(
            self._thread, self._store.marked_elements, date.fromisoformat(today.day), entitlement
        )
        elements = [key for key in elements if owns(key[0])]
        report = Report()
        on_progress(0, len(elements))
        for batch in batches_of(elements):
            done, outgoing = await loop.run_in_executor(self._thread, self._restate, batch, today, now_ms)
            for correction in outgoing:
                await self._send(correction)
            report.add(done)
            on_progress(report.elements, len(elements))
        metrics.RESTATE_SECONDS.observe(time.perf_counter() - started)
        metrics.RESTATE_WAITING.set(len(elements))
        return report

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()

    def _restate(self, elements: Sequence[Key], today: DayBounds, now_ms: int) -> tuple[Report, list[Outgoing]]:
        # First the watermarks, so that no live level is from before what they let us see.
        watermarks = self._store.watermarks()
        standings = standings_of(self._store, elements)
        wanted: dict[Key, _Work] = {}
        for key, standing in standings.items():
            if standing.marks:
                wanted[key] = _work(standing, today)
        self._look_up_stored_days(wanted, today)
        self._look_up_checkpoints(wanted)
        report, outgoing, writes = Report(elements=len(elements)), [], _Writes(today.day)
        self._look_up_repeats(wanted)
        for start, keys in _by_start(wanted):
            for folded in self._folded(keys, start, wanted, watermarks):
                writes.add(folded)
                for correction, differs in self._corrections(folded, now_ms):
                    outgoing.append(correction)
                    report.differing += differs
        for table, stored in writes.tables():
            self._store.insert(table, stored)
        report.days, report.rows, report.corrections = len(writes.days), len(writes.rows), len(outgoing)
        metrics.RESTATED_DAYS.inc(report.days)
        metrics.CORRECTIONS.inc(report.differing)
        return report, outgoing

    def _look_up_stored_days(self, wanted: dict[Key, "_Work"], today: DayBounds) -> None:
        """Which marked days need a row although they have no events exactly: a row is stored, or a range begins there."""
        with_ranges = {key: work for key, work in wanted.items() if work.ranges}
        if not with_ranges:
            return
        first_day = min(first for work in with_ranges.values() for first, _ in work.ranges)
        stored = self._store.stored_days(list(with_ranges), first_day, today.day)
        for key, work in with_ranges.items():
            days = {first for first, _ in work.ranges} | {day for day in stored.get(key, []) if work.covers(day)}
            bounds = (self._calendar.bounds(date.fromisoformat(day)) for day in sorted(days))
            work.ticks = [day for day in bounds if day is not None]

    def _look_up_checkpoints(self, wanted: dict[Key, "_Work"]) -> None:
        for day in {work.checkpoint[0] for work in wanted.values() if work.checkpoint is not None}:
            bounds = self._calendar.bounds(date.fromisoformat(day))
            keys = [key for key, work in wanted.items() if work.checkpoint is not None and work.checkpoint[0] == day]
            states = self._store.checkpoint_states(keys, day) if bounds is not None else {}
            newest = self._store.newest_before(keys, bounds.start) if bounds is not None else {}
            for key in keys:
                work = wanted[key]
                assert work.checkpoint is not None
                # An event from before that came later may be here before its mark is.
                if bounds is not None and key in states and newest.get(key, 0) <= work.checkpoint[1] and _readable(states[key]):
                    work.state, work.start_ms = states[key], bounds.start

    def _look_up_repeats(self, wanted: dict[Key, "_Work"]) -> None:
        from_the_beginning = []
        for start, keys in _by_start(wanted):
            for key in self._read_repeats(wanted, keys, start):
                if start:
                    # A repeat that was taken for a new event made a difference then, which may be before the checkpoint.
                    wanted[key].start_ms, wanted[key].state = 0, None
                    from_the_beginning.append(key)
        if from_the_beginning:
            self._read_repeats(wanted, from_the_beginning, 0)

    def _read_repeats(self, wanted: dict[Key, "_Work"], keys: Sequence[Key], start: int) -> set[Key]:
        found = set()
        for entitlement, source, event_id, first, second in self._store.repeats(keys, start):
            for key in keys:
                if key[0] == entitlement:
                    found.add(key)
                    work = wanted[key]
                    work.repeats[source, event_id] = first
                    if work.since is not None:
                        work.since = min(work.since, second)
        return found

    def _folded(
        self, keys: Sequence[Key], start: int, wanted: dict[Key, "_Work"], watermarks: dict[int, int]
    ) -> Iterator["_Folded"]:
        rows = stored_rows(self._store.rows(keys, start), watermarks)
        for key, of_element in groupby(rows, key=lambda row: (row.raw.entitlement, row.raw.element)):
            yield self._fold(key, of_element, wanted[key], watermarks)

    def _fold(self, key: Key, rows: Iterable["StoredRow"], work: "_Work", watermarks: dict[int, int]) -> "_Folded":
        changed: list[ChangedRow] = []
        current: list[StoredRow] = []

        def raw_rows() -> Iterator[RawRow]:
            for row in rows:
                current[:] = [row]
                yield row.raw

        def on_outcome(raw: RawRow, event: Event, outcome: Outcome) -> None:
            [row] = current
            effect = effect_of(outcome)
            if work.ranges and row.effect != effect and work.covers(self._calendar.day_of(event.time).day):
                changed.append(ChangedRow(row, effect))

        history = exact_history(
            key,
            raw_rows(),
            calendar=self._calendar,
            late_after_ms=self._late_after_ms,
            plan=Plan(since=work.since, ticks=work.ticks, checkpoint=work.state, save_at=work.save_at),
            repeats=work.repeats,
            on_outcome=on_outcome,
        )
        # Not that of a row's partition: where there were fewer partitions once, new events of the entitlement are on another.
        watermark = watermarks.get(partition_of(key[0], self._partitions), -1)
        return _Folded(key, work, history, changed, _basis(history, work.standing, watermark))

    def _corrections(self, folded: "_Folded", now_ms: int) -> list[tuple[Outgoing, bool]]:
        """What has to be sent about an element, and whether it changes something."""
        standing, history, basis = folded.work.standing, folded.history, folded.basis
        live = history.live
        if live is None:
            return []
        entitlement, element = folded.key
        since = folded.work.since or 0
        same_moment = (
            history.live_position <= standing.live_position <= basis
            or max(history.live_position, standing.live_position) < since
        )
        if basis < standing.newest_mark.position or not same_moment:
            # Of the latest events some have come as raw rows only, or as day rows only: the next pass sees both.
            return []
        if not live.holds:
            # A repeat of a use that was not known any more counted once more, and left no row of its own.
            live.head.total = live.head.level = standing.live_level
        if live.head.level != standing.live_level:
            # A correction computed from a wrong idea of the live state could make a right level wrong.
            metrics.RESTATE_UNEXPLAINED.inc()
            logger.error(
                "the live level of %s %s is %d, and its raw log gives %d: not corrected; run `seatmark rebuild`",
                entitlement, element, standing.live_level, live.head.level,
                extra={"entitlement": entitlement, "element": element},
            )  # fmt: skip
            return []
        made = []
        for correction in corrections_between(live, history.present, basis):
            value = encode_correction(
                entitlement=entitlement,
                element=element,
                time=now_ms,
                correction=correction,
                id=seatmark_id("restate", entitlement, element, basis, correction.part),
            )
            differs = bool(correction.holds or correction.difference or correction.terms)
            made.append((Outgoing(entitlement.encode(), value), differs))
        return made


@dataclass
class _Work:
    """What is to be done about one element.

    start_ms, state: the checkpoint to start from, or the beginning. repeats: see `exact_history`.
    """

    standing: Standing
    ranges: list[tuple[str, str]]
    since: int | None
    checkpoint: tuple[str, int] | None
    save_at: int | None
    ticks: list[DayBounds] = field(default_factory=list)
    start_ms: int = 0
    state: bytes | None = None
    repeats: dict[Identity, int] = field(default_factory=dict)

    def covers(self, day: str) -> bool:
        """Whether a day is one of those to be restated."""
        return any(first <= day <= last for first, last in self.ranges)


def _by_start(wanted: dict[Key, _Work]) -> list[tuple[int, list[Key]]]:
    by_start: dict[int, list[Key]] = {}
    for key, work in wanted.items():
        by_start.setdefault(work.start_ms, []).append(key)
    return list(by_start.items())


def _work(standing: Standing, today: DayBounds) -> _Work:
    ranges = standing.ranges(today.day)
    checkpoint = standing.checkpoint_before(standing.first_day_that_may_differ(ranges, today.day))
    saved_already = checkpoint is not None and checkpoint[0] == today.day
    return _Work(standing, ranges, standing.unsettled_since, checkpoint, None if saved_already else today.start)


@dataclass
class _Folded:
    """An element after its fold.

    changed: the raw rows whose stored effect is not the exact one, with that. basis: the position that the fold has seen.
    """

    key: Key
    work: _Work
    history: History
    changed: list["ChangedRow"]
    basis: int


def _basis(history: History, standing: Standing, watermark: int) -> int:
    """The latest position that is known of an element and that its fold has seen.

    Not always that of the last row: a repeat that was not recognised, and has the time of the first arrival, leaves no row
    of its own, but a mark and a day row. All that the raw log keeps up to the watermark was seen.
    """
    known = (standing.newest_mark.position, standing.live_position)
    return max([history.last_position, *(position for position in known if position <= watermark)])


@dataclass(slots=True)
class ChangedRow:
    """A raw row as it is stored, and what should be stored of its effect. basis: see schemas.events.Correction."""

    row: "StoredRow"
    effect: tuple[Any, ...]
    basis: int = -1


def effect_of(outcome: Outcome) -> tuple[Any, ...]:
    """What is stored of an outcome, in the order of `EFFECT_COLUMNS`."""
    terms = outcome.terms
    limit, hard_limit = (None, None) if terms is None else (terms.limit, terms.hard_limit)
    return (
        outcome.t, outcome.late, outcome.delta, outcome.level, limit, hard_limit, terms is not None, outcome.state,
        outcome.customer, outcome.product,
    )  # fmt: skip


class _Writes:
    """What a batch of elements puts into the store: few large inserts, for ClickHouse makes a part of each."""

    def __init__(self, today: str) -> None:
        self._today = today
        self.days: list[DayRow] = []
        self.rows: list[ChangedRow] = []
        self._checkpoints: list[tuple[Key, int, bytes]] = []
        self._restated: list[tuple[Key, int]] = []

    def add(self, folded: _Folded) -> None:
        """Take what the fold of an element says."""
        work, history, basis = folded.work, folded.history, folded.basis
        self.days += [msgspec.structs.replace(row, position=basis) for row in history.days if work.covers(row.day)]
        for changed in folded.changed:
            changed.basis = basis
        self.rows += folded.changed
        if history.saved is not None:
            self._checkpoints.append((folded.key, basis, history.saved))
        if work.ranges:
            # Not `basis`: a mark that comes into sight after the row that it is about must still be found new.
            self._restated.append((folded.key, min(basis, work.standing.newest_mark.position)))

    def tables(self) -> Iterator[tuple[str, pa.Table]]:
        """The inserts, in order: what says that something is restated comes last."""
        yield "days", restated_days(self.days)
        yield "activity", restated_rows(self.rows)
        today = date.fromisoformat(self._today)
        yield (
            "exact_states",
            _of_elements(
                [key for key, _, _ in self._checkpoints],
                day=pa.array([today] * len(self._checkpoints), pa.date32()),
                position=pa.array([position for _, position, _ in self._checkpoints], pa.uint64()),
                state=pa.array([state for _, _, state in self._checkpoints], pa.binary()),
            ),
        )
        yield (
            "restatements",
            _of_elements(
                [key for key, _ in self._restated],
                position=pa.array([position for _, position in self._restated], pa.uint64()),
                through=pa.array([today] * len(self._restated), pa.date32()),
            ),
        )


def _of_elements(keys: Sequence[Key], **columns: pa.Array) -> pa.Table:
    entitlements, elements = [key[0] for key in keys], [key[1] for key in keys]
    names = {"entitlement": pa.array(entitlements, pa.string()), "element": pa.array(elements, pa.string())}
    return pa.table(names | columns)


def restated_rows(changed: Sequence[ChangedRow]) -> pa.Table:
    """Raw rows as they were stored, with their exact effect, and a version that is not below the one that they had."""
    return rows_anew(
        [item.row for item in changed],
        # A rebuild has seen the same events as the restatement before it, and may know of a lower position for that.
        [item.basis + RESTATED_VERSIONS_FROM for item in changed],
        {name: [item.effect[at] for item in changed] for at, name in enumerate(EFFECT_COLUMNS)},
    )


def restated_days(rows: Sequence[DayRow]) -> pa.Table:
    """Day rows as the columns of the table `days`, as restated ones."""
    table = days_table(rows)
    return table.append_column("restated", pa.array([True] * table.num_rows, pa.bool_()))


def _readable(state: bytes) -> bool:
    try:
        decode_element(state)
    except UnreadableState:
        return False
    return True
