"""The days of the reporting time zone, as the web needs them for each request."""

import datetime

from processors.domain.days import Calendar, DayBounds

_ONE_DAY = datetime.timedelta(days=1)


class ReportingDays:
    """Dates and bounds of one time zone, each worked out once.

    The table `calendar` holds the same, written by the same code, for SQL. Safe to share between threads.
    """

    def __init__(self, timezone: str) -> None:
        """timezone: an IANA name. Raises ValueError: there is none of that name."""
        self._calendar = Calendar(timezone)
        self._known: dict[datetime.date, DayBounds | None] = {}

    @property
    def timezone(self) -> str:
        """Its name."""
        return self._calendar.timezone

    def date_at(self, time_ms: int) -> datetime.date:
        """The date that holds an instant (ms since 1970)."""
        return datetime.date.fromisoformat(self._calendar.day_of(time_ms).day)

    def bounds(self, day: datetime.date) -> DayBounds | None:
        """The bounds of a date; None for one that no instant has."""
        if day not in self._known:
            self._known[day] = self._calendar.bounds(day)
        return self._known[day]

    def between(self, first: datetime.date, last: datetime.date) -> list[DayBounds]:
        """The dates from the first to the last that happen, in order."""
        days = (self.bounds(first + number * _ONE_DAY) for number in range((last - first).days + 1))
        return [day for day in days if day is not None]
