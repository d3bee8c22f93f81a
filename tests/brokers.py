"""Brokers for tests: real Kafka where this machine can run it, and what tests do to topics."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import for_code

from deploy.kafka.cluster import KafkaCluster, KafkaUnavailable, Security


@contextmanager
def running_kafka(
    brokers: int, data_dir: Path, proxies: Sequence[int] = (), security: Security | None = None
) -> Iterator[KafkaCluster]:
    """A running cluster. Where there can be none the test is skipped, or fails if ``CI`` is set.

    proxies, security: as for `KafkaCluster`.
    """
    cluster = KafkaCluster(brokers, data_dir, proxies=proxies, security=security)
    try:
        cluster.start()
    except KafkaUnavailable as unavailable:
        if os.environ.get("CI"):
            pytest.fail(f"CI must test against Kafka, but: {unavailable}", pytrace=False)
        pytest.skip(f"no Kafka: {str(unavailable).splitlines()[0]}")
    try:
        yield cluster
    finally:
        cluster.stop()


@asynccontextmanager
async def admin_client(bootstrap: str) -> AsyncIterator[AIOKafkaAdminClient]:
    """A connected admin client."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def read_topic(bootstrap: str, topic: str, partitions: int, *, read_committed: bool = False) -> list[ConsumerRecord]:
    """All records that are in a topic of so many partitions, in order within each partition."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        isolation_level="read_committed" if read_committed else "read_uncommitted",
    )
    await consumer.start()
    try:
        places = [TopicPartition(topic, partition) for partition in range(partitions)]
        consumer.assign(places)
        await consumer.seek_to_beginning(*places)
        ends = await consumer.end_offsets(places)
        records: list[ConsumerRecord] = []
        while [place for place, end in ends.items() if await consumer.position(place) < end]:
            for fetched in (await consumer.getmany(timeout_ms=200)).values():
                records += fetched
        return records
    finally:
        await consumer.stop()


async def commit_ends(bootstrap: str, group: str, topics: Sequence[str], partitions: int) -> None:
    """What kafka-consumer-groups.sh does with --reset-offsets --to-latest, for a group without members."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, group_id=group, enable_auto_commit=False)
    await consumer.start()
    try:
        places = [TopicPartition(topic, partition) for topic in topics for partition in range(partitions)]
        consumer.assign(places)
        await consumer.commit(await consumer.end_offsets(places))
    finally:
        await consumer.stop()


async def create_topic(
    bootstrap: str,
    prefix: str,
    *,
    partitions: int = 1,
    replicas: int = 1,
    config: Mapping[str, str] | None = None,
) -> str:
    """Create a topic whose name no other test has, and return that name.

    Raises:
        aiokafka.errors.KafkaError: the broker refuses it.
    """
    name = f"{prefix}-{uuid.uuid4().hex[:12]}"
    await create_topic_named(bootstrap, name, partitions=partitions, replicas=replicas, config=config)
    return name


async def create_topic_named(
    bootstrap: str,
    name: str,
    *,
    partitions: int = 1,
    replicas: int = 1,
    config: Mapping[str, str] | None = None,
) -> None:
    """Create a topic with this very name.

    Raises:
        aiokafka.errors.KafkaError: the broker refuses it.
    """
    async with admin_client(bootstrap) as admin:
        topic = NewTopic(name, partitions, replicas, topic_configs=dict(config or {}))
        response = await admin.create_topics([topic])
    # aiokafka reports refusals in the response, where they are easily missed.
    for _name, error_code, *_message in response.topic_errors:
        if error_code:
            raise for_code(error_code)(name)


async def delete_topic(bootstrap: str, name: str) -> None:
    """Delete a topic.

    Raises:
        aiokafka.errors.KafkaError: the broker refuses.
    """
    async with admin_client(bootstrap) as admin:
        response = await admin.delete_topics([name])
    for _name, error_code in response.topic_error_codes:
        if error_code:
            raise for_code(error_code)(name)
