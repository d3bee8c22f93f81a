"""Rebuilds the worker's state in an empty changelog topic from the raw log in ClickHouse."""

import asyncio
from collections.abc import Callable, Iterator

from aiokafka import AIOKafkaProducer
from clickhouse_connect.driver.client import Client

from processors.agents import Topics
from processors.domain.days import Calendar
from processors.rebuild import RawRow, rebuilt_state

# FINAL: a row that was restated stands in the place of its live one.
_RAW_LOG = "SELECT entitlement, element, epoch, offset, event FROM activity FINAL ORDER BY entitlement"
_IN_FLIGHT = 20_000
_BATCH_BYTES = 768 * 1024
# A record with a very long id, or with many ids of one moment, is larger than a batch.
_REQUEST_BYTES = 64 * 1024 * 1024


async def rebuild_state(
    client: Client,
    *,
    brokers: str,
    topic_prefix: str,
    partitions: int,
    timezone: str,
    late_after_ms: int,
    on_progress: Callable[[int, int], None],
) -> int:
    """Write the state after the whole raw log to the changelog topic; the number of rows read.

    The topic must be empty and no worker running.
    on_progress(done, total): called as rows are read.
    Raises aiokafka.errors.KafkaError, clickhouse_connect's DatabaseError.
    """
    total = int(client.query("SELECT count() FROM activity FINAL").result_rows[0][0])
    if not total:
        return 0
    topic = Topics(topic_prefix).changelog
    producer = AIOKafkaProducer(
        bootstrap_servers=brokers,
        acks="all",
        compression_type="snappy",
        max_batch_size=_BATCH_BYTES,
        max_request_size=_REQUEST_BYTES,
    )
    await producer.start()
    sent: list[asyncio.Future[object]] = []
    try:
        rows = _raw_log(client, total, on_progress)
        for partition, records in rebuilt_state(rows, Calendar(timezone), late_after_ms, partitions):
            sent += [await producer.send(topic, key=key, value=value, partition=partition) for key, value in records]
            if len(sent) > _IN_FLIGHT:
                await asyncio.gather(*sent)
                sent.clear()
        await asyncio.gather(*sent)
    finally:
        await producer.stop()
    return total


def _raw_log(client: Client, total: int, on_progress: Callable[[int, int], None]) -> Iterator[RawRow]:
    done = 0
    with client.query_row_block_stream(_RAW_LOG, column_formats={"event": "bytes"}) as blocks:
        for block in blocks:
            for entitlement, element, epoch, offset, event in block:
                yield RawRow(entitlement, element, epoch, offset, event)
            done += len(block)
            on_progress(done, total)
