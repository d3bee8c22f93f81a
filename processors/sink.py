"""The sink: what the worker sends becomes rows in ClickHouse.

Records of entitlement-activity, entitlement-days and overdraft-alerts are gathered for a moment, inserted, and only
then are their offsets committed. So a crash at any point means that some records are inserted again, never that one is
missing; and rows that are inserted again change nothing, for two reasons:

1. Every insert of raw rows has a deduplication token made of the source offsets in it. An insert whose acknowledgement
   was lost is tried again with the same token, and ClickHouse drops it. Views on the table get what they may have
   missed.
2. After a restart the same records may come in other batches, with other tokens. Their rows replace those of the first
   time: each table's sort key holds a row's identity.

Between a batch's raw rows and all else that is in it, the table `progress` gets the last source offset of each partition:
up to there a reader of the raw log finds every row (views/migrations/0006_restatement.sql says why it must ask).
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from typing import Any, NoReturn

import msgspec
import pyarrow as pa
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ProgrammingError

from processors import metrics
from processors.brokers import Brokers, ended_in_time
from processors.health import Check
from processors.progress import Observation
from schemas.activity import (
    ACTIVITY_SCHEMA,
    HEADER_FIRST_OFFSET,
    HEADER_INCARNATION,
    HEADER_LAST_OFFSET,
    HEADER_PARTITION,
    HEADER_TOPIC,
    decode_activity,
)
from schemas.alerts import Alert, decode_alert
from schemas.days import DayMark, DayRecord, DayRow, Settled, decode_day
from schemas.errors import Explained, loggable
from schemas.events import parse_time

logger = logging.getLogger(__name__)

ACTIVITY, DAYS, ALERTS = "entitlement-activity", "entitlement-days", "overdraft-alerts"

# What one poll hands over; the batch is looked at again after each.
_POLL_RECORDS = 1000
# Bounds the memory of a batch whose rows are large.
_FLUSH_BYTES = 64 * 1024 * 1024
_IDLE_POLL_SECONDS = 10.0
_METADATA_SECONDS = 0.05
_FIRST_RETRY_SECONDS = 0.1
_LAST_RETRY_SECONDS = 10.0
_ASK_SECONDS = 10.0
# From when on it is ClickHouse that is waited for, and from when on it is in trouble.
_WAIT_SECONDS, _SLOW_SECONDS = 2.0, 30.0

# Errors of ClickHouse that another attempt cannot mend: the table is not there or not as this release writes it, or we
# may not insert. In words: THERE_IS_NO_COLUMN, NOT_FOUND_COLUMN_IN_BLOCK, NO_SUCH_COLUMN_IN_TABLE, UNKNOWN_IDENTIFIER,
# TYPE_MISMATCH, UNKNOWN_TABLE, CANNOT_CONVERT_TYPE, UNKNOWN_DATABASE, UNKNOWN_SETTING, ACCESS_DENIED.
_NOT_MENDED_BY_WAITING = {8, 10, 16, 47, 53, 60, 70, 81, 115, 497}

INSERT_SETTINGS: dict[str, Any] = {
    # Acknowledged means stored, not queued: the offset is committed on the strength of it.
    "async_insert": 0,
    # A repeat that a table drops must still reach the views that missed it the first time.
    "deduplicate_blocks_in_dependent_materialized_views": 1,
    # The first import of an old log has rows of many months, each a partition.
    "max_partitions_per_insert_block": 0,
}

_MS = pa.timestamp("ms", tz="UTC")
_UNIT_MS = pa.decimal128(38, 0)


class SinkStopped(Explained):
    """The sink cannot go on without losing something; nothing was committed from there on. The message says where."""


@dataclass(frozen=True)
class Insert:
    """Rows for one table. token: makes ClickHouse drop a repeat of this very insert; None: their content does."""

    table: str
    rows: pa.Table
    token: str | None = None


@dataclass(frozen=True)
class Progress:
    """Up to where the raw rows of one source partition are stored: the last offset, in the epoch of an incarnation."""

    topic: str
    partition: int
    epoch: int
    offset: int
    incarnation: str


@dataclass
class Batch:
    """Records that are stored together, decoded.

    next_offsets: per topic and partition, what to commit once they are stored.
    rows, size: how many rows, and bytes of records, are waiting.
    oldest: when the first of them came to its topic, in ms since 1970.
    """

    next_offsets: dict[TopicPartition, int] = field(default_factory=dict)
    rows: int = 0
    size: int = 0
    oldest: int | None = None
    _activity: list[tuple[str, pa.Table]] = field(default_factory=list)
    _progress: dict[tuple[str, int], Progress] = field(default_factory=dict)
    _days: dict[tuple[str, str, str], DayRow] = field(default_factory=dict)
    _marks: list[DayMark] = field(default_factory=list)
    _settled: list[Settled] = field(default_factory=list)
    _alerts: list[Alert] = field(default_factory=list)

    def add(self, record: ConsumerRecord, topic: str) -> None:
        """Take one record. topic: its topic's name in the catalogue, without a prefix.

        Raises SinkStopped: it is not what this topic carries. Only the worker writes there, so something is very wrong.
        """
        try:
            if topic == ACTIVITY:
                self._add_activity(record)
            elif topic == DAYS:
                self._add_day(decode_day(record.value))
            else:
                self._alerts.append(decode_alert(record.value))
                self.rows += 1
        except (msgspec.MsgspecError, pa.ArrowException, LookupError, TypeError, ValueError) as error:
            raise SinkStopped(
                f"{record.topic}[{record.partition}] offset {record.offset} cannot be read ({loggable(error)}): it was not "
                "written by this release of the worker. The sink stopped before it and commits nothing after it"
            ) from error
        self.next_offsets[TopicPartition(record.topic, record.partition)] = record.offset + 1
        self.size += len(record.value)
        self.oldest = record.timestamp if self.oldest is None else min(self.oldest, record.timestamp)

    def inserts(self) -> list[Insert]:
        """The inserts that store the batch, in this order: progress speaks of raw rows that are stored already."""
        made = []
        if self._activity:
            # One insert for all: ClickHouse makes a part of each, and parts cost more than rows.
            rows = pa.concat_tables([table for _, table in self._activity])
            made.append(Insert("activity", rows, _token([covered for covered, _ in self._activity])))
            made.append(Insert("progress", progress_table(self._progress.values())))
        if self._days:
            made.append(Insert("days", days_table(self._days.values())))
        if self._marks:
            made.append(Insert("marks", marks_table(self._marks)))
        if self._settled:
            made.append(Insert("settled", settled_table(self._settled)))
        if self._alerts:
            made.append(Insert("alerts", alerts_table(self._alerts)))
        return made

    def _add_activity(self, record: ConsumerRecord) -> None:
        headers = {name: value.decode("ascii") for name, value in record.headers}
        table = decode_activity(record.value)
        if not table.schema.equals(ACTIVITY_SCHEMA):
            raise ValueError(f"expected the columns {ACTIVITY_SCHEMA.names}, got {table.schema.names}")
        reached = Progress(
            topic=headers[HEADER_TOPIC],
            partition=int(headers[HEADER_PARTITION]),
            # A chunk is all of one epoch.
            epoch=table.column("epoch")[0].as_py(),
            offset=int(headers[HEADER_LAST_OFFSET]),
            incarnation=headers[HEADER_INCARNATION],
        )
        covered = f"{reached.incarnation}:{reached.topic}:{reached.partition}"
        self._activity.append((f"{covered}:{headers[HEADER_FIRST_OFFSET]}-{reached.offset}", table))
        # A worker that starts again after a crash sends earlier offsets once more.
        known = self._progress.get((reached.topic, reached.partition))
        if known is None or (reached.epoch, reached.offset) > (known.epoch, known.offset):
            self._progress[reached.topic, reached.partition] = reached
        self.rows += table.num_rows

    def _add_day(self, record: DayRecord) -> None:
        self.rows += 1
        if isinstance(record, DayMark):
            self._marks.append(record)
            return
        if isinstance(record, Settled):
            self._settled.append(record)
            return
        # A busy element sends its day again and again; the last of them is the one that counts.
        key = (record.entitlement, record.element, record.day)
        known = self._days.get(key)
        if known is None or record.position >= known.position:
            self._days[key] = record


def _token(covered: Sequence[str]) -> str:
    """The deduplication token of an insert of raw rows: `incarnation:topic:partition:first-last`, of what it holds.

    An insert of several records names them all, so that it is never taken for another one; a digest keeps that short,
    as it travels in the address of an HTTP request.
    """
    if len(covered) == 1:
        return covered[0]
    return hashlib.sha256("\n".join(covered).encode()).hexdigest()


def days_table(rows: Iterable[DayRow]) -> pa.Table:
    """Day rows as the columns of the table `days`."""
    return _table(
        rows,
        [
            ("entitlement", pa.string(), lambda row: row.entitlement),
            ("element", pa.string(), lambda row: row.element),
            ("day", pa.date32(), lambda row: date.fromisoformat(row.day)),
            ("timezone", pa.string(), lambda row: row.timezone),
            ("day_start", _MS, lambda row: row.day_start),
            ("day_end", _MS, lambda row: row.day_end),
            ("customer", pa.string(), lambda row: row.customer),
            ("product", pa.string(), lambda row: row.product),
            ("name", pa.string(), lambda row: row.name),
            ("kind", pa.string(), lambda row: row.kind),
            ("opening", pa.int64(), lambda row: row.opening),
            ("closing", pa.int64(), lambda row: row.closing),
            ("min", pa.int64(), lambda row: row.min),
            ("max", pa.int64(), lambda row: row.max),
            ("limit", pa.int64(), lambda row: row.limit),
            ("hard_limit", pa.int64(), lambda row: row.hard_limit),
            ("terms_known", pa.bool_(), lambda row: row.terms_known),
            ("overdraft_ms", pa.int64(), lambda row: row.overdraft_ms),
            ("unit_ms", _UNIT_MS, lambda row: row.unit_ms),
            ("peak_overage", pa.int64(), lambda row: row.peak_overage),
            ("activations", pa.int64(), lambda row: row.activations),
            ("deactivations", pa.int64(), lambda row: row.deactivations),
            ("refreshes", pa.int64(), lambda row: row.refreshes),
            ("denials", pa.int64(), lambda row: row.denials),
            ("units_used", pa.int64(), lambda row: row.units_used),
            ("as_of", _MS, lambda row: row.as_of),
            ("closing_limit", pa.int64(), lambda row: row.closing_limit),
            ("closing_hard_limit", pa.int64(), lambda row: row.closing_hard_limit),
            ("closing_terms_known", pa.bool_(), lambda row: row.closing_terms_known),
            ("state", pa.string(), lambda row: row.state),
            ("entered_at", _MS, lambda row: row.entered_at),
            ("peak", pa.int64(), lambda row: row.peak),
            ("position", pa.uint64(), lambda row: row.position),
        ],
    )


def marks_table(rows: Iterable[DayMark]) -> pa.Table:
    """Marks as the columns of the table `marks`."""
    return _table(
        rows,
        [
            ("entitlement", pa.string(), lambda row: row.entitlement),
            ("element", pa.string(), lambda row: row.element),
            ("first_day", pa.date32(), lambda row: date.fromisoformat(row.first_day)),
            ("last_day", pa.date32(), lambda row: date.fromisoformat(row.last_day)),
            ("position", pa.uint64(), lambda row: row.position),
            ("since", pa.uint64(), lambda row: row.since),
        ],
    )


def settled_table(rows: Iterable[Settled]) -> pa.Table:
    """Settled elements as the columns of the table `settled`."""
    return _table(
        rows,
        [
            ("entitlement", pa.string(), lambda row: row.entitlement),
            ("element", pa.string(), lambda row: row.element),
            ("position", pa.uint64(), lambda row: row.position),
        ],
    )


def progress_table(rows: Iterable[Progress]) -> pa.Table:
    """Progress as the columns of the table `progress`; ClickHouse adds when it was written."""
    return _table(
        rows,
        [
            ("topic", pa.string(), lambda row: row.topic),
            ("partition", pa.int32(), lambda row: row.partition),
            ("epoch", pa.uint32(), lambda row: row.epoch),
            ("offset", pa.int64(), lambda row: row.offset),
            ("incarnation", pa.string(), lambda row: row.incarnation),
        ],
    )


def alerts_table(rows: Iterable[Alert]) -> pa.Table:
    """Alerts as the columns of the table `alerts`."""
    return _table(
        rows,
        [
            ("entitlement", pa.string(), lambda row: row.data.entitlement),
            ("element", pa.string(), lambda row: row.data.element),
            ("at", _MS, lambda row: parse_time(row.data.at)),
            ("id", pa.string(), lambda row: row.id),
            ("source", pa.string(), lambda row: row.source),
            ("type", pa.string(), lambda row: row.type),
            ("time", _MS, lambda row: parse_time(row.time)),
            ("customer", pa.string(), lambda row: row.data.customer),
            ("product", pa.string(), lambda row: row.data.product),
            ("from_state", pa.string(), lambda row: row.data.from_state),
            ("to_state", pa.string(), lambda row: row.data.to_state),
            ("level", pa.int64(), lambda row: row.data.level),
            ("limit", pa.int64(), lambda row: row.data.limit),
            ("hard_limit", pa.int64(), lambda row: row.data.hard_limit),
            ("overage", pa.int64(), lambda row: row.data.overage),
            ("cause_source", pa.string(), lambda row: row.data.cause.source),
            ("cause_id", pa.string(), lambda row: row.data.cause.id),
            ("cause_type", pa.string(), lambda row: row.data.cause.type),
            ("entered_at", _MS, lambda row: parse_time(row.data.entered_at) if row.data.entered_at else None),
            ("duration_seconds", pa.decimal128(18, 3), lambda row: _milliseconds_exact(row.data.duration_seconds)),
            ("peak", pa.int64(), lambda row: row.data.peak),
            ("peak_overage", pa.int64(), lambda row: row.data.peak_overage),
        ],
    )


def _table(rows: Iterable[Any], columns: Sequence[tuple[str, pa.DataType, Callable[[Any], Any]]]) -> pa.Table:
    rows = list(rows)
    return pa.table({name: pa.array([value(row) for row in rows], type) for name, type, value in columns})


def _milliseconds_exact(seconds: float | None) -> Decimal | None:
    return None if seconds is None else Decimal(f"{seconds:.3f}")


class Sink:
    """Stores what the worker sends.

    topic_prefix: what the deployment puts before the catalogue's topic names.
    client_factory: opens a ClickHouse client. It is called in the sink's own thread, again after each failed insert.
    group: the consumer group whose offsets say what is stored.
    flush_seconds, flush_rows: a batch is stored when its first record has waited this long, or when it has this many
        rows. Below some 10,000 rows or one second per insert, ClickHouse spends most of its time on parts, not rows.
    alone: no other sink runs. It takes all partitions at once then; a group first waits, on some brokers for seconds,
        for others to join.
    """

    def __init__(
        self,
        *,
        brokers: Brokers,
        client_factory: Callable[[], Client],
        topic_prefix: str = "",
        group: str = "seatmark-sink",
        flush_seconds: float = 1.0,
        flush_rows: int = 100_000,
        alone: bool = False,
    ) -> None:
        self._brokers = brokers
        self._topics = {topic_prefix + topic: topic for topic in (ACTIVITY, DAYS, ALERTS)}
        self._group = topic_prefix + group
        self._flush_seconds = flush_seconds
        self._flush_rows = flush_rows
        self._alone = alone
        self._writer = _Writer(client_factory)
        self._stored: dict[tuple[str, int], int] = {}
        self._partitions: frozenset[int] = frozenset()
        # Of the partitions that it has now: the offset after the last record stored.
        self._reached: dict[TopicPartition, int] = {}
        # How many it has; None while the group has not said.
        self._assigned: int | None = None
        self._more_stored = asyncio.Condition()

    @property
    def stored(self) -> Mapping[tuple[str, int], int]:
        """Per topic and partition: everything before this offset is in ClickHouse. Without those not read yet."""
        return dict(self._stored)

    @property
    def partitions(self) -> frozenset[int]:
        """The source partitions whose raw rows this sink stores; none before it has begun."""
        return self._partitions

    def observe(self) -> Observation:
        """How this sink stands; for a `processors.progress.Monitor`."""
        clickhouse, waits = self._writer.observe()
        if self._assigned is None:
            checks = {"assigned": Check(False, "waits until the sinks' group hands out partitions"), "clickhouse": clickhouse}
            return Observation(checks, phase=("the assignment", 0), waits=waits)
        why = f"{self._assigned} partitions" if self._assigned else "no partitions: other sinks have all of them"
        checks = {"assigned": Check(True, why), "clickhouse": clickhouse}
        if len(self._reached) < self._assigned:
            return Observation(checks, phase=("what is stored already", len(self._reached)), waits=waits)
        return Observation(checks, next_offsets=dict(self._reached), waits=waits)

    async def wait_until_stored(self, ends: Mapping[tuple[str, int], int]) -> None:
        """Wait until everything before these end offsets, per topic and partition, is stored. `run` must be running."""
        async with self._more_stored:
            await self._more_stored.wait_for(
                lambda: all(end == 0 or self._stored.get(place, 0) >= end for place, end in ends.items())
            )

    async def run(self, stop: asyncio.Event) -> None:
        """Store records until `stop` is set; what is gathered by then is still stored, if ClickHouse answers.

        Raises SinkStopped: a record cannot be read, or ClickHouse refuses rows for a reason that waiting does not mend.
        Raises aiokafka.errors.KafkaError: the brokers cannot be reached at the start, or refuse.
        """
        consumer = AIOKafkaConsumer(
            **self._brokers.client,
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            # While ClickHouse is away nothing is polled for as long as it takes; that is no reason to take the
            # partitions from this sink and give them to one that has the same trouble.
            max_poll_interval_ms=2**31 - 1,
            # Some brokers look for new records only when this time is over.
            fetch_max_wait_ms=min(500, max(10, int(self._flush_seconds * 1000))),
        )
        asking = asyncio.ensure_future(self._writer.keep_asking())
        try:
            await consumer.start()
            if self._alone:
                await self._assign_all_partitions(consumer, stop)
                self._on_assignment(len(consumer.assignment()))
            else:
                consumer.subscribe(list(self._topics), listener=_Listener(self._on_assignment))
            while not stop.is_set():
                if not await _done_unless_stopped(self._note_what_was_stored_before(consumer), stop):
                    # Nothing was read since: there is nothing to wait for.
                    return
                self._partitions = frozenset(
                    place.partition for place in consumer.assignment() if self._topics[place.topic] == ACTIVITY
                )
                batch, unreadable = await self._gather(consumer, stop)
                if batch.next_offsets and await self._store(batch, stop):
                    committing = asyncio.ensure_future(self._commit(consumer, batch))
                    if not await _done_unless_stopped(asyncio.shield(committing), stop):
                        await ended_in_time(
                            committing, "the commit of offsets (what they stand for is stored, and will be again)"
                        )
                if unreadable is not None:
                    raise unreadable
        finally:
            asking.cancel()
            await ended_in_time(consumer.stop(), "the sink's leaving of its group")
            await self._writer.close()

    def _on_assignment(self, assigned: int | None) -> None:
        self._reached = {}
        self._assigned = assigned

    async def _assign_all_partitions(self, consumer: AIOKafkaConsumer, stop: asyncio.Event) -> None:
        missing = set(self._topics) - await consumer.topics()
        if missing:
            raise SinkStopped(f"there is no topic {', '.join(sorted(missing))}: create Seatmark's topics first")
        # What the consumer read at its start may be older than the topics. Those that something is assigned of it looks up
        # again until the broker says who leads them.
        consumer.assign([TopicPartition(topic, 0) for topic in self._topics])
        partitions = {topic: consumer.partitions_for_topic(topic) for topic in self._topics}
        while not all(partitions.values()):
            if await _set_within(stop, _METADATA_SECONDS):
                return
            partitions = {topic: consumer.partitions_for_topic(topic) for topic in self._topics}
        consumer.assign([TopicPartition(topic, partition) for topic, found in partitions.items() for partition in found])

    async def _gather(self, consumer: AIOKafkaConsumer, stop: asyncio.Event) -> tuple[Batch, SinkStopped | None]:
        """Records until there are enough rows, the first has waited long enough, or the sink has to stop.

        An unreadable record ends the batch: what came before it in its partition is in it and can be stored.
        """
        batch = Batch()
        flush_at: float | None = None
        while batch.rows < self._flush_rows and batch.size < _FLUSH_BYTES:
            waiting = _IDLE_POLL_SECONDS if flush_at is None else flush_at - time.monotonic()
            if waiting <= 0:
                break
            try:
                for record in await self._poll(consumer, waiting, stop):
                    batch.add(record, self._topics[record.topic])
            except SinkStopped as unreadable:
                return batch, unreadable
            if stop.is_set() or not batch.next_offsets:
                break
            if flush_at is None:
                flush_at = time.monotonic() + self._flush_seconds
        return batch, None

    @staticmethod
    async def _poll(consumer: AIOKafkaConsumer, seconds: float, stop: asyncio.Event) -> Iterator[ConsumerRecord]:
        """The next records, each partition's in order; none if none come in that time or the sink has to stop."""
        milliseconds = int(seconds * 1000) + 1
        polled = asyncio.ensure_future(consumer.getmany(timeout_ms=milliseconds, max_records=_POLL_RECORDS))
        stopped = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait({polled, stopped}, return_when=asyncio.FIRST_COMPLETED)
            by_partition = polled.result() if polled.done() else {}
        finally:
            polled.cancel()
            stopped.cancel()
        return (record for records in by_partition.values() for record in records)

    async def _store(self, batch: Batch, stop: asyncio.Event) -> bool:
        """Insert a batch, however long ClickHouse is away. False if the sink has to stop before that is done."""
        try:
            inserts = batch.inserts()
        except (pa.ArrowException, ValueError, OverflowError) as error:
            raise SinkStopped(f"{_places(batch)} cannot be stored ({loggable(error)})") from error
        for insert in inserts:
            delay = _FIRST_RETRY_SECONDS
            while True:
                try:
                    await self._writer.write(insert)
                    break
                except Exception as error:
                    if isinstance(error, ProgrammingError) or getattr(error, "code", None) in _NOT_MENDED_BY_WAITING:
                        raise SinkStopped(
                            f"{_places(batch)} cannot be stored in the table {insert.table}: {loggable(error)}"
                        ) from error
                    # Everything else, whatever a client or the client factory calls it: ClickHouse is away or busy.
                    metrics.SINK_INSERT_FAILURES.inc()
                    logger.warning(
                        "an insert failed, next attempt in %.1f s: %s", delay, loggable(error), extra={"table": insert.table}
                    )
                if await _set_within(stop, delay):
                    return False
                delay = min(delay * 2, _LAST_RETRY_SECONDS)
        metrics.SINK_BATCHES.inc()
        if batch.oldest is not None:
            metrics.SINK_FRESHNESS_SECONDS.observe(max(0.0, time.time() - batch.oldest / 1000))
        return True

    async def _commit(self, consumer: AIOKafkaConsumer, batch: Batch) -> None:
        """Commit what is stored. A partition that another sink has taken over meanwhile is read again there."""
        assigned = consumer.assignment()
        ours = {place: offset for place, offset in batch.next_offsets.items() if place in assigned}
        try:
            if ours:
                await consumer.commit(ours)
                self._reached.update((place, offset) for place, offset in ours.items() if place in self._reached)
        except (CommitFailedError, IllegalStateError) as error:
            logger.warning("offsets are not committed, the records will be stored again: %s", loggable(error))
        await self._note_stored(batch.next_offsets)

    async def _note_what_was_stored_before(self, consumer: AIOKafkaConsumer) -> None:
        """Of partitions that are new to this sink: the committed offset is what earlier ones have stored."""
        for place in consumer.assignment():
            if place not in self._reached:
                committed = await consumer.committed(place)
                if committed is None:
                    # Nothing is stored of it, nor of what the topic has dropped already.
                    committed = (await consumer.beginning_offsets([place]))[place]
                self._reached[place] = committed
                await self._note_stored({place: committed})

    async def _note_stored(self, offsets: Mapping[TopicPartition, int]) -> None:
        async with self._more_stored:
            for place, offset in offsets.items():
                key = (place.topic, place.partition)
                self._stored[key] = max(offset, self._stored.get(key, 0))
            self._more_stored.notify_all()


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Tells how many partitions a member of a group has; None while they are being handed out."""

    def __init__(self, on_assignment: Callable[[int | None], None]) -> None:
        self._on_assignment = on_assignment

    def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        self._on_assignment(None)

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        self._on_assignment(len(assigned))


class _Writer:
    """One ClickHouse client in a thread of its own, for its calls block. Knows whether ClickHouse answers."""

    def __init__(self, client_factory: Callable[[], Client]) -> None:
        self._client_factory = client_factory
        self._client: Client | None = None
        self._trouble: str | None = "it was not asked yet"
        self._calling_since: float | None = None
        self._inserted_at: float | None = None
        self._one_at_a_time = asyncio.Lock()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="seatmark-sink")

    async def write(self, insert: Insert) -> None:
        """Insert; done once ClickHouse has acknowledged. Raises what the client raises: it is then opened anew."""
        await self._call(self._write, insert)
        self._inserted_at = time.monotonic()

    async def keep_asking(self) -> NoReturn:
        """Ask ClickHouse now and then whether it is there, for ever: there may be nothing to insert."""
        while True:
            try:
                await self._call(self._ask)
            except Exception as error:
                logger.warning("ClickHouse cannot be used, the next question is in %.0f s: %s", _ASK_SECONDS, loggable(error))
            await asyncio.sleep(_ASK_SECONDS)

    def observe(self) -> tuple[Check, bool]:
        """Whether ClickHouse answers, and whether it is waited for."""
        now = time.monotonic()
        if self._trouble is not None:
            return Check(False, f"cannot be used: {self._trouble}"), True
        calling = 0.0 if self._calling_since is None else now - self._calling_since
        if calling > _SLOW_SECONDS:
            return Check(False, f"has not answered for {calling:.0f} s"), True
        last = "no insert yet" if self._inserted_at is None else f"the last insert was {now - self._inserted_at:.0f} s ago"
        return Check(True, f"answers; {last}"), calling > _WAIT_SECONDS

    async def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        async with self._one_at_a_time:
            self._calling_since = time.monotonic()
            try:
                await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)
                self._trouble = None
            except Exception as error:
                # Of the others only the kind: what they quote need not be shown to everybody.
                told = isinstance(error, Explained)
                self._trouble = str(error) if told else f"{type(error).__name__}, the log says more"
                raise
            finally:
                self._calling_since = None

    def _ask(self) -> None:
        try:
            if self._client is None:
                self._client = self._client_factory()
            self._client.command("SELECT 1")
        except Exception:
            self._drop_client()
            raise

    async def close(self) -> None:
        """Close the client and end the thread."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._drop_client)
        self._thread.shutdown()

    def _write(self, insert: Insert) -> None:
        started = time.perf_counter()
        try:
            if self._client is None:
                self._client = self._client_factory()
            settings = dict(INSERT_SETTINGS)
            if insert.token is not None:
                settings["insert_deduplication_token"] = insert.token
            self._client.insert_arrow(insert.table, insert.rows, settings=settings)
        except Exception:
            self._drop_client()
            raise
        metrics.SINK_INSERT_SECONDS.labels(insert.table).observe(time.perf_counter() - started)
        metrics.SINK_ROWS.labels(insert.table).inc(insert.rows.num_rows)

    def _drop_client(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()


def _places(batch: Batch) -> str:
    return ", ".join(f"{place.topic}[{place.partition}] up to offset {end - 1}" for place, end in batch.next_offsets.items())


async def _done_unless_stopped(work: Awaitable[None], stop: asyncio.Event) -> bool:
    """Whether it was done before `stop` was set; it is cancelled else. Raises what it raises."""
    working = asyncio.ensure_future(work)
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return True
        return False
    finally:
        working.cancel()
        stopped.cancel()


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True
