"""The demo's made-up vendor: the same each time, and with the customers that it promises."""

from typing import Any

import orjson
import pytest

from schemas.events import decode, parse_time
from seatmark.demo import CONTRACTS, DAYS, made_up_events
from tests import model

NOON = parse_time("2026-03-18T12:00:00Z")
DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def elements() -> dict[tuple[str, str], model.Element]:
    """Every element, folded by the brute-force model."""
    return model.run(made_up_events(NOON), timezone="UTC", late_after_ms=3_600_000)


def test_it_is_the_same_every_time_and_later_only_adds() -> None:
    events = made_up_events(NOON)
    assert events == made_up_events(NOON)
    assert made_up_events(NOON + 60_000)[: len(events)] == events
    assert all(parse_time(event["time"]) <= NOON for event in events)


def test_its_events_are_valid_and_have_ids_of_their_own() -> None:
    events = made_up_events(NOON)
    for event in events:
        decode(orjson.dumps(event), key=event["subject"].encode(), appended_at=NOON)
    assert len({event["id"] for event in events}) == len(events)


def test_a_dozen_customers(elements: dict[tuple[str, str], model.Element]) -> None:
    assert len({contract.customer for contract in CONTRACTS}) == 12
    assert set(elements) == {(contract.entitlement, contract.element) for contract in CONTRACTS}


def rows(element: model.Element) -> list[dict[str, Any]]:
    """The days, without today."""
    days = element.day_rows(NOON)
    return [days[day] for day in sorted(days)][:-1]


def test_one_lives_in_overdraft_and_within_its_hard_limit(elements: dict[tuple[str, str], model.Element]) -> None:
    days = rows(elements["ent-1002", "seats"])
    assert len(days) == DAYS - 1
    assert all(12 < day["max"] <= 18 and day["overdraft_ms"] > DAY_MS / 4 for day in days)


def test_one_flaps(elements: dict[tuple[str, str], model.Element]) -> None:
    kinds = [alert["type"] for alert in elements["ent-1003", "seats"].alerts]
    assert kinds.count("limit.reached") > 20
    assert kinds.count("overdraft.entered") > 20


def test_one_is_idle_over_weekends(elements: dict[tuple[str, str], model.Element]) -> None:
    days = elements["ent-1004", "seats"].day_rows(NOON)
    assert all((days[day]["activations"] == 0) == (day.weekday() >= 5) for day in sorted(days)[:-1])
