"""The four that are measured on one topic of events, each as a process of its own that prints how long it took.

worker: the product's worker. unfenced: the same with SEATMARK_FENCING=off. bare: an aiokafka loop around the same fold,
outputs and state. idiomatic: a Faust agent as its documentation shows it, with the same fold, sending each output and setting
each table key as it goes.
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import faust
import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition

from processors.agents import ChunkProcessor
from processors.app import WorkerConfig, create_worker, output_producer, relax_garbage_collection
from processors.brokers import Brokers
from processors.changelog import PlainChangelog
from processors.codec import encode_changes
from processors.domain.days import Calendar
from processors.domain.ledger import position_of
from processors.incarnation import topic_incarnation
from processors.outputs import activity_row, alert_of
from processors.refusals import RefusalLimit
from processors.state import PartitionStates
from processors.topics import Topics
from schemas.alerts import encode_alert
from schemas.days import encode_day
from schemas.events import decode

INPUT = Topics("bench-")
LATE_AFTER_MS = 3_600_000
_POLL_SECONDS = 0.002


async def worker(brokers: str, partitions: int, events: int, *, fencing: bool = True) -> float:
    """Events per second from the first chunk's end to the last's; so for the others."""
    config = WorkerConfig(
        brokers=Brokers(brokers), topic_prefix=INPUT.prefix, partitions=partitions, fencing=fencing, timezone="UTC",
        late_after_ms=LATE_AFTER_MS, lease_policy="release", lease_grace_ms=60_000, session_timeout_ms=10_000,
        rebalance_timeout_ms=10_000, dead_letter_limit=RefusalLimit(count=10_000, percent=50, window_ms=3_600_000),
    )  # fmt: skip
    running = await create_worker(config)
    await running.app.start()
    rate = await _events_per_second(lambda: _applied(running.states, partitions), events)
    await running.app.stop()
    await running.changelog.close()
    await running.watch.close()
    return rate


async def bare(brokers: str, partitions: int, events: int) -> float:
    """The same chunks, read by a plain loop."""
    relax_garbage_collection()
    incarnation = await topic_incarnation(Brokers(brokers), INPUT.events)
    states = PartitionStates(Calendar("UTC"), LATE_AFTER_MS, incarnation, partitions)
    consumer = AIOKafkaConsumer(bootstrap_servers=brokers, fetch_max_wait_ms=20, max_partition_fetch_bytes=4 * 1024 * 1024)
    await consumer.start()
    places = [TopicPartition(INPUT.events, partition) for partition in range(partitions)]
    consumer.assign(places)
    await consumer.seek_to_beginning(*places)

    async def loop() -> None:
        changelog = PlainChangelog(Brokers(brokers), Topics("bare-").changelog)
        await changelog.take_over(range(partitions))
        try:
            async with output_producer(Brokers(brokers)) as outputs:
                processor = ChunkProcessor(outputs, changelog, Topics("bare-"), incarnation)
                while True:
                    for place, records in (await consumer.getmany(timeout_ms=1000, max_records=5000)).items():
                        await processor.process(states.of(place.partition), records)
        finally:
            await changelog.close()

    running = asyncio.ensure_future(loop())
    rate = await _events_per_second(lambda: _applied(states, partitions), events)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await consumer.stop()
    return rate


async def idiomatic(brokers: str, partitions: int, events: int) -> float:
    """The same fold in a Faust agent: an event at a time, tables and topics as Faust means them to be used."""
    app = faust.App(
        "idiomatic", broker=f"kafka://{brokers}", topic_partitions=partitions, web_enabled=False, topic_disable_leader=True,
        store="memory://", consumer_auto_offset_reset="earliest", stream_wait_empty=True,
    )  # fmt: skip
    app._create_directories = lambda: None
    source = app.topic(INPUT.events, key_type=bytes, value_type=bytes, value_serializer="raw", key_serializer="raw")
    table = app.Table("ledger", partitions=partitions, key_type=bytes, value_type=bytes)
    activity, days, alerts = (
        app.topic(f"idio-{name}", key_type=bytes, value_type=bytes, value_serializer="raw", key_serializer="raw")
        for name in ("entitlement-activity", "entitlement-days", "overdraft-alerts")
    )
    states = PartitionStates(Calendar("UTC"), LATE_AFTER_MS, "idiomatic", partitions)
    done = 0

    async def entitlements(stream: Any) -> None:
        nonlocal done
        async for message in stream.events():
            record = message.message
            state = states.of(record.partition)
            event = decode(message.value, key=message.key, appended_at=None)
            position = position_of(1, record.offset)
            for outcome in state.ledger.apply(event, position):
                row = activity_row(event, outcome, "idiomatic", 1, record, 0, message.value)
                await activity.send(key=message.key, value=orjson.dumps(row[:-1]) + row.event, partition=record.partition)
                if outcome.transition is not None:
                    await alerts.send(key=message.key, value=encode_alert(alert_of(outcome.transition)))
            changes = state.ledger.take_changes()
            for day in changes.days:
                await days.send(key=message.key, value=encode_day(day))
            for key, value in encode_changes(changes, state.cursor):
                if value is None:
                    table.pop(key, None)
                else:
                    table[key] = value
            done += 1

    app.agent(source, name="entitlements")(entitlements)
    await app.start()
    rate = await _events_per_second(lambda: done, events)
    # Its acknowledgements may still be under way: that is not counted against it.
    await app.stop()
    return rate


def _applied(states: PartitionStates, partitions: int) -> int:
    return sum(states.of(partition).cursor.offset + 1 for partition in range(partitions))


async def _events_per_second(applied: Callable[[], int], events: int) -> float:
    while not (first := applied()):
        await asyncio.sleep(_POLL_SECONDS)
    started = time.perf_counter()
    while (last := applied()) < events:
        await asyncio.sleep(_POLL_SECONDS)
    return (last - first) / (time.perf_counter() - started)


CONTENDERS = {"worker": worker, "unfenced": partial(worker, fencing=False), "bare": bare, "idiomatic": idiomatic}


def main() -> None:
    """`python -m benchmarks.contenders NAME BROKERS PARTITIONS EVENTS`: the rate in events/s, as JSON on stdout."""
    name, brokers, partitions, events = sys.argv[1:]
    print(json.dumps(asyncio.run(CONTENDERS[name](brokers, int(partitions), int(events)))))


if __name__ == "__main__":
    main()
