"""Commands that send events: `produce`, `replay-dead-letters`, `terms`, `import flexnet`."""

import asyncio
import re
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote
from zoneinfo import ZoneInfo

import orjson
import typer
from rich.progress import Progress

from processors.domain.days import Calendar
from processors.domain.overdraft import Terms, terms_of
from schemas.alerts import seatmark_id
from schemas.dead_letters import REASONS
from schemas.events import MAX_LEVEL, Refused, decode, format_time, parse_time
from seatmark.console import configure_logging, progress, say
from seatmark.reports import ApiFailed, get
from seatmark.settings import Settings, load_settings

if TYPE_CHECKING:
    from seatmark.deadletters import Replayed
    from seatmark.produce import Produced

importers = typer.Typer(help="Read another system's log into Seatmark.", no_args_is_help=True)

Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="wait until the events are applied and stored")]
_WAIT_SECONDS = 60.0
_SHOWN_PROBLEMS = 20
_OVERDRAFT = re.compile(r"none|unlimited|absolute:(?P<units>\d{1,18})|percentage:(?P<percent>\d{1,18}(?:\.\d+)?)", re.ASCII)


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


def replay_dead_letters(
    reason: Annotated[
        list[str],
        typer.Option(metavar="REASON", help=f"why they were refused: {', '.join(REASONS)}; may be given more than once"),
    ],
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="leave out letters written before, such as 2026-01-31T00:00:00Z")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="send at most this many; the rest is for another time")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would be sent")] = False,
    wait: Wait = True,
) -> None:
    """Check dead letters again, and send those that are valid events now, with the bytes that they came with.

    What can have become valid: time_in_future, once its time has come; key_mismatch, which gets its subject as key; anything,
    after a new version of Seatmark. The exit code is 1 if some are still no valid events.

    Letters are never deleted, so a second run sends them again. That changes nothing: an event with the same source and id
    counts once. An event that is old by now has no live effect, and counts in the exact numbers.
    """
    from seatmark.brokers import opened_brokers
    from seatmark.deadletters import replay

    settings = load_settings()
    configure_logging("ERROR")
    if unknown := set(reason) - set(REASONS):
        expected = f"expected one of {', '.join(REASONS)}, got {', '.join(sorted(unknown))}"
        raise typer.BadParameter(expected, param_hint="--reason")
    try:
        first = 0 if since is None else parse_time(since)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--since") from error

    async def run() -> "Replayed":
        with progress() as bar:
            reading = bar.add_task("reading letters", total=None)
            replayed = await replay(
                reason,
                brokers=await opened_brokers(settings),
                prefix=settings.topic_prefix,
                now=int(time.time() * 1000),
                since=first,
                limit=limit,
                dry_run=dry_run,
                on_progress=lambda read: bar.update(reading, completed=read),
            )
            if wait:
                await _wait(settings, replayed.ends, replayed.valid, bar)
        return replayed

    replayed = asyncio.run(run())
    refused = replayed.refused.total()
    shown = replayed.refused.most_common(_SHOWN_PROBLEMS)
    if refused:
        rest = len(replayed.refused) - len(shown)
        say(
            f"still no valid events: {refused:,}"
            + (f"; the most frequent problems, and {rest:,} are not shown" if rest else "")
        )
    for (why, detail), count in shown:
        say(f"  {count:>8,} {why}: {detail}")
    say(
        f"{'would send' if dry_run else 'sent'} {replayed.valid:,} of the letters with {', '.join(reason)}; "
        f"{refused:,} are still no valid events"
        + (f"; left out {replayed.repeats:,} that have the bytes of one of those" if replayed.repeats else "")
        + ("" if replayed.complete else f"; there are more: --limit is {limit}")
    )
    if refused:
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
    """Set what a customer bought: the limit and the overdraft of one element of an entitlement.

    Given again with the same --at they are the same terms, which count once. Terms that are older than those in force change
    no live limit: they count in the exact numbers, from their time on.
    """
    settings = load_settings()
    now = int(time.time() * 1000)
    element_terms: dict[str, Any] = {"limit": _limit(limit), "overdraft": _overdraft(overdraft)}
    try:
        moment = now if at is None else parse_time(at)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--at") from error
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
        read = decode(line, key="any", appended_at=now)
    except Refused as refused:
        raise typer.BadParameter(refused.detail) from refused
    assert read.terms is not None
    given = terms_of(read.terms[element])
    try:
        before = _standing(settings.url, entitlement, element)
    except ApiFailed:
        # It does not know the entitlement, or cannot be asked.
        before = None
    if before is None and moment >= now - settings.late_after:
        say(
            f"warning: these terms count from now, and no earlier event of {entitlement}, {element} is known. A log that you "
            f"import after them is late where it is more than {settings.late_after // 60_000} minutes older: it sends no "
            "alerts, and its days are provisional until they are restated. Give --at a time before such a log"
        )
    _send(settings, [line], wait)
    what = f"{entitlement}, {element}: limit {limit}, overdraft {overdraft}, from {event['time']}"
    if not wait:
        say(f"{what}: sent")
        return
    try:
        after = _standing(settings.url, entitlement, element)
    except ApiFailed as failed:
        say(f"{what}: stored; whether they are in force could not be asked: {failed}")
    else:
        say(f"{what}: {_outcome(given, before, after)}")


def _standing(url: str, entitlement: str, element: str) -> dict[str, Any] | None:
    """How the API says that an element stands; None where it does not have it. Raises ApiFailed."""
    document = get(url, f"/api/v1/entitlements/{quote(entitlement, safe='')}", {})
    return next((row for row in document["elements"] if row["element"] == element), None)


def _outcome(given: Terms, before: dict[str, Any] | None, after: dict[str, Any] | None) -> str:
    """What came of terms that were given, by how the element stood before and stands now."""

    def in_force(standing: dict[str, Any] | None) -> bool:
        limits = (given.limit, given.hard_limit)
        return standing is not None and standing["terms_known"] and (standing["limit"], standing["hard_limit"]) == limits

    if in_force(after):
        return "these limits were in force already" if in_force(before) else "in force"
    if after is None or not after["terms_known"]:
        return "stored, but the API knows no terms of it: is SEATMARK_URL of the same deployment as SEATMARK_BROKERS?"
    limit, hard_limit = ("unlimited" if after[name] is None else after[name] for name in ("limit", "hard_limit"))
    return (
        f"not in force. In force are limit {limit}, hard limit {hard_limit}, by terms that are newer, or of the same time and "
        "given after these. Between their time and that of the next terms these count in the exact numbers; the same command "
        "given again changes nothing. For a change from now on leave out --at"
    )


@importers.command()
def flexnet(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="the vendor daemon's debug log; all files of one that was rotated")
    ],
    entitlement: Annotated[str, typer.Option(help="the entitlement that its checkouts belong to")],
    customer: Annotated[str | None, typer.Option(help="the customer's id")] = None,
    product: Annotated[str | None, typer.Option(help="the product's id")] = None,
    timezone: Annotated[str, typer.Option(help="the license server's time zone, an IANA name")] = "UTC",
    wait: Wait = True,
) -> None:
    """Import the debug log of a FlexNet license server: one entitlement, one pool for each feature.

    Give the files of a rotated log together: what is out when a new file begins is then known. They are read in the order of
    their first lines. Importing the same log again, or one that overlaps, changes no level, limit or alert; its days then
    read provisional until they are restated.
    """
    from connectors.flexnet import FlexNetReader

    settings = load_settings()
    try:
        zone = ZoneInfo(Calendar(timezone).timezone)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--timezone") from error
    for file in files:
        if files.count(file) > 1:
            raise typer.BadParameter(f"{file} is given twice")
    log = _Log([_existing(file) for file in files])
    seat_key = settings.seat_key.get_secret_value()
    reader = FlexNetReader(entitlement=entitlement, timezone=zone, customer=customer, product=product, seat_key=seat_key)
    produced = _send(settings, (orjson.dumps(event) for event in reader.events(log.lines())), wait)
    summary = reader.summary
    span = f"events from {summary.first} to {summary.last}" if summary.first else "no events"
    say(f"read {summary.lines:,} lines, {span}")
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
        say(f"{log.place(number)} looks like a checkout, but could not be read: {text}")
    say(f"sent {produced.sent:,} events to {entitlement}")
    if summary.unreadable or produced.refused:
        raise typer.Exit(1)


class _Log:
    """The files of a log, oldest first. Raises connectors.flexnet.FilesOverlap where they are not one log."""

    def __init__(self, paths: list[Path]) -> None:
        from connectors.flexnet import look_at, oldest_first

        self._paths = paths
        self._lengths: dict[str, int] = {}
        if len(paths) == 1:
            return
        files = [look_at(str(path), self._lines_of(path)) for path in paths]
        self._lengths = {file.name: file.lines for file in files}
        for file in files:
            if file.lines and not file.times:
                say(f"no line of {file.name} says a date: the files are read in the order in which they were given")
        self._paths = [Path(file.name) for file in oldest_first(files)]
        if self._paths != paths:
            say("read in the order of their first lines: " + ", ".join(map(str, self._paths)))

    def lines(self) -> Iterator[str]:
        """The lines of all files."""
        for path in self._paths:
            yield from self._lines_of(path)

    def place(self, number: int) -> str:
        """Where the line with this number, counted over all files, is to be found."""
        for path in self._paths:
            length = self._lengths.get(str(path), number)
            if number <= length:
                break
            number -= length
        return f"line {number}" if len(self._paths) == 1 else f"{path} line {number}"

    @staticmethod
    def _lines_of(path: Path) -> Iterator[str]:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as lines:
            yield from lines


def _send(settings: Settings, lines: Iterable[bytes], wait: bool) -> "Produced":
    from seatmark.brokers import opened_brokers
    from seatmark.produce import produce_lines

    configure_logging("ERROR")

    async def send() -> "Produced":
        with progress() as bar:
            sending = bar.add_task("sending", total=None)
            produced = await produce_lines(
                lines,
                brokers=await opened_brokers(settings),
                prefix=settings.topic_prefix,
                on_progress=lambda done: bar.update(sending, completed=done),
                truncate_ips=settings.ip_truncation == "on",
            )
            bar.update(sending, total=produced.sent, completed=produced.sent)
            if wait:
                await _wait(settings, produced.ends, produced.sent, bar)
        return produced

    return asyncio.run(send())


async def _wait(settings: Settings, ends: dict[int, int], sent: int, bar: Progress) -> None:
    """Wait until the events up to `ends` are applied and stored. Raises NotStored: they are not, or could not be asked for."""
    from aiokafka.errors import KafkaError

    from seatmark.brokers import brokers_of
    from seatmark.produce import NotStored, wait_until_stored

    if not ends:
        return
    applying = bar.add_task("applying", total=sent)
    try:
        await wait_until_stored(
            ends,
            brokers=brokers_of(settings),
            prefix=settings.topic_prefix,
            timeout=_WAIT_SECONDS,
            on_progress=lambda left: bar.update(applying, completed=max(0, sent - left)),
        )
    except KafkaError as error:
        raise NotStored(
            f"the events were sent ({sent:,}), and the brokers have them; only whether they are stored could not be asked: "
            f"{error}. Asking takes the operator's rights (docs/security.md); "
            "with --no-wait nothing is asked"
        ) from error


def _limit(text: str) -> int | None:
    if text == "unlimited":
        return None
    if not re.fullmatch(r"\d{1,18}", text, re.ASCII) or int(text) > MAX_LEVEL:
        expected = f"expected whole units from 0 to {MAX_LEVEL:,}, such as 8, or unlimited, got {text!r}"
        raise typer.BadParameter(expected, param_hint="--limit")
    return int(text)


def _overdraft(text: str) -> dict[str, Any]:
    match = _OVERDRAFT.fullmatch(text)
    if match is None:
        expected = (
            "expected none, unlimited, absolute:N with N whole units, such as absolute:2, or percentage:P, such as "
            f"percentage:12.5, got {text!r}"
        )
        raise typer.BadParameter(expected, param_hint="--overdraft")
    if match["units"]:
        return {"type": "absolute", "value": int(match["units"])}
    if match["percent"]:
        return {"type": "percentage", "value": float(match["percent"])}
    return {"type": text}


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise typer.BadParameter(f"there is no file {path}")
    return path
