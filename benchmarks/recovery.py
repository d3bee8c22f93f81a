"""How long a worker takes to read its state back, beside a stock Faust table; and how punctual it is with a million leases.

`python -m benchmarks.recovery [--leases 1000000] [--stock 40000]`: about four minutes on a real Kafka; JSON on stdout. Each is
a process of its own. A rate is counted from the first chunk of the changelog to the end of recovery.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faust
import psutil
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from deploy.kafka.cluster import KafkaCluster
from processors.app import WorkerConfig, create_worker
from processors.brokers import Brokers
from processors.changelog import PlainChangelog
from processors.codec import STATE_VERSION, Cursor, StateRecord, element_records, encode_cursor
from processors.domain.element import Element, Head
from processors.domain.holds import Hold
from processors.incarnation import topic_incarnation
from processors.partitions import partition_of
from processors.refusals import NO_LIMIT
from processors.topics import Topics
from schemas.events import LEASES_SOURCE, parse_time
from seatmark.topics import ensure_topics

TOPICS = Topics("recovery-")
STOCK = "stock"
PARTITIONS = 4
SEATS_OF_AN_ENTITLEMENT = 100
# These run out while it is watched; all others much later.
ENDING = 200
_GRACE_MS = 1_000
_ENDS_AFTER_MS = 150_000
_ENDS_WITHIN_MS = 10_000
_BATCH = 5_000


def state_records(leases: int, now: int) -> Iterator[tuple[int, list[StateRecord]]]:
    """(partition, records) of one entitlement after the other: its head and the holds of its seats."""
    for number in range(leases // SEATS_OF_AN_ENTITLEMENT):
        entitlement = f"ent-{number}"
        element = Element(Head(entitlement, "seats", clock=now, level=SEATS_OF_AN_ENTITLEMENT))
        for seat in range(SEATS_OF_AN_ENTITLEMENT):
            # Spread without an order.
            place = (number * SEATS_OF_AN_ENTITLEMENT + seat) * 7_919
            runs_out = not seat and number < ENDING
            ends = now + (_ENDS_AFTER_MS + place % _ENDS_WITHIN_MS if runs_out else 3_600_000 + place % 3_600_000)
            element.holds[f"seat-{seat}"] = Hold(1, now, number, ends, b"12345678")
        yield partition_of(entitlement, PARTITIONS), element_records(element)


async def fill(brokers: str, leases: int) -> int:
    """The changelog of a worker that has these leases; the number of its records."""
    await ensure_topics(Brokers(brokers), prefix=TOPICS.prefix, partitions=PARTITIONS, replication=1)
    incarnation = await topic_incarnation(Brokers(brokers), TOPICS.events)
    changelog = PlainChangelog(Brokers(brokers), TOPICS.changelog)
    await changelog.take_over(range(PARTITIONS))
    cursor = encode_cursor(Cursor(STATE_VERSION, incarnation, 1, -1, "UTC"))
    pending: list[list[StateRecord]] = [[cursor] for _ in range(PARTITIONS)]
    count = 0
    for partition, records in state_records(leases, int(time.time() * 1000)):
        pending[partition] += records
        if len(pending[partition]) >= _BATCH:
            await changelog.write(partition, pending[partition])
            count += len(pending[partition])
            pending[partition] = []
    for partition, rest in enumerate(pending):
        await changelog.write(partition, rest)
        count += len(rest)
    await changelog.close()
    return count


async def worker(brokers: str, leases: int) -> dict[str, Any]:
    """Recovery of the worker, then the leases that run out."""
    running = await create_worker(WorkerConfig(
        brokers=Brokers(brokers), topic_prefix=TOPICS.prefix, partitions=PARTITIONS, fencing=True, timezone="UTC",
        late_after_ms=3_600_000, lease_policy="release", lease_grace_ms=_GRACE_MS, session_timeout_ms=10_000,
        rebalance_timeout_ms=10_000, dead_letter_limit=NO_LIMIT,
    ))  # fmt: skip
    table, begun, done = running.table, asyncio.Event(), asyncio.Event()
    times: dict[str, float] = {}
    read = 0
    restore, restored = table.on_changelog, table.on_restored

    def on_changelog(partition: int, records: list[Any]) -> None:
        nonlocal read
        if not begun.is_set():
            begun.set()
            times["begun"] = time.perf_counter()
        read += len(records)
        restore(partition, records)

    def on_restored() -> None:
        restored()
        times["done"] = time.perf_counter()
        done.set()

    table.on_changelog, table.on_restored = on_changelog, on_restored
    started = time.perf_counter()
    await running.app.start()
    await done.wait()
    seconds = times["done"] - times["begun"]
    late = await lateness(brokers, min(ENDING, leases // SEATS_OF_AN_ENTITLEMENT))
    await running.app.stop()
    await running.changelog.close()
    await running.watch.close()
    return {
        "records": read,
        "seconds": round(seconds, 1),
        "records_per_second": round(read / seconds),
        "seconds_from_start": round(times["done"] - started, 1),
        "resident_MiB": psutil.Process().memory_info().rss >> 20,
        "leases_run_out": len(late),
        "expired_event_after_ms": {"median": sorted(late)[len(late) // 2], "most": max(late)},
    }


async def lateness(brokers: str, count: int) -> list[int]:
    """Of so many expiries on the topic: ms from the end of the lease and the grace to the broker's append."""
    found = []
    async with AIOKafkaConsumer(bootstrap_servers=brokers, auto_offset_reset="earliest", enable_auto_commit=False) as consumer:
        consumer.assign([TopicPartition(TOPICS.events, partition) for partition in range(PARTITIONS)])
        async for record in consumer:
            event = json.loads(record.value)
            assert event["source"] == LEASES_SOURCE
            found.append(record.timestamp - parse_time(event["time"]))
            if len(found) == count:
                return found
    raise AssertionError("the consumer has ended")


async def fill_stock(brokers: str, count: int) -> None:
    """The changelog of a Faust table, with records of about the size of a hold."""
    admin = AIOKafkaAdminClient(bootstrap_servers=brokers)
    await admin.start()
    names = (f"{STOCK}-source", f"{STOCK}-table-changelog")
    await admin.create_topics([NewTopic(name, num_partitions=PARTITIONS, replication_factor=1) for name in names])
    await admin.close()
    async with AIOKafkaProducer(bootstrap_servers=brokers, linger_ms=20, max_batch_size=256 * 1024) as producer:
        for number in range(count):
            key = f'"ent-{number // SEATS_OF_AN_ENTITLEMENT}/seat-{number % SEATS_OF_AN_ENTITLEMENT}"'
            value = f'"{"x" * 40}"'
            place = number % PARTITIONS
            await producer.send(f"{STOCK}-table-changelog", key=key.encode(), value=value.encode(), partition=place)
        await producer.flush()


async def stock(brokers: str, count: int) -> dict[str, Any]:
    """Recovery of a Faust table as it comes."""
    app = faust.App(
        STOCK, broker=f"kafka://{brokers}", topic_partitions=PARTITIONS, web_enabled=False, topic_disable_leader=True,
        topic_allow_declare=False, store="memory://", consumer_auto_offset_reset="earliest",
    )  # fmt: skip
    app._create_directories = lambda: None
    source = app.topic(f"{STOCK}-source", key_type=bytes, value_type=bytes, value_serializer="raw", key_serializer="raw")
    table = app.Table("table", partitions=PARTITIONS, key_type=str, value_type=str)
    times: dict[str, float] = {}
    done = asyncio.Event()
    apply = table.apply_changelog_batch

    def apply_changelog_batch(*arguments: Any, **named: Any) -> None:
        times.setdefault("begun", time.perf_counter())
        apply(*arguments, **named)

    table.apply_changelog_batch = apply_changelog_batch

    async def recovered() -> None:
        times["done"] = time.perf_counter()
        done.set()

    table.on_recover(recovered)

    async def agent(stream: Any) -> None:
        async for _ in stream:
            table["never"] = ""

    app.agent(source, name="agent")(agent)
    await app.start()
    await done.wait()
    assert len(table) == count
    seconds = times["done"] - times["begun"]
    await app.stop()
    return {"records": count, "seconds": round(seconds, 1), "records_per_second": round(count / seconds)}


def main() -> None:
    """Fill, run both, report."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--leases", type=int, default=1_000_000)
    arguments.add_argument("--stock", type=int, default=40_000)
    # What each contender's own process is called with.
    arguments.add_argument("--contender", nargs=3, metavar=("NAME", "BROKERS", "COUNT"), help=argparse.SUPPRESS)
    asked = arguments.parse_args()
    if asked.contender:
        name, brokers, count = asked.contender
        print(json.dumps(asyncio.run({"worker": worker, "stock": stock}[name](brokers, int(count)))))
        return
    with tempfile.TemporaryDirectory(prefix="seatmark-bench-") as directory, KafkaCluster(1, Path(directory)) as cluster:
        asyncio.run(fill_stock(cluster.bootstrap, asked.stock))
        report: dict[str, Any] = {"stock": run_contender("stock", cluster.bootstrap, asked.stock)}
        asyncio.run(fill(cluster.bootstrap, asked.leases))
        report["worker"] = run_contender("worker", cluster.bootstrap, asked.leases)
        report["ratio"] = round(report["worker"]["records_per_second"] / report["stock"]["records_per_second"], 1)
    print(json.dumps(report, indent=2))


def run_contender(name: str, brokers: str, count: int) -> Any:
    """What one of them reports, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.recovery", "--contender", name, brokers, str(count)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
