"""`seatmark forget` and what the sink's process does with old rows, and where addresses are truncated."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner, Result

from processors.forget import OthersFirst
from schemas.events import Event, format_time
from seatmark import cli, forget, produce, upkeep
from seatmark.forget import remove_personal_data
from seatmark.produce import produce_lines
from seatmark.settings import load_settings
from tests.miniature import Miniature
from tests.processors.domain.test_ledger import denied
from views.raw_log import HalfForgotten, RawLog, open_raw_log
from views.store import connect

over_http = pytest.mark.parametrize("new_database", ["http"], indirect=True, scope="session")


class Command:
    """The command line on a database with one denied request of a user, as if nothing else ran."""

    def __init__(self, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(forget, "_refuse_while_running", lambda settings: None)
        self._dsn = dsn
        self.subject = f"ent-{uuid.uuid4().hex}"
        self.user = f"ann-{uuid.uuid4().hex}"
        self.client = connect(dsn)
        stack = Miniature(self.client)
        stack.arrive([denied("20T09:00", subject=self.subject, user=self.user, seat_id=self.user)])
        stack.settle()

    def __call__(self, *arguments: str) -> Result:
        environment = {"SEATMARK_CLICKHOUSE_DSN": self._dsn, "TERM": "dumb", "COLUMNS": "400"}
        return CliRunner(env=environment).invoke(cli.app, ["forget", *arguments])

    def stored_user(self) -> str:
        rows = self.client.query(
            "SELECT user FROM activity FINAL WHERE entitlement = {e:String}", parameters={"e": self.subject}
        )
        return str(rows.result_rows[0][0])


@pytest.fixture
def command(database: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    command = Command(database, monkeypatch)
    yield command
    command.client.close()


@over_http
def test_what_would_be_done_is_told_first(command: Command) -> None:
    for arguments in (["--dry-run"], ["--dry-run", "--yes"], []):
        done = command("--user", command.user, *arguments)
        assert "raw log: 1 row of 1 element would be written anew" in done.stderr
        assert "1 seat id in them replaced" in done.stderr
        assert command.stored_user() == command.user
        assert ("give --yes" in done.stderr, done.exit_code) == ((False, 0) if arguments else (True, 1))
        assert command.user not in done.output

    done = command("--user", command.user, "--yes")
    assert "raw log: 1 row of 1 element written anew" in done.stderr
    assert command.user not in done.output
    assert done.exit_code == 0
    assert command.stored_user().startswith("forgotten-")
    assert "raw log: 0 rows of 0 elements" in command("--user", command.user).stderr


@over_http
def test_a_run_that_was_ended_is_ended_by_the_next(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(RawLog, "drop_replaced", None)
        assert isinstance(command("--user", command.user, "--yes").exception, TypeError)
    with pytest.raises(HalfForgotten):
        open_raw_log(command.client, "entitlement-events")
    assert isinstance(command("--user", "bob", "--yes").exception, OthersFirst)
    # Nothing is left to ask about.
    assert command("--user", command.user).exit_code == 0
    open_raw_log(command.client, "entitlement-events")
    on_disk = "SELECT count() FROM activity WHERE position(event, {user:String}) > 0"
    assert command.client.query(on_disk, parameters={"user": command.user}).result_rows == [(0,)]


@over_http
def test_options_that_make_no_sense_are_refused(command: Command, tmp_path: Path) -> None:
    assert command("--user", "").exit_code == 2
    assert command("--yes").exit_code == 2
    nowhere = command("--user", "ann", "--data-dir", str(tmp_path))
    assert nowhere.exit_code == 2
    assert "there is no embedded stack" in nowhere.output
    assert list(tmp_path.iterdir()) == []


@over_http
def test_rows_become_old_by_the_setting(command: Command) -> None:
    stack = Miniature(command.client)
    now = int(time.time() * 1000)
    stack.arrive([denied("20T09:00", subject=command.subject, user="bob") | {"time": format_time(now)}])
    stack.settle()

    def users() -> list[str]:
        query = "SELECT user FROM activity FINAL WHERE entitlement = {e:String} AND isNotNull(user) ORDER BY time"
        return [row[0] for row in command.client.query(query, parameters={"e": command.subject}).result_rows]

    def remove(retention: str) -> None:
        settings = load_settings({"SEATMARK_CLICKHOUSE_DSN": command._dsn, "SEATMARK_PERSONAL_RETENTION": retention})
        remove_personal_data(settings, owns=lambda entitlement: entitlement == command.subject)

    # Of March 2026.
    remove("36500d")
    assert users() == [command.user, "bob"]
    remove("32d")
    assert users() == ["bob"]


async def test_old_rows_are_looked_for_between_restatements(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    looked = threading.Event()

    class Restater:
        async def run(self, now_ms: int, *, owns: Any) -> None:
            done.append("restated")

    @asynccontextmanager
    async def open_restater(settings: Any) -> AsyncIterator[Restater]:
        yield Restater()

    def remove(settings: Any, *, owns: Any, on_progress: Callable[[int, int], None]) -> None:
        done.append("removed")
        looked.set()
        while True:
            on_progress(0, 1)

    monkeypatch.setattr(upkeep, "open_restater", open_restater)
    monkeypatch.setattr(upkeep, "remove_personal_data", remove)
    monkeypatch.setattr(upkeep, "_FIRST_REMOVAL_MS", 0)
    settings = load_settings({"SEATMARK_RESTATE_INTERVAL": "1s", "SEATMARK_PERSONAL_RETENTION": "400d"})
    stop = asyncio.Event()
    running = asyncio.ensure_future(upkeep.keep_restating(settings, stop, lambda entitlement: True))
    await asyncio.to_thread(looked.wait)
    stop.set()
    await asyncio.wait_for(running, 30)
    assert done == ["restated", "removed"]


async def test_what_is_sent_has_truncated_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[Event, bytes]] = []

    class Sender:
        sent, ends = 0, dict[int, int]()

        async def send(self, event: Event, value: bytes) -> None:
            sent.append((event, value))

    @asynccontextmanager
    async def open_sender(brokers: str, prefix: str) -> AsyncIterator[Sender]:
        yield Sender()

    monkeypatch.setattr(produce, "open_sender", open_sender)
    line = orjson.dumps(denied("20T09:00", ip="203.0.113.77"))
    for truncate_ips in (True, False):
        await produce_lines([line], brokers="", prefix="", on_progress=lambda done: None, truncate_ips=truncate_ips)
    [(truncated, truncated_value), (whole, whole_value)] = sent
    assert (truncated.ip, whole.ip) == ("203.0.113.0", "203.0.113.77")
    assert orjson.loads(truncated_value)["data"] == {"ip": "203.0.113.0"}
    assert whole_value == line


def test_the_settings_reach_the_worker() -> None:
    assert cli.worker_config(load_settings({"SEATMARK_IP_TRUNCATION": "on"})).truncate_ips
    assert not cli.worker_config(load_settings({})).truncate_ips
