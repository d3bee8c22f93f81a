"""What worker and sink need while they work off a backlog: memory (the most that each had), CPU, and what stays on the disks.

The figures from which docs/operations.md says how large a deployment must be.
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
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil

from benchmarks.throughput import PARTITIONS, prepare
from deploy.kafka.cluster import KafkaCluster
from processors.brokers import Brokers
from seatmark.chdb_http import ChdbHttp
from seatmark.produce import event_ends, wait_until_stored
from views.migrate import migrate
from views.store import connect

PREFIX = "bench-"
_SAMPLE_SECONDS = 0.5
_PARTS = ("worker", "sink")


class Use(threading.Thread):
    """Looks at processes until it is stopped. most: resident bytes, cpu: seconds; both by name."""

    def __init__(self, processes: dict[str, int]) -> None:
        super().__init__(daemon=True)
        self._processes = {name: psutil.Process(pid) for name, pid in processes.items()}
        self._ended = threading.Event()
        self.most = dict.fromkeys(processes, 0)
        self.cpu = dict.fromkeys(processes, 0.0)

    def run(self) -> None:
        """Sample."""
        while not self._ended.wait(_SAMPLE_SECONDS):
            for name, process in self._processes.items():
                self.most[name] = max(self.most[name], process.memory_info().rss)
                used = process.cpu_times()
                self.cpu[name] = used.user + used.system

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
    use = Use({part: process.pid for part, process in running.items()})
    use.start()
    try:
        asyncio.run(wait_until_stored(ends, brokers=Brokers(brokers), prefix=PREFIX, timeout=300, on_progress=show))
    finally:
        use.stop()
        for process in running.values():
            process.terminate()
            process.wait(60)
    seconds = time.perf_counter() - started
    return {
        "seconds": round(seconds),
        "most_MiB": {part: use.most[part] >> 20 for part in _PARTS},
        "cpu_seconds": {part: round(use.cpu[part], 1) for part in _PARTS},
    }


def on_disk(logs: Path, dsn: str, events: int) -> dict[str, dict[str, float]]:
    """Bytes per event: of each topic, one replica and before compaction, and of each of ClickHouse's tables, merged."""
    topics: dict[str, float] = defaultdict(float)
    for segment in logs.rglob("*.log"):
        topic, _, partition = segment.parent.name.rpartition("-")
        if topic.startswith(PREFIX) and partition.isdigit():
            topics[topic.removeprefix(PREFIX)] += segment.stat().st_size
    with closing(connect(dsn)) as client:
        names = client.query("SELECT name FROM system.tables WHERE database = currentDatabase() AND engine LIKE '%MergeTree'")
        for (table,) in names.result_rows:
            client.command(f"OPTIMIZE TABLE {table} FINAL")
        parts = client.query(
            "SELECT table, sum(bytes_on_disk) FROM system.parts WHERE database = currentDatabase() AND active GROUP BY table"
        )
        tables = dict(parts.result_rows)
    return {
        "topics": {name: round(size / events, 1) for name, size in topics.items()},
        "tables": {name: round(size / events, 1) for name, size in tables.items()},
    }


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
        report["bytes_per_event"] = on_disk(Path(directory) / "kafka", dsn, asked.events)
    print(json.dumps({"events": asked.events, **report}, indent=2))


if __name__ == "__main__":
    main()
