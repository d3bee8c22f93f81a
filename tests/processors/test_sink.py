"""The sink against a broker and ClickHouse: everything is stored, once, whatever happens in between."""

import asyncio
import subprocess
import sys
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import OperationalError
from prometheus_client import REGISTRY

from deploy.kafka.cluster import KafkaCluster
from processors import sink as sink_module
from processors.brokers import Brokers
from processors.health import Check
from processors.sink import ACTIVITY, ALERTS, DAYS, Sink, SinkStopped
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
from schemas.alerts import Alert, AlertData, Cause, encode_alert
from schemas.days import DayMark, DayRow, Settled, encode_day
from seatmark.chdb_http import ChdbHttp
from seatmark.tansu import Tansu
from seatmark.topics import ensure_topics
from views.migrate import migrate
from views.store import StoreUnavailable, connect

pytestmark = pytest.mark.both_ways

PARTITIONS = 2
MS = 1_790_000_000_000


def source_of(entitlement: str) -> str:
    """The source topic of an entitlement's events: the test's own, so that it has the test's own progress."""
    return f"entitlement-events of {uuid.uuid5(uuid.NAMESPACE_URL, entitlement)}"


def activity(
    entitlement: str, offsets: Iterable[int], partition: int = 0, epoch: int = 1, last_offset: int | None = None
) -> tuple[bytes, list[tuple[str, bytes]]]:
    """One record of entitlement-activity: a chunk with a row for each of these source offsets.

    last_offset: of the chunk, where its last events made no rows.
    Its incarnation is the test's own, or ClickHouse would take its rows for those of another test.
    """
    incarnation = f"incarnation of {uuid.uuid5(uuid.NAMESPACE_URL, entitlement)}"
    rows = [
        ActivityRow(
            entitlement=entitlement, element="seats", time=MS + offset, source="/s", id=f"{partition}-{offset}",
            type="seat.activated", customer=None, product=None, seat_id="wks-1", user=None, ip=None, host=None,
            credential=None, quantity=None, lease_expires_at=None, reason=None, incarnation=incarnation, epoch=epoch,
            partition=partition, offset=offset, appended_at=MS + offset, t=MS + offset, version=1, late=False, delta=1,
            level=offset + 1, limit=None, hard_limit=None, terms_known=False, state="within", event=b"{}",
        )
        for offset in offsets
    ]  # fmt: skip
    headers = {
        HEADER_INCARNATION: incarnation, HEADER_TOPIC: source_of(entitlement), HEADER_PARTITION: str(partition),
        HEADER_FIRST_OFFSET: str(rows[0].offset), HEADER_ROWS: str(len(rows)),
        HEADER_LAST_OFFSET: str(rows[-1].offset if last_offset is None else last_offset),
    }  # fmt: skip
    return encode_activity(rows), [(name, value.encode()) for name, value in headers.items()]


def day(entitlement: str, closing: int, position: int) -> DayRow:
    return DayRow(
        entitlement=entitlement, element="seats", day="2026-09-21", timezone="UTC", day_start=MS, day_end=MS + 86_400_000,
        customer=None, product=None, name=None, kind="pool", opening=0, closing=closing, min=0, max=closing, limit=None,
        hard_limit=None, terms_known=False, overdraft_ms=0, unit_ms=0, peak_overage=0, activations=0, deactivations=0,
        refreshes=0, denials=0, units_used=0, as_of=MS, closing_limit=None, closing_hard_limit=None,
        closing_terms_known=False, state="within", entered_at=None, peak=None, position=position,
    )  # fmt: skip


def alert(entitlement: str, alert_id: str) -> Alert:
    at = "2026-09-21T12:00:00.000Z"
    return Alert(
        id=alert_id, source="/seatmark/worker", type="overdraft.entered", subject=entitlement, time=at,
        data=AlertData(
            entitlement=entitlement, element="seats", from_state="within", to_state="overdraft", level=2, limit=1,
            hard_limit=3, overage=1, cause=Cause("/s", "1", "seat.activated"), at=at,
        ),
    )  # fmt: skip


class Deployment:
    """Topics of the test's own on a broker, and a ClickHouse database."""

    def __init__(self, bootstrap: str, dsn: str) -> None:
        self.bootstrap = bootstrap
        self.dsn = dsn
        self.prefix = f"t{uuid.uuid4().hex[:8]}-"
        self.ends: dict[tuple[str, int], int] = {}

    async def create(self) -> None:
        await ensure_topics(Brokers(self.bootstrap), prefix=self.prefix, partitions=PARTITIONS, replication=1)
        self._producer = AIOKafkaProducer(bootstrap_servers=self.bootstrap, acks="all")
        await self._producer.start()

    async def close(self) -> None:
        await self._producer.stop()

    async def send(self, topic: str, value: bytes | None, headers: Any = None, partition: int = 0) -> None:
        metadata = await self._producer.send_and_wait(
            self.prefix + topic, value, key=b"key", partition=partition, headers=headers
        )
        self.ends[metadata.topic, metadata.partition] = metadata.offset + 1

    async def send_activity(self, entitlement: str, offsets: Iterable[int], partition: int = 0, **chunk: Any) -> None:
        value, headers = activity(entitlement, offsets, partition, **chunk)
        await self.send(ACTIVITY, value, headers, partition)

    def sink(self, kind: type[Sink] = Sink, **changes: Any) -> Sink:
        settings: dict[str, Any] = {
            "brokers": Brokers(self.bootstrap), "topic_prefix": self.prefix, "client_factory": lambda: connect(self.dsn),
            "flush_seconds": 0.02, "alone": True,
        }  # fmt: skip
        return kind(**settings | changes)

    async def committed(self, topic: str, partition: int = 0) -> int | None:
        consumer = AIOKafkaConsumer(bootstrap_servers=self.bootstrap, group_id=self.prefix + "seatmark-sink")
        await consumer.start()
        try:
            offset: int | None = await consumer.committed(TopicPartition(self.prefix + topic, partition))
            return offset
        finally:
            await consumer.stop()


@pytest.fixture
async def deployment(tansu: Tansu, database: str) -> AsyncIterator[Deployment]:
    made = Deployment(tansu.bootstrap, database)
    await made.create()
    yield made
    await made.close()


@asynccontextmanager
async def running(sink: Sink) -> AsyncIterator[asyncio.Task[None]]:
    """The sink, running; told to stop at the end. Whatever it raises, this raises."""
    stop = asyncio.Event()
    task = asyncio.create_task(sink.run(stop))
    try:
        yield task
    finally:
        stop.set()
        await task


async def stored(sink: Sink, ends: dict[tuple[str, int], int]) -> None:
    async with asyncio.timeout(60):
        await sink.wait_until_stored(ends)


def count(client: Client, table: str, entitlement: str) -> int:
    """How many rows there are, repeats included."""
    query = f"SELECT count() FROM {table} WHERE entitlement = {{entitlement:String}}"
    return int(client.query(query, parameters={"entitlement": entitlement}).first_row[0])


def offsets_of(client: Client, entitlement: str) -> list[int]:
    query = "SELECT offset FROM activity FINAL WHERE entitlement = {entitlement:String} ORDER BY offset"
    return list(client.query(query, parameters={"entitlement": entitlement}).result_columns[0])


def progress_of(client: Client, entitlement: str) -> dict[int, tuple[int, int]]:
    """Epoch and offset up to which the raw rows of each source partition are stored, as the store says."""
    query = "SELECT partition, epoch, offset FROM progress FINAL WHERE topic = {topic:String}"
    rows = client.query(query, parameters={"topic": source_of(entitlement)}).result_rows
    return {partition: (epoch, offset) for partition, epoch, offset in rows}


async def test_everything_is_stored_and_then_committed(deployment: Deployment, client: Client, entitlement: str) -> None:
    await deployment.send_activity(entitlement, range(3), partition=0)
    await deployment.send_activity(entitlement, range(3, 5), partition=1)
    await deployment.send(DAYS, encode_day(day(entitlement, closing=1, position=1)))
    await deployment.send(DAYS, encode_day(day(entitlement, closing=2, position=2)))
    mark = DayMark(
        entitlement=entitlement, element="seats", first_day="2026-09-20", last_day="2026-09-21", timezone="UTC", position=2,
        since=1,
    )  # fmt: skip
    await deployment.send(DAYS, encode_day(mark))
    await deployment.send(DAYS, encode_day(Settled(entitlement=entitlement, element="seats", position=3)))
    await deployment.send(ALERTS, encode_alert(alert(entitlement, "alert-1")))
    sink = deployment.sink()
    async with running(sink):
        await stored(sink, deployment.ends)
        assert sink.stored.items() >= deployment.ends.items()
    assert offsets_of(client, entitlement) == [0, 1, 2, 3, 4]
    assert count(client, "alerts", entitlement) == count(client, "marks", entitlement) == 1
    assert count(client, "settled", entitlement) == 1
    assert progress_of(client, entitlement) == {0: (1, 2), 1: (1, 4)}
    levels = client.query(
        "SELECT level FROM live_levels WHERE entitlement = {entitlement:String}", parameters={"entitlement": entitlement}
    )
    assert levels.result_rows == [(2,)]
    assert await deployment.committed(ACTIVITY) == 1
    assert await deployment.committed(ACTIVITY, partition=1) == 1
    assert await deployment.committed(DAYS) == 4
    assert await deployment.committed(ALERTS) == 1


async def test_a_batch_is_inserted_in_order_and_says_how_far_each_source_partition_is(
    deployment: Deployment, client: Client, entitlement: str
) -> None:
    inserted: list[str] = []

    class Listening:
        """A client that notes into which tables it inserts."""

        def __init__(self) -> None:
            self._client = connect(deployment.dsn)
            self.close = self._client.close

        def insert_arrow(self, table: str, rows: Any, settings: Any) -> None:
            inserted.append(table)
            self._client.insert_arrow(table, rows, settings=settings)

    mark = DayMark(
        entitlement=entitlement, element="seats", first_day="2026-09-20", last_day="2026-09-21", timezone="UTC", position=2,
        since=1,
    )  # fmt: skip
    await deployment.send(ALERTS, encode_alert(alert(entitlement, "alert-1")))
    await deployment.send(DAYS, encode_day(Settled(entitlement=entitlement, element="seats", position=3)))
    await deployment.send(DAYS, encode_day(mark))
    await deployment.send(DAYS, encode_day(day(entitlement, closing=1, position=1)))
    await deployment.send_activity(entitlement, [0, 3], partition=0)
    # The last events of this chunk made no rows.
    await deployment.send_activity(entitlement, [4, 6], partition=0, last_offset=9)
    # Sent once more by a worker that started again; then the topic was made anew, and rows have small offsets.
    await deployment.send_activity(entitlement, [4], partition=0)
    await deployment.send_activity(entitlement, [70], partition=1)
    await deployment.send_activity(entitlement, [2], partition=1, epoch=2)
    sink = deployment.sink(client_factory=Listening, flush_seconds=3600, flush_rows=11)
    async with running(sink):
        await stored(sink, deployment.ends)
    assert inserted == ["activity", "progress", "days", "marks", "settled", "alerts"]
    assert progress_of(client, entitlement) == {0: (1, 9), 1: (2, 2)}


async def test_progress_is_never_ahead_of_the_raw_rows(deployment: Deployment, client: Client, entitlement: str) -> None:
    refuse = threading.Event()
    refused = asyncio.Event()
    loop = asyncio.get_running_loop()

    class RefusesRawRows:
        """A client that, while told to, fails every insert of raw rows, and no other."""

        def __init__(self) -> None:
            self._client = connect(deployment.dsn)
            self.close = self._client.close

        def insert_arrow(self, table: str, rows: Any, settings: Any) -> None:
            if table == "activity" and refuse.is_set():
                loop.call_soon_threadsafe(refused.set)
                raise OperationalError("connection reset")
            self._client.insert_arrow(table, rows, settings=settings)

    await deployment.send_activity(entitlement, [0, 1])
    sink = deployment.sink(client_factory=RefusesRawRows)
    async with running(sink):
        await stored(sink, deployment.ends)
        assert progress_of(client, entitlement) == {0: (1, 1)}
        refuse.set()
        await deployment.send_activity(entitlement, [2, 3])
        await refused.wait()
        assert progress_of(client, entitlement) == {0: (1, 1)}
        refuse.clear()
        await stored(sink, deployment.ends)
        assert progress_of(client, entitlement) == {0: (1, 3)}
    assert offsets_of(client, entitlement) == [0, 1, 2, 3]


async def test_progress_is_stored_before_offsets_are_committed(
    deployment: Deployment, client: Client, entitlement: str
) -> None:
    """And when they are not, storing the records again leaves it where it was."""
    await deployment.send_activity(entitlement, range(3), partition=0)
    await deployment.send_activity(entitlement, range(5), partition=1)
    killed = deployment.sink(Killed, flush_seconds=3600, flush_rows=8)
    task = asyncio.create_task(killed.run(asyncio.Event()))
    await killed.about_to_commit.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert progress_of(client, entitlement) == {0: (1, 2), 1: (1, 4)}
    assert await deployment.committed(ACTIVITY) is None

    sink = deployment.sink()
    async with running(sink):
        await stored(sink, deployment.ends)
    assert progress_of(client, entitlement) == {0: (1, 2), 1: (1, 4)}
    assert offsets_of(client, entitlement) == [0, 0, 1, 1, 2, 2, 3, 4]


async def test_nothing_sent_is_nothing_to_wait_for(deployment: Deployment) -> None:
    sink = deployment.sink()
    async with running(sink):
        await stored(sink, {(deployment.prefix + topic, 0): 0 for topic in (ACTIVITY, DAYS, ALERTS)})


async def test_a_new_sink_goes_on_where_the_last_one_stopped(deployment: Deployment, client: Client, entitlement: str) -> None:
    for start in range(0, 30, 3):
        await deployment.send_activity(entitlement, range(start, start + 3))
        if start == 15:
            first = deployment.sink()
            async with running(first):
                await stored(first, deployment.ends)
    second = deployment.sink()
    async with running(second):
        await stored(second, deployment.ends)
    assert offsets_of(client, entitlement) == list(range(30))
    assert count(client, "activity", entitlement) == 30, "no row was inserted twice"


class Killed(Sink):
    """A sink that is killed after it has stored a batch, before it commits."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.about_to_commit = asyncio.Event()

    async def _commit(self, consumer: Any, batch: Any) -> None:
        self.about_to_commit.set()
        await asyncio.Event().wait()


@pytest.mark.parametrize("flush_rows", [1, 4, 1000])
async def test_a_kill_between_insert_and_commit_repeats_rows_that_count_once(
    deployment: Deployment, client: Client, entitlement: str, flush_rows: int
) -> None:
    for start in range(0, 12, 2):
        await deployment.send_activity(entitlement, range(start, start + 2))
        await deployment.send(DAYS, encode_day(day(entitlement, closing=start, position=start)))
    await deployment.send(ALERTS, encode_alert(alert(entitlement, "alert-1")))
    killed = deployment.sink(Killed)
    task = asyncio.create_task(killed.run(asyncio.Event()))
    await killed.about_to_commit.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await deployment.committed(ACTIVITY) is None

    # The next one cuts its batches elsewhere.
    await deployment.send_activity(entitlement, range(12, 14))
    sink = deployment.sink(flush_rows=flush_rows, flush_seconds=0.2)
    async with running(sink):
        await stored(sink, deployment.ends)
    assert offsets_of(client, entitlement) == list(range(14))
    levels = client.query(
        "SELECT sum(delta), max(level) FROM activity FINAL WHERE entitlement = {e:String}", parameters={"e": entitlement}
    )
    assert levels.result_rows == [(14, 14)]
    days = client.query("SELECT closing FROM days FINAL WHERE entitlement = {e:String}", parameters={"e": entitlement})
    assert days.result_rows == [(10,)]
    alerts = client.query("SELECT id FROM alerts FINAL WHERE entitlement = {e:String}", parameters={"e": entitlement})
    assert alerts.result_rows == [("alert-1",)]


class Flaky:
    """A client whose first insert is stored, but its acknowledgement is lost."""

    def __init__(self, client: Client, fails: list[str]) -> None:
        self._client = client
        self._fails = fails

    def insert_arrow(self, table: str, rows: Any, settings: Any) -> None:
        self._client.insert_arrow(table, rows, settings=settings)
        if table in self._fails:
            self._fails.remove(table)
            raise OperationalError("connection reset")

    def close(self) -> None:
        self._client.close()


async def test_a_lost_acknowledgement_stores_nothing_twice(deployment: Deployment, client: Client, entitlement: str) -> None:
    for start in range(0, 12, 2):
        await deployment.send_activity(entitlement, range(start, start + 2))
    await deployment.send(ALERTS, encode_alert(alert(entitlement, "alert-1")))
    await deployment.send(DAYS, encode_day(day(entitlement, closing=1, position=1)))
    fails = ["activity", "days", "alerts"]
    sink = deployment.sink(client_factory=lambda: Flaky(connect(deployment.dsn), fails))
    before = REGISTRY.get_sample_value("seatmark_sink_insert_failures_total") or 0
    async with running(sink):
        await stored(sink, deployment.ends)
    assert fails == []
    assert REGISTRY.get_sample_value("seatmark_sink_insert_failures_total") == before + 3
    # Counted without FINAL: ClickHouse has dropped the repeats by their token or content.
    assert count(client, "activity", entitlement) == 12
    assert count(client, "alerts", entitlement) == count(client, "days", entitlement) == 1


async def test_while_clickhouse_is_away_the_sink_waits_and_commits_nothing(
    deployment: Deployment, client: Client, entitlement: str
) -> None:
    back = threading.Event()
    tried = asyncio.Event()
    loop = asyncio.get_running_loop()

    def open_client() -> Client:
        if not back.is_set():
            loop.call_soon_threadsafe(tried.set)
            raise StoreUnavailable("ClickHouse at http://127.0.0.1:1 does not answer")
        return connect(deployment.dsn)

    await deployment.send_activity(entitlement, range(3))
    sink = deployment.sink(client_factory=open_client)
    async with running(sink):
        await tried.wait()
        assert await deployment.committed(ACTIVITY) is None
        # It is said, and is no reason to end the process.
        while (seen := sink.observe()).checks["clickhouse"].ok or not seen.waits:
            await asyncio.sleep(0.01)
        why = "cannot be used: ClickHouse at http://127.0.0.1:1 does not answer"
        assert seen.checks["clickhouse"] == Check(False, why)
        back.set()
        await stored(sink, deployment.ends)
        while not (seen := sink.observe()).next_offsets or seen.waits:
            await asyncio.sleep(0.01)
        assert seen.checks["clickhouse"].ok
        assert seen.next_offsets.items() >= {
            (TopicPartition(topic, partition), end) for (topic, partition), end in deployment.ends.items()
        }
    assert offsets_of(client, entitlement) == [0, 1, 2]


async def test_a_sink_can_be_stopped_while_clickhouse_is_away(deployment: Deployment, entitlement: str) -> None:
    tried = asyncio.Event()
    loop = asyncio.get_running_loop()

    def open_client() -> Client:
        loop.call_soon_threadsafe(tried.set)
        raise StoreUnavailable("ClickHouse at http://127.0.0.1:1 does not answer")

    await deployment.send_activity(entitlement, range(3))
    async with running(deployment.sink(client_factory=open_client)):
        await tried.wait()
    assert await deployment.committed(ACTIVITY) is None


@pytest.mark.parametrize("silent", ["committed", "commit", "stop"])
async def test_a_sink_can_be_stopped_while_kafka_is_away(
    silent: str, deployment: Deployment, entitlement: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = asyncio.Event()

    async def for_ever(*_: Any) -> None:
        asked.set()
        await asyncio.Event().wait()

    monkeypatch.setattr("processors.brokers.STOP_SECONDS", 1.0)
    await deployment.send_activity(entitlement, range(3))
    with monkeypatch.context() as patched:
        patched.setattr(f"processors.sink.AIOKafkaConsumer.{silent}", for_ever)
        sink = deployment.sink()
        async with running(sink):
            if silent == "stop":
                await stored(sink, deployment.ends)
            else:
                await asked.wait()
    # Of what was only asked, nothing is left to wait for.
    told = {"committed": [], "commit": ["the commit of offsets"], "stop": ["the sink's leaving of its group"]}[silent]
    said = [record.getMessage() for record in caplog.records if record.name == "processors.brokers"]
    assert len(said) == len(told)
    assert all(line.startswith(what) for line, what in zip(said, told, strict=True))


async def test_what_was_gathered_is_stored_when_the_sink_is_stopped(
    deployment: Deployment, client: Client, entitlement: str
) -> None:
    class Gathering(Sink):
        """Tells when it has polled something."""

        polled = asyncio.Event()

        async def _poll(self, *arguments: Any) -> Any:
            records = list(await super()._poll(*arguments))
            if records:
                self.polled.set()
            return records

    await deployment.send_activity(entitlement, range(3))
    sink = deployment.sink(Gathering, flush_seconds=3600)
    async with running(sink):
        await Gathering.polled.wait()
    assert offsets_of(client, entitlement) == [0, 1, 2]
    assert await deployment.committed(ACTIVITY) == 1


@pytest.mark.parametrize(
    ("topic", "value", "headers"),
    [
        (ACTIVITY, b"not Arrow", None),
        (ACTIVITY, activity("e", [1])[0], []),
        (DAYS, b"{}", None),
        (DAYS, None, None),
        (ALERTS, b"[]", None),
    ],
)
async def test_an_unreadable_record_stops_the_sink_at_it(
    deployment: Deployment, client: Client, entitlement: str, topic: str, value: bytes | None, headers: Any
) -> None:
    good = {
        ACTIVITY: activity(entitlement, [0]),
        DAYS: (encode_day(day(entitlement, closing=1, position=1)), None),
        ALERTS: (encode_alert(alert(entitlement, "alert-1")), None),
    }[topic]
    await deployment.send(topic, *good, partition=1)
    await deployment.send(topic, value, headers, partition=1)
    await deployment.send(topic, *good, partition=1)
    for _ in range(2):
        with pytest.raises(SinkStopped, match=rf"{deployment.prefix}{topic}\[1\] offset 1 cannot be read"):
            await deployment.sink().run(asyncio.Event())
        assert await deployment.committed(topic, partition=1) == 1, "what came before it is stored"
    table = {ACTIVITY: "activity", DAYS: "days", ALERTS: "alerts"}[topic]
    assert count(client, table, entitlement) == 1


async def test_a_store_without_tables_stops_the_sink(
    deployment: Deployment, new_database: Callable[[], str], client: Client, entitlement: str
) -> None:
    dsn = new_database()
    migrate(dsn, "UTC")
    admin = connect(dsn)
    admin.command("DROP TABLE alerts")
    admin.close()
    await deployment.send(ALERTS, encode_alert(alert(entitlement, "alert-1")))
    with pytest.raises(SinkStopped, match=r"overdraft-alerts\[0\] up to offset 0 cannot be stored in the table alerts"):
        await deployment.sink(client_factory=lambda: connect(dsn)).run(asyncio.Event())
    assert await deployment.committed(ALERTS) is None


async def test_missing_topics_are_named(deployment: Deployment) -> None:
    with pytest.raises(SinkStopped, match="there is no topic elsewhere-entitlement-activity"):
        await deployment.sink(topic_prefix="elsewhere-").run(asyncio.Event())


async def test_topics_that_are_made_while_the_sink_starts_are_found(
    tansu: Tansu, database: str, client: Client, entitlement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker tells of them when it is asked, but what the consumer read before does not have them."""
    deployment = Deployment(tansu.bootstrap, database)

    class Consumer(AIOKafkaConsumer):  # type: ignore[misc]
        async def topics(self) -> set[str]:
            await deployment.create()
            assert self.partitions_for_topic(deployment.prefix + ACTIVITY) is None
            found: set[str] = await super().topics()
            return found

    monkeypatch.setattr(sink_module, "AIOKafkaConsumer", Consumer)
    sink = deployment.sink()
    async with running(sink) as task:
        async with asyncio.timeout(30):
            while not (sink.partitions or task.done()):
                await asyncio.sleep(0.02)
        for partition in range(PARTITIONS):
            await deployment.send_activity(entitlement, [partition], partition)
        await stored(sink, deployment.ends)
    await deployment.close()
    assert sink.partitions == frozenset(range(PARTITIONS))
    assert offsets_of(client, entitlement) == [0, 1]


async def test_a_sink_process_that_is_killed_loses_and_repeats_nothing(
    tansu: Tansu, chdb_http: ChdbHttp, entitlement: str
) -> None:
    dsn = chdb_http.dsn(f"test_{uuid.uuid4().hex}")
    migrate(dsn, "UTC")
    deployment = Deployment(tansu.bootstrap, dsn)
    await deployment.create()
    for start in range(0, 3000, 10):
        await deployment.send_activity(entitlement, range(start, start + 10), partition=start // 10 % PARTITIONS)
    client = connect(dsn)
    seen = 0
    for _ in range(3):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.sink_process", tansu.bootstrap, deployment.prefix, dsn, stdin=subprocess.DEVNULL
        )
        try:
            # Wherever it is then: between an insert and its commit, or in the middle of an insert.
            async with asyncio.timeout(60):
                while (now := count(client, "activity", entitlement)) < min(seen + 200, 3000):
                    assert process.returncode is None
                    await asyncio.sleep(0.01)
            seen = now
        finally:
            process.kill()
            await process.wait()
    sink = deployment.sink()
    async with running(sink):
        await stored(sink, deployment.ends)
    await deployment.close()
    assert offsets_of(client, entitlement) == list(range(3000))
    client.close()


@pytest.mark.kafka
async def test_two_sinks_share_the_partitions(kafka: KafkaCluster, database: str, client: Client, entitlement: str) -> None:
    deployment = Deployment(kafka.bootstrap, database)
    await deployment.create()
    first, second = deployment.sink(alone=False), deployment.sink(alone=False)
    async with running(first):
        await deployment.send_activity(entitlement, range(3), partition=0)
        await stored(first, deployment.ends)
        async with running(second):
            offset = 3
            # The second joins while records come; from then on each stores those of its partitions.
            async with asyncio.timeout(60):
                while not second.stored:
                    for partition in range(PARTITIONS):
                        await deployment.send_activity(entitlement, [offset], partition)
                        offset += 1
                    await asyncio.sleep(0.05)
                while not all(
                    max(sink.stored.get(place, 0) for sink in (first, second)) >= end for place, end in deployment.ends.items()
                ):
                    await asyncio.sleep(0.05)
        # The second has left: the first takes over.
        for partition in range(PARTITIONS):
            await deployment.send_activity(entitlement, [offset + partition], partition)
        await stored(first, deployment.ends)
    await deployment.close()
    assert offsets_of(client, entitlement) == list(range(offset + PARTITIONS))
