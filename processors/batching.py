"""Faust, by the chunk: agents and recovery get all records of one fetch from a partition as one event.

Stock Faust spends about 300 microseconds of futures, sleeps and acknowledgements on each message; here that is spent once per
chunk. This is the only file that touches names which Faust and aiokafka call private, which is why their versions
are pinned; tests/processors/test_batching.py fails when one of them moves or changes its meaning.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

import aiokafka
import faust
from faust.stores.base import Store
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Transport
from faust.types import TP, ConsumerMessage

# The fetch waits this long for data to come in. The driver has 1500 ms, which would be the latency of an alert.
FETCH_WAIT_MS = 20
# How long a fetch waits during recovery, and so how much later than the end of it the first events come.
_RECOVERY_WAIT_SECONDS = 0.05
# A chunk's outputs and state are in memory together; this bounds them.
MAX_CHUNK_RECORDS = 5_000


class ChunkSchema(faust.Schema):  # type: ignore[misc]
    """Hands keys and values through as they are: a chunk's value is the list of its records."""

    def loads_key(self, app: Any, message: Any, *, loads: Any = None, serializer: Any = None) -> Any:
        return message.key

    def loads_value(self, app: Any, message: Any, *, loads: Any = None, serializer: Any = None) -> Any:
        return message.value


class _ChunkConsumerThread(AIOKafkaConsumerThread):  # type: ignore[misc]
    def _create_worker_consumer(self, transport: Any) -> aiokafka.AIOKafkaConsumer:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        return consumer


class ChunkConsumer(Consumer):  # type: ignore[misc]
    """Faust's consumer, that reads every topic of this app in chunks.

    A chunk is one message whose value is the list of aiokafka's records, and whose offset is the last record's. It is
    acknowledged as a whole. Chunks of a partition are handed over and acknowledged in order (agents have concurrency
    1), so the last acknowledged one says what to commit.
    """

    def _new_consumer_thread(self) -> AIOKafkaConsumerThread:
        return _ChunkConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def _getmany(self, active_partitions: set[TP], timeout: float) -> Any:
        """Fetch; of source partitions nothing before a rebalance is over, and with it recovery.

        Faust makes source partitions active when recovery ends, then seeks their offsets, then empties the agents' queues. What
        a fetch brings between the last two is gone, and the next chunk's cursor passes over it.
        """
        if not self.app.rebalancing:
            return await super()._getmany(set(active_partitions), timeout)
        changelogs = {tp for tp in active_partitions if self._is_changelog_tp(tp)}
        if not changelogs:
            # Not to be asked for: no partitions means all of them.
            await self.sleep(_RECOVERY_WAIT_SECONDS)
            return {}
        return await super()._getmany(changelogs, min(timeout, _RECOVERY_WAIT_SECONDS))

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, ConsumerMessage]]:
        """Yield (partition, chunk) for what one fetch brought."""
        records, active_partitions = await self._wait_next_records(timeout)
        generation = self.app.consumer_generation_id
        if records is None or self.should_stop:
            return
        if not self.flow_active:
            # A rebalance began while we waited. What was fetched is dropped, so it must be fetched again.
            await self.perform_seek()
            return
        for tp, fetched in records.items():
            # What recovery reads is never cut: it may end at the first chunk that reaches the end of the changelog, and
            # a batch of state must be taken whole. (The embedded broker gives as the end the first offset of the last
            # batch + 1, so this is what makes it read that batch to its real end.)
            size = len(fetched) if self._is_changelog_tp(tp) else MAX_CHUNK_RECORDS
            for start in range(0, len(fetched), size):
                if not self.flow_active or self.app.consumer_generation_id != generation:
                    return
                if tp in active_partitions or tp in self._buffered_partitions:
                    yield tp, self._to_chunk(tp, fetched[start : start + size])

    def _to_chunk(self, tp: TP, records: list[Any]) -> ConsumerMessage:
        last = records[-1]
        return ConsumerMessage(
            tp.topic,
            tp.partition,
            last.offset,
            last.timestamp / 1000,
            last.timestamp_type,
            [],
            None,
            records,
            None,
            0,
            sum(record.serialized_value_size for record in records),
            tp,
            generation_id=self.app.consumer_generation_id,
        )

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Go on where the recovered state ends, whatever was committed: the state is the truth about what is applied."""
        offsets = dict(await super().seek_to_committed())
        resume = {tp: offset for tp in offsets if (offset := self.app.resume_offset(tp)) is not None}
        if resume:
            await self._thread.seek_wait(resume)
            # A crash between state and commit leaves the committed offset behind; with nothing new to read it would stay so.
            await self._commit(resume)
        return {**offsets, **resume}

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Nothing: between two chunks there are no messages to wait for."""

    def _new_offset(self, tp: TP) -> int | None:
        acknowledged = self._acked[tp]
        if not acknowledged:
            return None
        last: int = max(acknowledged)
        acknowledged.clear()
        self._acked_index[tp].clear()
        return last + 1


class ChunkTransport(Transport):  # type: ignore[misc]
    """Faust's aiokafka transport with the chunk consumer."""

    Consumer = ChunkConsumer


class ChunkApp(faust.App):  # type: ignore[misc]
    """A Faust app whose agents and tables read chunks.

    resume_offset: for a source partition, the offset after the last one that the recovered state includes; None where
        there is no state, so that the committed offset counts.
    """

    def __init__(self, *args: Any, resume_offset: Callable[[TP], int | None], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.resume_offset = resume_offset

    def _create_directories(self) -> None:
        """None: nothing is kept on disk."""

    def _new_transport(self) -> ChunkTransport:
        return ChunkTransport(self.conf.broker_consumer, self)


class ChangelogStore(Store):  # type: ignore[misc]
    """A Faust table's storage that only passes changelog records on: the state itself is not a dictionary.

    The table gives us assignment and recovery. Writing goes to the changelog directly (processors/agents.py).
    """

    def __post_init__(self) -> None:
        self.data: dict[Any, Any] = {}

    def apply_changelog_batch(self, batch: Iterable[Any], to_key: Any, to_value: Any) -> None:
        """Pass the chunks of a recovery on, in order."""
        for event in batch:
            self.table.on_changelog(event.message.tp.partition, event.message.value)

    def persisted_offset(self, tp: TP) -> int:
        """Before the first record: at every assignment the changelog is read from its beginning.

        Another worker may have written to it since we last had the partition.
        """
        return -1

    async def on_rebalance(self, assigned: Any, revoked: Any, newly_assigned: Any, generation_id: int = 0) -> None:
        """Drop all state: what is still assigned is recovered anew."""
        self.table.on_dropped()

    async def on_recovery_completed(self, active_tps: Any, standby_tps: Any) -> None:
        """Say that the changelogs were read to their ends."""
        self.table.on_restored()

    def reset_state(self) -> None:
        """Nothing is kept on disk."""

    async def backup_partition(self, tp: Any, flush: bool = True, purge: bool = False, keep: int = 1) -> None:
        """Nothing is kept on disk."""

    def restore_backup(self, tp: Any, latest: bool = True, backup_id: int = 0) -> None:
        """Nothing is kept on disk."""


class ChangelogTable(faust.Table):  # type: ignore[misc]
    """A Faust table that hands its changelog, chunk by chunk, to three functions.

    on_dropped(): forget all state. on_changelog(partition, records): read these. on_restored(): that was all of it.
    """

    def __init__(
        self,
        app: ChunkApp,
        *,
        on_dropped: Callable[[], None],
        on_changelog: Callable[[int, list[Any]], None],
        on_restored: Callable[[], None],
        **kwargs: Any,
    ) -> None:
        super().__init__(app, **kwargs)
        self.on_dropped = on_dropped
        self.on_changelog = on_changelog
        self.on_restored = on_restored

    def _new_store(self) -> ChangelogStore:
        return ChangelogStore("memory://", self.app, self, table_name=self.name, loop=self.loop)

    def info(self) -> dict[str, Any]:
        """What Faust needs to clone the table."""
        return {
            **super().info(),
            "on_dropped": self.on_dropped,
            "on_changelog": self.on_changelog,
            "on_restored": self.on_restored,
        }
