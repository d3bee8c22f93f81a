"""The web application: routes and their answers, and how it is served."""

import asyncio
import contextlib
import datetime
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Query, Response
from fastapi.openapi.utils import get_openapi
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from schemas.events import SEATS, format_time
from views.store import Store, StoreUnavailable
from views.web import metrics
from views.web.answers import Alive, Entitlement, Overdrafts, Ready, Usage
from views.web.problems import Problem, ProblemBody, answer_with_problems, describe_problems
from views.web.reference import reference_page

_ABOUT = """Seats and features of software entitlements: how they were used day by day, how they stand, and who is in overdraft.

Times are RFC 3339 in UTC; dates are days of the reporting time zone, which every answer names.
Errors are `application/problem+json` (RFC 9457)."""

_FIRST_DATE = datetime.date(1970, 1, 1)

_ERRORS: dict[int | str, dict[str, Any]] = {
    404: {"model": ProblemBody, "description": "There is no such entitlement or element"},
    422: {"model": ProblemBody, "description": "A parameter is missing or not as it should be"},
    503: {"model": ProblemBody, "description": "ClickHouse does not answer"},
}


def create_app(
    store: Store,
    *,
    checks: Mapping[str, Callable[[], None]] | None = None,
    clock: Callable[[], float] = time.time,
) -> FastAPI:
    """The application.

    store: what it answers from; the application does not close it.
    checks: what else must work for it to be ready, by name: raises an exception whose text says what is wrong. May block.
    clock: the present, in seconds since 1970.
    """
    app = FastAPI(title="Seatmark", version="1", description=_ABOUT, docs_url=None, redoc_url=None)
    answer_with_problems(app)
    app.add_middleware(_Measured)

    def now() -> str:
        """The present as ClickHouse reads it."""
        return format_time(int(clock() * 1000)).replace("T", " ").rstrip("Z")

    def reporting_day(at: str) -> tuple[str, datetime.date]:
        """The reporting time zone, and the date in it."""
        rows = store.query("reporting_day", at=at)
        if not rows or not rows[0]["timezone"]:
            raise StoreUnavailable(f"ClickHouse at {store.address} has no reporting days: run the migrations")
        return rows[0]["timezone"], datetime.date.fromisoformat(rows[0]["day"])

    def elements_of(entitlement: str) -> list[dict[str, Any]]:
        elements = store.query("entitlement", entitlement=entitlement)
        if not elements:
            raise Problem(404, "unknown-entitlement", f"there is no entitlement {entitlement!r}")
        return elements

    # Ids may hold slashes, so they are matched as paths; the longer route comes first.
    @app.get("/api/v1/entitlements/{entitlement:path}/usage", responses=_ERRORS, tags=["usage"])
    def usage(
        entitlement: str,
        element: Annotated[
            str | None, Query(description="`seats`, or a feature. Default: `seats` if there is one, else the only element")
        ] = None,
        days: Annotated[int, Query(ge=1, le=366, description="how many days, the last one included")] = 30,
        to: Annotated[datetime.date | None, Query(description="the last day, a local date. Default: today")] = None,
    ) -> Usage:
        """How one element of an entitlement was used, day by day."""
        chosen = _choose(entitlement, elements_of(entitlement), element)
        at = now()
        timezone, today = reporting_day(at)
        last_day = today if to is None else to
        if not _FIRST_DATE <= last_day <= today:
            raise Problem(
                422, "invalid-request", f"query.to: expected a date from {_FIRST_DATE} to {today}, today in {timezone}"
            )
        rows = store.query("usage", entitlement=entitlement, element=chosen, last_day=last_day, days=days, at=at)
        return Usage.model_validate({"entitlement": entitlement, "element": chosen, "timezone": timezone, "days": rows})

    @app.get("/api/v1/entitlements/{entitlement:path}", responses=_ERRORS, tags=["usage"])
    def entitlement(entitlement: str) -> Entitlement:
        """An entitlement, and how its elements stand."""
        elements = elements_of(entitlement)
        timezone, _ = reporting_day(now())
        # Each element keeps what its own events said; the latest that says anything says it for the entitlement.
        latest_last = sorted(elements, key=lambda element: element["as_of"])
        said = {field: element[field] for element in latest_last for field in ("customer", "product", "name") if element[field]}
        return Entitlement.model_validate(
            {
                "entitlement": entitlement,
                "customer": said.get("customer"),
                "product": said.get("product"),
                "name": said.get("name"),
                "timezone": timezone,
                "elements": [_with_times(element, "as_of") for element in elements],
            }
        )

    @app.get("/api/v1/overdrafts", responses={503: _ERRORS[503]}, tags=["usage"])
    def overdrafts() -> Overdrafts:
        """Who is above the limit now, the longest first."""
        at = now()
        timezone, _ = reporting_day(at)
        rows = [_with_times(row, "since", "as_of") for row in store.query("overdrafts", at=at)]
        return Overdrafts.model_validate({"timezone": timezone, "overdrafts": rows})

    @app.get("/livez", tags=["operation"])
    def livez() -> Alive:
        """Whether the process answers; nothing else is looked at."""
        return Alive(status="alive")

    @app.get("/readyz", responses={503: _ERRORS[503]}, tags=["operation"])
    def readyz() -> Ready:
        """Whether the process can answer requests: each of the things that it needs is tried."""
        needed = {"clickhouse": lambda: reporting_day(now()), **(checks or {})}
        dependencies = {name: _outcome(check) for name, check in needed.items()}
        failed = [name for name, outcome in dependencies.items() if outcome != "ok"]
        if failed:
            detail = "; ".join(f"{name}: {dependencies[name]}" for name in failed)
            raise Problem(503, "not-ready", detail, dependencies=dependencies)
        return Ready(status="ready", dependencies=dependencies)

    @app.get("/metrics", include_in_schema=False)
    def prometheus_metrics() -> Response:
        """The metrics of this process, for Prometheus."""
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/docs", include_in_schema=False)
    def docs() -> Response:
        """The API for people: the OpenAPI document as one page that needs nothing else."""
        return Response(reference_page(app.openapi()), media_type="text/html")

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes
            )
            describe_problems(app.openapi_schema)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    return app


async def serve(app: ASGIApp, host: str, port: int, stop: asyncio.Event) -> None:
    """Serve an application until `stop` is set; requests that are being answered then still are.

    Raises OSError: nothing can listen there.
    """
    # Listening is ours, because uvicorn would end the process where it cannot.
    with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        server = _Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
        serving = asyncio.ensure_future(server.serve(sockets=[listener]))
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        server.should_exit = True
        await serving


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: whoever sets `stop` decides when it ends."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Measured:
    """Counts and times requests, by route."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500
        started = time.perf_counter()

        async def send_and_see(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_see)
        finally:
            # The pattern, never the path: paths are without end.
            route = getattr(scope.get("route"), "path", "none")
            metrics.REQUESTS.labels(route, status).inc()
            metrics.REQUEST_SECONDS.labels(route).observe(time.perf_counter() - started)


def _choose(entitlement: str, elements: list[dict[str, Any]], asked: str | None) -> str:
    """The element that is meant: the one asked for, else seats, else the only one."""
    names = [str(element["element"]) for element in elements]
    known = f"{entitlement!r} has {', '.join(names)}"
    if asked is not None:
        if asked not in names:
            raise Problem(404, "unknown-element", f"there is no element {asked!r}: {known}", elements=names)
        return asked
    if SEATS in names:
        return SEATS
    if len(names) > 1:
        raise Problem(422, "invalid-request", f"query.element: expected one of the elements, as {known}", elements=names)
    return names[0]


def _with_times(row: dict[str, Any], *fields: str) -> dict[str, Any]:
    """The row with these fields, ms since 1970, as RFC 3339."""
    return row | {field: None if row[field] is None else format_time(row[field]) for field in fields}


def _outcome(check: Callable[[], object]) -> str:
    try:
        check()
    except Exception as error:
        return str(error) or repr(error)
    return "ok"
