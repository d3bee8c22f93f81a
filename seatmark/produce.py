"""Sends entitlement events to the topic, and waits until they can be read."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from processors.brokers import Brokers
from processors.topics import Topics, sink_group, worker_group
from schemas.errors import Explained
from schemas.events import Event, Refused, decode
from schemas.personal import with_truncated_ip

_IN_FLIGHT = 5_000
_POLL_SECONDS = 0.1
_FETCH_WAIT_MS = 20


class NotStored(Explained):
    """Events were sent, but worker or sink did not get through them in time, or could not be asked."""


@dataclass
class Produced:
    """What was sent. refused: (line number, what was wrong with it). ends: by partition, the offset after the last event."""

    sent: int
    refused: list[tuple[int, str]]
    ends: dict[int, int]


class Sender:
    """Sends events to their topic, many at a time. What it says it sent is acknowledged.

    sent: how many. ends: by partition, the offset after the last event.
    """

    def __init__(self, producer: AIOKafkaProducer, topic: str) -> None:
        self._producer = producer
        self._topic = topic
        self._pending: list[asyncio.Future[Any]] = []
        self.sent = 0
        self.ends: dict[int, int] = {}

    async def send(self, event: Event, value: bytes, headers: Sequence[tuple[str, bytes]] = ()) -> None:
        """Send the bytes of an event, on the partition of its entitlement."""
        key = event.entitlement.encode()
        self._pending.append(await self._producer.send(self._topic, key=key, value=value, headers=list(headers)))
        if len(self._pending) >= _IN_FLIGHT:
            await self.collect()

    async def collect(self) -> None:
        """Wait until all that was sent is acknowledged."""
        for metadata in await asyncio.gather(*self._pending):
            self.ends[metadata.partition] = max(self.ends.get(metadata.partition, 0), metadata.offset + 1)
        self.sent += len(self._pending)
        self._pending.clear()


def event_producer(brokers: Brokers, *, idempotent: bool = False) -> AIOKafkaProducer:
    """A producer of `entitlement-events`, to be started.

    idempotent: keeps the order over retries. Brokers without transactions have no such producers either.
    """
    return AIOKafkaProducer(
        **brokers.client,
        acks="all",
        enable_idempotence=idempotent,
        linger_ms=5,
        compression_type="snappy",
        # The largest event, with its key and headers.
        max_request_size=2 * 1024 * 1024,
    )


@asynccontextmanager
async def open_sender(brokers: Brokers, prefix: str) -> AsyncIterator[Sender]:
    """A sender; when this is left without an error, all that was sent is acknowledged.

    Raises aiokafka.errors.KafkaError: the broker cannot be reached, or refuses.
    """
    producer = event_producer(brokers)
    try:
        # Also where it cannot start, it is to be stopped.
        await producer.start()
        sender = Sender(producer, Topics(prefix).events)
        yield sender
        await sender.collect()
    finally:
        await producer.stop()


async def produce_lines(
    lines: Iterable[bytes],
    *,
    brokers: Brokers,
    prefix: str,
    on_progress: Callable[[int], None],
    truncate_ips: bool = False,
) -> Produced:
    """Send one CloudEvent a line, keyed by its subject; lines that are no valid event are reported, not sent.

    on_progress(lines): called now and then with the number of lines read. truncate_ips: of addresses only the network is sent.
    Raises aiokafka.errors.KafkaError: the broker cannot be reached, or refuses.
    """
    refused: list[tuple[int, str]] = []
    number = 0
    async with open_sender(brokers, prefix) as sender:
        for number, line in enumerate(lines, start=1):
            value = line.strip()
            if not value:
                continue
            try:
                # As the worker will read it.
                event = decode(value, key="any", appended_at=int(time.time() * 1000))
            except Refused as problem:
                refused.append((number, str(problem)))
                continue
            if truncate_ips:
                value, event = with_truncated_ip(value, event)
            await sender.send(event, value)
            if number % _IN_FLIGHT == 0:
                on_progress(number)
    on_progress(number)
    return Produced(sender.sent, refused, sender.ends)


async def wait_until_stored(
    ends: dict[int, int], *, brokers: Brokers, prefix: str, timeout: float, on_progress: Callable[[int], None]
) -> None:
    """Wait until the worker has applied the events up to `ends`, and the sink has stored what came of them.

    ends: by partition of `entitlement-events`, the offset after the last event.
    timeout: seconds without any progress after which to give up.
    on_progress(left): called with the number of events that the worker has still to apply.
    Raises NotStored: nothing moved for that long; says which of the two.
    """
    if not ends:
        return
    topics = Topics(prefix)
    await worker_applied(ends, brokers=brokers, prefix=prefix, seconds=timeout, on_progress=on_progress)
    async with _admin(brokers) as admin:
        outputs = [
            TopicPartition(topic, partition) for topic in (topics.activity, topics.days, topics.alerts) for partition in ends
        ]
        stored = await end_offsets(brokers, outputs)
        await _wait_for_group(admin, sink_group(prefix), stored, timeout, "sink", lambda left: None)


async def worker_applied(
    ends: dict[int, int],
    *,
    brokers: Brokers,
    prefix: str,
    seconds: float,
    on_progress: Callable[[int], None] = lambda left: None,
) -> None:
    """Wait until the worker has applied the events up to `ends`; see `wait_until_stored`."""
    targets = {TopicPartition(Topics(prefix).events, partition): end for partition, end in ends.items()}
    async with _admin(brokers) as admin:
        await _wait_for_group(admin, worker_group(prefix), targets, seconds, "worker", on_progress)


async def event_ends(brokers: Brokers, prefix: str, partitions: int) -> dict[int, int]:
    """By partition of `entitlement-events`, the offset after the last event, of those that have any."""
    places = [TopicPartition(Topics(prefix).events, partition) for partition in range(partitions)]
    return {place.partition: end for place, end in (await end_offsets(brokers, places)).items() if end}


async def partitions_of(brokers: Brokers, topic: str) -> list[int]:
    """The partitions of a topic; none where there is no such topic."""
    async with _admin(brokers) as admin:
        if topic not in await admin.list_topics():
            return []
        [found] = await admin.describe_topics([topic])
        return sorted(partition["partition"] for partition in found["partitions"])


async def group_is_stable(brokers: Brokers, group: str) -> bool:
    """Whether the members of a consumer group have their partitions."""
    async with _admin(brokers) as admin:
        try:
            [response] = await admin.describe_consumer_groups([group])
        except KafkaError as error:
            if not error.retriable:
                raise
            return False
        return all(code == 0 and state == "Stable" for code, _, state, *_ in response.groups)


async def group_members(brokers: Brokers, group: str) -> int:
    """How many members a consumer group has."""
    async with _admin(brokers) as admin:
        [response] = await admin.describe_consumer_groups([group])
        return sum(len(members) for _, _, _, _, _, members, *_ in response.groups)


async def sink_lag(brokers: Brokers, prefix: str, partitions: int) -> int:
    """How many records of the worker's output topics are not stored yet."""
    topics = Topics(prefix)
    outputs = [
        TopicPartition(topic, partition)
        for topic in (topics.activity, topics.days, topics.alerts)
        for partition in range(partitions)
    ]
    ends = await end_offsets(brokers, outputs)
    async with _admin(brokers) as admin:
        committed = await _committed(admin, sink_group(prefix), outputs)
    return sum(max(0, end - committed.get(place, 0)) for place, end in ends.items())


async def end_offsets(brokers: Brokers, places: list[TopicPartition]) -> dict[TopicPartition, int]:
    """The offset after the last record of each partition.

    Taken from fetch responses: asked for the latest offset, the embedded broker gives the first of the last batch + 1.
    """
    consumer = AIOKafkaConsumer(**brokers.client, fetch_max_wait_ms=_FETCH_WAIT_MS, enable_auto_commit=False)
    await consumer.start()
    try:
        consumer.assign(places)
        await consumer.seek_to_end(*places)
        ends: dict[TopicPartition, int] = {}
        while len(ends) < len(places):
            await consumer.getmany(timeout_ms=2 * _FETCH_WAIT_MS)
            ends = {place: end for place in places if (end := consumer.highwater(place)) is not None}
        return ends
    finally:
        await consumer.stop()


async def _wait_for_group(
    admin: AIOKafkaAdminClient,
    group: str,
    targets: dict[TopicPartition, int],
    timeout: float,
    role: str,
    on_progress: Callable[[int], None],
) -> None:
    last_left, moved_at = -1, time.monotonic()
    while True:
        committed = await _committed(admin, group, list(targets))
        left = sum(max(0, end - committed.get(tp, 0)) for tp, end in targets.items())
        on_progress(left)
        if not left:
            return
        if left != last_left:
            last_left, moved_at = left, time.monotonic()
        elif time.monotonic() - moved_at > timeout:
            raise NotStored(
                f"the {role} has not moved for {timeout:.0f} s, with {left} records to go: is it running? "
                "The events are safe in the topic and will be applied when it is"
            )
        await asyncio.sleep(_POLL_SECONDS)


async def _committed(admin: AIOKafkaAdminClient, group: str, places: list[TopicPartition]) -> dict[TopicPartition, int]:
    """A group's offsets; nothing while the brokers are still making room for their first groups."""
    try:
        offsets = await admin.list_consumer_group_offsets(group, partitions=places)
    except KafkaError as error:
        if not error.retriable:
            raise
        return {}
    return {place: max(0, found.offset) for place, found in offsets.items()}


@asynccontextmanager
async def _admin(brokers: Brokers) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(**brokers.client)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()
