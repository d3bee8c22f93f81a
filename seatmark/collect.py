"""The collector's way to Kafka: what came over HTTP is acknowledged by the brokers before it is by us."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from aiokafka.errors import KafkaError

from connectors.http import NotSent, Send
from processors.brokers import ended_in_time
from processors.topics import Topics
from schemas.events import Event
from schemas.personal import with_truncated_ip
from seatmark.brokers import opened_brokers
from seatmark.produce import event_producer
from seatmark.settings import Settings

# How long a request may wait for the brokers.
_SEND_SECONDS = 30.0
_ANSWER_SECONDS = 5.0


@asynccontextmanager
async def open_collector(settings: Settings) -> AsyncIterator[tuple[Send, Callable[[], Awaitable[bool]]]]:
    """What sends events, and what says whether the brokers answer.

    Raises processors.brokers.AccessRefused.
    Raises aiokafka.errors.KafkaError: the brokers cannot be reached.
    Raises connectors.http.NotSent, when this is left: some events were not acknowledged.
    """
    topic = Topics(settings.topic_prefix).events
    truncates = settings.ip_truncation == "on"
    producer = event_producer(await opened_brokers(settings), idempotent=settings.fencing == "on")

    async def send(events: Sequence[tuple[Event, bytes]]) -> None:
        values = [with_truncated_ip(value, event)[0] if truncates else value for event, value in events]
        try:
            async with asyncio.timeout(_SEND_SECONDS):
                pending = [
                    await producer.send(topic, key=event.entitlement.encode(), value=value)
                    for (event, _), value in zip(events, values, strict=True)
                ]
                await asyncio.gather(*pending)
        except TimeoutError as error:
            raise NotSent(f"the Kafka brokers did not acknowledge the events within {_SEND_SECONDS:.0f} s") from error
        except KafkaError as error:
            raise NotSent(f"the Kafka brokers did not take the events: {type(error).__name__}") from error

    async def brokers_answer() -> bool:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                return bool(await producer.client.fetch_all_metadata())
        except (TimeoutError, KafkaError):
            return False

    await producer.start()
    try:
        yield send, brokers_answer
    finally:
        stopped = await ended_in_time(producer.stop(), "the brokers' acknowledgement of events")
    if not stopped:
        raise NotSent(
            "the collector was stopped with events that the Kafka brokers had not acknowledged. No sender was told that "
            "they had: each is to send its request again"
        )
