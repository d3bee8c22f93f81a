"""Completes the stored days of one element: what the view `usage` does for all of them, for the one that somebody looks at.

The view costs ClickHouse a hundred milliseconds of planning before it reads a row; the rows of one element come in a few. Both
say the same: tests/views/test_usage.py asks both each time.
"""

import datetime
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from processors.domain.days import DayBounds

Row = dict[str, Any]

_COUNTS = ("activations", "deactivations", "refreshes", "denials", "units_used")
_NOTHING: Row = {
    "day": datetime.date.min,
    "closing": 0,
    "closing_limit": None,
    "closing_hard_limit": None,
    "closing_terms_known": False,
    "restated": False,
    "position": 0,
}


def completed_days(
    dates: Sequence[DayBounds], stored: Sequence[Row], marks: Sequence[Row], *, today: datetime.date, at_ms: int
) -> list[Row]:
    """The days of one element as they stand at an instant: a row for each date, as docs/numbers.md says it ('The day row').

    dates: those that are asked for, in order.
    stored, marks: the answers of the queries usage_days and usage_marks: the stored rows of these dates and the latest before
        (more do no harm), and all marks of the element.
    today: the date that holds at_ms (ms since 1970).
    """
    rows = []
    ahead = list(reversed(stored))
    latest = _NOTHING
    for date in dates:
        day = datetime.date.fromisoformat(date.day)
        while ahead and ahead[-1]["day"] <= day:
            latest = ahead.pop()
        rows.append(_completed(day, date, latest, marks, today, at_ms))
    return rows


def _completed(
    day: datetime.date, date: DayBounds, stored: Row, marks: Sequence[Row], today: datetime.date, at_ms: int
) -> Row:  # fmt: skip
    own = stored["day"] == day
    starts_ms = stored["day_start"] if own else date.start
    known_to_ms = stored["as_of"] if own else starts_ms
    ended_ms = stored["day_end"] if own else date.end
    ends_ms = max(at_ms, known_to_ms) if day >= today else ended_ms
    rest_ms = ends_ms - known_to_ms
    closing, closing_limit = stored["closing"], stored["closing_limit"]
    closing_overage = max(closing - closing_limit, 0) if closing_limit is not None else 0
    over_ms = (stored["overdraft_ms"] if own else 0) + (rest_ms if closing_overage else 0)
    unit_ms = (stored["unit_ms"] if own else 0) + closing * rest_ms
    row: Row = {
        "day": date.day,
        "opening": stored["opening"] if own else closing,
        "closing": closing,
        "min": stored["min"] if own else closing,
        "max": stored["max"] if own else closing,
        "limit": stored["limit"] if own else closing_limit,
        "hard_limit": stored["hard_limit"] if own else stored["closing_hard_limit"],
        "terms_known": stored["terms_known"] if own else stored["closing_terms_known"],
        "overdraft_seconds": _seconds(over_ms),
        "unit_seconds": _seconds(unit_ms),
        "elapsed_seconds": _seconds(ends_ms - starts_ms),
        "peak_overage": stored["peak_overage"] if own else closing_overage,
    }
    row |= {name: stored[name] if own else 0 for name in _COUNTS}
    covering = (mark for mark in marks if any(mark["first_day"] <= on <= mark["last_day"] for on in (day, stored["day"])))
    newest_mark = max((mark["position"] for mark in covering), default=0)
    # A row that is not restated answers for no mark. Positions are above 0.
    answered = stored["position"] if stored["restated"] else 0
    row["state"] = "provisional" if day >= today or newest_mark > answered else "final"
    return row


def _seconds(milliseconds: int) -> Decimal:
    return Decimal(milliseconds).scaleb(-3)
