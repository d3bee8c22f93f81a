"""Where a worker would go on with wrong numbers in silence, it ends instead and says what to do."""

import asyncio
import uuid
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from processors.brokers import Brokers
from processors.changelog import Fenced, FencedChangelog
from processors.codec import OWNER_KEY, STATE_VERSION, Cursor, encode_cursor
from processors.incarnation import topic_incarnation
from processors.topics import sink_group
from schemas.activity import decode_activity
from schemas.events import format_time
from seatmark.chdb_http import ChdbHttp
from seatmark.produce import event_ends, wait_until_stored
from seatmark.topics import ensure_topics
from tests.brokers import admin_client, commit_ends, create_topic_named, delete_topic
from tests.processors.test_changelog import forget_failed_futures
from tests.processors.test_worker import PARTITIONS, Deployment, assert_outputs, now_ms, some_events
from tests.worker_process import running, running_worker
from views.migrate import migrate
from views.store import connect

# By murmur2 (1357151166, from Kafka's own tests) `foobar` is on partition 0 of 2. By CRC32 (2666930069), which clients on
# librdkafka take unless they are told otherwise, it would be on 1.
FOOBAR = b"foobar"


@pytest.fixture
async def deployment(broker: Any, tmp_path: Path) -> Deployment:
    return await deployed(broker, tmp_path)


@pytest.fixture
async def on_kafka(kafka: Any, tmp_path: Path) -> Deployment:
    return await deployed(kafka, tmp_path)


async def deployed(broker: Any, tmp_path: Path) -> Deployment:
    deployment = Deployment(broker, tmp_path)
    await deployment.create()
    return deployment


async def make_anew(deployment: Deployment, topic: str) -> None:
    """Delete a topic and create it again, as the catalogue says."""
    before = await topic_incarnation(Brokers(deployment.bootstrap), topic)
    await delete_topic(deployment.bootstrap, topic)
    while True:
        await ensure_topics(Brokers(deployment.bootstrap), prefix=deployment.prefix, partitions=PARTITIONS, replication=1)
        if await topic_incarnation(Brokers(deployment.bootstrap), topic) != before:
            return
        await asyncio.sleep(0.05)


async def everything(deployment: Deployment) -> dict[str, list[tuple[int, int, bytes | None]]]:
    """What workers have written so far, by topic; not that they own a partition now, which each one notes at its start."""
    topics = deployment.topics
    return {
        topic: sorted(
            (record.partition, record.offset, record.value)
            for record in await deployment.read(topic)
            if topic != topics.changelog or record.key != OWNER_KEY
        )
        for topic in (topics.activity, topics.days, topics.alerts, topics.dead_letters, topics.changelog)
    }


def seat(entitlement: bytes, number: int) -> bytes:
    return orjson.dumps(
        {"specversion": "1.0", "id": f"s{number}", "source": "/s", "type": "seat.activated", "subject": entitlement.decode(),
         "time": format_time(now_ms()), "data": {"seat_id": f"seat-{number}"}}
    )  # fmt: skip


async def test_records_on_another_partition_than_kafkas_own_clients_choose_are_dead_letters(deployment: Deployment) -> None:
    await deployment.send([(FOOBAR, seat(FOOBAR, number)) for number in range(3)])
    assert list(deployment.sent) == [0]
    good = dict(deployment.sent)
    await deployment.send([(FOOBAR, seat(FOOBAR, number)) for number in range(3, 5)], partition=1)
    with running_worker(deployment.settings, deployment.log):
        await deployment.applied()
    dead = await deployment.read(deployment.topics.dead_letters)
    assert [(record.partition, record.key, record.value) for record in dead] == [
        (1, FOOBAR, value) for _, _, value in deployment.sent.pop(1)
    ]
    for record in dead:
        headers = {name: value.decode() for name, value in record.headers}
        assert headers["seatmark-reason"] == "key_mismatch"
        assert "partition 1" in headers["seatmark-detail"]
        assert "partition 0 of 2: set partitioner=murmur2_random" in headers["seatmark-detail"]
    assert deployment.sent == good
    await assert_outputs(deployment, deployment.expected())


@pytest.mark.kafka
@pytest.mark.parametrize("again", [20, 400], ids=["shorter", "longer"])
async def test_a_source_topic_that_is_made_anew_ends_a_running_worker(on_kafka: Deployment, again: int) -> None:
    """Whether or not the new one has an offset that the worker would go on at. Nothing of it is applied."""
    start = now_ms() - 600 * 40_000
    await on_kafka.send(some_events(200, start=start))
    with running_worker(on_kafka.settings, on_kafka.log) as worker:
        await on_kafka.applied()
        before = await everything(on_kafka)
        await make_anew(on_kafka, on_kafka.topics.events)
        await on_kafka.send(some_events(again, first=200, start=start))
        assert worker.wait(60) == 1
    told = on_kafka.log.read_text()
    assert f"seatmark: the topic {on_kafka.topics.events} was deleted and created again while the worker ran" in told
    assert "run `seatmark rebuild`" in told
    # And one that starts then says so too, and leaves it alone.
    on_kafka.log.write_text("")
    with running_worker(on_kafka.settings, on_kafka.log) as worker:
        assert worker.wait(60) == 1
    told = on_kafka.log.read_text()
    assert "belongs to another incarnation of the source topic" in told
    assert "run `seatmark rebuild`" in told
    assert await everything(on_kafka) == before


@pytest.mark.kafka
async def test_what_a_worker_says_to_do_about_a_topic_that_was_made_anew_puts_it_right(
    on_kafka: Deployment, chdb_http: ChdbHttp, tmp_path: Path
) -> None:
    dsn = chdb_http.dsn(f"anew_{uuid.uuid4().hex}")
    on_kafka.settings |= {"SEATMARK_CLICKHOUSE_DSN": dsn, "SEATMARK_FLUSH_INTERVAL": "200ms"}
    await asyncio.to_thread(migrate, dsn, "UTC")

    async def stored() -> None:
        ends = await event_ends(Brokers(on_kafka.bootstrap), on_kafka.prefix, PARTITIONS)
        where = {"brokers": Brokers(on_kafka.bootstrap), "prefix": on_kafka.prefix}
        await wait_until_stored(ends, **where, timeout=60, on_progress=lambda left: None)

    await on_kafka.send([(FOOBAR, seat(FOOBAR, number)) for number in range(3)])
    with running("sink", on_kafka.settings, tmp_path / "sink.log"):
        with running_worker(on_kafka.settings, on_kafka.log) as worker:
            await stored()
            await make_anew(on_kafka, on_kafka.topics.events)
            assert worker.wait(60) == 1
        with running("forget", on_kafka.settings, tmp_path / "forget.log", "--user", "ann", "--yes") as forget:
            assert forget.wait(60) == 1
        assert "a sink is running" in forget.log.read_text()
        # As a worker that is frozen, and so has left the group.
        frozen = FencedChangelog(Brokers(on_kafka.bootstrap), on_kafka.topics.changelog)
        await frozen.take_over(range(PARTITIONS))
        with running("rebuild", on_kafka.settings, tmp_path / "rebuild.log", "--yes") as rebuild:
            assert rebuild.wait(60) == 0, rebuild.log.read_text()
        for partition in range(PARTITIONS):
            with pytest.raises(Fenced):
                await frozen.write(partition, [(b"outdated", b"state")])
        await frozen.close()
        forget_failed_futures()
        # The licence server sends one of its events again, and a new one.
        await on_kafka.send([(FOOBAR, seat(FOOBAR, number)) for number in (2, 3)])
        with running_worker(on_kafka.settings, on_kafka.log):
            await stored()
    query = "SELECT entitlement, element, level FROM live_levels"
    assert await asyncio.to_thread(lambda: connect(dsn).query(query).result_rows) == [("foobar", "seats", 4)]


@pytest.mark.kafka
async def test_a_changelog_that_is_made_anew_ends_a_running_worker_and_is_refused_at_the_next_start(
    on_kafka: Deployment,
) -> None:
    await on_kafka.send(some_events(200, start=now_ms() - 300 * 40_000))
    with running_worker(on_kafka.settings, on_kafka.log) as worker:
        await on_kafka.applied()
        await make_anew(on_kafka, on_kafka.topics.changelog)
        assert worker.wait(60) == 1
    told = on_kafka.log.read_text()
    assert f"seatmark: the topic {on_kafka.topics.changelog} was deleted and created again" in told
    with running_worker(on_kafka.settings, on_kafka.log) as worker:
        assert worker.wait(60) == 1
    told = on_kafka.log.read_text()
    assert "has no state, although its events were applied up to offset" in told
    assert "the changelog was emptied, or made anew. Stop all workers" in told
    assert (await everything(on_kafka))[on_kafka.topics.changelog] == []


@pytest.mark.kafka
async def test_an_emptied_changelog_is_refused_and_a_rebuilt_one_begins_the_topic_again(
    on_kafka: Deployment, chdb_http: ChdbHttp, tmp_path: Path
) -> None:
    """Rebuilt from an empty raw log. Whatever is committed: what comes is of a new epoch, and none of it counts as applied."""
    dsn = chdb_http.dsn(f"empty_{uuid.uuid4().hex}")
    on_kafka.settings["SEATMARK_CLICKHOUSE_DSN"] = dsn
    await asyncio.to_thread(migrate, dsn, "UTC")
    topics = on_kafka.topics
    await on_kafka.send([(FOOBAR, seat(FOOBAR, number)) for number in range(3)])
    with running_worker(on_kafka.settings, on_kafka.log):
        await on_kafka.applied()
    # Kafka deletes no records of a compacted topic.
    await set_policy(on_kafka, topics.changelog, "delete")
    await delete_records(on_kafka, topics.changelog, before=-1)
    await set_policy(on_kafka, topics.changelog, "compact")
    with running_worker(on_kafka.settings, on_kafka.log) as worker:
        assert worker.wait(60) == 1
    assert "partition 0 has no state, although its events were applied up to offset 2" in on_kafka.log.read_text()

    # What was put out is not stored, and will not be: a sink that has it behind it says so.
    await commit_ends(
        on_kafka.bootstrap, sink_group(on_kafka.prefix), [topics.activity, topics.days, topics.alerts], PARTITIONS
    )
    with running("rebuild", on_kafka.settings, tmp_path / "rebuild.log", "--yes") as rebuild:
        assert rebuild.wait(60) == 0, rebuild.log.read_text()
    await on_kafka.send([(FOOBAR, seat(FOOBAR, 3))])
    with running_worker(on_kafka.settings, on_kafka.log):
        await on_kafka.applied()
    rows = [row for record in await on_kafka.read(topics.activity) for row in decode_activity(record.value).to_pylist()]
    assert sorted((row["epoch"], row["offset"]) for row in rows) == [(1, n) for n in range(3)] + [(2, n) for n in range(4)]


async def set_policy(deployment: Deployment, topic: str, policy: str) -> None:
    config = {"cleanup.policy": policy, "max.message.bytes": "67108864"}
    async with admin_client(deployment.bootstrap) as admin:
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, config)])


async def delete_records(deployment: Deployment, topic: str, before: int) -> None:
    """As retention does; -1: all."""
    async with admin_client(deployment.bootstrap) as admin:
        places = [TopicPartition(topic, partition) for partition in range(PARTITIONS)]
        await admin.delete_records({place: RecordsToDelete(before_offset=before) for place in places})


@pytest.mark.kafka
async def test_events_that_were_deleted_before_they_were_applied_are_told_and_the_worker_goes_on(on_kafka: Deployment) -> None:
    start = now_ms() - 600 * 40_000
    await on_kafka.send(some_events(200, start=start))
    with running_worker(on_kafka.settings, on_kafka.log) as worker:
        await on_kafka.applied()
        assert worker.stop() == 0
    applied = {partition: sent[-1][0] for partition, sent in on_kafka.sent.items()}
    await on_kafka.send(some_events(200, first=200, start=start))
    first = max(applied.values()) + 20
    await delete_records(on_kafka, on_kafka.topics.events, before=first)
    with running_worker(on_kafka.settings, on_kafka.log):
        await on_kafka.applied()
    told = on_kafka.log.read_text()
    for partition, offset in applied.items():
        place = f"{on_kafka.topics.events}[{partition}]"
        assert f"{place}: the records from offset {offset + 1} to {first - 1} were deleted before they were applied" in told
        on_kafka.sent[partition] = [sent for sent in on_kafka.sent[partition] if not offset < sent[0] < first]
    await assert_outputs(on_kafka, on_kafka.expected())


@pytest.mark.kafka
async def test_state_that_is_ahead_of_the_topic_is_refused(on_kafka: Deployment) -> None:
    """As after brokers lost records that they had acknowledged: what comes next has offsets that count as applied.

    On Kafka only: the embedded broker answers as if there were nothing new. It loses all or nothing, and its topics with it.
    """
    await on_kafka.send([(FOOBAR, seat(FOOBAR, number)) for number in range(3)])
    incarnation = await topic_incarnation(Brokers(on_kafka.bootstrap), on_kafka.topics.events)
    async with AIOKafkaProducer(bootstrap_servers=on_kafka.bootstrap, acks="all") as producer:
        for partition in range(PARTITIONS):
            key, value = encode_cursor(Cursor(STATE_VERSION, incarnation, 1, 9, "UTC"))
            await producer.send_and_wait(on_kafka.topics.changelog, value, key=key, partition=partition)
    before = await everything(on_kafka)
    with running_worker(on_kafka.settings, on_kafka.log) as worker:
        assert worker.wait(60) == 1
    told = on_kafka.log.read_text()
    assert f"seatmark: {on_kafka.topics.events}[" in told
    assert "everything before offset 10 is applied, and the topic ends before that" in told
    assert await everything(on_kafka) == before


async def test_topics_that_do_not_fit_are_refused_at_the_start(deployment: Deployment) -> None:
    await delete_topic(deployment.bootstrap, deployment.topics.changelog)
    await create_topic_named(
        deployment.bootstrap, deployment.topics.changelog, partitions=PARTITIONS, config={"cleanup.policy": "delete"}
    )
    with running_worker({**deployment.settings, "SEATMARK_PARTITIONS": "3"}, deployment.log) as worker:
        assert worker.wait(60) == 1
    told = deployment.log.read_text()
    assert f"{deployment.topics.changelog}: cleanup.policy is delete, expected compact" in told
    for topic in (deployment.topics.events, deployment.topics.changelog, deployment.topics.activity):
        assert f"{topic}: it has 2 partitions, SEATMARK_PARTITIONS is 3" in told


async def test_brokers_without_transactions_are_refused_until_fencing_is_off(tansu: Any, tmp_path: Path) -> None:
    deployment = await deployed(tansu, tmp_path)
    settings = {**deployment.settings, "SEATMARK_FENCING": "on"}
    with running_worker(settings, deployment.log) as worker:
        assert worker.wait(60) == 1
    assert "Set SEATMARK_FENCING=off only where a single worker runs" in deployment.log.read_text()


@pytest.mark.kafka
async def test_a_worker_stops_when_too_much_is_refused_and_stays_stopped_until_the_limit_is_another(
    on_kafka: Deployment,
) -> None:
    """However often it is started: the dead-letter topic gets no more than the limit. Then nothing is lost, nothing double."""
    start = now_ms() - 600 * 40_000
    await on_kafka.send(some_events(200, start=start))
    good = {partition: list(sent) for partition, sent in on_kafka.sent.items()}
    await on_kafka.send([(FOOBAR, b"{") for _ in range(50)])
    [(bad_partition, bad)] = [(p, sent[len(good[p]) :]) for p, sent in on_kafka.sent.items() if len(sent) > len(good[p])]
    await on_kafka.send(some_events(200, first=200, start=start))
    limited = {**on_kafka.settings, "SEATMARK_DEAD_LETTER_COUNT": "20"}
    crossing = bad[20][0]
    for _ in range(2):
        on_kafka.log.write_text("")
        with running_worker(limited, on_kafka.log) as worker:
            assert worker.wait(60) == 1
        told = on_kafka.log.read_text()
        assert f"seatmark: {on_kafka.topics.events}[{bad_partition}]: 21 of the {crossing + 1} records that came since" in told
        assert f"more than SEATMARK_DEAD_LETTER_COUNT=20 allows: not_json 21 times (last at offset {crossing})" in told
        assert len(await on_kafka.read(on_kafka.topics.dead_letters)) <= 20
    with running_worker({**limited, "SEATMARK_DEAD_LETTER_WINDOW": "0s"}, on_kafka.log) as worker:
        await on_kafka.applied()
        assert worker.stop() == 0
    dead = [int(dict(record.headers)["seatmark-source-offset"]) for record in await on_kafka.read(on_kafka.topics.dead_letters)]
    assert dead == [offset for offset, _, _ in bad]
    on_kafka.sent[bad_partition] = [sent for sent in on_kafka.sent[bad_partition] if sent[2] != b"{"]
    await assert_outputs(on_kafka, on_kafka.expected())
    # And with the limit on again, what passed is forgotten.
    await on_kafka.send([(FOOBAR, b"{") for _ in range(20)])
    with running_worker(limited, on_kafka.log) as worker:
        await on_kafka.applied()
        assert worker.stop() == 0
