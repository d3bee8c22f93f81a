"""What the overdraft report adds up for one element: its days, and the levels that it held.

A day is completed as in views/days.py, in the few fields that the report needs: it has 30 days of each of its elements.
"""

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from processors.domain.days import DayBounds

Row = Mapping[str, Any]


def overdraft_days(
    dates: Sequence[tuple[datetime.date, DayBounds]], stored: Sequence[Row], *, today: datetime.date, at_ms: int
) -> list[dict[str, Any]]:
    """What overdraft there was on each date, as it stands at an instant (ms since 1970); dates without a row are filled.

    dates: in order.
    stored: rows of the query overdraft_days of one element, the oldest first: the dates' and the latest before.
    """
    days = []
    latest: Row | None = None
    ahead = list(reversed(stored))
    for day, bounds in dates:
        while ahead and ahead[-1]["day"] <= day:
            latest = ahead.pop()
        if latest is None:
            days.append(_day(bounds.day, 0, None, 0, 0, 0))
            continue
        own = latest["day"] == day
        limit = latest["closing_limit"]
        overage = max(latest["closing"] - limit, 0) if limit is not None else 0
        over_ms = latest["overdraft_ms"] if own else 0
        if overage:
            known_ms = latest["as_of"] if own else bounds.start
            ended_ms = latest["day_end"] if own else bounds.end
            over_ms += (max(at_ms, known_ms) if day >= today else ended_ms) - known_ms
        if own:
            days.append(_day(bounds.day, latest["max"], latest["limit"], over_ms, latest["peak_overage"], latest["denials"]))
        else:
            days.append(_day(bounds.day, latest["closing"], limit, over_ms, overage, 0))
    return days


def _day(day: str, most: int, limit: int | None, over_ms: int, overage: int, denials: int) -> dict[str, Any]:
    return {
        "day": day, "max": most, "limit": limit, "overdraft_seconds": over_ms / 1000, "peak_overage": overage,
        "denials": denials,
    }  # fmt: skip


@dataclass
class LevelsHeld:
    """For how long (ms) which levels were held; a level of an instant is there with 0. over_unit_ms: units above limits."""

    milliseconds: dict[int, int] = field(default_factory=dict)
    over_unit_ms: int = 0

    def add(self, levels: Iterable[int], held_ms: Iterable[int]) -> None:
        """Take levels, and how long each was held."""
        known = self.milliseconds
        for level, held in zip(levels, held_ms, strict=True):
            known[level] = known.get(level, 0) + held

    def add_under(self, limit: int | None, level: int, held_ms: int) -> None:
        """Take a level that was held under a limit."""
        self.add([level], [held_ms])
        if limit is not None and level > limit:
            self.over_unit_ms += (level - limit) * held_ms

    def enough(self, percent: int) -> int:
        """The least level that was not exceeded for so many percent of the time; 100: not for an instant."""
        if percent == 100:
            return max(self.milliseconds)
        total = sum(self.milliseconds.values())
        up_to = 0
        for level in sorted(self.milliseconds):
            up_to += self.milliseconds[level]
            if up_to * 100 >= total * percent:
                return level
        raise AssertionError("the time up to the greatest level is all of it")


def levels_held(days: Iterable[Row], carried: Row | None, start_ms: int, at_ms: int) -> LevelsHeld | None:
    """The levels of one element from an instant to another; None before its first event.

    days: its rows of levels_held and levels_of_days, in order: what it held from the first to the last event of each day. In
        between, the last level goes on.
    carried: its latest stored day before start_ms.
    """
    held = LevelsHeld()
    since = start_ms
    level, limit = (carried["closing"], carried["closing_limit"]) if carried is not None else (None, None)
    for day in days:
        if not day["levels"]:
            continue
        if level is not None:
            held.add_under(limit, level, day["first_at"] - since)
        held.add(day["levels"], day["held_ms"])
        held.over_unit_ms += day["over_unit_ms"]
        since, level, limit = day["last_at"], day["last_level"], day["last_limit"]
    if level is not None:
        held.add_under(limit, level, max(0, at_ms - since))
    return held if held.milliseconds else None
