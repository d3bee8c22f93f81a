"""`seatmark collect` as a process of its own, on a real Kafka."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from typer.testing import CliRunner

from connectors.http import NotSent
from deploy.kafka.cluster import KafkaCluster, free_ports
from processors.partitions import partition_of
from seatmark.cli import app
from seatmark.collect import open_collector
from seatmark.settings import SettingsWrong, load_settings
from tests.brokers import create_topic_named, read_topic
from tests.connectors.test_http import EVENT, numbered

COMMAND = [sys.executable, "-m", "seatmark", "collect"]
TOKEN = "a-secret-of-sixteen-or-more"


@asynccontextmanager
async def running(brokers: str, prefix: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a running collector."""
    [port] = free_ports(1)
    environment = {
        **os.environ, "SEATMARK_BROKERS": brokers, "SEATMARK_TOPIC_PREFIX": prefix, "SEATMARK_COLLECT_PORT": str(port),
        "SEATMARK_COLLECT_TOKENS": f"another-secret-of-it,{TOKEN}", "SEATMARK_IP_TRUNCATION": "on",
    }  # fmt: skip
    process = await asyncio.create_subprocess_exec(*COMMAND, env=environment, stderr=subprocess.PIPE)
    headers = {"authorization": f"Bearer {TOKEN}"}
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60) as client:
            async with asyncio.timeout(60):
                while True:
                    try:
                        if (await client.get("/readyz")).status_code == 200:
                            break
                    except httpx.TransportError:
                        await asyncio.sleep(0.1)
            yield client
    finally:
        process.terminate()
        _, said = await process.communicate()
        assert process.returncode == 0, said
        assert TOKEN.encode() not in said


@pytest.mark.kafka
async def test_what_is_accepted_is_on_the_topic_in_order(kafka: KafkaCluster) -> None:
    await create_topic_named(kafka.bootstrap, "collected-entitlement-events", partitions=3)
    data = EVENT["data"] | {"ip": "203.0.113.77"}
    events = [{**EVENT, "data": data, "id": f"e{number}", "subject": f"ent-{number % 5}"} for number in range(500)]
    async with running(kafka.bootstrap, "collected-") as client:
        assert (await client.post("/collect/events", json=events)).json() == {"accepted": 500}
        assert (await client.post("/collect/events", json=numbered(1, time="soon"))).status_code == 422
        assert (await client.post("/collect/events", json=EVENT, headers={"authorization": "Bearer no"})).status_code == 401
    records = await read_topic(kafka.bootstrap, "collected-entitlement-events", 3)
    assert len(records) == 500
    assert all(b'"ip":"203.0.113.0"' in record.value for record in records)
    assert all(record.partition == partition_of(record.key.decode(), 3) for record in records)
    for entitlement in range(5):
        of_one = [record.value for record in records if record.key == b"ent-%d" % entitlement]
        assert [f'"e{number}"' for number in range(entitlement, 500, 5)] == [
            value[value.index(b'"e') :].partition(b",")[0].decode() for value in of_one
        ]


class SilentProducer:
    """Of brokers that are away: it has events that nobody takes."""

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        await asyncio.Event().wait()


async def test_a_collector_with_unacknowledged_events_ends_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("processors.brokers.STOP_SECONDS", 0.01)
    monkeypatch.setattr("seatmark.collect.event_producer", lambda *_, **__: SilentProducer())
    with pytest.raises(NotSent, match="not acknowledged"):
        async with open_collector(load_settings({})):
            pass
    [warning] = caplog.records
    assert "was not waited for" in warning.getMessage()


def test_without_tokens_it_does_not_start() -> None:
    with pytest.raises(SettingsWrong, match="SEATMARK_COLLECT_TOKENS is not set"):
        CliRunner().invoke(app, ["collect"], env={"SEATMARK_COLLECT_TOKENS": ""}, catch_exceptions=False)


def test_short_tokens_are_refused_and_not_shown() -> None:
    with pytest.raises(SettingsWrong, match="SEATMARK_COLLECT_TOKENS: expected secrets of at least 16") as wrong:
        load_settings({"SEATMARK_COLLECT_TOKENS": f"{TOKEN},tiny"})
    assert "tiny" not in str(wrong.value)
