"""A whole vendor through the whole stack, with repeats and late events: after restatement all numbers are the exact ones.

    make test ARGS="tests/test_vendor.py --vendor-events 200000"

runs it at another size than the few thousand events of every day.
"""

import asyncio
import time
import uuid
from collections import defaultdict
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaProducer

from processors.brokers import Brokers
from processors.domain.days import Calendar
from processors.topics import Topics
from schemas.events import RESTATE_SOURCE
from seatmark.chdb_http import ChdbHttp
from seatmark.produce import event_ends, wait_until_stored
from seatmark.settings import load_settings
from seatmark.topics import ensure_topics
from seatmark.upkeep import audited, restate_until_settled
from tests import model
from tests.brokers import read_topic
from tests.vendor import HOUR, arrivals
from tests.worker_process import running, settings_of
from views.migrate import migrate
from views.store import connect

pytestmark = pytest.mark.kafka
PARTITIONS = 2


async def test_a_vendor_ends_at_the_exact_numbers(
    kafka: Any, chdb_http: ChdbHttp, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    timezone = "America/New_York"
    events = request.config.getoption("--vendor-events")
    seed = request.config.getoption("--vendor-seed")
    print(f"seed {seed}")
    prefix = f"vendor-{uuid.uuid4().hex[:8]}-"
    environment = settings_of(kafka.bootstrap, prefix, PARTITIONS) | {
        "SEATMARK_TIMEZONE": timezone,
        "SEATMARK_CLICKHOUSE_DSN": chdb_http.dsn(f"vendor_{uuid.uuid4().hex}"),
        # Only when the test says so.
        "SEATMARK_RESTATE_INTERVAL": "1h",
    }
    settings = load_settings(environment)
    dsn = settings.clickhouse_dsn.get_secret_value()
    await ensure_topics(Brokers(kafka.bootstrap), prefix=prefix, partitions=PARTITIONS, replication=1)
    await asyncio.to_thread(migrate, dsn, timezone)
    sent = arrivals(seed, events=events, entitlements=max(10, events // 100), until_ms=int(time.time() * 1000) - HOUR)
    await send(kafka.bootstrap, Topics(prefix).events, sent)

    with running("worker", environment, tmp_path / "worker.log"), running("sink", environment, tmp_path / "sink.log"):
        ends = await event_ends(Brokers(kafka.bootstrap), prefix, PARTITIONS)
        await wait_until_stored(
            ends, brokers=Brokers(kafka.bootstrap), prefix=prefix, timeout=60, on_progress=lambda left: None
        )
        before = await asyncio.to_thread(audited, settings)
        assert before.provisional_days
        assert before.differences == []
        await restate_until_settled(settings, "")
        after = await asyncio.to_thread(audited, settings)
        log = await read(kafka.bootstrap, Topics(prefix).events)

    assert after.differences == []
    assert after.unsettled == 0
    now = int(time.time() * 1000)
    today = Calendar(timezone).day_of(now).day
    exact = model.run(log, timezone=timezone, late_after_ms=settings.late_after, exact=True)
    assert after.elements == len(exact)
    client = connect(dsn)
    wrong = []
    levels = {
        (row[0], row[1]): row[2:]
        for row in client.query("SELECT entitlement, element, level, state FROM live_levels").result_rows
    }
    days = stored_days(client, today, now)
    for key, element in exact.items():
        if levels[key] != (element.level, element.state):
            wrong.append((key, "live", levels[key], (element.level, element.state)))
        for day, row in element.day_rows(now).items():
            if day.isoformat() < today and day >= date.fromisoformat(today) - timedelta(days=13):
                wanted = tuple(row[name] for name in FIELDS)
                got = days[key].get(day.isoformat())
                if got != ("final", *wanted):
                    wrong.append((key, day, got, wanted))
    client.close()
    assert not wrong, f"{len(wrong)} of {len(exact)} elements' values, such as {wrong[:5]}"


FIELDS = (
    "opening", "closing", "min", "max", "limit", "hard_limit", "terms_known", "overdraft_ms", "unit_ms", "peak_overage",
    "activations", "deactivations", "refreshes", "denials", "units_used",
)  # fmt: skip


def stored_days(client: Any, today: str, now_ms: int) -> dict[tuple[str, str], dict[str, tuple[Any, ...]]]:
    """By element and day: the state, then FIELDS, of today as things stand at that moment, and the 13 days before it."""
    rows = client.query(
        "SELECT entitlement, element, toString(day), state, opening, closing, `min`, `max`, `limit`, hard_limit, terms_known, "
        "toInt64(overdraft_seconds * 1000), toInt128(unit_seconds * 1000), peak_overage, activations, deactivations, "
        "refreshes, denials, units_used "
        "FROM usage(entitlement = '', element = '', last_day = {today:Date32}, days = 14, "
        "at = fromUnixTimestamp64Milli({now:Int64}))",
        parameters={"today": date.fromisoformat(today), "now": now_ms},
    )
    found: dict[tuple[str, str], dict[str, tuple[Any, ...]]] = defaultdict(dict)
    for entitlement, element, day, *values in rows.result_rows:
        found[entitlement, element][day] = tuple(values)
    return found


async def send(bootstrap: str, topic: str, documents: list[dict[str, Any]]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", linger_ms=5)
    await producer.start()
    try:
        for document in documents:
            last = await producer.send(topic, key=document["subject"].encode(), value=orjson.dumps(document))
        await producer.flush()
        await last
    finally:
        await producer.stop()


async def read(bootstrap: str, topic: str) -> list[dict[str, Any]]:
    """All events on the topic but corrections: the truth."""
    documents = [orjson.loads(record.value) for record in await read_topic(bootstrap, topic, PARTITIONS)]
    return [document for document in documents if document["source"] != RESTATE_SOURCE]
