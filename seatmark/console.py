"""What the command line prints: data on stdout, in the format asked for; everything else on stderr. And how parts log."""

import asyncio
import csv
import json
import logging
import math
import signal
import sys
import time
import traceback
from collections.abc import Coroutine, Mapping, MutableMapping, Sequence
from enum import StrEnum
from typing import Any, Literal

import orjson
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from schemas.errors import loggable

logger = logging.getLogger(__name__)
stderr = Console(stderr=True)


class Format(StrEnum):
    """How data is printed."""

    table = "table"
    json = "json"
    csv = "csv"


def say(text: str) -> None:
    """A line for the person at the terminal."""
    stderr.print(text, highlight=False, markup=False, soft_wrap=True)


def progress() -> Progress:
    """A progress bar on stderr; nothing is drawn when that is no terminal."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=stderr,
        transient=True,
        disable=not stderr.is_terminal,
    )


def print_rows(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], *, title: str) -> None:
    """A table of rows for people. columns: heading by key; numbers are set to the right.

    Texts of several words are broken to fit a terminal. Nothing is cut: a table without its numbers says nothing.
    """
    table = Table(title=title, title_justify="left", header_style="bold", box=SIMPLE_HEAD, padding=0, show_edge=False)
    for key, heading in columns.items():
        numeric = all(isinstance(row[key], int | float | None) for row in rows)
        table.add_column(heading.replace(" ", "\n"), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row[key]) for key in columns))
    # Not cut to the width of a terminal that is not there, either.
    console = Console(width=None if sys.stdout.isatty() else 160, markup=False, emoji=False)
    least = console.measure(table, options=console.options.update_width(1000)).minimum
    console.width = max(console.width, least)
    console.print(table)


def print_csv(rows: Sequence[Mapping[str, Any]]) -> None:
    """All fields of the rows as CSV with a header line."""
    if not rows:
        return
    writer = csv.DictWriter(sys.stdout, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def print_json(document: Any) -> None:
    """A document as indented JSON."""
    print(json.dumps(document, indent=2, ensure_ascii=False))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


_JSON = "json"
# What a log line may say beside its text; libraries add things of their own.
_CONTEXT = ("topic", "partition", "offset", "entitlement", "element", "table")
# While brokers are away aiokafka says so hundreds of times a second.
_REPEAT_SECONDS = 30.0
_OF_A_FENCE = {"ProducerFenced", "InvalidProducerEpoch"}


def configure_logging(level: str, format: Literal["auto", "json", "text"] = "text") -> None:
    """Logs to stderr: ours at a level, of the libraries only warnings (all of them at DEBUG). All in one format.

    format: `json`: one object a line, `text`: for people, `auto`: json unless stderr is a terminal.
    """
    # Takes a moment, which commands that log nothing need not wait for.
    import structlog

    as_json = format == _JSON or (format == "auto" and not sys.stderr.isatty())
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer(lambda line, **_: orjson.dumps(line, default=str).decode())
        if as_json
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.name = _JSON if as_json else "text"
    handler.addFilter(_is_news)
    if level != "DEBUG":
        handler.addFilter(_Seldom("aiokafka", _REPEAT_SECONDS))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.stdlib.ExtraAdder(_CONTEXT),
            ],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _tell_exception, renderer],
        )
    )
    logging.basicConfig(level="DEBUG" if level == "DEBUG" else "WARNING", handlers=[handler])
    logging.captureWarnings(True)
    for package in ("connectors", "processors", "seatmark", "views"):
        logging.getLogger(package).setLevel(level)
    if level == "DEBUG":
        # It would show its requests, those with passwords and tokens too.
        logging.getLogger("aiokafka.conn").setLevel("INFO")
    else:
        # Faust's services log under the names of our subclasses.
        logging.getLogger("processors.batching").setLevel("WARNING")
        # Each question that ClickHouse does not answer would be two more lines, without what to do; ours say that.
        for library in ("urllib3", "clickhouse_connect"):
            logging.getLogger(library).setLevel("ERROR")


def _is_news(record: logging.LogRecord) -> bool:
    """Not so: what aiokafka leaves behind in a producer that was fenced. The worker ends, and says that with what to do."""
    left_behind = record.name == "asyncio" and "exception was never retrieved" in record.getMessage()
    error = record.exc_info[1] if record.exc_info else None
    return not (left_behind and type(error).__name__ in _OF_A_FENCE)


class _Seldom(logging.Filter):
    """Passes what a package's loggers repeat only once in so many seconds, whatever values are put into the text."""

    # Texts are not without end, unless somebody puts values into them beforehand.
    _KEPT = 1_000

    def __init__(self, package: str, seconds: float) -> None:
        super().__init__(package)
        self._seconds = seconds
        self._said_at: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not super().filter(record):
            # Of somebody else.
            return True
        text, now = (record.name, str(record.msg)), time.monotonic()
        if now - self._said_at.get(text, -math.inf) < self._seconds:
            return False
        if len(self._said_at) >= self._KEPT:
            self._said_at.clear()
        self._said_at[text] = now
        return True


def _tell_exception(_: Any, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Put a traceback into a line, as text: where it went wrong, never what the variables held, nor what messages quote."""
    raised = line.pop("exc_info", None)
    error = raised[1] if isinstance(raised, tuple) else None
    # Some frameworks raise what they have caught so that it ends up as its own cause.
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if chain:
        told = ("".join(traceback.format_tb(error.__traceback__)) + loggable(error) for error in reversed(chain))
        line["exception"] = "\n\nthen:\n".join(told)
    return line


def say_why_it_ends(text: str) -> None:
    """The last line: to the person at the terminal, or as a line of the log, where that is for programs."""
    if any(handler.name == _JSON for handler in logging.root.handlers):
        logger.critical("seatmark: %s", text)
    else:
        say(f"seatmark: {text}")


async def until_signalled(run: Coroutine[Any, Any, None], stop: asyncio.Event) -> None:
    """Run something that ends soon after `stop` is set, and set it on Ctrl-C or SIGTERM."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await run
