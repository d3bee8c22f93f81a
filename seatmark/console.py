"""What the command line prints: data on stdout, in the format asked for; everything else on stderr."""

import asyncio
import csv
import json
import logging
import signal
import sys
from collections.abc import Coroutine, Mapping, Sequence
from enum import StrEnum
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

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
    """A table of rows for people. columns: heading by key; numbers are set to the right."""
    table = Table(title=title, title_justify="left", header_style="bold", pad_edge=False)
    for key, heading in columns.items():
        numeric = all(isinstance(row[key], int | float | None) for row in rows)
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(row[key]) for key in columns))
    # Not cut to the width of a terminal that is not there.
    Console(width=None if sys.stdout.isatty() else 160, markup=False, emoji=False).print(table)


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


def configure_logging(level: str) -> None:
    """Logs to stderr: ours at a level, of the libraries only warnings (all of them at DEBUG)."""
    logging.basicConfig(
        level="DEBUG" if level == "DEBUG" else "WARNING",
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    for package in ("processors", "seatmark", "views"):
        logging.getLogger(package).setLevel(level)
    if level == "DEBUG":
        # It would show its requests, those with passwords and tokens too.
        logging.getLogger("aiokafka.conn").setLevel("INFO")
    else:
        # Faust's services log under the names of our subclasses.
        logging.getLogger("processors.batching").setLevel("WARNING")


async def until_signalled(run: Coroutine[Any, Any, None], stop: asyncio.Event) -> None:
    """Run something that ends soon after `stop` is set, and set it on Ctrl-C or SIGTERM."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await run
