"""The audit over the real engine: clean where all is right, and it finds what was tampered with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client import REGISTRY

from processors.audit import Auditor, Findings
from tests.miniature import HOUR, Miniature
from tests.processors.domain.test_ledger import activated, deactivated, limited, ms, used
from tests.processors.test_restate import own
from views.levels import add_up_levels
from views.raw_log import RawLog
from views.reporting import ReportingDays
from views.store import connect

NOW = ms("25T12:00")
_EMBEDDED = pytest.mark.parametrize("new_database", ["chdb"], indirect=True)


@pytest.fixture
def stack(database_in: Callable[[str], str]) -> Iterator[Miniature]:
    client = connect(database_in("UTC"))
    yield Miniature(client, now_ms=NOW)
    client.close()


def audit(stack: Miniature, between: Callable[[], None] = lambda: None) -> Findings:
    auditor = Auditor(RawLog(stack.client, stack.topic), calendar=stack.calendar, late_after_ms=HOUR)
    [entitlement] = stack.entitlements
    return auditor.run(stack.now_ms, entitlement=entitlement, wait=between)


def differences(findings: Findings) -> list[tuple[str, str, str, str]]:
    return [(found.what.split()[0], found.field, found.stored, found.exact) for found in findings.differences]


def filled(stack: Miniature) -> str:
    documents = own(
        [
            limited("20T00:00", 1, "absolute", 1),
            activated("a", "20T09:00"), activated("b", "20T10:00"), deactivated("b", "20T11:00"), activated("b", "25T10:00"),
            used("22T10:00", quantity=3),
        ]
    )  # fmt: skip
    stack.arrive(documents)
    stack.work()
    stack.sink()
    entitlement: str = documents[0]["subject"]
    return entitlement


def test_an_audit_of_events_in_order_is_clean(stack: Miniature) -> None:
    filled(stack)
    findings = audit(stack)
    assert findings.differences == []
    # seats: the 20th and the 25th; count: the 22nd. Reached, entered, left and entered again.
    assert (findings.elements, findings.days, findings.alerts, findings.provisional_days, findings.unsettled) == (2, 3, 4, 0, 0)


def test_days_that_wait_for_their_restatement_are_counted_not_compared(stack: Miniature) -> None:
    entitlement = filled(stack)
    stack.arrive([activated("c", "20T08:00") | {"subject": entitlement}])
    stack.work()
    stack.sink()
    findings = audit(stack)
    assert (findings.differences, findings.provisional_days, findings.unsettled) == ([], 2, 1)
    stack.settle()
    findings = audit(stack)
    # The 20th as restated and the 22nd of the counter; today stays as it was known, and is not compared.
    assert (findings.differences, findings.days, findings.provisional_days, findings.unsettled) == ([], 2, 1, 0)


def tampered(stack: Miniature, table: str, change: str, entitlement: str) -> None:
    stack.client.command(
        f"ALTER TABLE {table} UPDATE {change} AND entitlement = {{e:String}} SETTINGS mutations_sync = 2",
        parameters={"e": entitlement},
    )


def test_a_wrong_day_is_found(stack: Miniature) -> None:
    tampered(stack, "days", "`max` = 3 WHERE day = '2026-03-20'", filled(stack))
    before = REGISTRY.get_sample_value("seatmark_audit_seconds_count") or 0
    assert differences(audit(stack)) == [("day", "max", "3", "2")]
    assert REGISTRY.get_sample_value("seatmark_audit_differences") == 1
    assert REGISTRY.get_sample_value("seatmark_audit_seconds_count") == before + 1


def test_a_wrong_live_level_is_found(stack: Miniature) -> None:
    tampered(stack, "elements", "level = 5 WHERE element = 'count'", filled(stack))
    assert differences(audit(stack)) == [("live", "level", "5", "3")]


def test_a_lost_alert_is_found(stack: Miniature) -> None:
    entitlement = filled(stack)
    stack.client.command(
        "ALTER TABLE alerts DELETE WHERE entitlement = {e:String} AND type = 'overdraft.left' SETTINGS mutations_sync = 2",
        parameters={"e": entitlement},
    )
    assert differences(audit(stack)) == [("alert", "alert", "-", "overdraft.left")]


def test_alerts_after_disorder_must_join_up_to_the_live_state(stack: Miniature) -> None:
    entitlement = filled(stack)
    stack.arrive(
        [activated("c", "20T08:00") | {"subject": entitlement}, deactivated("c", "20T08:30") | {"subject": entitlement}]
    )
    stack.settle()
    assert audit(stack).differences == []
    stack.client.command(
        "ALTER TABLE alerts DELETE WHERE entitlement = {e:String} AND type = 'overdraft.left' SETTINGS mutations_sync = 2",
        parameters={"e": entitlement},
    )
    assert differences(audit(stack)) == [("alerts", "states", "do not join up", "from within to at_hard_limit")]


def add_up(stack: Miniature) -> None:
    add_up_levels(RawLog(stack.client, stack.topic), ReportingDays("UTC"), stack.now_ms, stack.entitlements.__contains__)


@_EMBEDDED
def test_wrong_held_levels_are_found(stack: Miniature) -> None:
    """On the 20th: 0 from midnight, 1 from 09:00, 2 from 10:00 to 11:00."""
    entitlement = filled(stack)
    add_up(stack)
    findings = audit(stack)
    assert (findings.differences, findings.days, findings.held_days) == ([], 3, 2)
    falsified = "over_unit_ms = 7200000, levels = [0, 1, 3], held_ms = [32400000, 3600001, 3600000] WHERE day = '2026-03-20'"
    tampered(stack, "levels_held", falsified, entitlement)
    findings = audit(stack)
    assert differences(findings) == [
        ("held", "over_unit_ms", "7200000", "3600000"),
        ("held", "ms at level 1", "3600001", "3600000"),
        ("held", "ms at level 2", "-", "3600000"),
        ("held", "ms at level 3", "3600000", "-"),
    ]
    assert findings.differences[0].what == "held 2026-03-20"
    assert REGISTRY.get_sample_value("seatmark_audit_differences") == 4


@_EMBEDDED
def test_held_levels_that_no_report_reads_are_not_compared(stack: Miniature) -> None:
    entitlement = filled(stack)
    add_up(stack)
    tampered(stack, "levels_held", "last_level = 9, version = version - 1 WHERE 1", entitlement)
    findings = audit(stack)
    assert (findings.differences, findings.held_days) == ([], 0)


def test_a_lost_day_is_found(stack: Miniature) -> None:
    entitlement = filled(stack)
    stack.client.command(
        "ALTER TABLE days DELETE WHERE entitlement = {e:String} AND day = '2026-03-22' SETTINGS mutations_sync = 2",
        parameters={"e": entitlement},
    )
    assert differences(audit(stack)) == [("day", "row", "-", "a row")]


def test_what_differs_only_because_it_is_being_stored_is_looked_at_again(stack: Miniature) -> None:
    entitlement = filled(stack)
    stack.arrive([activated("d", "25T11:00") | {"subject": entitlement}])
    stack.work()
    waiting = [item for item in stack.unsunk if item[0] != "entitlement-activity"]
    stack.unsunk = [item for item in stack.unsunk if item[0] == "entitlement-activity"]
    stack.sink()

    def arrives() -> None:
        stack.unsunk = waiting
        stack.sink()

    findings = audit(stack, arrives)
    assert (findings.differences, findings.elements) == ([], 2)


def test_a_correction_is_in_the_audit(stack: Miniature) -> None:
    """It left no trace in the exact fold, and the live state is the exact one."""
    documents: list[dict[str, Any]] = own([limited("20T00:00", 1), activated("a", "25T09:00"), activated("b", "24T10:00")])
    stack.arrive(documents)
    stack.settle()
    assert len(stack.alerts) == 2
    assert audit(stack).differences == []
    assert asyncio.run(stack.restater.run(stack.now_ms, owns=stack.entitlements.__contains__)).elements == 0
