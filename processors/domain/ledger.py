"""The ledger: folds the events of one source partition, one at a time, into levels, day rows and transitions.

`apply` is the whole meaning of the log. Live, it is given events in order of arrival; for the exact numbers it is given
each event once, ordered by time: then no event is late, and the two are equal when all arrived in order.
"""

from msgspec import Struct

from processors.domain.corrections import correct
from processors.domain.days import Calendar, Day
from processors.domain.effects import EFFECTS
from processors.domain.element import NEVER, Element, Head, last_change
from processors.domain.holds import (
    BLOCK_IDS,
    IDENTITY_BYTES,
    MAX_COUNTER_IDS,
    Hold,
    IdBlock,
    contains,
    identity_of,
)
from processors.domain.overdraft import OVERDRAWN, State, Terms, alert_type, state_of
from schemas.alerts import AlertType
from schemas.days import DayMark, DayRow, Settled
from schemas.events import Correction, Event

_BLOCK_BYTES = BLOCK_IDS * IDENTITY_BYTES
_EXPIRIES = frozenset({"seat.expired", "feature.expired"})
_COUNTER_EVENTS = frozenset({"feature.used", "feature.reset"})
_HOLD_EVENTS = frozenset(
    {
        "seat.activated",
        "seat.refreshed",
        "seat.deactivated",
        "feature.checked_out",
        "feature.returned",
        "feature.refreshed",
    }
)
# An epoch counts the incarnations of the source topic; offsets start again in each.
_EPOCH_SHIFT = 48


def position_of(epoch: int, offset: int) -> int:
    """One sortable number for (epoch, offset)."""
    return (epoch << _EPOCH_SHIFT) | offset


class Transition(Struct, frozen=True, gc=False, kw_only=True):
    """A change of state by one event. Units; `at` and `entered_at` in ms; the last four only on `overdraft.left`."""

    type: AlertType
    entitlement: str
    element: str
    customer: str | None
    product: str | None
    before: State
    after: State
    level: int
    limit: int | None
    hard_limit: int | None
    cause_source: str
    cause_id: str
    cause_type: str
    at: int
    entered_at: int | None = None
    duration_ms: int | None = None
    peak: int | None = None
    peak_overage: int | None = None


class Outcome(Struct, frozen=True, gc=False):
    """What one event did to one element. t: where it was placed (ms). delta, level: units.

    effect: it changed something (not: late, a denial, an expiry of nothing, a correction of what is right).
    """

    element: str
    t: int
    late: bool
    effect: bool
    delta: int
    level: int
    terms: Terms | None
    state: State
    customer: str | None
    product: str | None
    transition: Transition | None


class Changes(Struct, frozen=True):
    """What differs since it was last taken. holds, blocks: the value is None where it is gone.

    days: the current row of each day that changed. marks: disordered days, at most one range per element.
    settled: elements whose live state turned out to be the exact one.
    """

    heads: list[Head]
    holds: list[tuple[Head, str, Hold | None]]
    blocks: list[tuple[Head, int, IdBlock | None]]
    days: list[DayRow]
    marks: list[DayMark]
    settled: list[Settled]


class Ledger:
    """The state of one source partition, and the fold over its events."""

    def __init__(self, calendar: Calendar, late_after_ms: int) -> None:
        self._calendar = calendar
        self._late_after = late_after_ms
        self.elements: dict[tuple[str, str], Element] = {}
        self._changed: list[Element] = []
        self._finished_days: list[DayRow] = []
        self._marks: dict[tuple[str, str], DayMark] = {}
        self._settled: list[Settled] = []

    def apply(self, event: Event, position: int) -> list[Outcome]:
        """Fold one event in: one outcome for each element that it touches, none where it is a repeat.

        position: where it stands in the log (`position_of`); higher than all before it.
        """
        if event.terms is not None:
            outcomes = [self.apply_to(name, event, position) for name in event.terms]
            return [outcome for outcome in outcomes if outcome is not None]
        assert event.element is not None
        outcome = self.apply_to(event.element, event, position)
        return [] if outcome is None else [outcome]

    def apply_to(self, name: str, event: Event, position: int) -> Outcome | None:
        """Fold one event into one element; None where it is a repeat of one that is remembered."""
        key = (event.entitlement, name)
        element = self.elements.get(key)
        if element is None:
            element = self.elements[key] = Element(Head(event.entitlement, name))
        head = element.head
        hold = element.holds.get(event.seat_id) if event.seat_id is not None else None

        identity = identity_of(event.source, event.id)
        if element.knows(identity) or (hold is not None and contains(hold.ids, identity)):
            return None
        if not element.changed:
            element.changed = True
            self._changed.append(element)

        if event.correction is not None:
            return self._correct(element, event, event.correction, identity, position)
        late = self._is_late(head, hold, event)
        if event.time < head.clock:
            self._note_disorder(element, event.time, position)
        self._remember(element, identity, event.time)
        if late:
            self._note_late(element, hold, event, position)
            return _outcome(head, head.clock, late=True)

        t = head.clock = max(event.time, head.clock)
        day = self._day_at(element, t)
        day.position = position
        element.day_changed = True
        if day.marked or head.unsettled_since:
            self._mark_day(element, day, position)
        if event.customer:
            head.event_customer = event.customer
        if event.product:
            head.event_product = event.product

        before = head.level
        effect = EFFECTS[event.type](element, hold, event, identity, position)
        level, terms = head.level, head.terms
        day.see_level(level, terms)
        if element.closed:
            self._forget_closed_holds(element)
        transition = _transition(head, event, t)
        return _outcome(head, t, effect=effect, delta=level - before, transition=transition)

    def open_day(self, entitlement: str, name: str, start: int) -> None:
        """Bring an element to the first instant (ms) of a day, which so gets a row even if it has no events."""
        element = self.elements[entitlement, name]
        self._day_at(element, start)
        element.day_changed = True
        if not element.changed:
            element.changed = True
            self._changed.append(element)

    def take_changes(self) -> Changes:
        """What changed since the last call; the ledger then counts it as taken."""
        heads: list[Head] = []
        holds: list[tuple[Head, str, Hold | None]] = []
        blocks: list[tuple[Head, int, IdBlock | None]] = []
        days = self._finished_days
        for element in self._changed:
            head = element.head
            heads.append(head)
            if element.changed_holds:
                holds += [(head, seat, element.holds.get(seat)) for seat in element.changed_holds]
                element.changed_holds.clear()
            if element.changed_blocks:
                blocks += [(head, number, block) for number, block in element.changed_blocks.items()]
                element.changed_blocks.clear()
            if element.day_changed:
                element.day_changed = False
                days.append(self._day_row(head))
            element.changed = False
        changes = Changes(heads, holds, blocks, days, list(self._marks.values()), self._settled)
        self._changed, self._finished_days, self._marks, self._settled = [], [], {}, []
        return changes

    def _correct(self, element: Element, event: Event, correction: Correction, identity: bytes, position: int) -> Outcome:
        """Apply a correction: it stands at the clock, which does not move, and is never late."""
        head = element.head
        self._remember(element, identity, head.clock)
        before = head.level
        done = correct(element, correction, position)
        if done.clean and correction.parts == 1 and correction.basis >= head.disordered_position:
            head.unsettled_since = 0
            self._settled.append(Settled(entitlement=head.entitlement, element=head.element, position=position))
        if not done.changed:
            return _outcome(head, head.clock)
        day = self._day_at(element, head.clock)
        day.position = position
        if not head.unsettled_since:
            head.unsettled_since, head.marked_until = position, day.end
        element.day_changed = True
        self._mark_day(element, day, position)
        day.see_terms(head.terms)
        day.see_level(head.level, head.terms)
        transition = _transition(head, event, head.clock)
        return _outcome(head, head.clock, effect=True, delta=head.level - before, transition=transition)

    def _is_late(self, head: Head, hold: Hold | None, event: Event) -> bool:
        kind, time = event.type, event.time
        if kind == "entitlement.changed":
            return time < head.terms_at
        if kind in _EXPIRIES:
            return time < last_change(head, hold)
        if time < head.clock - self._late_after:
            return True
        if kind in _COUNTER_EVENTS or event.level is not None:
            return time < head.counter_since
        return kind in _HOLD_EVENTS and time < last_change(head, hold)

    def _day_at(self, element: Element, t: int) -> Day:
        """The day of t, brought forward to t with the level and the terms that held until then."""
        head = element.head
        day = head.day
        if day is None or t >= day.end:
            if element.day_changed:
                # It is over, and nothing more will be added to it: readers complete it to its end.
                self._finished_days.append(self._day_row(head))
            day = head.day = Day.opened(self._calendar.day_of(t), head.level, head.terms)
        day.advance(t, head.level, head.terms)
        return day

    def _note_disorder(self, element: Element, time: int, position: int) -> None:
        """An event came with a time before the clock: from here on the live state may differ from the exact one."""
        head = element.head
        head.disordered_position = position
        if not head.unsettled_since:
            head.unsettled_since = position
        today = head.day
        assert today is not None
        today.marked = True
        head.marked_until = today.end
        self._mark(head, self._calendar.day_of(time).day, today.day, position)

    def _mark_day(self, element: Element, day: Day, position: int) -> None:
        """An event falls on a day that is to be restated: the row that it leaves is newer than the restated one."""
        head = element.head
        first = day.day
        if head.unsettled_since and head.marked_until < day.start:
            first = self._calendar.day_of(head.marked_until).day
        if head.unsettled_since:
            head.marked_until = day.end
        day.marked = True
        self._mark(head, first, day.day, position)

    def _note_late(self, element: Element, hold: Hold | None, event: Event, position: int) -> None:
        """A late event changes the exact state, if not ours: a correction from before it must not undo what it says."""
        if hold is not None and event.seat_id is not None:
            hold.position = position
            element.changed_holds.add(event.seat_id)
        elif event.holds is not None:
            element.head.cannot_correct_before(position)
        else:
            element.head.late_position = position

    def _mark(self, head: Head, first: str, last: str, position: int) -> None:
        key = (head.entitlement, head.element)
        known = self._marks.get(key)
        if known is not None:
            first, last = min(first, known.first_day), max(last, known.last_day)
        self._marks[key] = DayMark(
            entitlement=head.entitlement,
            element=head.element,
            first_day=first,
            last_day=last,
            timezone=self._calendar.timezone,
            position=position,
            since=head.unsettled_since,
        )

    def _remember(self, element: Element, identity: bytes, time: int) -> None:
        head = element.head
        head.recent += identity
        head.recent_latest = max(head.recent_latest, time)
        if len(head.recent) < _BLOCK_BYTES:
            return
        block = IdBlock(head.next_block, head.recent_latest, head.recent)
        head.recent, head.recent_latest, head.next_block = b"", NEVER, head.next_block + 1
        element.add_block(block)
        element.changed_blocks[block.number] = block
        # The last full block stays whatever its age; of a counter, all that a repeat could still get past.
        kept = MAX_COUNTER_IDS // BLOCK_IDS + 1 if head.is_counter or head.kind == "counter" else 1
        horizon = max(head.clock, time) - self._late_after
        while len(element.blocks) > kept or (len(element.blocks) > 1 and element.blocks[0].latest < horizon):
            gone = element.drop_oldest_block()
            element.changed_blocks[gone.number] = None

    def _forget_closed_holds(self, element: Element) -> None:
        # An event that a forgotten hold would have made late is late by its age already.
        horizon = element.head.clock - self._late_after
        while element.closed:
            seat = next(iter(element.closed))
            if element.holds[seat].changed_at >= horizon:
                return
            del element.closed[seat]
            element.head.cannot_correct_before(element.holds.pop(seat).position)
            element.changed_holds.add(seat)

    def _day_row(self, head: Head) -> DayRow:
        day = head.day
        assert day is not None
        terms = head.terms
        in_overdraft = head.entered_at is not None
        return DayRow(
            entitlement=head.entitlement,
            element=head.element,
            day=day.day,
            timezone=self._calendar.timezone,
            day_start=day.start,
            day_end=day.end,
            customer=head.customer,
            product=head.product,
            name=head.name,
            kind=head.kind,
            opening=day.opening,
            closing=head.level,
            min=day.min,
            max=day.max,
            limit=day.limit,
            hard_limit=day.hard_limit,
            terms_known=day.terms_known,
            overdraft_ms=day.overdraft_ms,
            unit_ms=day.unit_ms,
            peak_overage=day.peak_overage,
            activations=day.activations,
            deactivations=day.deactivations,
            refreshes=day.refreshes,
            denials=day.denials,
            units_used=day.units_used,
            as_of=day.as_of,
            closing_limit=terms.limit if terms is not None else None,
            closing_hard_limit=terms.hard_limit if terms is not None else None,
            closing_terms_known=terms is not None,
            state=head.state,
            entered_at=head.entered_at,
            peak=head.peak if in_overdraft else None,
            position=day.position,
        )


def _outcome(
    head: Head, t: int, *, late: bool = False, effect: bool = False, delta: int = 0, transition: Transition | None = None
) -> Outcome:
    """What an event did to an element, which now stands as its head says."""
    return Outcome(
        head.element, t, late, effect, delta, head.level, head.terms, head.state, head.customer, head.product, transition
    )


def _transition(head: Head, event: Event, t: int) -> Transition | None:
    """Bring the state up to date with level and terms; the transition, if that changed it."""
    terms = head.terms
    before, after = head.state, state_of(head.level, terms)
    if before == after == "within":
        return None
    limit = terms.limit if terms is not None else None
    entered_at, peak, peak_overage = head.entered_at, head.peak, head.peak_overage
    if after in OVERDRAWN and limit is not None:
        if entered_at is None:
            head.entered_at, head.peak, head.peak_overage = t, head.level, head.level - limit
        else:
            head.peak, head.peak_overage = max(peak, head.level), max(peak_overage, head.level - limit)
    else:
        head.entered_at, head.peak, head.peak_overage = None, 0, 0
    if before == after:
        return None
    head.state = after
    left = entered_at is not None and after not in OVERDRAWN
    return Transition(
        type=alert_type(before, after),
        entitlement=head.entitlement,
        element=head.element,
        customer=head.customer,
        product=head.product,
        before=before,
        after=after,
        level=head.level,
        limit=limit,
        hard_limit=terms.hard_limit if terms is not None else None,
        cause_source=event.source,
        cause_id=event.id,
        cause_type=event.type,
        at=t,
        entered_at=entered_at if left else None,
        duration_ms=t - entered_at if left and entered_at is not None else None,
        peak=peak if left else None,
        peak_overage=peak_overage if left else None,
    )
