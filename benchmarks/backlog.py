"""The memory of worker and sink while they work off a backlog: the most that each had, beside how many events there were.

`python -m benchmarks.backlog [--events 10000000]`: on a real Kafka and the embedded ClickHouse; JSON on stdout, progress on
stderr.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.throughput import PARTITIONS, prepare
from deploy.kafka.cluster import KafkaCluster
from processors.brokers import Brokers
from seatmark.chdb_http import ChdbHttp
from seatmark.produce import event_ends, wait_until_stored
from views.migrate import migrate

PREFIX = "bench-"
_SAMPLE_SECONDS = 0.5
_PARTS = ("worker", "sink")


class Memory(threading.Thread):
    """Looks at the resident size of processes until it is stopped. most: bytes, by name."""

    def __init__(self, processes: dict[str, int]) -> None:
        super().__init__(daemon=True)
        self._processes = {name: psutil.Process(pid) for name, pid in processes.items()}
        self._ended = threading.Event()
        self.most = dict.fromkeys(processes, 0)

    def run(self) -> None:
        """Sample."""
        while not self._ended.wait(_SAMPLE_SECONDS):
            for name, process in self._processes.items():
                self.most[name] = max(self.most[name], process.memory_info().rss)

    def stop(self) -> None:
        """End sampling."""
        self._ended.set()
        self.join()


def work_off(brokers: str, environment: dict[str, str], logs: Path) -> dict[str, Any]:
    """Start worker and sink on the whole backlog, and wait until it is stored."""
    ends = asyncio.run(event_ends(Brokers(brokers), PREFIX, PARTITIONS))
    started = time.perf_counter()
    running: dict[str, subprocess.Popen[bytes]] = {}
    for part in _PARTS:
        with (logs / f"{part}.log").open("wb") as log:
            running[part] = subprocess.Popen(
                [sys.executable, "-m", "seatmark", part], env={**os.environ, **environment}, stdout=log, stderr=log
            )
    memory = Memory({part: process.pid for part, process in running.items()})
    memory.start()
    try:
        asyncio.run(wait_until_stored(ends, brokers=Brokers(brokers), prefix=PREFIX, timeout=300, on_progress=show))
    finally:
        memory.stop()
        for process in running.values():
            process.terminate()
            process.wait(60)
    seconds = time.perf_counter() - started
    return {"seconds": round(seconds), "most_MiB": {part: memory.most[part] >> 20 for part in _PARTS}}


def show(left: int) -> None:
    """Say how far the worker is."""
    print(f"{left:,} events left", file=sys.stderr)


def main() -> None:
    """Fill the topic, work it off, report."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--events", type=int, default=10_000_000)
    asked = arguments.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="seatmark-bench-") as directory,
        KafkaCluster(1, Path(directory) / "kafka") as cluster,
        ChdbHttp(Path(directory) / "clickhouse", 0, user="seatmark", password="bench", unrestricted=True) as clickhouse,
    ):
        asyncio.run(prepare(cluster.bootstrap, asked.events))
        dsn = clickhouse.dsn("backlog")
        migrate(dsn, "UTC")
        environment = {
            "SEATMARK_BROKERS": cluster.bootstrap,
            "SEATMARK_TOPIC_PREFIX": PREFIX,
            "SEATMARK_PARTITIONS": str(PARTITIONS),
            "SEATMARK_CLICKHOUSE_DSN": dsn,
        }
        report = work_off(cluster.bootstrap, environment, Path(directory))
    print(json.dumps({"events": asked.events, **report}, indent=2))


if __name__ == "__main__":
    main()
