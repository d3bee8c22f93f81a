"""Makes the worker's state anew from the raw log: the exact fold, each event once, ordered by time, then arrival.

It puts nothing out. What it gives goes to the changelog topic, from where a worker recovers it as it would any state.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from processors.codec import STATE_VERSION, Cursor, StateRecord, encode_changes, encode_cursor
from processors.domain.days import Calendar
from processors.domain.ledger import Ledger, position_of
from processors.partitions import partition_of
from schemas.events import Event, decode


@dataclass(frozen=True)
class RawRow:
    """What a rebuild needs of one row of the raw log. event: the original bytes."""

    entitlement: str
    element: str
    epoch: int
    offset: int
    event: bytes


def rebuilt_state(
    rows: Iterable[RawRow], calendar: Calendar, late_after_ms: int, partitions: int
) -> Iterator[tuple[int, list[StateRecord]]]:
    """The state after the whole raw log, as (partition, changelog records): one item for each entitlement, then the cursors.

    rows: all rows of one entitlement together; the memory needed is that of the largest entitlement's log.
    The cursors belong to no topic incarnation: nothing that comes next is taken for already applied.
    """
    epochs: dict[int, int] = {}
    for entitlement, of_entitlement in groupby(rows, key=lambda row: row.entitlement):
        partition = partition_of(entitlement, partitions)
        ledger = Ledger(calendar, late_after_ms)
        for row, event in _exact_order(entitlement, of_entitlement):
            ledger.apply_to(row.element, event, position_of(row.epoch, row.offset))
            epochs[partition] = max(epochs.get(partition, 0), row.epoch)
        cursor = _unstarted(epochs.get(partition, 0), calendar)
        yield partition, encode_changes(ledger.take_changes(), cursor)
    for partition, epoch in epochs.items():
        cursor = _unstarted(epoch, calendar)
        yield partition, [encode_cursor(cursor)]


def _exact_order(entitlement: str, rows: Iterable[RawRow]) -> list[tuple[RawRow, Event]]:
    """Each event once (of its arrivals the first counts), ordered by time, then arrival."""
    first_positions: dict[tuple[str, str], int] = {}
    kept = []
    for row in sorted(rows, key=lambda row: (row.epoch, row.offset)):
        event = decode(row.event, key=entitlement.encode(), appended_at=None)
        position = position_of(row.epoch, row.offset)
        # An `entitlement.changed` has one row for each element that it names, all at one position.
        if first_positions.setdefault((event.source, event.id), position) == position:
            kept.append((row, event))
    kept.sort(key=lambda pair: pair[1].time)
    return kept


def _unstarted(epoch: int, calendar: Calendar) -> Cursor:
    return Cursor(STATE_VERSION, "", epoch, -1, calendar.timezone)
