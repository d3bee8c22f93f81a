"""The procedures of docs/operations.md, as somebody would carry them out, on a real Kafka: the numbers are right after them."""

import asyncio
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka.admin import NewPartitions

from deploy.kafka.cluster import KafkaCluster
from processors.brokers import Brokers
from processors.partitions import partition_of
from processors.topics import sink_group
from schemas.topics import catalogue
from seatmark.chdb_http import ChdbHttp
from seatmark.produce import event_ends, worker_applied
from seatmark.settings import load_settings
from seatmark.upkeep import audited
from tests.brokers import admin_client, commit_ends, read_topic
from tests.worker_process import running, settings_of
from views.migrate import migrate
from views.store import connect

pytestmark = pytest.mark.kafka

ENTITLEMENTS = [f"ent-{number}" for number in range(20)]


class Deployment:
    """Topics and a database of its own. settings: of all its parts, which the procedures change."""

    def __init__(self, kafka: KafkaCluster, chdb_http: ChdbHttp, directory: Path) -> None:
        self.bootstrap = kafka.bootstrap
        self.prefix = f"ops{uuid.uuid4().hex[:8]}-"
        self.chdb_http = chdb_http
        self.directory = directory
        self.settings = settings_of(self.bootstrap, self.prefix, 3) | {
            "SEATMARK_CLICKHOUSE_DSN": chdb_http.dsn(f"ops_{uuid.uuid4().hex}"),
            "SEATMARK_FLUSH_INTERVAL": "200ms",
            # Only where a test asks.
            "SEATMARK_RESTATE_INTERVAL": "1h",
        }

    def run(self, *arguments: str, given: bytes = b"") -> str:
        """A command that must succeed; what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "seatmark", *arguments],
            env={**os.environ, **self.settings},
            input=given,
            capture_output=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode() + done.stderr.decode()

    def produce(self, events: Sequence[dict[str, Any]]) -> None:
        """Send events, and wait until they are stored."""
        self.run("produce", "-", given=b"\n".join(map(orjson.dumps, events)))

    @contextmanager
    def parts(self) -> Iterator[None]:
        """Worker and sink, running; then stopped as an operator stops them."""
        with (
            running("worker", self.settings, self.directory / "worker.log") as worker,
            running("sink", self.settings, self.directory / "sink.log") as sink,
        ):
            yield
            assert worker.poll() is None, worker.log.read_text()
            assert worker.stop() == 0
            assert sink.stop() == 0

    def levels(self) -> dict[str, int]:
        with connect(self.settings["SEATMARK_CLICKHOUSE_DSN"]) as client:
            return dict(client.query("SELECT entitlement, level FROM live_levels").result_rows)

    def days(self) -> list[Any]:
        with connect(self.settings["SEATMARK_CLICKHOUSE_DSN"]) as client:
            columns = "entitlement, toString(day), opening, closing, min, max, activations"
            return list(client.query(f"SELECT {columns} FROM days FINAL ORDER BY 1, 2").result_rows)

    def audit(self) -> None:
        """Nothing differs, and every entitlement was looked at, nothing left out."""
        findings = audited(load_settings(self.settings))
        assert findings.differences == []
        assert (findings.elements, findings.days) == (len(ENTITLEMENTS), 2 * len(ENTITLEMENTS))
        assert (findings.provisional_days, findings.unsettled) == (0, 0)


@pytest.fixture
def deployment(kafka: KafkaCluster, chdb_http: ChdbHttp, tmp_path: Path) -> Deployment:
    deployment = Deployment(kafka, chdb_http, tmp_path)
    migrate(deployment.settings["SEATMARK_CLICKHOUSE_DSN"], "UTC")
    deployment.run("topics")
    return deployment


def event(entitlement: str, number: int, type: str, seat: str, time: str) -> dict[str, Any]:
    return {"specversion": "1.0", "id": f"e{number}", "source": "/s", "type": type, "subject": entitlement,
            "time": time, "data": {"seat_id": seat, "customer": "acme"}}  # fmt: skip


def first_day() -> list[dict[str, Any]]:
    """Of each entitlement: it is sold with 2 seats, three come, and one goes."""
    terms = {"customer": "acme", "elements": {"seats": {"limit": 2, "overdraft": {"type": "unlimited"}}}}
    return [
        event(entitlement, 99, "entitlement.changed", "", "2026-11-02T07:00:00Z") | {"data": terms}
        for entitlement in ENTITLEMENTS
    ] + [
        event(entitlement, number, type, seat, f"2026-11-02T{8 + number:02}:00:00Z")
        for number, (type, seat) in enumerate(
            [("seat.activated", "a"), ("seat.activated", "b"), ("seat.activated", "c"), ("seat.deactivated", "a")]
        )
        for entitlement in ENTITLEMENTS
    ]


def second_day() -> list[dict[str, Any]]:
    """Of each: an event that was there before, a seat that comes, one of yesterday that goes, and one that comes too late."""
    events = []
    for entitlement in ENTITLEMENTS:
        events += [
            event(entitlement, 1, "seat.activated", "b", "2026-11-02T09:00:00Z"),
            event(entitlement, 10, "seat.activated", "d", "2026-11-03T09:00:00Z"),
            event(entitlement, 11, "seat.deactivated", "b", "2026-11-03T10:00:00Z"),
            event(entitlement, 12, "seat.activated", "a", "2026-11-02T10:30:00Z"),
        ]
    return events


# (entitlement, day, opening, closing, min, max, activations). On 2 November `a` comes again at 10:30, when it is there.
DAYS_AFTER = [
    row
    for entitlement in sorted(ENTITLEMENTS)
    for row in [(entitlement, "2026-11-02", 0, 2, 0, 3, 4), (entitlement, "2026-11-03", 2, 2, 2, 3, 1)]
]


def test_more_partitions(deployment: Deployment) -> None:
    moved = [name for name in ENTITLEMENTS if partition_of(name, 3) != partition_of(name, 4) != 3]
    # To a partition that was there before, whose offsets are others: the order must be that of arrival all the same.
    assert moved
    with deployment.parts():
        deployment.produce(first_day())
    asyncio.run(more_partitions(deployment, 4))
    deployment.settings["SEATMARK_PARTITIONS"] = "4"
    deployment.run("rebuild", "--yes")
    with deployment.parts():
        deployment.produce(second_day())
        deployment.run("restate")
    assert deployment.levels() == dict.fromkeys(ENTITLEMENTS, 2)
    assert deployment.days() == DAYS_AFTER
    deployment.audit()


async def more_partitions(deployment: Deployment, count: int) -> None:
    async with admin_client(deployment.bootstrap) as admin:
        response = await admin.create_partitions(
            {deployment.prefix + topic.name: NewPartitions(total_count=count) for topic in catalogue()}
        )
    assert [code for _, code, *_ in response.topic_errors] == [0] * len(catalogue())


async def test_clickhouse_lost_and_its_backup_older_than_the_last_events(deployment: Deployment) -> None:
    with deployment.parts():
        deployment.produce(first_day())
    backup, brokers = copied(deployment), Brokers(deployment.bootstrap)
    # ClickHouse is gone: the worker goes on, and what it puts out waits on the topics.
    with running("worker", deployment.settings, deployment.directory / "worker.log") as worker:
        deployment.run("produce", "--no-wait", "-", given=b"\n".join(map(orjson.dumps, second_day())))
        ends = await event_ends(brokers, deployment.prefix, 3)
        await worker_applied(ends, brokers=brokers, prefix=deployment.prefix, seconds=60)
        assert worker.stop() == 0
    alerts_before = await alert_ids(deployment)
    deployment.settings["SEATMARK_CLICKHOUSE_DSN"] = backup
    outputs = [deployment.prefix + name for name in ("entitlement-activity", "entitlement-days", "overdraft-alerts")]
    await commit_ends(deployment.bootstrap, sink_group(deployment.prefix), outputs, 3)
    deployment.run("rebuild", "--yes")
    with deployment.parts():
        # What came after the backup is taken from entitlement-events again; this waits for it.
        deployment.produce(second_day()[:1])
        deployment.run("restate")
    assert deployment.levels() == dict.fromkeys(ENTITLEMENTS, 2)
    assert deployment.days() == DAYS_AFTER
    deployment.audit()
    assert await alert_ids(deployment) == alerts_before != set()


def copied(deployment: Deployment) -> str:
    """A copy of the database, as a backup has it."""
    database = f"ops_{uuid.uuid4().hex}"
    dsn = deployment.chdb_http.dsn(database)
    with connect(deployment.settings["SEATMARK_CLICKHOUSE_DSN"]) as client:
        old = client.database
        tables = client.query(
            "SELECT name, engine FROM system.tables WHERE database = currentDatabase() AND engine LIKE '%MergeTree'"
        ).result_rows
    migrate(dsn, "UTC")
    with connect(dsn) as client:
        for name, _ in tables:
            client.command(f"TRUNCATE TABLE `{name}`")
            client.command(f"ALTER TABLE `{name}` ATTACH PARTITION ALL FROM `{old}`.`{name}`")
    return dsn


async def alert_ids(deployment: Deployment) -> set[str]:
    records = await read_topic(deployment.bootstrap, f"{deployment.prefix}overdraft-alerts", 3)
    return {json.loads(record.value)["id"] for record in records}
