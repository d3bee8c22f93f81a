"""A web with made-up vendors behind it: stored by the one fold, answered at a fixed moment."""

from __future__ import annotations

import asyncio
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from schemas.events import parse_time
from seatmark.chdb_http import ChdbHttp
from seatmark.demo import made_up_events
from tests.web.vendor import Vendor
from views.migrate import migrate
from views.store import Store, chdb_dsn, connect
from views.tokens import Scope, make_token
from views.web.app import create_app, serve

NOW = "2026-11-24T10:00:00.000Z"
NOW_MS = parse_time(NOW)
# Of the demo's customers: one above its limit now, one that was, one with a feature, one that is not limited.
DEMO = ("ent-1002", "ent-1003", "ent-1005", "ent-1006")


@dataclass
class Place:
    """A database, and what reads and writes it."""

    dsn: str
    store: Store
    vendor: Vendor

    def app(self, *, sign_in: bool = False) -> FastAPI:
        """A web on it, at NOW."""
        return create_app(self.store, sign_in=sign_in, clock=lambda: NOW_MS / 1000)

    def token(self, *customers: str) -> str:
        """A token for customers; without any, for everything."""
        with closing(connect(self.dsn)) as client:
            return make_token(client, "test", Scope(not customers, customers))


@contextmanager
def _place(chdb_http: ChdbHttp, timezone: str = "UTC") -> Iterator[Place]:
    dsn = f"{chdb_dsn(chdb_http.directory)}?database=test_{uuid.uuid4().hex}"
    migrate(dsn, timezone)
    client, store = connect(dsn), Store(dsn)
    yield Place(dsn, store, Vendor(client, timezone))
    store.close()
    client.close()


@pytest.fixture(scope="session")
def _emptied(chdb_http: ChdbHttp) -> Iterator[Place]:
    with _place(chdb_http) as made:
        yield made


@pytest.fixture
def place(_emptied: Place) -> Place:
    """An empty database, in UTC."""
    # Much quicker than migrating a new one.
    return Place(_emptied.dsn, _emptied.store, _emptied.vendor.again())


@pytest.fixture(scope="session")
def demo(chdb_http: ChdbHttp) -> Iterator[Place]:
    """A database with 30 days of four of the demo's entitlements. Not to be written to."""
    with _place(chdb_http) as made:
        made.vendor.send(event for event in made_up_events(NOW_MS) if event["subject"] in DEMO)
        yield made


def client_of(app: FastAPI, token: str | None = None) -> httpx.AsyncClient:
    """A client of an application in this process."""
    headers = {"authorization": f"Bearer {token}"} if token is not None else {}
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000", headers=headers)


def event(kind: str, time: str, entitlement: str = "acme/1", customer: str | None = "acme", **data: Any) -> dict[str, Any]:
    """event("seat.activated", "22T09:00", seat_id="a"): a CloudEvent in November 2026. element: of the data."""
    said = {"customer": customer, "product": "cad", **data}
    return {
        "specversion": "1.0", "id": f"{kind} {time} {data.get('seat_id')}", "source": "/license-servers/eu-1", "type": kind,
        "subject": entitlement, "time": f"2026-11-{time}:00.000Z" if len(time) == 8 else f"2026-11-{time}Z",
        "data": {name: value for name, value in said.items() if value is not None},
    }  # fmt: skip


def terms(
    time: str, limit: int | None, entitlement: str = "acme/1", element: str = "seats", customer: str = "acme"
) -> dict[str, Any]:
    """Terms of one element, with 1 unit of overdraft."""
    said = {"limit": limit, "overdraft": {"type": "absolute", "value": 1}}
    return event("entitlement.changed", time, entitlement, customer, elements={element: said})


# Limit 2, overdraft 1, and three times above it: half an hour, half an hour, and since an hour before NOW.
ACME = [
    terms("22T08:00", 2),
    event(
        "seat.activated", "22T09:00", seat_id="a", user="ann@acme.example", host="wks-a", ip="203.0.113.1", credential="user"
    ),
    event("seat.activated", "22T10:00", seat_id="b", user="bob@acme.example", lease_expires_at="2026-12-01T00:00:00Z"),
    event("seat.activated", "22T11:00", seat_id="c", user="cem@acme.example"),
    event("seat.deactivated", "22T11:30", seat_id="c", user="cem@acme.example"),
    event("seat.denied", "22T14:00", seat_id="d", user="dan@acme.example", reason="all in use"),
    event("seat.activated", "23T09:00", seat_id="c", user="eve@acme.example"),
    event("seat.deactivated", "23T09:30", seat_id="c"),
    event("seat.denied", "23T20:00", seat_id="d", user="dan@acme.example"),
    event("seat.activated", "24T09:00", seat_id="c", user="eve@acme.example"),
]


@pytest.fixture(scope="session")
def acme(chdb_http: ChdbHttp) -> Iterator[Place]:
    """A database with ACME in it. Not to be written to: for that, send ACME to `place`."""
    with _place(chdb_http) as made:
        made.vendor.send(ACME)
        yield made


class Running:
    """A web that listens on a free port of this machine, in a thread of its own."""

    def __init__(self, app: FastAPI) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, args=(app,), daemon=True)

    def _run(self, app: FastAPI) -> None:
        self._loop.run_until_complete(serve(app, "127.0.0.1", self.port, self._stop))

    def start(self) -> None:
        """Start, and wait until it answers."""
        self._thread.start()
        with httpx.Client(transport=httpx.HTTPTransport(retries=20)) as client:
            assert client.get(f"{self.url}/livez").status_code == 200

    def stop(self) -> None:
        """Stop; streams that are open do not keep it. Again does nothing."""
        if self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        assert not self._thread.is_alive()
        self._loop.close()


@pytest.fixture
def run_web() -> Iterator[Callable[[FastAPI], Running]]:
    """run_web(app): it listens until the test is over."""
    running: list[Running] = []

    def run(app: FastAPI) -> Running:
        web = Running(app)
        web.start()
        running.append(web)
        return web

    yield run
    for web in running:
        web.stop()
