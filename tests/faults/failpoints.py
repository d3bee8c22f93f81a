"""Failpoints: named places in worker and sink at which a process is killed, or frozen, when it gets there the n-th time.

The product knows nothing of them. A process that is to fail wraps the methods that are named here, then runs the usual command
(tests/faults/process.py).
"""

import asyncio
import functools
import inspect
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from aiokafka import AIOKafkaProducer

from processors import agents, expiry, sink, state
from processors.batching import ChunkConsumer
from processors.changelog import FencedChangelog
from views.raw_log import RawLog

# What a process says on its standard output, one line each.
REACHED, GENERATION = b"FAULT reached ", b"FAULT generation "


@dataclass(frozen=True)
class Failpoint:
    """Where a process fails: before a function of an owner is called, or after it, or once what it sent is acknowledged."""

    role: Literal["worker", "sink"]
    when: Literal["before", "after", "acknowledged"]
    owner: Any
    function: str


FAILPOINTS = {
    # Of a chunk, in this order. `in-outputs`: one topic's outputs are with the broker, the next ones are not. `in-state`: the
    # state is sent, in a transaction that is not committed.
    "after-fold": Failpoint("worker", "after", agents, "fold_chunk"),
    "in-outputs": Failpoint("worker", "acknowledged", agents.ChunkProcessor, "_send"),
    "after-outputs": Failpoint("worker", "before", FencedChangelog, "write"),
    "in-state": Failpoint("worker", "before", AIOKafkaProducer, "commit_transaction"),
    "after-state": Failpoint("worker", "after", FencedChangelog, "write"),
    "after-ack-before-commit": Failpoint("worker", "before", ChunkConsumer, "_commit"),
    "after-commit": Failpoint("worker", "after", ChunkConsumer, "_commit"),
    # Of an assignment, in this order.
    "in-rebalance": Failpoint("worker", "after", state.PartitionStates, "drop"),
    "after-take-over": Failpoint("worker", "after", FencedChangelog, "take_over"),
    "in-recovery": Failpoint("worker", "after", state.PartitionStates, "restore"),
    "after-recovery": Failpoint("worker", "after", state.PartitionStates, "restored"),
    # Of the events that close holds whose lease ran out.
    "in-lease-send": Failpoint("worker", "before", expiry.KafkaEventLog, "append"),
    "after-lease-send": Failpoint("worker", "after", expiry.KafkaEventLog, "append"),
    # Of a sink's batch: between any two of its inserts, and around the commit of its offsets.
    "sink-before-insert": Failpoint("sink", "before", sink._Writer, "_write"),
    "sink-after-insert": Failpoint("sink", "after", sink._Writer, "_write"),
    "sink-before-commit": Failpoint("sink", "before", sink.Sink, "_commit"),
    "sink-after-commit": Failpoint("sink", "after", sink.Sink, "_commit"),
}
# Of a sink that restates while events come in: around each insert, and around each correction that is sent.
RESTATING = {
    "restate-before-insert": Failpoint("sink", "before", RawLog, "insert"),
    "restate-after-insert": Failpoint("sink", "after", RawLog, "insert"),
    "restate-before-send": Failpoint("sink", "before", AIOKafkaProducer, "send_and_wait"),
    "restate-after-send": Failpoint("sink", "after", AIOKafkaProducer, "send_and_wait"),
}


def say(line: bytes) -> None:
    """Write a line to the standard output, at once: the process may be gone the next moment."""
    os.write(1, line + b"\n")


def install(orders: str) -> None:
    """Make this process fail. orders, with commas between them: `name:n`, killed (SIGKILL) when it gets there the n-th time;
    `name:n:freeze`, stopped (SIGSTOP); `name:n:note`, only said.

    Raises KeyError: there is no such failpoint.
    """
    for order in orders.split(","):
        _install(order)


def _install(order: str) -> None:
    name, times, *instead = order.split(":")
    failpoint = (FAILPOINTS | RESTATING)[name]
    left = int(times)

    def reached() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            say(REACHED + order.encode())
            if instead != ["note"]:
                os.kill(os.getpid(), signal.SIGSTOP if instead == ["freeze"] else signal.SIGKILL)

    function = getattr(failpoint.owner, failpoint.function)
    setattr(failpoint.owner, failpoint.function, _wrapped(function, failpoint.when, reached))


def _wrapped(function: Callable[..., Any], when: str, reached: Callable[[], None]) -> Callable[..., Any]:
    if not inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            if when == "before":
                reached()
            result = function(*args, **kwargs)
            if when == "after":
                reached()
            return result

        return called

    @functools.wraps(function)
    async def awaited(*args: Any, **kwargs: Any) -> Any:
        if when == "before":
            reached()
        result = await function(*args, **kwargs)
        if when == "acknowledged" and result:
            await asyncio.gather(*result)
            reached()
        if when == "after":
            reached()
        return result

    return awaited


def tell_generations() -> None:
    """Have the worker say each generation of its consumer group that it recovers in: so rebalances can be counted."""
    seek_to_committed = ChunkConsumer.seek_to_committed

    @functools.wraps(seek_to_committed)
    async def telling(consumer: ChunkConsumer) -> Any:
        say(GENERATION + str(consumer.app.consumer_generation_id).encode())
        return await seek_to_committed(consumer)

    ChunkConsumer.seek_to_committed = telling
