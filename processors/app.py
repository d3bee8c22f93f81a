"""The Faust app of the worker: topics, tables and agents put together; nothing is decided here."""

import asyncio
import gc
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

from aiokafka import AIOKafkaProducer, TopicPartition

from processors import metrics
from processors.agents import ChunkProcessor, process_chunks
from processors.batching import ChangelogTable, ChunkApp, ChunkSchema, credentials_of
from processors.brokers import Brokers
from processors.changelog import Changelog, FencedChangelog, PlainChangelog, batch_producer
from processors.domain.days import Calendar
from processors.expiry import KafkaEventLog, LeaseExpiry
from processors.health import Check
from processors.incarnation import TopicWatch
from processors.leases import LeasePolicy
from processors.progress import Observation
from processors.refusals import RefusalLimit
from processors.state import PartitionStates
from processors.topics import Topics, worker_group

logger = logging.getLogger(__name__)

# Alerts and days go to topics with the brokers' usual limit of 1 MiB a batch.
_OUTPUT_BATCH_BYTES = 768 * 1024
# A chunk takes less than a second where brokers answer. Supervisors wait for 30 s before they kill.
_END_SECONDS = 20


@dataclass(frozen=True)
class WorkerConfig:
    """What the worker needs to know. fencing: the brokers have transactions. Times in ms."""

    brokers: Brokers
    topic_prefix: str
    partitions: int
    fencing: bool
    timezone: str
    late_after_ms: int
    lease_policy: LeasePolicy
    lease_grace_ms: int
    session_timeout_ms: int
    rebalance_timeout_ms: int
    dead_letter_limit: RefusalLimit
    truncate_ips: bool = False


class Worker:
    """One worker: a Faust app, and the producers it writes with."""

    def __init__(self, config: WorkerConfig, watch: TopicWatch) -> None:
        """watch: has begun to watch the source topic and the changelog; to be closed after the app has stopped."""
        self._config = config
        self.watch = watch
        topics = Topics(config.topic_prefix)
        incarnation = watch.incarnation(topics.events)
        states = PartitionStates(Calendar(config.timezone), config.late_after_ms, incarnation, config.partitions)
        self.changelog = changelog = make_changelog(config.brokers, topics.changelog, fencing=config.fencing)
        self.app = app = ChunkApp(
            worker_group(config.topic_prefix),
            broker=[f"kafka://{broker}" for broker in config.brokers.addresses.split(",")],
            broker_credentials=credentials_of(config.brokers.security),
            resume_offset=lambda tp, committed: states.resume_offset(tp.partition, committed),
            check_topics=watch.check,
            # What a producer's transaction took back was never sent.
            read_committed=config.fencing,
            topic_partitions=config.partitions,
            # Topics are made by `seatmark topics`, with the settings that they need; never on the side.
            topic_allow_declare=False,
            topic_disable_leader=True,
            consumer_max_fetch_size=4 * 1024 * 1024,
            broker_rebalance_timeout=config.rebalance_timeout_ms / 1000,
            broker_session_timeout=config.session_timeout_ms / 1000,
            broker_heartbeat_interval=config.session_timeout_ms / 1000 / 5,
            broker_request_timeout=max(90.0, config.session_timeout_ms / 1000),
            broker_commit_interval=1.0,
            # In-flight chunks end before a rebalance goes on, or they would overlap with recovery.
            stream_wait_empty=True,
            # One chunk waits while one is worked on: memory stays bounded.
            stream_buffer_maxsize=2,
            # A failed chunk must end the worker: Faust would acknowledge it and go on.
            agent_supervisor="mode.CrashingSupervisor",
            table_standby_replicas=0,
            web_enabled=False,
            processing_guarantee="at_least_once",
        )
        self.table = app.tables.add(
            ChangelogTable(
                app,
                name="ledger",
                partitions=config.partitions,
                changelog_topic=app.topic(topics.changelog, schema=ChunkSchema(), partitions=config.partitions),
                # In chunks, so this many chunks.
                recovery_buffer_size=4,
                on_dropped=states.drop,
                take_over=changelog.take_over,
                on_changelog=states.restore,
                on_restored=states.restored,
            )
        )
        events = app.topic(topics.events, schema=ChunkSchema(), partitions=config.partitions)
        self.states = states

        async def entitlements(stream: object) -> None:
            async with output_producer(config.brokers) as outputs:
                processor = ChunkProcessor(
                    outputs, changelog, topics, incarnation, config.dead_letter_limit, truncate_ips=config.truncate_ips
                )
                await process_chunks(stream, states, processor)

        app.agent(events, name="entitlements", concurrency=1)(entitlements)

        async def leases() -> None:
            async with KafkaEventLog(config.brokers, topics.events, read_committed=config.fencing) as log:
                await LeaseExpiry(states, log, config.lease_policy, config.lease_grace_ms).run()

        # It begins after the first recovery and ends with the app; an error in it crashes the app.
        app.task(leases)

    @property
    def partitions(self) -> list[int]:
        """The source partitions that it has; none before the group has handed them out. `run_worker` must be running."""
        if not self.states.assigned:
            return []
        topic = Topics(self._config.topic_prefix).events
        return sorted(place.partition for place in self.app.consumer.assignment() if place.topic == topic)

    def observe(self) -> Observation:
        """How this worker stands; for a `processors.progress.Monitor`. `run_worker` must be running."""
        states, topic = self.states, Topics(self._config.topic_prefix).events
        if not states.assigned:
            waiting = Check(False, "waits until the workers' group hands out partitions")
            return Observation({"assigned": waiting}, phase=("the first assignment", 0))
        partitions = self.partitions
        assigned = Check(True, f"partitions {partitions}" if partitions else "no partitions: other workers have all of them")
        if self.app.rebalancing or not states.recovered:
            metrics.RECOVERY_REMAINING.set(self.app.tables.recovery.active_remaining_total())
            why = f"reads the state, {states.records_read} records so far"
            checks = {"assigned": assigned, "recovered": Check(False, why)}
            return Observation(checks, phase=("recovery", states.records_read))
        written = {partition: state.written for partition, state in states.all().items()}
        return Observation(
            {"assigned": assigned, "recovered": Check(True, f"{states.records_read} records of state were read")},
            next_offsets={TopicPartition(topic, partition): written.get(partition, -1) + 1 for partition in partitions},
        )


def make_changelog(brokers: Brokers, topic: str, *, fencing: bool) -> Changelog:
    """The changelog that a worker writes."""
    return FencedChangelog(brokers, topic) if fencing else PlainChangelog(brokers, topic)


def output_producer(brokers: Brokers) -> AIOKafkaProducer:
    """The producer of what others read, to be started."""
    return batch_producer(brokers, _OUTPUT_BATCH_BYTES)


async def run_worker(
    config: WorkerConfig, stop: asyncio.Event, on_made: Callable[[Worker], None] = lambda worker: None
) -> None:
    """Run one worker until `stop` is set.

    on_made(worker): called once, before it starts.
    Raises whatever ended it before that, such as `processors.agents.ChunkFailed`.
    """
    worker = await create_worker(config)
    on_made(worker)
    app = worker.app
    try:
        await app.start()
        # Ends when `stop` is set, when a service of the app crashed, and when a topic is not what it was.
        await app.wait_first(stop.wait(), worker.watch.until_changed())
        if app.crash_reason is not None:
            raise app.crash_reason
    finally:
        await _end(worker)


async def _end(worker: Worker) -> None:
    """Let what is under way come to its end, if it does so soon: Faust would wait for brokers that are away without end."""

    async def close() -> None:
        await worker.app.stop()
        await worker.changelog.close()
        await worker.watch.close()

    closing = asyncio.ensure_future(close())
    # Not a timeout: what it cancels may go on all the same.
    done, _ = await asyncio.wait({closing}, timeout=_END_SECONDS)
    if not done:
        logger.error(
            "what was under way did not end within %d s of the worker's being stopped, as when brokers are away: it ends now. "
            "Nothing is lost by that: its successor begins at the last state that was written",
            _END_SECONDS,
        )
        os._exit(1)
    closing.result()


def relax_garbage_collection() -> None:
    """Collect cycles seldom: a chunk makes tens of thousands of objects that all live to its end, and no cycles."""
    gc.set_threshold(100_000, 20, 100)


async def create_worker(config: WorkerConfig) -> Worker:
    """A worker for the source topic and the changelog as they are now.

    Raises aiokafka.errors.KafkaError when they cannot be looked up.
    """
    relax_garbage_collection()
    topics = Topics(config.topic_prefix)
    watch = TopicWatch(config.brokers, [topics.events, topics.changelog])
    try:
        await watch.begin()
    except BaseException:
        await watch.close()
        raise
    return Worker(config, watch)
