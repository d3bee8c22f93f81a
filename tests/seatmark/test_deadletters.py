"""Dead letters sent again: which are, with what bytes, key and headers, and what is told of the others."""

import time
import uuid
from collections import Counter
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition

from processors.brokers import Brokers
from processors.partitions import partition_of
from processors.topics import Topics
from schemas.events import format_time
from seatmark import deadletters
from seatmark.deadletters import NoDeadLetters, Replayed, replay
from seatmark.produce import end_offsets
from seatmark.topics import ensure_topics

PARTITIONS = 2
NOW = int(time.time() * 1000)
HOUR = 3_600_000

Headers = list[tuple[str, bytes]]


def event(number: int, *, subject: str = "ent-1", at: int = NOW - HOUR, **fields: Any) -> bytes:
    """An event whose bytes no serialiser of ours would make."""
    document = {"specversion": "1.0", "id": f"e{number}", "source": "/s", "type": "seat.activated", "subject": subject,
                "time": format_time(at), "data": {"seat_id": f"seat-{number}"}, **fields}  # fmt: skip
    return orjson.dumps(document, option=orjson.OPT_INDENT_2)


class Letters:
    """A deployment's topics on a broker that tests share, and dead letters as a worker writes them."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap
        self.prefix = f"t{uuid.uuid4().hex[:8]}-"
        self.topics = Topics(self.prefix)

    async def write(
        self, reason: str, value: bytes | None, key: bytes | None = b"ent-1", *,
        partition: int = 0, headers: Headers | None = None, at: int = NOW,
    ) -> None:  # fmt: skip
        """A letter. at: when it was written."""
        told = [("seatmark-reason", reason), ("seatmark-detail", "a field: expected another"),
                ("seatmark-source-topic", self.topics.events), ("seatmark-source-partition", "0"),
                ("seatmark-source-offset", "7")]  # fmt: skip
        producer = AIOKafkaProducer(bootstrap_servers=self.bootstrap, acks="all", max_request_size=4 * 1024 * 1024)
        await producer.start()
        try:
            await producer.send_and_wait(
                self.topics.dead_letters, value, key, partition, at,
                [*(headers or []), *((name, text.encode()) for name, text in told)],
            )  # fmt: skip
        finally:
            await producer.stop()

    async def replay(self, *reasons: str, **options: Any) -> Replayed:
        return await replay(reasons, brokers=Brokers(self.bootstrap), prefix=self.prefix, now=NOW, **options)

    async def sent(self) -> list[ConsumerRecord]:
        """What is on the events' topic, partition by partition."""
        places = [TopicPartition(self.topics.events, partition) for partition in range(PARTITIONS)]
        ends = await end_offsets(Brokers(self.bootstrap), places)
        consumer = AIOKafkaConsumer(bootstrap_servers=self.bootstrap, auto_offset_reset="earliest", enable_auto_commit=False)
        await consumer.start()
        try:
            consumer.assign(places)
            records: list[ConsumerRecord] = []
            while [place for place in places if await consumer.position(place) < ends[place]]:
                for fetched in (await consumer.getmany(timeout_ms=200)).values():
                    records += fetched
            return sorted(records, key=lambda record: (record.partition, record.offset))
        finally:
            await consumer.stop()


@pytest.fixture
async def letters(broker: Any) -> Letters:
    letters = Letters(broker.bootstrap)
    await ensure_topics(Brokers(letters.bootstrap), prefix=letters.prefix, partitions=PARTITIONS, replication=1)
    return letters


async def test_what_is_valid_now_is_sent_with_its_own_bytes_and_the_subject_as_key(letters: Letters) -> None:
    come = event(1)
    await letters.write("time_in_future", come, headers=[("trace", b"abc"), ("seatmark-reason", b"not_json")])
    await letters.write("time_in_future", event(2, at=NOW + HOUR))
    await letters.write("time_in_future", event(3), key=b"another")
    mismatched, keyless = event(4, subject="ent-2"), event(5, subject="ent-3")
    await letters.write("key_mismatch", mismatched, key=b"another", partition=1)
    await letters.write("key_mismatch", keyless, key=None, partition=1)
    # Of another reason, so not asked for, though it is valid now.
    await letters.write("unknown_type", event(6))

    replayed = await letters.replay("time_in_future", "key_mismatch")
    assert (replayed.valid, replayed.repeats, replayed.complete) == (3, 0, True)
    assert sorted((reason, count) for (reason, _), count in replayed.refused.items()) == [
        ("key_mismatch", 1),
        ("time_in_future", 1),
    ]

    sent = await letters.sent()
    assert {(record.key, record.value, record.partition) for record in sent} == {
        (subject.encode(), value, partition_of(subject, PARTITIONS))
        for subject, value in (("ent-1", come), ("ent-2", mismatched), ("ent-3", keyless))
    }
    assert len(sent) == 3
    # A header of ours that the record came with goes with the others of ours: it says nothing of this record.
    assert [list(record.headers) for record in sent if record.value == come] == [[("trace", b"abc")]]
    assert replayed.ends == {
        partition: sum(record.partition == partition for record in sent) for partition in {record.partition for record in sent}
    }


async def test_what_is_still_no_event_is_told_by_detail_and_not_sent(letters: Letters) -> None:
    for number in range(3):
        await letters.write("invalid_data", event(number, data={"seat_id": 7}))
    await letters.write("invalid_data", event(9, data={}))
    await letters.write("not_json", None)
    await letters.write("too_large", event(10, padding="x" * 2 * 1024 * 1024))
    replayed = await letters.replay("invalid_data", "not_json", "too_large")
    assert replayed.valid == 0
    assert Counter(replayed.refused.values()) == Counter({1: 3, 3: 1})
    assert {reason for reason, _ in replayed.refused} == {"invalid_data", "not_json", "too_large"}
    assert "data.seat_id" in replayed.refused.most_common(1)[0][0][1]
    assert not await letters.sent()


async def test_a_letter_is_sent_once_in_a_run_and_again_in_the_next(letters: Letters) -> None:
    twice = event(1)
    await letters.write("time_in_future", twice)
    await letters.write("time_in_future", event(2))
    # A worker that crashed before its state was written has dead-lettered the same record twice.
    await letters.write("time_in_future", twice)
    replayed = await letters.replay("time_in_future")
    assert (replayed.valid, replayed.repeats) == (2, 1)
    assert [record.value for record in await letters.sent()] == [twice, event(2)]
    again = await letters.replay("time_in_future")
    assert (again.valid, again.repeats) == (2, 1)
    assert [record.value for record in await letters.sent()] == [twice, event(2)] * 2


async def test_limit_since_and_dry_run(letters: Letters) -> None:
    await letters.write("time_in_future", event(1), at=NOW - 3 * HOUR)
    await letters.write("time_in_future", event(2), at=NOW - 2 * HOUR)
    await letters.write("time_in_future", event(3), at=NOW - HOUR)

    dry = await letters.replay("time_in_future", dry_run=True)
    assert (dry.valid, dry.ends) == (3, {})
    assert not await letters.sent()

    two = await letters.replay("time_in_future", limit=2)
    assert (two.valid, two.complete) == (2, False)
    three = await letters.replay("time_in_future", limit=3)
    assert (three.valid, three.complete) == (3, True)
    newer = await letters.replay("time_in_future", since=NOW - 2 * HOUR)
    assert newer.valid == 2
    numbers = [orjson.loads(record.value)["id"] for record in await letters.sent()]
    assert numbers == ["e1", "e2", "e1", "e2", "e3", "e2", "e3"]


async def test_letters_that_come_during_a_run_are_left_to_the_next(letters: Letters, monkeypatch: pytest.MonkeyPatch) -> None:
    await letters.write("time_in_future", event(1))

    async def ends_and_then_one_more(*arguments: Any) -> dict[TopicPartition, int]:
        ends = await end_offsets(*arguments)
        await letters.write("time_in_future", event(2))
        return ends

    monkeypatch.setattr(deadletters, "end_offsets", ends_and_then_one_more)
    assert (await letters.replay("time_in_future")).valid == 1
    monkeypatch.undo()
    assert (await letters.replay("time_in_future")).valid == 2


async def test_without_letters_nothing_is_sent_and_without_their_topic_it_is_told(letters: Letters) -> None:
    assert await letters.replay("not_json") == Replayed()
    with pytest.raises(NoDeadLetters, match="SEATMARK_TOPIC_PREFIX"):
        await replay(["not_json"], brokers=Brokers(letters.bootstrap), prefix="no-such-", now=NOW)
