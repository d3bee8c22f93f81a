"""Makes state, day rows, alerts and effects anew from the raw log: the exact fold of every element.

It puts nothing on the topics that others read. The state goes to the changelog topic, from where a worker recovers it as
it would any state; what becomes of the rest is for the caller to say.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from processors.codec import STATE_VERSION, Cursor, StateRecord, element_records
from processors.domain.days import Calendar
from processors.domain.element import Element
from processors.domain.ledger import Outcome, Transition, position_of
from processors.exact import Identity, Plan, RawRow, exact_history
from processors.restate import ChangedRow, effect_of
from processors.standing import Key, RawLogStore, StoredRow, batches_of, standings_of, stored_rows
from schemas.days import DayMark, DayRow, Settled
from schemas.events import Event


@dataclass(frozen=True)
class Told:
    """What was told of an element before it was rebuilt.

    position: of the last event that a stored day row, mark or settlement tells of.
    state, entered_at, peak: what its alerts have led to, with ms and units.
    marked_until: the last day that is marked; '' without any.
    """

    position: int
    state: str
    entered_at: int | None
    peak: int | None
    marked_until: str


@dataclass(frozen=True)
class Rebuilt:
    """An element, made anew.

    changed: raw rows whose stored effect is not the exact one. newest: the position of its last event.
    lost_days: of events that are stored although no day row tells of them: the broker died between the two.
    lost_from: the day of the earliest of these events; None where there are none.
    """

    key: Key
    state: Element
    days: list[DayRow]
    transitions: list[Transition]
    changed: list[ChangedRow]
    newest: int
    lost_days: list[DayRow]
    lost_from: str | None

    def records(self) -> list[StateRecord]:
        """The state as changelog records."""
        return element_records(self.state)

    def lost_mark(self, timezone: str) -> DayMark | None:
        """Marks the days that the lost events may have touched: what was stored of them may be from before."""
        if self.lost_from is None:
            return None
        return DayMark(
            entitlement=self.key[0],
            element=self.key[1],
            first_day=self.lost_from,
            last_day=max(self.lost_from, *(row.day for row in self.days[-1:])),
            timezone=timezone,
            position=self.newest,
            since=0,
        )

    def settled(self, epoch: int) -> Settled:
        """The state is the exact one by the way it was made."""
        # Older than anything that can still come.
        return Settled(entitlement=self.key[0], element=self.key[1], position=position_of(epoch + 1, 0) - 1)


def rebuilt_elements(
    store: RawLogStore,
    *,
    calendar: Calendar,
    late_after_ms: int,
    epoch: int,
    everything: bool,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[Rebuilt]:
    """Every element of the raw log. One is in memory at a time.

    epoch: the highest there is anything of; the state goes on with the next one.
    everything: day rows and alerts are made anew too, so the state does not go on where those that were told have led.
    on_progress(done, total): called with numbers of elements.
    """
    elements = store.logged_elements()
    done = 0
    for batch in batches_of(elements):
        told = {} if everything else _told(store, batch)
        repeats: dict[str, dict[Identity, int]] = {}
        for entitlement, source, event_id, first, _ in store.repeats(batch, 0):
            repeats.setdefault(entitlement, {})[source, event_id] = first
        rows = stored_rows(store.rows(batch, 0), {})
        for key, of_element in groupby(rows, key=lambda row: (row.raw.entitlement, row.raw.element)):
            yield rebuilt_element(
                key,
                of_element,
                calendar=calendar,
                late_after_ms=late_after_ms,
                epoch=epoch,
                repeats=repeats.get(key[0], {}),
                told=told.get(key),
            )
        done += len(batch)
        on_progress(done, len(elements))


def _told(store: RawLogStore, batch: Sequence[Key]) -> dict[Key, Told]:
    standings = standings_of(store, batch)
    live: dict[Key, dict[str, Any]] = {(row["entitlement"], row["element"]): row for row in store.live_states(batch)}
    found = {}
    for key in batch:
        state = live.get(key, {"state": "within", "entered_at": None, "peak": None})
        standing = standings[key]
        last_marked = max((mark.last_day for mark in standing.marks), default="")
        newest_mark = max((mark.position for mark in standing.marks), default=0)
        position = max(standing.live_position, standing.settled, newest_mark)
        found[key] = Told(position, state["state"], state["entered_at"], state["peak"], last_marked)
    return found


def rebuilt_element(
    key: Key,
    rows: Iterator[StoredRow],
    *,
    calendar: Calendar,
    late_after_ms: int,
    epoch: int,
    repeats: dict[Identity, int],
    told: Told | None,
) -> Rebuilt:
    """One element made anew from its rows, in order of time, then position.

    told: None where all that was told is made anew as well.
    """
    transitions: list[Transition] = []
    changed: list[ChangedRow] = []
    current: list[StoredRow] = []
    earliest_lost: list[int] = []

    def raw_rows() -> Iterator[RawRow]:
        for row in rows:
            current[:] = [row]
            yield row.raw

    def on_outcome(raw: RawRow, event: Event, outcome: Outcome) -> None:
        if outcome.transition is not None:
            transitions.append(outcome.transition)
        effect = effect_of(outcome)
        if current[0].effect != effect:
            changed.append(ChangedRow(current[0], effect))
        if told is not None and raw.position > told.position and not earliest_lost:
            earliest_lost.append(event.time)

    history = exact_history(
        key,
        raw_rows(),
        calendar=calendar,
        late_after_ms=late_after_ms,
        plan=Plan(),
        repeats=repeats,
        on_outcome=on_outcome,
    )
    state = history.present
    head = state.head
    # What a correction was computed from is not this state.
    head.correctable_from = position_of(epoch + 1, 0)
    if told is not None:
        if head.day is not None and head.day.day <= told.marked_until:
            head.day.marked = True
        # The next event brings the alert that is due, if the exact state is another than alerts have led to.
        head.state = told.state  # type: ignore[assignment]
        limit = head.terms.limit if head.terms is not None and head.terms.limit is not None else None
        head.entered_at, head.peak = told.entered_at, told.peak or 0
        head.peak_overage = max(0, head.peak - limit) if told.entered_at is not None and limit is not None else 0
    lost_from = calendar.day_of(earliest_lost[0]).day if earliest_lost else None
    lost_days = [row for row in history.days if told is not None and row.position > told.position]
    return Rebuilt(key, state, history.days, transitions, changed, history.last_position, lost_days, lost_from)


def cursor_after_rebuild(epoch: int, timezone: str, incarnation: str = "", offset: int = -1) -> Cursor:
    """The cursor of a partition whose state was rebuilt.

    Without an incarnation it goes on with whichever topic there is, from its beginning: nothing new is taken for already
    applied. With one, the raw log holds everything of that topic up to `offset`. Either way a new epoch begins, so that
    what comes now is newer than all that is stored.
    """
    if not incarnation:
        return Cursor(STATE_VERSION, "", epoch, -1, timezone)
    return Cursor(STATE_VERSION, incarnation, epoch + 1, offset, timezone)
