"""Corrections while traffic goes on and ClickHouse is behind: each wrong level is put right, no right level is ever made wrong.

    make test ARGS="tests/test_corrections_under_load.py --load-seconds 120"

is 1,000 entitlements, with a ClickHouse that is up to 30 s behind; every day it is a twentieth of that.
"""

import asyncio
import random
import time
import uuid
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from processors.brokers import Brokers
from processors.domain.days import Calendar
from processors.domain.ledger import Ledger, position_of
from processors.topics import Topics
from schemas.events import RESTATE_SOURCE, decode, format_time
from seatmark.chdb_http import ChdbHttp
from seatmark.produce import event_ends, wait_until_stored
from seatmark.settings import load_settings
from seatmark.topics import ensure_topics
from seatmark.upkeep import audited, restate_until_settled
from tests import model
from tests.brokers import read_topic
from tests.worker_process import running, settings_of
from views.migrate import migrate

pytestmark = pytest.mark.kafka
PARTITIONS = 2
HOUR = 3_600_000
EVENTS_PER_SECOND = 60


async def test_corrections_under_load_never_make_a_right_level_wrong(
    kafka: Any, chdb_http: ChdbHttp, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    seconds: int = request.config.getoption("--load-seconds")
    seed = request.config.getoption("--vendor-seed")
    entitlements = seconds * 25 // 3
    print(f"seed {seed}, {entitlements} entitlements")
    prefix = f"load-{uuid.uuid4().hex[:8]}-"
    environment = settings_of(kafka.bootstrap, prefix, PARTITIONS) | {
        "SEATMARK_CLICKHOUSE_DSN": chdb_http.dsn(f"load_{uuid.uuid4().hex}"),
        # So long after it was sent is a row stored.
        "SEATMARK_FLUSH_INTERVAL": f"{seconds * 250}ms",
        "SEATMARK_RESTATE_INTERVAL": "1s",
    }
    settings = load_settings(environment)
    await ensure_topics(Brokers(kafka.bootstrap), prefix=prefix, partitions=PARTITIONS, replication=1)
    await asyncio.to_thread(migrate, settings.clickhouse_dsn.get_secret_value(), "UTC")
    with running("worker", environment, tmp_path / "worker.log"), running("sink", environment, tmp_path / "sink.log"):
        corrected = asyncio.ensure_future(first_correction(kafka.bootstrap, Topics(prefix).events))
        await traffic(kafka.bootstrap, Topics(prefix).events, random.Random(seed), entitlements, seconds, corrected)
        ends = await event_ends(Brokers(kafka.bootstrap), prefix, PARTITIONS)
        await wait_until_stored(
            ends, brokers=Brokers(kafka.bootstrap), prefix=prefix, timeout=120, on_progress=lambda left: None
        )
        await restate_until_settled(settings, "")
        findings = await asyncio.to_thread(audited, settings)
    assert (findings.differences, findings.unsettled, findings.elements) == ([], 0, entitlements)

    put_right = made_wrong = under_load = read = 0
    ledgers = [Ledger(Calendar("UTC"), settings.late_after) for _ in range(PARTITIONS)]
    arrived: dict[str, list[dict[str, Any]]] = {}
    for record in await read_topic(kafka.bootstrap, Topics(prefix).events, PARTITIONS):
        read += 1
        document = orjson.loads(record.value)
        subject = document["subject"]
        event = decode(record.value, key=record.key, appended_at=record.timestamp)
        ledger = ledgers[record.partition]
        if document["source"] != RESTATE_SOURCE:
            arrived.setdefault(subject, []).append(document)
            ledger.apply(event, position_of(1, record.offset))
            continue
        exact = exact_holds(arrived[subject])
        before = holds_of(ledger, subject)
        ledger.apply(event, position_of(1, record.offset))
        after = holds_of(ledger, subject)
        for seat in exact.keys() | before.keys() | after.keys():
            was_right, is_right = (holds.get(seat, 0) == exact.get(seat, 0) for holds in (before, after))
            put_right += is_right and not was_right
            made_wrong += was_right and not is_right
        under_load += record.offset < ends[record.partition]
    print(f"{read} records, {under_load} corrections under load, {put_right} holds put right")
    assert made_wrong == 0
    assert put_right >= entitlements / 20
    assert under_load > 0
    for subject, documents in arrived.items():
        [ledger] = [ledger for ledger in ledgers if (subject, "seats") in ledger.elements]
        assert holds_of(ledger, subject) == exact_holds(documents)


def exact_holds(documents: list[dict[str, Any]]) -> dict[str, int]:
    """By seat, what the model says is open."""
    [element] = model.run(documents, timezone="UTC", late_after_ms=HOUR, exact=True).values()
    return {seat: quantity for seat, quantity in element.holds.items() if quantity}


def holds_of(ledger: Ledger, subject: str) -> dict[str, int]:
    """By seat, what is open live."""
    return {seat: hold.quantity for seat, hold in ledger.elements[subject, "seats"].holds.items() if hold.quantity}


async def traffic(
    bootstrap: str, topic: str, chance: random.Random, entitlements: int, seconds: int, corrected: asyncio.Future[None]
) -> None:
    """Seats that come and go now; one event in four is from the two days before, and so without live effect.

    It goes on for so many seconds, and until something was corrected.
    """
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", linger_ms=5) as producer:
        number = 0
        start = time.monotonic()
        while number < EVENTS_PER_SECOND * seconds or not corrected.done():
            while number < (time.monotonic() - start) * EVENTS_PER_SECOND:
                # First each entitlement once.
                subject = f"ent-{number if number < entitlements else chance.randrange(entitlements)}"
                late = number >= entitlements and chance.random() < 0.25
                at = int(time.time() * 1000) - (chance.randrange(2 * HOUR, 48 * HOUR) if late else 0)
                event = {
                    "specversion": "1.0", "id": f"e{number}", "source": "/server", "subject": subject, "time": format_time(at),
                    "type": chance.choice(["seat.activated", "seat.activated", "seat.deactivated"]),
                    "data": {"seat_id": f"seat-{chance.randrange(6)}"},
                }  # fmt: skip
                await producer.send(topic, key=subject.encode(), value=orjson.dumps(event))
                number += 1
            await asyncio.sleep(0.05)


async def first_correction(bootstrap: str, topic: str) -> None:
    """Returns when there is one on the topic."""
    async with AIOKafkaConsumer(
        bootstrap_servers=bootstrap, auto_offset_reset="earliest", enable_auto_commit=False
    ) as consumer:
        consumer.assign([TopicPartition(topic, partition) for partition in range(PARTITIONS)])
        async for record in consumer:
            if RESTATE_SOURCE.encode() in record.value:
                return
