"""The id of a topic tells a topic from one of the same name that was there before."""

from __future__ import annotations

from uuid import UUID

import pytest
from aiokafka.errors import KafkaConnectionError, UnknownTopicOrPartitionError

from deploy.kafka.cluster import KafkaCluster, free_ports
from processors.incarnation import IncarnationUnknown, topic_incarnation
from seatmark.tansu import Tansu
from tests.brokers import create_topic, create_topic_named, delete_topic


async def test_is_the_same_at_every_call(broker: Tansu | KafkaCluster) -> None:
    topic = await create_topic(broker.bootstrap, "incarnation", partitions=3)
    first = await topic_incarnation(broker.bootstrap, topic)
    assert UUID(first).int != 0
    assert [await topic_incarnation(broker.bootstrap, topic) for _ in range(3)] == [first] * 3


async def test_differs_between_topics(broker: Tansu | KafkaCluster) -> None:
    topics = [await create_topic(broker.bootstrap, "incarnation") for _ in range(3)]
    assert len({await topic_incarnation(broker.bootstrap, topic) for topic in topics}) == 3


async def test_is_another_one_after_the_topic_was_created_again(broker: Tansu | KafkaCluster) -> None:
    topic = await create_topic(broker.bootstrap, "incarnation")
    before = await topic_incarnation(broker.bootstrap, topic)
    await delete_topic(broker.bootstrap, topic)
    await create_topic_named(broker.bootstrap, topic)
    assert await topic_incarnation(broker.bootstrap, topic) != before


async def test_is_another_one_after_the_embedded_broker_was_restarted() -> None:
    """It forgets everything, so what was stored under its offsets must not be taken for the same log."""
    incarnations = set()
    for _ in range(2):
        with Tansu(free_ports(1)[0]) as tansu:
            await create_topic_named(tansu.bootstrap, "entitlement-events")
            incarnations.add(await topic_incarnation(tansu.bootstrap, "entitlement-events"))
    assert len(incarnations) == 2


async def test_a_missing_topic_is_an_error_and_is_not_created(broker: Tansu | KafkaCluster) -> None:
    for _ in range(2):
        with pytest.raises(UnknownTopicOrPartitionError):
            await topic_incarnation(broker.bootstrap, "never-created", wait_seconds=0)


async def test_no_broker_is_an_error() -> None:
    with pytest.raises(KafkaConnectionError):
        await topic_incarnation(f"127.0.0.1:{free_ports(1)[0]}", "any")


async def test_a_broker_that_is_too_old_is_an_error(tansu: Tansu, monkeypatch: pytest.MonkeyPatch) -> None:
    topic = await create_topic(tansu.bootstrap, "incarnation")
    # As if the oldest version we can ask in were one that this broker does not know.
    monkeypatch.setattr("processors.incarnation._MetadataRequestV12.API_VERSION", 99)
    with pytest.raises(IncarnationUnknown):
        await topic_incarnation(tansu.bootstrap, topic)
