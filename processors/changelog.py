"""Writes the state of source partitions to the changelog: what a chunk changes is there whole or not at all.

Where brokers have transactions, only the worker that holds a partition can write. A worker that was frozen for longer than its
session timeout wakes up in the middle of a chunk, when another has its partitions and has gone on; what it then writes would
be the last word of the log on elements that the other has changed since. So each partition has a transactional id, and whoever
is assigned the partition takes the id over before reading the state: from then on the brokers refuse the writes of all who had
it before (KIP-98, "Zombie fencing"), and a transaction that one of them had begun is aborted and not read.
"""

import asyncio
import time
from collections.abc import Iterable
from typing import Protocol

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    IncompatibleBrokerVersion,
    InvalidProducerEpoch,
    KafkaConnectionError,
    ProducerFenced,
    TransactionalIdAuthorizationFailed,
    UnknownError,
    UnsupportedVersionError,
)
from aiokafka.producer.message_accumulator import BatchBuilder

from processors.brokers import Brokers
from processors.codec import OWNER_KEY, StateRecord
from schemas.errors import Explained

# What the changelog topic accepts (schemas/topics.yaml), less room for the batch's own header.
MAX_STATE_BATCH_BYTES = 60 * 1024 * 1024
# Room for the largest record of ours and its batch's header; the brokers' own limits are per topic (schemas/topics.yaml).
_MAX_REQUEST_BYTES = 64 * 1024 * 1024
# As long as a request may take.
_KNOWN_SECONDS = 30.0
_RETRY_SECONDS = 0.2


class StateTooLarge(Explained):
    """The state of one chunk does not fit into one batch."""


class Fenced(Explained):
    """Another worker has taken a partition over; what this one has in memory of it is outdated."""


class TransactionsRefused(Explained):
    """The brokers have no transactions, or not for this worker."""


class Changelog(Protocol):
    """Where the state of partitions is written. Raises aiokafka.errors.KafkaError: the brokers may not have it."""

    async def take_over(self, partitions: Iterable[int]) -> None:
        """Become the one who writes these partitions, and no others; to be called before their state is read.

        Raises TransactionsRefused.
        """

    async def write(self, partition: int, records: Iterable[StateRecord]) -> None:
        """Write what one chunk changes; returns when the brokers have it.

        Raises Fenced: nothing was written. Raises StateTooLarge.
        """

    async def close(self) -> None:
        """Close all connections."""


class FencedChangelog:
    """A changelog on brokers with transactions: one producer for each partition."""

    def __init__(self, brokers: Brokers, topic: str) -> None:
        self._brokers = brokers
        self._topic = topic
        self._producers: dict[int, AIOKafkaProducer] = {}

    async def take_over(self, partitions: Iterable[int]) -> None:
        """See Changelog."""
        # Also those that it has: another worker may have had them since.
        await self.close()
        producers = self._producers = {partition: self._producer(partition) for partition in partitions}
        if not producers:
            return
        try:
            await asyncio.gather(*(self._start(partition) for partition in producers))
        except TransactionalIdAuthorizationFailed as error:
            raise TransactionsRefused(
                f"the brokers do not let this worker use the transactional ids that begin with {self._topic}-: grant it Write "
                "and Describe on them"
            ) from error
        except (UnknownError, UnsupportedVersionError, IncompatibleBrokerVersion) as error:
            raise TransactionsRefused(
                f"the brokers have no transactions ({error!r}), and without them a worker that was frozen could write outdated "
                "state. Set SEATMARK_FENCING=off only where a single worker runs"
            ) from error
        # Recovery reads up to the last record. A marker of a transaction takes an offset too, and is no record.
        async with batch_producer(self._brokers, MAX_STATE_BATCH_BYTES) as plain:
            await asyncio.gather(
                *(plain.send_and_wait(self._topic, key=OWNER_KEY, value=None, partition=partition) for partition in producers)
            )

    async def write(self, partition: int, records: Iterable[StateRecord]) -> None:
        """See Changelog."""
        producer = self._producers[partition]
        batch = _batch(producer, partition, records)
        try:
            await producer.begin_transaction()
            sent = await producer.send_batch(batch, self._topic, partition=partition)
            # The end of the transaction waits for the batch. Both are asked, so that neither's failure is left over.
            await asyncio.gather(producer.commit_transaction(), sent)
        except (ProducerFenced, InvalidProducerEpoch) as error:
            raise Fenced(
                f"another worker has taken over partition {partition}: this one was not heard of for longer than its session "
                "timeout (SEATMARK_SESSION_TIMEOUT), or not ready in time when partitions moved (SEATMARK_REBALANCE_TIMEOUT): "
                "it was frozen, or starved of CPU or network. Nothing of the chunk's state was written. Start the worker again"
            ) from error

    async def close(self) -> None:
        """See Changelog."""
        producers, self._producers = self._producers, {}
        await asyncio.gather(*(producer.stop() for producer in producers.values()))

    async def _start(self, partition: int) -> None:
        deadline = time.monotonic() + _KNOWN_SECONDS
        while True:
            try:
                await self._producers[partition].start()
                return
            except AssertionError as error:
                # aiokafka's, where it knows no broker: one that has just come back, and is not in the cluster yet, names none.
                if time.monotonic() > deadline:
                    raise KafkaConnectionError(f"the brokers have named no broker for {_KNOWN_SECONDS:.0f} s") from error
            await self._producers[partition].stop()
            await asyncio.sleep(_RETRY_SECONDS)
            self._producers[partition] = self._producer(partition)

    def _producer(self, partition: int) -> AIOKafkaProducer:
        return batch_producer(self._brokers, MAX_STATE_BATCH_BYTES, f"{self._topic}-{partition}")


class PlainChangelog:
    """A changelog on brokers without transactions: only one worker may run, and nothing checks that."""

    def __init__(self, brokers: Brokers, topic: str) -> None:
        self._brokers = brokers
        self._topic = topic
        self._producer: AIOKafkaProducer | None = None

    async def take_over(self, partitions: Iterable[int]) -> None:
        """See Changelog."""
        if self._producer is None:
            self._producer = batch_producer(self._brokers, MAX_STATE_BATCH_BYTES)
            await self._producer.start()

    async def write(self, partition: int, records: Iterable[StateRecord]) -> None:
        """See Changelog."""
        assert self._producer is not None
        batch = _batch(self._producer, partition, records)
        await (await self._producer.send_batch(batch, self._topic, partition=partition))

    async def close(self) -> None:
        """See Changelog."""
        if self._producer is not None:
            await self._producer.stop()
            self._producer = None


def batch_producer(brokers: Brokers, batch_bytes: int, transactional_id: str | None = None) -> AIOKafkaProducer:
    """A producer of the worker, to be started: for batches of so many bytes."""
    return AIOKafkaProducer(
        **brokers.client,
        acks="all",
        # Measured: aiokafka compresses LZ4 at level 9, a seventh of the speed, for a tenth less bytes.
        compression_type="snappy",
        max_batch_size=batch_bytes,
        max_request_size=_MAX_REQUEST_BYTES,
        request_timeout_ms=30_000,
        transactional_id=transactional_id,
    )


def _batch(producer: AIOKafkaProducer, partition: int, records: Iterable[StateRecord]) -> BatchBuilder:
    batch = producer.create_batch()
    for key, value in records:
        if batch.append(key=key, value=value, timestamp=None) is None:
            raise StateTooLarge(
                f"the state of one chunk of partition {partition} is larger than one batch may be "
                f"({MAX_STATE_BATCH_BYTES} bytes)"
            )
    return batch
