"""The worker's state without Kafka: what a chunk puts out and writes to the changelog, and a restart at any chunk's end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processors.agents import ChunkOutputs, fold_chunk
from processors.codec import STATE_VERSION, Cursor, StateRecord, UnreadableState, encode_changes, encode_cursor, restore
from processors.domain.days import Calendar
from processors.domain.ledger import Ledger, position_of
from processors.partitions import partition_of
from processors.state import PartitionState, PartitionStates, StateRefused
from schemas.activity import decode_activity
from schemas.days import DayRecord
from schemas.events import FUTURE_TOLERANCE_MS, MAX_EVENT_BYTES, Refused, decode
from tests.positions import epoch_and_offset
from tests.processors.domain.test_ledger import (
    activated,
    changed,
    checked_out,
    counted,
    deactivated,
    denied,
    event,
    expired,
    limited,
    ms,
    used,
)
from tests.random_logs import START, logs

Document = dict[str, Any]

MINUTE = 60_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR
NOW = ms("20T00:00")
# Where `ent-1` of the events here and `e` of the random logs belong.
PARTITION, PARTITIONS = 2, 3

ROOT = Path(__file__).parents[2]


@dataclass
class Source:
    """A record of entitlement-events."""

    offset: int
    value: bytes | None
    key: bytes | None = b"ent-1"
    timestamp: int = NOW
    timestamp_type: int = 1
    headers: Sequence[tuple[str, bytes]] = ()
    topic: str = "entitlement-events"
    partition: int = PARTITION


@dataclass
class Stored:
    """A record of the changelog."""

    key: bytes
    value: bytes | None


@dataclass
class Processed:
    """All that one chunk gave."""

    outputs: ChunkOutputs
    days: list[DayRecord]
    changelog: list[StateRecord]


@dataclass
class Worker:
    """What a worker does with the chunks of one partition."""

    state: PartitionState
    incarnation: str = "topic-1"
    processed: list[Processed] = field(default_factory=list)

    def process(self, records: Sequence[Source], now: int = NOW) -> Processed:
        self.state.begin(self.incarnation)
        outputs = fold_chunk(self.state, records, now)
        changes = self.state.ledger.take_changes()
        self.processed.append(Processed(outputs, [*changes.days, *changes.marks], encode_changes(changes, self.state.cursor)))
        return self.processed[-1]

    @property
    def changelog(self) -> list[StateRecord]:
        return [record for processed in self.processed for record in processed.changelog]


def new_worker(timezone: str = "UTC", late_after_ms: int = HOUR, incarnation: str = "topic-1") -> Worker:
    return Worker(PartitionState(Ledger(Calendar(timezone), late_after_ms), timezone, PARTITION, PARTITIONS), incarnation)


def recovered(
    changelog: Iterable[StateRecord], timezone: str = "UTC", late_after_ms: int = HOUR, incarnation: str = "topic-1"
) -> PartitionStates:
    states = PartitionStates(Calendar(timezone), late_after_ms, incarnation, PARTITIONS)
    states.restore(PARTITION, [Stored(key, value) for key, value in changelog])
    states.restored()
    return states


def sources(log: Sequence[Document], first: int = 0, timestamp: int = NOW) -> list[Source]:
    return [
        Source(first + n, orjson.dumps(document), document["subject"].encode(), timestamp) for n, document in enumerate(log)
    ]


def cut(records: Sequence[Source], sizes: Sequence[int]) -> list[list[Source]]:
    """Chunks of these sizes, over and over again."""
    chunks: list[list[Source]] = []
    at = 0
    while at < len(records):
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(list(records[at : at + size]))
        at += size
    return chunks


def image(ledger: Ledger) -> dict[tuple[str, str], Any]:
    """All of a ledger, as it is now."""
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


def comparable(processed: Processed) -> tuple[Any, ...]:
    days = sorted(processed.days, key=lambda record: (type(record).__name__, msgspec.json.encode(record)))
    assert len(dict(processed.changelog)) == len(processed.changelog), "each key once in a chunk"
    # Records that come again are taken, and put out nothing.
    return replace(processed.outputs, taken=0), days, dict(processed.changelog)


def rows_of(outputs: ChunkOutputs) -> list[dict[str, Any]]:
    """The activity rows of a chunk; times in ms."""
    rows: list[dict[str, Any]] = [row for _, value, _ in outputs.activity for row in decode_activity(value or b"").to_pylist()]
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    for row in rows:
        row |= {
            name: (value - epoch) // timedelta(milliseconds=1) for name, value in row.items() if isinstance(value, datetime)
        }
    return rows


# --- Restarts, on random logs


@st.composite
def long_logs(draw: st.DrawFn) -> list[Document]:
    """Logs that fill blocks of ids, too."""
    log = list(draw(logs()))
    iso = datetime.fromtimestamp(START / 1000, UTC).isoformat()
    fill = draw(st.sampled_from([0, 0, 50, 63, 64, 130]))
    at = draw(st.integers(0, len(log)))
    log[at:at] = [denied(iso.removesuffix(":00+00:00"), subject="e", id=f"fill-{n}") for n in range(fill)]
    return log


late_afters = st.sampled_from([15 * MINUTE, HOUR, 10 * DAY])
sizes_of_chunks = st.lists(st.integers(1, 25), min_size=1, max_size=4)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_restart_at_any_chunks_end_makes_no_difference(data: st.DataObject) -> None:
    late_after = data.draw(late_afters)
    chunks = cut(sources(data.draw(long_logs()), first=data.draw(st.integers(0, 3))), data.draw(sizes_of_chunks))
    at = data.draw(st.integers(0, len(chunks)))
    unbroken = new_worker("Europe/Paris", late_after)
    for chunk in chunks[:at]:
        unbroken.process(chunk)

    changelog = unbroken.changelog
    if data.draw(st.booleans()):
        # What compaction leaves of it.
        changelog = [record for record in dict(changelog).items() if record[1] is not None]
    states = recovered(changelog, "Europe/Paris", late_after)
    restarted = Worker(states.of(PARTITION))
    assert image(restarted.state.ledger) == image(unbroken.state.ledger)
    assert states.resume_offset(PARTITION, None) == (chunks[at - 1][-1].offset + 1 if at else None)
    if at:
        assert restarted.state.cursor == unbroken.state.cursor

    # Some of what is applied may come again with the first chunk.
    again = [record for chunk in chunks[:at] for record in chunk]
    again = again[len(again) - data.draw(st.integers(0, len(again))) :]
    for chunk in chunks[at:]:
        assert comparable(restarted.process([*again, *chunk])) == comparable(unbroken.process(chunk))
        again = []
    assert image(restarted.state.ledger) == image(unbroken.state.ledger)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_what_is_applied_changes_nothing_when_it_comes_again(data: st.DataObject) -> None:
    worker = new_worker()
    records = sources(data.draw(long_logs()))
    for chunk in cut(records, data.draw(sizes_of_chunks)):
        worker.process(chunk)
    before, cursor = image(worker.state.ledger), worker.state.cursor
    start = data.draw(st.integers(0, len(records) - 1))
    again = worker.process(records[start : data.draw(st.integers(start + 1, len(records)))])
    assert again.outputs == ChunkOutputs(taken=again.outputs.taken)
    assert again.days == []
    assert again.changelog == [encode_cursor(cursor)]
    assert (image(worker.state.ledger), worker.state.cursor) == (before, cursor)


def test_blocks_of_ids_and_their_end_are_restored_at_every_cut() -> None:
    log = [
        *(used("10:00", id=f"use-{n}") for n in range(200)),
        *(denied("10:00", id=f"denial-{n}") for n in range(200)),
        *(used("13:00", id=f"later-{n}") for n in range(200)),
    ]
    chunks = cut(sources(log), [37, 64, 5])
    worker = new_worker()
    for chunk in chunks:
        worker.process(chunk)
        compacted = [record for record in dict(worker.changelog).items() if record[1] is not None]
        # The order of records with different keys says nothing.
        for changelog in (worker.changelog, compacted, compacted[::-1]):
            assert image(recovered(changelog).of(PARTITION).ledger) == image(worker.state.ledger)
    gone = [key for key, value in worker.changelog if value is None]
    assert {msgspec.msgpack.decode(key)[0] for key in gone} == {"i"}


def test_closed_holds_are_tombstones_once_they_are_forgotten() -> None:
    worker = new_worker()
    worker.process(sources([activated("a", "10:00"), deactivated("a", "10:10")]))
    key = msgspec.msgpack.encode(("s", "ent-1", "seats", "a"))
    assert dict(worker.changelog)[key] is not None
    worker.process(sources([activated("b", "12:00")], first=2))
    assert dict(worker.changelog)[key] is None
    assert set(recovered(worker.changelog).of(PARTITION).ledger.elements["ent-1", "seats"].holds) == {"b"}


def test_closed_holds_are_forgotten_at_the_same_event_whether_or_not_the_worker_was_restarted() -> None:
    """Closed in another order than that of their times: memory has one order, the restored state the other."""
    before = [
        activated("a", "10:00"),
        activated("b", "10:00"),
        deactivated("a", "10:30"),
        deactivated("b", "10:20"),
    ]
    after = [activated("c", "11:25"), expired("b", "10:15")]
    unbroken = new_worker()
    unbroken.process(sources(before))
    restarted = Worker(recovered(unbroken.changelog).of(PARTITION))
    last = sources(after, first=len(before))
    assert comparable(restarted.process(last)) == comparable(unbroken.process(last))


# --- Incarnations and time zones


def test_a_new_incarnation_starts_a_new_epoch_and_its_offsets_again() -> None:
    worker = new_worker(incarnation="topic-1")
    worker.process(sources([limited("10:00", 1, id="terms"), activated("a", "10:01", id="a")]))
    assert worker.state.cursor == Cursor(STATE_VERSION, "topic-1", 1, 1, "UTC")

    worker.incarnation = "topic-2"
    # The server sends one of its events again, and a new one, at offsets that the old topic had too.
    processed = worker.process(sources([activated("a", "10:01", id="a"), activated("b", "10:02", id="b")]))
    assert worker.state.cursor == Cursor(STATE_VERSION, "topic-2", 2, 1, "UTC")
    [row] = rows_of(processed.outputs)
    assert (row["id"], row["level"], row["incarnation"], row["epoch"], row["offset"]) == ("b", 2, "topic-2", 2, 1)
    assert worker.state.ledger.elements["ent-1", "seats"].holds["b"].position == position_of(2, 1)

    worker.process(sources([activated("c", "10:03", id="c")], first=2))
    assert worker.state.cursor == Cursor(STATE_VERSION, "topic-2", 2, 2, "UTC")


def test_a_state_without_incarnation_goes_on_with_any_topic_from_its_beginning() -> None:
    """As a rebuild leaves it."""
    worker = new_worker()
    worker.process(sources([activated("a", "10:00", id="a")]))
    changelog = [*worker.changelog, encode_cursor(Cursor(STATE_VERSION, "", 7, -1, "UTC"))]
    states = PartitionStates(Calendar("UTC"), HOUR, "topic-1", PARTITIONS)
    # The rebuilt changelog has no other cursor than that.
    states.restore(PARTITION, [Stored(key, value) for key, value in dict(changelog).items()])
    states.restored()
    assert states.resume_offset(PARTITION, None) is None
    restarted = Worker(states.of(PARTITION))
    processed = restarted.process(sources([activated("a", "10:00", id="a"), activated("b", "10:01", id="b")]))
    assert [(row["id"], row["epoch"], row["offset"]) for row in rows_of(processed.outputs)] == [("b", 8, 1)]


def test_a_partition_without_state_is_read_from_where_the_broker_says() -> None:
    states = recovered([])
    assert states.resume_offset(PARTITION, None) is None
    assert states.of(PARTITION).cursor == Cursor(STATE_VERSION, "", 0, -1, "UTC")
    assert states.resume_offset(PARTITION, None) is None


def test_partitions_have_states_of_their_own() -> None:
    worker = new_worker()
    worker.process(sources([activated("a", "10:00")], first=41))
    states = recovered(worker.changelog)
    assert states.resume_offset(PARTITION, None) == 42
    assert states.resume_offset(PARTITION - 1, None) is None
    assert states.of(PARTITION - 1).ledger.elements == {}
    assert states.of(PARTITION) is states.of(PARTITION)


def test_dropped_state_is_gone() -> None:
    worker = new_worker()
    worker.process(sources([activated("a", "10:00")]))
    states = recovered(worker.changelog)
    states.restore(PARTITION, [Stored(b"\xff", b"")])
    states.drop()
    assert states.resume_offset(PARTITION, None) is None
    assert states.of(PARTITION).ledger.elements == {}


def test_the_state_of_another_incarnation_is_refused() -> None:
    worker = new_worker(incarnation="topic-1")
    worker.process(sources([activated("a", "10:00")]))
    states = recovered(worker.changelog, incarnation="topic-2")
    with pytest.raises(StateRefused, match=r"partition 2 .*topic-1.*topic-2"):
        states.resume_offset(PARTITION, None)


def test_a_partition_that_was_worked_on_and_has_no_state_is_refused() -> None:
    with pytest.raises(StateRefused, match=r"partition 2 has no state.* offset 41: .*seatmark rebuild"):
        recovered([]).resume_offset(PARTITION, committed=42)
    # A group that has only been told to begin at the beginning has not worked.
    assert recovered([]).resume_offset(PARTITION, committed=0) is None
    # Rebuilt state does not stand for what is committed.
    rebuilt = recovered([encode_cursor(Cursor(STATE_VERSION, "", 7, -1, "UTC"))])
    assert rebuilt.resume_offset(PARTITION, committed=42) is None


def test_state_of_an_entitlement_that_belongs_on_another_partition_is_refused() -> None:
    """As after SEATMARK_PARTITIONS was changed: by murmur2, `ent-1` is on partition 2 of 3 and on 3 of 4."""
    worker = new_worker()
    worker.process(sources([activated("a", "10:00")]))
    states = PartitionStates(Calendar("UTC"), HOUR, "topic-1", partitions=4)
    states.restore(PARTITION, [Stored(key, value) for key, value in worker.changelog])
    states.restored()
    with pytest.raises(StateRefused, match=r"partition 2 .* of 4, .*'ent-1'.*SEATMARK_PARTITIONS.*seatmark rebuild"):
        states.resume_offset(PARTITION, None)


def test_the_state_of_another_time_zone_is_refused() -> None:
    worker = new_worker("Europe/Paris")
    worker.process(sources([activated("a", "10:00")]))
    states = recovered(worker.changelog, timezone="UTC")
    with pytest.raises(StateRefused, match=r"partition 2 .*Europe/Paris.*SEATMARK_TIMEZONE is UTC"):
        states.resume_offset(PARTITION, None)


def test_state_of_another_layout_is_refused() -> None:
    states = recovered([encode_cursor(Cursor(STATE_VERSION + 1, "topic-1", 1, 5, "UTC"))])
    with pytest.raises((StateRefused, UnreadableState)):
        states.resume_offset(PARTITION, None)


# --- Changelog records that cannot be read


def key_of(*parts: Any) -> bytes:
    return msgspec.msgpack.encode(parts)


UNREADABLE: dict[str, tuple[bytes, bytes | None]] = {
    "empty key": (b"", b"\xc0"),
    "no MessagePack": (b"\xc1garbage", b"\xc0"),
    "key is no array": (msgspec.msgpack.encode("h"), b"\xc0"),
    "key too short": (key_of("h", "ent-1"), b"\xc0"),
    "unknown letter": (key_of("x", "ent-1", "seats"), b"\xc0"),
    "hold without a seat": (key_of("s", "ent-1", "seats"), msgspec.msgpack.encode((1, 0, 0, None, b""))),
    "forgotten hold without a seat": (key_of("s", "ent-1", "seats"), None),
    "block without a number": (key_of("i", "ent-1", "seats"), None),
    "entitlement is no text": (key_of("h", ["ent-1"], "seats"), b"\xc0"),
    "head is nothing": (key_of("h", "ent-1", "seats"), None),
    "head is garbage": (key_of("h", "ent-1", "seats"), b"\xc1"),
    "head is cut off": (key_of("h", "ent-1", "seats"), msgspec.msgpack.encode(("ent-1", "seats", 1))[:-1]),
    "head of other types": (key_of("h", "ent-1", "seats"), msgspec.msgpack.encode(("ent-1", "seats", "one"))),
    "hold of other types": (key_of("s", "ent-1", "seats", "a"), msgspec.msgpack.encode(("1", 0, 0, None, b""))),
    "hold is too short": (key_of("s", "ent-1", "seats", "a"), msgspec.msgpack.encode((1, 0))),
    "block is garbage": (key_of("i", "ent-1", "seats", 0), b"\xc1"),
    "cursor is nothing": (key_of("c"), None),
    "cursor is too short": (key_of("c"), msgspec.msgpack.encode((1, "topic-1"))),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_unreadable_record_is_an_error_that_names_its_key(name: str) -> None:
    key, value = UNREADABLE[name]
    with pytest.raises(UnreadableState) as raised:
        restore(Ledger(Calendar("UTC"), HOUR), key, value)
    assert repr(key) in str(raised.value)


@pytest.mark.parametrize("name", UNREADABLE)
def test_recovery_goes_on_and_the_worker_does_not_start_with_half_a_state(name: str) -> None:
    """What is raised while the changelog is read would only be logged."""
    worker = new_worker()
    worker.process(sources([activated("a", "10:00")]))
    states = recovered([*worker.changelog, UNREADABLE[name], *worker.changelog])
    with pytest.raises(UnreadableState):
        states.resume_offset(PARTITION, None)


# --- Partitions

# murmur2 of these keys, from Kafka's own tests (UtilsTest.testMurmur2): -973932308 and -985981536. Without the sign bit that is
# 1173551340 and 1161502112, and modulo 3: partitions 0 and 2.
ELSEWHERE, HERE = "21", "a-little-bit-long-string"


def test_a_record_on_another_partition_than_kafkas_own_clients_choose_is_a_dead_letter() -> None:
    worker = new_worker()
    log = [
        activated("a", "10:00", subject=ELSEWHERE),
        activated("a", "10:00", subject=HERE),
        limited("10:01", 1, subject=ELSEWHERE),
    ]
    processed = worker.process(sources(log))
    assert [(key, dict(headers)["seatmark-reason"]) for key, _, headers in processed.outputs.dead_letters] == [
        (ELSEWHERE.encode(), b"key_mismatch"),
        (ELSEWHERE.encode(), b"key_mismatch"),
    ]
    detail = dict(processed.outputs.dead_letters[0][2])["seatmark-detail"].decode()
    for part in ("is on partition 2", "on partition 0 of 3", "partitioner=murmur2_random"):
        assert part in detail
    assert [row["entitlement"] for row in rows_of(processed.outputs)] == [HERE]
    assert set(worker.state.ledger.elements) == {(HERE, "seats")}


def test_what_is_wrong_in_itself_is_told_before_the_partition() -> None:
    processed = new_worker().process([Source(0, raw(activated("a", "10:00", subject=ELSEWHERE), type="seat.painted"))])
    [(_, _, headers)] = processed.outputs.dead_letters
    assert dict(headers)["seatmark-reason"] == b"unknown_type"


def test_the_partition_of_an_entitlement_is_worked_out_once_also_after_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs as much as folding an event."""
    worked_out = []

    def counted_partition_of(entitlement: str, partitions: int) -> int:
        worked_out.append(entitlement)
        return partition_of(entitlement, partitions)

    monkeypatch.setattr("processors.state.partition_of", counted_partition_of)
    worker = new_worker()
    for first in (0, 50):
        worker.process(sources([activated(f"s{n}", "10:00") for n in range(50)], first=first))
    assert worked_out == ["ent-1"]
    restarted = Worker(recovered(worker.changelog).of(PARTITION))
    restarted.process(sources([activated("t", "10:00")], first=100))
    assert worked_out == ["ent-1"] * 2


# --- Dead letters


def raw(document: Document, **replaced: Any) -> bytes:
    return orjson.dumps({name: value for name, value in (document | replaced).items() if value is not ...})


def with_data(document: Document, fields: bytes) -> bytes:
    """The document with more JSON at the beginning of its data."""
    return raw(document).replace(b'"data":{', b'"data":{' + fields + b",")


def activation(at: str = "10:00", /, **data: Any) -> bytes:
    """An activation with these fields of data replaced; `...` leaves one out."""
    document = activated("a", at, id="bad")
    document["data"] = {name: value for name, value in (document["data"] | data).items() if value is not ...}
    return orjson.dumps(document)


GOOD = activated("a", "10:00", id="bad")
TWICE = event("entitlement.snapshot", "10:00", element="seats", holds=[{"seat_id": "a"}, {"seat_id": "a"}])
REFUSED: dict[str, tuple[str, bytes | None, bytes | None, str]] = {
    # what: (reason, value, key, what the detail must name)
    "no value": ("not_json", None, b"ent-1", ""),
    "empty": ("not_json", b"", b"ent-1", ""),
    "cut off": ("not_json", raw(GOOD)[:-1], b"ent-1", ""),
    "no UTF-8": ("not_json", raw(GOOD).replace(b'"a"', b'"\xff"'), b"ent-1", ""),
    "two documents": ("not_json", raw(GOOD) * 2, b"ent-1", ""),
    "a list": ("not_cloudevent", b"[1]", b"ent-1", "object"),
    "no specversion": ("not_cloudevent", raw(GOOD, specversion=...), b"ent-1", "specversion"),
    "another specversion": ("not_cloudevent", raw(GOOD, specversion="0.3"), b"ent-1", "specversion"),
    "no id": ("not_cloudevent", raw(GOOD, id=...), b"ent-1", "id"),
    "empty id": ("not_cloudevent", raw(GOOD, id=""), b"ent-1", "id"),
    "source is no text": ("not_cloudevent", raw(GOOD, source=5), b"ent-1", "source"),
    "no subject": ("not_cloudevent", raw(GOOD, subject=...), b"ent-1", "subject"),
    "no time": ("not_cloudevent", raw(GOOD, time=...), b"ent-1", "time"),
    "no such time": ("not_cloudevent", raw(GOOD, time="2026-02-29T10:00:00Z"), b"ent-1", "time"),
    "time without zone": ("not_cloudevent", raw(GOOD, time="2026-03-10T10:00:00"), b"ent-1", "time"),
    "unknown type": ("unknown_type", raw(GOOD, type="seat.painted"), b"ent-1", "seat.painted"),
    "no data": ("invalid_data", raw(GOOD, data=...), b"ent-1", "data"),
    "no seat": ("invalid_data", activation(seat_id=...), b"ent-1", "seat_id"),
    "seat is a number": ("invalid_data", activation(seat_id=5), b"ent-1", "seat_id"),
    "lease ends at the event": ("invalid_data", activation(lease_expires_at="2026-03-10T10:00:00Z"), b"ent-1", "lease"),
    "lease end is no time": ("invalid_data", activation(lease_expires_at="tomorrow"), b"ent-1", "lease_expires_at"),
    "quantity 0": ("invalid_data", raw(used("10:00", quantity=0)), b"ent-1", "quantity"),
    "quantity below 0": ("invalid_data", raw(used("10:00", quantity=-1)), b"ent-1", "quantity"),
    "half a unit": ("invalid_data", raw(used("10:00", quantity=0.5)), b"ent-1", "quantity"),
    "quantity beyond 64 bits": ("invalid_data", with_data(used("10:00"), b'"quantity":' + b"9" * 30), b"ent-1", "quantity"),
    "no limit": ("invalid_data", raw(changed("10:00", {"seats": {"kind": "pool"}})), b"ent-1", "limit"),
    "no elements": ("invalid_data", raw(changed("10:00", {})), b"ent-1", "elements"),
    "overdraft below 0": ("invalid_data", raw(limited("10:00", 1, "absolute", -1)), b"ent-1", "overdraft"),
    "overdraft without value": ("invalid_data", raw(limited("10:00", 1, "percentage")), b"ent-1", "overdraft"),
    "five decimals": ("invalid_data", raw(limited("10:00", 1, "percentage", 0.12345)), b"ent-1", "overdraft"),
    "half a unit of overdraft": ("invalid_data", raw(limited("10:00", 1, "absolute", 0.5)), b"ent-1", "overdraft"),
    "a seat twice": ("invalid_data", raw(TWICE), b"ent-1", "seat_id"),
    "no key": ("key_mismatch", raw(GOOD), None, "ent-1"),
    "another key": ("key_mismatch", raw(GOOD), b"ent-2", "ent-1"),
    "a key of other case": ("key_mismatch", raw(GOOD), b"ENT-1", "ent-1"),
    "too large": ("too_large", raw(GOOD) + b" " * MAX_EVENT_BYTES, b"ent-1", "1048576"),
    "in the future": ("time_in_future", raw(activated("a", "20T00:05:00.001")), b"ent-1", "time"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_dead_letter(name: str) -> None:
    reason, value, key, named = REFUSED[name]
    headers = [("traceparent", b"00-1"), ("traceparent", b"00-2")]
    worker = new_worker()
    before, after = sources([activated("x", "10:00", id="before"), activated("y", "10:01", id="after")], first=10)
    bad = Source(11, value, key, headers=headers)
    processed = worker.process([before, bad, Source(12, after.value)])

    [(dead_key, dead_value, dead_headers)] = processed.outputs.dead_letters
    assert (dead_key, dead_value) == (key, value)
    assert dead_headers[:2] == headers
    added = dict(dead_headers[2:])
    assert len(dead_headers) == 2 + len(added)
    detail = added.pop("seatmark-detail").decode()
    assert added == {
        "seatmark-reason": reason.encode(),
        "seatmark-source-topic": b"entitlement-events",
        "seatmark-source-partition": b"2",
        "seatmark-source-offset": b"11",
    }
    assert named in detail
    assert detail != ""
    # The good records around it are applied.
    assert [(row["id"], row["offset"], row["level"]) for row in rows_of(processed.outputs)] == [
        ("before", 10, 1),
        ("after", 12, 2),
    ]
    assert worker.state.cursor.offset == 12


def nested(depth: int) -> bytes:
    return raw(GOOD)[:-1] + b',"more":' + b"[" * depth + b"]" * depth + b"}"


NASTY: dict[str, bytes] = {
    "deeply nested": nested(100_000),
    "deeply nested and not closed": b"[" * 500_000,
    "deeply nested where it is read in another way": nested(2_000).replace(b'"seat_id":"a"', b'"seat_id":5'),
    "an exponent beyond all bounds": with_data(used("10:00"), b'"quantity":1e9999999999999999999999'),
    "the same in an unknown field": with_data(used("10:00", quantity=2.0), b'"x":1e9999999999999999999999'),
    "a number of 5000 digits": with_data(used("10:00"), b'"quantity":1' + b"0" * 5000),
    "an id of 5000 digits": raw(GOOD).replace(b'"bad"', b"1" + b"0" * 5000),
    "half a surrogate pair": raw(GOOD).replace(b'"bad"', b'"\\ud800"'),
    "a zero character": raw(GOOD).replace(b'"bad"', b'"\\u0000"'),
    "a byte order mark": b"\xef\xbb\xbf" + raw(GOOD),
}  # fmt: skip


@pytest.mark.parametrize("name", NASTY)
def test_no_record_stops_the_stream(name: str) -> None:
    """Whether it is taken or is a dead letter: what comes after it is applied."""
    worker = new_worker()
    [good] = sources([activated("y", "10:01", id="good")], first=1)
    processed = worker.process([Source(0, NASTY[name]), good])
    rows = rows_of(processed.outputs)
    assert rows[-1]["id"] == "good"
    assert len(rows) + len(processed.outputs.dead_letters) == 2
    assert worker.state.cursor.offset == 1


@pytest.mark.parametrize("fields", [b'"quantity":1e99999999', b'"quantity":2.0,"x":1e99999999'])
def test_a_number_with_a_large_exponent_does_not_hold_the_stream_up(fields: bytes) -> None:
    """In another process, because it could not be interrupted in this one."""
    program = (
        "import sys\n"
        "from schemas.events import Refused, decode\n"
        "try:\n"
        "    print(decode(sys.stdin.buffer.read(), key='any', appended_at=None).quantity)\n"
        "except Refused as refused:\n"
        "    print(refused.reason)\n"
    )
    value = with_data(used("10:00"), fields)
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, input=value, capture_output=True, timeout=10, cwd=ROOT, check=True)
    assert done.stdout.decode().strip() in ("invalid_data", "not_json", "2")


def test_unknown_fields_are_never_refused() -> None:
    """Not where a whole number was written as 3.0 either, which is read in another way."""
    for quantity in (b"3", b"3.0"):
        value = with_data(used("10:00"), b'"sequence":123456789012345678901234567890,"quantity":' + quantity)
        assert decode(value, key=b"ent-1", appended_at=None).quantity == 3


def test_an_event_of_exactly_1_mib_is_taken() -> None:
    value = raw(GOOD)
    assert len(decode(value + b" " * (MAX_EVENT_BYTES - len(value)), key=b"ent-1", appended_at=None).id) == 3
    with pytest.raises(Refused, match="too_large"):
        decode(value + b" " * (MAX_EVENT_BYTES - len(value) + 1), key=b"ent-1", appended_at=None)


@pytest.mark.parametrize("beyond", [0, 1])
@pytest.mark.parametrize("timestamp_type", [1, 0], ids=["LogAppendTime", "CreateTime"])
def test_the_future_is_measured_by_the_append_time_or_the_workers_clock(timestamp_type: int, beyond: int) -> None:
    """A producer's timestamp proves nothing: with CreateTime a far clock would bring its own excuse along."""
    time = ms("10:05:00")
    limit = time - FUTURE_TOLERANCE_MS - beyond
    other = time + DAY if beyond else time - DAY
    timestamp, now = (limit, other) if timestamp_type == 1 else (other, limit)
    worker = new_worker()
    processed = worker.process(
        [Source(0, raw(activated("a", "10:05:00")), timestamp=timestamp, timestamp_type=timestamp_type)], now
    )
    reasons = [dict(headers)["seatmark-reason"] for _, _, headers in processed.outputs.dead_letters]
    assert (reasons, len(rows_of(processed.outputs))) == (([b"time_in_future"], 0) if beyond else ([], 1))


def test_a_chunk_of_nothing_but_dead_letters_moves_the_cursor() -> None:
    worker = new_worker()
    processed = worker.process([Source(4, b"{"), Source(5, b"{")])
    assert (processed.outputs.activity, len(processed.outputs.dead_letters)) == ([], 2)
    assert processed.changelog == [encode_cursor(Cursor(STATE_VERSION, "topic-1", 1, 5, "UTC"))]


# --- What a chunk puts out


def test_activity_rows_of_a_chunk() -> None:
    log = [
        changed("10:00", {"seats": {"limit": 1, "overdraft": {"type": "absolute", "value": 1}}, "render": {"limit": None}},
                id="terms", customer="c-1", product="p-1"),
        activated("a", "10:30", id="first", lease="11:30", user="ann@example.com", ip="203.0.113.7", host="wks-12",
                  credential="user", activation_id="x-1"),
        activated("b", "10:10", id="disordered"),
        deactivated("a", "10:20", id="late"),
        denied("10:31", id="denial", reason="none left", seat_id="c"),
        expired("a", "10:32", id="too early"),
        activated("a", "10:30", id="first"),
        checked_out("a", "10:33", id="checkout", quantity=4),
    ]  # fmt: skip
    log[1]["time"] = "2026-03-10T11:30:00.0009+01:00"
    worker = new_worker()
    records = sources(log, first=20, timestamp=ms("19T00:00"))
    rows = rows_of(worker.process(records).outputs)
    names = ("id", "element", "offset", "time", "t", "version", "late", "delta", "level", "state")
    assert [tuple(row[name] for name in names) for row in rows] == [
        ("terms", "seats", 20, ms("10:00"), ms("10:00"), 1, False, 0, 0, "within"),
        ("terms", "render", 20, ms("10:00"), ms("10:00"), 1, False, 0, 0, "within"),
        ("first", "seats", 21, ms("10:30"), ms("10:30"), 1, False, 1, 1, "at_limit"),
        ("disordered", "seats", 22, ms("10:10"), ms("10:30"), 1, False, 1, 2, "at_hard_limit"),
        ("late", "seats", 23, ms("10:20"), ms("10:30"), 0, True, 0, 2, "at_hard_limit"),
        ("denial", "seats", 24, ms("10:31"), ms("10:31"), 0, False, 0, 2, "at_hard_limit"),
        ("too early", "seats", 25, ms("10:32"), ms("10:32"), 0, False, 0, 2, "at_hard_limit"),
        # The repeat at offset 26 has no row.
        ("checkout", "render", 27, ms("10:33"), ms("10:33"), 1, False, 4, 4, "within"),
    ]
    assert rows[2] == {
        "entitlement": "ent-1",
        "element": "seats",
        "time": ms("10:30"),
        "source": "/s",
        "id": "first",
        "type": "seat.activated",
        "customer": "c-1",
        "product": "p-1",
        "seat_id": "a",
        "user": "ann@example.com",
        "ip": "203.0.113.7",
        "host": "wks-12",
        "credential": "user",
        "quantity": None,
        "lease_expires_at": ms("11:30"),
        "reason": None,
        "incarnation": "topic-1",
        "epoch": 1,
        "partition": PARTITION,
        "offset": 21,
        "appended_at": ms("19T00:00"),
        "t": ms("10:30"),
        "version": 1,
        "late": False,
        "delta": 1,
        "level": 1,
        "limit": 1,
        "hard_limit": 2,
        "terms_known": True,
        "state": "at_limit",
        "event": records[1].value,
    }
    assert (rows[1]["limit"], rows[1]["hard_limit"], rows[1]["terms_known"]) == (None, None, True)
    assert (rows[5]["reason"], rows[5]["seat_id"]) == ("none left", "c")
    assert rows[7]["quantity"] == 4
    assert [row["event"] for row in rows] == [records[n].value for n in (0, 0, 1, 2, 3, 4, 5, 7)]


def test_headers_of_the_activity_say_which_offsets_it_covers() -> None:
    worker = new_worker()
    records = sources([activated(seat, "10:00") for seat in "abc"], first=30)
    processed = worker.process([*records, Source(40, b"{")])
    [(key, _, headers)] = processed.outputs.activity
    assert key is None
    assert dict(headers) == {
        "seatmark-incarnation": b"topic-1",
        "seatmark-source-topic": b"entitlement-events",
        "seatmark-source-partition": b"2",
        "seatmark-first-offset": b"30",
        "seatmark-last-offset": b"40",
        "seatmark-rows": b"3",
    }
    # Of a chunk that begins with what is applied already, only the rest.
    processed = worker.process([Source(40, b"{"), *sources([activated("d", "10:01"), activated("e", "10:01")], first=41)])
    assert processed.outputs.dead_letters == []
    [(_, _, headers)] = processed.outputs.activity
    covered = dict(headers)
    assert [covered[f"seatmark-{name}"] for name in ("first-offset", "last-offset", "rows")] == [b"41", b"42", b"2"]


def test_a_chunk_of_repeats_has_no_activity() -> None:
    worker = new_worker()
    document = activated("a", "10:00", id="1")
    worker.process(sources([document]))
    processed = worker.process(sources([document, document], first=1))
    assert processed.outputs == ChunkOutputs(taken=2)
    assert processed.days == []
    assert worker.state.cursor.offset == 2


def test_alerts_of_a_chunk_are_keyed_by_entitlement_and_in_order() -> None:
    worker = new_worker()
    log = [limited("10:00", 1), activated("a", "10:01", id="7"), activated("b", "10:02"), deactivated("b", "10:03")]
    alerts = worker.process(sources(log)).outputs.alerts
    assert [(key, headers) for key, _, headers in alerts] == [(b"ent-1", [])] * 3
    read = [orjson.loads(value or b"") for _, value, _ in alerts]
    assert [alert["type"] for alert in read] == ["limit.reached", "overdraft.entered", "overdraft.left"]
    assert read[0]["id"] == "8caf68e1-c516-5215-85f5-239206db6275"


def test_days_of_a_chunk_are_one_row_for_each_day_and_one_mark_for_each_element() -> None:
    worker = new_worker()
    log = [
        activated(f"s{n}", at) for n, at in enumerate(["10T10:00", "11T10:00", "11T11:00", "05T10:00", "12T10:00", "12T09:59"])
    ]
    days = worker.process(sources(log)).days
    assert [(type(record).__name__, getattr(record, "day", None)) for record in days] == [
        ("DayRow", "2026-03-10"),
        ("DayRow", "2026-03-11"),
        ("DayRow", "2026-03-12"),
        ("DayMark", None),
    ]
    mark = days[-1]
    assert (getattr(mark, "first_day", ""), getattr(mark, "last_day", "")) == ("2026-03-05", "2026-03-12")
    assert epoch_and_offset(mark.position) == (1, 5)


def test_what_goes_wrong_with_a_record_says_which_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = new_worker()

    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(worker.state.ledger, "apply", broken)
    with pytest.raises(RuntimeError, match="broken") as raised:
        worker.process(sources([activated("a", "10:00")], first=77))
    assert raised.value.__notes__ == ["while applying entitlement-events[2] offset 77"]


def test_a_chunk_that_puts_out_too_much_is_taken_in_parts() -> None:
    """Each of these events names many elements, so it becomes as many rows, each with the event in it."""
    elements = {f"feature-{number}": {"limit": 1} for number in range(300)}
    documents = [changed("10:00", elements, id=str(number), note="x" * 30_000) for number in range(4)]
    worker = new_worker()
    records = sources(documents)
    taken = []
    while sum(taken) < len(records):
        processed = worker.process(records[sum(taken) :])
        taken.append(processed.outputs.taken)
        [(_, value, _)] = processed.outputs.activity
        assert value is not None
        assert len(value) < 40 * 1024 * 1024
    assert len(taken) > 1
    assert worker.state.cursor.offset == len(records) - 1


def test_an_event_that_would_become_too_much_is_a_dead_letter() -> None:
    elements = {f"feature-{number}": {"limit": 1} for number in range(5_000)}
    processed = new_worker().process(sources([changed("10:00", elements)]))
    [(_, _, headers)] = processed.outputs.dead_letters
    assert dict(headers)["seatmark-reason"] == b"invalid_data"
    assert b"data.elements" in dict(headers)["seatmark-detail"]


def test_numbers_beyond_64_bits_survive_a_restart() -> None:
    worker = new_worker()
    worker.process(sources([counted(10**12, "00:00", element="bytes")]))
    worker.process(sources([used("23:59", element="bytes")], first=1))
    [head] = [element.head for element in worker.state.ledger.elements.values()]
    assert head.day is not None
    assert head.day.unit_ms == 10**12 * (23 * 60 + 59) * 60_000
    assert head.day.unit_ms > 2**64
    [restored] = [element.head for element in recovered(worker.changelog).of(PARTITION).ledger.elements.values()]
    assert restored == head
