"""The web application: routes and their answers, and how it is served."""

import asyncio
import contextlib
import gc
import logging
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from schemas.asyncapi import asyncapi, json_schema, json_schemas
from schemas.errors import Explained
from views.store import Store
from views.web import api, assets, metrics, pages
from views.web.access import Access, SignInNeeded
from views.web.answers import Alive, Ready
from views.web.event_reference import events_page
from views.web.live import STOP
from views.web.problems import Problem, answer_with_problems, describe_problems, problem_response
from views.web.reference import reference_page

logger = logging.getLogger(__name__)

_ABOUT = """Seats and features of software entitlements: how they were used day by day, how they stand, and who is in overdraft.

Times are RFC 3339 in UTC; dates are days of the reporting time zone, which every answer names.
Errors are `application/problem+json` (RFC 9457)."""

_THIS_MACHINE = ("127.0.0.1", "localhost", "::1")

# Everything comes from here: no script, style, font or image from elsewhere, none within the page, and no frame around it.
_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        b"form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
]


class CannotListen(Explained):
    """Nothing can listen at the address."""


def create_app(
    store: Store,
    *,
    sign_in: bool,
    checks: Mapping[str, Callable[[], None]] | None = None,
    clock: Callable[[], float] = time.time,
) -> FastAPI:
    """The application.

    store: what it answers from; the application does not close it.
    sign_in: ask everybody for a token. Without, all may see everything: only for an address that nobody else can reach.
    checks: what else must work for it to be ready, by name: raises an exception whose text says what is wrong. May block.
    clock: the present, in seconds since 1970.
    """
    app = FastAPI(title="Seatmark", version="1", description=_ABOUT, docs_url=None, redoc_url=None)

    def prepare() -> None:
        app.openapi()
        pages.prepare(store, app.state.access.now_ms())

    answer_with_problems(app)
    app.add_middleware(GZipMiddleware, minimum_size=2000, compresslevel=5)
    app.add_middleware(_Guarded, only_this_machine=not sign_in)
    app.add_middleware(_Measured)
    app.state.access = Access(store, sign_in, lambda: int(clock() * 1000))
    app.state.problem_page = _problem_page
    app.state.prepare = prepare
    app.include_router(api.router)
    app.include_router(assets.router)

    @app.exception_handler(SignInNeeded)
    def sign_in_first(request: Request, _: SignInNeeded) -> Response:
        if request.headers.get("sec-fetch-site") == "cross-site":
            # A link from elsewhere comes without our cookie; asked for once more by our own page, it comes with it.
            return pages.drawn("same_site.html")
        path = pages.address_of(request) + (f"?{request.url.query}" if request.url.query else "")
        return RedirectResponse(f"/sign-in?next={quote(path, safe='')}", 303)

    def clickhouse() -> None:
        store.reporting_timezone()

    @app.get("/livez", tags=["operation"])
    def livez() -> Alive:
        """Whether the process answers; nothing else is looked at."""
        return Alive(status="alive")

    was_ready = True

    def outcomes() -> tuple[dict[str, str], str]:
        """Of each thing that is needed, by name, `ok` or what is wrong; and what is wrong with any. A change is logged."""
        nonlocal was_ready
        needed = {"clickhouse": clickhouse, **(checks or {})}
        dependencies = {name: _outcome(check) for name, check in needed.items()}
        wrong = "; ".join(f"{name}: {outcome}" for name, outcome in dependencies.items() if outcome != "ok")
        if wrong and was_ready:
            logger.warning("not ready: %s", wrong)
        elif not wrong and not was_ready:
            logger.info("ready again")
        was_ready = not wrong
        return dependencies, wrong

    # So that the log says it, also where nobody probes.
    app.state.look = outcomes

    @app.get("/readyz", responses={503: api.ERRORS[503]}, tags=["operation"])
    def readyz() -> Ready:
        """Whether the process can answer requests: each of the things that it needs is tried."""
        dependencies, wrong = outcomes()
        if wrong:
            raise Problem(503, "not-ready", wrong, dependencies=dependencies)
        return Ready(status="ready", dependencies=dependencies)

    @app.get("/docs", include_in_schema=False)
    def docs() -> Response:
        """The API for people: the OpenAPI document as one page that needs nothing else."""
        return Response(
            reference_page(app.openapi(), assets.static("reference.css"), assets.static("icon.svg")), media_type="text/html"
        )

    @app.get("/docs/events", include_in_schema=False)
    def docs_of_events() -> Response:
        """What goes over Kafka, for people: the AsyncAPI document and its schemas as one page."""
        schemas = {name: json_schema(name) for name in json_schemas()}
        return Response(
            events_page(asyncapi(), schemas, assets.static("reference.css"), assets.static("icon.svg")), media_type="text/html"
        )

    @app.get("/schemas/{name}", include_in_schema=False)
    def contract(name: str) -> Response:
        """The contract for programs: the AsyncAPI document, and the JSON Schemas that it refers to."""
        if name == "asyncapi.json":
            return JSONResponse(asyncapi())
        if name not in json_schemas():
            raise Problem(404, "not-found", f"there is no schema {name!r}: expected asyncapi.json, {', '.join(json_schemas())}")
        return JSONResponse(json_schema(name), media_type="application/schema+json")

    # Last: the paths of entitlements are open ended.
    app.include_router(pages.router)

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            describe_problems(document)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    return app


async def serve(app: FastAPI, host: str, port: int, stop: asyncio.Event) -> None:
    """Serve the web: as `listen`, once it is prepared, so that who comes first does not wait longer than others.

    Raises CannotListen.
    """
    await asyncio.to_thread(app.state.prepare)
    await asyncio.to_thread(app.state.look)
    # All that is loaded by now stays: the garbage collector need not look through it in the middle of a request.
    gc.collect()
    gc.freeze()
    await listen(app, host, port, stop, settings="SEATMARK_WEB")


async def listen(app: ASGIApp, host: str, port: int, stop: asyncio.Event, *, settings: str) -> None:
    """Serve any application until `stop` is set; requests that are being answered then still are.

    settings: how the names of those that say where begin. Raises CannotListen.
    """
    ipv6 = ":" in host
    address = f"[{host}]:{port}" if ipv6 else f"{host}:{port}"
    try:
        # Listening is ours, because uvicorn would end the process where it cannot.
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ipv6 else socket.AF_INET)
    except OSError as error:
        # Python adds the address to it.
        why = str(error.strerror).partition(" (while")[0]
        raise CannotListen(f"cannot listen on {address} ({why}): choose another {settings}_PORT or {settings}_HOST") from error
    with listening as listener:
        logger.info("listening on http://%s", address)

        async def with_stop(scope: Scope, receive: Receive, send: Send) -> None:
            scope[STOP] = stop
            await app(scope, receive, send)

        server = _Server(uvicorn.Config(with_stop, log_config=None, access_log=False, lifespan="off"))
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


class _Guarded:
    """Says to browsers what our pages may do, and, without sign-in, answers only who asks for this machine by its own name.

    Without that, a page of another site could have its own name lead to 127.0.0.1, and read everything.
    """

    def __init__(self, app: ASGIApp, *, only_this_machine: bool) -> None:
        self._app = app
        self._only_this_machine = only_this_machine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._only_this_machine:
            host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
            if urlsplit(f"//{host}").hostname not in _THIS_MACHINE:
                detail = (
                    f"without sign-in only {', '.join(_THIS_MACHINE)} are answered, not {host!r}: leave SEATMARK_AUTH=off out"
                )
                request = Request(scope, receive)
                await problem_response(request, Problem(421, "misdirected-request", detail))(scope, receive, send)
                return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *_HEADERS]}
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _problem_page(problem: Problem) -> Response:
    return pages.drawn("problem.html", problem.status, status=problem.status, title=problem.title, detail=problem.detail)


def _outcome(check: Callable[[], object]) -> str:
    try:
        check()
    except Exception as error:
        return str(error) or repr(error)
    return "ok"
