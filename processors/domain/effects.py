"""Effects: what each kind of event does to an element, one function each.

Each changes holds, total or terms, keeps `level` their sum, counts the event in its day, and says whether it changed anything.
That the event is new, and not late, was decided before.
"""

from collections.abc import Callable

from processors.domain.days import Day
from processors.domain.element import Element, Head, last_change
from processors.domain.holds import Hold
from processors.domain.overdraft import terms_of
from schemas.events import Event

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
    # Without a quantity (as always with seats) all of it goes back; a hold never goes below 0.
    left = 0 if hold is None or event.quantity is None else max(0, hold.quantity - event.quantity)
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
    return _set_total(element.head, 0, event.time, position)


def _set_total(head: Head, total: int, time: int, position: int) -> bool:
    head.is_counter = True
    head.level += total - head.total
    head.total = total
    head.counter_since = time
    head.counter_position = position
    return True


def _changed(element: Element, hold: Hold | None, event: Event, identity: bytes, position: int) -> bool:
    head = element.head
    assert event.terms is not None
    head.terms = terms_of(event.terms[head.element])
    head.terms_at = event.time
    head.terms_position = position
    head.terms_customer, head.terms_product = event.customer, event.product
    head.name, head.lease_policy = event.name, event.lease_policy
    _day(element).see_terms(head.terms)
    return True


def _snapshot(element: Element, hold: Hold | None, event: Event, identity: bytes, position: int) -> bool:
    head = element.head
    head.cannot_correct_before(position)
    if event.level is not None:
        return _set_total(head, event.level, event.time, position)
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
        if last_change(head, known) <= event.time:
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


EFFECTS: dict[str, _Effect] = {
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
