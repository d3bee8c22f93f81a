"""The sample programs of docs/samples do what docs/integrate.md says, against a real Kafka."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from deploy.kafka.cluster import CACHE, KafkaCluster, kafka_version
from processors.partitions import partition_of
from schemas.alerts import Alert, AlertData, Cause, encode_alert, seatmark_id
from schemas.events import decode
from tests.brokers import create_topic, read_topic

pytestmark = pytest.mark.kafka

SAMPLES = Path(__file__).parents[2] / "docs" / "samples"
PARTITIONS = 3
JARS = CACHE / kafka_version() / "*"


@pytest.mark.parametrize(
    ("command", "seat"),
    [
        ([sys.executable, SAMPLES / "produce.py"], "wks-12"),
        (["java", "-XX:TieredStopAtLevel=1", "-cp", JARS, SAMPLES / "Produce.java"], "wks-13"),
    ],
    ids=["python", "java"],
)
async def test_a_producer_sends_a_valid_event_to_the_partition_of_its_entitlement(
    kafka: KafkaCluster, command: list[str | Path], seat: str
) -> None:
    topic = await create_topic(kafka.bootstrap, "samples", partitions=PARTITIONS)
    process = await asyncio.create_subprocess_exec(*command, kafka.bootstrap, topic)
    assert await asyncio.wait_for(process.wait(), 120) == 0
    [record] = await read_topic(kafka.bootstrap, topic, PARTITIONS)
    event = decode(record.value, key=record.key, appended_at=record.timestamp)
    assert (event.type, event.entitlement, event.seat_id, event.customer) == ("seat.activated", "acme-cad", seat, "acme")
    assert record.partition == partition_of("acme-cad", PARTITIONS)


def alert(number: int) -> bytes:
    cause = Cause("/license-servers/eu-1", f"e{number}", "seat.activated")
    at = "2026-11-24T02:14:54.123Z"
    data = AlertData(
        entitlement="acme-cad", element="seats", from_state="at_limit", to_state="overdraft", level=8 + number, limit=8,
        hard_limit=None, overage=number, cause=cause, at=at,
    )  # fmt: skip
    identity = seatmark_id("alert", "acme-cad", "seats", cause.source, cause.id)
    return encode_alert(
        Alert(id=identity, source="/seatmark/worker", type="overdraft.entered", subject="acme-cad", time=at, data=data)
    )


def heed_interrupts() -> None:
    """What a shell starts in the background ignores Ctrl-C, and so would what that starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


async def test_the_consumer_acts_once_on_each_alert_through_repeats_and_a_restart(kafka: KafkaCluster, tmp_path: Path) -> None:
    topic = await create_topic(kafka.bootstrap, "samples")
    command = [sys.executable, SAMPLES / "alerts.py", kafka.bootstrap, topic, f"group-of-{topic}", tmp_path / "seen.db"]
    acted: list[str] = []
    # The last one of each run is new, so that its end is known. Then Ctrl-C, which the program takes where it waits.
    for run in ([1, 2, 1, 2, 3], [2, 3, 1, 4]):
        producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap)
        await producer.start()
        for number in run:
            await producer.send_and_wait(topic, key=b"acme-cad", value=alert(number))
        await producer.stop()
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, preexec_fn=heed_interrupts)
        assert process.stdout is not None
        try:
            async with asyncio.timeout(120):
                while not acted or str(8 + run[-1]) not in acted[-1]:
                    line = await process.stdout.readline()
                    assert line, "it ended by itself"
                    acted.append(line.decode().strip())
                process.send_signal(signal.SIGINT)
                await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
    assert acted == [f"overdraft.entered: acme-cad, seats: {8 + number} of 8" for number in (1, 2, 3, 4)]


def test_every_sample_is_in_the_page_about_it() -> None:
    page = (SAMPLES.parent / "integrate.md").read_text()
    named = set(re.findall(r"\(samples/([\w.]+)\)", page))
    assert named == {name for name in os.listdir(SAMPLES) if not name.startswith("__")}
