"""On a real Kafka: whoever takes a partition of the changelog over is the only one who writes it, and what is read is whole."""

import gc
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.client import AIOKafkaClient

from processors.brokers import Brokers
from processors.changelog import Changelog, Fenced, FencedChangelog, PlainChangelog, StateTooLarge
from processors.codec import OWNER_KEY
from tests.brokers import create_topic, read_topic

pytestmark = pytest.mark.kafka
PARTITIONS = 2

Values = list[tuple[bytes, bytes | None]]


async def read(bootstrap: str, topic: str, partition: int) -> Values:
    """All that is committed, but the records that only tell of a new owner."""
    records = await read_topic(bootstrap, topic, PARTITIONS, read_committed=True)
    return [(one.key, one.value) for one in records if one.partition == partition and one.key != OWNER_KEY]


def forget_failed_futures() -> None:
    """aiokafka leaves some behind when it is fenced. Python tells of them when it collects garbage, and its parser may break
    when that is in the middle of parsing: so let it be now.
    """
    gc.collect()


@pytest.fixture
async def topic(kafka: Any) -> str:
    return await create_topic(kafka.bootstrap, "changelog", partitions=PARTITIONS)


async def test_the_one_before_cannot_write_any_more(kafka: Any, topic: str) -> None:
    before, after = FencedChangelog(Brokers(kafka.bootstrap), topic), FencedChangelog(Brokers(kafka.bootstrap), topic)
    try:
        await before.take_over([0, 1])
        await before.write(0, [(b"a", b"before"), (b"b", b"before")])
        await after.take_over([0])
        with pytest.raises(Fenced, match=r"another worker has taken over partition 0: .* Start the worker again"):
            await before.write(0, [(b"a", b"too late")])
        await after.write(0, [(b"a", b"after")])
        # The partition that nobody took is still its own.
        await before.write(1, [(b"c", b"before")])
        assert await read(kafka.bootstrap, topic, 0) == [(b"a", b"before"), (b"b", b"before"), (b"a", b"after")]
        assert await read(kafka.bootstrap, topic, 1) == [(b"c", b"before")]
    finally:
        await before.close()
        await after.close()
        forget_failed_futures()


async def test_brokers_that_name_no_broker_yet_are_asked_again(kafka: Any, topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was away answers before it is in the cluster again, for a moment."""
    look_up, asked = AIOKafkaClient.coordinator_lookup, []

    async def nobody_at_first(client: AIOKafkaClient, *what: Any) -> Any:
        asked.append(what)
        if len(asked) <= PARTITIONS:
            monkeypatch.setattr(client, "get_random_node", lambda: None)
        return await look_up(client, *what)

    monkeypatch.setattr(AIOKafkaClient, "coordinator_lookup", nobody_at_first)
    changelog = FencedChangelog(Brokers(kafka.bootstrap), topic)
    try:
        await changelog.take_over([0, 1])
        await changelog.write(1, [(b"a", b"1")])
        assert await read(kafka.bootstrap, topic, 1) == [(b"a", b"1")]
        assert len(asked) > PARTITIONS
    finally:
        await changelog.close()


async def test_what_was_under_way_when_another_took_over_is_not_there(kafka: Any, topic: str) -> None:
    """A worker that is frozen between its batch and the end of the transaction."""
    before, after = FencedChangelog(Brokers(kafka.bootstrap), topic), FencedChangelog(Brokers(kafka.bootstrap), topic)
    try:
        await before.take_over([0])
        await before.write(0, [(b"a", b"1")])
        producer = before._producers[0]
        await producer.begin_transaction()
        await producer.send_and_wait(topic, key=b"a", value=b"half", partition=0)
        await after.take_over([0])
        await after.write(0, [(b"a", b"2")])
        assert await read(kafka.bootstrap, topic, 0) == [(b"a", b"1"), (b"a", b"2")]
        assert producer._txn_manager.is_in_transaction()
    finally:
        await before.close()
        await after.close()


async def test_after_it_was_taken_over_a_partition_ends_with_a_record(kafka: Any, topic: str) -> None:
    """Recovery ends with the record before the end; the marker of a transaction would never come."""
    changelog = FencedChangelog(Brokers(kafka.bootstrap), topic)
    place = TopicPartition(topic, 0)
    try:
        await changelog.take_over([0])
        await changelog.write(0, [(b"a", b"1")])
        await changelog.take_over([0])
    finally:
        await changelog.close()
    async with AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap, isolation_level="read_committed") as consumer:
        consumer.assign([place])
        end = (await consumer.end_offsets([place]))[place]
        consumer.seek(place, end - 1)
        record = await consumer.getone()
    assert (record.offset, record.key, record.value) == (end - 1, OWNER_KEY, None)


@pytest.mark.parametrize("kind", [FencedChangelog, PlainChangelog])
async def test_state_that_is_too_large_for_one_batch_is_not_written_in_two(
    kind: Any, kafka: Any, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("processors.changelog.MAX_STATE_BATCH_BYTES", 1000)
    changelog: Changelog = kind(Brokers(kafka.bootstrap), topic)
    try:
        await changelog.take_over([0])
        with pytest.raises(StateTooLarge, match=r"partition 0 is larger than one batch may be \(1000 bytes\)"):
            await changelog.write(0, [(b"a", b"x" * 900), (b"b", b"x" * 900)])
        await changelog.write(0, [(b"c", b"1")])
    finally:
        await changelog.close()
    assert await read(kafka.bootstrap, topic, 0) == [(b"c", b"1")]
