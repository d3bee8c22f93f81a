"""Activity: the raw log on its way to ClickHouse. One Kafka record holds the rows of one chunk of one source partition.

A row is one event and one element that it touches, with the effect it had. The record's value is an Arrow IPC stream
with the schema below; its headers say which source offsets it covers, so that the sink can pass it on undecoded and
make a deduplication token of them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa

# Header names of a record on `entitlement-activity`. Values are ASCII text.
HEADER_INCARNATION = "seatmark-incarnation"
HEADER_TOPIC = "seatmark-source-topic"
HEADER_PARTITION = "seatmark-source-partition"
HEADER_FIRST_OFFSET = "seatmark-first-offset"
HEADER_LAST_OFFSET = "seatmark-last-offset"
HEADER_ROWS = "seatmark-rows"


class ActivityRow(NamedTuple):
    """One row of the raw log. Times in milliseconds since 1970, UTC.

    time: the event's own; t: where the live fold placed it.
    version: 0 late or without effect, 1 applied with effect; 2 and up written anew, by a restatement, or without personal data
        (processors/forget.py). late: it had no live effect because it came too late.
        ClickHouse adds `rank`, which says which row of an event stays (views/migrations/0008_first_arrivals.sql).
    delta, level, limit, hard_limit, terms_known, state: the effect, and how things stood right after it. A late event
        has delta 0 and the values that were in force when it arrived.
    event: the original bytes: all that is needed to make the event again.
    """

    entitlement: str
    element: str
    time: int
    source: str
    id: str
    type: str
    customer: str | None
    product: str | None
    seat_id: str | None
    user: str | None
    ip: str | None
    host: str | None
    credential: str | None
    quantity: int | None
    lease_expires_at: int | None
    reason: str | None
    incarnation: str
    epoch: int
    partition: int
    offset: int
    appended_at: int
    t: int
    version: int
    late: bool
    delta: int
    level: int
    limit: int | None
    hard_limit: int | None
    terms_known: bool
    state: str
    event: bytes


_MS = pa.timestamp("ms", tz="UTC")

ACTIVITY_SCHEMA = pa.schema(
    [
        pa.field("entitlement", pa.string(), nullable=False),
        pa.field("element", pa.string(), nullable=False),
        pa.field("time", _MS, nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("type", pa.string(), nullable=False),
        pa.field("customer", pa.string()),
        pa.field("product", pa.string()),
        pa.field("seat_id", pa.string()),
        pa.field("user", pa.string()),
        pa.field("ip", pa.string()),
        pa.field("host", pa.string()),
        pa.field("credential", pa.string()),
        pa.field("quantity", pa.int64()),
        pa.field("lease_expires_at", _MS),
        pa.field("reason", pa.string()),
        pa.field("incarnation", pa.string(), nullable=False),
        pa.field("epoch", pa.uint32(), nullable=False),
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("appended_at", _MS, nullable=False),
        pa.field("t", _MS, nullable=False),
        pa.field("version", pa.uint64(), nullable=False),
        pa.field("late", pa.bool_(), nullable=False),
        pa.field("delta", pa.int64(), nullable=False),
        pa.field("level", pa.int64(), nullable=False),
        pa.field("limit", pa.int64()),
        pa.field("hard_limit", pa.int64()),
        pa.field("terms_known", pa.bool_(), nullable=False),
        pa.field("state", pa.string(), nullable=False),
        pa.field("event", pa.binary(), nullable=False),
    ]
)


def encode_activity(rows: Sequence[ActivityRow]) -> bytes:
    """The rows as one Arrow IPC stream with one record batch. Raises ValueError on no rows."""
    if not rows:
        raise ValueError("expected at least one activity row")
    columns: list[Any] = [
        pa.array(column, type=field.type) for column, field in zip(zip(*rows, strict=True), ACTIVITY_SCHEMA, strict=True)
    ]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, ACTIVITY_SCHEMA) as writer:
        writer.write_batch(pa.record_batch(columns, schema=ACTIVITY_SCHEMA))
    data: bytes = sink.getvalue().to_pybytes()
    return data


def decode_activity(value: bytes) -> pa.Table:
    """The rows of one record as an Arrow table. Raises pyarrow.ArrowInvalid when it is not one."""
    return pa.ipc.open_stream(value).read_all()
