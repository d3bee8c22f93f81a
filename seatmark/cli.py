"""The command line: `seatmark`. The parts for production, and `seatmark up`, which runs them all on one machine.

Commands import what they need when they run: `seatmark usage` must not wait for a broker's client and a database to load.
"""

import asyncio
import ipaddress
import logging
import sys
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from schemas.errors import Explained
from seatmark import events, forget, reports, tokens, upkeep
from seatmark.console import configure_logging, progress, say, say_why_it_ends, until_signalled
from seatmark.settings import Settings, SettingsWrong, load_settings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from processors.app import Worker, WorkerConfig
    from processors.progress import Monitor
    from processors.sink import Sink
    from seatmark.embedded import StackPlan
    from seatmark.topics import TopicResult

app = typer.Typer(
    help="Seatmark: the activity log of software entitlements. Who uses how many seats, who hits the limit, and who lives in "
    "overdraft.\n\nStart with [bold]seatmark up[/bold]: everything on this machine. Settings come from SEATMARK_* variables; "
    "the README lists them.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
PARTS = "The parts, for production"
app.command("produce", rich_help_panel="Events in")(events.produce)
app.command("replay-dead-letters", rich_help_panel="Events in")(events.replay_dead_letters)
app.command("terms", rich_help_panel="Events in")(events.terms)
app.add_typer(events.importers, name="import", rich_help_panel="Events in")
app.command("usage", rich_help_panel="Numbers out")(reports.usage)
app.command("overdrafts", rich_help_panel="Numbers out")(reports.overdrafts)
app.add_typer(tokens.commands, name="tokens", rich_help_panel=PARTS)
app.command("audit", rich_help_panel="Numbers right")(upkeep.audit)
app.command("restate", rich_help_panel="Numbers right")(upkeep.restate)
app.command("rebuild", rich_help_panel="Numbers right")(upkeep.rebuild)
app.command("forget", rich_help_panel="Privacy")(forget.forget)


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 failed, 2 used or set up wrongly."""
    try:
        app()
    except SettingsWrong as error:
        say_why_it_ends(str(error))
        sys.exit(2)
    except Explained as error:
        say_why_it_ends(str(error))
        sys.exit(1)
    except Exception as error:
        # Asked by name, so that commands without Kafka need not load its client.
        if type(error).__module__.startswith("aiokafka."):
            say_why_it_ends(f"the Kafka brokers (SEATMARK_BROKERS, SEATMARK_KAFKA_SECURITY) cannot be used: {error}")
        elif logging.root.handlers:
            # Python's own traceback would quote data, and be no line of the log.
            logging.getLogger("seatmark").critical("seatmark: a defect ended it", exc_info=True)
        else:
            raise
        sys.exit(1)


@app.command(rich_help_panel="Everything on this machine")
def up(
    data_dir: Annotated[Path, typer.Option(help="where the data lives; made if it is not there")] = Path("seatmark-data"),
    port: Annotated[int, typer.Option(help="port of the web")] = 8000,
    broker_port: Annotated[int, typer.Option(help="port of the broker")] = 19092,
    clickhouse_port: Annotated[int, typer.Option(help="port of ClickHouse's HTTP interface")] = 8123,
) -> None:
    """Run the whole stack on this machine: broker, worker, sink, ClickHouse and web. Ctrl-C stops it.

    It listens on 127.0.0.1 only. Stopped and started again with the same data directory it still has everything.
    """
    from seatmark.embedded import StackPlan

    settings = load_settings()
    configure_logging("WARNING")
    plan = StackPlan(data_dir, port, broker_port, clickhouse_port, settings.partitions)
    run_until_stopped(lambda stop: _up(plan, stop))


async def _up(plan: "StackPlan", stop: asyncio.Event) -> None:
    from seatmark.embedded import Stack

    say(f"starting on {plan.data_dir} ...")
    async with Stack(plan, say) as stack:
        say(
            f"Seatmark is up: {plan.url}   API: {plan.url}/docs   broker: {plan.brokers.addresses}   "
            f"ClickHouse: {plan.clickhouse}   data: {plan.data_dir}"
        )
        say("There is no sign-in (SEATMARK_AUTH=off): it can be reached from this machine only. Ctrl-C stops it.")
        await stack.run(stop)
        say("stopping: storing what the broker still holds ...")
    say("stopped.")


def run_until_stopped(run: Callable[[asyncio.Event], Any]) -> None:
    """Run an async function that is given the event which Ctrl-C and SIGTERM set."""

    async def with_stop() -> None:
        stop = asyncio.Event()
        await until_signalled(run(stop), stop)

    asyncio.run(with_stop())


@app.command("demo", rich_help_panel="Everything on this machine")
def demo_command(
    port: Annotated[int, typer.Option(help="port of the web")] = 8000,
    broker_port: Annotated[int, typer.Option(help="port of the broker")] = 19092,
    clickhouse_port: Annotated[int, typer.Option(help="port of ClickHouse's HTTP interface")] = 8123,
) -> None:
    """Run the stack with 30 days of a made-up vendor, and show what it says.

    On a terminal it keeps serving until Ctrl-C; else it ends. The data is made anew each time, in a directory of its own.
    """
    from seatmark import demo

    settings = load_settings()
    configure_logging("WARNING")
    run_until_stopped(lambda stop: demo.run(settings, port, broker_port, clickhouse_port, stop))


@app.command(rich_help_panel=PARTS)
def worker() -> None:
    """Fold events into live levels, day rows and alerts. Start as many as there are partitions, at most."""
    from processors.app import run_worker
    from processors.progress import Unstored
    from processors.topics import Topics, sink_group
    from seatmark.brokers import brokers_of
    from seatmark.topics import check_topics

    settings = _start()

    async def work(stop: asyncio.Event, monitor: "Monitor") -> None:
        unstored = Unstored(brokers_of(settings), Topics(settings.topic_prefix).activity, sink_group(settings.topic_prefix))

        def made(worker: "Worker") -> None:
            monitor.observe = worker.observe
            unstored.partitions = lambda: worker.partitions

        await check_topics(brokers_of(settings), prefix=settings.topic_prefix, partitions=settings.partitions)
        telling = [unstored.run(stop)] if settings.metrics_port else []
        await _together([run_worker(worker_config(settings), stop, made), *telling], stop)

    _run_monitored(settings, work)


@app.command(rich_help_panel=PARTS)
def sink() -> None:
    """Store what the worker sends in ClickHouse, and keep it right: restatement and audit run here."""
    settings = _start()

    async def store(stop: asyncio.Event, monitor: "Monitor") -> None:
        sink = make_sink(settings)
        monitor.observe = sink.observe
        await _together(sink_parts(settings, sink, stop), stop)

    _run_monitored(settings, store)


def _run_monitored(settings: Settings, work: Callable[[asyncio.Event, "Monitor"], Coroutine[Any, Any, None]]) -> None:
    """Run a part that says how it is, that waits for the brokers before it begins, and that is ended if it hangs.

    work(stop, monitor): the part; it sets `monitor.observe`.
    """
    from processors.health import Health, served, watched
    from processors.progress import Log, Monitor
    from seatmark.brokers import brokers_of

    stuck_after = settings.stuck_after / 1000
    health = Health()

    async def both(stop: asyncio.Event) -> None:
        monitor = Monitor(health, Log(brokers_of(settings), read_committed=settings.fencing == "on"), stuck_after)

        async def begin() -> None:
            if await monitor.brokers_answer(stop):
                await work(stop, monitor)

        await _together([begin(), monitor.run(stop)], stop)

    with served(health, settings.metrics_port) if settings.metrics_port else nullcontext(), watched(health, stuck_after):
        run_until_stopped(both)


@app.command(rich_help_panel=PARTS)
def web() -> None:
    """Serve the pages and the API. Make a token with `seatmark tokens make` to get in."""
    from processors.health import served
    from views.web.app import serve

    settings = _start()
    web_app = make_web(settings)
    with served(None, settings.metrics_port) if settings.metrics_port else nullcontext():
        run_until_stopped(lambda stop: serve(web_app, settings.web_host, settings.web_port, stop))


@app.command(rich_help_panel=PARTS)
def collect() -> None:
    """Take events over HTTP (POST /collect/events), for licence servers without a Kafka client."""
    from connectors.http import collector_app
    from processors.health import served
    from seatmark.collect import open_collector
    from views.web.app import listen

    settings = _start()
    tokens = settings.collect_tokens.get_secret_value()
    if not tokens:
        raise SettingsWrong(
            "SEATMARK_COLLECT_TOKENS is not set: make a secret (openssl rand -hex 24), and give it to the licence servers"
        )

    async def take(stop: asyncio.Event) -> None:
        async with open_collector(settings) as (send, brokers_answer):
            collector = collector_app(send, tokens.split(","), brokers_answer)
            host, port = settings.collect_host, settings.collect_port
            await listen(collector, host, port, stop, settings="SEATMARK_COLLECT")

    with served(None, settings.metrics_port) if settings.metrics_port else nullcontext():
        run_until_stopped(take)


@app.command(hidden=True)
def store() -> None:
    """Sink, web with collector, and ClickHouse's HTTP interface in one process, as the embedded ClickHouse needs it."""
    from connectors.http import collector
    from seatmark.chdb_http import ChdbHttp
    from seatmark.collect import open_collector
    from views.store import chdb_directory
    from views.web.app import serve

    settings = _start()
    web_app = make_web(settings)

    async def both(stop: asyncio.Event) -> None:
        async with open_collector(settings) as (send, _):
            # Without tokens, as the web is: it can be reached from this machine only.
            web_app.mount("/collect", collector(send, ()))
            web = serve(web_app, settings.web_host, settings.web_port, stop)
            await _together([*sink_parts(settings, make_sink(settings, alone=True), stop), web], stop)

    with ChdbHttp(Path(chdb_directory(settings.clickhouse_dsn.get_secret_value())), settings.clickhouse_port):
        run_until_stopped(both)


def sink_parts(settings: Settings, sink: "Sink", stop: asyncio.Event) -> list[Coroutine[Any, Any, None]]:
    """What runs in a sink's process. Upkeep looks after the entitlements whose rows this sink stores."""
    from processors.partitions import partition_of

    def owns(entitlement: str) -> bool:
        return partition_of(entitlement, settings.partitions) in sink.partitions

    return [
        sink.run(stop),
        upkeep.keep_restating(settings, stop, owns),
        upkeep.keep_adding_up(settings, stop, owns),
        upkeep.keep_auditing(settings, stop, owns),
    ]


async def _together(parts: list[Coroutine[Any, Any, None]], stop: asyncio.Event) -> None:
    """Run parts until one ends, which ends the others. Raises what one raised."""
    running = [asyncio.ensure_future(part) for part in parts]
    await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    stop.set()
    await asyncio.wait(running)
    for part in running:
        part.result()


@app.command(hidden=True)
def prepare() -> None:
    """What an embedded stack needs before it starts: its tables, and the worker's state."""
    from seatmark.rebuild import prepare_state
    from views.migrate import migrate

    settings = _start()
    migrate(settings.clickhouse_dsn.get_secret_value(), settings.timezone)
    with progress() as bar:
        task = bar.add_task("replaying the raw log")
        elements = asyncio.run(prepare_state(settings, lambda done, total: bar.update(task, completed=done, total=total)))
    if elements:
        say(f"replaying the raw log: {elements:,} element{'' if elements == 1 else 's'}, done")


@app.command("migrate", rich_help_panel=PARTS)
def migrate_command() -> None:
    """Bring ClickHouse's tables and views up to date. Safe to run again."""
    from views.migrate import migrate

    settings = _start()
    migrate(settings.clickhouse_dsn.get_secret_value(), settings.timezone, settings.clickhouse_cluster)
    say("the tables are up to date")


@app.command(rich_help_panel=PARTS)
def topics() -> None:
    """Create the topics that are missing; check the others against the catalogue (schemas/topics.yaml)."""
    from seatmark.brokers import opened_brokers
    from seatmark.topics import ensure_topics

    settings = _start()

    async def ensure() -> "list[TopicResult]":
        return await ensure_topics(
            await opened_brokers(settings),
            prefix=settings.topic_prefix,
            partitions=settings.partitions,
            replication=settings.replication,
        )

    for result in asyncio.run(ensure()):
        say(f"{result.name}: {'created' if result.created else 'as it should be'}, {result.partitions} partitions")


def _start() -> Settings:
    settings = load_settings()
    configure_logging(settings.log_level, settings.log_format)
    return settings


def worker_config(settings: Settings) -> "WorkerConfig":
    """What the worker needs of the settings."""
    from processors.app import WorkerConfig
    from processors.refusals import RefusalLimit
    from seatmark.brokers import brokers_of

    return WorkerConfig(
        brokers=brokers_of(settings),
        topic_prefix=settings.topic_prefix,
        partitions=settings.partitions,
        fencing=settings.fencing == "on",
        timezone=settings.timezone,
        late_after_ms=settings.late_after,
        lease_policy=settings.lease_policy,
        lease_grace_ms=settings.lease_grace,
        session_timeout_ms=settings.session_timeout,
        rebalance_timeout_ms=settings.rebalance_timeout,
        dead_letter_limit=RefusalLimit(settings.dead_letter_count, settings.dead_letter_percent, settings.dead_letter_window),
        truncate_ips=settings.ip_truncation == "on",
    )


def make_web(settings: Settings) -> "FastAPI":
    """The web application. Raises SettingsWrong: without sign-in it must not listen where others can reach it."""
    from views.store import Store
    from views.web.app import create_app

    if settings.auth == "off" and not _of_this_machine(settings.web_host):
        raise SettingsWrong(
            f"SEATMARK_AUTH=off shows everything to everybody, so SEATMARK_WEB_HOST must be 127.0.0.1, ::1 or localhost, not "
            f"{settings.web_host!r}: leave SEATMARK_AUTH out, and make a token with `seatmark tokens make`"
        )
    return create_app(Store(settings.clickhouse_dsn.get_secret_value()), sign_in=settings.auth == "on")


def _of_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def make_sink(settings: Settings, *, alone: bool = False) -> "Sink":
    """A sink as the settings say. alone: it shares the topics with no other, so it need not wait to join a group."""
    from processors.sink import Sink
    from seatmark.brokers import brokers_of
    from views.store import connect

    dsn = settings.clickhouse_dsn.get_secret_value()
    return Sink(
        brokers=brokers_of(settings),
        topic_prefix=settings.topic_prefix,
        client_factory=lambda: connect(dsn),
        flush_seconds=settings.flush_interval / 1000,
        alone=alone,
    )
