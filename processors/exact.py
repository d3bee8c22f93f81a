"""The exact numbers of one element: the fold over its events, each once, ordered by time, then arrival.

Beside them the live state is followed, by the same fold in order of arrival. Both start from a checkpoint, the exact state
at a midnight before which nothing has changed since; and only what came out of order is held in memory.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from processors.codec import decode_element, encode_element
from processors.domain.days import Calendar, DayBounds
from processors.domain.element import Element, Head
from processors.domain.ledger import Ledger, Outcome, position_of
from schemas.days import DayRow
from schemas.events import Event, decode


@dataclass(frozen=True, slots=True)
class RawRow:
    """What the fold needs of one row of the raw log. event: the original bytes."""

    entitlement: str
    element: str
    epoch: int
    offset: int
    event: bytes

    @property
    def position(self) -> int:
        """Where it stood in the log."""
        return position_of(self.epoch, self.offset)

    def read(self) -> Event:
        """The event. Raises schemas.events.Refused where this release cannot read what an earlier one has applied."""
        return decode(self.event, key=self.entitlement.encode(), appended_at=None)


Identity = tuple[str, str]


@dataclass(frozen=True)
class Plan:
    """What is wanted of an element's history.

    since: the position of the first event whose live effect may differ from the exact one; None: the live state is not
        wanted.
    ticks: days, in order, for which a row is wanted even where they have no events.
    checkpoint: where to start: the encoded exact state at the instant `start` (ms since 1970), and all rows are from then
        on; None: at the beginning.
    save_at: an instant (ms) at which the exact state is wanted, encoded.
    """

    since: int | None = None
    ticks: Sequence[DayBounds] = ()
    checkpoint: bytes | None = None
    save_at: int | None = None


@dataclass
class History:
    """What an element's events make exactly.

    present: the state after all of them.
    live: the state that the worker has after them, where it was asked for. live_position: of the last event from `since` on
        that its day rows tell of; -1 where there is none.
    days: each day with events, or asked for, as the fold leaves it. saved: the encoded state at the instant asked for.
    last_position: of the last event to arrive; -1 without any.
    """

    present: Element
    live: Element | None
    live_position: int
    days: list[DayRow]
    saved: bytes | None
    last_position: int


def exact_history(
    key: tuple[str, str],
    rows: Iterable[RawRow],
    *,
    calendar: Calendar,
    late_after_ms: int,
    plan: Plan,
    repeats: dict[Identity, int],
    on_outcome: Callable[[RawRow, Event, Outcome], None] | None = None,
) -> History:
    """Fold one element.

    key: (entitlement, element). rows: in order of time, then position.
    repeats: of events that arrived more than once with different times, the position of the first arrival, which is the
        one that counts.
    on_outcome: called with what each counted event did exactly.
    """
    exact = _ledger(key, plan.checkpoint, calendar, late_after_ms)
    live = _ledger(key, plan.checkpoint, calendar, late_after_ms) if plan.since is not None else None
    disordered: list[tuple[int, Event]] = []
    ticks = list(reversed(plan.ticks))
    saved: bytes | None = None
    last_position = live_position = -1
    for row in rows:
        event, position = row.read(), row.position
        last_position = max(last_position, position)
        if live is not None and plan.since is not None and position >= plan.since:
            disordered.append((position, event))
        elif live is not None and event.correction is None and _counts(event, position, repeats):
            live.apply_to(key[1], event, position)
        if event.correction is not None or not _counts(event, position, repeats):
            continue
        if plan.save_at is not None and saved is None and event.time >= plan.save_at:
            _open_days(exact, key, ticks, plan.save_at - 1)
            saved = encode_element(exact.elements[key])
        _open_days(exact, key, ticks, event.time)
        outcome = exact.apply_to(key[1], event, position)
        if on_outcome is not None and outcome is not None:
            on_outcome(row, event, outcome)
    if plan.save_at is not None and saved is None:
        _open_days(exact, key, ticks, plan.save_at - 1)
        saved = encode_element(exact.elements[key])
    if ticks:
        _open_days(exact, key, ticks, ticks[0].start)
    if live is not None:
        for position, event in sorted(disordered, key=lambda pair: pair[0]):
            outcome = live.apply_to(key[1], event, position)
            if outcome is not None and not outcome.late and (event.correction is None or outcome.effect):
                live_position = position
    days = exact.take_changes().days
    return History(
        exact.elements[key], live.elements[key] if live is not None else None, live_position, days, saved, last_position
    )


def _ledger(key: tuple[str, str], checkpoint: bytes | None, calendar: Calendar, late_after_ms: int) -> Ledger:
    """A ledger with this one element, as it was."""
    ledger = Ledger(calendar, late_after_ms)
    ledger.elements[key] = Element(Head(*key)) if checkpoint is None else decode_element(checkpoint)
    return ledger


def _counts(event: Event, position: int, repeats: dict[Identity, int]) -> bool:
    """Whether this is the first arrival of its event."""
    return repeats.get((event.source, event.id), position) == position


def _open_days(ledger: Ledger, key: tuple[str, str], ticks: list[DayBounds], until: int) -> None:
    """Bring the element to the beginning of each day asked for that starts up to `until`. ticks: the next one last."""
    while ticks and ticks[-1].start <= until:
        ledger.open_day(*key, ticks.pop().start)
