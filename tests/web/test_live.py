"""The live stream of one entitlement: what is new, where it goes on, and that it says when it cannot know."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from tests.web.conftest import ACME, Place, Running, event
from views.store import Store, StoreUnavailable
from views.tokens import Scope
from views.web import live

RunWeb = Callable[[FastAPI], Running]
NEW = event("seat.denied", "24T09:30", seat_id="z")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr(live, "_BEAT_SECONDS", 0.1)


@contextmanager
def stream(url: str, headers: dict[str, str] | None = None) -> Iterator[Iterator[tuple[str, str | None, Any]]]:
    """The events of a stream as (kind, id, data), as they come."""
    with httpx.stream("GET", f"{url}/api/v1/events", params={"entitlement": "acme/1"}, headers=headers, timeout=20) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        yield _events(response.iter_lines())


def _events(lines: Iterator[str]) -> Iterator[tuple[str, str | None, Any]]:
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "event" in fields:
            yield fields["event"], fields.get("id"), json.loads(fields["data"])
            fields = {}
        else:
            fields = {}


def following(events: Iterator[tuple[str, str | None, Any]], kind: str) -> tuple[str | None, Any]:
    """The next event of a kind."""
    return next((identity, data) for said, identity, data in events if said == kind)


def test_what_is_new_and_the_levels_after_it(place: Place, run_web: RunWeb) -> None:
    place.vendor.send(ACME)
    web = run_web(place.app())
    with stream(web.url) as events:
        _, levels = following(events, "levels")
        assert levels == httpx.get(f"{web.url}/api/v1/entitlements/acme%2F1").json()
        assert following(events, "levels")[1] == levels, "also when nothing is new"
        place.vendor.send([NEW])
        identity, sent = following(events, "activity")
        assert sent == httpx.get(f"{web.url}/api/v1/entitlements/acme%2F1/history").json()["events"][0]
        assert identity == "1-11"
        assert [element["level"] for element in following(events, "levels")[1]["elements"]] == [3]


def test_it_goes_on_after_the_last_event_that_came(place: Place, run_web: RunWeb) -> None:
    place.vendor.send([*ACME, NEW])
    web = run_web(place.app())
    with stream(web.url, {"last-event-id": "1-8"}) as events:
        missed = [following(events, "activity") for _ in range(3)]
    assert [(identity, data["id"]) for identity, data in missed] == [
        (f"1-{number}", sent["id"]) for number, sent in zip((9, 10, 11), [*ACME, NEW][8:], strict=True)
    ]


def test_it_says_when_clickhouse_does_not_answer(place: Place, run_web: RunWeb, monkeypatch: pytest.MonkeyPatch) -> None:
    place.vendor.send(ACME)
    web = run_web(place.app())
    with stream(web.url) as events:
        following(events, "levels")
        asks = Store.query

        def away(*arguments: Any, **parameters: Any) -> Any:
            raise StoreUnavailable("ClickHouse is away")

        monkeypatch.setattr(Store, "query", away)
        assert following(events, "stale") == (None, {"detail": "ClickHouse is away"})
        monkeypatch.setattr(Store, "query", asks)
        place.vendor.send([NEW])
        assert following(events, "activity")[1]["seat_id"] == "z"


def test_a_revoked_token_ends_it(place: Place, run_web: RunWeb, monkeypatch: pytest.MonkeyPatch) -> None:
    place.vendor.send(ACME)
    web = run_web(place.app(sign_in=True))
    with stream(web.url, {"authorization": f"Bearer {place.token('acme')}"}) as events:
        following(events, "levels")
        monkeypatch.setattr("views.web.access.scope_of", lambda store, token: None)
        assert {kind for kind, _, _ in events} <= {"levels"}


def test_an_entitlement_that_changes_hands_ends_it(place: Place, run_web: RunWeb, monkeypatch: pytest.MonkeyPatch) -> None:
    place.vendor.send(ACME)
    web = run_web(place.app(sign_in=True))
    with stream(web.url, {"authorization": f"Bearer {place.token('acme')}"}) as events:
        following(events, "levels")
        monkeypatch.setattr("views.web.access.scope_of", lambda store, token: Scope(False, ("another",)))
        place.vendor.send([NEW])
        assert {kind for kind, _, _ in events} <= {"levels"}


def test_an_open_stream_does_not_keep_the_web_from_stopping(acme: Place) -> None:
    web = Running(acme.app())
    web.start()
    with stream(web.url) as events:
        following(events, "levels")
        web.stop()
        assert {kind for kind, _, _ in events} <= {"levels"}


@pytest.mark.parametrize("identity", ["x", "1", "1-", "-1-2", "4294967296-0", "1-9223372036854775808"])
def test_a_place_that_is_none_of_ours(acme: Place, run_web: RunWeb, identity: str) -> None:
    web = run_web(acme.app())
    refused = httpx.get(f"{web.url}/api/v1/events", params={"entitlement": "acme/1"}, headers={"last-event-id": identity})
    assert (refused.status_code, "last-event-id" in refused.json()["detail"]) == (422, True)
