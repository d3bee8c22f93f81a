"""What only a cluster can show, on three brokers of which one is killed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from deploy.kafka.cluster import KafkaCluster
from processors import incarnation
from tests.brokers import create_topic, read_topic, running_kafka
from tests.processors.test_incarnation import watching

pytestmark = pytest.mark.kafka


@pytest.fixture(scope="module")
def kafka3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    """A real Kafka of three brokers. A test that kills one restarts it."""
    with running_kafka(3, tmp_path_factory.mktemp("kafka3")) as cluster:
        yield cluster
        for broker in (1, 2, 3):
            cluster.kill(broker)  # Nobody wants its data; to end in order takes them seconds.


async def test_three_brokers_go_on_when_one_is_killed(kafka3: KafkaCluster) -> None:
    topic = await create_topic(kafka3.bootstrap, "replicated", partitions=3, replicas=3, config={"min.insync.replicas": "2"})
    async with AIOKafkaProducer(bootstrap_servers=kafka3.bootstrap, acks="all") as producer:
        for partition in range(3):
            await producer.send_and_wait(topic, b"before", partition=partition)
        kafka3.kill(2)
        try:
            for partition in range(3):
                await producer.send_and_wait(topic, b"after", partition=partition)
            # Two of three replicas still make a quorum: what was acknowledged before is there as well.
            records = [(record.partition, record.value) for record in await read_topic(kafka3.bootstrap, topic, 3)]
        finally:
            kafka3.restart(2)
    assert sorted(records, key=lambda record: record[0]) == [
        (partition, value) for partition in range(3) for value in (b"before", b"after")
    ]


async def test_a_watch_asks_each_broker_that_leads_a_partition_and_goes_on_when_one_is_killed(
    kafka3: KafkaCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the broker that gives out a partition's records is sure to know the topic that these are of."""
    asked: set[int] = set()

    async def noted(client: Any, node: int, topics: Sequence[str]) -> Any:
        answer = await ask(client, node, topics)
        asked.add(node)
        return answer

    ask = incarnation._ask
    monkeypatch.setattr(incarnation, "_ask", noted)
    topic = await create_topic(kafka3.bootstrap, "watched", partitions=3, replicas=3)
    async with watching(kafka3.bootstrap, topic) as watch:
        await watch.check()
        assert len(asked) == 3
        kafka3.kill(2)
        try:
            asked.clear()
            await watch.check()
            assert asked
        finally:
            kafka3.restart(2)
