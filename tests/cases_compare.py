"""What came of a golden case, compared with what the case says; shared by all that run cases."""

from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any

import pytest

from schemas.alerts import seatmark_id
from tests.cases_format import Case, ElementKey, Record, Result, format_instant, load_cases, parse_instant

CASES = load_cases()
DAY_COUNTS = ("activations", "deactivations", "refreshes", "denials", "units_used")
DAY_FIELDS = ("opening", "closing", "min", "max", "limit", "hard_limit", "terms_known", "peak_overage", *DAY_COUNTS)

# What came, in the words of `then`.
Came = dict[ElementKey, dict[str, Any]]


def cases_for(runner: str) -> list[Any]:
    """The cases that a runner runs, as pytest's parameters; those known to fail there are expected to, strictly."""
    return [
        pytest.param(
            case,
            id=case.name,
            marks=[pytest.mark.xfail(strict=True, reason=case.fails_in[runner])] if runner in case.fails_in else [],
        )
        for case in CASES
        if runner not in case.not_in
    ]


def report(case: Case, found: list[str]) -> str:
    """What the case is about, and what is not as it says."""
    return "\n".join([f"{case.where}: {case.name}", f"rule: {case.rule}", *found])


def differences(
    case: Case, expected: Mapping[ElementKey, Mapping[str, Any]], came: Mapping[ElementKey, Mapping[str, Any]]
) -> list[str]:
    """Every difference between what the case says and what came, as a line each: which word, what was expected, what came."""
    found: list[str] = []

    def compare(place: str, wanted: Any, got: Any) -> None:
        # A day and an alert may have more fields than a case is about; open holds are all there are.
        if isinstance(wanted, dict) and isinstance(got, dict) and not place.endswith(" holds"):
            for name, value in wanted.items():
                compare(f"{place} {name}", value, got.get(name, "nothing of that name"))
        elif isinstance(wanted, list) and isinstance(got, list) and place.endswith(" alerts"):
            for number in range(max(len(wanted), len(got))):
                compare(
                    f"{place[:-1]} {number + 1}",
                    wanted[number] if number < len(wanted) else "no more alerts",
                    got[number] if number < len(got) else "no more alerts",
                )
        elif wanted != got:
            found.append(f"{place}: expected {_shown(place, wanted)}, but it is {_shown(place, got)}")

    for element, words in expected.items():
        name = "/".join(element).removeprefix(case.entitlement + "/")
        for word, value in words.items():
            compare(f"{name} {word}", value, came.get(element, {}).get(word, "nothing of that name"))
    return found


def _shown(place: str, value: Any) -> str:
    if isinstance(value, int) and place.endswith(("seconds", "length", "duration")):
        return f"{value / 1000:g} s"
    if isinstance(value, int) and place.endswith((" at", "entered_at")):
        return format_instant(value)
    return "null" if value is None else str(value)


def result_problem(
    record: Record, *, repeat: bool, late: frozenset[ElementKey], level: int | None, effect: bool | None
) -> str | None:
    """What became of a record, if that is not what the case says. effect: None where it is not known."""
    wanted = record.result
    if wanted.forgotten:
        return None
    known_level = level if wanted.level is not None else None
    no_effect = wanted.no_effect if effect is None or repeat or late else not effect
    got = Result(level=known_level, late=late, repeat=repeat, no_effect=no_effect)
    return None if got == wanted else f"event {record.line} at {record.document['time']}: expected {wanted}, but it is {got}"


def alert_words(alert: dict[str, Any]) -> dict[str, Any]:
    """An alert as the worker sends it, in the words of a case; everything that must be so in any alert is asserted."""
    data = alert["data"]
    cause = data["cause"]
    assert alert["id"] == seatmark_id("alert", data["entitlement"], data["element"], cause["source"], cause["id"])
    assert (alert["subject"], alert["time"]) == (data["entitlement"], data["at"])
    left = alert["type"] == "overdraft.left"
    assert {"entered_at", "duration_seconds", "peak", "peak_overage"} & set(data) == (
        {"entered_at", "duration_seconds", "peak", "peak_overage"} if left else set()
    )
    return {
        "at": parse_instant(data["at"]),
        "type": alert["type"],
        "from": data["from"],
        "to": data["to"],
        **{name: data[name] for name in ("level", "limit", "hard_limit", "overage")},
        **{name: data.get(name) for name in ("customer", "product", "peak", "peak_overage")},
        "cause": cause["id"],
        "cause_source": cause["source"],
        "cause_type": cause["type"],
        "id": alert["id"],
        "entered_at": parse_instant(data["entered_at"]) if left else None,
        "duration": round(data["duration_seconds"] * 1000) if left else None,
    }


def days_between(first: str, last: str) -> list[str]:
    """All dates from first to last."""
    start, end = date.fromisoformat(first), date.fromisoformat(last)
    return [(start + timedelta(days=n)).isoformat() for n in range((end - start).days + 1)]


def days_of(case: Case, key: ElementKey) -> list[str]:
    """The days of an element that a case says something of."""
    return sorted({*case.then.get(key, {}).get("days", {}), *case.exact.get(key, {}).get("days", {})})
