"""What `make faults` does, in small: every failpoint is reached, and kills at some of them change nothing.

A seed that is always the same, and a fresh one, which is printed; side by side on one Kafka, to save time.
"""

import asyncio
import random
from pathlib import Path

import pytest

from deploy.kafka.cluster import free_ports
from tests.brokers import running_kafka
from tests.faults.failpoints import FAILPOINTS, RESTATING, install
from tests.faults.scenarios import play
from tests.faults.stack import open_stack


def test_every_failpoint_is_a_function_of_the_product() -> None:
    """Renamed, it would be a failpoint that is never reached."""
    named = FAILPOINTS | RESTATING
    assert [name for name, failpoint in named.items() if not callable(getattr(failpoint.owner, failpoint.function))] == []
    with pytest.raises(KeyError):
        install("nowhere:1")


@pytest.mark.kafka
async def test_every_failpoint_is_reached_and_kills_change_nothing(tmp_path: Path) -> None:
    fresh = random.randrange(2**31)
    print(f"seeds 1, {fresh}")
    with running_kafka(1, tmp_path / "kafka", proxies=free_ports(1)) as kafka:
        async with open_stack(kafka, tmp_path) as stack:
            runs = await asyncio.gather(
                play("every_failpoint_noted", 1, stack, tmp_path, events=6000),
                play("few_failpoints", fresh, stack, tmp_path, events=6000),
            )
    for run, kills in zip(runs, (2, 3), strict=True):
        print(run)
        assert run.failed == [], "\n".join(run.failed)
        assert run.kills.total() == kills
        assert run.check.acknowledged >= 200
        assert run.check.elements >= 60
        assert run.check.days > 0
