"""The exact numbers of one element, folded from its raw log: days in any time zone, and who held it at a moment.

The fold is the one of `processors.domain`; nothing here says what an event means. Its cost grows with the element's log, so
it is for questions that no stored row answers.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from processors.domain.days import Calendar, Day, DayBounds
from processors.domain.element import Element
from processors.domain.ledger import Ledger, position_of
from processors.domain.overdraft import State, Terms
from schemas.days import DayRow
from schemas.events import Event, decode

_ONE_DAY = timedelta(days=1)


@dataclass(frozen=True)
class Holder:
    """Who held units at a moment. Times in ms since 1970.

    since: when the hold was opened. user, host, ip, credential: as the latest event of the hold that named them.
    lease_end: None without a lease.
    """

    seat_id: str
    quantity: int
    since: int
    user: str | None
    host: str | None
    ip: str | None
    credential: str | None
    lease_end: int | None


@dataclass(frozen=True)
class Held:
    """How an element stood at a moment (ms since 1970), its events of that very millisecond included. Holders by seat."""

    moment: int
    level: int
    limit: int | None
    hard_limit: int | None
    terms_known: bool
    state: State
    holders: list[Holder]


class ElementLog:
    """The log of one element, each event once, ordered by time, then arrival."""

    def __init__(self, entitlement: str, element: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """rows: of the query `raw_events`, in its order."""
        self._key = (entitlement, element)
        self._events: list[tuple[Event, int]] = [
            (decode(bytes_of(row["event"]), key="any", appended_at=None), position_of(row["epoch"], row["offset"]))
            for row in rows
        ]

    def days(self, calendar: Calendar, first: date, last: date, now: int) -> list[dict[str, Any]]:
        """The days from first to last (local dates), the oldest first, with the fields of an answer's day.

        now: ms; the day that holds it goes up to it. A date without instants has no row.
        """
        ledger = Ledger(calendar, 0)
        for event, position in self._events:
            ledger.apply_to(self._key[1], event, position)
        stored = {row.day: row for row in ledger.take_changes().days}
        level = 0
        terms: Terms | None = None
        for row in stored.values():
            if row.day < first.isoformat():
                level, terms = row.closing, _closing_terms(row)
        days = []
        day = first
        while day <= last:
            bounds = calendar.bounds(day)
            if bounds is not None:
                own = stored.get(bounds.day)
                if own is None:
                    summed = Day.opened(bounds, level, terms)
                else:
                    summed, level, terms = _summed(own, bounds), own.closing, _closing_terms(own)
                over = bounds.end <= now
                until = bounds.end if over else max(now, summed.as_of)
                summed.advance(until, level, terms)
                days.append(_answer(summed, level, until - bounds.start, "final" if over else "provisional"))
            day += _ONE_DAY
        return days

    def peak_moment(self, bounds: DayBounds) -> int:
        """When the level of a day was first at its highest (ms); the day's first instant if it opened with it."""
        ledger = Ledger(Calendar("UTC"), 0)
        level, moment, highest = 0, bounds.start, None
        for event, position in self._events:
            if event.time >= bounds.end:
                break
            if event.time >= bounds.start and highest is None:
                highest = level
            outcome = ledger.apply_to(self._key[1], event, position)
            level = outcome.level if outcome is not None else level
            if highest is not None and level > highest:
                highest, moment = level, event.time
        return moment

    def held_at(self, moment: int) -> Held:
        """Who held the element at a moment (ms)."""
        ledger = Ledger(Calendar("UTC"), 0)
        element: Element | None = None
        openings: dict[str, _Opening] = {}
        for event, position in self._events:
            if event.time > moment:
                break
            ledger.apply_to(self._key[1], event, position)
            element = ledger.elements[self._key]
            touched = [event.seat_id] if event.seat_id is not None else list(element.holds) if event.holds is not None else []
            for seat in touched:
                _see_opening(openings, element, seat, event)
        if element is None:
            return Held(moment, 0, None, None, False, "within", [])
        head = element.head
        holders = [
            Holder(
                seat, hold.quantity, openings[seat].since, openings[seat].user, openings[seat].host, openings[seat].ip,
                openings[seat].credential, hold.lease_end,
            )
            for seat, hold in sorted(element.holds.items())
            if hold.quantity
        ]  # fmt: skip
        terms = head.terms
        return Held(
            moment,
            head.level,
            terms.limit if terms is not None else None,
            terms.hard_limit if terms is not None else None,
            terms is not None,
            head.state,
            holders,
        )


@dataclass
class _Opening:
    since: int
    user: str | None = None
    host: str | None = None
    ip: str | None = None
    credential: str | None = None


def _see_opening(openings: dict[str, _Opening], element: Element, seat: str, event: Event) -> None:
    hold = element.holds.get(seat)
    if hold is None or not hold.quantity:
        openings.pop(seat, None)
        return
    opening = openings.setdefault(seat, _Opening(event.time))
    if event.seat_id == seat and hold.changed_at == event.time:
        opening.user = event.user or opening.user
        opening.host = event.host or opening.host
        opening.ip = event.ip or opening.ip
        opening.credential = event.credential or opening.credential


def bytes_of(value: str | bytes) -> bytes:
    """An event's original bytes; clients give a ClickHouse String as text where it is UTF-8."""
    return value.encode() if isinstance(value, str) else value


def _closing_terms(row: DayRow) -> Terms | None:
    return Terms(row.closing_limit, row.closing_hard_limit) if row.closing_terms_known else None


def _summed(row: DayRow, bounds: DayBounds) -> Day:
    return Day(
        row.day, bounds.start, bounds.end, row.opening, row.min, row.max, row.as_of, row.position, row.limit, row.hard_limit,
        row.terms_known, row.overdraft_ms, row.unit_ms, row.peak_overage, row.activations, row.deactivations, row.refreshes,
        row.denials, row.units_used,
    )  # fmt: skip


def _answer(day: Day, closing: int, elapsed_ms: int, state: str) -> dict[str, Any]:
    return {
        "day": day.day, "opening": day.opening, "closing": closing, "min": day.min, "max": day.max, "limit": day.limit,
        "hard_limit": day.hard_limit, "terms_known": day.terms_known, "overdraft_seconds": day.overdraft_ms / 1000,
        "unit_seconds": day.unit_ms / 1000, "elapsed_seconds": elapsed_ms / 1000, "peak_overage": day.peak_overage,
        "activations": day.activations, "deactivations": day.deactivations, "refreshes": day.refreshes, "denials": day.denials,
        "units_used": day.units_used, "state": state,
    }  # fmt: skip
