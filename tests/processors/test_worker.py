"""The worker as a process, on the embedded broker and on a real Kafka: what it puts out equals the fold in this process."""

import asyncio
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition

from processors import agents, app
from processors.agents import ChunkFailed
from processors.app import WorkerConfig, run_worker
from processors.batching import ChunkConsumer
from processors.brokers import Brokers
from processors.domain.days import Calendar
from processors.domain.ledger import Ledger, position_of
from processors.outputs import alert_of
from processors.refusals import NO_LIMIT
from processors.topics import Topics, worker_group
from schemas.activity import decode_activity
from schemas.alerts import decode_alert, encode_alert
from schemas.days import DayRow, decode_day
from schemas.events import decode, format_time
from seatmark.cli import worker_config
from seatmark.produce import worker_applied
from seatmark.settings import load_settings
from seatmark.tansu import Tansu
from seatmark.topics import ensure_topics
from tests.brokers import admin_client, read_topic
from tests.worker_process import running_worker, settings_of

PARTITIONS = 2
HOUR = 3_600_000


class Deployment:
    """Topics of their own on a broker that tests share."""

    def __init__(self, broker: Any, tmp_path: Path) -> None:
        self.bootstrap: str = broker.bootstrap
        self.prefix = f"t{uuid.uuid4().hex[:8]}-"
        self.topics = Topics(self.prefix)
        self.settings = settings_of(self.bootstrap, self.prefix, PARTITIONS)
        if isinstance(broker, Tansu):
            self.settings["SEATMARK_FENCING"] = "off"
        self.log = tmp_path / "worker.log"
        self.sent: dict[int, list[tuple[int, bytes, bytes]]] = defaultdict(list)

    async def create(self) -> None:
        await ensure_topics(Brokers(self.bootstrap), prefix=self.prefix, partitions=PARTITIONS, replication=1)

    async def send(
        self, records: list[tuple[bytes | None, bytes | None]], headers: Any = None, partition: int | None = None
    ) -> None:
        """partition: the one to send to, whatever the key."""
        producer = AIOKafkaProducer(bootstrap_servers=self.bootstrap, acks="all", max_request_size=4 * 1024 * 1024)
        await producer.start()
        try:
            topic = self.topics.events
            futures = [await producer.send(topic, key=k, value=v, headers=headers, partition=partition) for k, v in records]
            await producer.flush()
            for (key, value), future in zip(records, futures, strict=True):
                metadata = await future
                self.sent[metadata.partition].append((metadata.offset, key or b"", value or b""))
        finally:
            await producer.stop()

    async def applied(self) -> None:
        """Wait until the worker has applied all that was sent."""
        ends = {partition: max(offset for offset, _, _ in sent) + 1 for partition, sent in self.sent.items()}
        await worker_applied(ends, brokers=Brokers(self.bootstrap), prefix=self.prefix, seconds=60)

    async def read(self, topic: str) -> list[ConsumerRecord]:
        """All records of a topic, in order within each partition."""
        return await read_topic(self.bootstrap, topic, PARTITIONS)

    def expected(self) -> "Expected":
        return Expected(self.sent)


class Expected:
    """What the fold in this process says of everything that was sent."""

    def __init__(self, sent: dict[int, list[tuple[int, bytes, bytes]]]) -> None:
        self.days: dict[tuple[str, str, str], DayRow] = {}
        self.alerts: list[Any] = []
        self.rows: set[tuple[str, str, int]] = set()
        for partition, records in sent.items():
            ledger = Ledger(Calendar("UTC"), HOUR)
            for offset, key, value in sorted(records):
                event = decode(value, key=key, appended_at=None)
                for outcome in ledger.apply(event, position_of(1, offset)):
                    self.rows.add((event.entitlement, outcome.element, offset))
                    if outcome.transition is not None:
                        self.alerts.append(decode_alert(encode_alert(alert_of(outcome.transition))))
                for row in ledger.take_changes().days:
                    self.days[row.entitlement, row.element, row.day] = row
            assert partition < PARTITIONS


@pytest.fixture
async def deployment(broker: Any, tmp_path: Path) -> Deployment:
    deployment = Deployment(broker, tmp_path)
    await deployment.create()
    return deployment


@pytest.fixture
async def on_kafka(kafka: Any, tmp_path: Path) -> Deployment:
    deployment = Deployment(kafka, tmp_path)
    await deployment.create()
    return deployment


def some_events(count: int, *, first: int = 0, start: int = 0) -> list[tuple[bytes, bytes]]:
    """Seats of 40 entitlements that come and go; each entitlement has terms that it crosses again and again."""
    events = []
    for number in range(first, first + count):
        entitlement = f"ent-{number % 40}"
        if number < 40:
            kind, data = (
                "entitlement.changed",
                {"elements": {"seats": {"limit": 3, "overdraft": {"type": "absolute", "value": 2}}}},
            )
        else:
            # Of every 8 rounds, 6 seats come and then leave.
            step = number // 40 % 12
            kind = "seat.activated" if step < 6 else "seat.deactivated"
            data = {"seat_id": f"seat-{step % 6}", "customer": "cus-1"}
        event = {"specversion": "1.0", "id": f"e{number}", "source": "/s", "type": kind, "subject": entitlement,
                 "time": format_time(start + number * 40_000), "data": data}  # fmt: skip
        events.append((entitlement.encode(), orjson.dumps(event)))
    return events


def now_ms() -> int:
    return int(time.time() * 1000)


async def assert_outputs(deployment: Deployment, expected: Expected) -> None:
    """Day rows, alerts and activity are what the fold says; repeats have the same ids and change nothing."""
    days: dict[tuple[str, str, str], DayRow] = {}
    for record in await deployment.read(deployment.topics.days):
        row = decode_day(record.value)
        assert isinstance(row, DayRow)
        known = days.get((row.entitlement, row.element, row.day))
        if known is None or known.position <= row.position:
            days[row.entitlement, row.element, row.day] = row
    assert days == expected.days

    alerts: dict[str, Any] = {}
    for record in await deployment.read(deployment.topics.alerts):
        alert = decode_alert(record.value)
        assert record.key == alert.subject.encode()
        assert alerts.setdefault(alert.id, alert) == alert
    by_entitlement: Callable[[Any], Any] = lambda alert: (alert.subject, alert.time)  # noqa: E731
    assert sorted(alerts.values(), key=by_entitlement) == sorted(expected.alerts, key=by_entitlement)

    rows: set[tuple[str, str, int]] = set()
    for record in await deployment.read(deployment.topics.activity):
        table = decode_activity(record.value)
        rows |= set(zip(*(table[name].to_pylist() for name in ("entitlement", "element", "offset")), strict=True))
    assert rows == expected.rows


async def test_outputs_equal_the_fold_and_the_worker_stops_cleanly(deployment: Deployment) -> None:
    await deployment.send(some_events(4000, start=now_ms() - 4000 * 40_000))
    with running_worker(deployment.settings, deployment.log) as worker:
        await deployment.applied()
        assert worker.stop() == 0, deployment.log.read_text()
    await assert_outputs(deployment, deployment.expected())


@pytest.mark.kafka
async def test_kill_in_the_middle_changes_nothing(on_kafka: Deployment) -> None:
    start = now_ms() - 12_000 * 40_000
    await on_kafka.send(some_events(3000, start=start))
    with running_worker(on_kafka.settings, on_kafka.log) as worker:
        await on_kafka.applied()
        # It is at work on these when it is killed: the kill follows the first sign of progress.
        sending = asyncio.ensure_future(on_kafka.send(some_events(9000, first=3000, start=start)))
        await _progress(on_kafka)
        worker.kill()
        await sending
    with running_worker(on_kafka.settings, on_kafka.log):
        await on_kafka.applied()
    await assert_outputs(on_kafka, on_kafka.expected())


async def _progress(deployment: Deployment) -> None:
    """Wait until the worker has written more state than it has now."""
    consumer = AIOKafkaConsumer(bootstrap_servers=deployment.bootstrap)
    await consumer.start()
    try:
        places = [TopicPartition(deployment.topics.changelog, partition) for partition in range(PARTITIONS)]
        before = await consumer.end_offsets(places)
        while await consumer.end_offsets(places) == before:
            await asyncio.sleep(0.01)
    finally:
        await consumer.stop()


async def test_bad_records_go_to_the_dead_letter_topic_and_disturb_nothing(deployment: Deployment) -> None:
    good = some_events(400, start=now_ms() - 400 * 40_000)
    event = orjson.loads(good[-1][1])

    def changed(**fields: Any) -> bytes:
        return orjson.dumps({**event, **fields})

    far_future = format_time(now_ms() + 3_600_000)
    bad = {
        "not_json": (b"k", b'{"specversion": "1.0", '),
        "not_cloudevent": (b"k", b'{"hello": "world"}'),
        "unknown_type": (b"ent-1", changed(type="seat.stolen", subject="ent-1")),
        "invalid_data": (b"ent-1", changed(subject="ent-1", data={"seat_id": 7})),
        "key_mismatch": (b"another", changed(subject="ent-1")),
        "too_large": (b"ent-1", changed(subject="ent-1", padding="x" * 2 * 1024 * 1024)),
        "time_in_future": (b"ent-1", changed(subject="ent-1", id="future", time=far_future)),
    }
    await deployment.send(good[:200])
    places = {}
    for reason, record in bad.items():
        before = {partition: len(sent) for partition, sent in deployment.sent.items()}
        await deployment.send([record], headers=[("trace", b"abc")])
        [partition] = [p for p, sent in deployment.sent.items() if len(sent) > before.get(p, 0)]
        places[reason] = (partition, deployment.sent[partition][-1][0])
    await deployment.send(good[200:])
    with running_worker(deployment.settings, deployment.log):
        await deployment.applied()
    dead = {}
    for record in await deployment.read(deployment.topics.dead_letters):
        headers = dict(record.headers)
        dead[headers["seatmark-reason"].decode()] = (record, headers)
    assert set(dead) == set(bad)
    for reason, (key, value) in bad.items():
        record, headers = dead[reason]
        assert (record.key, record.value) == (key, value)
        assert headers["trace"] == b"abc"
        assert headers["seatmark-source-topic"].decode() == deployment.topics.events
        partition, offset = places[reason]
        assert (int(headers["seatmark-source-partition"]), int(headers["seatmark-source-offset"])) == (partition, offset)
        assert headers["seatmark-detail"]
    for partition, offset in places.values():
        deployment.sent[partition] = [sent for sent in deployment.sent[partition] if sent[0] != offset]
    await assert_outputs(deployment, deployment.expected())


@pytest.mark.kafka
async def test_an_error_stops_the_worker_and_names_the_place(on_kafka: Deployment) -> None:
    await on_kafka.send(some_events(400, start=now_ms() - 400 * 40_000))
    # State that does not fit the settings is an error of ours, not of a record.
    with running_worker(on_kafka.settings, on_kafka.log):
        await on_kafka.applied()
    settings = {**on_kafka.settings, "SEATMARK_TIMEZONE": "Europe/Paris"}
    with running_worker(settings, on_kafka.log) as worker:
        assert worker.wait(60) == 1
    assert "SEATMARK_TIMEZONE is Europe/Paris" in on_kafka.log.read_text()


@pytest.mark.kafka
async def test_a_failing_chunk_ends_the_worker_with_its_place_and_is_not_committed(
    on_kafka: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    await on_kafka.send(some_events(100, start=now_ms() - 100 * 40_000))

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("the fold is broken")

    monkeypatch.setattr(agents, "fold_chunk", fail)
    config = WorkerConfig(
        brokers=Brokers(on_kafka.bootstrap), topic_prefix=on_kafka.prefix, partitions=PARTITIONS, fencing=False,
        timezone="UTC", late_after_ms=HOUR, lease_policy="release", lease_grace_ms=60_000, session_timeout_ms=6000,
        rebalance_timeout_ms=2000,
        dead_letter_limit=NO_LIMIT,
    )  # fmt: skip
    with pytest.raises(ChunkFailed) as failed:
        await asyncio.wait_for(run_worker(config, asyncio.Event()), 60)
    assert f"{on_kafka.topics.events}[" in str(failed.value)
    assert "offsets 0 to" in str(failed.value)
    assert "the fold is broken" in str(failed.value)
    monkeypatch.undo()
    # Nothing of it was taken for done: a worker without the defect does it all.
    with running_worker(on_kafka.settings, on_kafka.log):
        await on_kafka.applied()
    await assert_outputs(on_kafka, on_kafka.expected())


async def test_events_that_could_be_fetched_before_recovery_has_ended_are_applied(
    tansu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faust empties the agents' queues after it has sought the offsets: what waits there would be gone."""
    deployment = Deployment(tansu, tmp_path)
    await deployment.create()
    start = now_ms() - 200 * 40_000
    await deployment.send(some_events(100, start=start))
    with running_worker(deployment.settings, deployment.log) as worker:
        await deployment.applied()
        assert worker.stop() == 0
    await deployment.send(some_events(100, first=100, start=start))
    seek, output_producer = ChunkConsumer.seek_to_committed, app.output_producer
    recovered = asyncio.Event()

    async def seek_slowly(consumer: ChunkConsumer) -> Any:
        offsets = await seek(consumer)
        # Time in which something could be fetched that should not be.
        await asyncio.sleep(0.5)
        asyncio.get_running_loop().call_later(0.5, recovered.set)
        return offsets

    @asynccontextmanager
    async def output_producer_late(brokers: Brokers) -> AsyncIterator[Any]:
        await recovered.wait()
        async with output_producer(brokers) as producer:
            yield producer

    monkeypatch.setattr(ChunkConsumer, "seek_to_committed", seek_slowly)
    monkeypatch.setattr(app, "output_producer", output_producer_late)
    stop = asyncio.Event()
    running = asyncio.ensure_future(run_worker(worker_config(load_settings(deployment.settings)), stop))
    try:
        await deployment.applied()
    finally:
        stop.set()
        await running
    await assert_outputs(deployment, deployment.expected())


@pytest.mark.kafka
async def test_events_of_a_transaction_that_was_aborted_never_happened(kafka: Any, tmp_path: Path) -> None:
    """On Kafka only: a licence server may send in transactions, and take one back."""
    deployment = Deployment(kafka, tmp_path)
    await deployment.create()
    start = now_ms() - 400 * 40_000
    await deployment.send(some_events(100, start=start))
    with running_worker(deployment.settings, deployment.log):
        async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, transactional_id=deployment.prefix) as producer:
            await producer.begin_transaction()
            # Other events than those that come: were one of them applied, all after it would differ.
            for key, value in some_events(100, first=150, start=start):
                await producer.send_and_wait(deployment.topics.events, key=key, value=value)
            await deployment.applied()
            await producer.abort_transaction()
        await deployment.send(some_events(100, first=100, start=start))
        await deployment.applied()
    await assert_outputs(deployment, deployment.expected())


@pytest.mark.kafka
async def test_a_second_worker_shares_the_work_and_its_end_changes_nothing(kafka: Any, tmp_path: Path) -> None:
    """On Kafka only: the embedded broker serves one worker."""
    deployment = Deployment(kafka, tmp_path)
    await deployment.create()
    start = now_ms() - 9000 * 40_000
    await deployment.send(some_events(3000, start=start))
    with running_worker(deployment.settings, deployment.log):
        await deployment.applied()
        with running_worker(deployment.settings, tmp_path / "second.log") as second:
            await _members(deployment, 2)
            await deployment.send(some_events(3000, first=3000, start=start))
            await deployment.applied()
            second.kill()
        await deployment.send(some_events(3000, first=6000, start=start))
        await deployment.applied()
    await assert_outputs(deployment, deployment.expected())


async def _members(deployment: Deployment, count: int) -> None:
    """Wait until so many workers have their partitions."""
    async with admin_client(deployment.bootstrap) as admin:
        while True:
            [response] = await admin.describe_consumer_groups([worker_group(deployment.prefix)])
            [(_, _, state, _, _, members)] = response.groups
            if state == "Stable" and len(members) == count:
                return
            await asyncio.sleep(0.05)
            await asyncio.sleep(0.1)
