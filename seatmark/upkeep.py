"""Keeps the numbers right, and quick to read: restatement, audit, and what is added up for the overdraft report.

On a schedule in the sink's process; the first two also as commands.
"""

import asyncio
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, closing
from datetime import date
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from pydantic import SecretStr

from schemas.errors import Explained
from seatmark.console import Format, configure_logging, print_csv, print_json, print_rows, progress, say
from seatmark.forget import remove_personal_data
from seatmark.settings import Settings, load_settings

logger = logging.getLogger(__name__)

# The first audit does not wait a whole day: a process that is started anew each day would never make one.
_FIRST_AUDIT_MS = 10 * 60 * 1000
_FIRST_REMOVAL_MS = 10 * 60 * 1000
_REMOVAL_INTERVAL_MS = 24 * 60 * 60 * 1000
_PASS_SECONDS = 1.0
# Passes without anything done after which `seatmark restate` stops waiting for worker and sink.
_IDLE_PASSES = 15
_SHOWN_DIFFERENCES = 200


class _Stopped(Exception):
    """The process is to end."""


class NotRestated(Explained):
    """Something could not be put right in time."""


@asynccontextmanager
async def open_restater(settings: Settings) -> AsyncIterator[Any]:
    """A `processors.restate.Restater` on the store and the topic of the settings."""
    from processors.brokers import ended_in_time
    from processors.domain.days import Calendar
    from processors.partitions import partition_of
    from processors.restate import Outgoing, Restater
    from processors.topics import Topics
    from seatmark.brokers import opened_brokers
    from seatmark.produce import event_producer
    from views.migrate import refuse_other_timezone
    from views.raw_log import open_raw_log
    from views.store import connect

    topic = Topics(settings.topic_prefix).events
    brokers = await opened_brokers(settings)
    with closing(connect(settings.clickhouse_dsn.get_secret_value())) as client:
        refuse_other_timezone(client, settings.timezone)
        log = open_raw_log(client, topic)
        producer = event_producer(brokers)

        async def send(outgoing: Outgoing) -> None:
            # Not where its events once were: the topic may have had fewer partitions then.
            partition = partition_of(outgoing.key.decode(), settings.partitions)
            await producer.send_and_wait(topic, outgoing.value, key=outgoing.key, partition=partition)

        restater = Restater(
            log,
            send,
            calendar=Calendar(settings.timezone),
            late_after_ms=settings.late_after,
            partitions=settings.partitions,
        )
        try:
            await producer.start()
            yield restater
        finally:
            await ended_in_time(producer.stop(), "the sending of corrections")
            restater.close()


async def keep_restating(settings: Settings, stop: asyncio.Event, owns: Callable[[str], bool]) -> None:
    """Make a pass at each interval, of the entitlements that this process looks after, until `stop` is set.

    Between two passes, so that no pass writes what it read before, personal data is taken out of old rows, once a day.
    """

    def end_if_stopped(done: int, total: int) -> None:
        if stop.is_set():
            raise _Stopped

    async def passes() -> None:
        removal_at = _now_ms() + _FIRST_REMOVAL_MS
        async with open_restater(settings) as restater:
            while not await _set_within(stop, settings.restate_interval):
                await restater.run(_now_ms(), owns=owns)
                if settings.personal_retention and _now_ms() >= removal_at:
                    try:
                        await asyncio.to_thread(remove_personal_data, settings, owns=owns, on_progress=end_if_stopped)
                    except _Stopped:
                        return
                    removal_at = _now_ms() + _REMOVAL_INTERVAL_MS

    await _again_and_again(passes, settings.restate_interval, stop, "restatement")


async def keep_adding_up(settings: Settings, stop: asyncio.Event, owns: Callable[[str], bool]) -> None:
    """Add up held levels for the overdraft report at each interval of the restatement, until `stop` is set."""

    async def passes() -> None:
        while not await _set_within(stop, settings.restate_interval):
            await asyncio.to_thread(_add_up, settings, owns)

    await _again_and_again(passes, settings.restate_interval, stop, "adding up of levels")


def _add_up(settings: Settings, owns: Callable[[str], bool]) -> None:
    from processors.topics import Topics
    from views.levels import add_up_levels
    from views.migrate import refuse_other_timezone
    from views.raw_log import RawLog
    from views.reporting import ReportingDays
    from views.store import connect

    with closing(connect(settings.clickhouse_dsn.get_secret_value())) as client:
        refuse_other_timezone(client, settings.timezone)
        log = RawLog(client, Topics(settings.topic_prefix).events)
        add_up_levels(log, ReportingDays(settings.timezone), _now_ms(), owns)


async def keep_auditing(settings: Settings, stop: asyncio.Event, owns: Callable[[str], bool]) -> None:
    """Audit at each interval, until `stop` is set. What differs is in the metric and in the log."""

    def end_if_stopped(done: int, total: int) -> None:
        # A thread cannot be cancelled, and the process would wait for it: of millions of events that takes minutes.
        if stop.is_set():
            raise _Stopped

    async def audits() -> None:
        waiting = min(settings.audit_interval, _FIRST_AUDIT_MS)
        while not await _set_within(stop, waiting):
            try:
                findings = await asyncio.to_thread(audited, settings, owns=owns, on_progress=end_if_stopped)
            except _Stopped:
                return
            for difference in findings.differences[:_SHOWN_DIFFERENCES]:
                logger.error(
                    "audit: %s, %s: stored is %s, exact is %s",
                    *(difference.what, difference.field, difference.stored, difference.exact),
                    extra={"entitlement": difference.entitlement, "element": difference.element},
                )
            waiting = settings.audit_interval

    await _again_and_again(audits, settings.restate_interval, stop, "audit")


async def _again_and_again(run: Callable[[], Coroutine[Any, Any, None]], pause_ms: int, stop: asyncio.Event, what: str) -> None:
    """Run until `stop` is set, and anew after a failure: brokers or ClickHouse may be away, and the sink goes on meanwhile.

    Raises TimezoneChanged: only another setting helps.
    """
    from processors import metrics
    from views.migrate import TimezoneChanged

    while not stop.is_set():
        try:
            await run()
        except TimezoneChanged:
            raise
        except Exception as error:
            metrics.UPKEEP_FAILURES.labels(what).inc()
            if isinstance(error, Explained):
                logger.error("the %s failed; the next attempt is in %.0f s: %s", what, pause_ms / 1000, error)
            else:
                logger.exception("the %s failed; the next attempt is in %.0f s", what, pause_ms / 1000)
            await _set_within(stop, pause_ms)


def audited(settings: Settings, **options: Any) -> Any:
    """One audit; options as for `processors.audit.Auditor.run`, and what that gives."""
    from processors.audit import Auditor
    from processors.domain.days import Calendar
    from processors.topics import Topics
    from views.migrate import refuse_other_timezone
    from views.raw_log import open_raw_log
    from views.store import connect

    client = connect(settings.clickhouse_dsn.get_secret_value())
    try:
        refuse_other_timezone(client, settings.timezone)
        log = open_raw_log(client, Topics(settings.topic_prefix).events)
        auditor = Auditor(log, calendar=Calendar(settings.timezone), late_after_ms=settings.late_after)
        return auditor.run(_now_ms(), **options)
    finally:
        client.close()


def restate(
    entitlement: Annotated[str, typer.Option(help="only this entitlement; default: all")] = "",
) -> None:
    """Put right what disorder left: marked days that are over, and live levels. Waits until nothing is left to do.

    The sink does this by itself every SEATMARK_RESTATE_INTERVAL.
    """
    settings = load_settings()
    configure_logging(settings.log_level)
    report = asyncio.run(restate_until_settled(settings, entitlement))
    say(
        f"restated {_count(report.days, 'day')} and {_count(report.rows, 'row')} of the raw log; sent "
        f"{_count(report.differing, 'correction')} of live levels"
    )


async def restate_until_settled(settings: Settings, entitlement: str) -> Any:
    """Pass after pass until nothing is left to do; the sum of their reports. Raises NotRestated: it does not come to an end."""
    from processors.restate import Report

    total = Report()
    idle, fewest = 0, sys.maxsize
    with progress() as bar:
        task = bar.add_task("restating")
        async with open_restater(settings) as restater:
            while True:
                done = await restater.run(
                    _now_ms(),
                    entitlement=entitlement,
                    on_progress=lambda done, total: bar.update(task, completed=done, total=total),
                )
                total.add(done)
                if not done.elements:
                    return total
                # A correction goes through worker and sink before the next pass finds nothing to correct.
                idle = 0 if done.differing or done.elements < fewest else idle + 1
                fewest = min(fewest, done.elements)
                if idle > _IDLE_PASSES:
                    raise NotRestated(
                        f"{_count(done.elements, 'element')} could not be settled: events of theirs are not stored yet. Are "
                        "worker and sink running? Run `seatmark restate` again when they have caught up"
                    )
                await asyncio.sleep(_PASS_SECONDS)


def audit(
    entitlement: Annotated[str, typer.Option(help="only this entitlement; default: all")] = "",
    since: Annotated[str, typer.Option(metavar="DAY", help="days from this one on, such as 2026-01-31")] = "1970-01-01",
    format: Annotated[Format, typer.Option("--format", help="table for people, json or csv for programs")] = Format.table,
) -> None:
    """Compare day rows, live levels, alerts and held levels with the exact numbers. Exit code 1 if anything differs."""
    settings = load_settings()
    configure_logging(settings.log_level)
    try:
        first_day = date.fromisoformat(since)
    except ValueError as error:
        raise typer.BadParameter(f"expected a day such as 2026-01-31, got {since!r}", param_hint="--since") from error
    with progress() as bar:
        task = bar.add_task("auditing")
        findings = audited(
            settings,
            entitlement=entitlement,
            since=first_day,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    rows = [
        {"entitlement": found.entitlement, "element": found.element, "what": found.what, "field": found.field,
         "stored": found.stored, "exact": found.exact}
        for found in findings.differences
    ]  # fmt: skip
    summary = {
        "elements": findings.elements, "days": findings.days, "held_days": findings.held_days, "alerts": findings.alerts,
        "provisional_days": findings.provisional_days, "unsettled": findings.unsettled, "differences": len(rows),
    }  # fmt: skip
    if format is Format.json:
        print_json(summary | {"found": rows})
    elif format is Format.csv:
        print_csv(rows)
    elif rows:
        columns = {"entitlement": "entitlement", "element": "element", "what": "what", "field": "field", "stored": "stored",
                   "exact": "exact"}  # fmt: skip
        shown = rows[:_SHOWN_DIFFERENCES]
        title = _count(len(rows), "difference") + (f", the first {len(shown)}" if len(shown) < len(rows) else "")
        print_rows(shown, columns, title=title)
    say(
        f"audited {_count(findings.elements, 'element')}: {_count(findings.days, 'day')}, held levels of "
        f"{_count(findings.held_days, 'day')} and {_count(findings.alerts, 'alert')} compared, "
        f"{_count(len(rows), 'difference')}. Not compared: "
        f"{_count(findings.provisional_days, 'provisional day')}, {_count(findings.unsettled, 'live level')} with a "
        "correction on its way"
    )
    if rows:
        raise typer.Exit(1)


def rebuild(
    yes: Annotated[bool, typer.Option("--yes", help="do not ask, whatever differs")] = False,
    data_dir: Annotated[
        Path | None, typer.Option(help="of an embedded stack, which must be stopped; default: SEATMARK_CLICKHOUSE_DSN")
    ] = None,
) -> None:
    """Make day rows, levels, alerts and the worker's state anew from the raw log; show what differs, and ask before it counts.

    For lost state, a lost topic, or another SEATMARK_TIMEZONE. Stop the workers first, and let the sink catch up. Nothing is
    sent to overdraft-alerts.
    """
    from seatmark.rebuild import rebuild as make_anew

    settings = load_settings()
    configure_logging(settings.log_level)
    if data_dir is not None:
        dsn = f"chdb://{quote(str(data_dir.absolute() / 'clickhouse'))}"
        settings = settings.model_copy(update={"clickhouse_dsn": SecretStr(dsn)})

    def agreed(comparison: Any) -> bool:
        for table, line in comparison.lines():
            say(f"{table}: {line}")
        if yes or not comparison.differs:
            return True
        if not sys.stdin.isatty():
            say("nothing was changed: give --yes to take the new numbers")
            return False
        return typer.confirm("Take the new numbers?", err=True)

    with progress() as bar:
        task = bar.add_task("folding the raw log")
        taken = asyncio.run(make_anew(settings, lambda done, total: bar.update(task, completed=done, total=total), agreed))
    if not taken:
        raise typer.Exit(1)
    say("rebuilt: start the workers again")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _now_ms() -> int:
    return int(time.time() * 1000)


async def _set_within(event: asyncio.Event, milliseconds: int) -> bool:
    try:
        await asyncio.wait_for(event.wait(), milliseconds / 1000)
    except TimeoutError:
        return False
    return True
