"""Commands that send events: `produce`, `terms`, `import flexnet`."""

import asyncio
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from zoneinfo import ZoneInfo

import orjson
import typer

from processors.domain.days import Calendar
from schemas.alerts import seatmark_id
from schemas.events import Refused, decode, format_time, parse_time
from seatmark.console import configure_logging, progress, say
from seatmark.settings import Settings, load_settings

if TYPE_CHECKING:
    from connectors.flexnet import FlexNetReader
    from seatmark.produce import Produced

importers = typer.Typer(help="Read another system's log into Seatmark.", no_args_is_help=True)

Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="wait until the events are applied and stored")]
_WAIT_SECONDS = 60.0


def produce(
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="a file, or - for standard input")],
    wait: Wait = True,
) -> None:
    """Send entitlement events: CloudEvents in JSON, one a line.

    A line that is no valid event is reported with its number and left out; the exit code is then 1.
    """
    settings = load_settings()
    if file == "-":
        produced = _send(settings, sys.stdin.buffer, wait)
    else:
        with _existing(Path(file)).open("rb") as lines:
            produced = _send(settings, lines, wait)
    for number, problem in produced.refused:
        say(f"line {number}: {problem}")
    say(f"sent {produced.sent:,} events" + (f", left out {len(produced.refused):,} lines" if produced.refused else ""))
    if produced.refused:
        raise typer.Exit(1)


def terms(
    entitlement: Annotated[str, typer.Argument(help="the entitlement's id")],
    element: Annotated[str, typer.Option(help="`seats`, or a feature")],
    limit: Annotated[str, typer.Option(help="units bought, or `unlimited`")],
    overdraft: Annotated[
        str, typer.Option(help="what may be used above: none, absolute:N, percentage:P or unlimited")
    ] = "none",
    at: Annotated[
        str | None, typer.Option(metavar="TIME", help="since when, such as 2026-01-31T00:00:00Z; default: now")
    ] = None,
    kind: Annotated[str | None, typer.Option(help="pool or counter; default: as the events show")] = None,
    customer: Annotated[str | None, typer.Option(help="the customer's id")] = None,
    product: Annotated[str | None, typer.Option(help="the product's id")] = None,
    wait: Wait = True,
) -> None:
    """Set what a customer bought: the limit and the overdraft of one element of an entitlement."""
    settings = load_settings()
    if at is None:
        say(
            "these terms count from now. If you are going to import an older log, give --at a time before it: what is older "
            f"than {settings.late_after // 60_000} minutes before an element's newest event has no live effect"
        )
    try:
        moment = int(time.time() * 1000) if at is None else parse_time(at)
        element_terms: dict[str, Any] = {
            "limit": None if limit == "unlimited" else int(limit),
            "overdraft": _overdraft(overdraft),
        }
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if kind is not None:
        element_terms["kind"] = kind
    data = {"customer": customer, "product": product, "elements": {element: element_terms}}
    event = {
        "specversion": "1.0",
        # The same terms from the same time are the same event, however often they are set.
        "id": str(uuid.uuid4()) if at is None else seatmark_id("terms", entitlement, moment, data),
        "source": "/seatmark/terms",
        "type": "entitlement.changed",
        "subject": entitlement,
        "time": format_time(moment),
        "data": {name: value for name, value in data.items() if value is not None},
    }
    line = orjson.dumps(event)
    try:
        decode(line, key="any", appended_at=int(time.time() * 1000))
    except Refused as refused:
        raise typer.BadParameter(refused.detail) from refused
    _send(settings, [line], wait)
    say(f"{entitlement}, {element}: limit {limit}, overdraft {overdraft}, from {event['time']}")


@importers.command()
def flexnet(
    file: Annotated[Path, typer.Argument(help="the vendor daemon's debug log")],
    entitlement: Annotated[str, typer.Option(help="the entitlement that its checkouts belong to")],
    customer: Annotated[str | None, typer.Option(help="the customer's id")] = None,
    product: Annotated[str | None, typer.Option(help="the product's id")] = None,
    timezone: Annotated[str, typer.Option(help="the license server's time zone, an IANA name")] = "UTC",
    wait: Wait = True,
) -> None:
    """Import the debug log of a FlexNet license server: one entitlement, one pool for each feature.

    Importing the same log again, or one that overlaps, changes no level, limit or alert; its days then read provisional.
    """
    from connectors.flexnet import FlexNetReader

    settings = load_settings()
    try:
        zone = ZoneInfo(Calendar(timezone).timezone)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    reader = FlexNetReader(entitlement=entitlement, timezone=zone, customer=customer, product=product)
    with _existing(file).open(encoding="utf-8", errors="surrogateescape", newline="") as lines:
        produced = _send(settings, _as_json(reader, lines), wait)
    summary = reader.summary
    say(f"read {summary.lines:,} lines, from {_text(summary.first)} to {_text(summary.last)}")
    for kind, count in sorted(summary.events.items()):
        say(f"  {count:>8,} {kind}")
    for feature, count in sorted(summary.features.items()):
        still_out = summary.open_units.get(feature, 0)
        say(f"  {count:>8,} events of {feature}" + (f", {still_out} units out at the end" if still_out else ""))
    for kind, count in sorted(summary.skipped.items()):
        say(f"  {count:>8,} lines skipped: {kind}")
    for number, problem in produced.refused:
        say(f"event {number} of the log was left out: {problem}")
    for number, text in summary.unreadable:
        say(f"line {number} looks like a checkout, but could not be read: {text}")
    say(f"sent {produced.sent:,} events to {entitlement}")
    if summary.unreadable or produced.refused:
        raise typer.Exit(1)


def _as_json(reader: "FlexNetReader", lines: Iterable[str]) -> Iterator[bytes]:
    for event in reader.events(lines):
        yield orjson.dumps(event)


def _send(settings: Settings, lines: Iterable[bytes], wait: bool) -> "Produced":
    from seatmark.produce import produce_lines, wait_until_stored

    configure_logging("ERROR")

    async def send() -> "Produced":
        with progress() as bar:
            sending = bar.add_task("sending", total=None)
            produced = await produce_lines(
                lines,
                brokers=settings.brokers,
                prefix=settings.topic_prefix,
                on_progress=lambda done: bar.update(sending, completed=done),
            )
            bar.update(sending, total=produced.sent, completed=produced.sent)
            if wait and produced.ends:
                applying = bar.add_task("applying", total=produced.sent)
                await wait_until_stored(
                    produced.ends,
                    brokers=settings.brokers,
                    prefix=settings.topic_prefix,
                    timeout=_WAIT_SECONDS,
                    on_progress=lambda left: bar.update(applying, completed=max(0, produced.sent - left)),
                )
        return produced

    return asyncio.run(send())


def _overdraft(text: str) -> dict[str, Any]:
    kind, _, value = text.partition(":")
    if kind in ("none", "unlimited") and not value:
        return {"type": kind}
    if kind == "absolute":
        return {"type": kind, "value": int(value)}
    if kind == "percentage":
        return {"type": kind, "value": float(value)}
    raise ValueError(f"--overdraft: expected none, absolute:N, percentage:P or unlimited, got {text!r}")


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise typer.BadParameter(f"there is no file {path}")
    return path


def _text(moment: object) -> str:
    return moment.astimezone(UTC).isoformat() if isinstance(moment, datetime) else str(moment)
