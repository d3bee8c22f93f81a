"""The oracle itself, against values worked out by hand."""

import uuid
from datetime import date, timedelta
from typing import Any

import pytest

from tests.model import Element, day_of, day_start, make_terms, parse_ms, run, state_of

HOUR = 3_600_000
DAY = 24 * HOUR


def ev(id: str, type: str, time: str, **data: Any) -> dict[str, Any]:
    return {
        "specversion": "1.0", "id": id, "source": "/s", "type": type, "subject": "e", "time": time,
        "data": data,
    }  # fmt: skip


def on(id: str, time: str, seat: str, **data: Any) -> dict[str, Any]:
    return ev(id, "seat.activated", time, seat_id=seat, **data)


def off(id: str, time: str, seat: str) -> dict[str, Any]:
    return ev(id, "seat.deactivated", time, seat_id=seat)


def terms(id: str, time: str, limit: int | None, element: str = "seats", **overdraft: Any) -> dict[str, Any]:
    named = {"kind": "pool", "limit": limit} | ({"overdraft": overdraft} if overdraft else {})
    return ev(id, "entitlement.changed", time, customer="cus", product="prod", elements={element: named})


def live(*events: dict[str, Any], element: str = "seats", timezone: str = "UTC", **more: Any) -> Element:
    return run(list(events), timezone=timezone, **({"late_after_ms": HOUR} | more))[("e", element)]


def part(row: dict[str, Any], *names: str) -> tuple[Any, ...]:
    return tuple(row[name] for name in names)


def test_hold_over_midnight_and_day_without_events() -> None:
    e = live(
        terms("1", "2026-03-01T10:00:00Z", 1),
        on("2", "2026-03-01T22:00:00Z", "a"),
        on("3", "2026-03-01T23:00:00Z", "b"),
        off("4", "2026-03-03T06:00:00Z", "b"),
    )
    rows = e.day_rows(parse_ms("2026-03-03T12:00:00Z"))
    assert list(rows) == [date(2026, 3, d) for d in (1, 2, 3)]
    assert rows[date(2026, 3, 1)] == {
        "opening": 0, "closing": 2, "min": 0, "max": 2, "limit": 1, "hard_limit": 1, "terms_known": True,
        "overdraft_ms": HOUR, "unit_ms": 3 * HOUR, "peak_overage": 1,
        "activations": 2, "deactivations": 0, "refreshes": 0, "denials": 0, "units_used": 0,
    }  # fmt: skip
    assert rows[date(2026, 3, 2)] == {
        "opening": 2, "closing": 2, "min": 2, "max": 2, "limit": 1, "hard_limit": 1, "terms_known": True,
        "overdraft_ms": DAY, "unit_ms": 2 * DAY, "peak_overage": 1,
        "activations": 0, "deactivations": 0, "refreshes": 0, "denials": 0, "units_used": 0,
    }  # fmt: skip
    assert rows[date(2026, 3, 3)] == {  # up to now only: 6 h of 2 and 6 h of 1
        "opening": 2, "closing": 1, "min": 1, "max": 2, "limit": 1, "hard_limit": 1, "terms_known": True,
        "overdraft_ms": 6 * HOUR, "unit_ms": 18 * HOUR, "peak_overage": 1,
        "activations": 0, "deactivations": 1, "refreshes": 0, "denials": 0, "units_used": 0,
    }  # fmt: skip
    # now before as_of: complete to as_of, 6 h of 2
    assert e.day_rows(parse_ms("2026-03-03T01:00:00Z"))[date(2026, 3, 3)]["unit_ms"] == 12 * HOUR
    assert e.day_rows(parse_ms("2026-02-27T01:00:00Z")) == {}


def test_event_at_exactly_midnight_belongs_to_the_new_day() -> None:
    e = live(
        on("1", "2026-03-01T23:00:00Z", "a"),
        off("2", "2026-03-02T00:00:00.0009Z", "a"),  # truncated to 00:00:00.000
        terms("3", "2026-03-02T00:00:00Z", 5),
        terms("4", "2026-03-03T00:00:00Z", 3),
    )
    rows = e.day_rows(parse_ms("2026-03-04T12:00:00Z"))
    names = ("opening", "closing", "min", "max", "unit_ms", "deactivations", "limit", "terms_known")
    assert part(rows[date(2026, 3, 1)], *names) == (0, 1, 0, 1, HOUR, 0, None, False)
    assert part(rows[date(2026, 3, 2)], *names) == (1, 0, 0, 1, 0, 1, 5, True)
    assert rows[date(2026, 3, 3)]["limit"] == 5  # that at the opening included
    assert rows[date(2026, 3, 4)]["limit"] == 3


def test_days_of_23_and_25_hours() -> None:
    e = live(on("1", "2026-03-28T12:00:00Z", "a"), timezone="Europe/Berlin")
    rows = e.day_rows(parse_ms("2026-10-27T00:00:00Z"))
    assert rows[date(2026, 3, 28)]["unit_ms"] == 11 * HOUR  # 13:00 local
    assert rows[date(2026, 3, 29)]["unit_ms"] == 23 * HOUR
    assert rows[date(2026, 3, 30)]["unit_ms"] == 24 * HOUR
    assert rows[date(2026, 10, 25)]["unit_ms"] == 25 * HOUR
    assert rows[date(2026, 10, 27)]["unit_ms"] == HOUR


def test_odd_midnights() -> None:
    # Samoa went from -10 (DST) to +14 (DST) at the end of 2011-12-29: there was no 30th.
    e = live(on("1", "2011-12-29T20:00:00Z", "a"), timezone="Pacific/Apia")
    rows = e.day_rows(parse_ms("2012-01-01T10:00:00Z"))
    assert [(d.isoformat(), r["unit_ms"]) for d, r in rows.items()] == [
        ("2011-12-29", 14 * HOUR), ("2011-12-31", DAY), ("2012-01-01", DAY), ("2012-01-02", 0),
    ]  # fmt: skip
    # Newfoundland: 2010-11-07 00:01 (-2:30) became 2010-11-06 23:01 (-3:30).
    # The 7th began at the first 00:00; at 03:00Z the wall clock shows 23:30 of the 6th again.
    tz = "America/St_Johns"
    assert day_start(date(2010, 11, 7), tz) == parse_ms("2010-11-07T02:30:00Z")
    assert day_of(parse_ms("2010-11-07T02:29:59.999Z"), tz) == date(2010, 11, 6)
    assert day_of(parse_ms("2010-11-07T03:00:00Z"), tz) == date(2010, 11, 7)
    assert day_start(date(2010, 11, 8), tz) == parse_ms("2010-11-08T03:30:00Z")
    # Sao Paulo: 2018-11-04 began at 01:00 -2, there was no 00:00.
    assert day_start(date(2018, 11, 4), "America/Sao_Paulo") == parse_ms("2018-11-04T03:00:00Z")
    # Offsets with seconds: Monrovia -0:44:30 until 1972
    assert day_start(date(1971, 5, 1), "Africa/Monrovia") == parse_ms("1971-05-01T00:44:30Z")


@pytest.mark.parametrize(
    ("limit", "overdraft", "hard"),
    [
        (10, None, 10),
        (10, {"type": "none"}, 10),
        (10, {"type": "absolute", "value": 2}, 12),
        (10, {"type": "unlimited"}, None),
        (None, {"type": "absolute", "value": 2}, None),
        (0, {"type": "percentage", "value": 50}, 0),
        (19, {"type": "percentage", "value": 10}, 20),  # 1.9
        (100, {"type": "percentage", "value": 29}, 129),  # floats may say 28.999...
        (1_000_000, {"type": "percentage", "value": 0.0001}, 1_000_001),
        (3, {"type": "percentage", "value": 33.3333}, 3),  # 0.999999
        (2, {"type": "percentage", "value": "150.5"}, 5),
    ],
)
def test_hard_limit(limit: int | None, overdraft: dict[str, Any] | None, hard: int | None) -> None:
    assert make_terms({"limit": limit} | ({"overdraft": overdraft} if overdraft else {})) == (limit, hard)


def test_limit_is_required() -> None:
    with pytest.raises(KeyError):
        make_terms({"overdraft": {"type": "none"}})


def test_states() -> None:
    limited = make_terms({"limit": 2, "overdraft": {"type": "absolute", "value": 2}})
    assert [state_of(level, limited) for level in range(6)] == [
        "within", "within", "at_limit", "overdraft", "at_hard_limit", "over_hard_limit",
    ]  # fmt: skip
    nothing = make_terms({"limit": 0})  # 0 is a limit
    assert [state_of(level, nothing) for level in range(2)] == ["within", "over_hard_limit"]
    some = make_terms({"limit": 0, "overdraft": {"type": "absolute", "value": 1}})
    assert [state_of(level, some) for level in range(3)] == ["within", "at_hard_limit", "over_hard_limit"]
    endless = make_terms({"limit": 1, "overdraft": {"type": "unlimited"}})
    assert [state_of(level, endless) for level in (0, 1, 99)] == ["within", "at_limit", "overdraft"]
    assert state_of(99, make_terms({"limit": None})) == state_of(99, None) == "within"


def test_limit_null_is_higher_than_any_number() -> None:
    e = live(
        terms("1", "2026-03-01T10:00:00Z", 7),
        terms("2", "2026-03-01T11:00:00Z", None),
        terms("3", "2026-03-02T00:00:00Z", 0),
        on("4", "2026-03-03T01:00:00Z", "a"),
    )
    rows = e.day_rows(parse_ms("2026-03-03T02:00:00Z"))
    names = ("limit", "hard_limit", "terms_known", "overdraft_ms", "peak_overage")
    assert part(rows[date(2026, 3, 1)], *names) == (None, None, True, 0, 0)
    assert part(rows[date(2026, 3, 2)], *names) == (None, None, True, 0, 0)  # in force at the opening
    assert part(rows[date(2026, 3, 3)], *names) == (0, 0, True, HOUR, 1)


def test_transitions_and_episode() -> None:
    e = live(
        terms("t1", "2026-03-01T10:00:00Z", 1, type="absolute", value=2),
        on("1", "2026-03-01T10:01:00Z", "a"),
        on("2", "2026-03-01T10:02:00Z", "b"),
        on("3", "2026-03-01T10:03:00Z", "c"),
        on("4", "2026-03-01T10:04:00Z", "d"),
        off("5", "2026-03-01T10:05:00Z", "d"),
        terms("t2", "2026-03-01T10:06:00.500Z", 3),
        off("6", "2026-03-01T10:07:00Z", "c"),
    )
    assert [(a["type"], a["from"], a["to"], a["level"], a["overage"]) for a in e.alerts] == [
        ("limit.reached", "within", "at_limit", 1, 0),
        ("overdraft.entered", "at_limit", "overdraft", 2, 1),
        ("overdraft.changed", "overdraft", "at_hard_limit", 3, 2),
        ("overdraft.changed", "at_hard_limit", "over_hard_limit", 4, 3),
        ("overdraft.changed", "over_hard_limit", "at_hard_limit", 3, 2),
        ("overdraft.left", "at_hard_limit", "at_limit", 3, 0),
        ("limit.cleared", "at_limit", "within", 2, 0),
    ]
    assert e.alerts[5] == {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, 'seatmark:["alert","e","seats","/s","t2"]')),
        "type": "overdraft.left", "entitlement": "e", "customer": "cus", "product": "prod",
        "element": "seats", "from": "at_hard_limit", "to": "at_limit", "level": 3, "limit": 3,
        "hard_limit": 3, "overage": 0, "cause": {"source": "/s", "id": "t2", "type": "entitlement.changed"},
        "at": "2026-03-01T10:06:00.500Z", "entered_at": "2026-03-01T10:02:00.000Z",
        "duration_seconds": 240.5, "peak": 4, "peak_overage": 3,
    }  # fmt: skip
    assert "entered_at" not in e.alerts[0]
    assert e.state == "within"


def test_late_by_hold() -> None:
    events = [
        on("1", "2026-03-01T10:00:00Z", "a", customer="c1"),
        off("2", "2026-03-01T10:20:00Z", "b"),  # not open, yet a touch
        on("3", "2026-03-01T10:10:00Z", "b", customer="c2"),  # late: before the touch
        on("4", "2026-03-01T10:05:00Z", "c"),  # disordered, not late: placed at 10:20
        on("5", "2026-03-01T10:05:00Z", "c"),  # the same time is not before
        ev("6", "seat.expired", "2026-03-01T10:04:00Z", seat_id="c"),  # late
        ev("7", "seat.denied", "2026-03-01T10:01:00Z", seat_id="c"),  # denials are not about the hold
    ]
    e = live(*events)
    assert (e.late, e.holds, e.customer) == ([2, 5], {"a": 1, "c": 1}, "c1")
    assert e.levels_after == {0: 1, 1: 1, 2: 1, 3: 2, 4: 2, 5: 2, 6: 2}
    assert e.marks == [(date(2026, 3, 1), date(2026, 3, 1))] * 5
    row = e.day_rows(parse_ms("2026-03-01T11:20:00Z"))[date(2026, 3, 1)]
    # a for 20 min, then a and c for 1 h
    assert row["unit_ms"] == HOUR // 3 + 2 * HOUR
    assert part(row, "activations", "deactivations", "denials") == (3, 1, 1)
    exact = live(*events, exact=True)
    assert (exact.late, exact.marks, exact.level, exact.customer) == ([], [], 2, "c2")
    assert exact.day_rows(parse_ms("2026-03-01T11:20:00Z"))[date(2026, 3, 1)]["activations"] == 4


def test_late_by_age() -> None:
    e = live(
        on("1", "2026-03-02T00:30:00Z", "a", lease_expires_at="2026-03-02T01:00:00Z"),
        off("2", "2026-03-01T23:30:00Z", "x"),  # exactly 1 h: not late
        on("3", "2026-03-01T23:29:59.999Z", "y"),  # more than 1 h: late
        terms("4", "2026-02-27T00:00:00Z", 5),  # terms: whatever their age
        terms("5", "2026-02-26T00:00:00Z", 9),  # but before those in force: late
        ev("6", "seat.denied", "2026-02-26T00:00:00Z", seat_id="a"),  # late
        ev("7", "seat.expired", "2026-02-26T00:00:00Z", seat_id="z"),  # never late by age; does nothing
        on("8", "2026-03-02T03:00:00Z", "w"),
        ev("9", "seat.expired", "2026-03-02T01:01:00Z", seat_id="a"),  # 1:59 old, closes at 03:00
    )
    assert e.late == [2, 4, 5]
    assert (e.level, e.clock, e.terms) == (1, parse_ms("2026-03-02T03:00:00Z"), (5, 5))
    assert e.marks == [(date(2026, 3, 1), date(2026, 3, 2))] * 2 + [
        (date(2026, 2, 27), date(2026, 3, 2)),
        (date(2026, 2, 26), date(2026, 3, 2)),
        (date(2026, 2, 26), date(2026, 3, 2)),
        (date(2026, 2, 26), date(2026, 3, 2)),
        (date(2026, 3, 2), date(2026, 3, 2)),
    ]
    rows = e.day_rows(parse_ms("2026-03-02T03:30:00Z"))
    assert list(rows) == [date(2026, 3, 2)]  # late events have no rows
    row = rows[date(2026, 3, 2)]
    assert part(row, "max", "unit_ms", "deactivations", "denials") == (2, 3 * HOUR, 2, 0)


def test_expired_needs_a_lease_that_ended() -> None:
    e = live(
        on("1", "2026-03-01T10:00:00Z", "a", lease_expires_at="2026-03-01T11:00:00Z"),
        on("2", "2026-03-01T10:00:00Z", "b"),
        ev("3", "seat.expired", "2026-03-01T10:59:59.999Z", seat_id="a"),
        ev("4", "seat.expired", "2026-03-01T10:59:59.999Z", seat_id="b"),
        ev("5", "seat.refreshed", "2026-03-01T10:30:00Z", seat_id="b"),  # 3 and 4 were no touches: not late
        ev("6", "seat.expired", "2026-03-01T11:00:00Z", seat_id="a"),
    )
    assert (e.late, e.holds, e.leases) == ([], {"b": 1}, {"b": None})
    row = e.day_rows(e.clock)[date(2026, 3, 1)]
    assert part(row, "activations", "deactivations", "refreshes") == (2, 1, 1)


def test_pool_quantities_and_snapshot() -> None:
    def feature(id: str, verb: str, time: str, seat: str, **data: Any) -> dict[str, Any]:
        return ev(id, f"feature.{verb}", f"2026-03-01T{time}:00Z", element="f", seat_id=seat, **data)

    e = live(
        feature("1", "checked_out", "10:00", "a", quantity=3, lease_expires_at="2026-03-01T20:00:00Z"),
        feature("2", "checked_out", "10:01", "a"),  # 4, and no lease any more
        feature("3", "returned", "10:02", "a", quantity=2),  # 2
        feature("4", "refreshed", "10:03", "b", quantity=5),  # opens with 5
        feature("5", "refreshed", "10:04", "b", quantity=1, lease_expires_at="2026-03-01T20:00:00Z"),
        feature("6", "returned", "10:05", "c", quantity=1),  # nothing there
        feature("7", "checked_out", "10:20", "d"),
        ev("8", "entitlement.snapshot", "2026-03-01T10:10:00Z", element="f",
           holds=[{"seat_id": "b", "quantity": 2}, {"seat_id": "d", "quantity": 9},
                  {"seat_id": "n", "quantity": 4, "lease_expires_at": "2026-03-01T20:00:00Z"},
                  {"seat_id": "z", "quantity": 0}]),
        feature("9", "checked_out", "10:09", "u"),  # late: the snapshot did not name it
        feature("10", "returned", "10:10", "n", quantity=9),
        ev("11", "entitlement.snapshot", "2026-03-01T10:08:00Z", element="f", holds=[]),  # older: no effect
        element="f",
    )  # fmt: skip
    assert e.levels_after == {0: 3, 1: 4, 2: 2, 3: 7, 4: 7, 5: 7, 6: 8, 7: 7, 8: 7, 9: 3, 10: 3}
    assert e.late == [8]
    assert (e.holds, e.leases) == ({"b": 2, "d": 1}, {"b": None, "d": None})
    row = e.day_rows(e.clock)[date(2026, 3, 1)]
    assert part(row, "activations", "deactivations", "refreshes", "max") == (3, 3, 2, 8)


def test_counter() -> None:
    def feature(id: str, verb: str, time: str, **data: Any) -> dict[str, Any]:
        return ev(id, f"feature.{verb}", f"2026-03-01T{time}:00Z", element="n", **data)

    e = live(
        feature("1", "used", "10:00", quantity=5),
        feature("2", "used", "10:01"),
        feature("3", "reset", "10:10"),
        feature("4", "used", "10:09", quantity=7),  # late: before the reset
        feature("5", "used", "10:10", quantity=2),  # not before
        ev("6", "entitlement.snapshot", "2026-03-01T10:30:00Z", element="n", level=40),
        feature("7", "reset", "10:29"),  # late
        ev("8", "entitlement.snapshot", "2026-03-01T10:20:00Z", element="n", level=1),  # late
        feature("9", "used", "10:30"),
        element="n",
    )
    assert (e.late, e.total, e.level) == ([3, 6, 7], 41, 41)
    row = e.day_rows(parse_ms("2026-03-01T10:30:00Z"))[date(2026, 3, 1)]
    # 5 for 1 min, 6 for 9 min, 2 for 20 min
    assert part(row, "units_used", "max", "closing", "unit_ms") == (9, 41, 41, (5 + 54 + 40) * 60_000)


def test_duplicates() -> None:
    events = [
        on("1", "2026-03-01T10:00:00Z", "a"),
        on("2", "2026-03-01T12:00:00Z", "b"),
        on("3", "2026-03-01T10:30:00Z", "c"),  # late, but remembered
        on("3", "2026-03-01T13:00:00Z", "c"),  # so this repeat is one, whatever its time
        off("1", "2026-02-01T10:00:00Z", "a"),  # and this: no mark, no effect
        {**on("1", "2026-03-01T12:00:00Z", "d"), "source": "/other"},  # another source: another event
        {**on("1", "2026-03-01T12:00:00Z", "a"), "subject": "e2"},  # another entitlement
    ]
    e = live(*events)
    assert (e.late, e.holds, e.clock) == ([2], {"a": 1, "b": 1, "d": 1}, parse_ms("2026-03-01T12:00:00Z"))
    assert e.levels_after == {0: 1, 1: 2, 2: 2, 5: 3}
    assert len(e.marks) == 1
    exact = live(*events, exact=True)
    assert (exact.holds, exact.clock) == ({"a": 1, "b": 1, "c": 1, "d": 1}, e.clock)
    assert exact.levels_after == {0: 1, 2: 2, 1: 3, 5: 4}
    assert run(events, timezone="UTC", late_after_ms=HOUR)[("e2", "seats")].holds == {"a": 1}


def test_customer_of_the_terms_in_force_else_of_the_latest_event() -> None:
    changed = terms("3", "2026-03-01T12:00:00Z", 5)
    changed["data"] |= {"elements": {"seats": {"limit": 5}, "f": {"limit": None}}}
    events = [
        on("1", "2026-03-01T10:00:00Z", "a", customer="c1", product="p1"),
        on("2", "2026-03-01T11:00:00Z", "a", customer="c2"),
        changed,
        on("4", "2026-03-01T13:00:00Z", "a", customer="c4", product="p4"),
    ]
    assert (live(*events[:2]).customer, live(*events[:2]).product) == ("c2", "p1")
    assert (live(*events).customer, live(*events).product) == ("cus", "prod")
    bare = terms("5", "2026-03-01T14:00:00Z", 6)
    del bare["data"]["customer"]
    assert (live(*events, bare).customer, live(*events, bare).product) == ("c4", "prod")
    assert live(*events, element="f").terms == (None, None)


def test_days_join_up() -> None:
    """Over a year, in zones with odd days, days follow each other without gap or overlap."""
    for tz, year in (("Pacific/Apia", 2011), ("America/St_Johns", 2010), ("Africa/Cairo", 2014)):
        for n in range(0, 400, 7):
            day = date(year, 1, 1) + timedelta(n)
            start, end = day_start(day, tz), day_start(day + timedelta(1), tz)
            assert start <= end
            if start < end:
                assert day_of(start, tz) == day_of(end - 1, tz) == day
