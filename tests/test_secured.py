"""Three brokers that encrypt and ask who one is: every part as a process with settings only, and what each may not do."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import orjson
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
    for_code,
)

from deploy.kafka.cluster import free_ports
from processors.brokers import AccessRefused, Brokers
from processors.partitions import partition_of
from processors.topics import Topics
from schemas.events import decode
from seatmark.brokers import brokers_of, opened_brokers
from seatmark.chdb_http import ChdbHttp
from seatmark.collect import open_collector
from seatmark.deadletters import replay
from seatmark.settings import load_settings
from seatmark.topics import ensure_topics
from seatmark.upkeep import restate_until_settled
from tests.processors.test_worker_health import Told
from tests.secured import Authority, SecuredKafka, Tokens, secured_kafka, token_server
from tests.worker_process import WorkerProcess, running, settings_of

pytestmark = pytest.mark.kafka

PARTITIONS = 2
SECONDS = 120


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredKafka]:
    with secured_kafka(tmp_path_factory.mktemp("secured")) as kafka:
        yield kafka


@pytest.fixture(scope="module")
def tokens() -> Iterator[Tokens]:
    """Gives tokens to the sink."""
    with token_server("sink", "geheim:sink/1") as server:
        yield server


@pytest.fixture(scope="module")
def prefix(secured: SecuredKafka) -> str:
    """Of topics on which each role has its rights."""
    prefix = f"t{uuid.uuid4().hex[:8]}-"
    asyncio.run(secured.grant(prefix))
    return prefix


async def seatmark(settings: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command, to its end."""
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "seatmark", *arguments],
        env={**os.environ, **settings}, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip


async def done(settings: Mapping[str, str], *arguments: str) -> str:
    """What a command prints that succeeds."""
    result = await seatmark(settings, *arguments)
    assert result.returncode == 0, result.stderr
    return str(result.stdout)


# --- All parts, each as its own user


def seat_event(number: int, kind: str, seat: str, time: str) -> bytes:
    return orjson.dumps(
        {
            "specversion": "1.0", "id": f"e{number}", "source": "/license-servers/eu-1", "type": kind, "subject": "acme-cad",
            "time": time, "data": {"customer": "acme", "product": "cad", "seat_id": seat},
        }
    )  # fmt: skip


# Limit 2 and 1 above it: at 9:00 the limit is reached, from 10:00 to 17:00 it is exceeded.
ACME = [
    seat_event(1, "seat.activated", "wks-1", "2026-03-02T08:00:00Z"),
    seat_event(2, "seat.activated", "wks-2", "2026-03-02T09:00:00Z"),
    seat_event(3, "seat.activated", "wks-3", "2026-03-02T10:00:00Z"),
    seat_event(4, "seat.deactivated", "wks-1", "2026-03-02T17:00:00Z"),
]
ACME_DAY = {
    "day": "2026-03-02", "opening": 0, "min": 0, "max": 3, "closing": 2, "limit": 2, "hard_limit": 3, "activations": 3,
    "deactivations": 1, "overdraft_seconds": 7 * 3600,
}  # fmt: skip
ACME_ALERTS = ["limit.reached", "overdraft.entered", "overdraft.left"]
GLOBEX_LOG = """\
 8:00:00 (lmgrd) FlexNet Licensing (v11.16.2.0 build 242645 x64_n6) started on lic01 (linux) (4/4/2025)
 9:00:00 (acmed) OUT: "RENDER" ann@wks1
10:00:00 (acmed) OUT: "RENDER" bob@wks2
11:00:00 (acmed) IN: "RENDER" ann@wks1  (INACTIVE)
"""
GLOBEX_DAY = {"day": "2025-04-04", "opening": 0, "min": 0, "max": 2, "closing": 1, "activations": 2, "deactivations": 1}


async def test_every_part_does_its_work_with_its_own_rights_and_no_others(
    secured: SecuredKafka, tokens: Tokens, prefix: str, chdb_http: ChdbHttp, tmp_path: Path
) -> None:
    dsn = tmp_path / "dsn"
    dsn.write_text(chdb_http.dsn(f"secured_{uuid.uuid4().hex}"))
    [port] = free_ports(1)
    store = {"SEATMARK_CLICKHOUSE_DSN_FILE": str(dsn)}
    api = {"SEATMARK_URL": f"http://127.0.0.1:{port}", "SEATMARK_TOKEN_FILE": str(tmp_path / "token")}
    deployment = settings_of("not-asked:9", prefix, PARTITIONS) | {"SEATMARK_FLUSH_INTERVAL": "200ms"}
    assert [partition_of(entitlement, PARTITIONS) for entitlement in ("acme-cad", "globex")] == [0, 1]

    def of(role: str, sign_in: Callable[[str], dict[str, str]] = secured.signed_in) -> dict[str, str]:
        return deployment | sign_in(role)

    await asyncio.gather(done(of("topics") | {"SEATMARK_REPLICATION": "3"}, "topics"), done(store, "migrate"))
    told = [Told(), Told()]
    with (
        running("worker", of("worker") | told[0].settings, tmp_path / "one.log") as one,
        # The same user, by a certificate with its name.
        running("worker", of("worker", secured.certified) | told[1].settings, tmp_path / "two.log") as two,
        running("sink", deployment | secured.with_tokens(tokens) | store, tmp_path / "sink.log"),
        running("web", store | {"SEATMARK_WEB_PORT": str(port)}, tmp_path / "web.log"),
    ):
        (tmp_path / "token").write_text(await done(store, "tokens", "make", "test", "--admin"))
        await both_have_one_partition([one, two], told)

        terms = ["--element", "seats", "--limit", "2", "--overdraft", "absolute:1", "--at", "2026-03-01T00:00:00Z"]
        await done(of("operator") | api, "terms", "acme-cad", *terms)
        (tmp_path / "events").write_bytes(b"\n".join(ACME))
        (tmp_path / "log").write_text(GLOBEX_LOG)
        await asyncio.gather(
            done(of("producer"), "produce", str(tmp_path / "events"), "--no-wait"),
            done(of("operator"), "import", "flexnet", str(tmp_path / "log"), "--entitlement", "globex"),
        )
        token = {"authorization": f"Bearer {(tmp_path / 'token').read_text().strip()}"}
        await until_stored(f"{api['SEATMARK_URL']}/api/v1/entitlements/acme-cad/usage?to=2026-03-02&days=1", token)
        acme, globex, audit = map(
            json.loads,
            await asyncio.gather(
                done(api, "usage", "acme-cad", "--to", "2026-03-02", "--days", "1", "--format", "json"),
                done(api, "usage", "globex", "--to", "2025-04-04", "--days", "1", "--format", "json"),
                done(store | deployment, "audit", "--format", "json"),
            ),
        )
        assert ACME_DAY.items() <= acme["days"][0].items()
        assert GLOBEX_DAY.items() <= globex["days"][0].items()
        assert (audit["elements"], audit["alerts"], audit["differences"]) == (2, 3, 0)

        alerts = await records(brokers_of(load_settings(of("alerts"))), Topics(prefix).alerts, 3, f"{prefix}alerts-test")
        assert [orjson.loads(alert)["type"] for alert in alerts] == ACME_ALERTS
        operator = await opened_brokers(load_settings(of("operator")))
        assert (await replay(["not_json"], brokers=operator, prefix=prefix, now=0)).valid == 0
        restated = load_settings(deployment | secured.signed_in("producer") | store)
        assert (await restate_until_settled(restated, "")).differing == 0
        assert (one.stop(), two.stop()) == (0, 0)
        await done(of("rebuild") | store | {"SEATMARK_REPLICATION": "3"}, "rebuild", "--yes")
    assert len(tokens.asked) == 1, "all connections of a process share one token"
    logs = "".join((tmp_path / f"{name}.log").read_text() for name in ("one", "two", "sink", "web"))
    assert "AuthorizationFailed" not in logs
    assert not [secret for secret in (*secured.passwords.values(), tokens.secret) if secret in logs]


async def test_the_collector_sends_with_the_rights_of_a_producer(secured: SecuredKafka, prefix: str, topics_made: None) -> None:
    """Its producer is idempotent, which older brokers wanted a right on the cluster for."""
    value = seat_event(5, "seat.activated", "wks-1", "2026-03-02T08:00:00Z")
    event = decode(value, key=b"acme-cad", appended_at=1_800_000_000_000)
    settings = load_settings(secured.signed_in("producer") | {"SEATMARK_TOPIC_PREFIX": prefix})
    async with open_collector(settings) as (send, brokers_answer):
        assert await brokers_answer()
        await send([(event, value)])


async def both_have_one_partition(workers: list[WorkerProcess], told: list[Told]) -> None:
    while True:
        checks = [await one.ready(worker) for one, worker in zip(told, workers, strict=True)]
        if {check["assigned"]["why"] for check in checks} == {"partitions [0]", "partitions [1]"}:
            return
        await asyncio.sleep(0.1)


async def until_stored(url: str, headers: dict[str, str]) -> None:
    async with asyncio.timeout(SECONDS), httpx.AsyncClient(headers=headers, timeout=SECONDS) as web:
        while (await web.get(url)).json()["days"][0]["deactivations"] == 0:
            await asyncio.sleep(0.1)


async def records(brokers: Brokers, topic: str, count: int, group: str | None = None) -> list[bytes]:
    async with asyncio.timeout(SECONDS):
        async with AIOKafkaConsumer(topic, **brokers.client, group_id=group, auto_offset_reset="earliest") as consumer:
            return [(await consumer.getone()).value for _ in range(count)]


# --- What is not in the list


async def writes(brokers: Brokers, topic: str) -> None:
    async with AIOKafkaProducer(**brokers.client) as producer:
        await producer.send_and_wait(topic, b"{}", partition=0)


async def reads(brokers: Brokers, topic: str) -> None:
    async with AIOKafkaConsumer(**brokers.client) as consumer:
        place = TopicPartition(topic, 0)
        consumer.assign([place])
        consumer.seek(place, 0)
        await consumer.getone()


async def finds(brokers: Brokers, topic: str) -> None:
    """What comes before reading."""
    async with admin(brokers) as client:
        [found] = await client.describe_topics([topic])
        raise for_code(found["error_code"])(topic)


async def looks_into(brokers: Brokers, group: str) -> None:
    """What comes before joining."""
    async with AIOKafkaConsumer(**brokers.client, group_id=group) as consumer:
        await consumer.committed(TopicPartition("any", 0))


async def takes_over(brokers: Brokers, transactional_id: str) -> None:
    async with AIOKafkaProducer(**brokers.client, transactional_id=transactional_id):
        pass


async def deletes(brokers: Brokers, topic: str) -> None:
    async with admin(brokers) as client:
        [(_, code)] = (await client.delete_topics([topic])).topic_error_codes
        raise for_code(code)(topic)


@asynccontextmanager
async def admin(brokers: Brokers) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(**brokers.client)
    await client.start()
    try:
        yield client
    finally:
        await client.close()


TOPIC, GROUP = TopicAuthorizationFailedError, GroupAuthorizationFailedError


@pytest.mark.parametrize(
    ("role", "does", "name", "error"),
    [
        ("producer", reads, "entitlement-events", TOPIC),
        ("producer", finds, "overdraft-alerts", TOPIC),
        ("producer", writes, "entitlement-activity", TOPIC),
        ("producer", takes_over, "seatmark-ledger-changelog-0", TransactionalIdAuthorizationFailed),
        ("sink", writes, "overdraft-alerts", TOPIC),
        ("sink", looks_into, "seatmark", GROUP),
        ("worker", deletes, "seatmark-ledger-changelog", TOPIC),
        ("alerts", looks_into, "seatmark-sink", GROUP),
        ("alerts", writes, "overdraft-alerts", TOPIC),
        ("alerts", finds, "entitlement-events", TOPIC),
        ("operator", writes, "overdraft-alerts", TOPIC),
        ("topics", reads, "seatmark-ledger-changelog", TOPIC),
        ("topics", writes, "entitlement-events", TOPIC),
        ("rebuild", writes, "entitlement-events", TOPIC),
    ],
)
async def test_a_role_cannot_do_what_is_not_in_its_list(
    secured: SecuredKafka,
    prefix: str,
    topics_made: None,
    role: str,
    does: Callable[[Brokers, str], Awaitable[None]],
    name: str,
    error: type[Exception],
) -> None:
    brokers = brokers_of(load_settings(secured.signed_in(role)))
    with pytest.raises(error):
        await asyncio.wait_for(does(brokers, prefix + name), SECONDS)


@pytest.fixture(scope="module")
def topics_made(secured: SecuredKafka, prefix: str) -> None:
    brokers = brokers_of(load_settings(secured.certified("topics")))
    asyncio.run(ensure_topics(brokers, prefix=prefix, partitions=PARTITIONS, replication=3))


# --- Brokers that do not let us in, and that we do not trust


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"SEATMARK_KAFKA_CA_FILE": "other"}, "its certificate is not trusted"),
        ({"SEATMARK_BROKERS": "certified"}, "no TLS"),
    ],
)  # fmt: skip
async def test_a_broker_that_cannot_be_used_says_why(
    secured: SecuredKafka, changed: dict[str, str], why: str, tmp_path: Path
) -> None:
    said = {"other": str(Authority(tmp_path / "other").file), "certified": secured.cluster.certified_bootstrap}
    settings = secured.signed_in("topics") | {name: said.get(value, value) for name, value in changed.items()}
    with pytest.raises(AccessRefused, match=why):
        await opened_brokers(load_settings(settings))


@pytest.mark.parametrize("mechanism", ["scram-sha-512", "scram-sha-256", "plain"])
async def test_each_mechanism_signs_in_and_not_with_a_wrong_password(
    secured: SecuredKafka, prefix: str, topics_made: None, mechanism: str
) -> None:
    settings = secured.signed_in("producer") | {"SEATMARK_KAFKA_SASL_MECHANISM": mechanism}
    brokers = await opened_brokers(load_settings(settings))
    async with AIOKafkaProducer(**brokers.client) as producer:
        # As a user who may do this, and hardly anything else.
        assert await producer.partitions_for(f"{prefix}entitlement-events") == set(range(PARTITIONS))
    del settings["SEATMARK_KAFKA_PASSWORD_FILE"]
    with pytest.raises(AccessRefused, match=r"SEATMARK_KAFKA_SASL_MECHANISM, \w+_USER and \w+_PASSWORD$") as refused:
        await opened_brokers(load_settings(settings | {"SEATMARK_KAFKA_PASSWORD": "geheim"}))
    assert "geheim" not in str(refused.value)


async def test_a_mechanism_that_brokers_do_not_know_is_told(secured: SecuredKafka) -> None:
    brokers = brokers_of(load_settings(secured.signed_in("topics")))
    with pytest.raises(AccessRefused, match="it does not know the mechanism of SEATMARK_KAFKA_SASL_MECHANISM"):
        await Brokers(brokers.addresses, {**brokers.security, "sasl_mechanism": "SCRAM-SHA-1"}).refuse_if_refused()


async def test_a_certificate_of_nobody_they_know_is_refused(secured: SecuredKafka, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "other").certificate("topics")
    settings = secured.certified("topics") | {"SEATMARK_KAFKA_CERTIFICATE_FILE": str(stranger)}
    with pytest.raises(AccessRefused, match="the certificate in SEATMARK_KAFKA_CERTIFICATE_FILE"):
        await opened_brokers(load_settings(settings))


@pytest.mark.parametrize("command", ["topics", "worker"])
async def test_a_wrong_password_ends_a_command_with_one_line(secured: SecuredKafka, command: str) -> None:
    settings = secured.signed_in("worker") | {"SEATMARK_KAFKA_PASSWORD": "geheim"}
    del settings["SEATMARK_KAFKA_PASSWORD_FILE"]
    result = await seatmark(settings, command)
    assert result.returncode == 1
    assert "seatmark: the Kafka broker 127.0.0.1:" in result.stderr
    assert "it refuses who we say that we are" in result.stderr
    assert result.stderr.count("\n") == 1
    assert "geheim" not in result.stderr
