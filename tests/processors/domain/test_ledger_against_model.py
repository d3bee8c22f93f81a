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
from schemas.events import decode
from tests import model
from tests.random_logs import DAY, HOUR, logs


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
