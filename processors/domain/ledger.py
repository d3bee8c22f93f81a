"""The ledger: folds the events of one source partition, one at a time, into levels, day rows and transitions.

`apply` is the whole meaning of the log. Live, it is given events in order of arrival; for the exact numbers it is given
each event once, ordered by time: then no event is late, and the two are equal when all arrived in order.
"""

from collections.abc import Callable

from msgspec import Struct, field

from processors.domain.days import Calendar, Day
from processors.domain.holds import (
    BLOCK_IDS,
    IDENTITY_BYTES,
    MAX_COUNTER_IDS,
    Hold,
    IdBlock,
    contains,
    identity_of,
)
from processors.domain.overdraft import OVERDRAWN, State, Terms, alert_type, state_of, terms_of
from schemas.alerts import AlertType
from schemas.days import DayMark, DayRow
from schemas.events import Event

_NEVER = -1
_BLOCK_BYTES = BLOCK_IDS * IDENTITY_BYTES
# An epoch counts the incarnations of the source topic; offsets start again in each.
_EPOCH_SHIFT = 48


def position_of(epoch: int, offset: int) -> int:
    """One sortable number for (epoch, offset)."""
    return (epoch << _EPOCH_SHIFT) | offset


def epoch_and_offset(position: int) -> tuple[int, int]:
    """The inverse of `position_of`."""
    return position >> _EPOCH_SHIFT, position & ((1 << _EPOCH_SHIFT) - 1)


class Head(Struct, gc=False, array_like=True):
    """An element's state without its holds. Units, ms since 1970; -1 where something never happened.

    clock: never runs back. total: of a counter. counter_since, snapshot_at, terms_at: time of the last reset or counter
    snapshot, of the last pool snapshot, of the terms in force.
    entered_at, peak, peak_overage: of the overdraft it is in.
    recent, recent_latest: the open block of remembered ids, and the latest time among them.
    """

    entitlement: str
    element: str
    level: int = 0
    total: int = 0
    clock: int = _NEVER
    state: State = "within"
    terms: Terms | None = None
    terms_at: int = _NEVER
    counter_since: int = _NEVER
    snapshot_at: int = _NEVER
    is_counter: bool = False
    terms_customer: str | None = None
    terms_product: str | None = None
    event_customer: str | None = None
    event_product: str | None = None
    name: str | None = None
    lease_policy: str | None = None
    entered_at: int | None = None
    peak: int = 0
    peak_overage: int = 0
    day: Day | None = None
    recent: bytes = b""
    recent_latest: int = _NEVER
    next_block: int = 0

    @property
    def customer(self) -> str | None:
        """Of the latest terms, else of the latest event that names one."""
        return self.terms_customer or self.event_customer

    @property
    def product(self) -> str | None:
        """Of the latest terms, else of the latest event that names one."""
        return self.terms_product or self.event_product

    @property
    def kind(self) -> str:
        """`pool` or `counter`: as the terms say, else by the events seen."""
        if self.terms is not None and self.terms.kind is not None:
            return self.terms.kind
        return "counter" if self.is_counter else "pool"


class Element(Struct):
    """An element in memory: its head, its holds by seat, the closed ones among them, its full blocks of ids.

    changed, changed_holds, changed_blocks, day_changed: what differs from the state that was last taken.
    """

    head: Head
    holds: dict[str, Hold] = field(default_factory=dict)
    closed: dict[str, None] = field(default_factory=dict)
    blocks: list[IdBlock] = field(default_factory=list)
    changed: bool = False
    day_changed: bool = False
    changed_holds: set[str] = field(default_factory=set)
    changed_blocks: dict[int, IdBlock | None] = field(default_factory=dict)

    def knows(self, identity: bytes) -> bool:
        """Whether an event with this identity is remembered."""
        if contains(self.head.recent, identity):
            return True
        # A loop, not any(): a generator costs more than the one or two looks that it takes here.
        for block in self.blocks:  # noqa: SIM110
            if contains(block.ids, identity):
                return True
        return False


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

    effect: it changed something (not: late, a denial, an expiry of nothing).
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
    """

    heads: list[Head]
    holds: list[tuple[Head, str, Hold | None]]
    blocks: list[tuple[Head, int, IdBlock | None]]
    days: list[DayRow]
    marks: list[DayMark]


class Ledger:
    """The state of one source partition, and the fold over its events."""

    def __init__(self, calendar: Calendar, late_after_ms: int) -> None:
        self._calendar = calendar
        self._late_after = late_after_ms
        self.elements: dict[tuple[str, str], Element] = {}
        self._changed: list[Element] = []
        self._finished_days: list[DayRow] = []
        self._marks: dict[tuple[str, str], DayMark] = {}

    def apply(self, event: Event, position: int) -> list[Outcome]:
        """Fold one event in: one outcome for each element that it touches, none where it is a repeat.

        position: where it stands in the log (`position_of`); higher than all before it.
        """
        if event.terms is not None:
            outcomes = [self.apply_to(name, event, position) for name in event.terms]
            return [outcome for outcome in outcomes if outcome is not None]
        outcome = self.apply_to(event.element or "", event, position)
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

        late = self._is_late(head, hold, event)
        if event.time < head.clock:
            self._mark(key, event.time, head.clock, position)
        self._remember(element, identity, event)
        if late:
            return Outcome(
                name, head.clock, True, False, 0, head.level, head.terms, head.state, head.customer, head.product, None
            )

        t = head.clock = max(event.time, head.clock)
        day = self._day_at(element, t)
        day.position = position
        element.day_changed = True
        if event.customer:
            head.event_customer = event.customer
        if event.product:
            head.event_product = event.product

        before = head.level
        effect = _EFFECTS[event.type](element, hold, event, identity, position)
        level, terms = head.level, head.terms
        day.see_level(level, terms)
        if element.closed:
            self._forget_closed_holds(element)
        transition = _transition(head, event, t)
        return Outcome(
            name, t, False, effect, level - before, level, terms, head.state, head.customer, head.product, transition
        )

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
        changes = Changes(heads, holds, blocks, days, list(self._marks.values()))
        self._changed, self._finished_days, self._marks = [], [], {}
        return changes

    def _is_late(self, head: Head, hold: Hold | None, event: Event) -> bool:
        kind, time = event.type, event.time
        if kind == "entitlement.changed":
            return time < head.terms_at
        if kind in _EXPIRIES:
            return time < _last_change(head, hold)
        if time < head.clock - self._late_after:
            return True
        if kind in _COUNTER_EVENTS or event.level is not None:
            return time < head.counter_since
        return kind in _HOLD_EVENTS and time < _last_change(head, hold)

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

    def _mark(self, key: tuple[str, str], time: int, t: int, position: int) -> None:
        first, last = self._calendar.day_of(time).day, self._calendar.day_of(t).day
        known = self._marks.get(key)
        if known is not None:
            first, last = min(first, known.first_day), max(last, known.last_day)
        self._marks[key] = DayMark(
            entitlement=key[0],
            element=key[1],
            first_day=first,
            last_day=last,
            timezone=self._calendar.timezone,
            position=position,
        )

    def _remember(self, element: Element, identity: bytes, event: Event) -> None:
        head = element.head
        head.recent += identity
        head.recent_latest = max(head.recent_latest, event.time)
        if len(head.recent) < _BLOCK_BYTES:
            return
        block = IdBlock(head.next_block, head.recent_latest, head.recent)
        head.recent, head.recent_latest, head.next_block = b"", _NEVER, head.next_block + 1
        element.blocks.append(block)
        element.changed_blocks[block.number] = block
        # The last full block stays whatever its age; of a counter, all that a repeat could still get past.
        kept = MAX_COUNTER_IDS // BLOCK_IDS + 1 if head.is_counter or head.kind == "counter" else 1
        horizon = max(head.clock, event.time) - self._late_after
        while len(element.blocks) > kept or (len(element.blocks) > 1 and element.blocks[0].latest < horizon):
            gone = element.blocks.pop(0)
            element.changed_blocks[gone.number] = None

    def _forget_closed_holds(self, element: Element) -> None:
        # An event that a forgotten hold would have made late is late by its age already.
        horizon = element.head.clock - self._late_after
        while element.closed:
            seat = next(iter(element.closed))
            if element.holds[seat].changed_at >= horizon:
                return
            del element.closed[seat], element.holds[seat]
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


def _last_change(head: Head, hold: Hold | None) -> int:
    """A pool snapshot is the last change of every seat that it does not name, known or not."""
    return head.snapshot_at if hold is None else max(hold.changed_at, head.snapshot_at)


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


# --- Effects: one function per kind of event. Each changes holds, total or terms, keeps `level` their sum, counts the
# --- event in its day, and says whether it changed anything.

_Effect = Callable[[Element, Hold | None, Event, bytes, int], bool]


def _set_hold(
    element: Element, hold: Hold | None, seat: str, quantity: int, lease_end: int | None, event: Event, identity: bytes,
    position: int,
) -> None:  # fmt: skip
    """Write a hold as this event leaves it, and the level with it."""
    head = element.head
    if hold is None:
        hold = element.holds[seat] = Hold(0, event.time, position, None, b"")
    head.level += quantity - hold.quantity
    if quantity == 0:
        element.closed.pop(seat, None)
        element.closed[seat] = None
    elif hold.quantity == 0:
        element.closed.pop(seat, None)
    if event.time == hold.changed_at:
        hold.ids += identity
    else:
        hold.ids = identity
    hold.quantity, hold.lease_end, hold.changed_at, hold.position = quantity, lease_end, event.time, position
    element.changed_holds.add(seat)


def _activated(element: Element, hold: Hold | None, event: Event, identity: bytes, position: int) -> bool:
    _day(element).activations += 1
    return _open(element, hold, event, identity, position, 1)


def _refreshed(element: Element, hold: Hold | None, event: Event, identity: bytes, position: int) -> bool:
    _day(element).refreshes += 1
    # A refresh of a hold that is not open opens it: the server says that it is in use.
    return _open(element, hold, event, identity, position, event.quantity or 1)


def _open(element: Element, hold: Hold | None, event: Event, identity: bytes, position: int, quantity: int) -> bool:
    if hold is not None and hold.quantity:
        quantity = hold.quantity
    _set_hold(element, hold, _seat(event), quantity, event.lease_end, event, identity, position)
    return True


def _checked_out(element: Element, hold: Hold | None, event: Event, identity: bytes, position: int) -> bool:
    _day(element).activations += 1
    quantity = (event.quantity or 1) + (hold.quantity if hold is not None else 0)
    _set_hold(element, hold, _seat(event), quantity, event.lease_end, event, identity, position)
    return True


def _given_back(element: Element, hold: Hold | None, event: Event, identity: bytes, position: int) -> bool:
    _day(element).deactivations += 1
    held = hold.quantity if hold is not None else 0
    # Without a quantity (as always with seats) all of it goes back; a hold never goes below 0.
    left = 0 if event.quantity is None else max(0, held - event.quantity)
    lease_end = hold.lease_end if hold is not None and left else None
    _set_hold(element, hold, _seat(event), left, lease_end, event, identity, position)
    return True


def _expired(element: Element, hold: Hold | None, event: Event, identity: bytes, position: int) -> bool:
    if hold is None or not hold.quantity or hold.lease_end is None or hold.lease_end > event.time:
        return False
    _day(element).deactivations += 1
    _set_hold(element, hold, _seat(event), 0, None, event, identity, position)
    return True


def _denied(element: Element, hold: Hold | None, event: Event, identity: bytes, position: int) -> bool:
    _day(element).denials += 1
    return False


def _used(element: Element, hold: Hold | None, event: Event, identity: bytes, position: int) -> bool:
    head, quantity = element.head, event.quantity or 1
    head.is_counter = True
    _day(element).units_used += quantity
    head.total += quantity
    head.level += quantity
    return True


def _reset(element: Element, hold: Hold | None, event: Event, identity: bytes, position: int) -> bool:
    return _set_total(element.head, 0, event.time)


def _set_total(head: Head, total: int, time: int) -> bool:
    head.is_counter = True
    head.level += total - head.total
    head.total = total
    head.counter_since = time
    return True


def _changed(element: Element, hold: Hold | None, event: Event, identity: bytes, position: int) -> bool:
    head = element.head
    assert event.terms is not None
    head.terms = terms_of(event.terms[head.element])
    head.terms_at = event.time
    head.terms_customer, head.terms_product = event.customer, event.product
    head.name, head.lease_policy = event.name, event.lease_policy
    _day(element).see_terms(head.terms)
    return True


def _snapshot(element: Element, hold: Hold | None, event: Event, identity: bytes, position: int) -> bool:
    head = element.head
    if event.level is not None:
        return _set_total(head, event.level, event.time)
    named = {sent.seat_id: sent for sent in event.holds or ()}
    for seat, held in list(element.holds.items()):
        if seat in named or held.changed_at > event.time:
            continue
        # Closed by not being named. It need not be remembered (`snapshot_at` is its last change from now on), unless a
        # repeat of what changed it at this very moment could open it again.
        if held.changed_at == event.time:
            _set_hold(element, held, seat, 0, None, event, identity, position)
        else:
            head.level -= element.holds.pop(seat).quantity
            element.closed.pop(seat, None)
            element.changed_holds.add(seat)
    for seat, sent in named.items():
        known = element.holds.get(seat)
        if _last_change(head, known) <= event.time:
            lease_end = sent.lease_end if sent.quantity else None
            _set_hold(element, known, seat, sent.quantity, lease_end, event, identity, position)
    head.snapshot_at = max(head.snapshot_at, event.time)
    return True


def _seat(event: Event) -> str:
    assert event.seat_id is not None
    return event.seat_id


def _day(element: Element) -> Day:
    day = element.head.day
    assert day is not None
    return day


_EFFECTS: dict[str, _Effect] = {
    "seat.activated": _activated,
    "seat.refreshed": _refreshed,
    "seat.deactivated": _given_back,
    "seat.expired": _expired,
    "seat.denied": _denied,
    "feature.checked_out": _checked_out,
    "feature.returned": _given_back,
    "feature.refreshed": _refreshed,
    "feature.expired": _expired,
    "feature.denied": _denied,
    "feature.used": _used,
    "feature.reset": _reset,
    "entitlement.changed": _changed,
    "entitlement.snapshot": _snapshot,
}
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
