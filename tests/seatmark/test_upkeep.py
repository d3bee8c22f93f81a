"""What the sink's process does beside storing, and how it ends."""

import asyncio
import threading
import uuid
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from prometheus_client import REGISTRY

from seatmark import upkeep
from seatmark.chdb_http import ChdbHttp
from seatmark.settings import load_settings
from seatmark.upkeep import audited, keep_auditing, keep_restating
from tests.web.conftest import event
from tests.web.vendor import Vendor
from views.migrate import TimezoneChanged, migrate
from views.store import StoreUnavailable, connect


async def test_an_audit_under_way_ends_when_the_process_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be at millions of events, and nobody can cancel a thread."""
    begun = threading.Event()
    ended = threading.Event()

    def audit_of_very_many(_: Any, *, owns: Any, on_progress: Callable[[int, int], None]) -> None:
        try:
            while True:
                on_progress(1, 1_000_000)
                begun.set()
        finally:
            ended.set()

    monkeypatch.setattr(upkeep, "audited", audit_of_very_many)
    monkeypatch.setattr(upkeep, "_FIRST_AUDIT_MS", 1)
    stop = asyncio.Event()
    auditing = asyncio.ensure_future(keep_auditing(load_settings({}), stop, lambda entitlement: True))
    await asyncio.to_thread(begun.wait)
    assert not ended.is_set()
    stop.set()
    await asyncio.wait_for(auditing, 30)
    assert ended.is_set()


@pytest.mark.parametrize(
    ("error", "line", "traceback"),
    [
        (RuntimeError("ClickHouse is away"), "the audit failed; the next attempt is in 0 s", True),
        # It says all that there is to say.
        (StoreUnavailable("run the migrations"), "the audit failed; the next attempt is in 0 s: run the migrations", False),
    ],
)
async def test_an_audit_that_fails_is_counted_and_tried_again(
    error: Exception, line: str, traceback: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stop = asyncio.Event()
    tried: list[str] = []
    loop = asyncio.get_running_loop()

    def audit(_: Any, **options: Any) -> None:
        tried.append("once more")
        if len(tried) == 2:
            loop.call_soon_threadsafe(stop.set)
        raise error

    def failures() -> float:
        return REGISTRY.get_sample_value("seatmark_upkeep_failures_total", {"what": "audit"}) or 0

    monkeypatch.setattr(upkeep, "audited", audit)
    monkeypatch.setattr(upkeep, "_FIRST_AUDIT_MS", 1)
    before = failures()
    settings = load_settings({}).model_copy(update={"restate_interval": 1})
    await asyncio.wait_for(keep_auditing(settings, stop, lambda entitlement: True), 30)
    assert failures() == before + 2
    told = [record for record in caplog.records if record.name == "seatmark.upkeep"]
    assert [(record.getMessage(), record.exc_info is not None) for record in told] == [(line, traceback)] * 2


async def test_days_are_not_put_right_in_another_time_zone_than_theirs(chdb_http: ChdbHttp) -> None:
    """The worker has its time zone in its state; a sink that is given another one must not write days of that."""
    dsn = chdb_http.dsn(f"zones_{uuid.uuid4().hex}")
    migrate(dsn, "Europe/Paris")
    with closing(connect(dsn)) as client:
        Vendor(client, "Europe/Paris").send([event("seat.activated", "22T09:00", seat_id="a")])
    settings = load_settings({"SEATMARK_CLICKHOUSE_DSN": dsn})
    with pytest.raises(TimezoneChanged, match="Europe/Paris, but SEATMARK_TIMEZONE is UTC"):
        await keep_restating(settings, asyncio.Event(), lambda entitlement: True)
    with pytest.raises(TimezoneChanged, match="Europe/Paris"):
        audited(settings)
