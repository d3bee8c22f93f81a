"""What happens to a chunk: decode, fold, outputs, state, acknowledgement. No arithmetic here.

The order is the reason that nothing is lost and nothing counts twice. First everything that the chunk puts out is sent and
acknowledged by the broker. Then the state that includes it is written to the changelog, as one record batch, which is there
whole or not at all, with the cursor in it. Only then is the chunk acknowledged. A crash before the state was written
folds the chunk again from the state before it and puts the same out again, with the same ids; a crash after it finds the
cursor, and skips what it covers.
"""

import asyncio
import time
from collections.abc import AsyncIterable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaProducer

from processors import metrics
from processors.changelog import Changelog
from processors.codec import encode_changes
from processors.domain.ledger import position_of
from processors.outputs import SourceRecord, activity_row, alert_of, dead_letter_headers
from processors.refusals import NO_LIMIT, RefusalLimit, TooManyRefused
from processors.state import PartitionState, PartitionStates
from processors.topics import Topics
from schemas.activity import (
    HEADER_FIRST_OFFSET,
    HEADER_INCARNATION,
    HEADER_LAST_OFFSET,
    HEADER_PARTITION,
    HEADER_ROWS,
    HEADER_TOPIC,
    ActivityRow,
    encode_activity,
)
from schemas.alerts import encode_alert
from schemas.days import DayRecord, encode_day
from schemas.errors import Explained, loggable
from schemas.events import Refused, decode
from schemas.personal import with_truncated_ip

Record = tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]

_LOG_APPEND_TIME = 1

# An activity record is at most this and one event's copies (schemas.events.MAX_EVENT_COPIES_BYTES): within its topic's limit.
_MAX_ROW_BYTES = 16 * 1024 * 1024


class ChunkFailed(Explained):
    """A chunk could not be processed; the worker stops rather than carry on without it."""


@dataclass
class ChunkOutputs:
    """What a chunk, or the first part of one, puts out, as (key, value, headers) by topic. taken: how many of its records."""

    taken: int = 0
    activity: list[Record] = field(default_factory=list)
    days: list[Record] = field(default_factory=list)
    alerts: list[Record] = field(default_factory=list)
    dead_letters: list[Record] = field(default_factory=list)


def fold_chunk(
    state: PartitionState,
    records: Sequence[SourceRecord],
    now_ms: int,
    limit: RefusalLimit = NO_LIMIT,
    *,
    truncate_ips: bool = False,
) -> ChunkOutputs:
    """Fold the records above the state's cursor into it; what that puts out. The cursor moves to the last record taken.

    Not all are taken where they would put out more than fits in memory and in a record: the caller goes on with the rest.
    now_ms: the wall clock, against which events in the future are refused where the topic has producers' timestamps.
    truncate_ips: of addresses only the network is put out; dead letters stay as they came.
    Raises TooManyRefused: a record crossed the limit.
    Raises whatever goes wrong with a record that is not its own fault, with the record's offset added.
    """
    outputs = ChunkOutputs()
    rows: list[ActivityRow] = []
    row_bytes = applied_events = 0
    ledger, cursor = state.ledger, state.cursor
    epoch, incarnation, applied = cursor.epoch, cursor.incarnation, cursor.offset
    placed = state.placed
    refusals, window_ms = cursor.refusals, limit.window_ms
    if not window_ms:
        # Or what passed while there was no limit would count once there is one again.
        refusals.forget()
    for record in records:
        if row_bytes > _MAX_ROW_BYTES:
            break
        outputs.taken += 1
        offset = record.offset
        if offset <= applied:
            continue
        value = record.value or b""
        appended_at = record.timestamp if record.timestamp_type == _LOG_APPEND_TIME else now_ms
        if window_ms:
            # A producer's clock that is far ahead would open a span that never ends.
            refusals.count(min(record.timestamp, appended_at), window_ms)
        try:
            event = decode(value, key=record.key, appended_at=appended_at)
            if event.entitlement not in placed:
                state.place(event.entitlement)
            if truncate_ips:
                value, event = with_truncated_ip(value, event)
        except Refused as refused:
            metrics.DEAD_LETTERS.labels(refused.reason).inc()
            outputs.dead_letters.append((record.key, record.value, dead_letter_headers(record, refused)))
            if window_ms:
                refusals.refuse(refused.reason, offset)
                if limit.used(refusals) > 1:
                    raise limit.explain(refusals, record.topic, record.partition, offset, applied) from None
            continue
        try:
            outcomes = ledger.apply(event, position_of(epoch, offset))
        except Exception as error:
            error.add_note(f"while applying {record.topic}[{record.partition}] offset {offset}")
            raise
        if outcomes:
            applied_events += 1
        else:
            metrics.DUPLICATES.inc()
        for outcome in outcomes:
            rows.append(activity_row(event, outcome, incarnation, epoch, record, appended_at, value))
            row_bytes += len(value)
            if outcome.late:
                metrics.LATE.inc()
            if outcome.transition is not None:
                metrics.ALERTS.labels(outcome.transition.type).inc()
                alert = encode_alert(alert_of(outcome.transition))
                outputs.alerts.append((event.entitlement.encode(), alert, []))
    first, last = records[0], records[outputs.taken - 1]
    if rows:
        headers = {
            HEADER_INCARNATION: incarnation,
            HEADER_TOPIC: first.topic,
            HEADER_PARTITION: str(first.partition),
            HEADER_FIRST_OFFSET: str(max(first.offset, applied + 1)),
            HEADER_LAST_OFFSET: str(last.offset),
            HEADER_ROWS: str(len(rows)),
        }
        outputs.activity.append((None, encode_activity(rows), [(k, v.encode()) for k, v in headers.items()]))
    state.advance(max(last.offset, applied))
    metrics.APPLIED.inc(applied_events)
    return outputs


class ChunkProcessor:
    """Processes chunks. outputs: sends what others read. incarnation: of the source topic. truncate_ips: see `fold_chunk`."""

    def __init__(
        self,
        outputs: AIOKafkaProducer,
        changelog: Changelog,
        topics: Topics,
        incarnation: str,
        limit: RefusalLimit = NO_LIMIT,
        *,
        truncate_ips: bool = False,
    ) -> None:
        self._outputs = outputs
        self._changelog = changelog
        self._topics = topics
        self._incarnation = incarnation
        self._limit = limit
        self._truncate_ips = truncate_ips

    async def process(self, state: PartitionState, records: Sequence[SourceRecord]) -> None:
        """Process one chunk of a partition. When it returns, outputs and state are with the broker.

        Raises whatever goes wrong; the chunk then does not count as processed, and the state in memory is not to be used
        any more.
        """
        state.begin(self._incarnation)
        done = 0
        while done < len(records):
            done += await self._process_part(state, records[done:] if done else records)

    async def _process_part(self, state: PartitionState, records: Sequence[SourceRecord]) -> int:
        """Process as many records as `fold_chunk` takes; how many."""
        started = time.monotonic()
        partition = records[0].partition
        out = fold_chunk(state, records, int(time.time() * 1000), self._limit, truncate_ips=self._truncate_ips)
        changes = state.ledger.take_changes()
        days: list[DayRecord] = [*changes.days, *changes.marks, *changes.settled]
        out.days = [(record.entitlement.encode(), encode_day(record), []) for record in days]
        folded = time.monotonic()

        topics = self._topics
        outputs = (
            (topics.activity, out.activity),
            (topics.alerts, out.alerts),
            (topics.dead_letters, out.dead_letters),
            (topics.days, out.days),
        )
        sent = [await self._send(topic, partition, batch) for topic, batch in outputs]
        await asyncio.gather(*(future for futures in sent for future in futures))
        put_out = time.monotonic()
        for topic, batch in outputs:
            metrics.OUTPUTS.labels(topic.removeprefix(topics.prefix)).inc(len(batch))

        await self._changelog.write(partition, encode_changes(changes, state.cursor))
        state.written = state.cursor.offset
        state.leases.note(changes)
        metrics.EVENTS.inc(out.taken)
        if self._limit.window_ms:
            metrics.DEAD_LETTER_LIMIT_USED.labels(partition).set(self._limit.used(state.cursor.refusals))
        metrics.CHUNK_RECORDS.observe(out.taken)
        metrics.CHUNK_SECONDS.labels("fold").observe(folded - started)
        metrics.CHUNK_SECONDS.labels("outputs").observe(put_out - folded)
        metrics.CHUNK_SECONDS.labels("state").observe(time.monotonic() - put_out)
        return out.taken

    async def _send(self, topic: str, partition: int, records: Iterable[Record]) -> list[asyncio.Future[Any]]:
        """Hand records over in full batches; futures that are done when the broker has acknowledged them."""
        producer = self._outputs
        futures: list[asyncio.Future[Any]] = []
        batch = producer.create_batch()
        for key, value, headers in records:
            if batch.append(key=key, value=value, timestamp=None, headers=headers) is None:
                futures.append(await producer.send_batch(batch, topic, partition=partition))
                batch = producer.create_batch()
                batch.append(key=key, value=value, timestamp=None, headers=headers)
        if batch.record_count():
            futures.append(await producer.send_batch(batch, topic, partition=partition))
        return futures


async def process_chunks(stream: Any, states: PartitionStates, processor: ChunkProcessor) -> None:
    """The agent: take chunks from a Faust stream, for ever.

    Raises TooManyRefused, and ChunkFailed: with topic, partition and offsets. Faust would go on with the next chunk: the
    app must be set up so that this ends the worker.
    """
    events: AsyncIterable[Any] = stream.noack().events()
    async for event in events:
        records = event.value
        state = states.of(event.message.partition)
        try:
            await processor.process(state, records)
        except TooManyRefused:
            raise
        except Exception as error:
            raise ChunkFailed(
                f"{records[0].topic}[{records[0].partition}] offsets {records[0].offset} to {records[-1].offset}: "
                f"{loggable(error)} {' '.join(getattr(error, '__notes__', []))}"
            ) from error
        await stream.ack(event)
