"""Expiry of leases: when it dares to say that a lease ran out, and the running worker, on both brokers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaError, KafkaTimeoutError, NotLeaderForPartitionError
from prometheus_client import REGISTRY

from deploy.kafka.cluster import free_ports
from processors import expiry as module
from processors.agents import fold_chunk
from processors.app import run_worker
from processors.brokers import Brokers
from processors.domain.days import Calendar
from processors.expiry import KafkaEventLog, LeaseExpiry
from processors.leases import LeasePolicy
from processors.state import PartitionStates
from schemas.activity import decode_activity
from schemas.days import DayRow, decode_day
from schemas.events import LEASES_SOURCE, format_time, parse_time
from seatmark.cli import worker_config
from seatmark.produce import worker_applied
from seatmark.settings import load_settings
from tests.brokers import create_topic
from tests.processors.domain.test_ledger import HOUR, MINUTE, Document, activated, ms, refreshed
from tests.processors.test_state import Source
from tests.processors.test_worker import PARTITIONS, Deployment, _members, deployment, now_ms
from tests.worker_process import running_worker

__all__ = ["deployment"]

GRACE = MINUTE


# --- When: with a log that is said to be as it is


class Log:
    """A log of several partitions, and the worker's states that follow it."""

    def __init__(self) -> None:
        self.states = PartitionStates(Calendar("UTC"), HOUR, "topic-1", 4)
        self.records: dict[int, list[Document]] = {}
        self.applied: dict[int, int] = {}
        self.now = 0
        self.asked: list[set[int]] = []
        self.silent: set[int] = set()
        self.on_append: Callable[[int, Document], None] = lambda partition, document: None

    async def ends(self, applied: Mapping[int, int]) -> dict[int, int]:
        self.asked.append(set(applied))
        for partition, offset in applied.items():
            assert offset == self.applied.get(partition, 0)
        return {partition: len(self.records[partition]) for partition in applied.keys() - self.silent}

    async def append(self, partition: int, key: bytes, value: bytes) -> None:
        document = orjson.loads(value)
        assert document["subject"].encode() == key
        self.on_append(partition, document)
        self.send(document, partition=partition)

    def send(self, *documents: Document, partition: int = 0) -> None:
        self.records.setdefault(partition, []).extend(documents)

    def apply(self, count: int = 1_000_000, partition: int = 0) -> None:
        """Apply the next records, as a worker does."""
        first = self.applied.get(partition, 0)
        documents = self.records[partition][first : first + count]
        state = self.states.of(partition)
        # Which partition a key belongs on is tested elsewhere: here the test says.
        state.placed.update(document["subject"] for document in documents)
        state.begin("topic-1")
        records = [Source(first + n, orjson.dumps(read), read["subject"].encode()) for n, read in enumerate(documents)]
        fold_chunk(state, records, self.now)
        state.leases.note(state.ledger.take_changes())
        self.applied[partition] = first + len(documents)

    def expiries(self, partition: int = 0) -> list[str]:
        """The seats for which there is an event, in the order of the log."""
        return [read["data"]["seat_id"] for read in self.records[partition] if read["source"] == LEASES_SOURCE]


@pytest.fixture
def log() -> Log:
    return Log()


def expiry_of(log: Log, policy: LeasePolicy = "release") -> LeaseExpiry:
    return LeaseExpiry(log.states, log, policy, GRACE, lambda: log.now)


async def test_a_lease_has_run_out_when_the_grace_is_over(log: Log) -> None:
    expiry = expiry_of(log)
    log.send(activated("a", "10:00", lease="11:00"))
    log.apply()
    log.now = ms("11:00:59.999")
    await expiry.round()
    # Nothing was due, so nobody was asked.
    assert (log.expiries(), log.asked) == ([], [])
    log.now = ms("11:01")
    await expiry.round()
    assert log.records[0][-1]["time"] == iso_ms("11:01")
    assert log.expiries() == ["a"]


async def test_how_long_a_lease_has_been_due_is_told_until_it_is_released(log: Log) -> None:
    expiry = expiry_of(log)

    def due() -> float | None:
        return REGISTRY.get_sample_value("seatmark_leases_due_seconds")

    log.send(activated("a", "10:00", lease="11:00"), activated("b", "10:00", lease="11:02"))
    log.apply()
    log.now = ms("11:00")
    await expiry.round()
    assert due() == 0
    # It waits for a refresh that may be in the log.
    log.send(activated("c", "10:30"))
    log.now = ms("11:04")
    await expiry.round()
    assert due() == 180
    log.apply()
    await expiry.round()
    assert due() == 180
    await expiry.round()
    assert due() == 0
    assert log.expiries() == ["a", "b"]


def iso_ms(at: str) -> str:
    return format_time(ms(at))


async def test_it_is_produced_once_and_applied_like_any_event(log: Log) -> None:
    expiry = expiry_of(log)
    log.send(activated("a", "10:00", lease="11:00"))
    log.apply()
    log.now = ms("11:01")
    for _ in range(3):
        await expiry.round()
    assert log.expiries() == ["a"]
    assert log.states.of(0).ledger.elements["ent-1", "seats"].head.level == 1
    log.apply()
    assert log.states.of(0).ledger.elements["ent-1", "seats"].head.level == 0
    await expiry.round()
    assert log.expiries() == ["a"]


async def test_a_refresh_that_waits_in_the_log_wins(log: Log) -> None:
    expiry = expiry_of(log)
    others = [activated(f"other-{number}", "10:10") for number in range(10)]
    log.send(activated("a", "10:00", lease="11:00"), activated("b", "10:00", lease="11:00"), *others)
    log.send(refreshed("a", "10:50", lease="13:00"))
    log.now = ms("12:00")
    log.apply(2)
    for _ in range(11):
        await expiry.round()
        assert log.expiries() == []
        log.apply(1)
    await expiry.round()
    assert log.expiries() == ["b"]


async def test_where_events_come_without_a_pause_the_end_of_back_then_is_enough(log: Log) -> None:
    expiry = expiry_of(log)
    log.send(activated("a", "10:00", lease="11:00"), activated("0", "10:01"))
    log.apply(1)
    log.now = ms("11:01")
    for number in range(1, 4):
        await expiry.round()
        log.send(activated(str(number), "10:01"), activated(str(number), "10:02"))
        log.apply(1)
    # It is behind the log all the time, but past what was its end in the first round.
    assert log.applied[0] < len(log.records[0])
    assert log.expiries() == ["a"]


async def test_what_runs_out_after_the_log_was_asked_waits_for_the_next_answer(log: Log) -> None:
    expiry = expiry_of(log)
    log.send(activated("a", "10:00", lease="11:00"), activated("b", "10:00", lease="11:30"), activated("c", "10:01"))
    log.apply(2)
    log.now = ms("11:01")
    await expiry.round()
    # By now the lease of b has run out too; its refresh came after the log was asked.
    log.now = ms("11:31")
    log.send(refreshed("b", "11:20", lease="12:00"))
    log.apply(1)
    await expiry.round()
    assert log.expiries() == ["a"]
    log.apply()
    await expiry.round()
    assert log.expiries() == ["a"]
    log.now = ms("12:01")
    await expiry.round()
    assert log.expiries() == ["a", "b"]


async def test_only_partitions_with_something_due_are_asked_for(log: Log) -> None:
    expiry = expiry_of(log)
    log.send(activated("a", "10:00", lease="11:00"), partition=0)
    log.send(activated("b", "10:00", lease="12:00", subject="ent-2"), partition=1)
    log.send(activated("c", "10:00", lease="11:00", subject="ent-3"), partition=2)
    for partition in range(3):
        log.apply(partition=partition)
    log.now = ms("11:01")
    await expiry.round()
    assert log.asked == [{0, 2}]
    assert [log.expiries(partition) for partition in range(3)] == [["a"], [], ["c"]]


async def test_under_keep_nothing_is_produced(log: Log) -> None:
    expiry = expiry_of(log, "keep")
    log.send(activated("a", "10:00", lease="11:00"))
    log.apply()
    log.now = ms("23:00")
    await expiry.round()
    await expiry.round()
    assert log.expiries() == []
    # It was set aside: the log is not asked again.
    assert len(log.asked) == 1


async def test_what_could_not_be_sent_is_sent_later_and_the_rest_is_not_sent_twice(log: Log) -> None:
    expiry = expiry_of(log)
    log.send(*(activated(seat, "10:00", lease="11:00") for seat in "abc"))
    log.apply()
    log.now = ms("11:01")
    tried: list[Document] = []

    def refuse_b(partition: int, document: Document) -> None:
        tried.append(document)
        if document["data"]["seat_id"] == "b":
            raise NotLeaderForPartitionError

    log.on_append = refuse_b
    with pytest.raises(NotLeaderForPartitionError):
        await expiry.round()
    assert log.expiries() == ["a", "c"]
    log.on_append = lambda partition, document: None
    log.apply()
    await expiry.round()
    assert log.expiries() == ["a", "c", "b"]
    assert log.records[0][-1]["id"] == next(document["id"] for document in tried if document["data"]["seat_id"] == "b")


async def test_a_partition_in_trouble_does_not_hold_up_the_others(log: Log) -> None:
    expiry = expiry_of(log)
    for partition in range(4):
        log.send(activated("a", "10:00", lease="11:00", subject=f"ent-{partition}"), partition=partition)
        log.apply(partition=partition)
    log.now = ms("11:01")
    log.silent = {0}

    def refuse(partition: int, document: Document) -> None:
        if partition == 1:
            raise KafkaTimeoutError

    log.on_append = refuse
    with pytest.raises(KafkaTimeoutError):
        await expiry.round()
    assert [log.expiries(partition) for partition in range(4)] == [[], [], ["a"], ["a"]]
    log.on_append = lambda partition, document: None
    with pytest.raises(KafkaTimeoutError, match=r"\[0\]"):
        await expiry.round()
    assert [log.expiries(partition) for partition in range(4)] == [[], ["a"], ["a"], ["a"]]


async def test_more_leases_than_are_taken_at_once_all_run_out_in_one_round(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_AT_ONCE", 3)
    expiry = expiry_of(log)
    log.send(*(activated(f"{number:02}", "10:00", lease="11:00") for number in range(20)))
    log.apply()
    log.now = ms("11:01")
    await expiry.round()
    assert sorted(log.expiries()) == [f"{number:02}" for number in range(20)]


async def test_it_stops_when_the_partition_moves_away(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_AT_ONCE", 1)
    expiry = expiry_of(log)
    log.send(*(activated(seat, "10:00", lease="11:00") for seat in "abc"))
    log.apply()
    log.now = ms("11:01")
    log.on_append = lambda partition, document: log.states.drop()
    await expiry.round()
    assert log.expiries() == ["a"]


async def test_what_was_waited_for_before_a_rebalance_does_not_count_after_it(log: Log) -> None:
    expiry = expiry_of(log)
    log.send(activated("a", "10:00", lease="11:00"), activated("x", "10:01"))
    log.apply(1)
    log.now = ms("11:01")
    await expiry.round()
    # The partition comes back, with a state in which a lease ran out only now.
    log.states.drop()
    log.applied = {}
    log.now = ms("12:01")
    log.send(activated("b", "10:02", lease="12:00"), refreshed("b", "11:50", lease="13:00"))
    log.apply(3)
    await expiry.round()
    assert log.expiries() == []
    log.apply()
    await expiry.round()
    assert log.expiries() == ["a"]


async def test_what_brokers_refuse_is_tried_again_and_told(
    log: Log, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0)
    expiry = expiry_of(log)
    log.send(activated("a", "10:00", lease="11:00"))
    log.apply()
    log.now = ms("11:01")
    failures: list[KafkaError] = [KafkaConnectionError("no broker"), KafkaTimeoutError("too slow")]
    produced = asyncio.Event()

    def fail_at_first(partition: int, document: Document) -> None:
        if failures:
            raise failures.pop(0)
        produced.set()

    log.on_append = fail_at_first
    before = REGISTRY.get_sample_value("seatmark_lease_failures_total") or 0
    running = asyncio.ensure_future(expiry.run())
    await asyncio.wait_for(produced.wait(), 10)
    running.cancel()
    assert log.expiries() == ["a"]
    assert REGISTRY.get_sample_value("seatmark_lease_failures_total") == before + 2
    assert "no broker" in caplog.text
    assert "too slow" in caplog.text


async def test_an_error_of_ours_is_not_swallowed(log: Log) -> None:
    expiry = expiry_of(log)
    log.send(activated("a", "10:00", lease="11:00"))
    log.apply()
    log.now = ms("11:01")

    def fail(partition: int, document: Document) -> None:
        raise ZeroDivisionError("a defect")

    log.on_append = fail
    with pytest.raises(ZeroDivisionError, match="a defect"):
        await asyncio.wait_for(expiry.run(), 10)


# --- How far the log goes, asked of brokers


@asynccontextmanager
async def event_log(bootstrap: str, *, read_committed: bool = False) -> AsyncIterator[tuple[KafkaEventLog, str]]:
    topic = await create_topic(bootstrap, "events", partitions=4)
    async with KafkaEventLog(Brokers(bootstrap), topic, read_committed=read_committed) as log:
        yield log, topic


async def test_how_far_the_log_goes(broker: Any) -> None:
    async with event_log(broker.bootstrap) as (log, topic):
        await append_batch(broker.bootstrap, topic, 0, [b"x"] * 5)
        await append_batch(broker.bootstrap, topic, 1, [b"x" * 300_000] * 2)
        assert await log.ends({0: 5, 1: 2, 2: 0}) == {0: 5, 1: 2, 2: 0}
        assert await log.ends({0: 0, 1: 1, 3: 0}) == {0: 5, 1: 2, 3: 0}
        # Within a batch.
        assert await log.ends({0: 3}) == {0: 5}
        await log.append(2, b"k", b"v")
        await append_batch(broker.bootstrap, topic, 0, [b"x"] * 3)
        assert await log.ends({0: 4, 2: 0}) == {0: 8, 2: 1}


async def append_batch(bootstrap: str, topic: str, partition: int, values: list[bytes]) -> None:
    """One batch."""
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, max_batch_size=1024 * 1024) as producer:
        batch = producer.create_batch()
        for value in values:
            assert batch.append(key=b"k", value=value, timestamp=None) is not None
        await (await producer.send_batch(batch, topic, partition=partition))


@pytest.mark.kafka
async def test_the_markers_of_transactions_need_not_be_applied(kafka: Any) -> None:
    """They take an offset each, and no worker ever sees them."""
    async with event_log(kafka.bootstrap) as (log, topic):
        producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, transactional_id=topic)
        async with producer, producer.transaction():
            await producer.send_and_wait(topic, b"v", partition=0)
        # Offset 0 is the record, 1 the marker.
        assert await log.ends({0: 1}) == {0: 1}
        assert await log.ends({0: 0}) == {0: 2}


@pytest.mark.kafka
async def test_a_transaction_that_goes_on_or_was_aborted_is_not_waited_for(kafka: Any) -> None:
    async with event_log(kafka.bootstrap, read_committed=True) as (log, topic):
        await append_batch(kafka.bootstrap, topic, 0, [b"x"] * 2)
        producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, transactional_id=topic)
        async with producer:
            await producer.begin_transaction()
            await producer.send_and_wait(topic, b"v", partition=0)
            # Offset 2 is in the transaction, 3 its marker.
            assert await log.ends({0: 2}) == {0: 2}
            assert await log.ends({0: 0}) == {0: 2}
            await producer.abort_transaction()
        assert await log.ends({0: 2}) == {0: 2}
        await append_batch(kafka.bootstrap, topic, 0, [b"x"])
        assert await log.ends({0: 2}) == {0: 5}


async def test_without_brokers_it_is_an_error_of_kafka() -> None:
    [port] = free_ports(1)
    with pytest.raises(KafkaConnectionError):
        await KafkaEventLog(Brokers(f"127.0.0.1:{port}"), "events", read_committed=False).ends({0: 0})


# --- The running worker


def seat_event(
    kind: str, seat: str, time: int, *, lease: int | None = None, subject: str = "ent-1", **more: Any
) -> tuple[bytes, bytes]:
    """A record. time, lease: ms."""
    data = {"seat_id": seat, **more, **({} if lease is None else {"lease_expires_at": format_time(lease)})}
    event = {"specversion": "1.0", "id": f"{kind}-{seat}-{time}", "source": "/s", "type": kind, "subject": subject,
             "time": format_time(time), "data": data}  # fmt: skip
    return subject.encode(), orjson.dumps(event)


def terms(policy: str, time: int, subject: str) -> tuple[bytes, bytes]:
    data = {"elements": {"seats": {"limit": 1}}, "lease_policy": policy}
    event = {"specversion": "1.0", "id": f"terms-{policy}-{time}", "source": "/s", "type": "entitlement.changed",
             "subject": subject, "time": format_time(time), "data": data}  # fmt: skip
    return subject.encode(), orjson.dumps(event)


class Expiries:
    """Reads the events of Seatmark's own that are on the topic, as they come."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._consumer = AIOKafkaConsumer(bootstrap_servers=deployment.bootstrap, enable_auto_commit=False)
        self.found: list[tuple[int, int, Document]] = []

    async def __aenter__(self) -> Expiries:
        await self._consumer.start()
        places = [TopicPartition(self._deployment.topics.events, partition) for partition in range(PARTITIONS)]
        self._consumer.assign(places)
        await self._consumer.seek_to_beginning(*places)
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self._consumer.stop()

    async def of(self, *seats: str) -> None:
        """Wait until there is one for each of these seats."""
        async with asyncio.timeout(40):
            while set(seats) - set(self.seats()):
                for records in (await self._consumer.getmany(timeout_ms=1000)).values():
                    for record in records:
                        document = orjson.loads(record.value)
                        if document["source"] == LEASES_SOURCE:
                            assert record.key == document["subject"].encode()
                            self.found.append((record.partition, record.offset, document))

    async def applied(self) -> None:
        """Wait until the worker has applied all that were found."""
        ends = {partition: offset + 1 for partition, offset, _ in sorted(self.found, key=lambda found: found[:2])}
        await worker_applied(ends, brokers=Brokers(self._deployment.bootstrap), prefix=self._deployment.prefix, seconds=60)

    def seats(self) -> list[str]:
        return [document["data"]["seat_id"] for _, _, document in self.found]


@pytest.fixture
async def on_kafka(kafka: Any, tmp_path: Path) -> Deployment:
    deployment = Deployment(kafka, tmp_path)
    await deployment.create()
    return deployment


async def last_days(deployment: Deployment) -> dict[tuple[str, str], DayRow]:
    """By entitlement and element the last row of the last day."""
    rows: dict[tuple[str, str], DayRow] = {}
    for record in await deployment.read(deployment.topics.days):
        row = decode_day(record.value)
        if isinstance(row, DayRow):
            known = rows.get((row.entitlement, row.element))
            if known is None or known.position <= row.position:
                rows[row.entitlement, row.element] = row
    return rows


async def test_a_lease_that_runs_out_is_closed_through_the_log_and_keep_leaves_it_open(deployment: Deployment) -> None:
    settings = {**deployment.settings, "SEATMARK_LEASE_GRACE": "1s"}
    with running_worker(settings, deployment.log) as worker:
        start = now_ms()
        end = start + 2_000
        await deployment.send(
            [
                terms("keep", start, "ent-keep"),
                seat_event("seat.activated", "kept", start, lease=end, subject="ent-keep"),
                seat_event("seat.activated", "a", start, lease=end),
                seat_event("feature.checked_out", "tool", start, lease=end, element="render", quantity=3),
                seat_event("seat.activated", "stays", start),
            ]
        )
        async with Expiries(deployment) as expiries:
            await expiries.of("a", "tool")
            assert now_ms() >= end + 1_000
            of_seat, of_tool = (
                next((partition, document) for partition, _, document in expiries.found if document["data"]["seat_id"] == seat)
                for seat in ("a", "tool")
            )
            assert parse_time(of_seat[1]["time"]) == end + 1_000
            assert of_seat[1]["type"] == "seat.expired"
            assert of_tool[1]["type"] == "feature.expired"
            [home] = {partition for partition, sent in deployment.sent.items() for _, key, _ in sent if key == b"ent-1"}
            assert of_seat[0] == of_tool[0] == home
            await expiries.applied()
            # What was kept ran out with the others, and comes when the terms say so.
            await deployment.send([terms("release", start + 1, "ent-keep")])
            released = now_ms()
            await expiries.of("kept")
            assert now_ms() >= released
            await expiries.applied()
            assert sorted(expiries.seats()) == ["a", "kept", "tool"]
        assert worker.stop() == 0, deployment.log.read_text()
    days = await last_days(deployment)
    assert {key: (row.closing, row.deactivations) for key, row in days.items()} == {
        ("ent-1", "seats"): (1, 1),
        ("ent-1", "render"): (0, 1),
        ("ent-keep", "seats"): (0, 1),
    }


@pytest.mark.kafka
async def test_a_worker_that_is_killed_after_it_produced_an_expiry_makes_no_second_effect(on_kafka: Deployment) -> None:
    settings = {**on_kafka.settings, "SEATMARK_LEASE_GRACE": "1s"}
    start = now_ms() - 10 * MINUTE
    seats = [f"seat-{number}" for number in range(50)]
    await on_kafka.send([seat_event("seat.activated", seat, start, lease=start + MINUTE) for seat in seats])
    async with Expiries(on_kafka) as expiries:
        with running_worker(settings, on_kafka.log) as worker:
            await expiries.of(seats[0])
            worker.kill()
        with running_worker(settings, on_kafka.log):
            # One that runs out later shows that the second worker has looked.
            await on_kafka.send([seat_event("seat.activated", "last", start + MINUTE, lease=start + 2 * MINUTE)])
            await expiries.of(*seats, "last")
            await expiries.applied()
    [row] = (await last_days(on_kafka)).values()
    assert (row.closing, row.activations, row.deactivations) == (0, 51, 51)
    effects: set[tuple[str, int]] = set()
    for record in await on_kafka.read(on_kafka.topics.activity):
        table = decode_activity(record.value)
        of = {name: table[name].to_pylist() for name in ("source", "seat_id", "offset", "version")}
        effects |= {
            (seat, offset)
            for source, seat, offset, version in zip(*of.values(), strict=True)
            if source == LEASES_SOURCE and version
        }
    assert sorted(seat for seat, _ in effects) == sorted([*seats, "last"])


async def test_a_refresh_that_waits_behind_a_backlog_wins(deployment: Deployment) -> None:
    settings = {**deployment.settings, "SEATMARK_LEASE_GRACE": "1s"}
    start = now_ms() - 20 * MINUTE
    backlog = [seat_event("seat.denied", "other", start + 2 + number) for number in range(8_000)]
    await deployment.send(
        [
            seat_event("seat.activated", "refreshed", start, lease=start + 10 * MINUTE),
            seat_event("seat.activated", "left", start + 1, lease=start + 10 * MINUTE),
            *backlog,
            seat_event("seat.refreshed", "refreshed", start + 9 * MINUTE, lease=start + 1000 * MINUTE),
        ]
    )
    with running_worker(settings, deployment.log):
        async with Expiries(deployment) as expiries:
            await expiries.of("left")
            await expiries.applied()
            assert expiries.seats() == ["left"]
    [row] = (await last_days(deployment)).values()
    assert (row.closing, row.refreshes, row.deactivations) == (1, 1, 1)


async def test_a_defect_in_the_expiry_of_leases_ends_the_worker(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(self: LeaseExpiry) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(LeaseExpiry, "round", fail)
    config = worker_config(load_settings(deployment.settings))
    with pytest.raises(ZeroDivisionError, match="a defect"):
        await asyncio.wait_for(run_worker(config, asyncio.Event()), 60)


@pytest.mark.kafka
async def test_leases_of_a_worker_that_was_killed_run_out_at_another(kafka: Any, tmp_path: Path) -> None:
    """On Kafka only: the embedded broker serves one worker."""
    deployment = Deployment(kafka, tmp_path)
    deployment.settings["SEATMARK_LEASE_GRACE"] = "1s"
    await deployment.create()
    with running_worker(deployment.settings, deployment.log):
        with running_worker(deployment.settings, tmp_path / "second.log") as second:
            await _members(deployment, 2)
            end = now_ms() + 4_000
            entitlements = [f"ent-{number}" for number in range(20)]
            await deployment.send(
                [seat_event("seat.activated", f"of-{name}", now_ms(), lease=end, subject=name) for name in entitlements]
            )
            assert len(deployment.sent) == PARTITIONS
            await deployment.applied()
            second.kill()
            assert now_ms() < end
        async with Expiries(deployment) as expiries:
            await expiries.of(*(f"of-{name}" for name in entitlements))
            await expiries.applied()
            assert len(expiries.seats()) == len(entitlements)
    days = await last_days(deployment)
    assert {(row.closing, row.deactivations) for row in days.values()} == {(0, 1)}
    assert len(days) == len(entitlements)
