"""The fold, rule by rule, against values worked out by hand. All times are on 2026-03-10 unless they say otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import orjson
import pytest

from processors.domain.days import Calendar
from processors.domain.element import Head
from processors.domain.holds import contains
from processors.domain.ledger import Changes, Ledger, Outcome, Transition, position_of
from processors.outputs import alert_of
from schemas.alerts import encode_alert
from schemas.days import DayMark, DayRow
from schemas.events import decode, parse_time
from tests.positions import epoch_and_offset

Document = dict[str, Any]

SECOND = 1_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE

_numbers = count()


# --- Builders: one for each event type. An id is made where none is given.


def iso(at: str) -> str:
    """'10:00', '10:00:00.001', '11T10:00' (of March 2026) or '2026-10-25T10:00' as RFC 3339 in UTC."""
    day, _, clock = at.rpartition("T")
    if len(day) <= 2:
        day = f"2026-03-{day or '10'}"
    return f"{day}T{clock}{':00' if clock.count(':') == 1 else ''}Z"


def ms(at: str) -> int:
    return parse_time(iso(at))


def shifted(at: str, by_ms: int) -> str:
    """A time that many milliseconds later on the same day, in the notation of `iso`."""
    day, _, _ = iso(at).partition("T")
    seconds, milliseconds = divmod(ms(at) - parse_time(f"{day}T00:00:00Z") + by_ms, SECOND)
    return f"{day}T{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{milliseconds:03}"


def event(type: str, at: str, *, id: str | None = None, source: str = "/s", subject: str = "ent-1", **data: Any) -> Document:
    if (lease := data.pop("lease", None)) is not None:
        data["lease_expires_at"] = iso(lease)
    return {
        "specversion": "1.0",
        "id": f"auto-{next(_numbers)}" if id is None else id,
        "source": source,
        "type": type,
        "subject": subject,
        "time": iso(at),
        "data": data,
    }


def activated(seat: str, at: str, **more: Any) -> Document:
    return event("seat.activated", at, seat_id=seat, **more)


def refreshed(seat: str, at: str, **more: Any) -> Document:
    return event("seat.refreshed", at, seat_id=seat, **more)


def deactivated(seat: str, at: str, **more: Any) -> Document:
    return event("seat.deactivated", at, seat_id=seat, **more)


def expired(seat: str, at: str, **more: Any) -> Document:
    return event("seat.expired", at, seat_id=seat, **more)


def denied(at: str, **more: Any) -> Document:
    return event("seat.denied", at, **more)


def checked_out(seat: str, at: str, **more: Any) -> Document:
    return event("feature.checked_out", at, **{"element": "render", "seat_id": seat} | more)


def returned(seat: str, at: str, **more: Any) -> Document:
    return event("feature.returned", at, **{"element": "render", "seat_id": seat} | more)


def feature_refreshed(seat: str, at: str, **more: Any) -> Document:
    return event("feature.refreshed", at, **{"element": "render", "seat_id": seat} | more)


def feature_expired(seat: str, at: str, **more: Any) -> Document:
    return event("feature.expired", at, **{"element": "render", "seat_id": seat} | more)


def feature_denied(at: str, **more: Any) -> Document:
    return event("feature.denied", at, **{"element": "render"} | more)


def used(at: str, **more: Any) -> Document:
    return event("feature.used", at, **{"element": "count"} | more)


def reset(at: str, **more: Any) -> Document:
    return event("feature.reset", at, **{"element": "count"} | more)


def counted(level: int, at: str, *, element: str = "count", **more: Any) -> Document:
    """A counter's snapshot."""
    return event("entitlement.snapshot", at, element=element, level=level, **more)


def snapshot(
    at: str, holds: dict[str, int], *, element: str = "seats", leases: dict[str, str] | None = None, **more: Any
) -> Document:
    """A pool's snapshot."""
    named: list[Document] = [{"seat_id": seat, "quantity": quantity} for seat, quantity in holds.items()]
    for hold in named:
        if leases is not None and hold["seat_id"] in leases:
            hold["lease_expires_at"] = iso(leases[hold["seat_id"]])
    return event("entitlement.snapshot", at, element=element, holds=named, **more)


def changed(at: str, elements: dict[str, Document], **more: Any) -> Document:
    return event("entitlement.changed", at, elements=elements, **more)


def limited(
    at: str,
    limit: int | None,
    overdraft: str | None = None,
    value: float | None = None,
    *,
    element: str = "seats",
    **more: Any,
) -> Document:
    """Terms of one element."""
    terms: Document = {"limit": limit}
    if overdraft is not None:
        terms["overdraft"] = {"type": overdraft} | ({} if value is None else {"value": value})
    return changed(at, {element: terms}, **more)


class Fold:
    """A ledger that is given documents one after the other."""

    def __init__(self, timezone: str = "UTC", late_after_ms: int = HOUR) -> None:
        self.ledger = Ledger(Calendar(timezone), late_after_ms)
        self.offset = -1
        self.rows: dict[tuple[str, str], DayRow] = {}

    def apply(self, *documents: Document) -> list[Outcome]:
        """The outcomes of the last of them."""
        outcomes: list[Outcome] = []
        for document in documents:
            self.offset += 1
            read = decode(orjson.dumps(document), key=document["subject"].encode(), appended_at=None)
            outcomes = self.ledger.apply(read, position_of(1, self.offset))
        return outcomes

    def one(self, *documents: Document) -> Outcome:
        """The only outcome of the last of them."""
        [outcome] = self.apply(*documents)
        return outcome

    def transitions(self, *documents: Document) -> list[Transition]:
        outcomes = [outcome for document in documents for outcome in self.apply(document)]
        return [outcome.transition for outcome in outcomes if outcome.transition is not None]

    def head(self, element: str = "seats", entitlement: str = "ent-1") -> Head:
        return self.ledger.elements[entitlement, element].head

    def level(self, element: str = "seats", entitlement: str = "ent-1") -> int:
        return self.head(element, entitlement).level

    def holds(self, element: str = "seats") -> dict[str, int]:
        """The open holds: quantity by seat."""
        holds = self.ledger.elements["ent-1", element].holds
        return {seat: hold.quantity for seat, hold in holds.items() if hold.quantity}

    def lease(self, seat: str, element: str = "seats") -> int | None:
        return self.ledger.elements["ent-1", element].holds[seat].lease_end

    def take(self) -> Changes:
        changes = self.ledger.take_changes()
        for row in changes.days:
            self.rows[row.element, row.day] = row
        return changes

    def day(self, day: int, element: str = "seats") -> DayRow:
        """The current row of a day of March 2026."""
        self.take()
        return self.rows[element, f"2026-03-{day:02}"]

    def stored_days(self, element: str = "seats") -> list[str]:
        self.take()
        return sorted(day for of, day in self.rows if of == element)


@pytest.fixture
def fold() -> Fold:
    return Fold()


# --- What each event does (section 2)


def test_activation_opens_a_hold_of_1(fold: Fold) -> None:
    outcome = fold.one(activated("a", "10:00"))
    assert (outcome.element, outcome.t, outcome.late, outcome.effect) == ("seats", ms("10:00"), False, True)
    assert (outcome.delta, outcome.level) == (1, 1)
    assert fold.holds() == {"a": 1}


def test_activation_of_an_open_hold_changes_only_its_lease(fold: Fold) -> None:
    outcome = fold.one(activated("a", "10:00", lease="11:00"), activated("a", "10:30", lease="12:00"))
    assert (outcome.delta, outcome.level, outcome.effect) == (0, 1, True)
    assert fold.lease("a") == ms("12:00")


def test_activation_of_an_open_hold_keeps_its_quantity(fold: Fold) -> None:
    fold.apply(snapshot("10:00", {"a": 5}), activated("a", "10:01"))
    assert fold.holds() == {"a": 5}


@pytest.mark.parametrize(
    ("open_with", "renew_with", "element"),
    [
        (activated, activated, "seats"),
        (activated, refreshed, "seats"),
        (refreshed, refreshed, "seats"),
        (checked_out, checked_out, "render"),
        (checked_out, feature_refreshed, "render"),
    ],
)
def test_without_a_lease_end_the_hold_is_left_without_a_lease(
    fold: Fold, open_with: Callable[..., Document], renew_with: Callable[..., Document], element: str
) -> None:
    fold.apply(open_with("a", "10:00", lease="11:00"))
    assert fold.lease("a", element) == ms("11:00")
    fold.apply(renew_with("a", "10:30"))
    assert fold.lease("a", element) is None


def test_refresh_of_an_open_seat_changes_only_its_lease(fold: Fold) -> None:
    outcome = fold.one(activated("a", "10:00", lease="11:00"), refreshed("a", "10:30", lease="12:00"))
    assert (outcome.delta, outcome.level, outcome.effect) == (0, 1, True)
    assert fold.lease("a") == ms("12:00")


def test_refresh_of_a_seat_that_is_not_open_opens_it(fold: Fold) -> None:
    assert fold.one(refreshed("a", "10:00", lease="11:00")).delta == 1
    fold.apply(deactivated("a", "10:10"))
    assert fold.one(refreshed("a", "10:20")).delta == 1
    assert fold.holds() == {"a": 1}


def test_deactivation_closes_the_hold_whatever_its_quantity(fold: Fold) -> None:
    fold.apply(snapshot("10:00", {"a": 5, "b": 1}))
    outcome = fold.one(deactivated("a", "10:01"))
    assert (outcome.delta, outcome.level, outcome.effect) == (-5, 1, True)
    assert fold.holds() == {"b": 1}


def test_deactivation_of_a_seat_that_is_not_open_changes_no_level(fold: Fold) -> None:
    outcome = fold.one(deactivated("a", "10:00"))
    assert (outcome.late, outcome.delta, outcome.level) == (False, 0, 0)


@pytest.mark.parametrize(
    ("lease", "at", "closes"),
    [
        ("11:00", "10:59:59.999", False),
        ("11:00", "11:00", True),
        ("11:00", "11:00:00.001", True),
        (None, "23:00", False),
    ],
)
@pytest.mark.parametrize("kind", ["seat", "feature"])
def test_expiry_closes_only_a_hold_whose_lease_ended_at_or_before_it(
    fold: Fold, kind: str, lease: str | None, at: str, closes: bool
) -> None:
    if kind == "seat":
        fold.apply(activated("a", "10:00", lease=lease))
        outcome = fold.one(expired("a", at))
    else:
        fold.apply(checked_out("a", "10:00", lease=lease))
        outcome = fold.one(feature_expired("a", at))
    assert outcome.late is False
    assert (outcome.effect, outcome.delta, outcome.level) == ((True, -1, 0) if closes else (False, 0, 1))


def test_expiry_without_an_open_hold_does_nothing(fold: Fold) -> None:
    outcome = fold.one(expired("a", "10:00"))
    assert (outcome.effect, outcome.delta, outcome.level) == (False, 0, 0)
    fold.apply(activated("a", "10:01", lease="10:02"), deactivated("a", "10:03"))
    outcome = fold.one(expired("a", "10:04"))
    assert (outcome.effect, outcome.delta, outcome.level) == (False, 0, 0)


def test_a_refresh_that_comes_before_the_expiry_wins(fold: Fold) -> None:
    fold.apply(activated("a", "10:00", lease="11:00"), refreshed("a", "11:00:30", lease="12:00"))
    outcome = fold.one(expired("a", "11:01"))
    assert (outcome.effect, outcome.level) == (False, 1)


def test_expiry_of_a_feature_takes_all_units(fold: Fold) -> None:
    outcome = fold.one(checked_out("a", "10:00", quantity=3, lease="10:30"), feature_expired("a", "10:31"))
    assert (outcome.delta, outcome.level) == (-3, 0)


def test_denials_change_nothing_but_are_counted(fold: Fold) -> None:
    fold.apply(activated("a", "10:00"))
    for document in (denied("10:01"), denied("10:02", seat_id="a")):
        outcome = fold.one(document)
        assert (outcome.effect, outcome.delta, outcome.level) == (False, 0, 1)
    assert fold.day(10).denials == 2
    assert fold.one(feature_denied("10:03", seat_id="a", quantity=4)).effect is False
    assert fold.day(10, "render").denials == 1
    assert fold.holds() == {"a": 1}


def test_checkouts_add_their_quantity_which_is_1_when_absent(fold: Fold) -> None:
    outcomes = [fold.one(checked_out("a", "10:00", quantity=3)), fold.one(checked_out("a", "10:01"))]
    assert [(outcome.delta, outcome.level) for outcome in outcomes] == [(3, 3), (1, 4)]
    assert fold.holds("render") == {"a": 4}


def test_a_checkout_takes_the_lease_of_the_whole_hold_with_it(fold: Fold) -> None:
    fold.apply(checked_out("a", "10:00", lease="11:00"), checked_out("a", "10:01", lease="12:00"))
    assert fold.lease("a", "render") == ms("12:00")


def test_partial_return_leaves_the_rest_and_its_lease(fold: Fold) -> None:
    outcome = fold.one(checked_out("a", "10:00", quantity=5, lease="11:00"), returned("a", "10:01", quantity=2))
    assert (outcome.delta, outcome.level) == (-2, 3)
    assert fold.holds("render") == {"a": 3}
    assert fold.lease("a", "render") == ms("11:00")


def test_return_without_quantity_takes_all(fold: Fold) -> None:
    outcome = fold.one(checked_out("a", "10:00", quantity=5), returned("a", "10:01"))
    assert (outcome.delta, outcome.level) == (-5, 0)


@pytest.mark.parametrize(
    ("opening", "closing", "element"),
    [
        (activated, deactivated, "seats"),
        (activated, expired, "seats"),
        (checked_out, returned, "render"),
        (checked_out, feature_expired, "render"),
    ],
)
def test_a_closed_hold_has_no_lease(
    fold: Fold, opening: Callable[..., Document], closing: Callable[..., Document], element: str
) -> None:
    fold.apply(opening("a", "10:00", lease="10:30"), closing("a", "10:31"))
    assert fold.lease("a", element) is None


def test_return_of_exactly_what_is_held_closes(fold: Fold) -> None:
    fold.apply(checked_out("a", "10:00", quantity=2, lease="10:30"), returned("a", "10:01", quantity=2))
    assert fold.holds("render") == {}
    assert fold.one(feature_refreshed("a", "10:02", quantity=7)).delta == 7


def test_return_of_more_than_is_held_never_goes_below_0(fold: Fold) -> None:
    fold.apply(checked_out("b", "10:00", quantity=4), checked_out("a", "10:00", quantity=2))
    outcome = fold.one(returned("a", "10:01", quantity=3))
    assert (outcome.delta, outcome.level) == (-2, 4)
    outcome = fold.one(returned("c", "10:02", quantity=3))
    assert (outcome.delta, outcome.level) == (0, 4)
    assert fold.holds("render") == {"b": 4}


def test_feature_refresh_opens_with_its_quantity_and_leaves_an_open_hold_alone(fold: Fold) -> None:
    assert fold.one(feature_refreshed("a", "10:00", quantity=3)).delta == 3
    assert fold.one(feature_refreshed("a", "10:01", quantity=8, lease="11:00")).delta == 0
    assert fold.lease("a", "render") == ms("11:00")
    assert fold.one(feature_refreshed("b", "10:02")).delta == 1
    assert fold.holds("render") == {"a": 3, "b": 1}


def test_use_adds_up_until_a_reset(fold: Fold) -> None:
    assert [fold.one(used(at, **more)).level for at, more in [("10:00", {"quantity": 40}), ("10:01", {})]] == [40, 41]
    outcome = fold.one(reset("10:02"))
    assert (outcome.delta, outcome.level, outcome.effect) == (-41, 0, True)
    assert fold.one(used("10:03", quantity=2)).level == 2


def test_counter_snapshot_sets_the_total(fold: Fold) -> None:
    outcome = fold.one(used("10:00", quantity=40), counted(7, "10:01"))
    assert (outcome.delta, outcome.level) == (-33, 7)
    assert fold.one(used("10:02")).level == 8
    assert fold.one(counted(0, "10:03")).level == 0


def test_the_level_is_open_holds_and_total_together(fold: Fold) -> None:
    fold.apply(checked_out("a", "10:00", element="x", quantity=2), used("10:01", element="x", quantity=5))
    assert fold.level("x") == 7
    assert fold.one(reset("10:02", element="x")).level == 2
    fold.apply(used("10:03", element="x", quantity=4))
    assert fold.one(snapshot("10:04", {}, element="x")).level == 4
    fold.apply(checked_out("b", "10:05", element="x", quantity=3))
    assert fold.one(counted(1, "10:06", element="x")).level == 4


# --- Pool snapshots


def test_pool_snapshot_replaces_all_holds(fold: Fold) -> None:
    fold.apply(activated("a", "10:00", lease="12:00"), activated("b", "10:00"), activated("c", "10:00", lease="12:00"))
    outcome = fold.one(snapshot("10:30", {"b": 2, "c": 1, "d": 1}, leases={"b": "11:30"}))
    assert (outcome.delta, outcome.level, outcome.effect) == (1, 4, True)
    assert fold.holds() == {"b": 2, "c": 1, "d": 1}
    assert [fold.lease(seat) for seat in "bcd"] == [ms("11:30"), None, None]


def test_pool_snapshot_may_name_a_hold_that_is_closed(fold: Fold) -> None:
    assert fold.one(activated("a", "10:00"), snapshot("10:30", {"a": 0, "b": 0})).level == 0
    assert fold.holds() == {}
    assert fold.one(activated("b", "10:29")).late is True


def test_empty_pool_snapshot_closes_all(fold: Fold) -> None:
    outcome = fold.one(activated("a", "10:00"), activated("b", "10:00"), snapshot("10:30", {}))
    assert (outcome.delta, outcome.level) == (-2, 0)


def test_pool_snapshot_leaves_holds_alone_that_changed_after_its_time(fold: Fold) -> None:
    fold.apply(
        activated("before", "10:00"),
        activated("same", "10:30"),
        activated("after", "10:30:00.001"),
        activated("named", "10:30:00.001"),
        activated("named at the time", "10:30"),
        deactivated("closed", "10:30:00.001"),
        snapshot("10:30", {"named": 9, "named at the time": 9, "closed": 9, "new": 1}),
    )
    assert fold.holds() == {"after": 1, "named": 1, "named at the time": 9, "new": 1}


def test_an_older_pool_snapshot_does_not_undo_a_newer_one(fold: Fold) -> None:
    """The newer one is the last change of every seat, named or not."""
    fold.apply(activated("a", "10:00"), snapshot("10:30", {"b": 1}))
    outcome = fold.one(snapshot("10:20", {"a": 1, "c": 1}))
    assert (outcome.late, outcome.delta, outcome.t) == (False, 0, ms("10:30"))
    assert fold.holds() == {"b": 1}
    assert fold.one(activated("c", "10:29:59.999")).late is True


@pytest.mark.parametrize("seat", ["was open", "never seen"])
@pytest.mark.parametrize("opening", [activated, refreshed, deactivated])
def test_a_pool_snapshot_makes_older_events_of_seats_that_it_does_not_name_late(
    fold: Fold, seat: str, opening: Callable[..., Document]
) -> None:
    fold.apply(activated("was open", "10:00"), snapshot("10:30", {"other": 1}))
    assert fold.one(opening(seat, "10:29:59.999")).late is True
    outcome = fold.one(opening(seat, "10:30"))
    assert outcome.late is False
    assert outcome.level == (1 if opening is deactivated else 2)


# --- Limits and hard limits (sections 1 and 2)


@pytest.mark.parametrize(
    ("limit", "overdraft", "value", "hard_limit"),
    [
        (10, None, None, 10),
        (10, "none", None, 10),
        (10, "none", 50, 10),  # its value means nothing
        (10, "absolute", 2, 12),
        (10, "absolute", 0, 10),
        (0, "absolute", 3, 3),
        (0, None, None, 0),
        (10, "unlimited", None, None),
        (0, "unlimited", None, None),
        (None, None, None, None),
        (None, "absolute", 2, None),
        (None, "percentage", 50, None),
        (None, "unlimited", None, None),
        (10, "percentage", 0, 10),
        (10, "percentage", 50, 15),
        (3, "percentage", 50, 4),  # 1.5
        (2, "percentage", 150, 5),
        (0, "percentage", 100, 0),
        (10, "percentage", 33.3333, 13),  # 3.33333
        (3, "percentage", 33.3333, 3),  # 0.999999
        (3, "percentage", 33.3334, 4),  # 1.000002
        (8, "percentage", 12.5, 9),
        (1000, "percentage", 32.3, 1323),  # exactly 323; 322 in floating point
        (10_000, "percentage", 0.57, 10_057),  # exactly 57; 56 in floating point
        (999_999, "percentage", 0.0001, 999_999),
        (1_000_000, "percentage", 0.0001, 1_000_001),
    ],
)
def test_hard_limit(fold: Fold, limit: int | None, overdraft: str | None, value: float | None, hard_limit: int | None) -> None:
    terms = fold.one(limited("10:00", limit, overdraft, value)).terms
    assert terms is not None
    assert (terms.limit, terms.hard_limit) == (limit, hard_limit)


def test_named_elements_are_replaced_whole_and_others_stay(fold: Fold) -> None:
    fold.apply(
        changed(
            "10:00",
            {
                "seats": {"kind": "pool", "limit": 10, "overdraft": {"type": "absolute", "value": 2}},
                "render": {"kind": "pool", "limit": 5, "overdraft": {"type": "unlimited"}},
            },
        )
    )
    outcomes = fold.apply(changed("10:01", {"seats": {"limit": 8}}))
    assert [outcome.element for outcome in outcomes] == ["seats"]
    seats, render = fold.head("seats").terms, fold.head("render").terms
    assert seats is not None
    assert render is not None
    assert (seats.limit, seats.hard_limit, seats.kind) == (8, 8, None)
    assert (render.limit, render.hard_limit, render.kind) == (5, None, "pool")


def test_new_terms_make_one_outcome_for_each_element_that_they_name(fold: Fold) -> None:
    fold.apply(activated("a", "10:00"))
    outcomes = fold.apply(changed("10:01", {"seats": {"limit": 1}, "count": {"limit": None}}))
    assert [(outcome.element, outcome.level, outcome.state) for outcome in outcomes] == [
        ("seats", 1, "at_limit"),
        ("count", 0, "within"),
    ]


def test_use_before_the_first_terms_is_within(fold: Fold) -> None:
    outcome = fold.one(activated("a", "10:00"), activated("b", "10:01"))
    assert (outcome.terms, outcome.state, outcome.transition) == (None, "within", None)
    [entered] = fold.transitions(limited("10:02", 1))
    assert (entered.type, entered.before, entered.after, entered.level) == ("overdraft.entered", "within", "over_hard_limit", 2)
    assert (entered.at, entered.cause_type) == (ms("10:02"), "entitlement.changed")


def test_terms_before_the_first_use(fold: Fold) -> None:
    outcome = fold.one(limited("10:00", 1))
    assert (outcome.level, outcome.delta, outcome.state, outcome.effect) == (0, 0, "within", True)
    [reached] = fold.transitions(activated("a", "10:01"))
    assert (reached.type, reached.limit, reached.hard_limit) == ("limit.reached", 1, 1)


def test_terms_that_name_no_limit_take_an_element_out_of_overdraft(fold: Fold) -> None:
    fold.apply(limited("10:00", 1), activated("a", "10:01"), activated("b", "10:02"))
    [left] = fold.transitions(limited("10:05", None))
    assert (left.type, left.after, left.level, left.limit, left.hard_limit) == ("overdraft.left", "within", 2, None, None)
    assert (left.entered_at, left.duration_ms, left.peak, left.peak_overage) == (ms("10:02"), 3 * MINUTE, 2, 1)


# --- States and transitions (section 5)


@pytest.mark.parametrize(
    ("limit", "overdraft", "value", "level", "state"),
    [
        (None, None, None, 1_000, "within"),
        (2, "absolute", 2, 0, "within"),
        (2, "absolute", 2, 1, "within"),
        (2, "absolute", 2, 2, "at_limit"),
        (2, "absolute", 2, 3, "overdraft"),
        (2, "absolute", 2, 4, "at_hard_limit"),
        (2, "absolute", 2, 5, "over_hard_limit"),
        # Hard limit = limit: nothing between at the limit and over the hard one.
        (2, None, None, 1, "within"),
        (2, None, None, 2, "at_limit"),
        (2, None, None, 3, "over_hard_limit"),
        (2, "absolute", 0, 2, "at_limit"),
        (2, "unlimited", None, 2, "at_limit"),
        (2, "unlimited", None, 3, "overdraft"),
        (2, "unlimited", None, 1_000_000, "overdraft"),
        (2, "absolute", 1, 3, "at_hard_limit"),
        # Both 0 is within; 0 is a limit.
        (0, None, None, 0, "within"),
        (0, None, None, 1, "over_hard_limit"),
        (0, "absolute", 2, 0, "within"),
        (0, "absolute", 2, 1, "overdraft"),
        (0, "absolute", 2, 2, "at_hard_limit"),
        (0, "absolute", 2, 3, "over_hard_limit"),
        (0, "unlimited", None, 1, "overdraft"),
    ],
)
def test_state(fold: Fold, limit: int | None, overdraft: str | None, value: float | None, level: int, state: str) -> None:
    fold.apply(limited("10:00", limit, overdraft, value, element="count"))
    assert fold.one(counted(level, "10:01")).state == state
    assert fold.head("count").state == state


LEVEL_OF = {"within": 1, "at_limit": 2, "overdraft": 3, "at_hard_limit": 4, "over_hard_limit": 5}
TYPE_OF = {
    ("within", "at_limit"): "limit.reached",
    ("at_limit", "within"): "limit.cleared",
    ("within", "overdraft"): "overdraft.entered",
    ("within", "at_hard_limit"): "overdraft.entered",
    ("within", "over_hard_limit"): "overdraft.entered",
    ("at_limit", "overdraft"): "overdraft.entered",
    ("at_limit", "at_hard_limit"): "overdraft.entered",
    ("at_limit", "over_hard_limit"): "overdraft.entered",
    ("overdraft", "at_hard_limit"): "overdraft.changed",
    ("overdraft", "over_hard_limit"): "overdraft.changed",
    ("at_hard_limit", "overdraft"): "overdraft.changed",
    ("at_hard_limit", "over_hard_limit"): "overdraft.changed",
    ("over_hard_limit", "overdraft"): "overdraft.changed",
    ("over_hard_limit", "at_hard_limit"): "overdraft.changed",
    ("overdraft", "at_limit"): "overdraft.left",
    ("overdraft", "within"): "overdraft.left",
    ("at_hard_limit", "at_limit"): "overdraft.left",
    ("at_hard_limit", "within"): "overdraft.left",
    ("over_hard_limit", "at_limit"): "overdraft.left",
    ("over_hard_limit", "within"): "overdraft.left",
}


@pytest.mark.parametrize(("before", "after"), [(before, after) for before in LEVEL_OF for after in LEVEL_OF])
def test_transition(fold: Fold, before: str, after: str) -> None:
    fold.apply(limited("10:00", 2, "absolute", 2, element="count"), counted(LEVEL_OF[before], "10:01"))
    made = fold.transitions(counted(LEVEL_OF[after], "10:02"))
    assert [(t.type, t.before, t.after, t.level) for t in made] == (
        [] if before == after else [(TYPE_OF[before, after], before, after, LEVEL_OF[after])]
    )
    for transition in made:
        assert (transition.at, transition.limit, transition.hard_limit) == (ms("10:02"), 2, 4)
        left = transition.type == "overdraft.left"
        assert transition.entered_at == (ms("10:01") if left else None)
        assert transition.duration_ms == (MINUTE if left else None)
        assert transition.peak == (LEVEL_OF[before] if left else None)
        assert transition.peak_overage == (LEVEL_OF[before] - 2 if left else None)


def test_a_change_of_level_within_a_state_is_no_transition(fold: Fold) -> None:
    fold.apply(limited("10:00", 10, "unlimited", element="count"))
    assert fold.transitions(used("10:01", quantity=3), used("10:02", quantity=3)) == []
    assert len(fold.transitions(used("10:03", quantity=5))) == 1
    assert fold.transitions(used("10:04", quantity=5), used("10:05", quantity=5)) == []


def test_terms_are_a_cause_of_transitions_too(fold: Fold) -> None:
    fold.apply(limited("10:00", 5), activated("a", "10:01"), activated("b", "10:02"))
    made = fold.transitions(
        limited("10:03", 2, id="to-2"),
        limited("10:04", 1, "absolute", 5, id="to-1"),
        limited("10:05", 0, "absolute", 2, id="to-0"),
        limited("10:06", 3, id="to-3"),
    )
    assert [(t.type, t.before, t.after, t.cause_id) for t in made] == [
        ("limit.reached", "within", "at_limit", "to-2"),
        ("overdraft.entered", "at_limit", "overdraft", "to-1"),
        ("overdraft.changed", "overdraft", "at_hard_limit", "to-0"),
        ("overdraft.left", "at_hard_limit", "within", "to-3"),
    ]


def test_limit_cut_below_the_level(fold: Fold) -> None:
    fold.apply(limited("10:00", 5), snapshot("10:01", {"a": 4}))
    [entered] = fold.transitions(limited("10:02", 3))
    assert (entered.type, entered.before, entered.after) == ("overdraft.entered", "within", "over_hard_limit")
    row = fold.day(10)
    assert (row.peak_overage, row.limit, row.closing_limit, row.entered_at, row.peak) == (1, 5, 3, ms("10:02"), 4)


def test_an_episode_with_changed_terms_inside(fold: Fold) -> None:
    """Peak and peak overage need not be of the same moment: the level peaks at 5, the overage under the limit of 1."""
    fold.apply(limited("10:00", 2, "absolute", 2))
    made = fold.transitions(
        activated("a", "10:01"),
        activated("b", "10:02"),  # 2 of 2: at the limit
        activated("c", "10:03"),  # 3 of 2, hard 4: overdraft
        activated("d", "10:04"),  # 4 of 2, hard 4
        activated("e", "10:05"),  # 5 of 2, hard 4: overage 3
        limited("10:06", 3, "absolute", 1),  # 5 of 3, hard 4: the same state
        deactivated("e", "10:07"),  # 4 of 3, hard 4
        limited("10:08", 0, "unlimited"),  # 4 of 0: overage 4
        limited("10:09", 4, id="back"),  # 4 of 4
        deactivated("d", "10:10"),  # 3 of 4
    )
    assert [(t.type, t.after, t.level) for t in made] == [
        ("limit.reached", "at_limit", 2),
        ("overdraft.entered", "overdraft", 3),
        ("overdraft.changed", "at_hard_limit", 4),
        ("overdraft.changed", "over_hard_limit", 5),
        ("overdraft.changed", "at_hard_limit", 4),
        ("overdraft.changed", "overdraft", 4),
        ("overdraft.left", "at_limit", 4),
        ("limit.cleared", "within", 3),
    ]
    left = made[-2]
    assert (left.entered_at, left.duration_ms, left.at) == (ms("10:03"), 6 * MINUTE, ms("10:09"))
    assert (left.peak, left.peak_overage, left.cause_id) == (5, 4, "back")


def test_a_second_episode_knows_nothing_of_the_first(fold: Fold) -> None:
    fold.apply(limited("10:00", 1, element="count"), counted(9, "10:01"), counted(0, "10:02"))
    head = fold.head("count")
    assert (head.entered_at, head.peak, head.peak_overage) == (None, 0, 0)
    made = fold.transitions(counted(2, "10:03"), counted(1, "10:05"))
    assert [(t.entered_at, t.duration_ms, t.peak, t.peak_overage) for t in made] == [
        (None, None, None, None),
        (ms("10:03"), 2 * MINUTE, 2, 1),
    ]


def test_an_episode_that_lasts_no_time(fold: Fold) -> None:
    made = fold.transitions(limited("10:00", 1, element="count"), counted(3, "10:01"), counted(0, "10:01"))
    assert [t.type for t in made] == ["overdraft.entered", "overdraft.left"]
    assert (made[1].duration_ms, made[1].peak, made[1].peak_overage) == (0, 3, 2)


def test_the_alert_of_entering(fold: Fold) -> None:
    """The id is uuid5(NAMESPACE_URL, 'seatmark:["alert","ent-1","seats","/s","7"]'), worked out elsewhere."""
    fold.apply(limited("10:00", 1, "absolute", 1, customer="cus-9", product="cad-pro"), activated("a", "10:01"))
    [entered] = fold.transitions(activated("b", "10:02:03.456", id="7"))
    assert orjson.loads(encode_alert(alert_of(entered))) == {
        "specversion": "1.0",
        "id": "8caf68e1-c516-5215-85f5-239206db6275",
        "source": "/seatmark/worker",
        "type": "overdraft.entered",
        "subject": "ent-1",
        "time": "2026-03-10T10:02:03.456Z",
        "datacontenttype": "application/json",
        "data": {
            "entitlement": "ent-1",
            "element": "seats",
            "customer": "cus-9",
            "product": "cad-pro",
            "from": "at_limit",
            "to": "at_hard_limit",
            "level": 2,
            "limit": 1,
            "hard_limit": 2,
            "overage": 1,
            "cause": {"source": "/s", "id": "7", "type": "seat.activated"},
            "at": "2026-03-10T10:02:03.456Z",
        },
    }


def test_the_alert_of_leaving(fold: Fold) -> None:
    fold.apply(limited("10:00", 1, "unlimited"), activated("a", "10:01"), activated("b", "10:02"), activated("c", "10:03"))
    [left] = fold.transitions(deactivated("a", "10:04"), snapshot("10:05:00.500", {}, id="9"))
    data = orjson.loads(encode_alert(alert_of(left)))["data"]
    assert data == {
        "entitlement": "ent-1",
        "element": "seats",
        "from": "overdraft",
        "to": "within",
        "level": 0,
        "limit": 1,
        "hard_limit": None,
        "overage": 0,
        "cause": {"source": "/s", "id": "9", "type": "entitlement.snapshot"},
        "at": "2026-03-10T10:05:00.500Z",
        "entered_at": "2026-03-10T10:02:00.000Z",
        "duration_seconds": 180.5,
        "peak": 3,
        "peak_overage": 2,
    }


def test_a_transition_stands_at_the_clock_and_not_at_the_time_of_a_disordered_event(fold: Fold) -> None:
    fold.apply(limited("10:00", 1), activated("a", "10:30"))
    [entered] = fold.transitions(activated("b", "10:10"))
    assert entered.at == ms("10:30")
    [left] = fold.transitions(deactivated("b", "10:20"))
    assert (left.at, left.entered_at, left.duration_ms) == (ms("10:30"), ms("10:30"), 0)


def test_one_event_may_cause_a_transition_of_each_element_that_it_names(fold: Fold) -> None:
    fold.apply(activated("a", "10:00"), checked_out("a", "10:00", quantity=2))
    made = fold.transitions(changed("10:01", {"seats": {"limit": 1}, "render": {"limit": 1}}, id="7"))
    assert [(t.element, t.type) for t in made] == [("seats", "limit.reached"), ("render", "overdraft.entered")]
    assert len({alert_of(transition).id for transition in made}) == 2


# --- The clock (section 3)


def test_an_event_is_placed_at_its_time_or_at_the_clock(fold: Fold) -> None:
    placed = [fold.one(activated(seat, at)).t for seat, at in [("a", "10:00"), ("b", "10:30"), ("c", "10:10"), ("d", "10:31")]]
    assert placed == [ms("10:00"), ms("10:30"), ms("10:30"), ms("10:31")]


def test_an_event_without_effect_moves_the_clock_too(fold: Fold) -> None:
    fold.apply(activated("a", "10:00"), denied("10:20"))
    assert fold.head().clock == ms("10:20")
    fold.apply(expired("a", "10:40"))
    assert fold.head().clock == ms("10:40")


def test_a_first_import_of_an_old_log_is_not_late(fold: Fold) -> None:
    fold.apply(limited("2021-05-05T10:00", 1))
    outcomes = [fold.one(activated("a", "2021-05-05T11:00")), fold.one(activated("b", "2021-05-06T11:00"))]
    assert [(outcome.late, outcome.level, outcome.state) for outcome in outcomes] == [
        (False, 1, "at_limit"),
        (False, 2, "over_hard_limit"),
    ]


# --- Late: about a hold, before its last change


# What was the last change of the hold of seat `a` at 10:00, after it may have been opened at 09:30.
SEAT_TOUCHES: dict[str, list[Document]] = {
    "opening": [activated("a", "10:00")],
    "opening by a refresh": [refreshed("a", "10:00")],
    "renewing": [activated("a", "09:30"), refreshed("a", "10:00", lease="12:00")],
    "activating again": [activated("a", "09:30"), activated("a", "10:00")],
    "closing": [activated("a", "09:30"), deactivated("a", "10:00")],
    "closing what was not open": [deactivated("a", "10:00")],
    "expiry": [activated("a", "09:30", lease="09:40"), expired("a", "10:00")],
    "a snapshot that names it": [activated("a", "09:30"), snapshot("10:00", {"a": 1})],
    "a snapshot that names it as closed": [activated("a", "09:30"), snapshot("10:00", {"a": 0})],
    "a snapshot that does not name it": [activated("a", "09:30"), snapshot("10:00", {"b": 1})],
    "a snapshot before it was ever seen": [snapshot("10:00", {})],
}
FEATURE_TOUCHES: dict[str, list[Document]] = {
    "opening": [checked_out("a", "10:00", quantity=2)],
    "opening by a refresh": [feature_refreshed("a", "10:00")],
    "renewing": [checked_out("a", "09:30"), feature_refreshed("a", "10:00", lease="12:00")],
    "taking more": [checked_out("a", "09:30"), checked_out("a", "10:00", quantity=2)],
    "giving some back": [checked_out("a", "09:30", quantity=3), returned("a", "10:00", quantity=1)],
    "closing": [checked_out("a", "09:30"), returned("a", "10:00")],
    "giving back what was not open": [returned("a", "10:00", quantity=2)],
    "expiry": [checked_out("a", "09:30", lease="09:40"), feature_expired("a", "10:00")],
    "a snapshot that names it": [checked_out("a", "09:30"), snapshot("10:00", {"a": 1}, element="render")],
    "a snapshot that does not name it": [checked_out("a", "09:30"), snapshot("10:00", {"b": 1}, element="render")],
    "a snapshot before it was ever seen": [snapshot("10:00", {}, element="render")],
}
SEAT_PROBES = [activated, refreshed, deactivated, expired]
FEATURE_PROBES = [checked_out, returned, feature_refreshed, feature_expired]


def untouched_by(fold: Fold, element: str, document: Document) -> Outcome:
    """Apply a late event, and check that nothing that is live noticed it."""
    fold.take()
    held = fold.ledger.elements["ent-1", element]
    holds = {seat: (hold.quantity, hold.changed_at, hold.lease_end) for seat, hold in held.holds.items()}
    head = fold.head(element)
    before = (head.level, head.total, head.clock, head.state, head.terms, head.snapshot_at, head.counter_since)
    outcome = fold.one(document)
    assert (outcome.late, outcome.effect, outcome.delta, outcome.transition) == (True, False, 0, None)
    assert (outcome.t, outcome.level, outcome.state, outcome.terms) == (head.clock, head.level, head.state, head.terms)
    assert {seat: (hold.quantity, hold.changed_at, hold.lease_end) for seat, hold in held.holds.items()} == holds
    assert (head.level, head.total, head.clock, head.state, head.terms, head.snapshot_at, head.counter_since) == before
    changes = fold.take()
    assert changes.days == []
    assert [(mark.element, mark.position) for mark in changes.marks] == [(element, position_of(1, fold.offset))]
    return outcome


@pytest.mark.parametrize("probe", SEAT_PROBES)
@pytest.mark.parametrize("touch", SEAT_TOUCHES)
def test_a_seat_event_is_late_before_its_holds_last_change_and_not_at_it(
    fold: Fold, touch: str, probe: Callable[..., Document]
) -> None:
    fold.apply(*SEAT_TOUCHES[touch])
    untouched_by(fold, "seats", probe("a", "09:59:59.999"))
    assert fold.one(probe("a", "10:00")).late is False


@pytest.mark.parametrize("probe", FEATURE_PROBES)
@pytest.mark.parametrize("touch", FEATURE_TOUCHES)
def test_a_feature_event_is_late_before_its_holds_last_change_and_not_at_it(
    fold: Fold, touch: str, probe: Callable[..., Document]
) -> None:
    fold.apply(*FEATURE_TOUCHES[touch])
    untouched_by(fold, "render", probe("a", "09:59:59.999"))
    assert fold.one(probe("a", "10:00")).late is False


def test_denials_touch_no_hold_and_are_not_late_because_of_one(fold: Fold) -> None:
    fold.apply(activated("a", "10:00"))
    assert fold.one(denied("09:59", seat_id="a")).late is False
    fold.apply(denied("10:30", seat_id="a"))
    assert fold.one(deactivated("a", "10:15")).late is False
    assert fold.level() == 0


def test_an_expiry_of_nothing_touches_no_hold(fold: Fold) -> None:
    fold.apply(activated("a", "10:00", lease="12:00"), expired("a", "10:30"), expired("b", "10:30"))
    assert fold.one(deactivated("a", "10:15")).late is False
    assert fold.one(activated("b", "10:15")).late is False


def test_the_last_change_is_the_events_own_time_and_not_where_it_was_placed(fold: Fold) -> None:
    fold.apply(activated("b", "10:30"), activated("a", "10:10"))  # placed at 10:30
    assert fold.one(deactivated("a", "10:20")).late is False
    assert fold.holds() == {"b": 1}


def test_a_disordered_event_about_another_hold_is_not_late(fold: Fold) -> None:
    fold.apply(activated("a", "10:30"))
    outcome = fold.one(activated("b", "09:45"))
    assert (outcome.late, outcome.level, outcome.t) == (False, 2, ms("10:30"))


def test_an_old_snapshot_is_not_late_because_of_holds(fold: Fold) -> None:
    fold.apply(activated("a", "10:00"), activated("b", "10:30"))
    outcome = fold.one(snapshot("10:10", {"c": 1}))
    assert (outcome.late, outcome.t, outcome.level) == (False, ms("10:30"), 2)
    assert fold.holds() == {"b": 1, "c": 1}


# --- Late: counters


@pytest.mark.parametrize("start", [reset("10:00"), counted(5, "10:00")], ids=["reset", "counter snapshot"])
@pytest.mark.parametrize(
    "probe",
    [lambda at: used(at, quantity=3), reset, lambda at: counted(8, at)],
    ids=["used", "reset", "counter snapshot"],
)
def test_a_counter_event_is_late_before_the_last_reset_or_snapshot_and_not_at_it(
    fold: Fold, start: Document, probe: Callable[[str], Document]
) -> None:
    fold.apply(used("09:30", quantity=2), start)
    untouched_by(fold, "count", probe("09:59:59.999"))
    assert fold.one(probe("10:00")).late is False


def test_use_at_the_very_time_of_a_reset_counts(fold: Fold) -> None:
    assert fold.one(used("09:30", quantity=2), reset("10:00"), used("10:00", quantity=3)).level == 3


def test_use_before_earlier_use_is_not_late(fold: Fold) -> None:
    outcome = fold.one(used("10:30", quantity=2), used("09:45", quantity=3))
    assert (outcome.late, outcome.level, outcome.t) == (False, 5, ms("10:30"))
    outcome = fold.one(reset("10:10"))
    assert (outcome.late, outcome.level, outcome.t) == (False, 0, ms("10:30"))


def test_a_pool_snapshot_makes_no_use_late_and_a_reset_no_hold(fold: Fold) -> None:
    fold.apply(snapshot("10:00", {}, element="x"))
    assert fold.one(used("09:50", element="x")).late is False
    fold.apply(reset("10:30", element="x"))
    assert fold.one(checked_out("a", "10:15", element="x")).late is False


# --- Late: terms


def test_terms_older_than_those_in_force_are_late(fold: Fold) -> None:
    fold.apply(limited("10:00", 5), activated("a", "10:00"))
    untouched_by(fold, "seats", limited("09:59:59.999", 0))
    assert fold.one(limited("10:00", 7)).late is False
    terms = fold.head().terms
    assert terms is not None
    assert terms.limit == 7


def test_terms_are_late_by_no_age(fold: Fold) -> None:
    """Months before the clock, but the first, and then older than the clock, but newer than those in force."""
    fold.apply(activated("a", "10:00"), activated("b", "10:00"))
    first = fold.one(limited("2025-12-01T00:00", 1))
    assert (first.late, first.t, first.state) == (False, ms("10:00"), "over_hard_limit")
    assert first.transition is not None
    second = fold.one(limited("2025-12-02T00:00", 3))
    assert (second.late, second.t, second.state) == (False, ms("10:00"), "within")
    assert fold.one(limited("2025-12-01T12:00", 0)).late is True


def test_terms_are_late_for_each_element_on_its_own(fold: Fold) -> None:
    fold.apply(changed("10:00", {"seats": {"limit": 5}}))
    outcomes = fold.apply(changed("09:00", {"seats": {"limit": 1}, "render": {"limit": 1}}))
    assert [(outcome.element, outcome.late) for outcome in outcomes] == [("seats", True), ("render", False)]


# --- Late: more than LATE_AFTER (one hour here) before the clock


AGE_PROBES: dict[str, tuple[str, Callable[[str], Document]]] = {
    "seat.activated": ("seats", lambda at: activated("z", at)),
    "seat.refreshed": ("seats", lambda at: refreshed("z", at)),
    "seat.deactivated": ("seats", lambda at: deactivated("z", at)),
    "seat.denied": ("seats", lambda at: denied(at, seat_id="z")),
    "feature.checked_out": ("render", lambda at: checked_out("z", at)),
    "feature.returned": ("render", lambda at: returned("z", at)),
    "feature.refreshed": ("render", lambda at: feature_refreshed("z", at)),
    "feature.denied": ("render", lambda at: feature_denied(at)),
    "feature.used": ("count", lambda at: used(at)),
    "feature.reset": ("count", lambda at: reset(at)),
    "pool snapshot": ("seats", lambda at: snapshot(at, {"z": 1})),
    "counter snapshot": ("count", lambda at: counted(5, at)),
}


@pytest.mark.parametrize("name", AGE_PROBES)
def test_an_event_is_late_when_more_than_late_after_before_the_clock(fold: Fold, name: str) -> None:
    element, probe = AGE_PROBES[name]
    fold.apply(feature_denied("12:00", element=element))
    untouched_by(fold, element, probe("10:59:59.999"))
    assert fold.one(probe("11:00")).late is False


def test_late_after_is_a_setting() -> None:
    fold = Fold(late_after_ms=5 * MINUTE)
    fold.apply(denied("12:00"))
    assert fold.one(activated("a", "11:54:59.999")).late is True
    assert fold.one(activated("a", "11:55")).late is False


def test_an_expiry_is_late_by_no_age(fold: Fold) -> None:
    fold.apply(activated("a", "10:00", lease="10:30"), checked_out("a", "10:00", lease="10:30"))
    fold.apply(denied("18:00"), feature_denied("18:00"))
    outcomes = [fold.one(expired("a", "10:31")), fold.one(feature_expired("a", "10:31"))]
    assert [(outcome.late, outcome.effect, outcome.level, outcome.t) for outcome in outcomes] == [
        (False, True, 0, ms("18:00")),
        (False, True, 0, ms("18:00")),
    ]


def test_an_uploaded_log_of_last_week_does_not_look_like_a_rush_of_users_now(fold: Fold) -> None:
    fold.apply(limited("01T00:00", 2), activated("now", "10:00"))
    fold.take()
    uploaded = [activated(f"s{n}", f"03T10:{n:02}") for n in range(30)]
    assert fold.transitions(*uploaded) == []
    assert fold.level() == 1
    assert fold.head().clock == ms("10:00")
    changes = fold.take()
    assert changes.days == []
    assert [(mark.first_day, mark.last_day) for mark in changes.marks] == [("2026-03-03", "2026-03-10")]


def test_a_closed_hold_is_remembered_for_late_after(fold: Fold) -> None:
    fold.apply(activated("a", "10:00"), deactivated("a", "10:30"), denied("11:30"))
    assert fold.one(activated("a", "10:29:59.999")).late is True
    assert fold.one(activated("a", "10:30")).late is False


def test_a_hold_that_was_opened_again_is_not_forgotten(fold: Fold) -> None:
    fold.apply(activated("a", "10:00"), deactivated("a", "10:10"), activated("a", "10:20"))
    fold.apply(denied("14:00"), activated("b", "15:00"))
    assert fold.holds() == {"a": 1, "b": 1}
    assert fold.one(deactivated("a", "15:01")).delta == -1


def test_a_closed_hold_is_forgotten_after_that(fold: Fold) -> None:
    fold.apply(activated("a", "10:00"), deactivated("a", "10:30"), denied("11:30:00.001"), activated("b", "11:31"))
    assert set(fold.ledger.elements["ent-1", "seats"].holds) == {"b"}


def test_a_closed_hold_that_is_touched_again_keeps_no_other_from_being_forgotten(fold: Fold) -> None:
    """`a` was closed first, and touched again at 10:50; at 11:30 only what changed before 10:30 is forgotten."""
    fold.apply(deactivated("a", "10:00"), deactivated("b", "10:10"), deactivated("a", "10:50"), denied("11:30"))
    assert set(fold.ledger.elements["ent-1", "seats"].holds) == {"a"}


# --- Disordered (section 3)


def marks_of(changes: Changes) -> list[tuple[str, str, str]]:
    return sorted((mark.element, mark.first_day, mark.last_day) for mark in changes.marks)


def test_events_in_order_make_no_marks(fold: Fold) -> None:
    fold.apply(activated("a", "10:00"), activated("b", "10:00"), deactivated("a", "11T00:00"))
    assert fold.take().marks == []


def test_a_disordered_event_marks_from_its_day_to_the_day_where_it_was_placed(fold: Fold) -> None:
    fold.apply(activated("a", "12T00:30"))
    outcome = fold.one(activated("b", "11T23:45", id="d"))
    assert outcome.late is False
    [mark] = fold.take().marks
    assert mark == DayMark(
        entitlement="ent-1",
        element="seats",
        first_day="2026-03-11",
        last_day="2026-03-12",
        timezone="UTC",
        position=position_of(1, 1),
        since=position_of(1, 1),
    )


def test_a_disordered_event_of_the_same_day_marks_that_day(fold: Fold) -> None:
    fold.apply(activated("a", "10:30"), activated("b", "10:29:59.999"))
    assert marks_of(fold.take()) == [("seats", "2026-03-10", "2026-03-10")]


def test_late_events_mark_days_too(fold: Fold) -> None:
    fold.apply(activated("a", "10:00"))
    assert fold.one(activated("b", "05T10:00")).late is True
    assert marks_of(fold.take()) == [("seats", "2026-03-05", "2026-03-10")]


def test_disordered_denials_and_terms_mark_days(fold: Fold) -> None:
    fold.apply(activated("a", "10:00"), denied("09:30"))
    assert marks_of(fold.take()) == [("seats", "2026-03-10", "2026-03-10")]
    fold.apply(limited("01T00:00", 3))
    assert marks_of(fold.take()) == [("seats", "2026-03-01", "2026-03-10")]


def test_marks_are_one_range_for_each_element_and_take(fold: Fold) -> None:
    fold.apply(activated("a", "10T10:00"), used("20T10:00"))
    fold.apply(
        activated("b", "08T10:00"),
        used("19T10:00"),
        activated("c", "12T10:00"),
        activated("d", "11T10:00"),
        activated("e", "05T10:00"),
        activated("f", "09T10:00"),
    )
    changes = fold.take()
    assert marks_of(changes) == [("count", "2026-03-19", "2026-03-20"), ("seats", "2026-03-05", "2026-03-12")]
    assert {mark.element: epoch_and_offset(mark.position) for mark in changes.marks} == {"count": (1, 3), "seats": (1, 7)}
    assert fold.take().marks == []
    fold.apply(activated("g", "12T09:59"))
    assert marks_of(fold.take()) == [("seats", "2026-03-12", "2026-03-12")]


def test_marks_name_local_dates() -> None:
    fold = Fold("Asia/Tokyo")  # nine hours before UTC, all year
    fold.apply(activated("a", "10T15:30"), activated("b", "10T14:59"))
    [mark] = fold.take().marks
    assert (mark.first_day, mark.last_day, mark.timezone) == ("2026-03-10", "2026-03-11", "Asia/Tokyo")


def test_terms_mark_each_element_by_its_own_clock(fold: Fold) -> None:
    fold.apply(activated("a", "10T10:00"), checked_out("a", "11T10:00"), used("08T10:00"))
    fold.apply(changed("09T10:00", {"seats": {"limit": 1}, "render": {"limit": 1}, "count": {"limit": 1}}))
    assert marks_of(fold.take()) == [("render", "2026-03-09", "2026-03-11"), ("seats", "2026-03-09", "2026-03-10")]


def test_a_repeat_marks_nothing(fold: Fold) -> None:
    fold.apply(activated("a", "10:00", id="1"), activated("b", "10:30"))
    assert fold.apply(activated("a", "10:00", id="1")) == []
    assert fold.take().marks == []


# --- Duplicates (section 2)


def test_a_repeat_is_known_by_source_and_id(fold: Fold) -> None:
    fold.apply(checked_out("a", "10:00", id="1", source="/s"))
    assert fold.apply(checked_out("a", "10:00", id="1", source="/s")) == []
    assert fold.level("render") == 1


@pytest.mark.parametrize(("source", "id"), [("/other", "1"), ("/s", "11"), ("/S", "1"), ("/s/", "1"), ("1", "/s")])
def test_another_source_or_id_is_another_event(fold: Fold, source: str, id: str) -> None:
    fold.apply(checked_out("a", "10:00", id="1", source="/s"))
    assert fold.one(checked_out("a", "10:00", id=id, source=source)).level == 2


def test_the_boundary_between_source_and_id_counts(fold: Fold) -> None:
    fold.apply(checked_out("a", "10:00", id="bc", source="/a"))
    assert fold.one(checked_out("a", "10:00", id="c", source="/ab")).level == 2


def test_the_first_arrival_counts_whatever_the_times(fold: Fold) -> None:
    fold.apply(activated("a", "10:00", id="1", lease="11:00"))
    for at in ("09:59", "10:00", "10:30"):
        assert fold.apply(activated("a", at, id="1", lease="13:00")) == []
    assert fold.lease("a") == ms("11:00")
    assert fold.head().clock == ms("10:00")


def test_the_same_id_of_another_entitlement_is_another_event(fold: Fold) -> None:
    fold.apply(activated("a", "10:00", id="1"), activated("a", "10:00", id="1", subject="ent-2"))
    assert [fold.level("seats", entitlement) for entitlement in ("ent-1", "ent-2")] == [1, 1]


def test_repeated_terms_are_known_for_each_element(fold: Fold) -> None:
    elements = {"seats": {"limit": 1}, "render": {"limit": 1}}
    fold.apply(changed("10:00", elements, id="1"))
    assert fold.apply(changed("10:00", elements, id="1")) == []


def test_the_id_of_a_late_event_is_remembered(fold: Fold) -> None:
    fold.apply(activated("a", "12:00"), activated("b", "10:00", id="late"))
    assert fold.apply(activated("b", "10:00", id="late")) == []


@pytest.mark.parametrize("before", [*range(0, 66), 127, 128, 129, 200])
def test_the_last_64_ids_of_an_element_are_remembered(fold: Fold, before: int) -> None:
    """Wherever the event stands among the others: 63 come after it."""
    fold.apply(*(denied("10:00") for _ in range(before)))
    fold.apply(denied("10:00", id="it"), *(denied("10:01") for _ in range(63)))
    assert fold.apply(denied("10:00", id="it")) == []


def test_a_pools_memory_of_ids_is_bounded(fold: Fold) -> None:
    fold.apply(*(denied(shifted("10:00", n)) for n in range(2_000)))
    element = fold.ledger.elements["ent-1", "seats"]
    remembered = len(element.head.recent) + sum(len(block.ids) for block in element.blocks)
    assert remembered <= 8 * 128


HUNDREDS = [f"other-{n}" for n in range(400)]


@pytest.mark.parametrize(
    ("before", "last"),
    [
        ([], activated("a", "10:00", id="1")),
        ([activated("a", "09:50")], refreshed("a", "10:00", id="1")),
        ([activated("a", "09:50")], deactivated("a", "10:00", id="1")),
        ([], deactivated("a", "10:00", id="1")),
        ([activated("a", "09:50", lease="09:55")], expired("a", "10:00", id="1")),
    ],
    ids=["opening", "renewing", "closing", "closing what was not open", "expiry"],
)
def test_a_holds_last_id_is_known_after_hundreds_of_others(fold: Fold, before: list[Document], last: Document) -> None:
    fold.apply(*before, last, *(activated(seat, "10:05") for seat in HUNDREDS))
    level = fold.level()
    assert fold.apply(last) == []
    assert fold.level() == level


def test_a_closed_holds_last_id_is_known_as_long_as_its_time_is_not_late(fold: Fold) -> None:
    closing = deactivated("a", "10:30", id="1")
    fold.apply(activated("a", "10:00"), closing, *(activated(seat, "11:30") for seat in HUNDREDS))
    assert fold.apply(closing) == []
    assert fold.day(10).deactivations == 1


def test_all_ids_at_a_holds_last_change_are_known_after_hundreds_of_others(fold: Fold) -> None:
    """Two checkouts of one moment: each must be known, or one of them counts twice."""
    taken = [checked_out("a", "10:00", id=f"of-the-moment-{n}") for n in range(3)]
    fold.apply(*taken, *(checked_out(seat, "10:05") for seat in HUNDREDS))
    assert [fold.apply(document) for document in taken] == [[], [], []]
    assert fold.level("render") == 403


def test_a_holds_ids_at_its_last_change_are_known_however_many_they_are(fold: Fold) -> None:
    """Servers that log by the second give many events of a seat the same time."""
    taken = [checked_out("a", "10:00", id=f"of-the-moment-{n}") for n in range(100)]
    fold.apply(*taken, *(checked_out(seat, "10:05") for seat in HUNDREDS))
    assert [number for number, document in enumerate(taken) if fold.apply(document)] == []
    assert fold.level("render") == 500


def test_the_id_of_an_event_that_a_snapshot_of_the_same_moment_undid_is_known_after_hundreds_of_others(fold: Fold) -> None:
    """The snapshot is the hold's last change, and the event of the same moment is not before it."""
    opening = activated("a", "10:00", id="1")
    fold.apply(opening, snapshot("10:00", {}), *(activated(seat, "10:05") for seat in HUNDREDS))
    fold.apply(opening)
    assert "a" not in fold.holds()


def test_the_id_of_a_snapshot_that_named_the_hold_is_its_id(fold: Fold) -> None:
    fold.apply(snapshot("10:00", {"a": 1}, id="snap"), *(activated(seat, "10:05") for seat in HUNDREDS))
    assert fold.apply(deactivated("a", "10:00", id="snap")) == []


def test_a_counters_ids_within_late_after_are_known(fold: Fold) -> None:
    """5000 uses in less than an hour, every one of them sent again."""
    documents = [used(shifted("10:00", n * 700), id=f"use-{n}", quantity=2) for n in range(5_000)]
    fold.apply(*documents)
    assert fold.level("count") == 10_000
    assert [n for n, document in enumerate(documents) if fold.apply(document)] == []
    assert fold.level("count") == 10_000


def test_a_counters_id_exactly_late_after_before_the_clock_is_known(fold: Fold) -> None:
    """One millisecond older, and the repeat is late: it needs no memory."""
    at_boundary, older = used("10:00", id="boundary"), used("09:59:59.999", id="older")
    fold.apply(older, *(used("10:00") for _ in range(300)), at_boundary, *(used("10:00") for _ in range(300)))
    fold.apply(*(used("11:00") for _ in range(300)))
    level = fold.level("count")
    assert fold.apply(at_boundary) == []
    assert [outcome.late for outcome in fold.apply(older)] in ([], [True])
    assert fold.level("count") == level


def test_a_counters_ids_are_known_by_the_latest_of_those_that_arrived_with_them(fold: Fold) -> None:
    """Disordered, so that among the ids of one time there are older ones before and after."""
    documents = [used("10:50" if n % 10 == 0 else "10:00", id=f"use-{n}") for n in range(300)]
    fold.apply(*documents, *(used("11:30") for _ in range(300)))
    level = fold.level("count")
    assert [n for n, document in enumerate(documents) if n % 10 == 0 and fold.apply(document)] == []
    assert fold.level("count") == level


def test_a_counters_ids_older_than_late_after_are_forgotten(fold: Fold) -> None:
    fold.apply(*(used(shifted("10:00", n)) for n in range(1_000)), *(used("12:00") for _ in range(200)))
    element = fold.ledger.elements["ent-1", "count"]
    assert len(element.blocks) * 64 <= 256


def test_a_counters_memory_of_ids_is_bounded_at_10000(fold: Fold) -> None:
    documents = [used(shifted("10:00", n), id=f"use-{n}") for n in range(12_000)]
    fold.apply(*documents)
    element = fold.ledger.elements["ent-1", "count"]
    remembered = (len(element.head.recent) + sum(len(block.ids) for block in element.blocks)) // 8
    # A block of 64 more or less: ids are kept by the block.
    assert 10_000 <= remembered <= 10_000 + 2 * 64
    assert [n for n in range(2_000, 12_000) if fold.apply(documents[n])] == []


def test_a_counter_by_its_terms_remembers_ids_like_any_other(fold: Fold) -> None:
    fold.apply(changed("10:00", {"count": {"kind": "counter", "limit": 5}}), feature_denied("10:01", element="count", id="1"))
    fold.apply(*(feature_denied("10:02", element="count") for _ in range(200)))
    assert fold.apply(feature_denied("10:01", element="count", id="1")) == []


def test_an_id_is_not_found_across_two_others() -> None:
    identities = b"AAAA0123" + b"4567BBBB"
    assert contains(identities, b"01234567") is False
    assert contains(identities + b"01234567", b"01234567") is True
    assert contains(identities, b"AAAA0123") is True
    assert contains(identities, b"4567BBBB") is True
    assert contains(b"", b"01234567") is False


# --- Day rows (section 4)


def test_a_day_of_several_steps(fold: Fold) -> None:
    fold.apply(
        limited("09T22:00", 1, "absolute", 1),
        activated("a", "09T23:00"),
        activated("b", "10T00:00"),  # 2 of 1, from the very first instant of the day
        activated("c", "06:00"),  # 3 of 1
        deactivated("a", "12:00"),  # 2 for an instant
        deactivated("b", "12:00"),  # 1 of 1
        limited("18:00", 0),  # 1 of 0
        deactivated("c", "20:00"),  # 0 of 0
    )
    assert fold.day(10) == DayRow(
        entitlement="ent-1",
        element="seats",
        day="2026-03-10",
        timezone="UTC",
        day_start=ms("10T00:00"),
        day_end=ms("11T00:00"),
        customer=None,
        product=None,
        name=None,
        kind="pool",
        opening=1,
        closing=0,
        min=0,
        max=3,
        limit=1,
        hard_limit=2,
        terms_known=True,
        overdraft_ms=14 * HOUR,  # 00 to 12 above 1, 18 to 20 above 0
        unit_ms=(2 * 6 + 3 * 6 + 1 * 6 + 1 * 2) * HOUR,
        peak_overage=2,
        activations=2,
        deactivations=3,
        refreshes=0,
        denials=0,
        units_used=0,
        as_of=ms("20:00"),
        closing_limit=0,
        closing_hard_limit=0,
        closing_terms_known=True,
        state="within",
        entered_at=None,
        peak=None,
        position=position_of(1, 7),
    )
    before = fold.day(9)
    assert (before.opening, before.closing, before.min, before.max) == (0, 1, 0, 1)
    assert (before.as_of, before.unit_ms, before.overdraft_ms, before.activations) == (ms("09T23:00"), 0, 0, 1)
    assert (before.limit, before.hard_limit, before.position) == (1, 2, position_of(1, 1))


def test_a_hold_kept_over_midnight_is_in_use_at_midnight(fold: Fold) -> None:
    """Given back at 00:00 exactly, it still counts in the new day's maximum, and for no time at all."""
    fold.apply(activated("a", "10T22:00"), activated("b", "10T23:00"), deactivated("a", "11T00:00"))
    old, new = fold.day(10), fold.day(11)
    assert (old.opening, old.closing, old.min, old.max, old.deactivations) == (0, 2, 0, 2, 0)
    assert (old.unit_ms, old.as_of) == (1 * HOUR, ms("10T23:00"))
    assert (new.opening, new.closing, new.min, new.max, new.deactivations) == (2, 1, 1, 2, 1)
    assert (new.unit_ms, new.as_of) == (0, ms("11T00:00"))


def test_the_last_millisecond_belongs_to_the_old_day(fold: Fold) -> None:
    fold.apply(activated("a", "10T23:59:59.999"))
    assert fold.stored_days() == ["2026-03-10"]
    fold.apply(activated("b", "11T00:00"))
    assert fold.stored_days() == ["2026-03-10", "2026-03-11"]
    assert (fold.day(10).closing, fold.day(11).opening, fold.day(11).closing) == (1, 1, 2)


def test_the_opening_is_in_the_minimum_and_the_maximum(fold: Fold) -> None:
    fold.apply(snapshot("10T10:00", {"a": 5}), snapshot("11T10:00", {"a": 7}), snapshot("12T10:00", {"a": 4}))
    assert [(row.min, row.max) for row in (fold.day(10), fold.day(11), fold.day(12))] == [(0, 5), (5, 7), (4, 7)]


def test_every_value_counts_even_for_an_instant(fold: Fold) -> None:
    fold.apply(counted(5, "09T10:00"), counted(0, "10:00"), counted(9, "10:00"), counted(5, "10:00"))
    row = fold.day(10, "count")
    assert (row.opening, row.min, row.max, row.closing, row.unit_ms) == (5, 0, 9, 5, 5 * 10 * HOUR)


def test_before_its_first_event_the_level_of_an_element_is_0(fold: Fold) -> None:
    fold.apply(snapshot("10:00", {"a": 5}))
    row = fold.day(10)
    assert (row.opening, row.min, row.unit_ms, row.as_of) == (0, 0, 0, ms("10:00"))


def test_a_day_without_events_has_no_stored_row(fold: Fold) -> None:
    fold.apply(limited("08T09:00", 1), activated("a", "08T10:00"), activated("b", "08T11:00"), deactivated("a", "12T10:00"))
    assert fold.stored_days() == ["2026-03-08", "2026-03-12"]
    row = fold.day(12)
    assert (row.opening, row.min, row.max, row.closing) == (2, 1, 2, 1)
    assert (row.unit_ms, row.overdraft_ms, row.peak_overage) == (20 * HOUR, 10 * HOUR, 1)


def test_a_late_event_touches_no_day_row(fold: Fold) -> None:
    fold.apply(activated("a", "10T10:00"), activated("a", "12T10:00"))
    before = fold.day(12)
    fold.apply(activated("b", "12T08:00"), activated("b", "10T11:00"), denied("11T11:00"))
    assert fold.stored_days() == ["2026-03-10", "2026-03-12"]
    assert fold.day(12) == before


def test_a_disordered_event_counts_where_it_is_placed(fold: Fold) -> None:
    fold.apply(activated("a", "11T00:30"), activated("b", "10T23:45"))
    assert fold.stored_days() == ["2026-03-11"]
    row = fold.day(11)
    assert (row.activations, row.max, row.as_of, row.position) == (2, 2, ms("11T00:30"), position_of(1, 1))


def test_position_and_as_of_are_of_the_last_event_in_the_day(fold: Fold) -> None:
    fold.apply(activated("a", "10:00"), used("11:00"), denied("12:00"), activated("z", "09:00"))
    row = fold.day(10)
    assert (row.as_of, epoch_and_offset(row.position)) == (ms("12:00"), (1, 2))
    fold.apply(expired("a", "13:00"), activated("b", "11T01:00"))
    row = fold.day(10)
    assert (row.as_of, row.unit_ms, epoch_and_offset(row.position)) == (ms("13:00"), 3 * HOUR, (1, 4))


def test_a_row_is_given_again_only_when_something_was_added_to_it(fold: Fold) -> None:
    fold.apply(activated("a", "10T10:00"))
    assert [row.day for row in fold.take().days] == ["2026-03-10"]
    assert fold.take().days == []
    fold.apply(activated("b", "11T10:00"))
    assert [row.day for row in fold.take().days] == ["2026-03-11"]
    fold.apply(activated("c", "11T11:00"), activated("d", "12T10:00"), activated("e", "14T10:00"))
    assert sorted(row.day for row in fold.take().days) == ["2026-03-11", "2026-03-12", "2026-03-14"]


def test_counts(fold: Fold) -> None:
    fold.apply(
        activated("a", "10:00", lease="10:30"),
        activated("a", "10:01", lease="10:30"),  # changes no level, and counts
        refreshed("a", "10:02", lease="10:30"),
        refreshed("b", "10:03"),  # opens a hold, and is still a refresh
        deactivated("c", "10:04"),  # was not open, and counts
        deactivated("b", "10:05"),
        expired("a", "10:06"),  # its lease has not ended: not counted
        expired("a", "10:31"),
        expired("a", "10:32"),  # not open: not counted
        denied("10:33"),
        denied("10:34", seat_id="a"),
        snapshot("10:35", {"x": 1}),  # is none of these
        limited("10:36", 5),
    )
    row = fold.day(10)
    assert (row.activations, row.refreshes, row.deactivations, row.denials, row.units_used) == (2, 2, 3, 2, 0)


def test_counts_of_features(fold: Fold) -> None:
    fold.apply(
        checked_out("a", "10:00", quantity=5, lease="10:30"),
        checked_out("a", "10:01", quantity=5, lease="10:30"),
        feature_refreshed("a", "10:02", lease="10:30"),
        returned("a", "10:03", quantity=2),
        returned("b", "10:04", quantity=2),
        feature_expired("a", "10:29"),
        feature_expired("a", "10:30"),
        feature_denied("10:31", quantity=7),
    )
    row = fold.day(10, "render")
    assert (row.activations, row.refreshes, row.deactivations, row.denials, row.units_used) == (2, 1, 3, 1, 0)
    fold.apply(used("10:00", quantity=4), used("10:01"), reset("10:02"), used("10:03", quantity=2), counted(50, "10:04"))
    row = fold.day(10, "count")
    assert (row.units_used, row.activations, row.closing, row.max, row.kind) == (7, 0, 50, 50, "counter")


def test_counts_begin_again_every_day(fold: Fold) -> None:
    fold.apply(activated("a", "10T10:00"), denied("10T11:00"), refreshed("a", "11T10:00"))
    row = fold.day(11)
    assert (row.activations, row.refreshes, row.denials) == (0, 1, 0)


def test_limits_are_the_highest_in_force_those_at_the_opening_included(fold: Fold) -> None:
    fold.apply(limited("09T10:00", 10, "absolute", 1), limited("10T10:00", 4, "absolute", 9), limited("10T11:00", 2))
    row = fold.day(10)
    # Each is the highest of its own: 10 of the opening, 13 of the terms with limit 4.
    assert (row.limit, row.hard_limit, row.terms_known) == (10, 13, True)
    assert (row.closing_limit, row.closing_hard_limit, row.closing_terms_known) == (2, 2, True)
    fold.apply(denied("11T10:00"))
    assert (fold.day(11).limit, fold.day(11).hard_limit) == (2, 2)


def test_limits_at_the_opening_count_even_when_replaced_at_midnight(fold: Fold) -> None:
    fold.apply(limited("09T10:00", 10), limited("10T00:00", 4))
    assert (fold.day(10).limit, fold.day(10).closing_limit) == (10, 4)
    assert fold.day(9).limit == 10


def test_not_limited_is_higher_than_any_number(fold: Fold) -> None:
    fold.apply(limited("09T10:00", 10), limited("10T10:00", None), limited("10T11:00", 99))
    row = fold.day(10)
    assert (row.limit, row.hard_limit, row.terms_known) == (None, None, True)
    assert (row.closing_limit, row.closing_hard_limit) == (99, 99)


def test_an_unlimited_overdraft_is_a_hard_limit_higher_than_any_number(fold: Fold) -> None:
    fold.apply(limited("10T10:00", 5, "unlimited"), limited("10T11:00", 3, "absolute", 900))
    assert (fold.day(10).limit, fold.day(10).hard_limit) == (5, None)


def test_a_day_of_an_element_that_is_not_limited(fold: Fold) -> None:
    fold.apply(limited("10:00", None), snapshot("10:01", {"a": 900}), denied("20:01"))
    row = fold.day(10)
    assert (row.limit, row.terms_known, row.overdraft_ms, row.peak_overage) == (None, True, 0, 0)
    assert row.unit_ms == 9_000 * HOUR


def test_moments_before_the_first_terms_are_left_out_of_the_limits(fold: Fold) -> None:
    fold.apply(activated("a", "09:00"), activated("b", "09:00"))
    row = fold.day(10)
    assert (row.limit, row.hard_limit, row.terms_known, row.closing_terms_known) == (None, None, False, False)
    fold.apply(limited("12:00", 1))
    row = fold.day(10)
    assert (row.limit, row.hard_limit, row.terms_known, row.closing_terms_known) == (1, 1, True, True)
    fold.apply(denied("14:00"))
    row = fold.day(10)
    assert (row.overdraft_ms, row.unit_ms, row.peak_overage) == (2 * HOUR, 10 * HOUR, 1)


def test_time_at_the_limit_is_not_overdraft(fold: Fold) -> None:
    fold.apply(limited("10:00", 1), activated("a", "11:00"), denied("15:00"))
    row = fold.day(10)
    assert (row.overdraft_ms, row.peak_overage, row.unit_ms) == (0, 0, 4 * HOUR)


def test_peak_overage_includes_the_opening_and_new_terms(fold: Fold) -> None:
    fold.apply(limited("09T09:00", 1), snapshot("09T10:00", {"a": 4}), snapshot("10:00", {"a": 1}))
    assert fold.day(10).peak_overage == 3
    fold.apply(snapshot("11T10:00", {"a": 3}), limited("11T11:00", 0), snapshot("11T12:00", {"a": 1}))
    assert fold.day(11).peak_overage == 3


def test_a_day_row_names_the_overdraft_that_it_is_in(fold: Fold) -> None:
    fold.apply(limited("10T10:00", 1), snapshot("10T11:00", {"a": 4}), snapshot("11T10:00", {"a": 2}))
    for row in (fold.day(10), fold.day(11)):
        assert (row.state, row.entered_at, row.peak) == ("over_hard_limit", ms("10T11:00"), 4)
    fold.apply(snapshot("11T12:00", {"a": 1}))
    row = fold.day(11)
    assert (row.state, row.entered_at, row.peak) == ("at_limit", None, None)


def test_a_day_of_23_hours() -> None:
    """Paris, 29 March 2026: from 23:00 UTC of the 28th to 22:00 UTC of the 29th."""
    fold = Fold("Europe/Paris")
    fold.apply(limited("28T10:00", 0), activated("a", "28T12:00"), denied("29T21:30"), deactivated("a", "29T22:00"))
    row = fold.day(29)
    assert (row.day_start, row.day_end, row.day_end - row.day_start) == (ms("28T23:00"), ms("29T22:00"), 23 * HOUR)
    assert (row.as_of, row.closing) == (ms("29T21:30"), 1)
    assert row.unit_ms == row.overdraft_ms == 22 * HOUR + 30 * MINUTE
    row = fold.day(30)
    assert (row.day_start, row.opening, row.closing, row.unit_ms, row.deactivations) == (ms("29T22:00"), 1, 0, 0, 1)


def test_a_day_of_25_hours() -> None:
    """Paris, 25 October 2026: from 22:00 UTC of the 24th to 23:00 UTC of the 25th."""
    fold = Fold("Europe/Paris")
    fold.apply(activated("a", "2026-10-24T12:00"), activated("b", "2026-10-25T10:00"), denied("2026-10-25T22:59:59.999"))
    fold.take()
    row = fold.rows["seats", "2026-10-25"]
    assert (row.day_start, row.day_end) == (ms("2026-10-24T22:00"), ms("2026-10-25T23:00"))
    # One hold for the whole day, one from the 13th hour on; all but the last millisecond.
    assert row.unit_ms == (25 + 13) * HOUR - 2
    fold.apply(denied("2026-10-25T23:00"))
    fold.take()
    assert fold.rows["seats", "2026-10-26"].opening == 2


def test_a_date_without_instants_has_no_row() -> None:
    """Apia went from 29 to 31 December 2011 at 10:00 UTC of the 30th."""
    fold = Fold("Pacific/Apia")
    fold.apply(activated("a", "2011-12-30T09:59:59.999"), activated("b", "2011-12-30T10:00"))
    assert fold.stored_days() == ["2011-12-29", "2011-12-31"]
    row = fold.rows["seats", "2011-12-29"]
    assert (row.day_start, row.day_end) == (ms("2011-12-29T10:00"), ms("2011-12-30T10:00"))


# --- Elements, and whose they are


def test_elements_do_not_touch_each_other(fold: Fold) -> None:
    fold.apply(
        activated("a", "10:00"),
        checked_out("a", "10:00", element="render", quantity=2),
        checked_out("a", "10:00", element="mesh", quantity=3),
        used("10:00", quantity=4),
    )
    fold.apply(deactivated("a", "10:01"))
    assert [fold.level(element) for element in ("seats", "render", "mesh", "count")] == [0, 2, 3, 4]
    fold.apply(snapshot("10:02", {}, element="render"), reset("10:03"))
    assert [fold.level(element) for element in ("seats", "render", "mesh", "count")] == [0, 0, 3, 0]
    fold.apply(activated("a", "10:04", subject="ent-2"), returned("a", "10:05", element="mesh", subject="ent-2"))
    assert fold.level("seats") == 0
    assert fold.level("mesh") == 3


def test_each_element_has_its_own_clock_and_late_rules(fold: Fold) -> None:
    fold.apply(activated("a", "18:00"), limited("18:00", 1))
    outcome = fold.one(checked_out("a", "10:00"))
    assert (outcome.late, outcome.t) == (False, ms("10:00"))
    outcome = fold.one(activated("a", "10:00", subject="ent-2"))
    assert (outcome.late, outcome.t, outcome.state) == (False, ms("10:00"), "within")
    assert fold.take().marks == []


def test_seat_and_seats_as_a_feature_are_one_element(fold: Fold) -> None:
    fold.apply(activated("a", "10:00"), checked_out("a", "10:01", element="seats", quantity=2))
    assert fold.holds() == {"a": 3}


def test_customer_and_product_are_the_events_without_terms(fold: Fold) -> None:
    outcome = fold.one(activated("a", "10:00", customer="c-event", product="p-event"))
    assert (outcome.customer, outcome.product) == ("c-event", "p-event")
    assert (fold.day(10).customer, fold.day(10).product) == ("c-event", "p-event")


def test_customer_and_product_are_those_of_the_latest_terms(fold: Fold) -> None:
    outcome = fold.one(
        limited("10:00", 1, customer="c-1", product="p-1"),
        limited("10:01", 1, customer="c-2", product="p-2"),
        activated("a", "10:02", customer="c-event", product="p-event"),
    )
    assert (outcome.customer, outcome.product) == ("c-2", "p-2")
    assert outcome.transition is not None
    assert (outcome.transition.customer, outcome.transition.product) == ("c-2", "p-2")
    outcome = fold.one(limited("09:30", 1, customer="c-late"))
    assert (outcome.late, outcome.customer) == (True, "c-2")


def test_each_element_has_the_customer_of_its_own_terms(fold: Fold) -> None:
    fold.apply(limited("10:00", 1, customer="c-1"), checked_out("a", "10:01", customer="c-2"))
    assert (fold.head("seats").customer, fold.head("render").customer) == ("c-1", "c-2")


def test_a_late_event_does_not_say_whose_an_element_is(fold: Fold) -> None:
    fold.apply(activated("a", "12:00", customer="c-1"))
    assert fold.one(activated("b", "10:00", customer="c-2")).customer == "c-1"


def test_terms_carry_the_name_and_the_lease_policy(fold: Fold) -> None:
    fold.apply(limited("10:00", 1, name="CAD Pro, Berlin", lease_policy="keep"))
    assert (fold.day(10).name, fold.head().lease_policy) == ("CAD Pro, Berlin", "keep")


@pytest.mark.parametrize(("epoch", "offset"), [(0, 0), (1, 0), (1, 2**48 - 1), (7, 123_456_789_012)])
def test_positions_sort_by_epoch_then_offset(epoch: int, offset: int) -> None:
    assert position_of(epoch, offset) == epoch * 2**48 + offset
    assert epoch_and_offset(position_of(epoch, offset)) == (epoch, offset)
    assert position_of(epoch, 2**48 - 1) < position_of(epoch + 1, 0)


def test_no_input_makes_a_level_negative(fold: Fold) -> None:
    def stream() -> Iterator[Document]:
        yield returned("a", "10:00", element="x", quantity=9)
        yield reset("10:01", element="x")
        yield deactivated("a", "10:02")
        yield snapshot("10:03", {}, element="x")
        yield feature_expired("a", "10:04", element="x")
        yield checked_out("a", "10:05", element="x")
        yield returned("a", "10:06", element="x", quantity=9)
        yield counted(0, "10:07", element="x")

    assert [fold.one(document).level for document in stream()] == [0, 0, 0, 0, 0, 1, 0, 0]
