"""The days of time zones: odd ones by hand, and all of them by what must hold for every day."""

from __future__ import annotations

import struct
import zoneinfo
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import cache
from pathlib import Path
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processors.domain.days import Calendar, DayBounds
from schemas.events import parse_time

MINUTE = 60_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def utc(text: str) -> int:
    return parse_time(f"{text}Z")


def local(time: int, timezone: str) -> datetime:
    return (EPOCH + timedelta(milliseconds=time)).astimezone(ZoneInfo(timezone))


# --- By hand


@pytest.mark.parametrize(
    ("timezone", "day", "start", "end", "hours"),
    [
        ("UTC", "2026-03-29", "2026-03-29T00:00:00", "2026-03-30T00:00:00", 24),
        ("Asia/Kolkata", "2026-03-29", "2026-03-28T18:30:00", "2026-03-29T18:30:00", 24),
        # Paris: UTC+1 until 29 March 01:00 UTC, UTC+2 until 25 October 01:00 UTC.
        ("Europe/Paris", "2026-03-28", "2026-03-27T23:00:00", "2026-03-28T23:00:00", 24),
        ("Europe/Paris", "2026-03-29", "2026-03-28T23:00:00", "2026-03-29T22:00:00", 23),
        ("Europe/Paris", "2026-03-30", "2026-03-29T22:00:00", "2026-03-30T22:00:00", 24),
        ("Europe/Paris", "2026-10-24", "2026-10-23T22:00:00", "2026-10-24T22:00:00", 24),
        ("Europe/Paris", "2026-10-25", "2026-10-24T22:00:00", "2026-10-25T23:00:00", 25),
        ("Europe/Paris", "2026-10-26", "2026-10-25T23:00:00", "2026-10-26T23:00:00", 24),
        # Sao Paulo: UTC-3, at 00:00 of the 15th the clock shows 01:00 and UTC-2 begins. There is no midnight.
        ("America/Sao_Paulo", "2017-10-14", "2017-10-14T03:00:00", "2017-10-15T03:00:00", 24),
        ("America/Sao_Paulo", "2017-10-15", "2017-10-15T03:00:00", "2017-10-16T02:00:00", 23),
        ("America/Sao_Paulo", "2017-10-16", "2017-10-16T02:00:00", "2017-10-17T02:00:00", 24),
        # ... and back at 00:00 of 18 February 2018, which shows 23:00 of the 17th again.
        ("America/Sao_Paulo", "2018-02-17", "2018-02-17T02:00:00", "2018-02-18T03:00:00", 25),
        ("America/Sao_Paulo", "2018-02-18", "2018-02-18T03:00:00", "2018-02-19T03:00:00", 24),
        # Apia: UTC-10 until the end of the 29th, then UTC+14 with the 31st.
        ("Pacific/Apia", "2011-12-29", "2011-12-29T10:00:00", "2011-12-30T10:00:00", 24),
        ("Pacific/Apia", "2011-12-31", "2011-12-30T10:00:00", "2011-12-31T10:00:00", 24),
        # St. John's: UTC-2:30 until 00:01 of the 29th, which shows 23:01 of the 28th again, UTC-3:30.
        ("America/St_Johns", "2006-10-28", "2006-10-28T02:30:00", "2006-10-29T02:30:00", 24),
        ("America/St_Johns", "2006-10-29", "2006-10-29T02:30:00", "2006-10-30T03:30:00", 25),
        ("America/St_Johns", "2006-10-30", "2006-10-30T03:30:00", "2006-10-31T03:30:00", 24),
        # ... and forward at 00:01 of 2 April 2006, when midnight was already there.
        ("America/St_Johns", "2006-04-02", "2006-04-02T03:30:00", "2006-04-03T02:30:00", 23),
    ],
)
def test_bounds(timezone: str, day: str, start: str, end: str, hours: int) -> None:
    bounds = Calendar(timezone).bounds(date.fromisoformat(day))
    assert bounds == DayBounds(day, utc(start), utc(end))
    assert bounds.end - bounds.start == hours * HOUR


def test_a_date_without_instants_has_no_bounds() -> None:
    assert Calendar("Pacific/Apia").bounds(date(2011, 12, 30)) is None


@pytest.fixture
def made_up_zone(tmp_path: Path) -> Iterator[str]:
    """The name of a zone: UTC, and an hour more from the last Saturday of March, 23:40, to the last Sunday of October."""
    counts = struct.pack(">6l", 0, 0, 0, 0, 1, 4)  # of one kind of time, and the 4 characters of its name
    block = b"TZif2" + bytes(15) + counts + struct.pack(">lbb", 0, 0, 0) + b"STD\0"
    (tmp_path / "Madeup").write_bytes(block + block + b"\nSTD0DST,M3.5.6/23:40,M10.5.0/3\n")
    zoneinfo.reset_tzpath([str(tmp_path)])
    yield "Madeup"
    zoneinfo.reset_tzpath()


def test_a_clock_may_jump_over_midnight(made_up_zone: str) -> None:
    """From 23:40 of the 28th to 00:40 of the 29th: no zone has done so since 1919 (Toronto), but a law may come."""
    calendar = Calendar(made_up_zone)
    day = DayBounds("2026-03-29", utc("2026-03-28T23:40:00"), utc("2026-03-29T23:00:00"))
    assert calendar.bounds(date(2026, 3, 29)) == day
    assert calendar.day_of(utc("2026-03-28T23:40:00")) == day
    assert calendar.day_of(utc("2026-03-28T23:39:59.999")).day == "2026-03-28"


@pytest.mark.parametrize(
    ("timezone", "instant", "day"),
    [
        ("UTC", "2026-03-10T00:00:00", "2026-03-10"),
        ("UTC", "2026-03-09T23:59:59.999", "2026-03-09"),
        ("Europe/Paris", "2026-03-28T22:59:59.999", "2026-03-28"),
        ("Europe/Paris", "2026-03-28T23:00:00", "2026-03-29"),
        ("Europe/Paris", "2026-03-29T21:59:59.999", "2026-03-29"),
        ("Europe/Paris", "2026-03-29T22:00:00", "2026-03-30"),
        ("Europe/Paris", "2026-10-25T22:59:59.999", "2026-10-25"),
        ("Europe/Paris", "2026-10-25T23:00:00", "2026-10-26"),
        ("America/Sao_Paulo", "2017-10-15T02:59:59.999", "2017-10-14"),
        ("America/Sao_Paulo", "2017-10-15T03:00:00", "2017-10-15"),
        ("America/Sao_Paulo", "2018-02-18T02:30:00", "2018-02-17"),
        ("Pacific/Apia", "2011-12-30T09:59:59.999", "2011-12-29"),
        ("Pacific/Apia", "2011-12-30T10:00:00", "2011-12-31"),
        ("America/St_Johns", "2006-10-29T02:29:59.999", "2006-10-28"),
        ("America/St_Johns", "2006-10-29T02:30:00", "2006-10-29"),
        # 23:01 of the 28th for the second time, and what follows: midnight has been, the new day has begun.
        ("America/St_Johns", "2006-10-29T02:31:00", "2006-10-29"),
        ("America/St_Johns", "2006-10-29T03:00:00", "2006-10-29"),
        ("America/St_Johns", "2006-10-29T03:29:59.999", "2006-10-29"),
        ("America/St_Johns", "2006-10-29T03:30:00", "2006-10-29"),
        ("America/New_York", "1970-01-01T00:00:00", "1969-12-31"),
        ("Pacific/Kiritimati", "2026-03-09T10:00:00", "2026-03-10"),
    ],
)
def test_day_of(timezone: str, instant: str, day: str) -> None:
    assert Calendar(timezone).day_of(utc(instant)).day == day


@pytest.mark.parametrize("name", ["", "Mars/Olympus", "Europe", "europe paris", "../etc/passwd", "/etc/localtime", "UTC+1"])
def test_an_unknown_zone_is_an_error_that_names_it(name: str) -> None:
    with pytest.raises(ValueError, match="expected an IANA time zone such as Europe/Paris, got ") as raised:
        Calendar(name)
    assert repr(name) in str(raised.value)


# --- What holds for every zone and instant


FIRST, LAST = utc("1970-01-02T00:00:00"), utc("2037-12-31T00:00:00")
ZONES = sorted(name for name in available_timezones() if name not in ("localtime", "posixrules"))


@cache
def changes_of_the_clock(timezone: str) -> list[int]:
    """The UTC midnights before a change of the offset: the days where mistakes live."""
    zone = ZoneInfo(timezone)

    def offset(midnight: int) -> timedelta | None:
        return (EPOCH + timedelta(milliseconds=midnight)).astimezone(zone).utcoffset()

    found = []
    for week in range(FIRST, LAST, 7 * DAY):
        if offset(week) != offset(week + 7 * DAY):
            found += [day for day in range(week, week + 7 * DAY, DAY) if offset(day) != offset(day + DAY)]
    return found or [FIRST]


@st.composite
def zones_and_instants(draw: st.DrawFn) -> tuple[str, list[int]]:
    timezone = draw(st.sampled_from(ZONES))
    near = st.builds(
        lambda change, by: min(max(change + by, FIRST), LAST),
        st.sampled_from(changes_of_the_clock(timezone)),
        st.one_of(st.integers(-2 * DAY, 2 * DAY), st.integers(-96, 96).map(lambda n: n * HOUR // 2)),
    )
    return timezone, draw(st.lists(st.one_of(near, st.integers(FIRST, LAST)), min_size=1, max_size=5))


@settings(max_examples=300, deadline=None)
@given(zones_and_instants())
def test_days_tile_time(drawn: tuple[str, list[int]]) -> None:
    timezone, instants = drawn
    calendar = Calendar(timezone)
    for time in instants:
        day = calendar.day_of(time)
        assert day.start <= time < day.end
        assert calendar.day_of(day.start) == calendar.day_of(day.end - 1) == day
        before, after = calendar.day_of(day.start - 1), calendar.day_of(day.end)
        assert (before.end, after.start) == (day.start, day.end)
        assert before.day < day.day < after.day
        assert calendar.bounds(date.fromisoformat(day.day)) == day


@settings(max_examples=300, deadline=None)
@given(zones_and_instants())
def test_the_answer_does_not_depend_on_what_was_asked_before(drawn: tuple[str, list[int]]) -> None:
    timezone, instants = drawn
    calendar = Calendar(timezone)
    assert [calendar.day_of(time) for time in instants] == [Calendar(timezone).day_of(time) for time in instants]


@settings(max_examples=150, deadline=None)
@given(zones_and_instants())
def test_a_day_starts_at_the_first_instant_with_its_date(drawn: tuple[str, list[int]]) -> None:
    """By brute force: every minute of the 30 hours before the start, and of the day."""
    timezone, instants = drawn
    day = Calendar(timezone).day_of(instants[0])
    of_the_day = date.fromisoformat(day.day)
    assert local(day.start, timezone).date() == of_the_day
    for time in [day.start - 1, *range(day.start - 30 * HOUR, day.start, MINUTE)]:
        assert local(time, timezone).date() < of_the_day
    # Instants of the old date that come again after midnight are the new day's; none of it has a later date.
    for time in [*range(day.start, day.end, MINUTE), day.end - 1]:
        assert local(time, timezone).date() <= of_the_day
    assert local(day.end, timezone).date() > of_the_day
