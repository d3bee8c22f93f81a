"""The live stream of one entitlement: server-sent events, read from ClickHouse once a second for as long as somebody looks."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from views.store import QueryTooLarge, StoreUnavailable
from views.web.access import reader_of
from views.web.problems import Problem
from views.web.reading import Reader

# Where `serve` puts the event that says that the process stops: a stream must not keep it from that.
STOP = "seatmark.stop"

_POLL_SECONDS = 1.0
_BEAT_SECONDS = 5.0
_STREAM_SECONDS = 300.0
_RETRY_MS = 2000
_ID = re.compile(r"(\d{1,10})-(\d{1,19})")


async def stream_news(request: Request, read: Reader, entitlement: str) -> StreamingResponse:
    """The answer. Raises Problem: 404 for the entitlement, 422 for a bad Last-Event-ID."""
    await run_in_threadpool(read.elements_of, entitlement)
    after = _place(request.headers.get("last-event-id"))
    if after is None:
        after = await run_in_threadpool(read.latest_place, entitlement)

    return StreamingResponse(
        # Asked for again each time, because a token that was revoked ends the stream.
        _stream(lambda: reader_of(request), request.scope.get(STOP) or asyncio.Event(), entitlement, after),
        media_type="text/event-stream",
        headers={"cache-control": "no-store", "x-accel-buffering": "no"},
    )


async def _stream(
    reader: Callable[[], Reader], stop: asyncio.Event, entitlement: str, after: tuple[int, int]
) -> AsyncIterator[bytes]:
    yield f"retry: {_RETRY_MS}\n\n".encode()
    ends_at = time.monotonic() + _STREAM_SECONDS
    said_at = -_BEAT_SECONDS
    while not stop.is_set() and time.monotonic() < ends_at:
        try:
            read = await run_in_threadpool(reader)
            news = await run_in_threadpool(read.news, entitlement, after)
            due = bool(news) or time.monotonic() - said_at >= _BEAT_SECONDS
            levels = await run_in_threadpool(read.entitlement, entitlement) if due else None
        except (StoreUnavailable, QueryTooLarge) as error:
            yield _event("stale", {"detail": str(error)})
            said_at = time.monotonic()
        except Problem:
            # Revoked, or handed to another customer.
            return
        else:
            for after, event in news:
                yield _event("activity", event, identity=f"{after[0]}-{after[1]}")
            if levels is not None:
                yield _event("levels", levels)
                said_at = time.monotonic()
        await _pause(stop)


async def _pause(stop: asyncio.Event) -> None:
    try:
        await asyncio.wait_for(stop.wait(), _POLL_SECONDS)
    except TimeoutError:
        return


def _place(last_event_id: str | None) -> tuple[int, int] | None:
    if not last_event_id:
        return None
    match = _ID.fullmatch(last_event_id)
    if match is None or int(match[1]) >= 2**32 or int(match[2]) >= 2**63:
        raise Problem(422, "invalid-request", "header.last-event-id: expected the id of an event of this stream, or nothing")
    return int(match[1]), int(match[2])


def _event(kind: str, data: dict[str, Any], identity: str | None = None) -> bytes:
    head = f"id: {identity}\n" if identity is not None else ""
    return f"{head}event: {kind}\ndata: ".encode() + orjson.dumps(data) + b"\n\n"
