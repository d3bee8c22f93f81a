"""How long partitions are not served when one of two workers is killed.

`python -m benchmarks.failover [--runs 3]`: on a real Kafka, with the default timeouts; JSON on stdout. Events come to all
partitions all the time. What counts is the longest time, of any partition, from the kill to the first output after it.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from benchmarks.throughput import events
from deploy.kafka.cluster import KafkaCluster
from processors.brokers import Brokers
from processors.topics import Topics, worker_group
from seatmark.produce import group_is_stable, group_members
from seatmark.settings import load_settings
from seatmark.topics import ensure_topics

TOPICS = Topics("failover-")
PARTITIONS = 8
_PAUSE_SECONDS = 0.02
_GIVEN_UP_SECONDS = 120


@contextmanager
def worker(brokers: str, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A worker in a process of its own."""
    environment = {
        "SEATMARK_BROKERS": brokers,
        "SEATMARK_TOPIC_PREFIX": TOPICS.prefix,
        "SEATMARK_PARTITIONS": str(PARTITIONS),
    }
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "seatmark", "worker"], env={**os.environ, **environment}, stdout=output, stderr=output
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def feed(brokers: str) -> None:
    """Events to all partitions, for ever."""
    chance = random.Random(1)
    made = list(events(20_000))
    async with AIOKafkaProducer(bootstrap_servers=brokers) as producer:
        while True:
            key, value = chance.choice(made)
            await producer.send(TOPICS.events, key=key, value=value)
            await asyncio.sleep(_PAUSE_SECONDS)


async def all_partitions_served(brokers: str, since: float) -> float:
    """Seconds from an instant until each partition has put out something that the brokers took after it."""
    async with AIOKafkaConsumer(bootstrap_servers=brokers, enable_auto_commit=False) as consumer:
        places = [TopicPartition(TOPICS.activity, partition) for partition in range(PARTITIONS)]
        consumer.assign(places)
        # What is still there of the one that is no more was put out before this.
        await consumer.seek_to_end(*places)
        missing = set(range(PARTITIONS))
        last = since
        async with asyncio.timeout(_GIVEN_UP_SECONDS):
            async for record in consumer:
                if record.partition in missing:
                    missing.remove(record.partition)
                    last = time.time()
                if not missing:
                    return last - since
    raise AssertionError("the consumer has ended")


async def two_members(brokers: str) -> None:
    """Wait until two workers have their partitions, and both work."""
    group = worker_group(TOPICS.prefix)
    while not (await group_members(Brokers(brokers), group) == 2 and await group_is_stable(Brokers(brokers), group)):
        await asyncio.sleep(0.2)
    await all_partitions_served(brokers, time.time())


async def failovers(brokers: str, runs: int, directory: Path) -> list[float]:
    """Seconds of each run."""
    await ensure_topics(Brokers(brokers), prefix=TOPICS.prefix, partitions=PARTITIONS, replication=1)
    feeding = asyncio.ensure_future(feed(brokers))
    seconds = []
    try:
        with worker(brokers, directory / "stays.log"):
            await all_partitions_served(brokers, time.time())
            for run in range(runs):
                with worker(brokers, directory / f"killed-{run}.log") as killed:
                    await two_members(brokers)
                    killed.kill()
                    seconds.append(await all_partitions_served(brokers, time.time()))
    finally:
        feeding.cancel()
    return seconds


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--runs", type=int, default=3)
    asked = arguments.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="seatmark-bench-") as directory,
        KafkaCluster(1, Path(directory) / "kafka") as cluster,
    ):
        seconds = asyncio.run(failovers(cluster.bootstrap, asked.runs, Path(directory)))
    report = {
        "session_timeout_seconds": load_settings({}).session_timeout / 1000,
        "seconds": {"median": round(statistics.median(seconds), 1), "most": round(max(seconds), 1)},
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
