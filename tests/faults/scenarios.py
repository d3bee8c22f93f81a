"""What is done to a deployment while events come in: each scenario is a function over a seed.

`make faults SCENARIO=failpoints SEED=7` plays one; without, all. After each, everything is compared with
the independent model (checker.py).
"""

import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from seatmark.produce import event_ends
from tests.faults.checker import Check, checked
from tests.faults.failpoints import FAILPOINTS
from tests.faults.stack import PARTITIONS, Deployment, Stack

Scenario = Callable[[Deployment, random.Random], Awaitable[None]]


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

    def __str__(self) -> str:
        ended = f", ended by itself: {dict(self.ended_by_itself)}" if self.ended_by_itself else ""
        result = "all right" if not self.failed else f"{len(self.failed)} FINDINGS"
        return (
            f"{self.scenario} seed {self.seed}: {self.kills.total()} kills, {self.rebalances} rebalances, "
            f"{self.check.acknowledged} events, {self.check.alerts} alerts ({self.check.repeated_alerts} repeated), "
            f"{self.check.days} days{ended}, {self.seconds:.0f} s: {result}"
        )


async def play(name: str, seed: int, stack: Stack, directory: Path, *, events: int = 6000, entitlements: int = 40) -> Run:
    """Play a scenario on a deployment of its own, let it catch up, and compare."""
    run = Run(name, seed)
    started = time.monotonic()
    deployment = Deployment(stack, seed, directory / f"{name}-{seed}", events, entitlements)
    try:
        await deployment.create()
        await SCENARIOS[name](deployment, random.Random(seed))
        await deployment.feed.stop()
        stack.heal()
        run.check = await settled_and_checked(deployment)
        run.failed = run.check.examples
    except Exception as error:
        run.failed = [f"{type(error).__name__}: {error}"]
    finally:
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
    while ends != (now := await event_ends(deployment.stack.kafka.bootstrap, deployment.prefix, PARTITIONS)):
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
    deployment.feed.start()
    for role, of_role in plans.items():
        for plan in of_role:
            deployment.add(role, plan)  # type: ignore[arg-type]
    await deployment.failpoints_reached()


def _times(name: str, chance: random.Random) -> int:
    # A changelog is read in a chunk or two, and partitions move a few times in a run.
    return chance.randint(1, 2 if name in ("in-rebalance", "in-recovery", "after-recovery") else 5)


SCENARIOS: dict[str, Scenario] = {"failpoints": failpoints}
