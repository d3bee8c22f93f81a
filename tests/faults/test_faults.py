"""What `make faults` does, in small: every failpoint is reached, and kills at some of them change nothing.

Two seeds that are always the same, and a fresh one, which is printed; side by side on one Kafka, to save time.
"""

import asyncio
import random
from pathlib import Path

import pytest

from deploy.kafka.cluster import free_ports
from tests.brokers import running_kafka
from tests.faults.failpoints import FAILPOINTS, install
from tests.faults.scenarios import Run, play
from tests.faults.stack import Deployment, Stack, open_stack


def test_every_failpoint_is_a_function_of_the_product() -> None:
    """Renamed, it would be a failpoint that is never reached."""
    assert [name for name, failpoint in FAILPOINTS.items() if not callable(getattr(failpoint.owner, failpoint.function))] == []
    with pytest.raises(KeyError):
        install("nowhere:1")


@pytest.mark.kafka
async def test_every_failpoint_is_reached_and_kills_change_nothing(tmp_path: Path) -> None:
    seeds = [1, 2, random.randrange(2**31)]
    print(f"seeds {seeds}")
    with running_kafka(1, tmp_path / "kafka", proxies=free_ports(1)) as kafka:
        async with open_stack(kafka, tmp_path) as stack:
            kills = (play("few_failpoints", seed, stack, tmp_path, events=6000) for seed in seeds)
            not_reached, *runs = await asyncio.gather(failpoints_not_reached(stack, tmp_path), *kills)
    assert not_reached == set()
    for run in runs:
        print(run)
        assert run.failed == [], "\n".join(run.failed)
        assert run.kills.total() == 3
        assert_something_was_compared(run)


def assert_something_was_compared(run: Run) -> None:
    assert run.check.acknowledged >= 200
    assert run.check.elements >= 60
    assert run.check.days > 0


async def failpoints_not_reached(stack: Stack, directory: Path) -> set[str]:
    """Run a worker and a sink that only say which failpoints they get to."""
    deployment = Deployment(stack, 0, directory / "reached", events=3000, entitlements=20)
    try:
        await deployment.create()
        deployment.feed.start(records=6)
        for role in ("worker", "sink"):
            names = [name for name, failpoint in FAILPOINTS.items() if failpoint.role == role]
            part = deployment.add(role, [",".join(f"{name}:1:note" for name in names)])  # type: ignore[arg-type]
            for name in names:
                await deployment.told(part, f"FAULT reached {name}:1:note\n")
    except TimeoutError:
        pass
    finally:
        await deployment.stop()
    told = "".join(part.log.read_text() for part in deployment.parts)
    return {name for name in FAILPOINTS if f"FAULT reached {name}:1:note\n" not in told}
