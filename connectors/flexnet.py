"""FlexNet (FlexLM) debug logs -> entitlement events.

lmgrd and its vendor daemons write a line per checkout, check-in and denial, with the local time of day:

    11:02:14 (adskflex) OUT: "64300ACD_F" ann@wks-12  (2 licenses)
    11:40:51 (adskflex) IN: "64300ACD_F" ann@wks-12  (2 licenses) (INACTIVE)
    11:41:03 (MLM) DENIED: "SIMULINK" bob@wks-7:0.0  (Licensed number of users already reached. (-4,342))
    11:41:07 (vendord) DENIED: 2 solver to bob@wks-7
    13:56:09 (lmgrd) TIMESTAMP 3/30/2016

Only some lines say the date. The reader goes in three steps: `_stamped_lines` cuts lines into time, daemon
and text, `_dated_lines` gives each its date, `_events_of` makes the events.
"""

import hmac
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from typing import Any
from urllib.parse import quote
from uuid import NAMESPACE_URL, uuid5
from zoneinfo import ZoneInfo

from schemas.errors import Explained

UNREADABLE_KEPT = 20  # lines kept with their text in the summary; all are counted
ONE_DAY = timedelta(days=1)
DAY, HALF_DAY = 86_400, 43_200  # seconds, as the three below
DISORDER = 60  # lines may be out of order by so much; at a longer step back the clock was set back
DATE_RACE = 2  # so near to midnight a line's stamp and the date in its text may belong to different days
SEAT_DIGITS = 24  # hexadecimal, of a seat's pseudonym
REMEMBERED = 7_200  # identical lines are told apart for longer than the hour that the autumn change repeats

_STAMPED = re.compile(
    r"\s*(?:(?P<date>\d{4}-\d\d-\d\d)T)?(?P<h>\d{1,2}):(?P<m>\d\d):(?P<s>\d\d)(?P<offset>Z|[+-][01]\d:?[0-5]\d)?"
    r"\s*\((?P<daemon>[^()]+)\)\s*(?P<text>.*)",
    re.ASCII,
)
_CONTINUED = re.compile(r"\s*[(\[]")
_ENTRY_START = re.compile(r"(?:OUT|IN|DENIED):")
_ENTRY_ANYWHERE = re.compile(r"\b(?:OUT|IN|DENIED|IN server died):(?:\s|$)")
_FEATURE = r'(?:"(?P<quoted>[^"]+)"|(?P<bare>[^"\s]+))\s+'
# The forms of a request, each for the whole text. Where a count says so, the user may be without a host.
_ENTRIES = tuple(
    re.compile(form)
    for form in (
        rf"(?P<kind>DENIED):\s+(?P<count>\d{{1,9}})\s+{_FEATURE}to\s+"
        r"(?P<user>(?:(?!\s[(\[]).)+?)(?:@(?P<host>[^\s@]+))?(?P<rest>(?:\s+[(\[^].*)?)\s*",
        rf"(?P<kind>OUT|IN|DENIED):\s+{_FEATURE}"
        r"(?:\([^()]*\)\s+)?"  # some daemons log the client's capabilities here: (PORT_AT_HOST_PLUS   )
        # `OUT: feature by user`, which manuals of the nineties have, is not read: no log of that kind was there to try.
        r"(?P<user>(?!(?:by|to)\s)(?:(?!\s[(\[]).)*?)@(?P<host>[^\s@]+)(?P<rest>(?:\s.*)?)",
        rf"(?P<kind>OUT|IN|DENIED):\s+{_FEATURE}(?P<user>[^\s@()\[\]]+)(?P<host>)(?P<rest>\s+\(\d{{1,9}} licen[sc]es?\).*)",
    )
)
_PIECE = re.compile(
    r"\[(?P<data>[^\]]*)\]?"  # checkout data
    r"|\((?P<group>(?:[^()]|\([^()]*\)?)*)\)?"  # a reason has its error code in parentheses of its own
    r"|(?P<word>[^\s(\[]+)"
)
_LICENSES = re.compile(r"(\d{1,9})(?:\s+licen[sc]es?)?", re.IGNORECASE)
_NO_EVENT = re.compile(r"\(@.*-SLOG@\)|(SLOG|TIMESTAMP|UNSUPPORTED|QUEUED|DEQUEUED|UPGRADE|EXPIRED)\b")
_START = re.compile(r"(?:\[NEW\] )?Server started\b|(?:FlexNet|FLEXnet|FLEXlm)\b.*\bstarted on\b")
_SHORT_DATE = re.compile(r"(?:TIMESTAMP\s+|.*\bstarted on\b.*\()(\d{1,2})/(\d{1,2})/(\d{4})\)?$")
_LONG_DATE = re.compile(
    r"(?:Server's System Date and Time|\(@.*-SLOG@\) (?:Start-Date|Time)):\s+"
    r"[A-Z][a-z]{2}\s+([A-Z][a-z]{2})\s+(\d{1,2})\s+(\d{4})\b"
)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_EVENT_TYPES = {"OUT": "feature.checked_out", "IN": "feature.returned", "DENIED": "feature.denied"}


class NotALog(Explained):
    """A file has no line of a FlexNet debug log."""


class FilesOverlap(Explained):
    """The files of a log cannot be read one after the other, because their times overlap."""


class NoDateError(Explained):
    """No line of the log says a date, so its times of day cannot be placed."""

    def __init__(self, lines: int) -> None:
        super().__init__(
            f"no date in {lines} lines of what should be a FlexNet debug log. Looked for "
            "'TIMESTAMP m/d/yyyy', '... started on <host> (...) (m/d/yyyy)', "
            "'Server's System Date and Time: Wed Mar 30 2016 ...', "
            "'(@<daemon>-SLOG@) Start-Date: Wed Mar 30 2016 ...' and stamps such as 2016-03-30T01:56:00"
        )


@dataclass
class Summary:
    """What one reading found. Complete when the events were read to their end.

    `events` counts per type, `features` events per feature, `skipped` lines per kind. `unreadable` has line
    number and text of the first checkout lines that could not be read; `first` and `last` are times of events
    (RFC 3339, UTC); `open_units` is what was still out at the end, per feature.
    """

    lines: int = 0
    events: Counter[str] = field(default_factory=Counter)
    features: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    unreadable: list[tuple[int, str]] = field(default_factory=list)
    first: str | None = None
    last: str | None = None
    open_units: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class LogFile:
    """One of the files of a rotated log. times: local, of its first and its last line; None where no line says a date."""

    name: str
    lines: int
    times: tuple[datetime, datetime] | None


@dataclass(slots=True)
class _Line:
    number: int
    seconds: int  # since local midnight
    day: date | None  # what the line itself says
    stamped: bool  # the day is part of the stamp, not of the text
    offset: str | None  # of the time zone, when the stamp has one
    daemon: str
    text: str


@dataclass(slots=True)
class _Request:
    """What an OUT, IN or DENIED line says; also what a seat has out since its OUT."""

    kind: str
    element: str
    user: str
    host: str
    seat_id: str  # user@host, and what tells apart several sessions of one user on one host: user@host/handle
    quantity: int
    reason: str

    @property
    def holder(self) -> str:
        return f"{self.user}@{self.host}" if self.host else self.user


def look_at(name: str, lines: Iterable[str]) -> LogFile:
    """Find out from when to when a file goes. Raises NotALog."""
    reader = FlexNetReader(entitlement="", timezone=ZoneInfo("UTC"))
    times: tuple[datetime, datetime] | None = None
    try:
        for _, local in reader._dated_lines(reader._stamped_lines(lines)):
            times = (times[0], max(times[1], local)) if times else (local, local)
    except NoDateError:
        skipped = reader.summary.skipped
        if skipped["no time stamp"] + skipped["blank"] == reader.summary.lines:
            raise NotALog(
                f"{name} has no line such as 11:02:14 (adskflex) OUT: ..., so it is no FlexNet debug log. If it is compressed, "
                "unpack it"
            ) from None
    return LogFile(name, reader.summary.lines, times)


def oldest_first(files: Sequence[LogFile]) -> list[LogFile]:
    """The files of a rotated log in the order in which they were written.

    Where one says no date, all stay as they are given: only who gives them knows its place.
    Raises FilesOverlap: a file begins before the one before it ends. Its lines would get wrong dates, and those that both
    have would count twice.
    """
    ordered = list(files)
    if all(file.times for file in files if file.lines):
        ordered.sort(key=lambda file: file.times or (datetime.min, datetime.min))
    dated = [(file.name, *file.times) for file in ordered if file.times]
    for (before, _, end), (after, begin, _) in pairwise(dated):
        if begin < end - timedelta(seconds=DISORDER):
            raise FilesOverlap(
                f"{after} begins at {begin}, before {before} ends at {end}: they are not one log that was cut into files. "
                "Of files that have lines in common, give one. Import the files of different daemons one by one. Where a "
                "file says no date, give all of them oldest first"
            )
    return ordered


class FlexNetReader:
    """Reads one FlexNet debug log: `events` once, then `summary`.

    Rotated files of one server may be chained, in the order of `oldest_first`: what is out is then known across files. Times
    are local to `timezone`. Each feature is a pool element of `entitlement`. Every event has `customer` and
    `product`, if given. With a `seat_key` seats have pseudonyms that only who has the key can work out: the same for the same
    seat, or a return would not find its checkout.
    """

    def __init__(
        self,
        *,
        entitlement: str,
        timezone: ZoneInfo,
        customer: str | None = None,
        product: str | None = None,
        seat_key: str = "",
    ) -> None:
        self.summary = Summary()
        self._entitlement = entitlement
        self._timezone = timezone
        self._seat_key = seat_key.encode()
        self._terms = {"customer": customer, "product": product}
        # daemon -> feature -> seat -> what it has out, oldest first
        self._open: dict[str, dict[str, dict[str, _Request]]] = {}
        self._seen: dict[datetime, Counter[tuple[str, str]]] = {}

    def events(self, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
        """CloudEvents in the order of the lines, while they are read. Raises NoDateError.

        Open the file with `encoding="utf-8"` and an `errors` handler such as "replace": names may be in any
        encoding. Lines before the first date are kept in memory until it is found; after it, a line is read
        when the next one arrives, as it may go on there.
        """
        for line, local in self._dated_lines(self._stamped_lines(lines)):
            yield from self._events_of(line, local)
        for features in self._open.values():
            for element, holds in features.items():
                self.summary.open_units[element] += sum(hold.quantity for hold in holds.values())

    def _stamped_lines(self, lines: Iterable[str]) -> Iterator[_Line]:
        """The lines with a time, each joined with the rest of its text where that was wrapped."""
        held: _Line | None = None
        for number, raw in enumerate(lines, 1):
            self.summary.lines += 1
            line = _cut(number, text := _clean(raw))
            if line:
                if held:
                    yield held
                held = line
            elif held and _CONTINUED.match(text) and _ENTRY_START.match(held.text):
                held.text += " " + text.strip()
                self.summary.skipped["continuation"] += 1
            else:
                self._skip(number, text, "no time stamp" if text else "blank")
        if held:
            yield held

    def _dated_lines(self, lines: Iterator[_Line]) -> Iterator[tuple[_Line, datetime]]:
        """Each line with its local time; those before the first date are dated back from it. Raises NoDateError."""
        waiting: list[_Line] = []
        for line in lines:
            waiting.append(line)
            if line.day is not None:
                clock = _Clock(_first_day(waiting, line.day), waiting[0].seconds)
                yield from ((earlier, clock.place(earlier)) for earlier in waiting)
                break
        else:
            if self.summary.lines > self.summary.skipped["blank"]:
                raise NoDateError(self.summary.lines)
            return
        for line in lines:
            yield line, clock.place(line)

    def _events_of(self, line: _Line, local: datetime) -> Iterator[dict[str, Any]]:
        request = _request(line.text)
        if request and request.quantity:
            yield from self._requested(line, local, request)
        elif request:
            self.summary.skipped["0 licenses"] += 1
        elif line.daemon not in ("lmgrd", "lmadmin") and _START.match(line.text):
            self.summary.skipped["vendor daemon start"] += 1
            yield from self._restarted(line, local)
        elif no_event := _NO_EVENT.match(line.text):
            self.summary.skipped[no_event[1] or "SLOG"] += 1
        else:
            self._skip(line.number, line.text, "server message")

    def _skip(self, number: int, text: str, kind: str) -> None:
        """Counts a line that says nothing, and keeps one that has the look of a checkout line."""
        if not _ENTRY_ANYWHERE.search(text):
            self.summary.skipped[kind] += 1
            return
        # Cut off, unknown, or two daemons wrote into each other's line: units may be missing, so say which.
        self.summary.skipped["unreadable checkout line"] += 1
        if len(self.summary.unreadable) < UNREADABLE_KEPT:
            self.summary.unreadable.append((number, text))

    def _requested(self, line: _Line, local: datetime, request: _Request) -> Iterator[dict[str, Any]]:
        features = self._open.setdefault(line.daemon, {})
        holds = features.setdefault(request.element, {})
        parts = [request]
        if request.kind == "OUT" and request.seat_id in holds:
            holds[request.seat_id].quantity += request.quantity
        elif request.kind == "OUT":
            holds[request.seat_id] = request
        elif request.kind == "IN":
            parts = _give_back(holds, request)
        if not holds:
            del features[request.element]
        key = self._key(line, local)
        for part in parts:
            # A file that is read without those before it does not know what is out: it takes the seat that the line says.
            # An event for another seat needs an id of its own, or it would be taken for that one, and its seat stay open.
            own = [] if part.seat_id == request.seat_id else [part.seat_id]
            yield self._event(line, local, [*key, *own], part)

    def _restarted(self, line: _Line, local: datetime) -> Iterator[dict[str, Any]]:
        """A vendor daemon that died logged no check-ins; its new process starts with nothing handed out."""
        key = self._key(line, local)
        for holds in self._open.pop(line.daemon, {}).values():
            for hold in holds.values():
                part = replace(hold, kind="IN", reason="SERVER_RESTART")
                yield self._event(line, local, [*key, hold.element, hold.seat_id], part)

    def _key(self, line: _Line, local: datetime) -> list[str | int]:
        """What identifies a line wherever it stands: its content and its number among equals in a second."""
        second = local.replace(fold=0)
        if second not in self._seen:
            if len(self._seen) >= REMEMBERED:
                del self._seen[next(iter(self._seen))]
            self._seen[second] = Counter()
        same = self._seen[second]
        same[line.daemon, line.text] += 1
        return ["flexnet", second.isoformat(), line.daemon, line.text, same[line.daemon, line.text] - 1]

    def _event(self, line: _Line, local: datetime, key: list[str | int], request: _Request) -> dict[str, Any]:
        at = self._instant(line, local).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        summary, kind = self.summary, _EVENT_TYPES[request.kind]
        summary.events[kind] += 1
        summary.features[request.element] += 1
        summary.first = min(summary.first or at, at)
        summary.last = max(summary.last or at, at)
        name = json.dumps(key, ensure_ascii=False, separators=(",", ":"))
        data: dict[str, Any] = {"seat_id": self._seat_named(request.seat_id), "element": request.element}
        data |= {"quantity": request.quantity, "user": request.user, "host": request.host}
        data |= {"reason": "" if request.kind == "OUT" else request.reason} | self._terms
        return {
            "specversion": "1.0",
            "id": str(uuid5(NAMESPACE_URL, f"seatmark:{name}")),
            # A daemon that runs as several processes logs as demo[24341]; the number changes with each start.
            "source": "/flexnet/" + quote(line.daemon.partition("[")[0], safe=""),
            "type": kind,
            "subject": self._entitlement,
            "time": at,
            "data": {item: value for item, value in data.items() if value},
        }

    def _seat_named(self, seat_id: str) -> str:
        if not self._seat_key:
            return seat_id
        return "seat-" + hmac.digest(self._seat_key, seat_id.encode(errors="surrogatepass"), "sha256").hex()[:SEAT_DIGITS]

    def _instant(self, line: _Line, local: datetime) -> datetime:
        if line.offset:
            return datetime.fromisoformat(local.isoformat() + line.offset).astimezone(UTC)
        first = local.replace(tzinfo=self._timezone, fold=0).astimezone(UTC)
        second = local.replace(tzinfo=self._timezone).astimezone(UTC)
        # In the spring gap fold=1 is the earlier instant, and never meant: there the clock had not yet moved.
        return max(first, second)


class _Clock:
    """Knows the day of each line from the lines before it."""

    def __init__(self, day: date, seconds: int) -> None:
        self._day = day
        self._seconds = seconds
        self._came_over_midnight = False  # into this day
        self._set_back = False  # on this day: the second pass of an autumn hour

    def place(self, line: _Line) -> datetime:
        """The line's local time, with fold=1 when the clock was set back before it on its day."""
        back = self._seconds - line.seconds
        day = self._day
        if back > HALF_DAY:
            day += ONE_DAY
        elif back < DISORDER - DAY and self._came_over_midnight:
            # Stamped just before midnight, logged just after. What follows must not go back a day with it.
            day -= ONE_DAY
            if line.day in (None, day):
                return _at(day, line.seconds)
        if line.day is not None and not _is_race(line, day):
            day = line.day
        if day != self._day:
            self._came_over_midnight, self._set_back = day == self._day + ONE_DAY, False
        elif back > DISORDER:
            self._set_back = True
        self._day, self._seconds = day, line.seconds
        return _at(day, line.seconds).replace(fold=int(self._set_back))


def _first_day(waiting: list[_Line], stated: date) -> date:
    """The day of the first of the waiting lines, of which only the last says its date.

    It goes back by the midnights between them; whole days without a line cannot be seen.
    """
    clock = _Clock(stated, waiting[0].seconds)
    reached = [clock.place(replace(line, day=None)) for line in waiting][-1]
    return stated - (reached.date() - stated)


def _is_race(line: _Line, day: date) -> bool:
    """Whether midnight fell between a line's stamp and its text: its date would count it a second time."""
    if line.stamped or line.day is None:
        return False
    if line.seconds >= DAY - DATE_RACE:
        return line.day == day + ONE_DAY
    return line.seconds < DATE_RACE and line.day == day - ONE_DAY


def _at(day: date, seconds: int) -> datetime:
    return datetime.combine(day, time()) + timedelta(seconds=seconds)


def _clean(raw: str) -> str:
    """Without byte order mark and line end; bytes kept as surrogates become U+FFFD, which can be sent."""
    return raw.encode("utf-8", "surrogatepass").decode("utf-8", "replace").lstrip("\ufeff").rstrip()


def _cut(number: int, text: str) -> _Line | None:
    match = _STAMPED.match(text)
    if not match or int(match["h"]) > 23 or int(match["m"]) > 59 or int(match["s"]) > 59:
        return None
    seconds = int(match["h"]) * 3600 + int(match["m"]) * 60 + int(match["s"])
    day = _date(*match["date"].split("-")) if match["date"] else _stated_date(match["text"])
    return _Line(number, seconds, day, bool(match["date"]), match["offset"], match["daemon"], match["text"])


def _stated_date(text: str) -> date | None:
    if match := _SHORT_DATE.match(text):
        return _date(match[3], match[1], match[2])
    if (match := _LONG_DATE.match(text)) and match[1] in _MONTHS:
        return _date(match[3], str(_MONTHS.index(match[1]) + 1), match[2])
    return None


def _date(year: str, month: str, day: str) -> date | None:
    try:
        return date(int(year), int(month), int(day)) if "1980" <= year < "2900" else None
    except ValueError:  # 13/45/2016 says nothing
        return None


def _request(text: str) -> _Request | None:
    match = next(filter(None, (form.fullmatch(text) for form in _ENTRIES)), None)
    if not match:
        return None
    host, display = match["host"] or "", ""
    if "::" not in host and host.count(":") <= 2:  # else an IPv6 address
        host, _, display = host.partition(":")
    quantity, handles, reasons = int(match.groupdict().get("count") or 1), [display], []
    # Daemons with verbose logs repeat user, address, process and counts between ^^^ and ^^^.
    for piece in _PIECE.finditer(match["rest"].partition("^^^")[0]):
        group = piece["group"]
        if group is None:
            handles.append(piece["data"] or piece["word"] or "")
        elif count := _LICENSES.fullmatch(group.strip()):
            quantity = int(count[1])
        elif group.lower().startswith("handle"):
            handles.append(group[len("handle") :])
        else:
            reasons.append(group.strip())
    handle = " ".join(filter(None, (part.strip(" :") for part in handles)))
    request = _Request(
        kind=match["kind"],
        element=match["quoted"] or match["bare"],
        user=match["user"].strip(),
        host=host,
        seat_id="",
        quantity=quantity,
        reason=" ".join(reasons),
    )
    request.seat_id = f"{request.holder}/{handle}" if handle else request.holder
    return request


def _give_back(holds: dict[str, _Request], request: _Request) -> list[_Request]:
    """Takes a check-in off the open holds; returns it in one part per seat that gives back.

    Some daemons log the display or checkout data only with the checkout. So a check-in without gives back
    what its user has out on that host, oldest first; one with a handle that is not open, what was taken
    without. What was not seen going out (before the log began) stays with the first part.
    """
    left = request.quantity
    parts: list[_Request] = []
    for seat_id in _seats_to_try(holds, request):
        if hold := holds.get(seat_id):
            taken = min(left, hold.quantity)
            left -= taken
            hold.quantity -= taken
            parts.append(replace(request, seat_id=seat_id, quantity=taken))
            if not hold.quantity:
                del holds[seat_id]
            if not left:
                return parts
    if parts:
        parts[0].quantity += left
    return parts or [request]


def _seats_to_try(holds: dict[str, _Request], request: _Request) -> Iterator[str]:
    yield request.seat_id
    if request.seat_id != request.holder:
        yield request.holder
    else:
        yield from [seat for seat, hold in holds.items() if hold.holder == request.holder]
