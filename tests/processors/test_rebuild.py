"""State made anew from the raw log, against the same events folded exactly in order of time."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processors.codec import CURSOR_KEY, STATE_VERSION, Cursor, StateRecord, encode_cursor, restore
from processors.domain.days import Calendar
from processors.domain.ledger import Ledger, position_of
from processors.exact import RawRow
from processors.partitions import partition_of
from processors.rebuild import cursor_after_rebuild, rebuilt_element
from processors.standing import StoredBatch, StoredRow
from processors.state import PartitionStates
from schemas.events import decode, parse_time
from tests.processors.domain.test_ledger import (
    activated,
    changed,
    checked_out,
    counted,
    deactivated,
    denied,
    expired,
    limited,
    ms,
    refreshed,
    returned,
    shifted,
    snapshot,
    used,
)
from tests.processors.domain.test_ledger_against_model import logs

Document = dict[str, Any]


class _NothingStored(StoredBatch):
    """Stands where only what events say counts."""

    def __init__(self) -> None:
        self.effects = [()]


NOTHING_STORED = _NothingStored()
HOUR = 3_600_000
PARTITIONS = 8
# murmur2 of these keys, from Kafka's own tests (UtilsTest.testMurmur2): -973932308 and -790332482. Without the sign bit
# 1173551340 and 1357151166, modulo 8:
PARTITION_OF = {"21": 4, "foobar": 6}


@dataclass
class Stored:
    """A record of the changelog."""

    key: bytes
    value: bytes | None


def elements_of(document: Document) -> list[str]:
    if document["type"].startswith("seat."):
        return ["seats"]
    if document["type"] == "entitlement.changed":
        return list(document["data"]["elements"])
    return [document["data"]["element"]]


def raw_log(documents: Sequence[Document], epoch: int = 1, first: int = 0) -> list[RawRow]:
    """The rows of these events, with offsets in this order."""
    return [
        RawRow(document["subject"], element, epoch, first + n, orjson.dumps(document))
        for n, document in enumerate(documents)
        for element in elements_of(document)
    ]


def rebuilt(rows: Iterable[RawRow], timezone: str = "UTC", late_after_ms: int = HOUR) -> list[tuple[int, list[StateRecord]]]:
    """The changelog records, by partition, as a rebuild writes them."""
    rows = list(rows)
    epoch = max((row.epoch for row in rows), default=0)
    read = [(row, row.read()) for row in rows]
    arrivals: dict[str, dict[tuple[str, str], int]] = {}
    for row, event in sorted(read, key=lambda pair: pair[0].position):
        arrivals.setdefault(row.entitlement, {}).setdefault((event.source, event.id), row.position)
    keys = sorted({(row.entitlement, row.element) for row in rows})
    items = []
    for key in keys:
        own = [(row, event) for row, event in read if (row.entitlement, row.element) == key]
        own.sort(key=lambda pair: (pair[1].time, pair[0].position))
        element = rebuilt_element(
            key,
            (StoredRow(row, 0, NOTHING_STORED, 0) for row, _ in own),
            calendar=Calendar(timezone),
            late_after_ms=late_after_ms,
            epoch=epoch,
            repeats=arrivals[key[0]],
            told=None,
        )
        items.append((partition_of(key[0], PARTITIONS), element.records()))
    cursor = encode_cursor(cursor_after_rebuild(epoch, timezone))
    return items + [(partition, [cursor]) for partition in sorted({partition for partition, _ in items})]


def recovered(
    items: Iterable[tuple[int, list[StateRecord]]], timezone: str = "UTC", late_after_ms: int = HOUR
) -> PartitionStates:
    """As a worker does that finds them in the changelog."""
    states = PartitionStates(Calendar(timezone), late_after_ms, "topic-9", PARTITIONS)
    for partition, records in items:
        states.restore(partition, [Stored(key, value) for key, value in records])
    states.restored()
    return states


def ledger_of(rows: Iterable[RawRow], subject: str = "ent-1") -> Ledger:
    """The ledger with this entitlement after a rebuild and a recovery."""
    items = rebuilt(rows)
    states = recovered(items)
    [partition] = {partition for partition, _ in items}
    ledger = states.of(partition).ledger
    assert all(entitlement == subject for entitlement, _ in ledger.elements)
    return ledger


def image(ledger: Ledger) -> dict[tuple[str, str], Any]:
    encode = msgspec.msgpack.encode
    return {
        key: (
            encode(element.head),
            {seat: encode(hold) for seat, hold in element.holds.items()},
            set(element.closed),
            [encode(block) for block in element.blocks],
        )
        for key, element in ledger.elements.items()
    }


def folded(log: Sequence[tuple[int, int, Document]], timezone: str = "UTC", late_after_ms: int = HOUR) -> Ledger:
    """The exact fold of (epoch, offset, event): each once, of its arrivals the first; by time, then arrival."""
    arrivals: dict[tuple[str, str], tuple[int, int, Document]] = {}
    for epoch, offset, document in sorted(log, key=lambda arrival: arrival[:2]):
        arrivals.setdefault((document["source"], document["id"]), (epoch, offset, document))
    ledger = Ledger(Calendar(timezone), late_after_ms)
    in_order = sorted(arrivals.values(), key=lambda arrival: (parse_time(arrival[2]["time"]), *arrival[:2]))
    for epoch, offset, document in in_order:
        outcomes = ledger.apply(decode(orjson.dumps(document), key="any", appended_at=None), position_of(epoch, offset))
        assert [outcome.late for outcome in outcomes] == [False] * len(elements_of(document))
    return ledger


# --- Random logs


@st.composite
def arrivals(draw: st.DrawFn) -> list[tuple[int, int, Document]]:
    """(epoch, offset, event): offsets begin again with each epoch, and some events come again with another time."""
    log = list(draw(logs()))
    times = [document["time"] for document in log]
    for at in draw(st.lists(st.integers(0, len(log) - 1), max_size=5)):
        again = log[at] | {"time": draw(st.sampled_from(times))}
        # A lease must end after the event.
        lease = again["data"].get("lease_expires_at", "9")
        if all(end > again["time"] for end in [lease, *_leases(again)]):
            log.insert(draw(st.integers(0, len(log))), again)
    epochs = sorted(draw(st.lists(st.integers(1, 3), min_size=len(log), max_size=len(log))))
    return [(epoch, n - epochs.index(epoch), document) for n, (epoch, document) in enumerate(zip(epochs, log, strict=True))]


def _leases(document: Document) -> list[str]:
    return [hold.get("lease_expires_at", "9") for hold in document["data"].get("holds", [])]


@settings(max_examples=300, deadline=None)
@given(log=arrivals(), late_after=st.sampled_from([HOUR, 240 * HOUR]), seed=st.integers())
def test_a_rebuilt_state_is_the_exact_fold(log: list[tuple[int, int, Document]], late_after: int, seed: int) -> None:
    rows = [row for epoch, offset, document in log for row in raw_log([document], epoch, offset)]
    random.Random(seed).shuffle(rows)
    items = rebuilt(rows, "Europe/Paris", late_after)
    [partition] = {partition for partition, _ in items}
    ledger = recovered(items, "Europe/Paris", late_after).of(partition).ledger
    exact = folded(log, "Europe/Paris", late_after)
    for element in exact.elements.values():
        element.head.correctable_from = position_of(max(epoch for epoch, _, _ in log) + 1, 0)
    assert image(ledger) == image(exact)


# --- By hand


def test_the_order_is_that_of_time_and_not_of_arrival() -> None:
    """Live, the return would have come before what it gives back, and the reset before the use."""
    rows = raw_log(
        [
            returned("a", "10:20", quantity=1),
            checked_out("a", "10:00", quantity=3),
            used("10:30", quantity=5),
            counted(2, "10:10"),
            used("10:05", quantity=9),
        ]
    )
    ledger = ledger_of(rows)
    assert ledger.elements["ent-1", "render"].head.level == 2
    assert ledger.elements["ent-1", "count"].head.level == 7


def test_events_of_the_same_time_are_in_order_of_arrival() -> None:
    log = [deactivated("a", "10:00"), activated("a", "10:00"), limited("10:00", 5), limited("10:00", 3)]
    head = ledger_of(reversed(raw_log(log))).elements["ent-1", "seats"].head
    assert head.level == 1
    assert head.terms is not None
    assert head.terms.limit == 3


def test_an_earlier_epoch_arrived_earlier_whatever_the_offsets() -> None:
    rows = [
        *raw_log([activated("a", "10:00", id="second")], epoch=2, first=0),
        *raw_log([deactivated("a", "10:00", id="first")], epoch=1, first=900),
    ]
    element = ledger_of(rows).elements["ent-1", "seats"]
    assert element.head.level == 1
    assert element.holds["a"].position == position_of(2, 0)


def test_nothing_is_late_that_would_have_been_live() -> None:
    rows = raw_log([activated("now", "20T10:00"), activated("old", "03T10:00"), limited("20T00:00", 9), limited("01T00:00", 1)])
    element = ledger_of(rows).elements["ent-1", "seats"]
    assert set(element.holds) == {"now", "old"}
    assert (element.head.level, element.head.clock) == (2, ms("20T10:00"))
    assert element.head.terms is not None
    assert element.head.terms.limit == 9


@pytest.mark.parametrize("reverse", [False, True])
def test_a_repeat_with_another_time_keeps_the_first_arrival(reverse: bool) -> None:
    rows = [
        *raw_log([activated("a", "10:30", id="1", lease="11:30")], epoch=1, first=7),
        *raw_log([activated("a", "10:00", id="1", lease="11:00"), deactivated("a", "10:10")], epoch=1, first=8),
    ]
    element = ledger_of(reversed(rows) if reverse else rows).elements["ent-1", "seats"]
    # Had the repeat counted, the hold would be closed: it was opened before that.
    assert (element.head.level, element.holds["a"].changed_at) == (1, ms("10:30"))
    assert (element.holds["a"].lease_end, element.holds["a"].position) == (ms("11:30"), position_of(1, 7))


def test_a_repeat_in_a_new_topic_keeps_the_first_arrival() -> None:
    rows = [
        *raw_log([used("10:30", id="1", quantity=5)], epoch=2, first=0),
        *raw_log([used("10:00", id="1", quantity=3)], epoch=1, first=5),
        *raw_log([used("10:00", id="1", source="/other", quantity=100)], epoch=2, first=1),
    ]
    head = ledger_of(rows).elements["ent-1", "count"].head
    assert (head.level, head.clock) == (103, ms("10:00"))


def test_terms_are_one_event_however_many_elements_they_name() -> None:
    rows = raw_log([changed("10:00", {"seats": {"limit": 1}, "render": {"limit": 2}}), activated("a", "10:01")])
    elements = ledger_of(rows).elements
    assert {name: (element.head.terms.limit if element.head.terms else None) for (_, name), element in elements.items()} == {
        "seats": 1,
        "render": 2,
    }
    assert elements["ent-1", "seats"].head.state == "at_limit"


def test_holds_clock_state_and_day_are_restored() -> None:
    rows = raw_log(
        [
            limited("09:00", 1, "unlimited", customer="c", product="p"),
            activated("a", "10:00", lease="23:00"),
            activated("b", "11:00"),
            deactivated("b", "12:00"),
            refreshed("b", "13:00", lease="14:00"),
            expired("b", "12:30"),
            denied("15:00"),
        ]
    )
    element = ledger_of(rows).elements["ent-1", "seats"]
    head = element.head
    assert (head.level, head.clock, head.state, head.customer, head.product) == (2, ms("15:00"), "overdraft", "c", "p")
    assert (head.entered_at, head.peak, head.peak_overage) == (ms("13:00"), 2, 1)
    assert {seat: (hold.quantity, hold.lease_end) for seat, hold in element.holds.items()} == {
        "a": (1, ms("23:00")),
        "b": (1, ms("14:00")),
    }
    assert head.day is not None
    assert (head.day.day, head.day.max, head.day.activations, head.day.overdraft_ms) == ("2026-03-10", 2, 2, 3 * HOUR)


def test_the_memory_of_ids_is_restored() -> None:
    log = [used(shifted("10:00", n * 100), id=f"use-{n}") for n in range(500)]
    ledger = ledger_of(raw_log(log))
    again = [decode(orjson.dumps(document), key="any", appended_at=None) for document in log]
    assert [event.id for n, event in enumerate(again) if ledger.apply(event, position_of(2, n))] == []


def test_an_old_snapshot_still_makes_late_what_is_before_it() -> None:
    ledger = ledger_of(raw_log([activated("a", "10:00"), snapshot("10:30", {})]))
    [outcome] = ledger.apply(decode(orjson.dumps(activated("a", "10:29")), key="any", appended_at=None), position_of(2, 0))
    assert outcome.late is True


# --- Partitions and cursors


def cursors_of(items: Iterable[tuple[int, list[StateRecord]]]) -> dict[int, Cursor]:
    """The last cursor of each partition."""
    found: dict[int, Cursor] = {}
    for partition, records in items:
        for key, value in records:
            if key == CURSOR_KEY:
                cursor = restore(Ledger(Calendar("UTC"), HOUR), key, value)
                assert cursor is not None
                found[partition] = cursor
    return found


def test_entitlements_go_to_the_partitions_of_their_keys() -> None:
    rows = [row for subject in PARTITION_OF for row in raw_log([activated("a", "10:00", subject=subject)])]
    states = recovered(rebuilt(rows))
    for subject, partition in PARTITION_OF.items():
        assert list(states.of(partition).ledger.elements) == [(subject, "seats")]
        assert states.of(partition).ledger.elements[subject, "seats"].head.level == 1


def test_cursors_belong_to_no_incarnation_and_have_the_highest_epoch() -> None:
    rows = [
        *raw_log([activated("a", "10:00", subject="21"), activated("b", "10:00", subject="21")], epoch=2, first=70),
        *raw_log([activated("c", "09:00", subject="21")], epoch=5, first=3),
        *raw_log([activated("d", "11:00", subject="21")], epoch=1, first=9),
        *raw_log([activated("a", "10:00", subject="foobar")], epoch=3, first=4),
    ]
    items = rebuilt(rows, "Europe/Paris")
    assert cursors_of(items) == {
        4: Cursor(STATE_VERSION, "", 5, -1, "Europe/Paris"),
        6: Cursor(STATE_VERSION, "", 5, -1, "Europe/Paris"),
    }


def test_a_worker_goes_on_from_the_beginning_of_its_topic_in_the_next_epoch() -> None:
    items = rebuilt(raw_log([activated("a", "10:00", subject="21")], epoch=4, first=1_000))
    states = recovered(items)
    # Whatever was committed of a topic before.
    assert states.resume_offset(4, committed=17) is None
    state = states.of(4)
    state.begin("topic-9")
    assert state.cursor == Cursor(STATE_VERSION, "topic-9", 5, -1, "UTC")


def test_an_empty_raw_log_gives_no_state() -> None:
    assert rebuilt([]) == []
