"""Events over HTTP: `POST /collect/events`, for licence servers without a Kafka client. What gets a 202 is on the topic.

A request holds one CloudEvent, or an array of them. It is taken whole or not at all: where the worker would refuse one event,
the answer says which and why. Sent again with the same ids it changes nothing, so whoever gets no answer sends it again.
"""

import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
import orjson
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from connectors import metrics
from schemas.errors import Explained
from schemas.events import Event, Refused, decode

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 8 * 1024 * 1024
MAX_EVENTS = 5_000
# Not what a form or script of another site's page can send without asking first.
MEDIA_TYPES = ("application/cloudevents+json", "application/cloudevents-batch+json", "application/json")
# Of what Seatmark itself puts on the topic.
_OWN_SOURCES = "/seatmark/"
_SHOWN = 100

_batch: msgspec.json.Decoder[list[msgspec.Raw]] = msgspec.json.Decoder(list[msgspec.Raw])

# Sends events (with their bytes, in order) and returns when all are acknowledged. Raises NotSent.
Send = Callable[[Sequence[tuple[Event, bytes]]], Awaitable[None]]


class NotSent(Explained):
    """The brokers did not acknowledge all events of a request. Some of them may be on the topic."""


class _Problem(Exception):
    def __init__(self, status: HTTPStatus, detail: str, **members: Any) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.members = members


def collector(send: Send, tokens: Sequence[str]) -> Starlette:
    """The endpoint `/events`, to be mounted at `/collect`.

    tokens: one of them must come as `Authorization: Bearer`. Without any, all requests are taken: only for an address that
    nobody else can reach.
    """

    async def collect(request: Request) -> Response:
        try:
            _check_token(request, tokens)
            events = _read(await _body(request))
            await send(events)
        except _Problem as problem:
            return _answer(problem)
        except NotSent as error:
            metrics.COLLECTED.labels("not_sent").inc(len(events))
            return _answer(_Problem(HTTPStatus.SERVICE_UNAVAILABLE, f"{error}. Send the request again, with the same ids"))
        metrics.COLLECTED.labels("sent").inc(len(events))
        return Response(orjson.dumps({"accepted": len(events)}), HTTPStatus.ACCEPTED, media_type="application/json")

    return Starlette(routes=[Route("/events", collect, methods=["POST"])])


def collector_app(send: Send, tokens: Sequence[str], brokers_answer: Callable[[], Awaitable[bool]]) -> Starlette:
    """The endpoint on a server of its own, with `/livez` and `/readyz` beside it, which ask for no token."""

    def livez(_: Request) -> Response:
        return Response('{"status":"alive"}', media_type="application/json")

    was_ready = True

    async def readyz(_: Request) -> Response:
        nonlocal was_ready
        ready, silent = await brokers_answer(), "the Kafka brokers do not answer"
        if was_ready and not ready:
            logger.warning("not ready: %s", silent)
        elif ready and not was_ready:
            logger.info("ready again")
        was_ready = ready
        if ready:
            return Response('{"status":"ready"}', media_type="application/json")
        return _answer(_Problem(HTTPStatus.SERVICE_UNAVAILABLE, silent))

    return Starlette(
        routes=[
            Mount("/collect", collector(send, tokens)),
            Route("/livez", livez),
            Route("/readyz", readyz),
        ]
    )


def _check_token(request: Request, tokens: Sequence[str]) -> None:
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    sent = given.strip().encode() if kind.lower() == "bearer" else b""
    if tokens and not any(hmac.compare_digest(sent, token.encode()) for token in tokens):
        raise _Problem(HTTPStatus.UNAUTHORIZED, "expected `Authorization: Bearer` and one of SEATMARK_COLLECT_TOKENS")


async def _body(request: Request) -> bytes:
    """The body. Raises _Problem: of another type, or too large, which is noticed before all of it is read."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in MEDIA_TYPES:
        raise _Problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"expected a content-type of {', '.join(MEDIA_TYPES)}, got {media_type!r}"
        )
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY_BYTES:
                raise _Problem(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"expected at most {MAX_BODY_BYTES} bytes: send fewer events"
                )
    except ClientDisconnect as error:
        raise _Problem(HTTPStatus.BAD_REQUEST, "the request broke off") from error
    return bytes(body)


def _read(body: bytes) -> list[tuple[Event, bytes]]:
    """The events of a body. Raises _Problem: which of them would not be applied, and why."""
    values = [body.strip()]
    if values[0].startswith(b"["):
        try:
            values = [bytes(raw) for raw in _batch.decode(body)]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _Problem(HTTPStatus.BAD_REQUEST, f"the body is not a JSON array of events: {error}") from error
    if len(values) > MAX_EVENTS:
        raise _Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"expected at most {MAX_EVENTS} events, got {len(values)}")
    now = int(time.time() * 1000)
    events, refused = [], []
    for index, value in enumerate(values):
        try:
            # As the worker will read it.
            event = decode(value, key="any", appended_at=now)
            if event.source.startswith(_OWN_SOURCES):
                raise Refused("invalid_data", f"source: {_OWN_SOURCES}... is for what Seatmark itself sends")
            events.append((event, value))
        except Refused as problem:
            refused.append({"index": index, "reason": problem.reason, "detail": problem.detail})
    if refused:
        metrics.COLLECTED.labels("refused").inc(len(values))
        raise _Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            f"{len(refused)} of {len(values)} events would not be applied, so none was sent; the first: {refused[0]['detail']}",
            refused=refused[:_SHOWN],
        )
    return events


def _answer(problem: _Problem) -> Response:
    """RFC 9457, as the API answers."""
    body = {
        "type": "about:blank",
        "title": problem.status.phrase,
        "status": problem.status,
        "detail": problem.detail,
        **problem.members,
    }
    headers = {"www-authenticate": "Bearer"} if problem.status == HTTPStatus.UNAUTHORIZED else None
    return Response(orjson.dumps(body), problem.status, headers=headers, media_type="application/problem+json")
