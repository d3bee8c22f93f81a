"""What processors/batching.py takes for granted of Faust and aiokafka: a version that moves one of these fails here."""

import asyncio
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiokafka
import faust
import pytest
from aiokafka.consumer.fetcher import Fetcher, OffsetResetStrategy
from aiokafka.errors import NoOffsetForPartitionError, OffsetOutOfRangeError
from faust.stores.base import Store
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery
from faust.transport.consumer import Consumer as BaseConsumer
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Transport
from faust.types import TP
from mode.utils.queues import FlowControlEvent

from processors.batching import (
    FETCH_WAIT_MS,
    MAX_CHUNK_RECORDS,
    ChangelogStore,
    ChunkApp,
    ChunkConsumer,
    ChunkTransport,
    OffsetGone,
)

EVENTS, CHANGELOG = TP("entitlement-events", 0), TP("ledger-changelog", 0)


def test_versions_are_the_ones_this_was_written_for() -> None:
    assert faust.__version__ == "0.15.3"
    assert aiokafka.__version__ == "0.14.0"


@pytest.mark.parametrize(
    ("owner", "name", "parameters"),
    [
        (BaseConsumer, "getmany", ["self", "timeout"]),
        (BaseConsumer, "_wait_next_records", ["self", "timeout"]),
        (BaseConsumer, "_add_gap", ["self", "tp", "offset_from", "offset_to"]),
        (BaseConsumer, "_new_offset", ["self", "tp"]),
        (BaseConsumer, "_is_changelog_tp", ["self", "tp"]),
        (Consumer, "_new_consumer_thread", ["self"]),
        (Consumer, "seek_to_committed", ["self"]),
        (Consumer, "_getmany", ["self", "active_partitions", "timeout"]),
        (Consumer, "_commit", ["self", "offsets"]),
        (Consumer, "seek_wait", ["self", "partitions"]),
        (Consumer, "earliest_offsets", ["self", "partitions"]),
        (Consumer, "verify_event_path", ["self", "now", "tp"]),
        (AIOKafkaConsumerThread, "_create_worker_consumer", ["self", "transport"]),
        (AIOKafkaConsumerThread, "seek_wait", ["self", "partitions"]),
        (faust.App, "_new_transport", ["self"]),
        (faust.App, "_create_directories", ["self"]),
        (faust.Table, "_new_store", ["self"]),
        (Store, "persisted_offset", ["self", "tp"]),
        (Store, "on_rebalance", ["self", "assigned", "revoked", "newly_assigned", "generation_id"]),
        (Store, "on_recovery_completed", ["self", "active_tps", "standby_tps"]),
    ],
)
def test_the_override_points_are_there(owner: Any, name: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(owner, name)).parameters) == parameters


def test_the_transport_names_the_consumer_class() -> None:
    assert Transport.Consumer is Consumer
    assert ChunkTransport.Consumer is ChunkConsumer
    assert isinstance(chunk_app().transport, ChunkTransport)


def chunk_app() -> ChunkApp:
    async def check_topics() -> None: ...

    return ChunkApp(
        "x",
        broker="kafka://127.0.0.1:1",
        resume_offset=lambda tp, committed: None,
        check_topics=check_topics,
        read_committed=False,
    )


def test_the_fetch_waits_as_long_as_we_say() -> None:
    assert "_fetch_max_wait_ms" in inspect.getsource(aiokafka.AIOKafkaConsumer)
    assert "fetch_max_wait_ms=1500" in inspect.getsource(AIOKafkaConsumerThread._create_worker_consumer)
    assert FETCH_WAIT_MS < 1500


def test_what_a_transaction_took_back_is_not_read() -> None:
    """The isolation level is set before the consumer starts. Faust sets it for its own transactions only."""
    assert "isolation_level=self._isolation_level" in inspect.getsource(aiokafka.AIOKafkaConsumer.start)
    assert "if self.consumer.in_transaction:" in inspect.getsource(AIOKafkaConsumerThread._create_worker_consumer)


def test_partitions_are_taken_over_before_recovery_asks_where_the_changelog_ends() -> None:
    rebalance = inspect.getsource(TableManager.on_rebalance)
    assert 0 < rebalance.index("table.on_rebalance") < rebalance.index("self.recovery.on_rebalance")
    assert "_build_highwaters" in inspect.getsource(Recovery._restart_recovery.fun)


def test_recovery_asks_the_store_at_each_assignment_and_reads_on_from_what_it_says() -> None:
    assert "table.persisted_offset(tp)" in inspect.getsource(Recovery._add)
    store = ChangelogStore.__new__(ChangelogStore)
    assert store.persisted_offset(CHANGELOG) == -1


def test_recovery_has_partitions_sought_once_all_of_the_changelog_was_given_to_the_table() -> None:
    completed = inspect.getsource(Recovery.on_recovery_completed)
    assert 0 < completed.index("table.on_recovery_completed(") < completed.index("consumer.perform_seek()")
    assert "await self.seek_to_committed()" in inspect.getsource(BaseConsumer.perform_seek)
    # And nobody else calls it but the method that is overridden.
    callers = [module for module in faust_modules() if "perform_seek()" in module]
    assert len(callers) == 2
    assert sum(module.count("self.perform_seek()") for module in callers) == 1
    assert "self.perform_seek()" in inspect.getsource(BaseConsumer.getmany)


def faust_modules() -> list[str]:
    return [file.read_text("utf-8") for file in Path(inspect.getfile(faust)).parent.rglob("*.py")]


def test_recovery_begins_before_the_first_record_that_there_is() -> None:
    """Which `seek_wait` puts right; with a reset to the earliest offset the broker would."""
    assert "tp: offset - 1 if offset is not None" in inspect.getsource(Recovery._build_offsets)
    assert "consumer.seek_wait(new_offsets)" in inspect.getsource(Recovery._seek_offsets)


def test_an_offset_that_is_gone_is_an_error() -> None:
    assert chunk_app().conf.consumer_auto_offset_reset == "none"
    assert "auto_offset_reset=conf.consumer_auto_offset_reset" in inspect.getsource(
        AIOKafkaConsumerThread._create_worker_consumer
    )
    assert OffsetResetStrategy.from_str("none") == OffsetResetStrategy.NONE
    assert "OffsetOutOfRangeError({tp: fetch_offset})" in inspect.getsource(Fetcher._proc_fetch_request)


class Thread:
    """The consumer's thread without a broker: offsets that are given, and what was asked of it."""

    def __init__(self, committed: dict[TP, int | None], first: dict[TP, int]) -> None:
        self.offsets = committed
        self.first = first
        self.sought: dict[TP, int] = {}
        self.commits: dict[TP, int] = {}

    async def seek_to_committed(self) -> dict[TP, int | None]:
        return self.offsets

    async def earliest_offsets(self, *partitions: TP) -> dict[TP, int]:
        return {tp: self.first[tp] for tp in partitions}

    async def seek_wait(self, partitions: dict[TP, int]) -> None:
        self.sought |= partitions

    async def commit(self, offsets: dict[TP, int]) -> bool:
        self.commits |= offsets
        return True


class Chunks(ChunkConsumer):
    """A chunk consumer without a broker: what was fetched is given, or raised; what is asked of it is noted."""

    def __init__(self, fetched: dict[TP, list[Any]] | Exception, *, flow_active: bool = True, sought: bool = True) -> None:
        self.app = SimpleNamespace(
            consumer_generation_id=1,
            rebalancing=False,
            tables=SimpleNamespace(changelog_topics={CHANGELOG.topic}),
            check_topics=self.check_topics,
            resume_offset=lambda tp, committed: self.resume.get(tp),
        )
        self.fetched = fetched
        self.flow_active = flow_active
        self.checks = 0
        self.changed: Exception | None = None
        self.resume: dict[TP, int] = {}
        self._thread = Thread({EVENTS: None, CHANGELOG: None}, {EVENTS: 0, CHANGELOG: 0})
        self._buffered_partitions: set[TP] = set()
        self._acked: dict[TP, list[int]] = {EVENTS: []}
        self._acked_index: dict[TP, set[int]] = {EVENTS: set()}
        self._fetching = asyncio.Lock()
        self._sought_in_generation = 1 if sought else None

    should_stop = False

    async def sleep(self, seconds: float) -> None:
        """Not in a test."""

    async def _wait_next_records(self, timeout: float) -> Any:
        if isinstance(self.fetched, Exception):
            raise self.fetched
        return self.fetched, set(self.fetched)

    async def check_topics(self) -> None:
        self.checks += 1
        if self.changed is not None:
            raise self.changed


def records(count: int, first: int = 0) -> list[Any]:
    return [
        SimpleNamespace(offset=n, timestamp=n, timestamp_type=1, serialized_value_size=3) for n in range(first, first + count)
    ]


async def chunks_of(consumer: Chunks) -> list[tuple[TP, int, int]]:
    """(partition, number of records, offset) of each chunk."""
    return [(tp, len(chunk.value), chunk.offset) async for tp, chunk in consumer.getmany(1.0)]


async def test_a_fetch_is_one_chunk_for_each_partition() -> None:
    other = TP("entitlement-events", 1)
    assert await chunks_of(Chunks({EVENTS: records(10), other: records(3)})) == [(EVENTS, 10, 9), (other, 3, 2)]


async def test_a_large_fetch_of_events_is_cut_and_one_of_the_changelog_never() -> None:
    many = records(MAX_CHUNK_RECORDS + 1)
    assert await chunks_of(Chunks({EVENTS: many})) == [
        (EVENTS, MAX_CHUNK_RECORDS, MAX_CHUNK_RECORDS - 1),
        (EVENTS, 1, MAX_CHUNK_RECORDS),
    ]
    assert await chunks_of(Chunks({CHANGELOG: many})) == [(CHANGELOG, MAX_CHUNK_RECORDS + 1, MAX_CHUNK_RECORDS)]


async def test_what_was_fetched_while_the_flow_stopped_is_dropped() -> None:
    assert await chunks_of(Chunks({EVENTS: records(10)}, flow_active=False)) == []


async def test_events_are_handed_on_only_from_where_the_state_ends() -> None:
    """Before recovery is complete a partition stands where something was committed, or nowhere."""
    consumer = Chunks({EVENTS: records(10), CHANGELOG: records(3)}, sought=False)
    assert await chunks_of(consumer) == [(CHANGELOG, 3, 2)]
    await consumer.seek_to_committed()
    assert await chunks_of(consumer) == [(EVENTS, 10, 9), (CHANGELOG, 3, 2)]
    # The next assignment begins anew.
    consumer.app.consumer_generation_id += 1
    assert await chunks_of(consumer) == [(CHANGELOG, 3, 2)]


async def test_what_a_fetch_brings_that_was_under_way_when_partitions_were_sought_is_dropped() -> None:
    """It may be of before: then the partition would be read on from there."""
    consumer = Chunks({}, sought=False)
    waiting, brought = asyncio.Event(), asyncio.Event()

    async def slow_fetch(timeout: float) -> Any:
        waiting.set()
        await brought.wait()
        return {EVENTS: records(10, first=90)}, {EVENTS}

    consumer._wait_next_records = slow_fetch
    fetch = asyncio.ensure_future(chunks_of(consumer))
    await waiting.wait()
    seek = asyncio.ensure_future(consumer.seek_to_committed())
    while not consumer.checks:
        await asyncio.sleep(0)
    assert consumer._thread.sought == {}
    brought.set()
    assert await fetch == []
    await seek
    assert consumer._thread.sought == {EVENTS: 0}


async def test_topics_are_checked_after_each_fetch_of_events_and_before_these_are_handed_on() -> None:
    consumer = Chunks({EVENTS: records(10)})
    await chunks_of(consumer)
    await chunks_of(consumer)
    assert consumer.checks == 2
    consumer.changed = RuntimeError("made anew")
    with pytest.raises(RuntimeError, match="made anew"):
        await anext(consumer.getmany(1.0))

    for fetched in ({}, {CHANGELOG: records(3)}):
        consumer = Chunks(fetched)
        await chunks_of(consumer)
        assert consumer.checks == 0


async def test_an_offset_behind_the_end_of_the_topic_is_an_error_that_says_what_to_do() -> None:
    consumer = Chunks(OffsetOutOfRangeError({EVENTS: 17}))
    with pytest.raises(OffsetGone, match=r"entitlement-events\[0\]: everything before offset 17 .*seatmark rebuild"):
        await chunks_of(consumer)


async def test_an_offset_that_retention_has_passed_is_an_error_that_says_what_is_gone() -> None:
    consumer = Chunks(OffsetOutOfRangeError({EVENTS: 17}))
    consumer._thread.first[EVENTS] = 20
    with pytest.raises(OffsetGone, match=r"entitlement-events\[0\]: the records from offset 17 to 19 .*retention"):
        await chunks_of(consumer)


@pytest.mark.parametrize(
    "error", [OffsetOutOfRangeError({EVENTS: 17}), NoOffsetForPartitionError(EVENTS)], ids=["gone", "none"]
)
async def test_where_a_partition_stood_before_it_was_sought_is_no_error(error: Exception) -> None:
    assert await chunks_of(Chunks(error, sought=False)) == []


@pytest.mark.parametrize(
    ("state_ends", "committed", "first", "start", "commits"),
    [
        # The state is the truth, whatever was committed.
        (40, 30, 0, 40, {EVENTS: 40}),
        (40, None, 0, 40, {EVENTS: 40}),
        # No state of this topic: from its beginning. That is not committed, for nothing of it is applied.
        (None, None, 0, 0, {}),
        (None, None, 7, 7, {}),
        (None, 30, 7, 7, {}),
    ],
)
async def test_partitions_are_read_from_where_the_state_ends(
    state_ends: int | None, committed: int | None, first: int, start: int, commits: dict[TP, int]
) -> None:
    consumer = Chunks({}, sought=False)
    consumer._thread = Thread({EVENTS: committed, CHANGELOG: None}, {EVENTS: first, CHANGELOG: 0})
    consumer.resume = {} if state_ends is None else {EVENTS: state_ends}
    assert await consumer.seek_to_committed() == {EVENTS: start, CHANGELOG: None}
    assert consumer._thread.sought == {EVENTS: start}
    assert consumer._thread.commits == commits
    assert consumer.checks == 1


async def test_what_retention_has_taken_before_it_was_applied_is_told(caplog: pytest.LogCaptureFixture) -> None:
    consumer = Chunks({}, sought=False)
    consumer._thread = Thread({EVENTS: 40}, {EVENTS: 45})
    consumer.resume = {EVENTS: 40}
    await consumer.seek_to_committed()
    assert consumer._thread.sought == consumer._thread.commits == {EVENTS: 45}
    [record] = caplog.records
    assert record.levelname == "ERROR"
    assert "entitlement-events[0]: the records from offset 40 to 44 were deleted" in record.getMessage()


async def test_recovery_is_sent_to_the_first_record_that_there_is() -> None:
    consumer = Chunks({})
    consumer._thread.first[CHANGELOG] = 12
    await consumer.seek_wait({CHANGELOG: 11})
    assert consumer._thread.sought == {CHANGELOG: 12}
    await consumer.seek_wait({CHANGELOG: 15})
    assert consumer._thread.sought == {CHANGELOG: 15}


async def test_faust_does_not_guess_whether_a_stream_is_stuck() -> None:
    """It would take a changelog that nobody reads on after recovery for one, and a burst after a quiet time."""
    assert "self.verify_event_path(now, tp)" in inspect.getsource(BaseConsumer.verify_all_partitions_active)
    consumer = Chunks({})
    verified: list[TP] = []
    consumer._thread.verify_event_path = lambda now, tp: verified.append(tp)
    consumer.assignment = lambda: {EVENTS, CHANGELOG}
    consumer.sleep = asyncio.sleep
    await consumer.verify_all_partitions_active()
    assert verified == []
    # As it would without the override.
    Consumer.verify_event_path(consumer, 0.0, EVENTS)
    assert verified == [EVENTS]


async def test_a_rebalance_between_two_chunks_drops_the_rest() -> None:
    consumer = Chunks({EVENTS: records(MAX_CHUNK_RECORDS * 2)})
    given = []
    async for _, chunk in consumer.getmany(1.0):
        given.append(chunk.offset)
        consumer.app.consumer_generation_id += 1
    assert given == [MAX_CHUNK_RECORDS - 1]


def test_faust_seeks_between_making_partitions_active_and_emptying_the_queues() -> None:
    """Why no event may be fetched before all of that is over."""
    steps = ("consumer.resume_partitions(", "consumer.perform_seek()", "flow_control.resume()", "app.on_rebalance_end()")
    source = inspect.getsource(Recovery.on_recovery_completed)
    assert sorted(steps, key=source.index) == list(steps)
    assert "self.clear()" in inspect.getsource(FlowControlEvent.resume)


class AskedThread:
    """The consumer's thread: notes for what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    async def getmany(self, active_partitions: set[TP], timeout: float) -> dict[TP, list[Any]]:
        self.asked.append(active_partitions)
        return {}


async def test_no_event_is_fetched_before_a_rebalance_is_over() -> None:
    consumer = Chunks({})
    consumer._thread = thread = AskedThread()
    # Faust goes on changing the set while a fetch waits.
    active = {CHANGELOG}
    consumer.app.rebalancing = True
    await consumer._getmany(active, 1.0)
    active.add(EVENTS)
    await consumer._getmany(active, 1.0)
    assert thread.asked == [{CHANGELOG}, {CHANGELOG}]
    consumer.app.rebalancing = False
    await consumer._getmany(active, 1.0)
    active.clear()
    assert thread.asked[2:] == [{CHANGELOG, EVENTS}]


async def test_without_a_changelog_to_read_nothing_is_fetched_before_a_rebalance_is_over() -> None:
    """Asked for no partitions, aiokafka gives what it has of all."""
    consumer = Chunks({})
    consumer._thread = thread = AskedThread()
    consumer.app.rebalancing = True
    assert await consumer._getmany({EVENTS}, 1.0) == {}
    assert thread.asked == []


def test_the_last_acknowledged_chunk_says_what_to_commit() -> None:
    consumer = Chunks({})
    assert consumer._new_offset(EVENTS) is None
    consumer._acked[EVENTS] = [499, 1203]
    consumer._acked_index[EVENTS] = {499, 1203}
    assert consumer._new_offset(EVENTS) == 1204
    assert consumer._acked[EVENTS] == []
    assert consumer._acked_index[EVENTS] == set()


async def test_what_recovery_fetches_after_waiting_for_a_rebalance_is_not_dropped() -> None:
    """Dropped, it would never come again: the changelog was sought before, and recovery waits for it."""

    class Rebalanced(Chunks):
        async def _wait_next_records(self, timeout: float) -> Any:
            self.app.consumer_generation_id += 1
            return await super()._wait_next_records(timeout)

    consumer = Rebalanced({CHANGELOG: records(3)})
    assert [len(chunk.value) async for _, chunk in consumer.getmany(1.0)] == [3]
