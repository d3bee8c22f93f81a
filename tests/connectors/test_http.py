"""Events over HTTP: what is taken, what is refused, and that nothing is taken by half."""

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson
import pytest
from prometheus_client import REGISTRY

from connectors.http import MAX_BODY_BYTES, MAX_EVENTS, NotSent, collector_app
from schemas.events import Event
from tests.schemas.contract import Example, examples

ONE = "application/cloudevents+json"
TOKEN = "a-secret-of-16-c"
EVENT = next(example.document for example in examples("entitlement-events/valid") if example.name == "seat.activated")


@dataclass
class Kafka:
    """What was sent, as (entitlement, bytes); fails while `away`."""

    sent: list[tuple[str, bytes]] = field(default_factory=list)
    away: bool = False

    async def send(self, events: Sequence[tuple[Event, bytes]]) -> None:
        if self.away:
            raise NotSent("the Kafka brokers did not take the events")
        self.sent += [(event.entitlement, value) for event, value in events]

    async def answers(self) -> bool:
        return not self.away


@pytest.fixture
def kafka() -> Kafka:
    return Kafka()


@pytest.fixture
async def client(kafka: Kafka) -> AsyncIterator[httpx.AsyncClient]:
    app = collector_app(kafka.send, [TOKEN, "another-secret-of-it"], kafka.answers)
    headers = {"authorization": f"Bearer {TOKEN}", "content-type": ONE}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://collector", headers=headers) as client:
        yield client


async def post(client: httpx.AsyncClient, content: Any, **headers: str) -> httpx.Response:
    body = content if isinstance(content, bytes) else orjson.dumps(content)
    return await client.post("/collect/events", content=body, headers=headers)


def numbered(number: int, **changes: Any) -> dict[str, Any]:
    return {**EVENT, "id": f"e{number}", "subject": f"ent-{number}", **changes}


async def test_one_event_is_sent_as_it_came(client: httpx.AsyncClient, kafka: Kafka) -> None:
    value = b'{"odd": 1.50, ' + orjson.dumps(EVENT)[1:]
    answer = await post(client, b"\n" + value + b" ")
    assert (answer.status_code, answer.json()) == (202, {"accepted": 1})
    assert kafka.sent == [(EVENT["subject"], value)]


@pytest.mark.parametrize("media_type", ["application/cloudevents-batch+json; charset=utf-8", "application/json", ONE])
async def test_an_array_is_sent_in_its_order(client: httpx.AsyncClient, kafka: Kafka, media_type: str) -> None:
    answer = await post(client, [numbered(2), numbered(1)], **{"content-type": media_type})
    assert (answer.status_code, answer.json()) == (202, {"accepted": 2})
    assert kafka.sent == [("ent-2", orjson.dumps(numbered(2))), ("ent-1", orjson.dumps(numbered(1)))]


async def test_one_bad_event_refuses_all_and_is_named(client: httpx.AsyncClient, kafka: Kafka) -> None:
    late = numbered(3, time="2999-01-01T00:00:00Z")
    answer = await post(client, [numbered(1), numbered(2, data={}), late])
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert [(each["index"], each["reason"]) for each in answer.json()["refused"]] == [
        (1, "invalid_data"),
        (2, "time_in_future"),
    ]
    assert "data.seat_id" in answer.json()["detail"]
    assert kafka.sent == []


def body_of(example: Example) -> bytes:
    document = example.document
    return document["bytes"].encode() if "bytes" in document else json.dumps(document["event"]).encode()


# Over HTTP there is no key, time goes on, and an array is one of events.
REFUSED = [
    example
    for example in examples("entitlement-events/invalid")
    if example.document["reason"] not in ("key_mismatch", "time_in_future") and not body_of(example).startswith(b"[")
]


@pytest.mark.parametrize("example", REFUSED, ids=lambda example: example.name)
async def test_what_the_worker_would_refuse_is_refused(client: httpx.AsyncClient, kafka: Kafka, example: Example) -> None:
    answer = await post(client, body_of(example))
    assert answer.status_code == 422
    [refused] = answer.json()["refused"]
    assert refused["reason"] == example.document["reason"]
    assert kafka.sent == []


async def test_what_only_seatmark_says_is_refused(client: httpx.AsyncClient, kafka: Kafka) -> None:
    answer = await post(client, numbered(1, source="/seatmark/restate"))
    assert answer.status_code == 422
    assert kafka.sent == []


@pytest.mark.parametrize("body", [b"[", b"[1,", b"[" * 100_000])
async def test_what_is_no_array_is_refused(client: httpx.AsyncClient, kafka: Kafka, body: bytes) -> None:
    assert (await post(client, body)).status_code == 400
    assert kafka.sent == []


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \u00e9"])
async def test_without_a_token_nothing_is_taken(client: httpx.AsyncClient, kafka: Kafka, authorization: str) -> None:
    answer = await client.post(
        "/collect/events",
        content=orjson.dumps(EVENT),
        headers={b"authorization": authorization.encode(), b"content-type": ONE.encode()},
    )
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert kafka.sent == []


async def test_each_of_the_tokens_is_taken(client: httpx.AsyncClient, kafka: Kafka) -> None:
    answer = await post(client, EVENT, authorization="bearer another-secret-of-it")
    assert answer.status_code == 202
    assert len(kafka.sent) == 1


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_what_a_foreign_page_can_send_is_not_taken(client: httpx.AsyncClient, kafka: Kafka, media_type: str) -> None:
    assert (await post(client, EVENT, **{"content-type": media_type})).status_code == 415
    assert kafka.sent == []


async def test_too_much_is_refused(client: httpx.AsyncClient, kafka: Kafka) -> None:
    assert (await post(client, b" " * (MAX_BODY_BYTES + 1))).status_code == 413
    assert (await post(client, b"[" + b",".join([b"1"] * (MAX_EVENTS + 1)) + b"]")).status_code == 413
    assert kafka.sent == []


async def test_while_the_brokers_are_away_it_says_so(
    client: httpx.AsyncClient, kafka: Kafka, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "connectors")
    assert (await client.get("/readyz")).status_code == 200
    kafka.away = True
    answer = await post(client, EVENT)
    assert answer.status_code == 503
    assert "same ids" in answer.json()["detail"]
    assert (await client.get("/readyz")).status_code == 503
    assert (await client.get("/readyz")).status_code == 503
    assert (await client.get("/livez")).status_code == 200
    kafka.away = False
    assert (await client.get("/readyz")).status_code == 200
    told = [(record.levelname, record.getMessage()) for record in caplog.records if record.name == "connectors.http"]
    assert told == [("WARNING", "not ready: the Kafka brokers do not answer"), ("INFO", "ready again")]
    assert REGISTRY.get_sample_value("seatmark_collect_events_total", {"outcome": "not_sent"}) == 1
