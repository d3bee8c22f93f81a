"""What the faults are done to: Kafka, ClickHouse and proxies in front; and a deployment of worker and sink processes."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Literal

import orjson
import psutil
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from deploy.kafka.cluster import KafkaCluster, free_ports
from processors.brokers import Brokers
from processors.partitions import partition_of
from processors.topics import Topics, worker_group
from seatmark.produce import event_ends, group_is_stable, group_members, wait_until_stored, worker_applied
from seatmark.settings import Settings, load_settings
from seatmark.topics import ensure_topics
from tests.brokers import admin_client
from tests.faults.clickhouse import ClickHouse
from tests.faults.failpoints import GENERATION, REACHED
from tests.faults.proxy import Proxy
from tests.vendor import HOUR, arrivals
from tests.worker_process import settings_of
from views.migrate import migrate

PARTITIONS = 4
# Generous: they end on events, and machines of tests are slow.
WAIT_SECONDS = 180.0
# A part that ends by itself is started again after this, as by whatever looks after processes; so often, and no more.
_RESTART_SECONDS = 1.0
_MOST_ENDS = 60
_SMALL_DISK = "512m"


class Stack:
    """Brokers and ClickHouse, for many deployments one after the other. Worker and sink reach them through the proxies."""

    def __init__(
        self, kafka: KafkaCluster, brokers: list[Proxy], clickhouse: ClickHouse, store: Proxy, disk: Path | None
    ) -> None:
        """disk: where ClickHouse's data is, if that is a disk of its own and small."""
        self.kafka = kafka
        self.brokers = brokers
        self.clickhouse = clickhouse
        self.store = store
        self.disk = disk

    def heal(self) -> None:
        """Have all proxies forward everything, and brokers that were frozen go on."""
        for proxy in (self.store, *self.brokers):
            proxy.heal()
        for number in range(1, len(self.brokers) + 1):
            self.kafka.thaw(number)


@asynccontextmanager
async def open_stack(kafka: KafkaCluster, directory: Path, *, small_disk: bool = False) -> AsyncIterator[Stack]:
    """A stack on running brokers that were made with ports for proxies.

    directory: for ClickHouse's data. small_disk: mount a disk of its own there, if we are root.
    """
    clickhouse = ClickHouse(directory / "clickhouse", free_ports(1)[0])
    async with AsyncExitStack() as open_ones:
        disk = open_ones.enter_context(_mounted(directory)) if small_disk and os.geteuid() == 0 else None
        open_ones.push_async_callback(clickhouse.kill)
        await clickhouse.start()
        store = await open_ones.enter_async_context(Proxy(clickhouse.port))
        brokers = [
            await open_ones.enter_async_context(Proxy(behind, port))
            for behind, port in zip(kafka.behind_proxies, kafka.proxies, strict=True)
        ]
        yield Stack(kafka, brokers, clickhouse, store, disk)


@contextmanager
def _mounted(directory: Path) -> Iterator[Path | None]:
    """A file system of its own on a directory, in memory; None where that is not allowed."""
    directory.mkdir(parents=True, exist_ok=True)
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={_SMALL_DISK}", "seatmark-faults", str(directory)]
    if subprocess.run(mounting, stderr=subprocess.DEVNULL, check=False).returncode:
        yield None
        return
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


class Part:
    """A worker or a sink, kept running: when its process ends, however it does, the next one is started.

    plan: failpoints of the processes to come, one each; then they run without.
    """

    def __init__(self, deployment: "Deployment", role: Literal["worker", "sink"], number: int) -> None:
        self.name = f"{role}-{number}"
        self.plan: deque[str] = deque()
        self.log = deployment.directory / f"{self.name}.log"
        self._deployment = deployment
        self._role = role
        self._process: asyncio.subprocess.Process | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._wanted = True
        self._failpoint: str | None = None
        self._kills_by_us = 0
        self._read = 0

    def start(self) -> None:
        """Start it, and keep it running."""
        self._wanted = True
        self._keeping = asyncio.create_task(self._keep_running())

    @property
    def failing(self) -> bool:
        """Whether a failpoint is still to be reached."""
        return bool(self.next_failpoints)

    @property
    def next_failpoints(self) -> list[str]:
        """Those still to be reached."""
        return [*([self._failpoint] if self._failpoint is not None else []), *self.plan]

    @property
    def running(self) -> bool:
        """Whether it is kept running."""
        return self._wanted

    async def _keep_running(self) -> None:
        while self._wanted:
            self._failpoint = self.plan.popleft() if self.plan else None
            with self.log.open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "tests.faults.process", self._role),
                    *(("--failpoint", self._failpoint) if self._failpoint is not None else ()),
                    env={**os.environ, **self._deployment.environment},
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            if self._note_end(await self._process.wait()):
                await asyncio.sleep(_RESTART_SECONDS)

    def _note_end(self, code: int) -> bool:
        """Count it. True: it ended by itself."""
        counts, lines = self._deployment, self._new_lines()
        failpoint, self._failpoint = self._failpoint, None
        if failpoint is not None and REACHED + failpoint.encode() in lines:
            counts.kills[failpoint.split(":")[0]] += 1
            return False
        if failpoint is not None:
            self.plan.append(failpoint)
        if self._kills_by_us:
            self._kills_by_us -= 1
            counts.kills["at random"] += 1
            return False
        if self._wanted:
            counts.ended_by_itself[f"{self._role} with code {code}"] += 1
            self._wanted = counts.ended_by_itself.total() < _MOST_ENDS
        return True

    def _new_lines(self) -> list[bytes]:
        with self.log.open("rb") as log:
            log.seek(self._read)
            lines = log.read().splitlines()
            self._read = log.tell()
        generations = (line.removeprefix(GENERATION) for line in lines if line.startswith(GENERATION))
        self._deployment.generations.update(generations)
        return lines

    def kill(self) -> None:
        """kill -9, wherever it is. The next one is started at once."""
        if self._process is not None and self._process.returncode is None:
            self._kills_by_us += 1
            self._process.kill()

    def freeze(self) -> None:
        """SIGSTOP, wherever it is."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a process go on that a failpoint, or `freeze`, has stopped."""
        assert self._process is not None
        self._new_lines()
        self._failpoint = None
        self._process.send_signal(signal.SIGCONT)

    async def frozen(self) -> None:
        """Wait until a failpoint has frozen it."""
        async with asyncio.timeout(WAIT_SECONDS):
            while self._process is None or psutil.Process(self._process.pid).status() != psutil.STATUS_STOPPED:
                await asyncio.sleep(0.05)

    async def stop(self, *, kill: bool = False) -> None:
        """End it for good: SIGTERM, or kill -9; the latter counts as a kill."""
        self._wanted = False
        if self._process is not None and self._process.returncode is None:
            if kill:
                self.kill()
            else:
                self._process.terminate()
        if self._keeping is not None:
            try:
                await asyncio.wait_for(asyncio.shield(self._keeping), WAIT_SECONDS)
            except TimeoutError:
                assert self._process is not None
                self._process.kill()
                await self._keeping
                raise AssertionError(f"{self.name} did not end on SIGTERM") from None


class Feed:
    """Sends a made-up vendor's events, with records among them that are no events; remembers what the brokers acknowledged.

    acknowledged: (partition, offset): value. poison: the values that are no events.
    """

    def __init__(self, brokers: str, topic: str, seed: int, events: int, entitlements: int) -> None:
        self.acknowledged: dict[tuple[int, int], bytes] = {}
        self.poison: set[bytes] = set()
        self.failures = 0
        self._brokers = brokers
        self._topic = topic
        self._chance = random.Random(seed)
        until = int(time.time() * 1000) - HOUR
        documents = arrivals(seed, events=events, entitlements=entitlements, until_ms=until)
        self._coming = deque(
            self._poisoned(document) if self._chance.random() < 0.01 else (document["subject"].encode(), orjson.dumps(document))
            for document in documents
        )
        self._running: asyncio.Task[None] | None = None

    def _poisoned(self, document: dict[str, Any]) -> tuple[bytes, bytes]:
        """The key of an event, and a value that is not one: another each time."""
        number = len(self.poison)
        wrong: list[dict[str, Any]] = [
            {"type": "seat.stolen"},
            {"data": {"seat_id": number}},
            {"time": "yesterday"},
            {"subject": "another"},
            {"specversion": "0.3"},
        ]
        values = [b'{"id": "%d", ' % number, b"\xff%d" % number, b"%d" % number]
        values += [orjson.dumps(document | {"id": f"poison-{number}"} | fields) for fields in wrong]
        value = self._chance.choice(values)
        self.poison.add(value)
        return document["subject"].encode(), value

    @property
    def left(self) -> int:
        """How many records are still to be sent."""
        return len(self._coming)

    def start(self, records: int = 12, pause: float = 0.2) -> None:
        """Send so many records at a time, and pause for so many seconds after each time, until `stop` or all are sent."""
        self._running = asyncio.create_task(self._go_on(records, pause))

    async def stop(self) -> None:
        """Send no more; done when all that was sent is acknowledged."""
        running, self._running = self._running, None
        if running is not None:
            self._stopping = True
            await running

    async def _go_on(self, records: int, pause: float) -> None:
        self._stopping = False
        async with self._producer() as producer:
            while self._coming and not self._stopping:
                await self._send(producer, records)
                await asyncio.sleep(pause)

    async def send(self, records: int) -> None:
        """Send so many records, at once."""
        async with self._producer() as producer:
            await self._send(producer, records)

    async def send_together(self, partition: int, records: int, poisoned: Iterable[int]) -> tuple[int, int]:
        """Send so many records of one partition as one batch, those at the positions `poisoned` being no events.

        Returns the offsets of the first and the last.
        """
        ours = [item for item in self._coming if partition_of(item[0].decode(), PARTITIONS) == partition][:records]
        for item in ours:
            self._coming.remove(item)
        for position in poisoned:
            ours[position] = self._poisoned({"subject": ours[position][0].decode(), "type": "seat.denied"})
        async with self._producer() as producer:
            batch = producer.create_batch()
            for key, value in ours:
                batch.append(key=key, value=value, timestamp=None)
            first = (await (await producer.send_batch(batch, self._topic, partition=partition))).offset
        for number, (_, value) in enumerate(ours):
            self.acknowledged[partition, first + number] = value
        return first, first + records - 1

    async def _send(self, producer: AIOKafkaProducer, records: int) -> None:
        """As a licence server does: what was not acknowledged is sent again, until it is."""
        waiting = [self._coming.popleft() for _ in range(min(records, len(self._coming)))]
        while waiting:
            sent = await asyncio.gather(
                *(producer.send_and_wait(self._topic, key=key, value=value) for key, value in waiting), return_exceptions=True
            )
            failed = []
            for (key, value), result in zip(waiting, sent, strict=True):
                if isinstance(result, KafkaError):
                    failed.append((key, value))
                elif isinstance(result, BaseException):
                    raise result
                else:
                    self.acknowledged[result.partition, result.offset] = value
            self.failures += len(failed)
            waiting = failed

    @asynccontextmanager
    async def _producer(self) -> AsyncIterator[AIOKafkaProducer]:
        async with AIOKafkaProducer(bootstrap_servers=self._brokers, acks="all", request_timeout_ms=10_000) as producer:
            yield producer


class Deployment:
    """Topics and a database of its own, the parts that run on them, and the events that are fed to them.

    kills: by failpoint. generations: of the workers' consumer group. ended_by_itself: processes that nobody killed.
    """

    def __init__(self, stack: Stack, seed: int, directory: Path, events: int, entitlements: int) -> None:
        self.stack = stack
        self.directory = directory
        self.prefix = f"faults-{uuid.uuid4().hex[:8]}-"
        self.topics = Topics(self.prefix)
        self.database = self.prefix.replace("-", "_") + "db"
        self.environment = settings_of(stack.kafka.proxied_bootstrap, self.prefix, PARTITIONS) | {
            "SEATMARK_CLICKHOUSE_DSN": stack.clickhouse.dsn(self.database, stack.store.port),
            # With less, workers on a busy machine are not ready in time when partitions move, and fence each other for long.
            "SEATMARK_REBALANCE_TIMEOUT": "6s",
            "SEATMARK_FLUSH_INTERVAL": "200ms",
            # Not before the end: what is live is compared with the model, which knows no corrections.
            "SEATMARK_RESTATE_INTERVAL": "1h",
        }
        self.restates = False
        self.kills: Counter[str] = Counter()
        self.generations: set[bytes] = set()
        self.ended_by_itself: Counter[str] = Counter()
        self.parts: list[Part] = []
        self.feed = Feed(stack.kafka.bootstrap, self.topics.events, seed, events, entitlements)

    @property
    def settings(self) -> Settings:
        """For the checks, which come without proxies."""
        direct = {
            "SEATMARK_BROKERS": self.stack.kafka.bootstrap,
            "SEATMARK_CLICKHOUSE_DSN": self.stack.clickhouse.dsn(self.database),
        }
        return load_settings(self.environment | direct)

    def restate_often(self) -> None:
        """Have sinks that are started from now on restate all the time. What is compared at the end are the exact numbers."""
        self.environment["SEATMARK_RESTATE_INTERVAL"] = "1s"
        self.restates = True

    async def create(self) -> None:
        """Make topics, each record on every broker, and tables."""
        self.directory.mkdir(parents=True, exist_ok=True)
        replication = len(self.stack.brokers)
        await ensure_topics(
            Brokers(self.stack.kafka.bootstrap), prefix=self.prefix, partitions=PARTITIONS, replication=replication
        )
        await asyncio.to_thread(migrate, self.stack.clickhouse.dsn(self.database), "UTC")

    def add(self, role: Literal["worker", "sink"], plan: Iterable[str] = ()) -> Part:
        """Start one more worker or sink. plan: failpoints for its processes, one after the other."""
        part = Part(self, role, sum(part.name.startswith(role) for part in self.parts) + 1)
        part.plan.extend(plan)
        self.parts.append(part)
        part.start()
        return part

    async def failpoints_reached(self) -> None:
        """Wait until every part has reached all failpoints of its plan."""
        left, deadline = -1, 0.0
        while any(part.failing for part in self.parts):
            if (now := sum(len(part.plan) for part in self.parts)) != left:
                left, deadline = now, time.monotonic() + WAIT_SECONDS
            failing = {part.name: part.next_failpoints for part in self.parts if part.failing}
            assert time.monotonic() < deadline, f"not reached in {WAIT_SECONDS:.0f} s: {failing}"
            assert self.feed.left, f"the events ran out, and not reached are {failing}"
            await asyncio.sleep(0.1)

    async def workers_settled(self, count: int) -> None:
        """Wait until so many workers have their partitions."""
        bootstrap, group = self.stack.kafka.bootstrap, worker_group(self.prefix)
        async with asyncio.timeout(WAIT_SECONDS):
            while not (
                await group_is_stable(Brokers(bootstrap), group) and await group_members(Brokers(bootstrap), group) == count
            ):
                await asyncio.sleep(0.2)

    async def applied(self) -> None:
        """Wait until the workers have applied what is on the topic now."""
        bootstrap = self.stack.kafka.bootstrap
        ends = await event_ends(Brokers(bootstrap), self.prefix, PARTITIONS)
        await worker_applied(ends, brokers=Brokers(bootstrap), prefix=self.prefix, seconds=WAIT_SECONDS)

    async def replicated(self) -> None:
        """Wait until each record of our topics is on every broker."""
        async with admin_client(self.stack.kafka.bootstrap) as admin, asyncio.timeout(WAIT_SECONDS):
            while True:
                topics = await admin.describe_topics([self.topics.events, self.topics.changelog, self.topics.activity])
                in_sync = [len(partition["isr"]) for topic in topics for partition in topic["partitions"]]
                if in_sync and min(in_sync) == len(self.stack.brokers):
                    return
                await asyncio.sleep(0.2)

    async def told(self, part: Part, words: str, times: int = 1) -> None:
        """Wait until a part's log has these words so many times."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not part.log.exists() or part.log.read_text().count(words) < times:
            assert time.monotonic() < deadline, f"{part.name} has not said {words!r} in {WAIT_SECONDS:.0f} s"
            await asyncio.sleep(0.1)

    async def caught_up(self) -> None:
        """Wait until all that is on the topic is applied, and what came of it stored; also what the workers add meanwhile."""
        bootstrap = self.stack.kafka.bootstrap
        ends: dict[int, int] = {}
        while ends != (now := await event_ends(Brokers(bootstrap), self.prefix, PARTITIONS)):
            ends = now
            await wait_until_stored(
                ends, brokers=Brokers(bootstrap), prefix=self.prefix, timeout=WAIT_SECONDS, on_progress=lambda left: None
            )

    async def stop(self) -> None:
        """Stop all parts."""
        await self.feed.stop()
        await asyncio.gather(*(part.stop() for part in self.parts))
