"""Topics are created as the catalogue says, and a worker refuses those on which its numbers would be wrong."""

import asyncio
import uuid
from typing import Any

import pytest
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from processors.brokers import Brokers
from processors.incarnation import topic_incarnation
from schemas.topics import catalogue
from seatmark.topics import TopicsWrong, check_topics, ensure_topics
from tests.brokers import admin_client, create_topic_named, delete_topic

CHANGELOG = "seatmark-ledger-changelog"


@pytest.fixture
async def prefix(broker: Any) -> str:
    """Of topics that are as the catalogue says, with two partitions."""
    return await created(broker.bootstrap)


async def created(bootstrap: str) -> str:
    prefix = f"t{uuid.uuid4().hex[:8]}-"
    await ensure_topics(Brokers(bootstrap), prefix=prefix, partitions=2, replication=1)
    # A broker may take a moment to know what it was told to create.
    for topic in catalogue():
        await topic_incarnation(Brokers(bootstrap), prefix + topic.name)
    return prefix


async def make_anew(bootstrap: str, name: str, *, partitions: int = 2, config: dict[str, str]) -> None:
    before = await topic_incarnation(Brokers(bootstrap), name)
    await delete_topic(bootstrap, name)
    await create_topic_named(bootstrap, name, partitions=partitions, config=config)
    while await topic_incarnation(Brokers(bootstrap), name) == before:
        await asyncio.sleep(0.05)


async def test_created_topics_are_fit_for_a_worker(broker: Any, prefix: str) -> None:
    await check_topics(Brokers(broker.bootstrap), prefix=prefix, partitions=2)
    again = await ensure_topics(Brokers(broker.bootstrap), prefix=prefix, partitions=2, replication=1)
    assert [(found.name, found.partitions, found.created) for found in again] == [
        (prefix + topic.name, 2, False) for topic in catalogue()
    ]


async def test_another_number_of_partitions_is_refused(broker: Any, prefix: str) -> None:
    await make_anew(broker.bootstrap, prefix + "overdraft-alerts", partitions=3, config={})
    with pytest.raises(TopicsWrong) as wrong:
        await check_topics(Brokers(broker.bootstrap), prefix=prefix, partitions=2)
    [line] = str(wrong.value).splitlines()
    assert line.startswith(f"{prefix}overdraft-alerts: it has 3 partitions, SEATMARK_PARTITIONS is 2")


async def test_a_changelog_that_is_not_compacted_is_refused(broker: Any, prefix: str) -> None:
    await make_anew(broker.bootstrap, prefix + CHANGELOG, config={"cleanup.policy": "delete"})
    with pytest.raises(TopicsWrong) as wrong:
        await check_topics(Brokers(broker.bootstrap), prefix=prefix, partitions=2)
    [line] = str(wrong.value).splitlines()
    assert line.startswith(f"{prefix}{CHANGELOG}: cleanup.policy is delete, expected compact")
    assert "seatmark rebuild" in line


async def test_a_missing_topic_is_refused(broker: Any, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seatmark.topics._NEW_TOPIC_SECONDS", 0.5)
    await delete_topic(broker.bootstrap, prefix + CHANGELOG)
    async with admin_client(broker.bootstrap) as admin:
        # A broker may go on telling of it for a moment.
        while prefix + CHANGELOG in await admin.list_topics():
            await asyncio.sleep(0.05)
    with pytest.raises(TopicsWrong, match=f"missing: {prefix}{CHANGELOG}.*seatmark topics"):
        await check_topics(Brokers(broker.bootstrap), prefix=prefix, partitions=2)


@pytest.mark.kafka
async def test_how_long_topics_keep_their_records_is_the_operators_choice(kafka: Any) -> None:
    prefix = await created(kafka.bootstrap)
    async with admin_client(kafka.bootstrap) as admin:
        changed = {"retention.ms": "86400000"}
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, prefix + "entitlement-activity", changed)])
    await check_topics(Brokers(kafka.bootstrap), prefix=prefix, partitions=2)
    # `seatmark topics` at the next upgrade has nothing against it either; it has against what it cannot work with.
    await ensure_topics(Brokers(kafka.bootstrap), prefix=prefix, partitions=2, replication=1)
    async with admin_client(kafka.bootstrap) as admin:
        too_small = {"retention.ms": "86400000", "max.message.bytes": "1000"}
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, prefix + "entitlement-activity", too_small)])
    with pytest.raises(TopicsWrong) as wrong:
        await ensure_topics(Brokers(kafka.bootstrap), prefix=prefix, partitions=2, replication=1)
    [line] = str(wrong.value).splitlines()
    assert line.startswith(f"{prefix}entitlement-activity: max.message.bytes is 1000, expected 67108864")
