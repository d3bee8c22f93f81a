"""Makes anew from the raw log in ClickHouse: the worker's state, and on request day rows, levels, alerts and effects.

Day rows, levels and alerts are made in tables of their own, compared with those there are, and exchanged with them at the end.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import UnknownTopicOrPartitionError, for_code

from processors.changelog import FencedChangelog
from processors.codec import StateRecord, encode_cursor
from processors.domain.days import Calendar
from processors.incarnation import topic_incarnation
from processors.outputs import alert_of
from processors.partitions import partition_of
from processors.rebuild import Rebuilt, cursor_after_rebuild, rebuilt_elements
from processors.restate import ChangedRow, restated_rows
from processors.sink import alerts_table, days_table, marks_table, settled_table
from processors.topics import Topics, worker_group
from schemas.alerts import Alert
from schemas.days import DayMark, DayRow, Settled
from schemas.errors import Explained
from seatmark.brokers import brokers_of, opened_brokers
from seatmark.produce import group_members, sink_lag
from seatmark.settings import Settings
from seatmark.topics import ensure_topics
from views.levels import begin_generation
from views.raw_log import RawLog, open_raw_log
from views.rebuilt import Comparison, RebuiltTables
from views.store import connect

_IN_FLIGHT = 20_000
_BATCH_BYTES = 768 * 1024
# A record with a very long id, or with many ids of one moment, is larger than a batch.
_REQUEST_BYTES = 64 * 1024 * 1024
_FLUSH_ROWS = 50_000
_DELETION_SECONDS = 30.0


class RebuildRefused(Explained):
    """The state cannot be made anew now; the message says what to do first."""


OnProgress = Callable[[int, int], None]


async def prepare_state(settings: Settings, on_progress: OnProgress) -> int:
    """Before an embedded stack starts: the worker's state to the empty changelog topic; the number of elements.

    What the broker took with it when it died is made good: day rows whose events are stored, and marks. All elements are
    settled then, for their state is the exact one.
    Raises aiokafka.errors.KafkaError, clickhouse_connect's DatabaseError.
    """
    client = connect(settings.clickhouse_dsn.get_secret_value())
    try:
        log = open_raw_log(client, Topics(settings.topic_prefix).events)
        epoch = log.highest_epoch()
        if not epoch:
            return 0
        stored = _Pending(log)
        count = 0
        async with _changelog(settings) as send:
            for element in _rebuilt(log, settings, epoch, on_progress, everything=False):
                await send(partition_of(element.key[0], settings.partitions), element.records())
                stored.days += element.lost_days
                mark = element.lost_mark(settings.timezone)
                stored.marks += [mark] if mark is not None else []
                stored.settled.append(element.settled(epoch))
                stored.flush_if_large()
                count += 1
            for partition in range(settings.partitions):
                await send(partition, [encode_cursor(cursor_after_rebuild(epoch, settings.timezone))])
        stored.flush()
        return count
    finally:
        client.close()


async def rebuild(settings: Settings, on_progress: OnProgress, agreed: Callable[[Comparison], bool]) -> bool:
    """Make everything anew; whether that was agreed to.

    agreed: asked with what differs before anything is exchanged; False leaves everything as it is.
    On Kafka the worker must be stopped, and the sink must have stored all that the worker sent.
    Raises RebuildRefused: worker or sink are not there yet.
    Raises aiokafka.errors.KafkaError, clickhouse_connect's DatabaseError.
    """
    dsn = settings.clickhouse_dsn.get_secret_value()
    embedded = dsn.startswith("chdb:")
    if not embedded:
        await opened_brokers(settings)
        await refuse_while_running(settings)
    client = connect(dsn)
    try:
        log = open_raw_log(client, Topics(settings.topic_prefix).events)
        tables = RebuiltTables(client, settings.clickhouse_cluster)
        # Of an empty raw log too: state of an epoch is rebuilt state, with which a worker begins the topic again.
        epoch = max(1, log.highest_epoch())
        tables.make()
        try:
            _fill(log, settings, epoch, on_progress)
            if not agreed(tables.compare()):
                return False
            tables.exchange(settings.timezone)
        finally:
            tables.drop()
        _rewrite_effects(log, settings, epoch, on_progress)
        # What a sink has added up meanwhile, of effects from before, does not count.
        begin_generation(client)
        if not embedded:
            # The embedded stack makes the state anew at each start.
            await _rebuild_changelog(log, settings, epoch, on_progress)
        return True
    finally:
        client.close()


def _fill(log: RawLog, settings: Settings, epoch: int, on_progress: OnProgress) -> None:
    pending = _Pending(log, suffix="_rebuilt")
    for element in _rebuilt(log, settings, epoch, on_progress, everything=True):
        pending.days += element.days
        pending.alerts += [alert_of(transition) for transition in element.transitions]
        pending.flush_if_large()
    pending.flush()


def _rewrite_effects(log: RawLog, settings: Settings, epoch: int, on_progress: OnProgress) -> None:
    pending = _Pending(log)
    for element in _rebuilt(log, settings, epoch, on_progress, everything=True):
        for row in element.changed:
            row.basis = element.newest
        pending.changed += element.changed
        pending.settled.append(element.settled(epoch))
        pending.flush_if_large()
    pending.flush()


async def _rebuild_changelog(log: RawLog, settings: Settings, epoch: int, on_progress: OnProgress) -> None:
    topics = Topics(settings.topic_prefix)
    if settings.fencing == "on":
        await _fence_workers(settings, topics.changelog)
    await _make_changelog_anew(settings, topics.changelog)
    incarnation = await topic_incarnation(brokers_of(settings), topics.events)
    # Of a topic that is still the same, what the raw log holds is applied; of another one, nothing is.
    offsets = {partition: offset for partition, of, offset in log.progress() if of == incarnation}
    async with _changelog(settings) as send:
        for element in _rebuilt(log, settings, epoch, on_progress, everything=True):
            await send(partition_of(element.key[0], settings.partitions), element.records())
        for partition in range(settings.partitions):
            offset = offsets.get(partition)
            cursor = (
                cursor_after_rebuild(epoch, settings.timezone)
                if offset is None
                else cursor_after_rebuild(epoch, settings.timezone, incarnation, offset)
            )
            await send(partition, [encode_cursor(cursor)])


def _rebuilt(log: RawLog, settings: Settings, epoch: int, on_progress: OnProgress, *, everything: bool) -> Iterator[Rebuilt]:
    return rebuilt_elements(
        log,
        calendar=Calendar(settings.timezone),
        late_after_ms=settings.late_after,
        epoch=epoch,
        everything=everything,
        on_progress=on_progress,
    )


@dataclass
class _Pending:
    """Rows that wait to be stored. suffix: of the tables that days and alerts go to."""

    log: RawLog
    suffix: str = ""
    days: list[DayRow] = field(default_factory=list)
    marks: list[DayMark] = field(default_factory=list)
    settled: list[Settled] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)
    changed: list[ChangedRow] = field(default_factory=list)

    def flush_if_large(self) -> None:
        """Store them if they are many."""
        if max(len(self.days), len(self.settled), len(self.alerts), len(self.changed)) >= _FLUSH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Store them."""
        self.log.insert("days" + self.suffix, days_table(self.days))
        self.log.insert("marks", marks_table(self.marks))
        self.log.insert("settled", settled_table(self.settled))
        self.log.insert("alerts" + self.suffix, alerts_table(self.alerts))
        self.log.insert("activity", restated_rows(self.changed))
        for rows in (self.days, self.marks, self.settled, self.alerts, self.changed):
            rows.clear()


@asynccontextmanager
async def _changelog(settings: Settings) -> AsyncIterator[Callable[[int, Iterable[StateRecord]], Awaitable[None]]]:
    """A function that writes records to a partition of the changelog; all are written when the context is left."""
    topic = Topics(settings.topic_prefix).changelog
    producer = AIOKafkaProducer(
        **brokers_of(settings).client,
        acks="all",
        compression_type="snappy",
        max_batch_size=_BATCH_BYTES,
        max_request_size=_REQUEST_BYTES,
    )
    sent: list[asyncio.Future[object]] = []

    async def send(partition: int, records: Iterable[StateRecord]) -> None:
        for key, value in records:
            sent.append(await producer.send(topic, key=key, value=value, partition=partition))
        if len(sent) > _IN_FLIGHT:
            await asyncio.gather(*sent)
            sent.clear()

    await producer.start()
    try:
        yield send
        await asyncio.gather(*sent)
    finally:
        await producer.stop()


async def refuse_while_running(settings: Settings) -> None:
    """Raises RebuildRefused: a worker runs, or the sink has not stored all that there is."""
    group = worker_group(settings.topic_prefix)
    if await group_members(brokers_of(settings), group):
        raise RebuildRefused(f"a worker is running (group {group}): stop all workers, and run this again")
    behind = await sink_lag(brokers_of(settings), settings.topic_prefix, settings.partitions)
    if behind:
        raise RebuildRefused(
            f"the sink has still {behind:,} records to store: let it run until it has caught up, and run this again"
        )


async def _fence_workers(settings: Settings, changelog: str) -> None:
    """A worker that has left the group because it is frozen must not write what it has in hand when it wakes up."""
    owner = FencedChangelog(brokers_of(settings), changelog)
    try:
        await owner.take_over(range(settings.partitions))
    finally:
        await owner.close()


async def _make_changelog_anew(settings: Settings, name: str) -> None:
    """An empty changelog: what it held of elements and holds that are no more must not come back."""
    admin = AIOKafkaAdminClient(**brokers_of(settings).client)
    await admin.start()
    try:
        response = await admin.delete_topics([name])
        for _, code in response.topic_error_codes:
            if code and for_code(code) is not UnknownTopicOrPartitionError:
                raise for_code(code)(f"could not delete the topic {name}")
        deadline = time.monotonic() + _DELETION_SECONDS
        while name in await admin.list_topics():
            if time.monotonic() > deadline:
                raise RebuildRefused(f"the brokers do not delete the topic {name}: delete it, and run this again")
            await asyncio.sleep(0.2)
    finally:
        await admin.close()
    await ensure_topics(
        brokers_of(settings), prefix=settings.topic_prefix, partitions=settings.partitions, replication=settings.replication
    )
