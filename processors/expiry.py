"""Closes the holds whose leases ran out: by an event in the log, once the log can hold no refresh any more.

The worker is behind the log, sometimes by a backlog of hours, and a refresh may wait in it. So a lease counts as run out only
when the wall clock is past its end and the grace, and all that the log had at that moment is applied.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, KafkaTimeoutError

from processors import metrics
from processors.brokers import Brokers
from processors.leases import Lease, LeasePolicy, expiry_of
from processors.state import PartitionState, PartitionStates
from schemas.errors import loggable

logger = logging.getLogger(__name__)

_ROUND_SECONDS = 0.5
_RETRY_SECONDS = 5.0
# Of one partition at once: bounds what is under way, and for how long nothing else runs.
_MOST_AT_ONCE = 1_000

_FETCH_WAIT_MS = 20
_ENDS_SECONDS = 10.0
_MAX_FETCH_BYTES = 64 * 1024
# As the topic's max.message.bytes: key and value each have an id that may be nearly as long as an event.
_MAX_REQUEST_BYTES = 4 * 1024 * 1024


class EventLog(Protocol):
    """What the expiry of leases needs of `entitlement-events`."""

    async def ends(self, applied: Mapping[int, int]) -> dict[int, int]:
        """By partition, the offset up to which it must be applied to have all records that are there at this moment.

        applied: by partition, the offset after the last record that was applied.
        Partitions whose broker does not answer are left out. Raises aiokafka.errors.KafkaError: none can be asked.
        """

    async def append(self, partition: int, key: bytes, value: bytes) -> None:
        """Append one event; returns when the brokers have it. Raises aiokafka.errors.KafkaError: they may not have it."""


@dataclass(frozen=True)
class _Barrier:
    """At the moment at which all leases until `ended_by` had run out, a partition had records before `end`."""

    ended_by: int
    end: int


class LeaseExpiry:
    """Produces an event for each lease that ran out, of all partitions that this worker has."""

    def __init__(
        self,
        states: PartitionStates,
        log: EventLog,
        policy: LeasePolicy,
        grace_ms: int,
        now_ms: Callable[[], int] = lambda: int(time.time() * 1000),
    ) -> None:
        """policy: of entitlements whose terms name none. grace_ms: how long after its end a lease has run out."""
        self._states = states
        self._log = log
        self._policy = policy
        self._grace_ms = grace_ms
        self._now_ms = now_ms
        self._barriers: dict[PartitionState, _Barrier] = {}

    async def run(self) -> None:
        """Look for leases that ran out, twice a second, for ever. What brokers refuse is tried again."""
        while True:
            pause = _ROUND_SECONDS
            try:
                await self.round()
            except KafkaError as error:
                metrics.LEASE_FAILURES.inc()
                logger.warning("leases ran out, but their seats cannot be released now; trying again: %s", loggable(error))
                pause = _RETRY_SECONDS
            await asyncio.sleep(pause)

    async def round(self) -> None:
        """Release what can be released now.

        Raises aiokafka.errors.KafkaError: something could not, and will be tried again in a later round.
        """
        ended_by = self._now_ms() - self._grace_ms
        states = self._states.all()
        metrics.LEASES_WATCHED.set(sum(len(state.leases) for state in states.values()))
        earliest = {
            partition: end for partition, state in states.items() if (end := state.leases.first_ended(ended_by)) is not None
        }
        metrics.LEASES_DUE_SECONDS.set((ended_by - min(earliest.values(), default=ended_by)) / 1000)
        ended = {partition: states[partition] for partition in earliest}
        if not ended:
            return
        ends = await self._log.ends({partition: state.cursor.offset + 1 for partition, state in ended.items()})
        # Of partitions that moved away nothing is left.
        self._barriers = {state: barrier for state, barrier in self._barriers.items() if state in ended.values()}
        passed = {
            partition: barrier
            for partition, end in ends.items()
            if (barrier := self._passed(ended[partition], _Barrier(ended_by, end))) is not None
        }
        # A partition that has trouble does not hold up the others.
        failures = await asyncio.gather(
            *(self._release(partition, ended[partition], barrier.ended_by) for partition, barrier in passed.items()),
            return_exceptions=True,
        )
        for failure in failures:
            if failure is not None:
                raise failure
        if silent := ended.keys() - ends.keys():
            raise KafkaTimeoutError(f"nobody says how far the log goes in the partitions {sorted(silent)}")

    def _passed(self, state: PartitionState, barrier: _Barrier) -> _Barrier | None:
        """The latest barrier up to which the partition is applied. One that it has not reached is kept for later rounds.

        Where events come without a pause, the end of the log is never reached; but what was its end, soon is.
        """
        applied = state.cursor.offset + 1
        if applied >= barrier.end:
            self._barriers.pop(state, None)
            return barrier
        earlier = self._barriers.setdefault(state, barrier)
        if applied < earlier.end:
            return None
        self._barriers[state] = barrier
        return earlier

    async def _release(self, partition: int, state: PartitionState, ended_by: int) -> None:
        # The state is no longer ours once partitions have moved.
        while self._states.all().get(partition) is state and state.leases.any_ended(ended_by):
            leases = state.leases.take(ended_by, self._policy, _MOST_AT_ONCE)
            failures = await asyncio.gather(*(self._append(partition, lease) for lease in leases), return_exceptions=True)
            failed = [(lease, failure) for lease, failure in zip(leases, failures, strict=True) if failure is not None]
            metrics.LEASES_EXPIRED.inc(len(leases) - len(failed))
            for lease, _ in failed:
                state.leases.put_back(lease)
            if failed:
                raise failed[0][1]
            await asyncio.sleep(0)

    async def _append(self, partition: int, lease: Lease) -> None:
        # To the partition in which the hold is: that of its entitlement's key.
        await self._log.append(partition, lease.entitlement.encode(), expiry_of(lease, self._grace_ms))


class KafkaEventLog:
    """The topic of events, as an async context manager."""

    def __init__(self, brokers: Brokers, topic: str, *, read_committed: bool) -> None:
        """read_committed: the worker reads it so."""
        self._read_committed = read_committed
        self._brokers = brokers
        self._topic = topic
        self._producer = AIOKafkaProducer(**brokers.client, acks="all", max_request_size=_MAX_REQUEST_BYTES)

    async def __aenter__(self) -> Self:
        await self._producer.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._producer.stop()

    async def append(self, partition: int, key: bytes, value: bytes) -> None:
        """See EventLog."""
        await self._producer.send_and_wait(self._topic, key=key, value=value, partition=partition)

    async def ends(self, applied: Mapping[int, int]) -> dict[int, int]:
        """See EventLog.

        Asks for what comes after the last record that was applied. The end of the topic in the answer counts only where a
        record comes: markers of transactions take offsets too, and are never applied. (And asked for the latest offset,
        the embedded broker gives the first of the last batch + 1.)
        """
        consumer = AIOKafkaConsumer(
            **self._brokers.client,
            enable_auto_commit=False,
            # Where events that were not applied are gone from the topic.
            auto_offset_reset="earliest",
            fetch_max_wait_ms=_FETCH_WAIT_MS,
            max_partition_fetch_bytes=_MAX_FETCH_BYTES,
            isolation_level="read_committed" if self._read_committed else "read_uncommitted",
        )
        ends: dict[int, int] = {}
        try:
            # What is known by then is told.
            with suppress(TimeoutError):
                async with asyncio.timeout(_ENDS_SECONDS):
                    await consumer.start()
                    await self._ask(consumer, applied, ends)
        finally:
            await consumer.stop()
        return ends

    async def _ask(self, consumer: AIOKafkaConsumer, applied: Mapping[int, int], ends: dict[int, int]) -> None:
        places = {TopicPartition(self._topic, partition): offset for partition, offset in applied.items()}
        consumer.assign(list(places))
        for place, offset in places.items():
            consumer.seek(place, offset)
        while len(ends) < len(places):
            fetched = await consumer.getmany(timeout_ms=2 * _FETCH_WAIT_MS)
            for place, offset in places.items():
                # What is in a transaction that goes on counts as not there yet.
                end = consumer.last_stable_offset(place) if self._read_committed else consumer.highwater(place)
                if place.partition in ends or end is None:
                    continue
                if place in fetched:
                    ends[place.partition] = end
                elif await consumer.position(place) >= end:
                    ends[place.partition] = offset
                else:
                    continue
                # What it has must not fill the next answer.
                consumer.pause(place)
