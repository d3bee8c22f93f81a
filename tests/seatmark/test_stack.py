"""The embedded stack as a user meets it: `seatmark up` and the commands, as processes of their own."""

import asyncio
import csv
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import clickhouse_connect
import httpx
import orjson
import psutil
import pyarrow as pa
import pytest
from aiokafka import AIOKafkaProducer

from deploy.kafka.cluster import free_ports
from processors.brokers import Brokers
from seatmark.produce import worker_applied
from tests.web.test_pages import table
from views.web.wording import duration

pytestmark = pytest.mark.stack

# Two people of a made-up vendor: at most 2 out on the first day and 3 on the third, 1 kept over the second. Saturday 5 April
# 2025 has no line of its own.
FLEXNET_LOG = """\
 8:00:00 (lmgrd) FlexNet Licensing (v11.16.2.0 build 242645 x64_n6) started on lic01 (linux) (4/4/2025)
 8:00:01 (acmed) Server started on lic01 for:\tRENDER
 9:00:00 (acmed) OUT: "RENDER" ann@wks1
10:00:00 (acmed) OUT: "RENDER" bob@wks2
11:00:00 (acmed) IN: "RENDER" ann@wks1  (INACTIVE)
11:30:00 (acmed) DENIED: "RENDER" eve@wks9  (Licensed number of users already reached. (-4,342))
11:59:00 (lmgrd) TIMESTAMP 4/4/2025
 0:30:00 (lmgrd) TIMESTAMP 4/6/2025
 9:00:00 (acmed) OUT: "RENDER" ann@wks1 (2 licenses)
17:00:00 (acmed) IN: "RENDER" ann@wks1 (2 licenses)
18:00:00 (acmed) IN: "RENDER" bob@wks2  (SHUTDOWN)
"""


class RunningStack:
    """`seatmark up` on a data directory, and commands against it."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.port, self.broker_port, self.clickhouse_port = free_ports(3)
        self.environment = {
            **os.environ,
            "SEATMARK_BROKERS": f"127.0.0.1:{self.broker_port}",
            "SEATMARK_URL": f"http://127.0.0.1:{self.port}",
            "SEATMARK_CLICKHOUSE_DSN": f"http://127.0.0.1:{self.clickhouse_port}/default",
        }
        self._up: subprocess.Popen[str] | None = None

    def start(self) -> str:
        """Start, and wait until it says that it is up; what it said until then."""
        ports = ["--port", str(self.port), "--broker-port", str(self.broker_port)]
        ports += ["--clickhouse-port", str(self.clickhouse_port)]
        self._up = subprocess.Popen(
            [*SEATMARK, "up", "--data-dir", str(self.data_dir), *ports],
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        said = ""
        assert self._up.stderr is not None
        for line in self._up.stderr:
            said += line
            if "Seatmark is up" in line:
                return said
        raise AssertionError(f"it did not come up:\n{said}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop it; its exit code."""
        assert self._up is not None
        assert self._up.stderr is not None
        self._up.send_signal(number)
        self._up.stderr.read()
        return self._up.wait(60)

    def kill(self) -> None:
        """Whatever is left of it is gone."""
        if self._up is not None and self._up.poll() is None:
            for process in [*psutil.Process(self._up.pid).children(recursive=True), psutil.Process(self._up.pid)]:
                process.kill()
            self._up.wait()

    def children(self) -> list[psutil.Process]:
        """The processes of all parts: broker, store and worker."""
        assert self._up is not None
        return psutil.Process(self._up.pid).children()

    def child(self, command: str) -> psutil.Process:
        """The process of one part."""
        [child] = [process for process in self.children() if process.cmdline()[-1:] == [command]]
        return child

    def run(self, *arguments: str, given: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
        """Run a command to its end."""
        return subprocess.run([*SEATMARK, *arguments], env=self.environment, input=given, capture_output=True, timeout=120)

    def usage(self, entitlement: str, *arguments: str) -> list[dict[str, Any]]:
        """The days of `seatmark usage --format json`."""
        done = self.run("usage", entitlement, "--format", "json", *arguments)
        assert done.returncode == 0, done.stderr.decode()
        days: list[dict[str, Any]] = json.loads(done.stdout)["days"]
        return days


SEATMARK = [sys.executable, "-m", "seatmark"]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    stack = RunningStack(tmp_path_factory.mktemp("stack") / "data")
    try:
        stack.start()
        yield stack
    finally:
        stack.kill()


def imported(stack: RunningStack, log: Path, entitlement: str) -> str:
    """Import the log; the summary that the command printed."""
    done = stack.run("import", "flexnet", str(log), "--entitlement", entitlement, "--customer", "acme")
    assert done.returncode == 0, done.stderr.decode()
    return done.stderr.decode()


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "acmed.log"
    path.write_text(FLEXNET_LOG)
    return path


COLUMNS = ("day", "opening", "min", "max", "closing", "limit", "hard_limit", "activations", "deactivations", "denials")
# Worked out by hand from the log above, with a limit of 1 and an overdraft of 1.
EXPECTED = [
    ("2025-04-03", 0, 0, 0, 0, None, None, 0, 0, 0),
    ("2025-04-04", 0, 0, 2, 1, 1, 2, 2, 1, 1),
    ("2025-04-05", 1, 1, 1, 1, 1, 2, 0, 0, 0),
    ("2025-04-06", 1, 0, 3, 0, 1, 2, 1, 2, 0),
]


def columns(days: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [tuple(day[name] for name in COLUMNS) for day in days]


def test_a_flexnet_log_and_terms_become_the_days_worked_out_by_hand(stack: RunningStack, log: Path) -> None:
    done = stack.run("terms", "acme-1", "--element", "RENDER", "--limit", "1", "--overdraft", "absolute:1",
                     "--at", "2025-04-04T00:00:00Z")  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    summary = imported(stack, log, "acme-1")
    assert "3 feature.checked_out" in summary
    assert "3 feature.returned" in summary
    assert "1 feature.denied" in summary
    days = stack.usage("acme-1", "--element", "RENDER", "--to", "2025-04-06", "--days", "4")
    assert columns(days) == EXPECTED
    # 10:00 to 11:00 two were out of one; on the third day 9:00 to 17:00 three.
    assert [day["overdraft_seconds"] for day in days] == [0, 3600, 0, 8 * 3600]
    # 9-10 one, 10-11 two, 11-24 one; all day one; 0-9 one, 9-17 three, 17-18 one.
    assert [day["unit_seconds"] for day in days] == [0, 16 * 3600, 24 * 3600, 34 * 3600]
    assert [day["state"] for day in days] == ["final"] * 4

    imported(stack, log, "acme-1")
    again = stack.usage("acme-1", "--element", "RENDER", "--to", "2025-04-06", "--days", "4")
    assert columns(again) == EXPECTED

    printed = stack.run("usage", "acme-1", "--to", "2025-04-06", "--days", "4").stdout.decode()
    assert "2025-04-06" in printed
    as_csv = stack.run("usage", "acme-1", "--to", "2025-04-06", "--days", "4", "--format", "csv").stdout.decode()
    assert [row["max"] for row in csv.DictReader(io.StringIO(as_csv))] == ["0", "2", "1", "3"]
    assert_all_say(stack, "acme-1", "RENDER", "2025-04-06", days)


def assert_all_say(stack: RunningStack, entitlement: str, element: str, to: str, days: list[dict[str, Any]]) -> None:
    """Page, JSON and CSV say of these days the same, every field of them, and the audit has nothing against any number."""
    audit = stack.run("audit")
    assert audit.returncode == 0, audit.stdout.decode() + audit.stderr.decode()
    asked = {"element": element, "to": to, "days": len(days)}
    csv_of = {"None": "", "True": "true", "False": "false"}
    with httpx.Client(base_url=stack.environment["SEATMARK_URL"], params=asked, timeout=60) as web:
        usage = web.get(f"/api/v1/entitlements/{entitlement}/usage").json()["days"]
        lines = csv.DictReader(io.StringIO(web.get(f"/api/v1/entitlements/{entitlement}/usage.csv").text))
        page = web.get(f"/entitlements/{entitlement}", headers={"accept": "text/html"}).text
    assert usage == days
    assert [[line[name] for name in days[0]] for line in lines] == [
        [f"{value:.3f}" if isinstance(value, float) else csv_of.get(str(value), str(value)) for value in day.values()]
        for day in days
    ]
    assert table(page, "days") == [
        [
            day["day"], str(day["min"]), str(day["max"]), str(day["closing"]),
            *("not set" if day[name] is None else str(day[name]) for name in ("limit", "hard_limit")),
            duration(day["overdraft_seconds"]), str(day["peak_overage"] or "\N{EN DASH}"), str(day["activations"]),
            str(day["deactivations"]), str(day["denials"]), day["state"].capitalize(),
        ]
        for day in reversed(days)
    ]  # fmt: skip


def test_files_of_a_rotated_log_become_the_days_of_the_whole_log(stack: RunningStack, tmp_path: Path) -> None:
    older, newer = FLEXNET_LOG.split(" 0:30:00 (lmgrd)")
    (tmp_path / "acmed.log.1").write_text(older)
    (tmp_path / "acmed.log").write_text(" 0:30:00 (lmgrd)" + newer)
    files = [str(tmp_path / "acmed.log"), str(tmp_path / "acmed.log.1")]
    done = stack.run("import", "flexnet", *files, "--entitlement", "acme-6", "--customer", "acme")
    assert done.returncode == 0, done.stderr.decode()
    assert "read in the order of their first lines" in done.stderr.decode()
    days = columns(stack.usage("acme-6", "--to", "2025-04-06", "--days", "4"))
    assert days == [(*day[:5], None, None, *day[7:]) for day in EXPECTED]


def test_terms_tell_what_came_of_them(stack: RunningStack) -> None:
    def told(limit: int, at: str) -> str:
        done = stack.run("terms", "acme-7", "--element", "seats", "--limit", str(limit), "--at", at)
        assert done.returncode == 0
        return done.stderr.decode()

    assert told(10, "2026-02-28T00:00:00Z").endswith(": in force\n")
    # Older than those in force.
    assert "not in force. In force are limit 10" in told(9, "2026-02-01T00:00:00Z")
    # Of the same time as those in force, and given later; then the first ones once more, which count once.
    assert told(12, "2026-02-28T00:00:00Z").endswith(": in force\n")
    assert "not in force. In force are limit 12" in told(10, "2026-02-28T00:00:00Z")


def test_dead_letters_are_sent_again_and_applied(stack: RunningStack) -> None:
    event = {"specversion": "1.0", "id": "1", "source": "/t", "type": "seat.activated", "subject": "acme-8",
             "time": "2026-01-05T10:00:00Z", "data": {"seat_id": "s"}}  # fmt: skip
    bad = orjson.dumps({**event, "id": "2", "data": {}})
    brokers = stack.environment["SEATMARK_BROKERS"]

    async def dead_letter() -> None:
        """Two records that the worker refuses."""
        producer = AIOKafkaProducer(bootstrap_servers=brokers)
        await producer.start()
        try:
            placed = [
                await producer.send_and_wait("entitlement-events", value, key=key, partition=0)
                for key, value in ((b"acme", orjson.dumps(event)), (b"acme-8", bad))
            ]
        finally:
            await producer.stop()
        await worker_applied({0: placed[-1].offset + 1}, brokers=Brokers(brokers), prefix="", seconds=60)

    asyncio.run(dead_letter())
    # A second time it is a repeat.
    for _ in range(2):
        sent = stack.run("replay-dead-letters", "--reason", "key_mismatch", "--reason", "invalid_data")
        assert sent.returncode == 1
        told = sent.stderr.decode()
        assert "sent 1 of the letters with key_mismatch, invalid_data; 1 are still no valid events" in told
        assert "       1 invalid_data: data" in told
    [day] = stack.usage("acme-8", "--to", "2026-01-05", "--days", "1")
    assert (day["max"], day["activations"]) == (1, 1)


def test_a_worker_killed_in_the_middle_of_an_import_changes_nothing(stack: RunningStack, log: Path) -> None:
    stack.run("terms", "acme-2", "--element", "RENDER", "--limit", "1", "--overdraft", "absolute:1",
              "--at", "2025-04-04T00:00:00Z")  # fmt: skip
    stack.child("worker").kill()
    imported(stack, log, "acme-2")
    assert columns(stack.usage("acme-2", "--element", "RENDER", "--to", "2025-04-06", "--days", "4")) == EXPECTED


def test_bad_lines_are_reported_and_the_rest_is_sent(stack: RunningStack) -> None:
    def line(number: int, **fields: Any) -> bytes:
        event = {"specversion": "1.0", "id": f"n{number}", "source": "/t", "type": "seat.activated", "subject": "acme-3",
                 "time": "2026-01-05T10:00:00Z", "data": {"seat_id": f"s{number}"}, **fields}  # fmt: skip
        return orjson.dumps(event)

    lines = [line(1), b"{", line(2, type="seat.stolen"), line(3, data={}), line(4)]
    done = stack.run("produce", "-", given=b"\n".join(lines))
    assert done.returncode == 1
    told = done.stderr.decode()
    assert "line 2: not_json" in told
    assert "line 3: unknown_type" in told
    assert "line 4: invalid_data" in told
    assert "seat_id" in told
    assert "sent 2 events" in told
    [day] = stack.usage("acme-3", "--to", "2026-01-05", "--days", "1")
    assert (day["max"], day["activations"]) == (2, 2)


def test_events_over_http_are_counted(stack: RunningStack) -> None:
    def event(number: int, type: str, hour: int) -> dict[str, Any]:
        return {"specversion": "1.0", "id": str(number), "source": "/t", "type": type, "subject": "acme-6",
                "time": f"2026-01-05T{hour:02}:00:00Z", "data": {"seat_id": f"s{number % 2}"}}  # fmt: skip

    url = f"http://127.0.0.1:{stack.port}/collect/events"
    # The second time it changes nothing.
    for _ in range(2):
        events = [event(1, "seat.activated", 9), event(2, "seat.activated", 10), event(3, "seat.deactivated", 11)]
        answer = httpx.post(url, json=events)
        assert (answer.status_code, answer.json()) == (202, {"accepted": 3})
    assert httpx.post(url, json=events, headers={"host": "elsewhere.example"}).status_code == 421
    assert httpx.post(url, content=orjson.dumps(event(4, "seat.activated", 12))).status_code == 415
    assert stack.run("produce", "-", given=orjson.dumps(event(5, "seat.activated", 13))).returncode == 0
    [day] = stack.usage("acme-6", "--to", "2026-01-05", "--days", "1")
    # 5 activates s1 again.
    assert (day["closing"], day["max"], day["activations"], day["deactivations"]) == (2, 2, 3, 1)


def test_a_lease_that_ran_out_closes_its_hold(stack: RunningStack) -> None:
    event = {"specversion": "1.0", "id": "1", "source": "/t", "type": "seat.activated", "subject": "acme-5",
             "time": "2026-01-05T10:00:00Z", "data": {"seat_id": "s", "lease_expires_at": "2026-01-05T11:00:00Z"}}  # fmt: skip
    assert stack.run("produce", "-", given=orjson.dumps(event)).returncode == 0
    deadline = time.monotonic() + 30
    while True:
        [day] = stack.usage("acme-5", "--to", "2026-01-05", "--days", "1")
        if day["closing"] == 0 or time.monotonic() > deadline:
            break
    # Open until the lease's end and a minute of grace.
    assert (day["closing"], day["max"], day["deactivations"], day["unit_seconds"]) == (0, 1, 1, 3660)


def test_who_is_in_overdraft_now(stack: RunningStack) -> None:
    stack.run("terms", "acme-4", "--element", "seats", "--limit", "0", "--overdraft", "unlimited", "--customer", "acme")
    event = {"specversion": "1.0", "id": "1", "source": "/t", "type": "seat.activated", "subject": "acme-4",
             "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "data": {"seat_id": "s"}}  # fmt: skip
    assert stack.run("produce", "-", given=orjson.dumps(event)).returncode == 0
    listed = json.loads(stack.run("overdrafts", "--format", "json").stdout)["overdrafts"]
    [mine] = [row for row in listed if row["entitlement"] == "acme-4"]
    assert (mine["level"], mine["limit"], mine["hard_limit"], mine["state"]) == (1, 0, None, "overdraft")


def test_what_cannot_be_answered_says_why(stack: RunningStack) -> None:
    unknown = stack.run("usage", "nobody")
    assert unknown.returncode == 1
    assert "nobody" in unknown.stderr.decode()
    bad = stack.run("terms", "acme-9", "--element", "seats", "--limit", "many")
    assert bad.returncode == 2
    assert httpx.get(f"http://127.0.0.1:{stack.port}/livez").status_code == 200


def test_other_programs_ask_clickhouse_and_insert(stack: RunningStack) -> None:
    event = {"specversion": "1.0", "id": "1", "source": "/t", "type": "seat.activated", "subject": "acme-http",
             "time": "2026-01-05T10:00:00Z", "data": {"seat_id": "s"}}  # fmt: skip
    assert stack.run("produce", "-", given=orjson.dumps(event)).returncode == 0
    client = clickhouse_connect.get_client(dsn=f"http://127.0.0.1:{stack.clickhouse_port}/default")
    levels = "SELECT element, level FROM live_levels WHERE entitlement = 'acme-http'"
    assert client.query(levels).result_rows == [("seats", 1)]
    row = {"entitlement": ["acme-http"], "element": ["seats"], "position": pa.array([7], pa.uint64()),
           "through": [date(2026, 1, 6)]}  # fmt: skip
    client.insert_arrow("restatements", pa.table(row))
    assert client.query("SELECT position FROM restatements WHERE entitlement = 'acme-http'").result_rows == [(7,)]
    client.close()


def test_a_taken_data_directory_and_taken_ports_are_told(stack: RunningStack, tmp_path: Path) -> None:
    port, broker_port, clickhouse_port = (str(number) for number in free_ports(3))
    free = {"--port": port, "--broker-port": broker_port, "--clickhouse-port": clickhouse_port}

    def up(data_dir: Path, **ports: str) -> str:
        """What is said of a start that fails."""
        options = free | {"--" + name.replace("_", "-"): number for name, number in ports.items()}
        done = stack.run("up", "--data-dir", str(data_dir), *(text for option in options.items() for text in option))
        assert done.returncode == 1
        return done.stderr.decode()

    assert "another --data-dir" in up(stack.data_dir)
    with socket.create_server(("127.0.0.1", 0)) as server:
        used = str(server.getsockname()[1])
        assert f"cannot listen on 127.0.0.1:{used}" in (said := up(tmp_path / "a", port=used))
        assert "choose another --port" in said
        assert used in up(tmp_path / "b", broker_port=used)
        assert f"cannot listen on 127.0.0.1:{used}" in (said := up(tmp_path / "c", clickhouse_port=used))
        assert "choose another --clickhouse-port" in said


def test_stopped_and_started_again_it_still_has_everything_and_killed_it_leaves_no_process(tmp_path: Path, log: Path) -> None:
    stack = RunningStack(tmp_path / "data")
    try:
        # Before anything has happened it ends cleanly and starts again.
        stack.start()
        assert stack.stop(signal.SIGTERM) == 0
        assert "replaying" not in stack.start()
        # Not waited for: stopping must store it.
        sent = stack.run("import", "flexnet", str(log), "--entitlement", "acme-1", "--no-wait")
        assert sent.returncode == 0, sent.stderr.decode()
        assert stack.stop(signal.SIGINT) == 0
        forgotten = stack.run("forget", "--user", "ann", "--yes", "--data-dir", str(stack.data_dir))
        assert forgotten.returncode == 0, forgotten.stderr.decode()
        # She came twice, and went twice.
        assert "4 rows of 1 element written anew" in forgotten.stderr.decode()
        assert "1 seat id in them replaced" in forgotten.stderr.decode()
        assert "replaying the raw log: 1 element, done" in stack.start()
        history = httpx.get(f"{stack.environment['SEATMARK_URL']}/api/v1/entitlements/acme-1/history").text
        assert "bob@wks2" in history
        assert "ann" not in history
        days = stack.usage("acme-1", "--to", "2025-04-06", "--days", "3")
        assert [(day["min"], day["max"], day["closing"]) for day in days] == [(0, 2, 1), (1, 1, 1), (0, 3, 0)]
        # The rebuilt state goes on where the old one was: the one who comes back is counted once.
        event = {"specversion": "1.0", "id": "back", "source": "/t", "type": "feature.checked_out", "subject": "acme-1",
                 "time": "2025-04-07T09:00:00Z", "data": {"seat_id": "ann@wks1", "element": "RENDER"}}  # fmt: skip
        assert stack.run("produce", "-", given=orjson.dumps(event)).returncode == 0
        [day] = stack.usage("acme-1", "--to", "2025-04-07", "--days", "1")
        assert (day["opening"], day["max"], day["closing"]) == (0, 1, 1)
        children = stack.children()
        assert len(children) == 3
        stack.stop(signal.SIGKILL)
        gone, alive = psutil.wait_procs(children, timeout=30)
        assert (len(gone), alive) == (3, [])
    finally:
        stack.kill()


def test_the_demo_shows_thirty_days_and_ends() -> None:
    port, broker_port, clickhouse_port = (str(number) for number in free_ports(3))
    demo = [*SEATMARK, "demo", "--port", port, "--broker-port", broker_port, "--clickhouse-port", clickhouse_port]
    done = subprocess.run(demo, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=180)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^20\d\d-\d\d-\d\d ", done.stdout, re.MULTILINE)) == 30
    assert "Borealis Studios" in done.stdout
    assert f"http://127.0.0.1:{port}/docs" in done.stderr
