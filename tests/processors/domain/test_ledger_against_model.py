"""The fold against the brute-force model of tests/model.py, on random logs: every level, day row, mark and alert."""

from datetime import date
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processors.domain.days import Calendar
from processors.domain.ledger import Ledger, position_of
from processors.outputs import alert_of
from schemas.alerts import encode_alert
from schemas.days import DayRow
from schemas.events import decode, format_time
from tests import model

HOUR = 3_600_000
DAY = 24 * HOUR
# 2026-03-28 to 30 in Europe/Paris holds the spring change of the clock.
START = 1_774_600_000_000 // DAY * DAY

moments = st.one_of(
    st.integers(0, 4 * DAY),
    # Ties, midnights and the edge of the late rule are where mistakes live.
    st.integers(0, 12).map(lambda n: n * 8 * HOUR),
    st.integers(0, 40).map(lambda n: n * 15 * 60_000),
)
seats = st.sampled_from(["a", "b", "c"])
quantities = st.one_of(st.none(), st.integers(1, 4))
leases = st.one_of(st.none(), st.integers(1, 6 * HOUR))
customers = st.one_of(st.none(), st.sampled_from(["c1", "c2"]))
overdrafts = st.one_of(
    st.none(),
    st.just({"type": "none"}),
    st.builds(lambda n: {"type": "absolute", "value": n}, st.integers(0, 3)),
    st.builds(lambda p: {"type": "percentage", "value": p}, st.sampled_from([0, 12.5, 33.3333, 50, 100])),
    st.just({"type": "unlimited"}),
)
HOLD_TYPES = [
    "seat.activated", "seat.refreshed", "seat.deactivated", "seat.expired", "seat.denied",
    "feature.checked_out", "feature.returned", "feature.refreshed", "feature.expired", "feature.denied",
]  # fmt: skip


def _lease(data: dict[str, Any], time: int, length: int | None) -> None:
    if length is not None:
        data["lease_expires_at"] = format_time(time + length)


@st.composite
def events(draw: st.DrawFn) -> dict[str, Any]:
    time = START + draw(moments)
    kind = draw(st.sampled_from([*HOLD_TYPES, *HOLD_TYPES, "feature.used", "feature.reset", "entitlement.changed",
                                 "entitlement.snapshot"]))  # fmt: skip
    data: dict[str, Any] = {}
    if (customer := draw(customers)) is not None and kind not in ("seat.expired", "feature.expired"):
        data["customer"] = customer
    if kind in HOLD_TYPES:
        data["seat_id"] = draw(seats)
        if kind.startswith("feature."):
            data["element"] = draw(st.sampled_from(["seats", "render"]))
            if (quantity := draw(quantities)) is not None:
                data["quantity"] = quantity
        if kind.endswith(("activated", "checked_out", "refreshed")):
            _lease(data, time, draw(leases))
    elif kind in ("feature.used", "feature.reset"):
        data["element"] = draw(st.sampled_from(["count", "render"]))
        if kind == "feature.used" and (quantity := draw(quantities)) is not None:
            data["quantity"] = quantity
    elif kind == "entitlement.changed":
        data["elements"] = {
            name: {"limit": draw(st.one_of(st.none(), st.integers(0, 4))), "overdraft": draw(overdrafts)}
            for name in draw(st.sets(st.sampled_from(["seats", "render", "count"]), min_size=1))
        }
    elif draw(st.booleans()):
        data |= {"element": draw(st.sampled_from(["seats", "render"])), "holds": []}
        for seat in draw(st.sets(seats)):
            hold = {"seat_id": seat, "quantity": draw(st.integers(0, 3))}
            _lease(hold, time, draw(leases))
            data["holds"].append(hold)
    else:
        data |= {"element": "count", "level": draw(st.integers(0, 5))}
    return {
        "specversion": "1.0", "id": "", "source": "/s", "type": kind, "subject": "e", "time": format_time(time),
        "data": data,
    }  # fmt: skip


@st.composite
def logs(draw: st.DrawFn) -> list[dict[str, Any]]:
    drawn = draw(st.lists(events(), min_size=1, max_size=40))
    if draw(st.booleans()):
        drawn.sort(key=lambda event: event["time"])
    log: list[dict[str, Any]] = []
    for number, event in enumerate(drawn):
        event["id"] = str(number)
        log.append(event)
        # A producer's retry: the same event again, a little later in the log.
        if draw(st.integers(0, 9)) == 0:
            log.append(log[max(0, len(log) - draw(st.integers(1, 6)))])
    return log


def fold(log: list[dict[str, Any]], timezone: str, late_after: int) -> tuple[Ledger, dict[str, Any]]:
    ledger = Ledger(Calendar(timezone), late_after)
    seen: dict[str, Any] = {"alerts": [], "days": {}, "marks": [], "late": {}, "levels": {}}
    for offset, document in enumerate(log):
        event = decode(orjson.dumps(document), key=b"e", appended_at=None)
        for outcome in ledger.apply(event, position_of(1, offset)):
            key = (event.entitlement, outcome.element)
            seen["levels"].setdefault(key, {})[offset] = outcome.level
            if outcome.late:
                seen["late"].setdefault(key, []).append(offset)
            if outcome.transition is not None:
                seen["alerts"].append((key, orjson.loads(encode_alert(alert_of(outcome.transition)))))
        if offset % 3 == 0 or offset == len(log) - 1:
            changes = ledger.take_changes()
            for row in changes.days:
                seen["days"][(row.entitlement, row.element), date.fromisoformat(row.day)] = row
            seen["marks"] += changes.marks
    return ledger, seen


def completed(row: DayRow) -> dict[str, Any]:
    """The stored row brought to its day's end, as readers do."""
    rest = row.day_end - row.as_of
    over = row.closing_limit is not None and row.closing > row.closing_limit
    names = ("opening", "closing", "min", "max", "limit", "hard_limit", "terms_known", "peak_overage", "activations",
             "deactivations", "refreshes", "denials", "units_used")  # fmt: skip
    return {name: getattr(row, name) for name in names} | {
        "overdraft_ms": row.overdraft_ms + (rest if over else 0),
        "unit_ms": row.unit_ms + rest * row.closing,
    }


@pytest.mark.parametrize("timezone", ["UTC", "Europe/Paris", "Pacific/Auckland"])
@settings(max_examples=300, deadline=None)
@given(log=logs(), late_after=st.sampled_from([15 * 60_000, HOUR, 10 * DAY]))
def test_live_fold_equals_the_model(timezone: str, log: list[dict[str, Any]], late_after: int) -> None:
    expected = model.run(log, timezone=timezone, late_after_ms=late_after)
    ledger, seen = fold(log, timezone, late_after)
    assert set(ledger.elements) == set(expected)
    for key, element in ledger.elements.items():
        head, wanted = element.head, expected[key]
        assert seen["levels"][key] == wanted.levels_after
        assert (head.level, head.total, head.clock, head.state) == (
            wanted.level, wanted.total, wanted.clock, wanted.state)  # fmt: skip
        assert (head.customer, head.product) == (wanted.customer, wanted.product)
        open_holds = {seat: hold for seat, hold in element.holds.items() if hold.quantity}
        assert {seat: hold.quantity for seat, hold in open_holds.items()} == wanted.holds
        assert {seat: hold.lease_end for seat, hold in open_holds.items()} == wanted.leases
        assert head.level == head.total + sum(hold.quantity for hold in open_holds.values())

        rows = {day: row for (of, day), row in seen["days"].items() if of == key}
        last_end = max(row.day_end for row in rows.values())
        wanted_rows = wanted.day_rows(last_end - 1)
        for day, row in rows.items():
            got = completed(row)
            if row.day_end == last_end:
                # The model completes its last day to the instant asked for, one millisecond before the end.
                got["unit_ms"] -= row.closing
                got["overdraft_ms"] -= row.closing_limit is not None and row.closing > row.closing_limit
            assert {name: wanted_rows[day][name] for name in got} == got
        for day in set(wanted_rows) - set(rows):
            assert wanted_rows[day]["activations"] == 0, "a day with events must have a row"

        alerts = [alert for of, alert in seen["alerts"] if of == key]
        assert [{"id": alert["id"], "type": alert["type"], **alert["data"]} for alert in alerts] == [
            {name: value for name, value in alert.items() if value is not None or name in ("limit", "hard_limit")}
            for alert in wanted.alerts
        ]
        marked = {
            day
            for mark in seen["marks"]
            if (mark.entitlement, mark.element) == key
            for day in _days(date.fromisoformat(mark.first_day), date.fromisoformat(mark.last_day))
        }
        assert {day for first, last in wanted.marks for day in _days(first, last)} <= marked


def _days(first: date, last: date) -> list[date]:
    return [date.fromordinal(n) for n in range(first.toordinal(), last.toordinal() + 1)]


@settings(max_examples=300, deadline=None)
@given(log=logs())
def test_in_order_live_equals_exact(log: list[dict[str, Any]]) -> None:
    """The equality that the product stands on, for the model's exact fold."""
    log.sort(key=lambda event: event["time"])
    exact = model.run(log, timezone="UTC", late_after_ms=HOUR, exact=True)
    ledger, seen = fold(log, "UTC", HOUR)
    assert not seen["late"]
    assert not seen["marks"]
    for key, element in ledger.elements.items():
        assert element.head.level == exact[key].level
        assert seen["levels"][key] == exact[key].levels_after
