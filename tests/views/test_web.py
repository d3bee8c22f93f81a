"""The HTTP API: its answers, its one shape of errors, health, and what it says about itself."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from clickhouse_connect.driver.client import Client
from fastapi import FastAPI
from prometheus_client import generate_latest
from starlette.applications import Starlette

from deploy.kafka.cluster import free_ports
from schemas.asyncapi import asyncapi
from schemas.days import DayRow
from schemas.events import parse_time
from views.store import Store, connect
from views.web.app import CannotListen, create_app, listen, serve

pytestmark = pytest.mark.both_ways

Put = Callable[..., None]
DayRows = Callable[..., DayRow]

NOW = "2026-11-24T10:30:00.250Z"


@pytest.fixture
def store(database: str) -> Any:
    opened = Store(database)
    yield opened
    opened.close()


def client_of(app: FastAPI) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000")


@pytest.fixture
async def api(store: Store) -> AsyncIterator[httpx.AsyncClient]:
    """The API at half past ten."""
    async with client_of(create_app(store, sign_in=False, clock=lambda: parse_time(NOW) / 1000)) as client:
        yield client


def path_of(entitlement: str, rest: str = "") -> str:
    return f"/api/v1/entitlements/{httpx.QueryParams({'': entitlement})!s}".replace("/=", "/").replace("+", "%20") + rest


async def problem(response: httpx.Response) -> dict[str, Any]:
    """The problem that a response tells; it has the shape that all have."""
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["status"] == response.status_code
    assert body["type"].startswith("urn:seatmark:problem:")
    assert body["title"]
    assert body["detail"]
    return body


async def test_usage(api: httpx.AsyncClient, client: Client, put: Put, day_row: DayRows, entitlement: str) -> None:
    put(
        client,
        day_row(
            "2026-11-23", as_of_hours=18, opening=1, closing=13, min=0, max=15, limit=50, hard_limit=60, terms_known=True,
            overdraft_ms=1_500, unit_ms=2_250, peak_overage=5, activations=8, deactivations=5, refreshes=3, denials=2,
            units_used=4, closing_limit=10, closing_hard_limit=None, closing_terms_known=True,
        ),
    )  # fmt: skip
    response = await api.get(path_of(entitlement, "/usage"), params={"days": 3})
    assert response.status_code == 200
    assert response.json() == {
        "entitlement": entitlement, "element": "seats", "timezone": "UTC",
        "days": [
            {
                "day": "2026-11-22", "opening": 0, "closing": 0, "min": 0, "max": 0, "limit": None, "hard_limit": None,
                "terms_known": False, "overdraft_seconds": 0, "unit_seconds": 0, "elapsed_seconds": 86400, "peak_overage": 0,
                "activations": 0, "deactivations": 0, "refreshes": 0, "denials": 0, "units_used": 0, "state": "final",
            },
            {
                "day": "2026-11-23", "opening": 1, "closing": 13, "min": 0, "max": 15, "limit": 50, "hard_limit": 60,
                "terms_known": True, "overdraft_seconds": 21601.5, "unit_seconds": 280802.25, "elapsed_seconds": 86400,
                "peak_overage": 5, "activations": 8, "deactivations": 5, "refreshes": 3, "denials": 2, "units_used": 4,
                "state": "final",
            },
            {
                "day": "2026-11-24", "opening": 13, "closing": 13, "min": 13, "max": 13, "limit": 10, "hard_limit": None,
                "terms_known": True, "overdraft_seconds": 37800.25, "unit_seconds": 491403.25, "elapsed_seconds": 37800.25,
                "peak_overage": 3, "activations": 0, "deactivations": 0, "refreshes": 0, "denials": 0, "units_used": 0,
                "state": "provisional",
            },
        ],
    }  # fmt: skip


async def test_usage_is_of_30_days_up_to_today_by_default(
    api: httpx.AsyncClient, client: Client, put: Put, day_row: DayRows, entitlement: str
) -> None:
    put(client, day_row("2026-11-23", closing=1))
    days = [day["day"] for day in (await api.get(path_of(entitlement, "/usage"))).json()["days"]]
    assert (len(days), days[0], days[-1]) == (30, "2026-10-26", "2026-11-24")


async def test_usage_up_to_a_day(api: httpx.AsyncClient, client: Client, put: Put, day_row: DayRows, entitlement: str) -> None:
    put(client, day_row("2026-11-20", closing=1))
    response = await api.get(path_of(entitlement, "/usage"), params={"days": 2, "to": "2026-11-20"})
    assert [(day["day"], day["closing"]) for day in response.json()["days"]] == [("2026-11-19", 0), ("2026-11-20", 1)]


async def test_today_is_the_date_in_the_reporting_time_zone(
    database_in: Callable[[str], str], put: Put, day_row: DayRows, entitlement: str
) -> None:
    store = Store(database_in("Pacific/Apia"))
    async with client_of(create_app(store, sign_in=False, clock=lambda: parse_time("2026-11-24T11:30:00.000Z") / 1000)) as api:
        client = connect(database_in("Pacific/Apia"))
        put(client, day_row("2026-11-20", "Pacific/Apia", closing=1))
        client.close()
        body = (await api.get(path_of(entitlement, "/usage"), params={"days": 1})).json()
        refused = await problem(await api.get(path_of(entitlement, "/usage"), params={"to": "2026-11-26"}))
    store.close()
    [today] = body["days"]
    assert (body["timezone"], today["day"], today["elapsed_seconds"]) == ("Pacific/Apia", "2026-11-25", 1800)
    assert refused["detail"] == "query.to: expected a date from 1970-01-01 to 2026-11-25, today in Pacific/Apia"


async def test_the_element_that_is_meant(
    api: httpx.AsyncClient, client: Client, put: Put, day_row: DayRows, entitlement: str
) -> None:
    put(client, day_row("2026-11-20", element="render", closing=1))
    path = path_of(entitlement, "/usage")
    assert (await api.get(path)).json()["element"] == "render", "the only one"
    put(client, day_row("2026-11-20", element="zoom / pan", closing=2))
    refused = await problem(await api.get(path))
    assert (refused["status"], refused["elements"]) == (422, ["render", "zoom / pan"])
    assert "render, zoom / pan" in refused["detail"]
    assert (await api.get(path, params={"element": "zoom / pan"})).json()["element"] == "zoom / pan"
    put(client, day_row("2026-11-20", element="seats", closing=3))
    assert (await api.get(path)).json()["element"] == "seats", "seats, if there are any"
    unknown = await problem(await api.get(path, params={"element": "plot"}))
    assert (unknown["status"], unknown["type"]) == (404, "urn:seatmark:problem:unknown-element")
    assert unknown["elements"] == ["render", "seats", "zoom / pan"]


@pytest.mark.parametrize("rest", ["", "/usage"])
async def test_an_unknown_entitlement(api: httpx.AsyncClient, entitlement: str, rest: str) -> None:
    unknown = await problem(await api.get(path_of(entitlement, rest)))
    assert (unknown["status"], unknown["type"]) == (404, "urn:seatmark:problem:unknown-entitlement")


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"days": "0"}, "query.days"),
        ({"days": "367"}, "query.days"),
        ({"days": "many"}, "query.days"),
        ({"to": "yesterday"}, "query.to"),
        ({"to": "2026-02-30"}, "query.to"),
    ],
)
async def test_parameters_that_are_not_as_they_should_be(
    api: httpx.AsyncClient, entitlement: str, parameters: dict[str, str], field: str
) -> None:
    refused = await problem(await api.get(path_of(entitlement, "/usage"), params=parameters))
    assert (refused["status"], [error["field"] for error in refused["errors"]]) == (422, [field])


@pytest.mark.parametrize("to", ["2026-11-25", "1969-12-31"])
async def test_a_last_day_out_of_range(
    api: httpx.AsyncClient, client: Client, put: Put, day_row: DayRows, entitlement: str, to: str
) -> None:
    put(client, day_row("2026-11-20"))
    refused = await problem(await api.get(path_of(entitlement, "/usage"), params={"to": to}))
    assert "expected a date from 1970-01-01 to 2026-11-24" in refused["detail"]


async def test_an_entitlement(api: httpx.AsyncClient, client: Client, put: Put, day_row: DayRows, entitlement: str) -> None:
    put(
        client,
        day_row("2026-11-20", element="render", closing=3, kind="counter", customer="cus-old", position=3),
        day_row(
            "2026-11-21", as_of_hours=1.5, closing=12, closing_limit=10, closing_hard_limit=15, closing_terms_known=True,
            state="overdraft", customer="cus-new", product="cad-pro", name="CAD for all", position=4,
        ),
    )  # fmt: skip
    assert (await api.get(path_of(entitlement))).json() == {
        "entitlement": entitlement, "customer": "cus-new", "product": "cad-pro", "name": "CAD for all", "timezone": "UTC",
        "elements": [
            {"element": "render", "kind": "counter", "level": 3, "limit": None, "hard_limit": None, "terms_known": False,
             "state": "within", "since": None, "as_of": "2026-11-20T00:00:00.000Z"},
            {"element": "seats", "kind": "pool", "level": 12, "limit": 10, "hard_limit": 15, "terms_known": True,
             "state": "overdraft", "since": None, "as_of": "2026-11-21T01:30:00.000Z"},
        ],
    }  # fmt: skip


async def test_alive_and_ready(api: httpx.AsyncClient) -> None:
    assert (await api.get("/livez")).json() == {"status": "alive"}
    response = await api.get("/readyz")
    assert (response.status_code, response.json()) == (200, {"status": "ready", "dependencies": {"clickhouse": "ok"}})


async def test_the_log_says_when_it_is_no_longer_ready_and_when_it_is_again(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "views")
    away = [False]

    def broker() -> None:
        if away[0]:
            raise ConnectionError("no broker at 127.0.0.1:19092")

    app = create_app(store, sign_in=False, checks={"broker": broker})
    async with client_of(app) as api:
        for away[0] in (False, True, True, False, False):
            await api.get("/readyz")
    assert [(record.levelname, record.getMessage()) for record in caplog.records if record.name == "views.web.app"] == [
        ("WARNING", "not ready: broker: no broker at 127.0.0.1:19092"),
        ("INFO", "ready again"),
    ]


async def test_it_says_where_it_listens_and_that_it_cannot_work(absent_store: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "views")
    stop = asyncio.Event()
    stop.set()
    [port] = free_ports(1)
    await serve(create_app(absent_store, sign_in=False), "127.0.0.1", port, stop)
    warning, listening = [record for record in caplog.records if record.name == "views.web.app"]
    assert warning.levelname == "WARNING"
    assert warning.getMessage().startswith(f"not ready: clickhouse: ClickHouse at {absent_store.address} does not answer")
    assert (listening.levelname, listening.getMessage()) == ("INFO", f"listening on http://127.0.0.1:{port}")


@pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.7"])
async def test_an_address_that_cannot_be_had_is_explained(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen) as refused:
            await listen(Starlette(), host, port, asyncio.Event(), settings="SEATMARK_COLLECT")
    assert str(refused.value).startswith(f"cannot listen on {host}:{port} (")
    assert str(refused.value).endswith("): choose another SEATMARK_COLLECT_PORT or SEATMARK_COLLECT_HOST")


async def test_not_ready_names_each_dependency(store: Store) -> None:
    def broker() -> None:
        raise ConnectionError("no broker at 127.0.0.1:19092")

    async with client_of(create_app(store, sign_in=False, checks={"broker": broker, "sink": lambda: None})) as api:
        refused = await problem(await api.get("/readyz"))
    assert refused["status"] == 503
    assert refused["detail"] == "broker: no broker at 127.0.0.1:19092"
    assert refused["dependencies"] == {"clickhouse": "ok", "broker": "no broker at 127.0.0.1:19092", "sink": "ok"}


@pytest.fixture
def absent_store() -> Any:
    """A store where nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield Store(f"http://seatmark:geheim@127.0.0.1:{unused.getsockname()[1]}/db")


@pytest.mark.parametrize("path", ["/api/v1/entitlements/e", "/api/v1/entitlements/e/usage", "/api/v1/overdrafts", "/readyz"])
async def test_without_clickhouse(absent_store: Store, path: str) -> None:
    async with client_of(create_app(absent_store, sign_in=False)) as api:
        refused = await problem(await api.get(path))
        assert (await api.get("/livez")).status_code == 200
    assert refused["status"] == 503
    assert "does not answer" in refused["detail"]
    assert "geheim" not in str(refused)


async def test_before_the_migrations(new_database: Callable[[], str]) -> None:
    store = Store(new_database())
    async with client_of(create_app(store, sign_in=False)) as api:
        refused = await problem(await api.get("/readyz"))
    store.close()
    assert "run the migrations" in refused["detail"]


async def test_other_paths_methods_and_failures_are_problems_too(
    api: httpx.AsyncClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await problem(await api.get("/nowhere")))["status"] == 404
    response = await api.post("/livez")
    assert (await problem(response))["status"] == 405
    assert response.headers["allow"] == "GET"
    monkeypatch.setattr(store, "query", lambda name, **parameters: 1 / 0)
    failed = await problem(await api.get("/api/v1/overdrafts"))
    assert (failed["status"], failed["detail"]) == (500, "Seatmark failed to answer; its log says why")


async def test_metrics_are_by_route(api: httpx.AsyncClient, entitlement: str) -> None:
    await api.get(path_of(entitlement))
    text = generate_latest().decode()
    assert 'seatmark_http_requests_total{route="/api/v1/entitlements/{entitlement:path}",status="404"}' in text
    assert entitlement not in text
    # They have a port of their own.
    assert (await api.get("/metrics")).status_code == 404


async def test_every_field_and_parameter_is_described(api: httpx.AsyncClient) -> None:
    document = (await api.get("/openapi.json")).json()
    of_one = "/api/v1/entitlements/{entitlement}"
    assert set(document["paths"]) == {
        "/api/v1/entitlements", "/api/v1/entitlements.csv", of_one, f"{of_one}/usage", f"{of_one}/usage.csv",
        f"{of_one}/history", f"{of_one}/history.csv", f"{of_one}/holders", f"{of_one}/holders.csv", f"{of_one}/episodes",
        f"{of_one}/episodes.csv", f"{of_one}/sizing", "/api/v1/overdrafts", "/api/v1/overdrafts.csv", "/api/v1/episodes",
        "/api/v1/episodes.csv",
        "/api/v1/events", "/livez", "/readyz",
    }  # fmt: skip
    for name in ("UsageDay", "Overdraft", "ListedElement"):
        numbers = document["components"]["schemas"][name]["properties"]
        undescribed = {field for field, about in numbers.items() if "description" not in about}
        assert undescribed <= {"entitlement", "customer", "product", "name", "day", "state"}
    for operations in document["paths"].values():
        for operation in operations.values():
            assert operation["description"]
            for status, answer in operation["responses"].items():
                [kind] = answer["content"]
                assert (kind == "application/problem+json") == (status >= "400")
            for parameter in operation.get("parameters", []):
                assert parameter["in"] == "path" or parameter["description"]


async def test_the_reference_needs_nothing_from_elsewhere(api: httpx.AsyncClient) -> None:
    page = (await api.get("/docs")).text
    assert "GET /api/v1/overdrafts" in page
    assert "overdraft_seconds" in page
    for loads in ("<script", "src=", "http://", "https://", "@import", "url("):
        assert loads not in page


async def test_the_reference_of_events_has_every_type_and_field(api: httpx.AsyncClient) -> None:
    page = (await api.get("/docs/events")).text
    for name in ("entitlement-events", "overdraft-alerts"):
        document = (await api.get(f"/schemas/{name}.schema.json")).json()
        assert document["$id"].startswith(f"urn:seatmark:schema:{name}:")
        for word in (*document["properties"], *document["properties"]["type"]["enum"]):
            assert word in page
    for word in ("seatmark-reason", "key_mismatch", "retention.ms", "data.entered_at", "lease_expires_at"):
        assert word in page
    for loads in ("<script", "src=", "http://", "https://", "@import", "url("):
        assert loads not in page


async def test_the_contract_is_served_for_programs(api: httpx.AsyncClient) -> None:
    answer = await api.get("/schemas/asyncapi.json")
    assert answer.json() == asyncapi()
    for ref in re.findall(r'"\./([^"]+)"', answer.text):
        assert (await api.get(f"/schemas/{ref}")).headers["content-type"] == "application/schema+json"
    refused = await api.get("/schemas/topics.yaml")
    assert refused.status_code == 404
    assert "asyncapi.json" in refused.json()["detail"]


async def test_serving_ends_when_it_is_told_to(store: Store) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    stop = asyncio.Event()
    serving = asyncio.create_task(serve(create_app(store, sign_in=False), "127.0.0.1", port, stop))
    async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(retries=10)) as client:
        assert (await client.get(f"http://127.0.0.1:{port}/livez")).status_code == 200
    with pytest.raises(CannotListen, match=r"\(Address already in use\): choose another SEATMARK_WEB_PORT"):
        await serve(create_app(store, sign_in=False), "127.0.0.1", port, stop)
    stop.set()
    await serving
