"""Days: their bounds in the reporting time zone, and what is added up over one of them."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from msgspec import Struct

from processors.domain.overdraft import Terms

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ONE_DAY = timedelta(days=1)
_DAY_MS = 86_400_000


class DayBounds(Struct, frozen=True, gc=False):
    """A local date (YYYY-MM-DD) from its first instant to the first of the next date, in ms since 1970 UTC."""

    day: str
    start: int
    end: int


class Calendar:
    """The days of a time zone: not always 24 hours, not always from midnight, and some dates do not happen at all."""

    def __init__(self, timezone: str) -> None:
        """timezone: an IANA name. Raises ValueError when there is none of that name."""
        try:
            self._zone = ZoneInfo(timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError(f"expected an IANA time zone such as Europe/Paris, got {timezone!r}") from error
        self.timezone = timezone
        self._by_utc_day: dict[int, DayBounds] = {}
        # The end of the day that was asked for last: whoever goes through a calendar asks for it next.
        self._latest_end: tuple[date, int] | None = None

    def day_of(self, time: int) -> DayBounds:
        """The day that holds an instant (ms since 1970)."""
        # A UTC day touches two or three local ones; events come mostly in order, so the last one asked for hits.
        known = self._by_utc_day.get(time // _DAY_MS)
        if known is not None and known.start <= time < known.end:
            return known
        day = (_EPOCH + timedelta(milliseconds=time)).astimezone(self._zone).date()
        bounds = self.bounds(day)
        # Where the clock is put back over midnight, instants of the old date come again: they belong to the new day.
        while bounds is None or time >= bounds.end:
            day += _ONE_DAY
            bounds = self.bounds(day)
        self._by_utc_day[time // _DAY_MS] = bounds
        return bounds

    def bounds(self, day: date) -> DayBounds | None:
        """The bounds of a local date; None if no instant has it (a zone that jumped over the date line)."""
        known = self._latest_end
        start = known[1] if known is not None and known[0] == day else self._first_instant(day)
        if start is None:
            return None
        following = day + _ONE_DAY
        while (end := self._first_instant(following)) is None:
            following += _ONE_DAY
        self._latest_end = (following, end)
        return DayBounds(day.isoformat(), start, end)

    def _first_instant(self, day: date) -> int | None:
        midnight = datetime(day.year, day.month, day.day)
        # fold=0 names the earlier one when midnight comes twice.
        instant = self._milliseconds(midnight.replace(tzinfo=self._zone))
        if self._local(instant) == midnight:
            return instant
        # Midnight is skipped: the day starts when the clock jumps. With fold=1 the offset after the jump is used,
        # which gives an instant before it.
        before = self._milliseconds(midnight.replace(tzinfo=self._zone, fold=1))
        while instant - before > 1:
            middle = (before + instant) // 2
            if self._local(middle) >= midnight:
                instant = middle
            else:
                before = middle
        return instant if self._local(instant).date() == day else None

    def _local(self, time: int) -> datetime:
        return (_EPOCH + timedelta(milliseconds=time)).astimezone(self._zone).replace(tzinfo=None)

    @staticmethod
    def _milliseconds(moment: datetime) -> int:
        return (moment - _EPOCH) // timedelta(milliseconds=1)


class Day(Struct, gc=False, array_like=True):
    """One day of one element, added up as far as `as_of`. Levels and limits in units, times in ms.

    position: of the last event in it. marked: it may differ from the exact day, and will be restated.
    """

    day: str
    start: int
    end: int
    opening: int
    min: int
    max: int
    as_of: int
    position: int
    limit: int | None = None
    hard_limit: int | None = None
    terms_known: bool = False
    overdraft_ms: int = 0
    unit_ms: int = 0
    peak_overage: int = 0
    activations: int = 0
    deactivations: int = 0
    refreshes: int = 0
    denials: int = 0
    units_used: int = 0
    marked: bool = False

    @classmethod
    def opened(cls, bounds: DayBounds, level: int, terms: Terms | None) -> "Day":
        """A day as it stands at its first instant, with the level and the terms carried into it."""
        day = cls(bounds.day, bounds.start, bounds.end, level, level, level, bounds.start, -1)
        day.see_terms(terms)
        day.see_level(level, terms)
        return day

    def advance(self, until: int, level: int, terms: Terms | None) -> None:
        """Let time pass up to `until` at a level under terms."""
        elapsed = until - self.as_of
        if elapsed > 0:
            self.as_of = until
            if level:
                self.unit_ms += elapsed * level
                if terms is not None and terms.limit is not None and level > terms.limit:
                    self.overdraft_ms += elapsed

    def see_level(self, level: int, terms: Terms | None) -> None:
        """Take a level (or a level under new terms) into min, max and peak."""
        if level < self.min:
            self.min = level
        elif level > self.max:
            self.max = level
        if terms is not None and terms.limit is not None and level - terms.limit > self.peak_overage:
            self.peak_overage = level - terms.limit

    def see_terms(self, terms: Terms | None) -> None:
        """Take terms in force into the day's highest limits; not limited is higher than any number."""
        if terms is None:
            return
        if not self.terms_known:
            self.terms_known = True
            self.limit, self.hard_limit = terms.limit, terms.hard_limit
            return
        if self.limit is not None:
            self.limit = None if terms.limit is None else max(self.limit, terms.limit)
        if self.hard_limit is not None:
            self.hard_limit = None if terms.hard_limit is None else max(self.hard_limit, terms.hard_limit)
