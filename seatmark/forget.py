"""Personal data out of the raw log: of one person on request, and of everybody once rows are old enough."""

import asyncio
import logging
import sys
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import SecretStr

from schemas.errors import Explained
from seatmark.console import configure_logging, progress, say
from seatmark.settings import Settings, load_settings

if TYPE_CHECKING:
    from processors.forget import Forgotten

logger = logging.getLogger(__name__)

# ClickHouse says nothing while it writes a month of a large raw log anew.
_ANSWER_SECONDS = 24 * 60 * 60


class ForgetRefused(Explained):
    """Nobody can be forgotten now; the message says what to do first."""


def forget(
    user: Annotated[str, typer.Option(help="the user, as events name it")],
    seat: Annotated[
        list[str] | None, typer.Option(help="a seat id that is this person's too; may be given more than once")
    ] = None,
    entitlement: Annotated[str, typer.Option(help="only in this entitlement; default: in all")] = "",
    customer: Annotated[str, typer.Option(help="only in this customer's entitlements; default: in all")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would be done")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    data_dir: Annotated[
        Path | None, typer.Option(help="of an embedded stack, which must be stopped; default: SEATMARK_CLICKHOUSE_DSN")
    ] = None,
) -> None:
    """Put pseudonyms in the place of a user in all that is stored. Every number stays as it is. It cannot be undone.

    Stop the workers first, let the sink catch up, and stop it too. Exit code 1 if something had to stay: run it again later.
    What it covers, and what ages out of the topics only, is in docs/privacy.md.
    """
    settings = load_settings()
    configure_logging(settings.log_level)
    if not user:
        raise typer.BadParameter("expected a name that is not empty", param_hint="--user")
    if data_dir is not None:
        from views.store import chdb_dsn

        if not (data_dir / "clickhouse").is_dir():
            raise typer.BadParameter(f"there is no embedded stack in {data_dir}", param_hint="--data-dir")
        settings = settings.model_copy(update={"clickhouse_dsn": SecretStr(chdb_dsn(data_dir / "clickhouse"))})
    if not dry_run:
        _refuse_while_running(settings)

    def run(dry: bool) -> "Forgotten":
        with progress() as bar:
            task = bar.add_task("looking" if dry else "forgetting")
            return forgotten(
                settings,
                user,
                seat or [],
                entitlement=entitlement,
                customer=customer,
                dry_run=dry,
                on_progress=lambda done, total: bar.update(task, completed=done, total=total),
            )

    if dry_run or not yes:
        found = run(dry=True)
        _tell(found, "would be written anew, with pseudonyms")
        if dry_run:
            return
        # Without rows it still ends what an earlier run has begun.
        if found.rows:
            if not sys.stdin.isatty():
                say("nothing was changed: give --yes to forget")
                raise typer.Exit(1)
            if not typer.confirm("Forget?", err=True):
                raise typer.Exit(1)
    done = run(dry=False)
    _tell(done, "written anew, with pseudonyms")
    if done.kept_seats or done.unreadable:
        raise typer.Exit(1)


def forgotten(settings: Settings, user: str, seats: list[str], **options: Any) -> "Forgotten":
    """Forget one person; options as for `processors.forget.forget`. Nothing else may write the raw log meanwhile.

    Raises StoreUnavailable.
    """
    from clickhouse_connect.driver.exceptions import DatabaseError

    from processors.domain.days import Calendar
    from processors.forget import Person, forget
    from processors.topics import Topics
    from views.raw_log import RawLog
    from views.store import connect, explained

    dsn = settings.clickhouse_dsn.get_secret_value()
    with closing(connect(dsn, answer_seconds=_ANSWER_SECONDS)) as client:
        try:
            return forget(
                RawLog(client, Topics(settings.topic_prefix).events, settings.clickhouse_cluster),
                Person(user, seats),
                calendar=Calendar(settings.timezone),
                late_after_ms=settings.late_after,
                # Of an embedded stack it is made anew at each start.
                state_is_made_anew=_embedded(settings),
                **options,
            )
        except DatabaseError as error:
            raise explained(dsn, error) from error


def _embedded(settings: Settings) -> bool:
    """Whether the store is an embedded one, which nothing else can have open."""
    return settings.clickhouse_dsn.get_secret_value().startswith("chdb:")


def _refuse_while_running(settings: Settings) -> None:
    """Raises ForgetRefused, RebuildRefused: something runs that could write the name again, or waits to be stored."""
    from processors.topics import sink_group
    from seatmark.brokers import opened_brokers
    from seatmark.produce import group_members
    from seatmark.rebuild import refuse_while_running

    async def refuse() -> None:
        brokers = await opened_brokers(settings)
        await refuse_while_running(settings)
        group = sink_group(settings.topic_prefix)
        if await group_members(brokers, group):
            raise ForgetRefused(f"a sink is running (group {group}): it has caught up; stop all sinks, and run this again")

    if not _embedded(settings):
        asyncio.run(refuse())


def _tell(done: "Forgotten", what: str) -> None:
    """Say what came of it, without the name."""
    say(f"raw log: {_count(done.rows, 'row')} of {_count(done.elements, 'element')} {what}")
    say(f"{_count(done.seats, 'seat id')} in them replaced")
    for why, seats in sorted(done.kept_seats.items()):
        say(f"{_count(seats, 'seat id')} {'stays' if seats == 1 else 'stay'}: {why}. Run this again later")
    if done.ids:
        say(f"the name is in the event id or the source of {_count(done.ids, 'row')}, and stays there: they tell repeats")
    if done.unreadable:
        say(f"{_count(done.unreadable, 'row')} could not be written anew: unreadable for this version, or too large then")


def remove_personal_data(settings: Settings, **options: Any) -> None:
    """Take personal data out of raw rows older than SEATMARK_PERSONAL_RETENTION; options as for `remove_expired`."""
    from processors.forget import remove_expired
    from processors.topics import Topics
    from views.raw_log import RawLog
    from views.store import connect

    before = datetime.fromtimestamp(time.time() - settings.personal_retention / 1000, UTC).date()
    with closing(connect(settings.clickhouse_dsn.get_secret_value(), answer_seconds=_ANSWER_SECONDS)) as client:
        removed = remove_expired(
            RawLog(client, Topics(settings.topic_prefix).events, settings.clickhouse_cluster), before, **options
        )
    if removed.rows:
        logger.info("personal data was taken out of %d rows of the raw log", removed.rows)
    if removed.unreadable:
        logger.error("personal data stays in %d old rows: unreadable for this version, or too large then", removed.unreadable)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
