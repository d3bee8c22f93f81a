"""What is done to a deployment while events come in: each scenario is a function over a seed.

`make faults SCENARIO=failpoints SEED=7` plays one; without, all. After each, everything is compared with
the independent model (checker.py).
"""

import asyncio
import random
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle, pairwise
from pathlib import Path

from aiokafka import ConsumerRecord
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from processors.brokers import Brokers
from seatmark.produce import event_ends
from tests.brokers import admin_client, read_topic
from tests.faults.checker import Check, checked
from tests.faults.failpoints import FAILPOINTS, RESTATING
from tests.faults.stack import PARTITIONS, WAIT_SECONDS, Deployment, Stack

Scenario = Callable[[Deployment, random.Random], Awaitable[None]]


class NotHere(Exception):
    """A scenario cannot be played on this machine; the message says why."""


@dataclass
class Run:
    """What came of one scenario with one seed. failed: why it did not come to its end, or what differs; empty: all is right."""

    scenario: str
    seed: int
    seconds: float = 0.0
    kills: Counter[str] = field(default_factory=Counter)
    ended_by_itself: Counter[str] = field(default_factory=Counter)
    rebalances: int = 0
    check: Check = field(default_factory=Check)
    failed: list[str] = field(default_factory=list)
    not_here: str = ""

    def __str__(self) -> str:
        ended = f", ended by itself: {dict(self.ended_by_itself)}" if self.ended_by_itself else ""
        if self.not_here:
            return f"{self.scenario}: not played: {self.not_here}"
        result = "all right" if not self.failed else f"{len(self.failed)} FINDINGS"
        return (
            f"{self.scenario} seed {self.seed}: {self.kills.total()} kills, {self.rebalances} rebalances, "
            f"{self.check.acknowledged} events, {self.check.alerts} alerts ({self.check.repeated_alerts} repeated), "
            f"{self.check.days} days{ended}, {self.seconds:.0f} s: {result}"
        )


async def play(name: str, seed: int, stack: Stack, directory: Path, *, events: int = 15_000, entitlements: int = 60) -> Run:
    """Play a scenario on a deployment of its own, let it catch up, and compare."""
    run = Run(name, seed)
    started = time.monotonic()
    deployment = Deployment(stack, seed, directory / f"{name}-{seed}", events, entitlements)
    try:
        await deployment.create()
        await ALL[name](deployment, random.Random(seed))
        await deployment.feed.stop()
        run.check = await settled_and_checked(deployment)
        run.failed = run.check.examples
    except NotHere as reason:
        run.not_here = str(reason)
    except Exception as error:
        run.failed = ["".join(traceback.format_exception(error))]
    finally:
        if name not in SIDE_BY_SIDE:
            stack.heal()
        await deployment.stop()
    run.seconds = time.monotonic() - started
    run.kills, run.ended_by_itself = deployment.kills, deployment.ended_by_itself
    # The first generation is the start.
    run.rebalances = max(0, len(deployment.generations) - 1)
    return run


async def settled_and_checked(deployment: Deployment) -> Check:
    """Compare once all is applied and stored; again if a lease ended meanwhile, and so an event came."""
    ends: dict[int, int] = {}
    while ends != (now := await event_ends(Brokers(deployment.stack.kafka.bootstrap), deployment.prefix, PARTITIONS)):
        ends = now
        await deployment.caught_up()
        check = await checked(deployment)
    return check


async def failpoints(deployment: Deployment, chance: random.Random) -> None:
    """Two workers and a sink are killed at every failpoint, under load."""
    plans: dict[str, list[list[str]]] = {"worker": [[], []], "sink": [[]]}
    names = list(FAILPOINTS)
    chance.shuffle(names)
    for number, name in enumerate(names):
        of_role = plans[FAILPOINTS[name].role]
        of_role[number % len(of_role)].append(f"{name}:{_times(name, chance)}")
    await deployment.feed.send(200)
    # Slowly: on a busy machine it takes minutes to start so many processes.
    deployment.feed.start(records=5)
    for role, of_role in plans.items():
        for plan in of_role:
            deployment.add(role, plan)  # type: ignore[arg-type]
    moving = asyncio.create_task(_move_partitions(deployment))
    try:
        await deployment.failpoints_reached()
    finally:
        moving.cancel()


async def _move_partitions(deployment: Deployment) -> None:
    """Kill a worker where no failpoint is reached for a while: some are reached only when partitions move."""
    workers = cycle([part for part in deployment.parts if part.name.startswith("worker")])
    before: list[list[str]] = []
    while True:
        await asyncio.sleep(20)
        left = [part.next_failpoints for part in deployment.parts]
        if left == before:
            next(workers).kill()
        before = left


def _times(name: str, chance: random.Random) -> int:
    # A changelog is read in a chunk or two, partitions move a few times in a run, and leases end seldom.
    seldom = ("in-rebalance", "after-take-over", "in-recovery", "after-recovery", "in-lease-send", "after-lease-send")
    return chance.randint(1, 2 if name in seldom else 5)


async def few_failpoints(deployment: Deployment, chance: random.Random) -> None:
    """As failpoints, at three of them: for the tests of every day."""
    await deployment.feed.send(200)
    deployment.feed.start(records=6)
    for role in ("worker", "worker", "sink"):
        name = chance.choice([name for name in FAILPOINTS if FAILPOINTS[name].role == role])
        deployment.add(role, [f"{name}:{_times(name, chance)}"])  # type: ignore[arg-type]
    await deployment.failpoints_reached()


async def every_failpoint_noted(deployment: Deployment, chance: random.Random) -> None:
    """A worker and a sink say which failpoints they get to; then they are killed."""
    await deployment.feed.send(200)
    deployment.feed.start(records=6)
    for role in ("worker", "sink"):
        names = [name for name in FAILPOINTS if FAILPOINTS[name].role == role]
        part = deployment.add(role, [",".join(f"{name}:1:note" for name in names)])  # type: ignore[arg-type]
        for name in names:
            await deployment.told(part, f"FAULT reached {name}:1:note\n")
    for part in deployment.parts:
        part.plan.clear()
        part.kill()


async def restating(deployment: Deployment, chance: random.Random) -> None:
    """The sink restates all the time, and is killed around what it stores and sends for that; so is the worker."""
    deployment.restate_often()
    await deployment.feed.send(200)
    deployment.feed.start(records=5)
    worker = deployment.add("worker")
    plan = [f"{name}:{chance.randint(1, 6)}" for name in RESTATING]
    chance.shuffle(plan)
    sink = deployment.add("sink", plan)
    kills = chance.randint(1, 3)
    while sink.failing:
        await asyncio.sleep(chance.uniform(1, 6))
        if kills:
            kills -= 1
            worker.kill()
        assert deployment.feed.left, f"the events ran out, and not reached are {sink.next_failpoints}"


async def random_kills(deployment: Deployment, chance: random.Random) -> None:
    """Two workers and a sink are killed at any moment, under load."""
    await begin(deployment, workers=2)
    for _ in range(12):
        await asyncio.sleep(chance.uniform(0.2, 5))
        chance.choice(deployment.parts).kill()


async def begin(deployment: Deployment, workers: int = 1) -> None:
    """Workers and a sink run, and events come in."""
    await deployment.feed.send(200)
    deployment.feed.start()
    for _ in range(workers):
        deployment.add("worker")
    deployment.add("sink")
    await deployment.workers_settled(workers)


async def broker_restart(deployment: Deployment, chance: random.Random) -> None:
    """The only broker is killed under load, and started again with its data; twice."""
    await begin(deployment, workers=2)
    for _ in range(2):
        await asyncio.sleep(chance.uniform(0.5, 3))
        await asyncio.to_thread(deployment.stack.kafka.kill, 1)
        await asyncio.sleep(chance.uniform(0, 8))
        await asyncio.to_thread(deployment.stack.kafka.restart, 1)
    await asyncio.sleep(3)


async def broker_hangs(deployment: Deployment, chance: random.Random) -> None:
    """The broker is frozen: for longer than a session, and for longer than a producer waits for an answer (30 s)."""
    await begin(deployment, workers=2)
    for seconds in chance.sample([9, 35], 2):
        await asyncio.sleep(chance.uniform(0.5, 3))
        deployment.stack.kafka.freeze(1)
        await asyncio.sleep(seconds)
        deployment.stack.kafka.thaw(1)
    await asyncio.sleep(3)


async def network(deployment: Deployment, chance: random.Random) -> None:
    """Between worker, sink and broker the network is slow, then cut, then swallows everything: longer than a session, and than
    a producer waits for an answer. Events come in all the time."""
    await begin(deployment, workers=2)
    [proxy] = deployment.stack.brokers
    proxy.delay = 0.1
    await asyncio.sleep(chance.uniform(2, 4))
    proxy.heal()
    for _ in range(5):
        proxy.cut()
        await asyncio.sleep(chance.uniform(0.1, 2))
    for seconds in chance.sample([9, 35], 2):
        proxy.blackhole()
        await asyncio.sleep(seconds)
        proxy.heal()
        await asyncio.sleep(chance.uniform(0, 4))
    proxy.refuse()
    await asyncio.sleep(chance.uniform(1, 8))
    proxy.heal()
    await asyncio.sleep(3)


async def scale(deployment: Deployment, chance: random.Random) -> None:
    """1, 2, 4, 1, 3, 1 workers under load; those that go are stopped or killed."""
    await begin(deployment)
    for wanted in (2, 4, 1, 3, 1):
        workers = [part for part in deployment.parts if part.name.startswith("worker") and part.running]
        for _ in range(wanted - len(workers)):
            deployment.add("worker")
        for part in chance.sample(workers, max(0, len(workers) - wanted)):
            await part.stop(kill=chance.random() < 0.5)
        await deployment.workers_settled(wanted)
        await asyncio.sleep(chance.uniform(0, 3))


async def zombie(deployment: Deployment, chance: random.Random) -> None:
    """A worker is frozen with a chunk half done, its state not committed, for longer than its session. Another one takes over
    and goes on. The first wakes and goes on, too. Then a third reads the state back; what the first wrote must not count.
    """
    name = chance.choice(["in-outputs", "after-outputs", "in-state"])
    frozen = deployment.add("worker", [f"{name}:{chance.randint(2, 8)}:freeze"])
    deployment.add("sink")
    await deployment.feed.send(200)
    deployment.feed.start()
    await frozen.frozen()
    successor = deployment.add("worker")
    await deployment.workers_settled(1)
    # It has applied the frozen chunk, and more.
    await deployment.applied()
    quiet = chance.random() < 0.5
    if quiet:
        await deployment.feed.stop()
        await deployment.applied()
    frozen.thaw()
    # Whether it goes on by itself or ends and is started again.
    await deployment.workers_settled(2)
    await asyncio.gather(frozen.stop(kill=True), successor.stop(kill=True))
    deployment.add("worker")
    if quiet:
        deployment.feed.start()
    await asyncio.sleep(chance.uniform(3, 6))


async def clickhouse_down(deployment: Deployment, chance: random.Random) -> None:
    """ClickHouse is killed and started again, frozen, cannot be reached, and swallows everything; in any order."""
    await begin(deployment)
    stack = deployment.stack

    async def killed() -> None:
        await stack.clickhouse.kill()
        await asyncio.sleep(chance.uniform(0, 6))
        await stack.clickhouse.start()

    async def frozen() -> None:
        stack.clickhouse.freeze()
        await asyncio.sleep(chance.uniform(2, 12))
        stack.clickhouse.thaw()

    async def refused() -> None:
        stack.store.refuse()
        await asyncio.sleep(chance.uniform(2, 6))
        stack.store.heal()

    async def swallowed() -> None:
        stack.store.blackhole()
        await asyncio.sleep(chance.uniform(2, 12))
        stack.store.cut()
        stack.store.heal()

    faults = [killed, frozen, refused, swallowed, killed]
    chance.shuffle(faults)
    for fault in faults:
        await asyncio.sleep(chance.uniform(0.5, 2))
        await fault()


async def insert_answers_lost(deployment: Deployment, chance: random.Random) -> None:
    """ClickHouse does what it is asked, and the answer does not come: the sink asks again. It is killed at times, too."""
    await begin(deployment)
    sink = deployment.parts[-1]
    for _ in range(15):
        await asyncio.sleep(chance.uniform(0.2, 1))
        deployment.stack.store.cut_answers(chance.randint(1, 4))
        if chance.random() < 0.2:
            sink.kill()


async def poison(deployment: Deployment, chance: random.Random) -> None:
    """A record that is no event at each position of a chunk; chunks of nothing else; and a kill with one of them under way."""
    size, partition = 8, chance.randrange(PARTITIONS)
    worker = deployment.add("worker")
    deployment.add("sink")
    await deployment.feed.send(200)
    await deployment.workers_settled(1)
    await deployment.applied()
    poisoned = [*([position] for position in range(size)), [0, size - 1], list(range(size)), list(range(size))]
    for positions in poisoned:
        # Frozen, it cannot fetch a part of it.
        worker.freeze()
        await deployment.feed.send_together(partition, size, positions)
        worker.thaw()
        if chance.random() < 0.2:
            worker.kill()
        await deployment.applied()
    deployment.feed.start()
    await asyncio.sleep(2)


async def compacted_changelog(deployment: Deployment, chance: random.Random) -> None:
    """The broker compacts the changelog under load; workers that are killed read back what is left of it."""
    await begin(deployment, workers=2)
    topic, bootstrap = deployment.topics.changelog, deployment.stack.kafka.bootstrap
    settings = {
        "cleanup.policy": "compact", "max.message.bytes": "67108864", "segment.ms": "1000", "min.cleanable.dirty.ratio": "0.01",
        "max.compaction.lag.ms": "1000",
    }  # fmt: skip
    async with admin_client(bootstrap) as admin:
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, settings)])
    async with asyncio.timeout(WAIT_SECONDS):
        while not _has_gaps(await read_topic(bootstrap, topic, PARTITIONS)):
            await asyncio.sleep(1)
    for _ in range(3):
        chance.choice(deployment.parts[:2]).kill()
        await asyncio.sleep(chance.uniform(1, 5))


def _has_gaps(records: list[ConsumerRecord]) -> bool:
    return any(
        before.partition == after.partition and after.offset > before.offset + 1
        for before, after in pairwise(sorted(records, key=lambda record: (record.partition, record.offset)))
    )


async def disk_full(deployment: Deployment, chance: random.Random) -> None:
    """The disk of ClickHouse has no room left, and is given some again; twice."""
    disk = deployment.stack.disk
    if disk is None:
        raise NotHere("a small disk for ClickHouse can only be made by root (mount -t tmpfs)")
    await begin(deployment)
    sink = deployment.parts[-1]
    for attempt in range(1, 3):
        await asyncio.sleep(chance.uniform(0.5, 2))
        ballast = disk / "ballast"
        await asyncio.to_thread(_fill, ballast)
        await deployment.told(sink, "NOT_ENOUGH_SPACE", times=attempt)
        await asyncio.sleep(chance.uniform(0, 3))
        ballast.unlink()
        await deployment.applied()
        await asyncio.sleep(3)


def _fill(ballast: Path) -> None:
    """Write until the disk is full."""
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        for size in (1 << 20, 1 << 12):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))


async def leader_loss(deployment: Deployment, chance: random.Random) -> None:
    """Three brokers, each record on all of them: one after the other is killed under load, and started again."""
    await begin(deployment, workers=2)
    brokers = [1, 2, 3]
    chance.shuffle(brokers)
    for broker in brokers:
        await asyncio.sleep(chance.uniform(0.5, 3))
        await asyncio.to_thread(deployment.stack.kafka.kill, broker)
        await asyncio.sleep(chance.uniform(3, 8))
        await asyncio.to_thread(deployment.stack.kafka.restart, broker)
        await deployment.replicated()
    await asyncio.sleep(3)


SCENARIOS: dict[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (
        failpoints, restating, random_kills, scale, zombie, poison, insert_answers_lost, clickhouse_down, broker_restart,
        broker_hangs, network, compacted_changelog, disk_full,
    )
}  # fmt: skip
# These are done to the deployment only, so that several can be played on a stack at the same time.
SIDE_BY_SIDE = {
    "failpoints",
    "few_failpoints",
    "every_failpoint_noted",
    "random_kills",
    "scale",
    "zombie",
    "poison",
    "compacted_changelog",
}
ON_THREE_BROKERS: dict[str, Scenario] = {"leader_loss": leader_loss}
ALL = SCENARIOS | ON_THREE_BROKERS | {scenario.__name__: scenario for scenario in (few_failpoints, every_failpoint_noted)}
