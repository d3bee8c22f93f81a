"""Events per second of the worker, beside a bare client loop and an idiomatic Faust agent, on one broker in one run."""

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from benchmarks.contenders import CONTENDERS, INPUT
from benchmarks.open_seats import cost_by_open_seats
from deploy.kafka.cluster import KafkaCluster, KafkaUnavailable
from processors.brokers import Brokers
from processors.topics import worker_group
from schemas.events import format_time
from seatmark.tansu import Tansu
from seatmark.topics import ensure_topics

ENTITLEMENTS = 10_000
SEATS = 30
PARTITIONS = 4
# The idiomatic agent is given fewer: it would take minutes.
IDIOMATIC_SHARE = 25


def events(count: int) -> Iterator[tuple[bytes, bytes]]:
    """Seats of 10,000 entitlements that come and go in random order, half of them with terms that they cross."""
    chance = random.Random(7)
    start = int(time.time() * 1000) - count - 60_000
    for number in range(count):
        entitlement = f"ent-{chance.randrange(ENTITLEMENTS) if number >= ENTITLEMENTS // 2 else number}"
        seat = f"wks-{chance.randrange(SEATS):04d}"
        kind, data = "seat.activated" if chance.random() < 0.5 else "seat.deactivated", {
            "customer": "cus-0042", "product": "cad-pro", "seat_id": seat, "user": f"user-{seat}@example.com",
            "credential": "user", "ip": "203.0.113.7", "host": seat,
        }  # fmt: skip
        if number < ENTITLEMENTS // 2:
            kind = "entitlement.changed"
            data = {"elements": {"seats": {"limit": 5, "overdraft": {"type": "absolute", "value": 2}}}}  # type: ignore[dict-item]
        event = {
            "specversion": "1.0", "id": f"01J9ZQ{number:020d}", "source": "/license-servers/eu-1", "type": kind,
            "subject": entitlement, "time": format_time(start + number), "data": data,
        }  # fmt: skip
        yield entitlement.encode(), orjson.dumps(event)


async def prepare(brokers: str, count: int) -> None:
    """Topics for all contenders, and the events on the one that they share."""
    for prefix in (INPUT.prefix, "bare-", "idio-"):
        await ensure_topics(Brokers(brokers), prefix=prefix, partitions=PARTITIONS, replication=1)
    producer = AIOKafkaProducer(bootstrap_servers=brokers, linger_ms=10, max_batch_size=256 * 1024, compression_type="snappy")
    await producer.start()
    for key, value in events(count):
        await producer.send(INPUT.events, key=key, value=value)
    await producer.stop()


async def forget(brokers: str) -> None:
    """Drop everything but the events, and begin them again: each run starts on empty topics and without state."""
    admin = AIOKafkaAdminClient(bootstrap_servers=brokers)
    await admin.start()
    keep = INPUT.events
    await admin.delete_topics([name for name in await admin.list_topics() if name != keep and not name.startswith("__")])
    await admin.close()
    for prefix in (INPUT.prefix, "bare-", "idio-"):
        await ensure_topics(Brokers(brokers), prefix=prefix, partitions=PARTITIONS, replication=1)
    await rewind(brokers)


async def rewind(brokers: str) -> None:
    """Commit the beginning of the events for the groups of the contenders."""
    for group in (worker_group(INPUT.prefix), "idiomatic"):
        consumer = AIOKafkaConsumer(bootstrap_servers=brokers, group_id=group, enable_auto_commit=False)
        await consumer.start()
        places = [TopicPartition(INPUT.events, partition) for partition in range(PARTITIONS)]
        consumer.assign(places)
        await consumer.commit(dict.fromkeys(places, 0))
        await consumer.stop()


def run_contender(name: str, brokers: str, count: int) -> float:
    """The rate of one contender, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.contenders", name, brokers, str(PARTITIONS), str(count)],
        stdout=subprocess.PIPE,
        check=True,
    )
    rate: float = json.loads(done.stdout.splitlines()[-1])
    return rate


@contextmanager
def broker(kind: str) -> Iterator[str]:
    """A broker of the kind asked for, its address."""
    with tempfile.TemporaryDirectory(prefix="seatmark-bench-") as directory:
        if kind == "kafka":
            with KafkaCluster(1, Path(directory)) as cluster:
                yield cluster.bootstrap
        else:
            with Tansu(29092) as tansu:
                yield tansu.bootstrap


def main() -> None:
    """Run everything; JSON on stdout, progress on stderr."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--events", type=int, default=500_000)
    arguments.add_argument("--runs", type=int, default=3)
    arguments.add_argument("--broker", choices=["kafka", "tansu"], default="kafka")
    asked = arguments.parse_args()
    # The embedded broker has no transactions.
    contenders = [name for name in CONTENDERS if asked.broker == "kafka" or name != "worker"]
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    try:
        with broker(asked.broker) as brokers:
            asyncio.run(prepare(brokers, asked.events))
            for run in range(asked.runs):
                for name in contenders:
                    if run or name != contenders[0]:
                        asyncio.run(forget(brokers))
                    count = asked.events // (IDIOMATIC_SHARE if name == "idiomatic" else 1)
                    rates[name].append(run_contender(name, brokers, count))
                    print(f"run {run + 1}, {name}: {rates[name][-1]:,.0f} events/s", file=sys.stderr)
    except KafkaUnavailable as error:
        sys.exit(f"{error}\nor measure on the embedded broker: --broker tansu")
    medians = {name: statistics.median(measured) for name, measured in rates.items()}
    report: dict[str, Any] = {
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version(), "broker": asked.broker},
        "events": asked.events,
        "entitlements": ENTITLEMENTS,
        "events_per_second": {
            name: {"median": round(medians[name]), "runs": [round(r) for r in rates[name]]} for name in rates
        },
        "ratios": {
            "worker_to_idiomatic": round(medians[contenders[0]] / medians["idiomatic"], 1),
            "worker_to_bare": round(medians[contenders[0]] / medians["bare"], 2),
            "worker_to_unfenced": round(medians[contenders[0]] / medians["unfenced"], 2),
        },
        "cost_by_open_seats": cost_by_open_seats(),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
