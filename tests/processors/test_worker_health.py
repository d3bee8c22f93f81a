"""Worker and sink as processes, hindered in every way: what they say of themselves, and when they end themselves."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiokafka import AIOKafkaProducer

from deploy.kafka.cluster import free_ports
from processors.brokers import Brokers
from processors.health import EXIT_STUCK
from schemas.days import Settled, encode_day
from seatmark.chdb_http import ChdbHttp
from seatmark.topics import ensure_topics
from tests.processors.test_worker import Deployment, assert_outputs, now_ms, some_events
from tests.worker_process import WorkerProcess, running, running_worker, settings_of
from views.migrate import migrate

# Under load everything takes longer; what is waited for ends the waiting.
SECONDS = 90


class Told:
    """What a process says on its port."""

    def __init__(self) -> None:
        self.port = free_ports(1)[0]
        self.settings = {"SEATMARK_METRICS_PORT": str(self.port)}

    async def get(self, path: str) -> httpx.Response | None:
        """None: nobody listens yet, or any more."""
        # Asked often: without the certificates, whose reading costs more than all else.
        async with httpx.AsyncClient(verify=False) as client:
            try:
                return await client.get(f"http://127.0.0.1:{self.port}{path}", timeout=30)
            except httpx.TransportError:
                return None

    async def until(self, process: WorkerProcess, fits: Callable[[int, dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait until status and checks of /readyz fit; the checks."""
        last = None
        try:
            async with asyncio.timeout(SECONDS):
                while True:
                    assert process.poll() is None, process.log.read_text()
                    answer = await self.get("/readyz")
                    if answer is not None:
                        last = answer.text
                        assert (answer.status_code, answer.json()["status"]) in ((200, "ready"), (503, "not ready"))
                        checks: dict[str, Any] = answer.json()["checks"]
                        assert (answer.status_code == 200) is all(check["ok"] for check in checks.values())
                        if fits(answer.status_code, checks):
                            return checks
                    await asyncio.sleep(0.05)
        except TimeoutError:
            pytest.fail(f"it last said {last}, and logged {process.log.read_text()}")

    async def ready(self, process: WorkerProcess) -> dict[str, Any]:
        return await self.until(process, lambda status, _: status == 200)

    async def alive(self) -> bool:
        answer = await self.get("/livez")
        return answer is not None and answer.status_code == 200


def fails(name: str) -> Callable[[int, dict[str, Any]], bool]:
    return lambda _, checks: name in checks and not checks[name]["ok"]


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
async def on_kafka(kafka: Any, tmp_path: Path, told: Told) -> Deployment:
    return await deployed(kafka, tmp_path, told)


@pytest.fixture
async def on_tansu(tansu: Any, tmp_path: Path, told: Told) -> Deployment:
    return await deployed(tansu, tmp_path, told)


async def deployed(broker: Any, tmp_path: Path, told: Told) -> Deployment:
    deployment = Deployment(broker, tmp_path)
    deployment.settings |= told.settings
    await deployment.create()
    return deployment


@pytest.mark.kafka
async def test_a_worker_that_recovers_is_alive_and_not_ready_and_then_it_is_ready(
    on_kafka: Deployment, told: Told, tmp_path: Path
) -> None:
    await on_kafka.send(some_events(100, start=now_ms() - 100 * 40_000))
    with running_worker(on_kafka.settings, on_kafka.log) as worker:
        await on_kafka.applied()
        assert worker.stop() == 0
    over = tmp_path / "over"
    settings = {**on_kafka.settings, "HINDERED_BY": "recovery", "HINDERED_UNTIL": str(over)}
    with running("worker", settings, on_kafka.log, module="tests.hindered") as worker:
        checks = await told.until(worker, lambda _, checks: "recovered" in checks and checks["brokers"]["ok"])
        assert not checks["recovered"]["ok"]
        assert checks["recovered"]["why"].startswith("reads the state, ")
        assert checks["assigned"]["ok"]
        assert await told.alive()
        over.touch()
        checks = await told.ready(worker)
        assert checks["assigned"] == {"ok": True, "why": "partitions [0, 1]"}
        assert checks["recovered"]["why"].endswith(" records of state were read")
        assert checks["progressing"] == {"ok": True, "why": "nothing to do"}
        metrics = await told.get("/metrics")
        assert metrics is not None
        assert "seatmark_events_processed_total" in metrics.text
        assert worker.stop() == 0


async def test_a_recovery_that_does_not_go_on_ends_the_worker(on_tansu: Deployment, tmp_path: Path) -> None:
    settings = {
        **on_tansu.settings, "SEATMARK_STUCK_AFTER": "5s", "HINDERED_BY": "recovery", "HINDERED_UNTIL": str(tmp_path / "never")
    }  # fmt: skip
    with running("worker", settings, on_tansu.log, module="tests.hindered") as worker:
        assert worker.wait(SECONDS) == EXIT_STUCK
    log = on_tansu.log.read_text()
    assert "seatmark: nothing goes on for longer than SEATMARK_STUCK_AFTER, and the brokers answer: recovery: 0 records" in log
    assert "in wait_for_the_file" in log


@pytest.mark.kafka
async def test_a_worker_that_hangs_ends_itself_shows_where_and_the_next_one_does_its_work(on_kafka: Deployment) -> None:
    await on_kafka.send(some_events(100, start=now_ms() - 100 * 40_000))
    for how, why, where in (
        ("blocked", "seatmark: the event loop has not turned for 5 s (SEATMARK_STUCK_AFTER)", "in blocks_the_loop"),
        (
            "waiting",
            "seatmark: nothing goes on for longer than SEATMARK_STUCK_AFTER, and the brokers answer: 1",
            "in never_ends",
        ),
    ):
        settings = {**on_kafka.settings, "SEATMARK_STUCK_AFTER": "5s", "HINDERED_BY": how}
        with running("worker", settings, on_kafka.log, module="tests.hindered") as worker:
            assert worker.wait(SECONDS) == EXIT_STUCK
        log = on_kafka.log.read_text()
        assert why in log
        assert where in log
    with running_worker(on_kafka.settings, on_kafka.log):
        await on_kafka.applied()
    await assert_outputs(on_kafka, on_kafka.expected())


@pytest.mark.kafka
async def test_a_worker_that_is_stopped_does_not_wait_without_end_for_a_chunk(on_kafka: Deployment, told: Told) -> None:
    await on_kafka.send(some_events(100, start=now_ms() - 100 * 40_000))
    with running("worker", {**on_kafka.settings, "HINDERED_BY": "waiting"}, on_kafka.log, module="tests.hindered") as worker:
        await told.ready(worker)
        assert worker.stop() == 1
    assert "what was under way did not end within 1 s of the worker's being stopped" in on_kafka.log.read_text()
    with running_worker(on_kafka.settings, on_kafka.log):
        await on_kafka.applied()
    await assert_outputs(on_kafka, on_kafka.expected())


@pytest.mark.kafka
async def test_brokers_that_do_not_answer_make_a_worker_unready_and_do_not_end_it(
    on_kafka: Deployment, kafka: Any, told: Told, tmp_path: Path
) -> None:
    """Frozen, then killed. One that starts meanwhile waits for them. When they are back, so are all."""
    start = now_ms() - 300 * 40_000
    await on_kafka.send(some_events(100, start=start))
    with running_worker(on_kafka.settings, on_kafka.log) as worker:
        await told.ready(worker)
        await on_kafka.applied()
        kafka.freeze(1)
        try:
            checks = await told.until(worker, fails("brokers"))
            assert checks["brokers"]["why"].startswith("do not answer")
            assert "progressing" not in checks
            assert await told.alive()
        finally:
            kafka.thaw(1)
        await told.ready(worker)
        kafka.kill(1)
        late = Told()
        with ExitStack() as down:
            down.callback(kafka.restart, 1)
            await told.until(worker, fails("brokers"))
            assert await told.alive()
            with running_worker(on_kafka.settings | late.settings, tmp_path / "late.log") as starting:
                checks = await late.until(starting, fails("brokers"))
                assert checks["started"] == {"ok": False, "why": "waits for the brokers"}
                assert await late.alive()
                down.close()
                await late.ready(starting)
                await told.ready(worker)
                await on_kafka.send(some_events(100, first=100, start=start))
                await on_kafka.applied()
    await assert_outputs(on_kafka, on_kafka.expected())


async def test_a_worker_that_waits_for_brokers_can_be_stopped(told: Told, tmp_path: Path) -> None:
    settings = settings_of("127.0.0.1:1", "", 1) | told.settings
    with running_worker(settings, tmp_path / "worker.log") as worker:
        await told.until(worker, fails("brokers"))
        assert worker.stop() == 0


@pytest.mark.kafka
async def test_a_worker_without_partitions_is_ready(kafka: Any, tmp_path: Path) -> None:
    """It stands by for the one that has them."""
    settings = settings_of(kafka.bootstrap, f"t{uuid.uuid4().hex[:8]}-", 1)
    await ensure_topics(Brokers(kafka.bootstrap), prefix=settings["SEATMARK_TOPIC_PREFIX"], partitions=1, replication=1)
    first, second = Told(), Told()
    with running_worker(settings | first.settings, tmp_path / "first.log") as one:
        await first.ready(one)
        with running_worker(settings | second.settings, tmp_path / "second.log") as other:
            checks = [await told.ready(worker) for told, worker in ((first, one), (second, other))]
            while sorted(check["assigned"]["why"] for check in checks) != [
                "no partitions: other workers have all of them", "partitions [0]"
            ]:  # fmt: skip
                await asyncio.sleep(0.1)
                checks = [await told.ready(worker) for told, worker in ((first, one), (second, other))]


def settled() -> bytes:
    """A record of entitlement-days."""
    return encode_day(Settled(entitlement="acme-cad", element="seats", position=1))


@pytest.mark.kafka
async def test_a_sink_without_clickhouse_is_alive_not_ready_and_goes_on_trying(
    on_kafka: Deployment, told: Told, tmp_path: Path
) -> None:
    [nobody] = free_ports(1)
    settings = {
        **on_kafka.settings, "SEATMARK_CLICKHOUSE_DSN": f"http://seatmark:geheim@127.0.0.1:{nobody}/db",
        "SEATMARK_STUCK_AFTER": "5s",
    }  # fmt: skip
    await write(on_kafka, settled())
    with running("sink", settings, tmp_path / "sink.log") as sink:
        checks = await told.until(sink, lambda _, checks: "clickhouse" in checks and "progressing" in checks)
        assert checks["clickhouse"]["why"].startswith(
            f"cannot be used: ClickHouse at http://127.0.0.1:{nobody} does not answer"
        )
        assert checks["brokers"]["ok"]
        # Between seven attempts lie 0.1, 0.2, 0.4, ... 3.2 s: it stands for longer than 5 s.
        while await metric(told, "seatmark_sink_insert_failures_total") < 7:
            assert sink.poll() is None
            await asyncio.sleep(0.1)
        assert await told.alive()
        checks = await told.until(sink, fails("clickhouse"))
        assert checks["progressing"]["ok"]
        assert "geheim" not in str(checks)
        assert sink.stop() == 0


async def write(deployment: Deployment, value: bytes) -> None:
    async with AIOKafkaProducer(bootstrap_servers=deployment.bootstrap, acks="all") as producer:
        await producer.send_and_wait(deployment.topics.days, value, partition=0)


async def metric(told: Told, name: str) -> float:
    answer = await told.get("/metrics")
    assert answer is not None
    return sum(float(line.split()[-1]) for line in answer.text.splitlines() if line.startswith(name))


@pytest.mark.kafka
async def test_a_sink_that_stores_is_ready_and_an_unreadable_record_ends_it_as_before(
    on_kafka: Deployment, told: Told, tmp_path: Path, chdb_http: ChdbHttp
) -> None:
    dsn = chdb_http.dsn(f"health_{uuid.uuid4().hex}")
    await asyncio.to_thread(migrate, dsn, "UTC")
    settings = {**on_kafka.settings, "SEATMARK_CLICKHOUSE_DSN": dsn, "SEATMARK_FLUSH_INTERVAL": "200ms"}
    with running("sink", settings, tmp_path / "sink.log") as sink:
        checks = await told.ready(sink)
        assert checks["assigned"]["ok"]
        assert checks["clickhouse"] == {"ok": True, "why": "answers; no insert yet"}
        await write(on_kafka, settled())
        checks = await told.until(sink, lambda _, checks: "the last insert was" in checks["clickhouse"]["why"])
        assert checks["clickhouse"]["ok"]
        await told.until(sink, lambda status, checks: status == 200 and checks["assigned"]["why"] == "6 partitions")
        await write(on_kafka, b"{")
        assert sink.wait(SECONDS) == 1
    assert "offset 1 cannot be read" in (tmp_path / "sink.log").read_text()
