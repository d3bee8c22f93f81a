"""What a process answers about itself, and that it ends when its event loop hangs."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from processors import health as health_module
from processors.health import EXIT_STUCK, Check, Health, PortTaken, served, watched

ROOT = Path(__file__).parents[2]


@pytest.fixture
def health() -> Health:
    fresh = Health()
    fresh.turned()
    return fresh


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The time that `processors.health` sees, as a list of one."""
    now = [1000.0]
    monkeypatch.setattr(health_module.time, "monotonic", lambda: now[0])
    return now


def test_a_new_process_is_alive_and_not_ready() -> None:
    assert Health().live() == (True, {"status": "alive", "checks": {"loop": {"ok": True, "why": "turns"}}})
    ok, told = Health().ready()
    assert not ok
    assert told == {
        "status": "not ready",
        "checks": {"loop": {"ok": True, "why": "turns"}, "started": {"ok": False, "why": "starting"}},
    }


def test_a_loop_that_has_not_turned_for_half_a_minute_is_neither_alive_nor_ready(clock: list[float]) -> None:
    health = Health()
    health.checks = {"brokers": Check(True, "answer")}
    clock[0] += 29
    assert (health.live()[0], health.ready()[0]) == (True, True)
    clock[0] += 1
    assert (health.live()[0], health.ready()[0]) == (False, False)
    assert health.loop() == Check(False, "has not turned for 30 s")
    health.turned()
    assert (health.live()[0], health.ready()[0]) == (True, True)


def test_what_is_served(health: Health) -> None:
    with served(health, 0, "127.0.0.1") as port, httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        assert client.get("/livez").status_code == 200
        assert client.get("/readyz").status_code == 503
        health.checks = {"brokers": Check(False, "do not answer (TimeoutError)"), "assigned": Check(True, "partitions [0]")}
        answer = client.get("/readyz?verbose")
        assert (answer.status_code, answer.headers["content-type"]) == (503, "application/json")
        assert answer.json()["checks"]["brokers"] == {"ok": False, "why": "do not answer (TimeoutError)"}
        assert answer.json()["checks"]["assigned"] == {"ok": True, "why": "partitions [0]"}
        health.checks = {"brokers": Check(True, "answer")}
        answer = client.get("/readyz")
        assert (answer.status_code, answer.json()["status"]) == (200, "ready")
        metrics = client.get("/metrics")
        assert metrics.status_code == 200
        assert "# TYPE" in metrics.text
        assert client.get("/").status_code == 404
        assert client.post("/livez").status_code == 501


def test_who_hangs_up_is_no_news(health: Health, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    caplog.set_level("DEBUG", "processors.health")
    with served(health, 0, "127.0.0.1") as port:
        with socket.create_connection(("127.0.0.1", port)) as asking:
            asking.sendall(b"GET /met")
            # Closed with a reset, and not in order.
            asking.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        deadline = time.monotonic() + 60
        while not caplog.records:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("DEBUG", "a request for health or metrics broke off")
    ]
    assert capsys.readouterr().err == ""


def test_a_port_that_is_taken_is_told(health: Health) -> None:
    with served(health, 0, "127.0.0.1") as port:
        told = rf"cannot listen on 127.0.0.1:{port} \(Address already in use\): choose another SEATMARK_METRICS_PORT"
        with pytest.raises(PortTaken, match=told), served(health, port, "127.0.0.1"):
            pass


async def test_a_loop_that_turns_is_left_alone_and_one_that_does_not_is_ended(health: Health) -> None:
    ended = threading.Event()
    told: list[str] = []

    def end(why: str) -> None:
        told.append(why)
        ended.set()

    with watched(health, 0.5, tick=0.01, end=end):
        # For longer than the limit, in turns of the watchdog.
        for _ in range(10):
            health.turned()
            await asyncio.sleep(0.1)
        assert told == []
        # As a loop that is blocked: nothing else turns it.
        assert ended.wait(60)
    assert told == ["the event loop has not turned for 0 s (SEATMARK_STUCK_AFTER)"]


def test_the_process_that_is_ended_shows_where_it_hangs() -> None:
    """Each thread, by faulthandler; and each task where the loop itself still turns."""
    program = """
import asyncio, time
from processors.health import Health, end_process, watched

def blocks_the_loop():
    time.sleep(3600)

async def main():
    blocks_the_loop()

with watched(Health(), 0.2, tick=0.05):
    asyncio.run(main())
"""
    done = run(program)
    assert done.returncode == EXIT_STUCK == 3
    assert done.stderr.startswith(
        "seatmark: the event loop has not turned for 0 s (SEATMARK_STUCK_AFTER). The process ends itself"
    )
    assert "in blocks_the_loop" in done.stderr

    program = """
import asyncio
from processors.health import end_process

async def waits_for_ever():
    await asyncio.Event().wait()

async def calls_it():
    await waits_for_ever()

async def main():
    task = asyncio.ensure_future(calls_it())
    await asyncio.sleep(0)
    end_process("nothing goes on", asyncio.all_tasks())

asyncio.run(main())
"""
    done = run(program)
    assert done.returncode == EXIT_STUCK
    assert done.stderr.startswith("seatmark: nothing goes on. The process ends itself, to be started again\n")
    assert re.search(r"line 9 in calls_it\n.* line 6 in waits_for_ever\n.* in wait\n", done.stderr)


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
