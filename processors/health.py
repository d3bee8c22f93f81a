"""Whether a process is well: what it answers on its port, and the thread that ends it when its event loop hangs.

Both are threads beside the event loop, so that they work when it does not. What there is to tell is put together inside the
loop (processors/progress.py).
"""

import asyncio
import faulthandler
import gc
import inspect
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from typing import Any, NamedTuple, NoReturn
from urllib.parse import urlsplit

from prometheus_client.exposition import MetricsHandler

from schemas.errors import Explained

logger = logging.getLogger(__name__)

# Of a process that ended itself because it did not get on; a supervisor is to start it again.
EXIT_STUCK = 3

# The loop turns twice a second. Putting together the state after a recovery takes it for seconds, where there is much.
_LIVE_SECONDS = 30.0
_STDERR = 2


class PortTaken(Explained):
    """Nothing can listen on the port for health and metrics."""


class Check(NamedTuple):
    """One thing that must be so for a process to do its work, and a word of why it is or is not."""

    ok: bool
    why: str


class Health:
    """What a process knows of itself. Written by its event loop, read by other threads.

    checks: by name, replaced as a whole. turns: how often the loop has said that it turns.
    """

    def __init__(self) -> None:
        self.checks: Mapping[str, Check] = {"started": Check(False, "starting")}
        self.turns = 0
        self._turned_at = time.monotonic()

    def turned(self) -> None:
        """Note that the event loop turns."""
        self.turns += 1
        self._turned_at = time.monotonic()

    def loop(self) -> Check:
        """Whether the event loop turns."""
        seconds = time.monotonic() - self._turned_at
        if seconds < _LIVE_SECONDS:
            return Check(True, "turns")
        return Check(False, f"has not turned for {seconds:.0f} s")

    def live(self) -> tuple[bool, dict[str, object]]:
        """Whether the process is alive, and the document that says so."""
        return _told({"loop": self.loop()}, "alive", "hangs")

    def ready(self) -> tuple[bool, dict[str, object]]:
        """Whether the process does its work, and the document that says of each check why."""
        return _told({"loop": self.loop(), **self.checks}, "ready", "not ready")


def _told(checks: Mapping[str, Check], yes: str, no: str) -> tuple[bool, dict[str, object]]:
    ok = all(check.ok for check in checks.values())
    return ok, {"status": yes if ok else no, "checks": {name: check._asdict() for name, check in checks.items()}}


@contextmanager
def served(health: Health | None, port: int, host: str = "0.0.0.0") -> Iterator[int]:
    """Serve /metrics, /livez and /readyz meanwhile; gives the port, which is a free one for port 0.

    health: None for a process that answers the latter two elsewhere. Raises PortTaken.
    """

    class Handler(_Handler):
        of = health

    try:
        listening = _Server((host, port), Handler)
    except OSError as error:
        raise PortTaken(f"cannot listen on {host}:{port} ({error.strerror}): choose another SEATMARK_METRICS_PORT") from error
    with listening as server:
        thread = threading.Thread(target=server.serve_forever, name="seatmark-health", daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Somebody asked, and did not wait for the answer. Python's own would write that to stderr, with their address."""
        logger.debug("a request for health or metrics broke off", exc_info=True)


class _Handler(MetricsHandler):
    of: Health | None

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/metrics":
            super().do_GET()
        elif path == "/livez" and self.of is not None:
            self._answer(*self.of.live())
        elif path == "/readyz" and self.of is not None:
            self._answer(*self.of.ready())
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _answer(self, ok: bool, document: Mapping[str, object]) -> None:
        body = json.dumps(document, indent=2).encode() + b"\n"
        self.send_response(HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def end_process(why: str, tasks: Iterable["asyncio.Task[Any]"] = ()) -> NoReturn:
    """End this process at once, with EXIT_STUCK: on stderr is why, and where each thread and each of these tasks stands.

    Written without `logging`, which may be what hangs.
    """
    stacks = "".join(f"Task {task.get_name()}:\n{''.join(_where(task.get_coro()))}\n" for task in tasks)
    os.write(_STDERR, f"seatmark: {why}. The process ends itself, to be started again\n{stacks}".encode())
    faulthandler.dump_traceback(_STDERR, all_threads=True)
    os._exit(EXIT_STUCK)


def _where(waiting: Any) -> Iterator[str]:
    """Where a coroutine stands, and what it awaits, innermost last. (A task's own `print_stack` shows the outermost only.)"""
    while waiting is not None:
        for kind, awaits in (("cr", "cr_await"), ("gi", "gi_yieldfrom"), ("ag", "ag_await")):
            frame = getattr(waiting, f"{kind}_frame", None)
            if frame is not None:
                yield f'  File "{frame.f_code.co_filename}", line {frame.f_lineno} in {frame.f_code.co_name}\n'
                waiting = getattr(waiting, awaits)
                break
        else:
            # Such as what `__await__` and `__anext__` give: it does not tell what it holds.
            waiting = next(filter(_can_wait, gc.get_referents(waiting)), None)


def _can_wait(thing: object) -> bool:
    return inspect.iscoroutine(thing) or inspect.isgenerator(thing) or inspect.isasyncgen(thing)


@contextmanager
def watched(
    health: Health, stuck_after: float, *, tick: float = 1.0, end: Callable[[str], object] = end_process
) -> Iterator[None]:
    """End the process when its event loop does not turn for `stuck_after` seconds meanwhile.

    Not the clock is looked at but how often this thread itself woke up: a process that was stopped, or a machine that was
    suspended, is no event loop that hangs.
    """
    over = threading.Event()

    def watch() -> None:
        seen, missed = health.turns, 0
        while not over.wait(tick):
            missed = missed + 1 if health.turns == seen else 0
            seen = health.turns
            if missed * tick >= stuck_after:
                end(f"the event loop has not turned for {missed * tick:.0f} s (SEATMARK_STUCK_AFTER)")
                return

    thread = threading.Thread(target=watch, name="seatmark-watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
