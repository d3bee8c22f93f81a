"""Faust, by the chunk: agents and recovery get all records of one fetch from a partition as one event.

Stock Faust spends about 300 microseconds of futures, sleeps and acknowledgements on each message; here that is spent once per
chunk. This is the only file that touches names which Faust and aiokafka call private, which is why their versions
are pinned; tests/processors/test_batching.py fails when one of them moves or changes its meaning.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

import aiokafka
import faust
from aiokafka.errors import NoOffsetForPartitionError, OffsetOutOfRangeError
from faust.auth import Credentials, OAuthCredentials, SASLCredentials, SSLCredentials
from faust.stores.base import Store
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Transport
from faust.types import TP, ConsumerMessage

from processors.incarnation import HOW_TO_REBUILD
from schemas.errors import Explained

logger = logging.getLogger(__name__)

# The fetch waits this long for data to come in. The driver has 1500 ms, which would be the latency of an alert.
FETCH_WAIT_MS = 20
# A fetch that brings nothing ends after this. Recovery waits for one that is under way.
MAX_POLL_SECONDS = 0.1
# How long a fetch waits during recovery, and so how much later than the end of it the first events come.
_RECOVERY_WAIT_SECONDS = 0.05
# A chunk's outputs and state are in memory together; this bounds them.
MAX_CHUNK_RECORDS = 5_000


def credentials_of(security: Mapping[str, Any]) -> Credentials | None:
    """aiokafka's arguments for TLS and sign-in as Faust wants them, which makes of them what they were."""
    context = security.get("ssl_context")
    if "sasl_oauth_token_provider" in security:
        return OAuthCredentials(oauth_cb=security["sasl_oauth_token_provider"], ssl_context=context)
    if "sasl_mechanism" in security:
        return SASLCredentials(
            username=security["sasl_plain_username"],
            password=security["sasl_plain_password"],
            ssl_context=context,
            mechanism=security["sasl_mechanism"],
        )
    return SSLCredentials(context) if context else None


class OffsetGone(Explained):
    """The source topic has nothing at the offset that comes next."""


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
        if self.app.read_committed:
            consumer._isolation_level = "read_committed"
        return consumer


class ChunkConsumer(Consumer):  # type: ignore[misc]
    """Faust's consumer, that reads every topic of this app in chunks.

    A chunk is one message whose value is the list of aiokafka's records, and whose offset is the last record's. It is
    acknowledged as a whole. Chunks of a partition are handed over and acknowledged in order (agents have concurrency
    1), so the last acknowledged one says what to commit.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # A fetch that is under way may bring what lies before or after the offset that is being sought.
        self._fetching = asyncio.Lock()
        self._sought_in_generation: int | None = None

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
        """Yield (partition, chunk) for what one fetch brought.

        Raises OffsetGone, and what the app's `check_topics` raises.
        """
        async with self._fetching:
            # A fetch first waits until a rebalance is over, so the generation is asked for after it: what it brings of a
            # changelog would else be dropped as of the one before, and recovery wait for it for ever.
            records, active_partitions = await self._fetch(min(timeout, MAX_POLL_SECONDS))
            generation = self.app.consumer_generation_id
            # What is dropped here or below is fetched again: recovery comes first, and at its end all partitions are sought.
            records = {tp: fetched for tp, fetched in records.items() if self._is_sought(tp)}
        if self.should_stop:
            return
        if not all(map(self._is_changelog_tp, records)):
            # After the fetch: so what it brought is of the topics that the app was made for.
            await self.app.check_topics()
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

    async def _fetch(self, timeout: float) -> tuple[dict[TP, list[Any]], set[TP]]:
        try:
            records, active_partitions = await self._wait_next_records(timeout)
            return records or {}, active_partitions
        except NoOffsetForPartitionError:
            return {}, set()  # Recovery has still to say where that partition is read from.
        except OffsetOutOfRangeError as error:
            [(tp, offset)] = error.args[0].items()
            if self._is_sought(tp):
                raise await self._offset_gone(tp, offset) from error
            return {}, set()

    def _is_sought(self, tp: TP) -> bool:
        """Whether a partition stands where our state says; before that, it stands where something was committed."""
        return bool(self._is_changelog_tp(tp)) or self._sought_in_generation == self.app.consumer_generation_id

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
        """Go on where the recovered state ends, whatever was committed: the state is the truth about what is applied.

        Recovery calls it once it is complete; nobody else does, for `getmany` is ours. Raises what the app's `check_topics` and
        `resume_offset` raise.
        """
        generation = self.app.consumer_generation_id
        await self.app.check_topics()
        async with self._fetching:
            committed = dict(await super().seek_to_committed())
            sources = [tp for tp in committed if not self._is_changelog_tp(tp)]
            first = await self.earliest_offsets(*sources)
            resume = {tp: offset for tp in sources if (offset := self.app.resume_offset(tp, committed[tp])) is not None}
            start = {tp: max(first[tp], resume.get(tp, 0)) for tp in sources}
            if start:
                await self._thread.seek_wait(start)
            self._sought_in_generation = generation
        for tp, offset in resume.items():
            if offset < start[tp]:
                logger.error(
                    "%s[%d]: the records from offset %d to %d were deleted before they were applied (retention.ms of the "
                    "topic): the worker goes on without them",
                    *(tp.topic, tp.partition, offset, start[tp] - 1),
                    extra={"topic": tp.topic, "partition": tp.partition, "offset": offset},
                )
        if resume:
            # A crash between state and commit leaves the committed offset behind; with nothing new to read it would stay so.
            await self._commit({tp: start[tp] for tp in resume})
        return {**committed, **start}

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        """Seek to these offsets, or to the first that there is: recovery asks for the one before it."""
        first = await self.earliest_offsets(*partitions)
        await super().seek_wait({tp: max(offset, first[tp]) for tp, offset in partitions.items()})

    async def _offset_gone(self, tp: TP, offset: int) -> OffsetGone:
        first = (await self.earliest_offsets(tp))[tp]
        if offset < first:
            return OffsetGone(
                f"{tp.topic}[{tp.partition}]: the records from offset {offset} to {first - 1} were deleted before they were "
                "read (retention.ms of the topic). Start the worker again: it goes on without them"
            )
        return OffsetGone(
            f"{tp.topic}[{tp.partition}]: everything before offset {offset} is applied, and the topic ends before that: the "
            "brokers have lost records that they had acknowledged, and give their offsets to others. Delete the topic, and "
            f"create it with `seatmark topics`. {HOW_TO_REBUILD}; what was sent since the loss must be sent again"
        )

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Nothing: Faust's guesses whether a stream is stuck are for streams that get each message of each topic by itself.

        It takes a changelog that nobody reads on after recovery for a stuck stream, and a burst after a quiet time too.
        """

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

    resume_offset(partition, committed): for a source partition, the offset after the last one that the recovered state
        includes; None where that says nothing of this topic, which is then read from its first record.
    check_topics(): raises if a topic is not what it was when the app was made.
    read_committed: nothing is read of transactions that were aborted or are not yet committed.
    """

    def __init__(
        self,
        *args: Any,
        resume_offset: Callable[[TP, int | None], int | None],
        check_topics: Callable[[], Awaitable[None]],
        read_committed: bool,
        **kwargs: Any,
    ) -> None:
        # Each partition is read from where its state says. An offset that is not there is no reason to read elsewhere.
        super().__init__(*args, consumer_auto_offset_reset="none", **kwargs)
        self.resume_offset = resume_offset
        self.check_topics = check_topics
        self.read_committed = read_committed

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
        """Drop all state: what is still assigned is recovered anew, and by nobody else."""
        self.table.on_dropped()
        changelog = self.table.changelog_topic.get_topic_name()
        await self.table.take_over(sorted(tp.partition for tp in assigned if tp.topic == changelog))

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
    """A Faust table that hands its changelog, chunk by chunk, to these functions, in this order.

    on_dropped(): forget all state. take_over(partitions): let nobody else write the changelog of these.
    on_changelog(partition, records): read these. on_restored(): that was all of it.
    """

    def __init__(
        self,
        app: ChunkApp,
        *,
        on_dropped: Callable[[], None],
        take_over: Callable[[Sequence[int]], Awaitable[None]],
        on_changelog: Callable[[int, list[Any]], None],
        on_restored: Callable[[], None],
        **kwargs: Any,
    ) -> None:
        super().__init__(app, **kwargs)
        self.on_dropped = on_dropped
        self.take_over = take_over
        self.on_changelog = on_changelog
        self.on_restored = on_restored

    def _new_store(self) -> ChangelogStore:
        return ChangelogStore("memory://", self.app, self, table_name=self.name, loop=self.loop)

    def info(self) -> dict[str, Any]:
        """What Faust needs to clone the table."""
        return {
            **super().info(),
            "on_dropped": self.on_dropped,
            "take_over": self.take_over,
            "on_changelog": self.on_changelog,
            "on_restored": self.on_restored,
        }
