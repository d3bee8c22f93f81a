"""What the web reads: one reader per request, which may see what its scope says. Pages, API and CSV all ask it.

Every query is bound to the scope: by `Reader._query`, where it reads of elements only `visible_elements`
(views/migrations/0007_readers.sql) of it; or to elements that this view has shown in the same request: those of one entitlement
by `Reader._query_of`, those of the report by `Reader.overdrafts`.
"""

import base64
import binascii
import datetime
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import orjson

from processors.domain.days import Calendar, DayBounds
from processors.domain.overdraft import OVERDRAWN
from schemas.events import SEATS, format_time, parse_time
from views.days import completed_days
from views.exact import ElementLog, Held
from views.report import LevelsHeld, levels_held, overdraft_days
from views.reporting import ReportingDays
from views.store import Store
from views.tokens import Scope
from views.web.problems import Problem

FIRST_DATE = datetime.date(1970, 1, 1)
MAX_DAYS = 366
MAX_PAGE = 500
WINDOW_DAYS = 30
# A fold of more takes longer than anybody waits for a page.
MAX_FOLDED = 200_000
_CSV_PAGE = 5_000
# Customers and products that a filter offers; others can be written into it.
_NAMES_OFFERED = 500
# More questions at once than that, of all requests, wait for each other.
_AT_ONCE = ThreadPoolExecutor(16, "question")
_ONE_DAY = datetime.timedelta(days=1)
_LOOK_BACK = datetime.timedelta(days=10)
_SPAN_MS = 40 * 86_400_000
_LAST_MS = 253_402_300_799_999
# 2299-12-31: ClickHouse's times end there. No event is from later than its arrival.
_LAST_SQL_MS = 10_413_791_999_999

# Orders of the overdraft report by name, the greatest first but for names.
ReportOrder = Literal["customer", "now", "time", "episodes", "peak", "unit_hours", "denials", "trend", "buy"]
REPORT_ORDERS: dict[ReportOrder, Callable[[dict[str, Any]], Any]] = {
    "customer": lambda row: (row["customer"] or "", row["entitlement"], row["element"]),
    "now": lambda row: (not row["overdrawn"], -row["overage"]),
    "time": lambda row: -row["overdraft_seconds"],
    "episodes": lambda row: -row["episodes_in_30_days"],
    "peak": lambda row: -row["peak_overage"],
    "unit_hours": lambda row: -row["unit_seconds_over"],
    "denials": lambda row: -row["denials"],
    "trend": lambda row: -row["trend_seconds"],
    "buy": lambda row: -(row["buy_100"] or 0),
}

# An element: (entitlement, element).
_Key = tuple[str, str]
_First = TypeVar("_First")
_Other = TypeVar("_Other")


@dataclass(frozen=True)
class EventFilter:
    """Which events of an entitlement are asked for; empty: all. from_ms inclusive, to_ms exclusive."""

    element: str = ""
    types: tuple[str, ...] = ()
    seat: str = ""
    user: str = ""
    from_ms: int = 0
    to_ms: int = _LAST_MS


@dataclass(frozen=True)
class ElementFilter:
    """Which elements are asked for; empty: all.

    standing: a state, `overdrawn`, `idle` or `denied`. sort: `entitlement` or `utilisation`.
    """

    search: str = ""
    customer: str = ""
    product: str = ""
    standing: str = ""
    sort: str = "entitlement"


@dataclass(frozen=True)
class Page:
    """Some rows, and where the next ones start: an opaque cursor, None after the last."""

    rows: list[dict[str, Any]]
    next: str | None


@dataclass
class Reader:
    """Answers for one request. now_ms: the present, the same for all of it."""

    store: Store
    scope: Scope
    now_ms: int
    _reporting: ReportingDays | None = field(default=None, repr=False)
    _elements: dict[str, list[dict[str, Any]]] = field(default_factory=dict, repr=False)

    @property
    def timezone(self) -> str:
        """The reporting time zone."""
        return self._days.timezone

    @property
    def today(self) -> datetime.date:
        """The date in it."""
        return self._days.date_at(self.now_ms)

    def elements_of(self, entitlement: str) -> list[dict[str, Any]]:
        """The elements of an entitlement, as they stand. Raises Problem 404: none that the reader may see."""
        if entitlement not in self._elements:
            self._elements[entitlement] = self._query("entitlement", entitlement=entitlement)
        elements = self._elements[entitlement]
        if not elements:
            raise Problem(404, "unknown-entitlement", f"there is no entitlement {entitlement!r}")
        return elements

    def entitlement(self, entitlement: str) -> dict[str, Any]:
        """An entitlement and its elements. Raises Problem 404."""
        elements = self.elements_of(entitlement)
        # Each element keeps what its own events said; the latest that says anything says it for the entitlement.
        latest_last = sorted(elements, key=lambda element: element["as_of"])
        said_of_all = ("customer", "product", "name")
        said = {name: element[name] for element in latest_last for name in said_of_all if element[name]}
        return {
            "entitlement": entitlement,
            "customer": said.get("customer"),
            "product": said.get("product"),
            "name": said.get("name"),
            "timezone": self.timezone,
            "elements": [
                _with_times({name: value for name, value in element.items() if name not in said_of_all}, "as_of", "since")
                for element in elements
            ],
        }

    def usage(
        self, entitlement: str, element: str | None, days: int, to: datetime.date | None, timezone: str | None
    ) -> dict[str, Any]:
        """The days of one element up to `to` (default: today). timezone: another one than the reporting one is folded anew.

        Raises Problem 404, and 422 where a parameter does not fit.
        """
        chosen = choose_element(entitlement, self.elements_of(entitlement), element)
        if timezone is None or timezone == self.timezone:
            zone, today = self.timezone, self.today
            last = _last_day(to, today, zone)
            rows = self.days_of(entitlement, chosen, max(FIRST_DATE, last - (days - 1) * _ONE_DAY), last)
        else:
            calendar = _calendar(timezone)
            zone, today = timezone, datetime.date.fromisoformat(calendar.day_of(self.now_ms).day)
            last = _last_day(to, today, zone)
            first = max(FIRST_DATE, last - (days - 1) * _ONE_DAY)
            rows = self._log(entitlement, chosen).days(calendar, first, last, self.now_ms)
        return {"entitlement": entitlement, "element": chosen, "timezone": zone, "days": rows}

    def days_of(self, entitlement: str, element: str, first: datetime.date, last: datetime.date) -> list[dict[str, Any]]:
        """The days of one element from the first to the last date, by the reporting time zone. Raises Problem 404."""
        first = max(FIRST_DATE, first)
        stored = self._stored_days(entitlement, element, first, last)
        marks = self._query_of(entitlement, "usage_marks", element=element)
        return completed_days(self._days.between(first, last), stored, marks, today=self.today, at_ms=self.now_ms)

    def history(self, entitlement: str, wanted: EventFilter, limit: int, cursor: str | None) -> Page:
        """Events of an entitlement, newest first. Raises Problem 404 for it or the element, 422 for a bad cursor."""
        elements = self.elements_of(entitlement)
        if wanted.element:
            choose_element(entitlement, elements, wanted.element)
        return self._history_page(entitlement, wanted, limit, cursor)

    def whole_history(self, entitlement: str, wanted: EventFilter) -> Iterator[dict[str, Any]]:
        """All of them, a page at a time in memory. Raises Problem 404 before the first."""
        page = self.history(entitlement, wanted, _CSV_PAGE, None)
        return self._following(page, lambda cursor: self._history_page(entitlement, wanted, _CSV_PAGE, cursor))

    def latest_place(self, entitlement: str) -> tuple[int, int]:
        """The place in the log (epoch, offset) of the last that arrived for an entitlement."""
        [row] = self._query("latest_place", entitlement=entitlement)
        return row["place"][0], row["place"][1]

    def news(self, entitlement: str, after: tuple[int, int]) -> list[tuple[tuple[int, int], dict[str, Any]]]:
        """What arrived for an entitlement after a place in the log: (its place, the event), in order, at most MAX_PAGE."""
        rows = self._query("news", entitlement=entitlement, epoch=after[0], offset=after[1], rows=MAX_PAGE)
        return [((row["epoch"], row["offset"]), _event(row)) for row in rows]

    def holders(
        self, entitlement: str, element: str | None, at: str | None, day: datetime.date | None, timezone: str | None = None
    ) -> dict[str, Any]:
        """Who held an element at a moment; without one, at the peak of a day (default: today).

        timezone: of the day; default: the reporting one.
        Raises Problem 404, and 422 where a parameter does not fit.
        """
        chosen = choose_element(entitlement, self.elements_of(entitlement), element)
        log = self._log(entitlement, chosen)
        if at is not None:
            moment = milliseconds("query.at", at)
        else:
            calendar = _calendar(timezone or self.timezone)
            today = datetime.date.fromisoformat(calendar.day_of(self.now_ms).day)
            bounds = calendar.bounds(_last_day(day, today, calendar.timezone, "query.day"))
            if bounds is None:
                raise Problem(422, "invalid-request", f"query.day: {day} does not exist in {calendar.timezone}")
            moment = log.peak_moment(bounds)
        return {"entitlement": entitlement, "element": chosen, "timezone": self.timezone, **_held(log.held_at(moment))}

    def elements(self, wanted: ElementFilter, limit: int, cursor: str | None) -> Page:
        """Elements of all entitlements, with their last 30 days. Raises Problem 422 for a bad cursor."""
        key, entitlement, element = _place(cursor, (int, str, str)) or (_LAST_MS, "", "")
        rows = self._query(
            "elements", search=wanted.search, customer=wanted.customer, product=wanted.product, standing=wanted.standing,
            sort=wanted.sort, at=self._at, after_key=key, after_entitlement=entitlement, after_element=element, rows=limit + 1,
        )  # fmt: skip
        more = len(rows) > limit
        rows = rows[:limit]
        following = _cursor(rows[-1]["key"], rows[-1]["entitlement"], rows[-1]["element"]) if more else None
        for row in rows:
            del row["key"]
        return Page([_with_times(row, "as_of") | {"idle": bool(row["idle"])} for row in rows], following)

    def all_elements(self, wanted: ElementFilter) -> Iterator[dict[str, Any]]:
        """All of them, a page at a time in memory."""
        return self._following(self.elements(wanted, _CSV_PAGE, None), lambda cursor: self.elements(wanted, _CSV_PAGE, cursor))

    def totals(self, wanted: ElementFilter) -> dict[str, Any]:
        """How many elements fit, however they stand, and how many of them stand how."""
        [row] = self._query("totals", search=wanted.search, customer=wanted.customer, product=wanted.product, at=self._at)
        return row

    def names(self) -> dict[str, list[str]]:
        """The `customers` and `products` that the reader may see, in order: the first 500 of each."""
        [row] = self._query("names", most=_NAMES_OFFERED)
        return row

    def overdrafts(
        self,
        *,
        entitlement: str = "",
        element: str = "",
        customer: str = "",
        product: str = "",
        now: bool = False,
        sort: ReportOrder | None = None,
    ) -> list[dict[str, Any]]:
        """Who is above the limit, or was in the last 30 days; of one entitlement, its elements whether they were or not.

        now: only those above it now.
        sort: one of REPORT_ORDERS; without, and among equals, those above it now come first, then those that were for longest.
        """
        first_day = self.today - (WINDOW_DAYS - 1) * _ONE_DAY
        rows = self._query(
            "overdrafts", entitlement=entitlement, element=element, customer=customer, product=product, first_day=first_day,
            today=self.today,
        )  # fmt: skip
        rows = [row for row in rows if row["overdrawn"] or not now]
        if not rows:
            return []
        of_these = _visible(_key(row) for row in rows)
        dates = [(datetime.date.fromisoformat(day.day), day) for day in self._days.between(first_day, self.today)]
        start_ms = dates[0][1].start
        stored, (added_up, counts) = at_once(
            lambda: self._report_days(of_these, first_day),
            lambda: self.store.query("levels_held", **of_these, first_day=first_day, last_day=self.today),
            lambda: self.store.query("episode_counts", **of_these, **{"from": _in_sql(start_ms), "at": self._at}),
        )
        levels = self._report_levels(stored, added_up, dates)
        ended = {_key(row): row["ended"] for row in counts}
        report = []
        for row in rows:
            of_element = stored.get(_key(row), [])
            days = overdraft_days(dates, of_element, today=self.today, at_ms=self.now_ms)
            carried = next((day for day in reversed(of_element) if day["day"] < first_day), None)
            held = levels_held(levels.get(_key(row), []), carried, start_ms, self.now_ms)
            report.append(_report_row(row, days, held, ended.get(_key(row), 0)))
        report.sort(key=lambda row: (not row["overdrawn"], -row["overdraft_seconds"], row["entitlement"], row["element"]))
        return sorted(report, key=REPORT_ORDERS[sort]) if sort is not None else report

    def sizing(self, entitlement: str, element: str | None) -> dict[str, Any]:
        """How many seats of one element would have been enough in the last 30 days. Raises Problem 404."""
        chosen = choose_element(entitlement, self.elements_of(entitlement), element)
        [row] = self.overdrafts(entitlement=entitlement, element=chosen)
        return row | {"timezone": self.timezone}

    def episodes(self, entitlement: str, element: str, days: int, limit: int, cursor: str | None) -> Page:
        """Overdrafts that touch the last days, the latest first; those that go on have no end. entitlement '': of all.

        Raises Problem 404 for the entitlement or the element, 422 for a bad cursor.
        """
        if entitlement:
            elements = self.elements_of(entitlement)
            if element:
                choose_element(entitlement, elements, element)
        before, after_entitlement, after_element = _place(cursor, (int, str, str)) or (_LAST_MS, "", "")
        rows = self._query(
            "episodes", entitlement=entitlement, element=element, first_day=self.today - (days - 1) * _ONE_DAY, at=self._at,
            before_ms=before, before_entitlement=after_entitlement, before_element=after_element, rows=limit + 1,
        )  # fmt: skip
        more = len(rows) > limit
        rows = rows[:limit]
        following = _cursor(rows[-1]["start"], rows[-1]["entitlement"], rows[-1]["element"]) if more else None
        return Page([_with_times(row, "start", "end") for row in rows], following)

    def all_episodes(self, entitlement: str, element: str, days: int) -> Iterator[dict[str, Any]]:
        """All of them, a page at a time in memory. Raises Problem 404 before the first."""
        page = self.episodes(entitlement, element, days, _CSV_PAGE, None)
        return self._following(page, lambda cursor: self.episodes(entitlement, element, days, _CSV_PAGE, cursor))

    def _stored_days(self, entitlement: str, element: str, first: datetime.date, last: datetime.date) -> list[dict[str, Any]]:
        """The stored days of an element from the first to the last date, and the latest before them."""
        # Nearly always there is a row in the days before. ClickHouse has a partition for each month, and each costs time.
        looked_from = max(FIRST_DATE, first - _LOOK_BACK)
        stored = self._query_of(entitlement, "usage_days", element=element, first_day=looked_from, last_day=last)
        if not stored or stored[0]["day"] > first:
            for row in self._query_of(entitlement, "usage_day_before", element=element, first_day=looked_from):
                day = row["latest"]
                stored = self._query_of(entitlement, "usage_days", element=element, first_day=day, last_day=day) + stored
        return stored

    def _report_days(self, of_these: dict[str, Any], first: datetime.date) -> dict[_Key, list[dict[str, Any]]]:
        """The stored days of some elements from the first date to today, and the latest before them."""
        looked_from = max(FIRST_DATE, first - _LOOK_BACK)
        stored = _by_key(self.store.query("overdraft_days", **of_these, first_day=looked_from, last_day=self.today))
        without = [key for key in of_these["visible"] if key not in stored or stored[key][0]["day"] > first]
        if without:
            for row in self.store.query("overdraft_day_before", **_visible(without), first_day=looked_from):
                stored[_key(row)] = [row, *stored.get(_key(row), [])]
        return stored

    def _report_levels(
        self,
        stored: dict[_Key, list[dict[str, Any]]],
        added_up: list[dict[str, Any]],
        dates: list[tuple[datetime.date, DayBounds]],
    ) -> dict[_Key, list[dict[str, Any]]]:
        """What some elements held on each of the dates, in order: as it was added up already, or from the raw log.

        stored: their day rows, which say whether what was added up is still so.
        """
        first = dates[0][0]
        wanted = {(key, row["day"]): row["version"] for key, rows in stored.items() for row in rows if row["day"] >= first}
        found = {}
        for row in added_up:
            if wanted.get((_key(row), row["day"])) == row["version"] and row["last_at"] <= self.now_ms:
                found[_key(row), row["day"]] = row
        missing = wanted.keys() - found.keys()
        if missing:
            starts = {bounds.start: day for day, bounds in dates}
            since = min(day for _, day in missing)
            for row in self.store.query(
                "levels_of_days", **_visible({key for key, _ in missing}), starts=sorted(starts),
                **{"from": _in_sql(next(bounds.start for day, bounds in dates if day == since)), "to": self._at},
            ):  # fmt: skip
                place = (_key(row), starts[row["start_ms"]])
                if place in missing:
                    found[place] = row
        levels: dict[_Key, list[dict[str, Any]]] = {}
        for key, day in sorted(found):
            levels.setdefault(key, []).append(found[key, day])
        return levels

    def _history_page(self, entitlement: str, wanted: EventFilter, limit: int, cursor: str | None) -> Page:
        place = _place(cursor, (int, int, int, str)) or (wanted.to_ms - 1, 2**32 - 1, 2**62, "")
        where = {
            "element": wanted.element, "types": list(wanted.types), "seat": wanted.seat, "user": wanted.user,
            "before": _in_sql(place[0]), "before_epoch": place[1], "before_offset": place[2], "before_element": place[3],
        }  # fmt: skip
        # A row may be there in two versions until ClickHouse has merged them.
        looked_at = 2 * (limit + 1)
        # First in the months before the place: each partition costs time, and nearly always these have enough.
        newest = min(place[0], max(element["as_of"] for element in self.elements_of(entitlement)))
        for from_ms in sorted({max(wanted.from_ms, newest - _SPAN_MS), wanted.from_ms}, reverse=True):
            found = self._query_of(entitlement, "history", **where, **{"from": _in_sql(from_ms)}, rows=looked_at)
            if len(found) == looked_at:
                break
        versions: dict[tuple[int, int, int, str], dict[str, Any]] = {}
        for row in found:
            versions.setdefault(_place_of(row), row)
        rows = list(versions.values())
        more = len(rows) > limit or len(found) == looked_at
        rows = rows[:limit]
        if not rows:
            return Page([], None)
        counting = self._counting(entitlement, sorted({row["id"] for row in rows}))
        shown = [_event(row) for row in rows if (*_place_of(row), row["rank"]) in counting]
        return Page(shown, _cursor(*_place_of(rows[-1])) if more else None)

    def _counting(self, entitlement: str, ids: list[str]) -> set[tuple[int, int, int, str, int]]:
        """Place and rank of the rows that count of some events (docs/numbers.md, 'Storage'), whether they are merged or not."""
        of_time: dict[tuple[str, str, str], dict[int, tuple[int, int, int]]] = {}
        for row in self._query_of(entitlement, "arrivals", ids=ids):
            times = of_time.setdefault((row["element"], row["source"], row["id"]), {})
            times[row["time"]] = max(times.get(row["time"], (-1, 0, 0)), (row["rank"], row["epoch"], row["offset"]))
        counting = set()
        for (element, _, _), times in of_time.items():
            epoch, offset, time, rank = min((epoch, offset, time, rank) for time, (rank, epoch, offset) in times.items())
            counting.add((time, epoch, offset, element, rank))
        return counting

    def _log(self, entitlement: str, element: str) -> ElementLog:
        rows = self._query("raw_events", entitlement=entitlement, element=element, rows=MAX_FOLDED + 1)
        if len(rows) > MAX_FOLDED:
            raise Problem(
                422, "too-many-events",
                f"{entitlement!r}, {element!r} has more than {MAX_FOLDED:,} events: they are not folded anew for one request",
            )  # fmt: skip
        return ElementLog(entitlement, element, rows)

    @staticmethod
    def _following(page: Page, more: Any) -> Iterator[dict[str, Any]]:
        while True:
            yield from page.rows
            if page.next is None:
                return
            page = more(page.next)

    @property
    def _at(self) -> str:
        return _in_sql(self.now_ms)

    @property
    def _days(self) -> ReportingDays:
        """The same for all of a request."""
        if self._reporting is None:
            self._reporting = self.store.reporting_days()
        return self._reporting

    def _query(self, name: str, **parameters: Any) -> list[dict[str, Any]]:
        """The way to the store, but for `_query_of`: no query without the scope."""
        return self.store.query(
            name, **parameters, everyone=self.scope.everyone, customers=list(self.scope.customers)
        )  # fmt: skip

    def _query_of(self, entitlement: str, name: str, **parameters: Any) -> list[dict[str, Any]]:
        """A query of one entitlement, bound to its elements that the reader may see: looked up once for all of a request."""
        visible = [element["element"] for element in self.elements_of(entitlement)]
        return self.store.query(name, entitlement=entitlement, visible=visible, **parameters)


def at_once(first: Callable[[], _First], *others: Callable[[], _Other]) -> tuple[_First, list[_Other]]:
    """The answers of several questions that are asked at the same time. Raises what one of them raises, when all are done.

    others: must not ask at once themselves: they might wait for a thread that waits for them.
    """
    asked = [_AT_ONCE.submit(other) for other in others]
    try:
        answer = first()
    finally:
        wait(asked)
    return answer, [other.result() for other in asked]


def choose_element(entitlement: str, elements: list[dict[str, Any]], asked: str | None) -> str:
    """The element that is meant: the one asked for, else seats, else the only one. Raises Problem 404 or 422."""
    names = [str(element["element"]) for element in elements]
    known = f"{entitlement!r} has {', '.join(names)}"
    if asked:
        if asked not in names:
            raise Problem(404, "unknown-element", f"there is no element {asked!r}: {known}", elements=names)
        return asked
    if SEATS in names:
        return SEATS
    if len(names) > 1:
        raise Problem(422, "invalid-request", f"query.element: expected one of the elements, as {known}", elements=names)
    return names[0]


def milliseconds(parameter: str, text: str) -> int:
    """An RFC 3339 time of a request in ms since 1970. Raises Problem 422."""
    try:
        return parse_time(text)
    except ValueError as error:
        raise Problem(422, "invalid-request", f"{parameter}: {error}, got {text!r}") from error


def _last_day(asked: datetime.date | None, today: datetime.date, timezone: str, parameter: str = "query.to") -> datetime.date:
    last = today if asked is None else asked
    if not FIRST_DATE <= last <= today:
        raise Problem(422, "invalid-request", f"{parameter}: expected a date from {FIRST_DATE} to {today}, today in {timezone}")
    return last


def _calendar(timezone: str) -> Calendar:
    try:
        return Calendar(timezone)
    except ValueError as error:
        raise Problem(422, "invalid-request", f"query.tz: {error}") from error


def _cursor(*place: int | str) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(place)).decode().rstrip("=")


def _place(cursor: str | None, kinds: tuple[type, ...]) -> Any:
    """The place that a cursor names; None without one. Raises Problem 422."""
    if not cursor:
        return None
    try:
        place = orjson.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        fits = isinstance(place, list) and len(place) == len(kinds)
        if fits and all(type(part) is kind for part, kind in zip(place, kinds, strict=True)):
            numbers = [part for part in place if isinstance(part, int)]
            if all(abs(number) < 2**63 for number in numbers):
                return tuple(place)
    except (ValueError, binascii.Error):
        pass
    raise Problem(422, "invalid-request", "query.cursor: expected the `next` of an earlier answer, or nothing")


def _in_sql(milliseconds: int) -> str:
    """A time (ms since 1970) as ClickHouse reads it."""
    return format_time(min(max(milliseconds, 0), _LAST_SQL_MS)).replace("T", " ").rstrip("Z")


def _place_of(row: dict[str, Any]) -> tuple[int, int, int, str]:
    """Where a row is in the history: time, epoch, offset, element."""
    return row["time"], row["epoch"], row["offset"], row["element"]


def _visible(elements: Iterable[_Key]) -> dict[str, Any]:
    """Some elements as parameters. Their entitlements as well: by them the sort key prunes, by pairs it does not."""
    visible = sorted(elements)
    return {"visible": visible, "entitlements": sorted({name for name, _ in visible})}


def _key(row: dict[str, Any]) -> _Key:
    return row["entitlement"], row["element"]


def _by_key(rows: list[dict[str, Any]]) -> dict[_Key, list[dict[str, Any]]]:
    """Rows by entitlement and element, in their order."""
    grouped: dict[_Key, list[dict[str, Any]]] = {}
    for row in rows:
        grouped.setdefault(_key(row), []).append(row)
    return grouped


def _with_times(row: dict[str, Any], *fields: str) -> dict[str, Any]:
    """The row with these fields, ms since 1970, as RFC 3339."""
    return row | {name: None if row[name] is None else format_time(row[name]) for name in fields}


def _event(row: dict[str, Any]) -> dict[str, Any]:
    row = dict(row)
    del row["epoch"], row["offset"], row["rank"]
    row["overdrawn"] = row["state"] in OVERDRAWN
    return _with_times(row, "time", "lease_expires_at", "placed_at")


def _held(held: Held) -> dict[str, Any]:
    return {
        "at": format_time(held.moment),
        "level": held.level,
        "limit": held.limit,
        "hard_limit": held.hard_limit,
        "terms_known": held.terms_known,
        "state": held.state,
        "holders": [
            {
                "seat_id": holder.seat_id, "quantity": holder.quantity, "since": format_time(holder.since),
                "user": holder.user, "host": holder.host, "ip": holder.ip, "credential": holder.credential,
                "lease_expires_at": format_time(holder.lease_end) if holder.lease_end is not None else None,
            }
            for holder in held.holders
        ],
    }  # fmt: skip


def _report_row(row: dict[str, Any], days: list[dict[str, Any]], levels: LevelsHeld | None, ended: int) -> dict[str, Any]:
    overdrawn = bool(row["overdrawn"])
    limit = row["limit"]
    seconds = [day["overdraft_seconds"] for day in days]
    half = len(days) // 2
    earlier, later = sum(seconds[:half]), sum(seconds[half:])
    covers = {share: levels.enough(share) if levels is not None else row["level"] for share in (95, 99, 100)}
    return _with_times(row, "since", "as_of") | {
        "overdrawn": overdrawn,
        "episodes_in_30_days": ended + overdrawn,
        "overdraft_seconds": round(sum(seconds), 3),
        "overdraft_seconds_earlier": round(earlier, 3),
        "overdraft_seconds_later": round(later, 3),
        "trend_seconds": round(later - earlier, 3),
        "unit_seconds_over": levels.over_unit_ms / 1000 if levels is not None else 0.0,
        "peak_overage": max(day["peak_overage"] for day in days),
        "denials": sum(day["denials"] for day in days),
        **{f"covers_{share}": seats for share, seats in covers.items()},
        **{f"buy_{share}": None if limit is None else max(0, seats - limit) for share, seats in covers.items()},
        "days": days,
    }
