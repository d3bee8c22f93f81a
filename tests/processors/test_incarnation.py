"""The id of a topic tells a topic from one of the same name that was there before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import pytest
from aiokafka.admin import NewPartitions
from aiokafka.errors import KafkaConnectionError, UnknownTopicOrPartitionError

from deploy.kafka.cluster import KafkaCluster, free_ports
from processors.brokers import Brokers
from processors.incarnation import IncarnationUnknown, TopicChanged, TopicWatch, topic_incarnation
from seatmark.tansu import Tansu
from tests.brokers import admin_client, create_topic, create_topic_named, delete_topic


async def test_is_the_same_at_every_call(broker: Tansu | KafkaCluster) -> None:
    topic = await create_topic(broker.bootstrap, "incarnation", partitions=3)
    first = await topic_incarnation(Brokers(broker.bootstrap), topic)
    assert UUID(first).int != 0
    assert [await topic_incarnation(Brokers(broker.bootstrap), topic) for _ in range(3)] == [first] * 3


async def test_differs_between_topics(broker: Tansu | KafkaCluster) -> None:
    topics = [await create_topic(broker.bootstrap, "incarnation") for _ in range(3)]
    assert len({await topic_incarnation(Brokers(broker.bootstrap), topic) for topic in topics}) == 3


async def test_is_another_one_after_the_topic_was_created_again(broker: Tansu | KafkaCluster) -> None:
    topic = await create_topic(broker.bootstrap, "incarnation")
    before = await topic_incarnation(Brokers(broker.bootstrap), topic)
    await delete_topic(broker.bootstrap, topic)
    await create_topic_named(broker.bootstrap, topic)
    assert await topic_incarnation(Brokers(broker.bootstrap), topic) != before


async def test_is_another_one_after_the_embedded_broker_was_restarted() -> None:
    """It forgets everything, so what was stored under its offsets must not be taken for the same log."""
    incarnations = set()
    for _ in range(2):
        with Tansu(free_ports(1)[0]) as tansu:
            await create_topic_named(tansu.bootstrap, "entitlement-events")
            incarnations.add(await topic_incarnation(Brokers(tansu.bootstrap), "entitlement-events"))
    assert len(incarnations) == 2


async def test_a_missing_topic_is_an_error_and_is_not_created(broker: Tansu | KafkaCluster) -> None:
    for _ in range(2):
        with pytest.raises(UnknownTopicOrPartitionError):
            await topic_incarnation(Brokers(broker.bootstrap), "never-created", wait_seconds=0)


async def test_no_broker_is_an_error() -> None:
    with pytest.raises(KafkaConnectionError):
        await topic_incarnation(Brokers(f"127.0.0.1:{free_ports(1)[0]}"), "any")


async def test_a_broker_that_is_too_old_is_an_error(tansu: Tansu, monkeypatch: pytest.MonkeyPatch) -> None:
    topic = await create_topic(tansu.bootstrap, "incarnation")
    # As if the oldest version we can ask in were one that this broker does not know.
    monkeypatch.setattr("processors.incarnation._MetadataRequestV12.API_VERSION", 99)
    with pytest.raises(IncarnationUnknown):
        await topic_incarnation(Brokers(tansu.bootstrap), topic)


@asynccontextmanager
async def watching(bootstrap: str, *topics: str) -> AsyncIterator[TopicWatch]:
    """A watch that has begun."""
    watch = TopicWatch(Brokers(bootstrap), topics)
    try:
        await watch.begin()
        yield watch
    finally:
        await watch.close()


async def test_a_watch_is_quiet_while_topics_are_what_they_were(broker: Tansu | KafkaCluster) -> None:
    topics = [await create_topic(broker.bootstrap, "watched", partitions=3) for _ in range(2)]
    async with watching(broker.bootstrap, *topics) as watch:
        assert [watch.incarnation(topic) for topic in topics] == [
            await topic_incarnation(Brokers(broker.bootstrap), topic) for topic in topics
        ]
        await watch.check()
        await asyncio.gather(watch.check(), watch.check())
        await watch.close()
        await watch.check()


async def test_a_watch_tells_of_a_topic_that_was_created_again(broker: Tansu | KafkaCluster) -> None:
    topics = [await create_topic(broker.bootstrap, "watched") for _ in range(2)]
    async with watching(broker.bootstrap, *topics) as watch:
        before = watch.incarnation(topics[1])
        running = asyncio.ensure_future(watch.until_changed())
        await delete_topic(broker.bootstrap, topics[1])
        await create_topic_named(broker.bootstrap, topics[1])
        with pytest.raises(TopicChanged) as changed:
            await asyncio.wait_for(running, 30)
    now = await topic_incarnation(Brokers(broker.bootstrap), topics[1])
    for part in (topics[1], before, now, "seatmark rebuild"):
        assert part in str(changed.value)
    assert topics[0] not in str(changed.value)


async def test_a_watch_tells_of_a_topic_that_is_gone(broker: Tansu | KafkaCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("processors.incarnation._UNKNOWN_SECONDS", 0.3)
    topic = await create_topic(broker.bootstrap, "watched")
    async with watching(broker.bootstrap, topic) as watch:
        await delete_topic(broker.bootstrap, topic)
        # A broker may still know it for a moment.
        with pytest.raises(TopicChanged, match=f"{topic} is gone.*seatmark topics"):
            await asyncio.wait_for(watch.until_changed(), 30)


@pytest.mark.kafka
async def test_a_watch_tells_of_another_number_of_partitions(kafka: KafkaCluster) -> None:
    topic = await create_topic(kafka.bootstrap, "watched", partitions=2)
    async with watching(kafka.bootstrap, topic) as watch:
        async with admin_client(kafka.bootstrap) as admin:
            await admin.create_partitions({topic: NewPartitions(total_count=3)})
        with pytest.raises(TopicChanged, match=f"{topic} has 3 partitions now, and had 2.*SEATMARK_PARTITIONS"):
            await asyncio.wait_for(watch.until_changed(), 30)


async def test_a_watch_waits_while_there_is_no_broker() -> None:
    with Tansu(free_ports(1)[0]) as tansu:
        topic = await create_topic(tansu.bootstrap, "watched")
        async with watching(tansu.bootstrap, topic) as watch:
            tansu.stop()
            waiting = asyncio.ensure_future(watch.check())
            assert await asyncio.wait([waiting], timeout=0.5) == (set(), {waiting})
            # A new one: the embedded broker forgets its topics.
            tansu.start()
            await create_topic_named(tansu.bootstrap, topic)
            with pytest.raises(TopicChanged, match="created again"):
                await asyncio.wait_for(waiting, 30)
