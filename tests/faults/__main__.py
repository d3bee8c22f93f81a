"""`make faults`: plays scenarios with seeds on a real Kafka, says what came of each, and at the end the totals."""

import argparse
import asyncio
import logging
import random
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

from deploy.kafka.cluster import KafkaCluster, free_ports
from tests.faults.scenarios import ALL, ON_THREE_BROKERS, SCENARIOS, SIDE_BY_SIDE, Run, play
from tests.faults.stack import Stack, open_stack


async def main() -> int:
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--scenario", choices=list(ALL), action="append", help="default: all")
    parser.add_argument("--seed", type=int, help="of the first run, the next ones count up; default: a fresh one")
    parser.add_argument("--count", type=int, default=1, help="runs of each scenario (default: %(default)s)")
    parser.add_argument("--keep", type=Path, help="directory for the logs of the processes; default: one that is deleted")
    parser.add_argument("--at-once", type=int, default=1, help="runs side by side, where that can be (default: %(default)s)")
    options = parser.parse_args()
    # SIGTERM is to end it as SIGINT does: brokers must not outlive us.
    running = asyncio.current_task()
    assert running is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    # That brokers cannot be reached is what is wanted here.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    seed = options.seed if options.seed is not None else random.randrange(2**31)
    runs: list[Run] = []
    with tempfile.TemporaryDirectory(prefix="seatmark-faults-") as scratch:
        directory = options.keep or Path(scratch)
        asked = options.scenario or [*SCENARIOS, *ON_THREE_BROKERS]
        for brokers in (1, 3):
            names = [name for name in asked if (name in ON_THREE_BROKERS) == (brokers == 3)]
            if not names:
                continue
            with KafkaCluster(brokers, directory / "kafka", proxies=free_ports(brokers)) as kafka:
                async with open_stack(kafka, directory / f"on-{brokers}", small_disk="disk_full" in names) as stack:

                    async def one(name: str, seed: int, stack: Stack = stack) -> None:
                        run = await play(name, seed, stack, directory)
                        runs.append(run)
                        print(run, *(f"    {finding}" for finding in run.failed), sep="\n", flush=True)

                    for name in names:
                        at_once = options.at_once if name in SIDE_BY_SIDE else 1
                        for some in batched(range(seed, seed + options.count), at_once):
                            await asyncio.gather(*(one(name, number) for number in some))
    print_totals(runs)
    return 1 if any(run.failed for run in runs) else 0


def batched(seeds: range, size: int) -> list[range]:
    return [seeds[start : start + size] for start in range(0, len(seeds), size)]


def print_totals(runs: list[Run]) -> None:
    kills: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    for run in runs:
        kills += run.kills
        wrong += run.check.wrong
    print(
        f"\n{len(runs)} runs: {kills.total()} kills, {sum(run.rebalances for run in runs)} rebalances, "
        f"{sum(run.check.acknowledged for run in runs)} acknowledged events, {sum(run.check.alerts for run in runs)} alerts, "
        f"{sum(run.check.days for run in runs)} days"
    )
    print("kills:", ", ".join(f"{count} {name}" for name, count in sorted(kills.items())) or "none")
    print("differences:", ", ".join(f"{count} {what}" for what, count in sorted(wrong.items())) or "none")
    print("runs that did not come to their end:", sum(bool(run.failed) and not run.check.wrong for run in runs))


if __name__ == "__main__":
    # A shell makes background commands ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(asyncio.run(main()))
