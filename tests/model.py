"""The oracle: a brute-force model of Seatmark's numbers, written from the semantics page alone.

It shares no code with the product, is not fast and remembers everything for ever. Section and rule
names in the comments ("S3 Late") are those of the semantics page. Not modelled: leases produced by
Seatmark, restatement, corrections (snapshots with a `basis`), dead letters: input must be valid.
"""

import json
import uuid
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from functools import cache
from math import floor
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MS = timedelta(milliseconds=1)
ONE_DAY = timedelta(days=1)
NEVER = -(10**18)  # a time before every time

# Events about a hold. Denials are not: they touch none and are late only by LATE_AFTER.
HOLD_EVENTS = {
    "seat.activated", "seat.refreshed", "seat.deactivated", "seat.expired",
    "feature.checked_out", "feature.returned", "feature.refreshed", "feature.expired",
}  # fmt: skip
OVER = {"overdraft", "at_hard_limit", "over_hard_limit"}  # S5: "any of the three"


@dataclass(frozen=True)
class Arrival:
    event: dict[str, Any]
    offset: int


class Terms(NamedTuple):
    limit: int | None
    hard_limit: int | None


class Step(NamedTuple):
    """How things stood just after one applied event. One per applied event, also if nothing changed."""

    t: int
    level: int
    terms: Terms | None  # None: no terms yet


class Count(NamedTuple):
    t: int
    field: str
    amount: int


# --- times and days -------------------------------------------------------------------------------------


def parse_ms(text: str) -> int:
    """RFC 3339 to milliseconds since 1970. S2: 'Times are truncated to milliseconds on reading.'"""
    return (datetime.fromisoformat(text.upper()) - EPOCH) // MS


def format_ms(ms: int) -> str:
    return (EPOCH + ms * MS).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def local_date(ms: int, timezone: str) -> date:
    return (EPOCH + ms * MS).astimezone(ZoneInfo(timezone)).date()


@cache
def day_start(day: date, timezone: str) -> int:
    """The first instant whose local date is `day` or later: for a date without instants, that of the next.

    Looks at every minute from 26 hours before 00:00 UTC of that date to 26 hours after, then at the
    seconds of the minute before the hit (old offsets have seconds).
    """
    midnight_utc = (datetime(day.year, day.month, day.day, tzinfo=UTC) - EPOCH) // MS
    for minute in range(-26 * 60, 26 * 60 + 1):
        if local_date(midnight_utc + minute * 60_000, timezone) >= day:
            break
    hit = midnight_utc + minute * 60_000
    return next(ms for ms in range(hit - 59_000, hit + 1, 1_000) if local_date(ms, timezone) >= day)


def day_of(ms: int, timezone: str) -> date:
    """S3 Day: the last day that has begun. Where 00:01 becomes 23:01 the new day has begun already."""
    day = local_date(ms, timezone) + 2 * ONE_DAY
    while day_start(day, timezone) > ms:
        day -= ONE_DAY
    return day


# --- limits and states ----------------------------------------------------------------------------------


def make_terms(element_terms: dict[str, Any]) -> Terms:
    """S1: limit, overdraft, hard limit. `limit` is required (KeyError), null written out."""
    limit: int | None = element_terms["limit"]
    overdraft: dict[str, Any] = element_terms.get("overdraft") or {"type": "none"}  # 'also when absent'
    if limit is None or overdraft["type"] == "unlimited":
        return Terms(limit, None)
    if overdraft["type"] == "none":
        return Terms(limit, limit)
    if overdraft["type"] == "absolute":
        return Terms(limit, limit + int(overdraft["value"]))
    if overdraft["type"] == "percentage":
        return Terms(limit, limit + floor(limit * Fraction(str(overdraft["value"])) / 100))
    raise ValueError(overdraft)


def state_of(level: int, terms: Terms | None) -> str:
    """S5 table of states. Before the first terms nothing is limited."""
    limit, hard = terms or Terms(None, None)
    if limit is None or level < limit or level == limit == 0:
        return "within"
    if level == limit:
        return "at_limit"
    if hard is None or level < hard:
        return "overdraft"
    return "at_hard_limit" if level == hard else "over_hard_limit"


def overage_of(level: int, terms: Terms | None) -> int:
    """level - limit, 0 if not above (or not limited)."""
    return 0 if terms is None or terms.limit is None else max(0, level - terms.limit)


def alert_type(before: str, after: str) -> str:
    """S5 table of transitions."""
    if after in OVER:
        return "overdraft.changed" if before in OVER else "overdraft.entered"
    if before in OVER:
        return "overdraft.left"
    return "limit.reached" if after == "at_limit" else "limit.cleared"


def highest(values: list[int | None]) -> int | None:
    """S4: 'null (not limited) is higher than any number'; null if there is none at all."""
    numbers = [v for v in values if v is not None]
    return max(numbers) if numbers and len(numbers) == len(values) else None


# --- one element of one entitlement ---------------------------------------------------------------------


@dataclass
class Element:
    entitlement: str
    element: str
    timezone: str
    clock: int  # S3 Live; starts with the time of the first event
    holds: dict[str, int] = field(default_factory=dict)  # open holds: seat -> quantity
    leases: dict[str, int | None] = field(default_factory=dict)  # open holds: seat -> lease end
    total: int = 0
    terms: Terms | None = None
    alerts: list[dict[str, Any]] = field(default_factory=list)
    marks: list[tuple[date, date]] = field(default_factory=list)
    late: list[int] = field(default_factory=list)
    levels_after: dict[int, int] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    counts: list[Count] = field(default_factory=list)
    # `time` (not t) of the last event that touched a hold, open, closed or never open
    touched: dict[str, int] = field(default_factory=dict)
    snapshot_time: int = NEVER  # of the newest effective pool snapshot
    reset_time: int = NEVER  # of the last reset or counter snapshot
    terms_time: int = NEVER  # of the terms in force
    terms_gave: dict[str, str] = field(default_factory=dict)  # customer, product of the terms in force
    events_gave: dict[str, str] = field(default_factory=dict)  # of the latest non-late event that gave them
    entered_at: int = NEVER  # the running (or last) episode: S5 Episode
    peak: int = 0
    peak_overage: int = 0

    @property
    def level(self) -> int:
        return sum(self.holds.values()) + self.total

    @property
    def state(self) -> str:
        return state_of(self.level, self.terms)

    @property
    def customer(self) -> str | None:
        return self.terms_gave.get("customer", self.events_gave.get("customer"))

    @property
    def product(self) -> str | None:
        return self.terms_gave.get("product", self.events_gave.get("product"))

    def last_change(self, seat: str) -> int:
        """S3 Late: 'A pool snapshot is the last change of every seat that it does not name, known or not.'"""
        return max(self.touched.get(seat, NEVER), self.snapshot_time)

    def is_late(self, event: dict[str, Any], time: int, late_after_ms: int) -> bool:
        """S3 Late, one return per rule. 'Before' is strict."""
        kind, data = event["type"], event.get("data") or {}
        if kind == "entitlement.changed":  # whatever their age
            return time < self.terms_time
        if not kind.endswith(".expired") and self.clock - time > late_after_ms:
            return True
        if kind in HOLD_EVENTS:
            return time < self.last_change(data["seat_id"])
        if kind in {"feature.used", "feature.reset"} or (kind == "entitlement.snapshot" and "level" in data):
            return time < self.reset_time
        return False  # denials, pool snapshots

    def receive(self, arrival: Arrival, late_after_ms: int) -> None:
        """One event that is no duplicate."""
        event = arrival.event
        time = parse_ms(event["time"])
        late = self.is_late(event, time, late_after_ms)
        t = max(time, self.clock)
        if time < self.clock:  # S3 Disordered; every late event is disordered too
            self.marks.append((day_of(time, self.timezone), day_of(t, self.timezone)))
        if late:
            self.late.append(arrival.offset)
        else:
            self.clock = t
            before = self.state
            self.apply(event, time, t)
            self.steps.append(Step(t, self.level, self.terms))
            self.transition(event, before, t)
        self.levels_after[arrival.offset] = self.level

    def apply(self, event: dict[str, Any], time: int, t: int) -> None:
        """S2 table of types, and the counts of S4."""
        kind, data = event["type"], event.get("data") or {}
        gave = {name: data[name] for name in ("customer", "product") if data.get(name)}
        self.events_gave.update(gave)

        def count(name: str, amount: int = 1) -> None:
            self.counts.append(Count(t, name, amount))

        lease = parse_ms(data["lease_expires_at"]) if data.get("lease_expires_at") else None
        quantity: int | None = data.get("quantity")
        if kind.startswith("seat."):
            quantity = None  # a seat is always 1

        if kind in {"seat.activated", "seat.refreshed", "feature.refreshed"}:
            seat = data["seat_id"]
            units = 1 if quantity is None else quantity
            self.set_hold(seat, self.holds.get(seat, units), lease, time)  # if open: only its lease changes
            count("activations" if kind == "seat.activated" else "refreshes")
        elif kind == "feature.checked_out":
            seat = data["seat_id"]
            units = 1 if quantity is None else quantity
            self.set_hold(seat, self.holds.get(seat, 0) + units, lease, time)
            count("activations")
        elif kind in {"seat.deactivated", "feature.returned"}:
            seat = data["seat_id"]
            held = self.holds.get(seat, 0)
            left = 0 if quantity is None else max(0, held - quantity)
            self.set_hold(seat, left, self.leases.get(seat), time)  # a touch also if it was not open
            count("deactivations")
        elif kind in {"seat.expired", "feature.expired"}:
            seat = data["seat_id"]
            lease_end = self.leases.get(seat)  # None: not open, or without a lease
            if lease_end is not None and lease_end <= time:
                self.set_hold(seat, 0, None, time)
                count("deactivations")  # only one that closed its hold; else not even a touch
        elif kind in {"seat.denied", "feature.denied"}:
            count("denials")
        elif kind == "feature.used":
            units = 1 if quantity is None else quantity
            self.total += units
            count("units_used", units)
        elif kind == "feature.reset":
            self.total = 0
            self.reset_time = time
        elif kind == "entitlement.changed":
            self.terms = make_terms(data["elements"][self.element])
            self.terms_time = time
            self.terms_gave = gave
        elif kind == "entitlement.snapshot" and "level" in data:
            self.total = data["level"]
            self.reset_time = time
        elif kind == "entitlement.snapshot":
            self.replace_holds(data["holds"], time)
        else:
            raise ValueError(kind)

    def set_hold(self, seat: str, quantity: int, lease: int | None, time: int) -> None:
        self.holds.pop(seat, None)
        self.leases.pop(seat, None)
        if quantity > 0:  # at 0 the hold closes
            self.holds[seat] = quantity
            self.leases[seat] = lease
        self.touched[seat] = time

    def replace_holds(self, named: list[dict[str, Any]], time: int) -> None:
        """S2 snapshot 'replaces all holds'; S3 'leaves holds alone that changed after its time'."""
        wanted: dict[str, tuple[int, int | None]] = dict.fromkeys(self.holds, (0, None))
        for hold in named:
            lease = parse_ms(hold["lease_expires_at"]) if hold.get("lease_expires_at") else None
            wanted[hold["seat_id"]] = (hold.get("quantity", 1), lease)
        for seat, (quantity, lease_end) in wanted.items():
            if self.last_change(seat) <= time:
                self.set_hold(seat, quantity, lease_end, time)
        self.snapshot_time = max(self.snapshot_time, time)

    def transition(self, event: dict[str, Any], before: str, t: int) -> None:
        """S5: the alert, if the state changed, and the running episode."""
        after, level, overage = self.state, self.level, overage_of(self.level, self.terms)
        if after in OVER:
            if before not in OVER:
                self.entered_at, self.peak, self.peak_overage = t, level, overage
            self.peak = max(self.peak, level)
            self.peak_overage = max(self.peak_overage, overage)
        if after == before:
            return
        limit, hard_limit = self.terms or Terms(None, None)
        name = ["alert", self.entitlement, self.element, event["source"], event["id"]]
        compact = json.dumps(name, separators=(",", ":"), ensure_ascii=False)
        alert: dict[str, Any] = {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, "seatmark:" + compact)),
            "type": alert_type(before, after),
            "entitlement": self.entitlement,
            "customer": self.customer,
            "product": self.product,
            "element": self.element,
            "from": before,
            "to": after,
            "level": level,
            "limit": limit,
            "hard_limit": hard_limit,
            "overage": overage,
            "cause": {"source": event["source"], "id": event["id"], "type": event["type"]},
            "at": format_ms(t),
        }
        if before in OVER and after not in OVER:
            alert["entered_at"] = format_ms(self.entered_at)
            alert["duration_seconds"] = (t - self.entered_at) / 1000
            alert["peak"] = self.peak
            alert["peak_overage"] = self.peak_overage
        self.alerts.append(alert)

    def day_rows(self, until_ms: int) -> dict[date, dict[str, Any]]:
        """S4: all days from the first applied event's to that of `until_ms` ('now'), without gaps."""
        last = day_of(until_ms, self.timezone)
        day = day_of(self.steps[0].t, self.timezone)
        rows: dict[date, dict[str, Any]] = {}
        while day <= last:
            start, end = day_start(day, self.timezone), day_start(day + ONE_DAY, self.timezone)
            if start < end:  # S3 Day: 'a date without instants has no row'
                rows[day] = self.day_row(start, end, until_ms if day == last else None)
            day += ONE_DAY
        return rows

    def day_row(self, start: int, end: int, now: int | None) -> dict[str, Any]:
        """S4, one day [start, end). `now` is given for today: complete to max(now, as_of) only."""
        opening, opening_terms = 0, None  # 'Before an element's first event its level is 0.'
        for step in self.steps:
            if step.t < start:
                opening, opening_terms = step.level, step.terms
        # every value of the day, the opening included
        values = [Step(start, opening, opening_terms), *(s for s in self.steps if start <= s.t < end)]
        if now is not None:
            end = max(now, values[-1].t)
        overdraft_ms = unit_ms = 0
        for value, next_t in zip(values, [v.t for v in values[1:]] + [end], strict=True):
            unit_ms += value.level * (next_t - value.t)
            if overage_of(value.level, value.terms) > 0:
                overdraft_ms += next_t - value.t
        known = [v.terms for v in values if v.terms is not None]  # moments before the first terms left out
        row: dict[str, Any] = {
            "opening": opening,
            "closing": values[-1].level,
            "min": min(v.level for v in values),
            "max": max(v.level for v in values),
            "limit": highest([terms.limit for terms in known]),
            "hard_limit": highest([terms.hard_limit for terms in known]),
            "terms_known": bool(known),
            "overdraft_ms": overdraft_ms,
            "unit_ms": unit_ms,
            "peak_overage": max(overage_of(v.level, v.terms) for v in values),
        }
        in_day = [c for c in self.counts if values[0].t <= c.t <= values[-1].t]
        for name in ("activations", "deactivations", "refreshes", "denials", "units_used"):
            row[name] = sum(c.amount for c in in_day if c.field == name)
        return row


# --- the log --------------------------------------------------------------------------------------------


def elements_of(event: dict[str, Any]) -> list[str]:
    """S2 column 'element'."""
    if event["type"].startswith("seat."):
        return ["seats"]
    if event["type"] == "entitlement.changed":
        return list(event["data"].get("elements") or {})
    return [event["data"]["element"]]


def run(
    events: list[dict[str, Any]], *, timezone: str, late_after_ms: int, exact: bool = False
) -> dict[tuple[str, str], Element]:
    """Fold `events`, given in order of arrival. Exact (S3): each once, ordered by time, then arrival."""
    seen: set[tuple[str, str, str]] = set()
    arrivals: list[Arrival] = []
    for offset, event in enumerate(events):
        identity = (event["subject"], event["source"], event["id"])
        if identity not in seen:  # S2 Duplicates: 'the first counts, whatever their times'
            seen.add(identity)
            arrivals.append(Arrival(event, offset))
    if exact:
        arrivals.sort(key=lambda a: (parse_ms(a.event["time"]), a.offset))
    elements: dict[tuple[str, str], Element] = {}
    for arrival in arrivals:
        for name in elements_of(arrival.event):
            key = (arrival.event["subject"], name)
            if key not in elements:
                elements[key] = Element(*key, timezone, clock=parse_ms(arrival.event["time"]))
            elements[key].receive(arrival, late_after_ms)
    if exact:
        assert not any(e.late or e.marks for e in elements.values()), "nothing is late in exact order"
    return elements
