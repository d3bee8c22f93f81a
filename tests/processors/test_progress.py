"""When a process stands still, and when it only has nothing to do: by hand, and the questions to real brokers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import RecordsToDelete
from prometheus_client import REGISTRY

from processors.brokers import AccessRefused, Brokers
from processors.health import Check, Health
from processors.progress import Behind, Log, Monitor, Observation, Standstill, Unstored
from seatmark.tansu import Tansu
from tests.brokers import admin_client, create_topic

FIRST, SECOND = TopicPartition("events", 0), TopicPartition("events", 1)
STUCK_AFTER = 100.0


def test_what_stands_longest_is_what_moved_first() -> None:
    standstill = Standstill()
    assert standstill.note(0, {}) is None
    assert standstill.note(10, {"a": 1, "b": 1}) == ("a", 0)
    assert standstill.note(13, {"a": 2, "b": 1}) == ("b", 3)
    assert standstill.note(20, {"a": 2, "b": 1}) == ("b", 10)
    assert standstill.note(21, {"a": 2, "b": 2}) == ("a", 8)
    # With nothing to do it does not stand, and begins anew afterwards.
    assert standstill.note(30, {"b": 2}) == ("b", 9)
    assert standstill.note(31, {"a": 2, "b": 3}) == ("a", 0)
    assert standstill.note(90, {}) is None
    assert standstill.note(91, {"a": 2}) == ("a", 0)


class ToldLog:
    """What the brokers say, as the test tells them to."""

    def __init__(self) -> None:
        self.ends: dict[TopicPartition, int] = {}
        self.came_at: int | None = None
        self.away: bool | Exception = False
        self.closed = 0

    async def behind(self, next_offsets: Mapping[TopicPartition, int]) -> dict[TopicPartition, Behind]:
        if self.away:
            raise self.away if isinstance(self.away, Exception) else TimeoutError
        return {
            place: Behind(end - next_offsets[place], self.came_at)
            for place, end in self.ends.items()
            if end > next_offsets.get(place, end)
        }

    async def close(self) -> None:
        self.closed += 1


class Watched:
    """A process under a monitor, and a clock that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log = ToldLog()
        self.health = Health()
        self.ended: list[str] = []
        self.monitor = Monitor(self.health, self.log, STUCK_AFTER, clock=lambda: self.now, end=self._end)  # type: ignore[arg-type]
        self.says(Observation({"assigned": Check(True, "partitions [0, 1]")}, next_offsets={FIRST: 0, SECOND: 0}))

    def _end(self, why: str, tasks: Iterable[Any]) -> None:
        assert list(tasks)
        self.ended.append(why)

    def says(self, observation: Observation) -> None:
        self.monitor.observe = lambda: observation

    def at(self, first: int, second: int = 0, **more: Any) -> None:
        self.says(
            Observation({"assigned": Check(True, "partitions [0, 1]")}, next_offsets={FIRST: first, SECOND: second}, **more)
        )

    async def later(self, seconds: float) -> Mapping[str, Check]:
        self.now += seconds
        await self.monitor.look()
        return self.health.checks


@pytest.fixture
def watched() -> Watched:
    return Watched()


async def test_a_topic_without_new_events_is_healthy_for_ever(watched: Watched) -> None:
    watched.log.ends = {FIRST: 5}
    watched.at(5)
    for _ in range(5):
        assert (await watched.later(STUCK_AFTER)) == {
            "assigned": Check(True, "partitions [0, 1]"),
            "brokers": Check(True, "answer"),
            "progressing": Check(True, "nothing to do"),
        }
    assert watched.ended == []


async def test_a_backlog_that_shrinks_is_healthy(watched: Watched) -> None:
    watched.log.ends = {FIRST: 1000}
    for done in range(0, 1000, 100):
        watched.at(done)
        assert (await watched.later(60))["progressing"].ok
    assert watched.ended == []


async def test_lag_without_progress_is_not_ready_at_half_the_limit_and_ends_the_process_after_it(watched: Watched) -> None:
    watched.log.ends = {FIRST: 1000, SECOND: 20}
    watched.at(100, 20)
    told = (await watched.later(0))["progressing"]
    assert told == Check(True, "900 records to do; the last of events[0] was done at least 0 s ago")
    assert (await watched.later(50))["progressing"].ok
    told = (await watched.later(1))["progressing"]
    assert told == Check(False, "900 records to do; the last of events[0] was done at least 51 s ago")
    await watched.later(49)
    assert watched.ended == []
    await watched.later(1)
    assert watched.ended == [
        "nothing goes on for longer than SEATMARK_STUCK_AFTER, and the brokers answer: 900 records to do; the last of "
        "events[0] was done at least 101 s ago"
    ]


async def test_one_partition_that_stands_is_seen_beside_another_that_moves(watched: Watched) -> None:
    watched.log.ends = {FIRST: 1000, SECOND: 1000}
    for number in range(4):
        watched.at(number, 7)
        await watched.later(40)
    assert len(watched.ended) == 1
    assert "events[1]" in watched.ended[0]


async def test_brokers_that_never_let_us_in_end_it_and_those_that_did_once_are_asked_again(watched: Watched) -> None:
    refused = AccessRefused("the Kafka broker k:9093 cannot be used: it refuses who we say that we are")
    watched.log.away = refused
    with pytest.raises(AccessRefused):
        await watched.later(0)
    watched.log.away = False
    assert (await watched.later(0))["brokers"].ok
    watched.log.away = refused
    brokers = (await watched.later(10 * STUCK_AFTER))["brokers"]
    assert not brokers.ok
    assert str(refused) in brokers.why
    assert watched.ended == []


async def test_brokers_that_are_away_make_it_unready_and_never_end_it(watched: Watched) -> None:
    watched.log.ends = {FIRST: 1000}
    await watched.later(0)
    await watched.later(90)
    watched.log.away = True
    checks = await watched.later(90)
    assert checks == {
        "assigned": Check(True, "partitions [0, 1]"),
        "brokers": Check(
            False,
            "do not answer (TimeoutError); SEATMARK_BROKERS says where they are, SEATMARK_KAFKA_SECURITY what they expect",
        ),
    }
    # The next question goes over connections that are made anew.
    assert watched.log.closed == 1
    await watched.later(10 * STUCK_AFTER)
    # When they are back it has the whole time to go on.
    watched.log.away = False
    assert (await watched.later(90))["progressing"].ok
    await watched.later(99)
    assert watched.ended == []
    await watched.later(2)
    assert len(watched.ended) == 1


async def test_waiting_for_something_else_never_ends_it(watched: Watched) -> None:
    """As a sink does for ClickHouse."""
    watched.log.ends = {FIRST: 1000}
    watched.at(3, waits=True)
    for _ in range(5):
        assert (await watched.later(90))["progressing"] == Check(True, "waits, with 997 records to do")
    watched.at(3)
    await watched.later(90)
    await watched.later(90)
    assert watched.ended == []


async def test_a_recovery_that_goes_on_is_left_alone_and_one_that_stands_is_ended(watched: Watched) -> None:
    for read in range(10):
        watched.says(Observation({"recovered": Check(False, "reads")}, phase=("recovery", read)))
        checks = await watched.later(90)
        assert (checks["recovered"].ok, checks["progressing"].ok) == (False, True)
    assert watched.ended == []
    await watched.later(90)
    await watched.later(90)
    assert watched.ended == [
        "nothing goes on for longer than SEATMARK_STUCK_AFTER, and the brokers answer: recovery: 9 records so far, the last at "
        "least 180 s ago"
    ]


async def test_it_begins_once_the_brokers_have_answered(watched: Watched) -> None:
    stop = asyncio.Event()
    watched.log.away = True
    await watched.later(0)
    beginning = asyncio.ensure_future(watched.monitor.brokers_answer(stop))
    await asyncio.sleep(0)
    assert not beginning.done()
    watched.log.away = False
    await watched.later(0)
    assert await beginning is True
    stop.set()
    assert await watched.monitor.brokers_answer(stop) is False


async def test_it_says_that_the_loop_turns_until_it_is_stopped(watched: Watched) -> None:
    stop = asyncio.Event()
    running = asyncio.ensure_future(watched.monitor.run(stop))
    while watched.health.turns < 2 or "progressing" not in watched.health.checks:
        await asyncio.sleep(0.01)
    stop.set()
    await running
    assert watched.log.closed == 1


# --- What brokers say


@asynccontextmanager
async def asked(broker: Any) -> AsyncIterator[Log]:
    log = Log(Brokers(broker.bootstrap), read_committed=not isinstance(broker, Tansu))
    try:
        yield log
    finally:
        await log.close()


async def records_behind(log: Log, next_offsets: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
    return {place: behind.records for place, behind in (await log.behind(next_offsets)).items()}


async def says(log: Log, next_offsets: Mapping[TopicPartition, int], behind: Mapping[TopicPartition, int]) -> None:
    """Wait until it does: the markers of a transaction follow its commit."""
    async with asyncio.timeout(60):
        while await records_behind(log, next_offsets) != behind:
            await asyncio.sleep(0.01)


async def test_how_far_behind(broker: Any) -> None:
    topic = await create_topic(broker.bootstrap, "behind", partitions=2)
    first, second = TopicPartition(topic, 0), TopicPartition(topic, 1)
    async with asked(broker) as log:
        assert await log.behind({}) == {}
        assert await log.behind({first: 0, second: 0}) == {}
        async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap, acks="all") as producer:
            for _ in range(3):
                await producer.send_and_wait(topic, b"x", partition=0)
        assert await records_behind(log, {first: 0, second: 0}) == {first: 3}
        assert await records_behind(log, {first: 2, second: 0}) == {first: 1}
        assert await log.behind({first: 3, second: 0}) == {}


async def test_how_old_what_is_not_done_is(broker: Any) -> None:
    """Of a partition that stands, exactly; of those that move one is looked into at a time, the one that waited longest."""
    topic = await create_topic(broker.bootstrap, "age", partitions=2)
    first, second = TopicPartition(topic, 0), TopicPartition(topic, 1)
    async with asked(broker) as log:
        async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap, acks="all") as producer:
            for place in (first, second):
                for number in range(6):
                    await producer.send_and_wait(topic, b"x", partition=place.partition, timestamp_ms=1000 * number + 1)
        found = await log.behind({first: 0, second: 0})
        assert sorted(behind.came_at or 0 for behind in found.values()) == [0, 1]
        found = await log.behind({first: 1, second: 1})
        assert sorted(behind.came_at or 0 for behind in found.values()) == [1, 1001]
        # The one that was looked into first has waited longest now. The other one's record is the last that was looked at.
        found = await log.behind({first: 2, second: 2})
        assert sorted(behind.came_at or 0 for behind in found.values()) == [1001, 2001]
        # They stand.
        assert await log.behind({first: 2, second: 2}) == {first: Behind(4, 2001), second: Behind(4, 2001)}
        assert await log.behind({first: 6, second: 2}) == {second: Behind(4, 2001)}


def gauge(name: str, **labels: str) -> float | None:
    """What a metric says; None: it has no such labels."""
    return REGISTRY.get_sample_value(name, labels)


async def test_the_lag_is_in_the_metrics_by_partition_in_records_and_seconds(watched: Watched) -> None:
    one, other = ({"topic": "events", "partition": number} for number in "01")
    watched.log.ends, watched.log.came_at = {FIRST: 1000}, int(time.time() * 1000) - 3600_000
    watched.at(10)
    await watched.later(0)
    assert gauge("seatmark_lag_records", **one) == 990
    assert gauge("seatmark_lag_records", **other) == 0
    age = gauge("seatmark_lag_seconds", **one)
    assert age is not None
    assert age >= 3600
    assert gauge("seatmark_lag_seconds", **other) == 0
    assert gauge("seatmark_check_ok", check="brokers") == 1
    # While the brokers are away it only grows older.
    watched.log.away = True
    await watched.later(2)
    assert (gauge("seatmark_lag_seconds", **one) or 0) > age
    assert gauge("seatmark_check_ok", check="brokers") == 0
    assert gauge("seatmark_check_ok", check="progressing") is None
    watched.log.away = False
    watched.at(1000)
    await watched.later(2)
    assert (gauge("seatmark_lag_records", **one), gauge("seatmark_lag_seconds", **one)) == (0, 0)
    # A partition that moved away is not told any more.
    watched.says(Observation({}, next_offsets={SECOND: 0}))
    await watched.later(2)
    assert (gauge("seatmark_lag_records", **one), gauge("seatmark_lag_seconds", **one)) == (None, None)


@pytest.mark.kafka
async def test_what_no_sink_has_stored_grows_old_whether_there_is_a_sink_or_not(kafka: Any) -> None:
    topic = await create_topic(kafka.bootstrap, "unstored", partitions=2)
    unstored = Unstored(Brokers(kafka.bootstrap), topic, f"{topic}-sinks")
    hour_ago = int(time.time() * 1000) - 3600_000

    async def until(fits: Callable[[float | None, float | None], bool]) -> None:
        async with asyncio.timeout(60):
            while True:
                await unstored.look()
                if fits(*(gauge("seatmark_unstored_seconds", partition=number) for number in "01")):
                    return

    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, acks="all") as producer:
        await producer.send_and_wait(topic, b"x", partition=0, timestamp_ms=hour_ago)
    # Without partitions nothing is said.
    await until(lambda first, second: (first, second) == (None, None))
    unstored.partitions = lambda: [0, 1]
    await until(lambda first, second: (first or 0) >= 3600 and second == 0)
    sink = AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap, group_id=f"{topic}-sinks", enable_auto_commit=False)
    sink.assign([TopicPartition(topic, 0)])
    await sink.start()
    await sink.commit({TopicPartition(topic, 0): 1})
    await sink.stop()
    await until(lambda first, second: (first, second) == (0, 0))
    unstored.partitions = lambda: [1]
    await until(lambda first, second: (first, second) == (None, 0))
    unstored.partitions = tuple
    await until(lambda first, second: (first, second) == (None, None))
    stop = asyncio.Event()
    stop.set()
    # Which closes its connections.
    await unstored.run(stop)


async def test_while_brokers_are_away_what_is_not_stored_grows_older(monkeypatch: pytest.MonkeyPatch) -> None:
    unstored = Unstored(Brokers("127.0.0.1:1"), "activity", "sinks")
    unstored.partitions = lambda: [7]
    minute_ago = int(time.time() * 1000) - 60_000

    async def answered() -> dict[int, int | None]:
        return {7: minute_ago}

    with monkeypatch.context() as patched:
        patched.setattr(unstored, "_ask", answered)
        await unstored.look()
    before = gauge("seatmark_unstored_seconds", partition="7")
    await unstored.look()
    after = gauge("seatmark_unstored_seconds", partition="7")
    assert before is not None
    assert after is not None
    assert after > before >= 60
    unstored.partitions = tuple


@pytest.mark.kafka
async def test_a_transactions_marker_is_nothing_to_do(kafka: Any) -> None:
    """It takes an offset that no reader ever passes; and an open transaction's records are not there yet."""
    topic = await create_topic(kafka.bootstrap, "marker")
    place = TopicPartition(topic, 0)
    async with asked(kafka) as log:
        producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, transactional_id=topic)
        async with producer:
            async with producer.transaction():
                await producer.send_and_wait(topic, b"x", partition=0)
                assert await log.behind({place: 0}) == {}
            await says(log, {place: 0}, {place: 2})
            await says(log, {place: 1}, {})
            # Also when asked again, and again when there is something new.
            assert await log.behind({place: 1}) == {}
            async with producer.transaction():
                await producer.send_and_wait(topic, b"y", partition=0)
            await says(log, {place: 1}, {place: 3})


@pytest.mark.kafka
async def test_records_that_were_deleted_are_nothing_to_do(kafka: Any) -> None:
    """A sink that was away for longer than the topic keeps records must not be ended for them."""
    topic = await create_topic(kafka.bootstrap, "deleted")
    place = TopicPartition(topic, 0)
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, acks="all") as producer:
        for _ in range(5):
            await producer.send_and_wait(topic, b"x", partition=0)
    async with admin_client(kafka.bootstrap) as admin:
        await admin.delete_records({place: RecordsToDelete(before_offset=4)})
    async with asked(kafka) as log:
        assert await records_behind(log, {place: 1}) == {place: 1}
        async with admin_client(kafka.bootstrap) as admin:
            await admin.delete_records({place: RecordsToDelete(before_offset=5)})
        assert await log.behind({place: 1}) == {}


async def test_nobody_there() -> None:
    log = Log(Brokers("127.0.0.1:1"), read_committed=False)
    with pytest.raises(Exception, match="Unable to bootstrap"):
        await log.behind({})
    await log.close()
