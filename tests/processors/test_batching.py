"""What processors/batching.py takes for granted of Faust and aiokafka: a version that moves one of these fails here."""

import inspect
from types import SimpleNamespace
from typing import Any

import aiokafka
import faust
import pytest
from faust.stores.base import Store
from faust.tables.recovery import Recovery
from faust.transport.consumer import Consumer as BaseConsumer
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Transport
from faust.types import TP
from mode.utils.queues import FlowControlEvent

from processors.batching import FETCH_WAIT_MS, MAX_CHUNK_RECORDS, ChangelogStore, ChunkApp, ChunkConsumer, ChunkTransport

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
        (BaseConsumer, "perform_seek", ["self"]),
        (BaseConsumer, "_is_changelog_tp", ["self", "tp"]),
        (Consumer, "_new_consumer_thread", ["self"]),
        (Consumer, "seek_to_committed", ["self"]),
        (Consumer, "_getmany", ["self", "active_partitions", "timeout"]),
        (Consumer, "_commit", ["self", "offsets"]),
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
    app = ChunkApp("x", broker="kafka://127.0.0.1:1", resume_offset=lambda tp: None)
    assert isinstance(app.transport, ChunkTransport)


def test_the_fetch_waits_as_long_as_we_say() -> None:
    assert "_fetch_max_wait_ms" in inspect.getsource(aiokafka.AIOKafkaConsumer)
    assert "fetch_max_wait_ms=1500" in inspect.getsource(AIOKafkaConsumerThread._create_worker_consumer)
    assert FETCH_WAIT_MS < 1500


def test_recovery_asks_the_store_at_each_assignment_and_reads_on_from_what_it_says() -> None:
    assert "table.persisted_offset(tp)" in inspect.getsource(Recovery._add)
    store = ChangelogStore.__new__(ChangelogStore)
    assert store.persisted_offset(CHANGELOG) == -1


class Chunks(ChunkConsumer):
    """A chunk consumer without a broker: what was fetched is given, what is asked of it is noted."""

    def __init__(self, fetched: dict[TP, list[Any]], *, flow_active: bool = True) -> None:
        tables = SimpleNamespace(changelog_topics={CHANGELOG.topic})
        self.app = SimpleNamespace(consumer_generation_id=1, tables=tables, rebalancing=False)
        self.fetched = fetched
        self.flow_active = flow_active
        self.sought = 0
        self._buffered_partitions: set[TP] = set()
        self._acked: dict[TP, list[int]] = {EVENTS: []}
        self._acked_index: dict[TP, set[int]] = {EVENTS: set()}

    should_stop = False

    async def sleep(self, seconds: float) -> None:
        """Not in a test."""

    async def _wait_next_records(self, timeout: float) -> Any:
        return self.fetched, set(self.fetched)

    async def perform_seek(self) -> None:
        self.sought += 1


def records(count: int) -> list[Any]:
    return [SimpleNamespace(offset=n, timestamp=n, timestamp_type=1, serialized_value_size=3) for n in range(count)]


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


async def test_what_was_fetched_while_the_flow_stopped_is_fetched_again() -> None:
    consumer = Chunks({EVENTS: records(10)}, flow_active=False)
    assert await chunks_of(consumer) == []
    assert consumer.sought == 1


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


class Thread:
    """The consumer's thread: notes for what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    async def getmany(self, active_partitions: set[TP], timeout: float) -> dict[TP, list[Any]]:
        self.asked.append(active_partitions)
        return {}


async def test_no_event_is_fetched_before_a_rebalance_is_over() -> None:
    consumer = Chunks({})
    consumer._thread = thread = Thread()
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
    consumer._thread = thread = Thread()
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
