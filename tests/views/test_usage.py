"""30 days of one element from stored rows: what is carried, what is completed, and what is provisional.

Every expected value is written by hand from the semantics page ('The day row').
"""

import datetime
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client

from schemas.days import DayMark, DayRow
from views.store import Store, connect
from views.tokens import EVERYTHING
from views.web.problems import Problem
from views.web.reading import Reader

DayRows = Callable[..., DayRow]
Put = Callable[..., None]
Usage = Callable[..., dict[str, dict[str, Any]]]

HOUR = 3600
DAY = 24 * HOUR
NO_COUNTS = {"activations": 0, "deactivations": 0, "refreshes": 0, "denials": 0, "units_used": 0}


class Place:
    """A database in a time zone, and the days of the test's entitlement in it."""

    def __init__(self, dsn: str, entitlement: str, client: Client, store: Store) -> None:
        self.dsn = dsn
        self.client = client
        self._entitlement = entitlement
        self._store = store

    def usage(self, last_day: str, days: int, at: str, element: str = "seats") -> dict[str, dict[str, Any]]:
        """The days, by date, as they stand at an instant ('2026-11-24 10:00:00.000', UTC)."""
        which = {"entitlement": self._entitlement, "element": element}
        of_view = self.client.query(
            "SELECT * EXCEPT (entitlement, element, customer, product, name, kind, day), toString(day) AS day "
            "FROM usage(entitlement = {entitlement:String}, element = {element:String}, last_day = {last_day:Date32}, "
            "days = {days:UInt16}, at = {at:DateTime64(3, 'UTC')}) ORDER BY day",
            parameters={**which, "last_day": last_day, "days": days, "at": at},
        )
        rows = list(of_view.named_results())
        assert rows == self._as_the_web_has_it(datetime.date.fromisoformat(last_day), days, at, element)
        return {row["day"]: row for row in rows}

    def _as_the_web_has_it(self, last_day: datetime.date, days: int, at: str, element: str) -> list[dict[str, Any]]:
        at_ms = int(datetime.datetime.fromisoformat(at).replace(tzinfo=datetime.UTC).timestamp() * 1000)
        try:
            first_day = last_day - datetime.timedelta(days=days - 1)
            return Reader(self._store, EVERYTHING, at_ms).days_of(self._entitlement, element, first_day, last_day)
        except Problem:
            return []


@pytest.fixture
def place_in(database_in: Callable[[str], str], entitlement: str) -> Iterator[Callable[[str], Place]]:
    """place_in("Europe/Paris")"""
    opened: list[Any] = []

    def place(timezone: str) -> Place:
        dsn = database_in(timezone)
        client, store = connect(dsn), Store(dsn)
        opened.extend((client, store))
        return Place(dsn, entitlement, client, store)

    yield place
    for each in opened:
        each.close()


@pytest.fixture
def utc(place_in: Callable[[str], Place]) -> Place:
    return place_in("UTC")


def test_a_day_without_events_carries_level_and_closing_terms(utc: Place, put: Put, day_row: DayRows) -> None:
    put(
        utc.client,
        day_row(
            "2026-11-20", as_of_hours=18, opening=1, closing=4, min=1, max=9, limit=50, hard_limit=60, terms_known=True,
            unit_ms=1_000, activations=8, deactivations=5, refreshes=3, denials=2,
            closing_limit=10, closing_hard_limit=12, closing_terms_known=True,
        ),
    )  # fmt: skip
    days = utc.usage("2026-11-23", 4, at="2026-11-24 10:00:00.000")
    assert list(days) == ["2026-11-20", "2026-11-21", "2026-11-22", "2026-11-23"]
    for date in ("2026-11-21", "2026-11-22", "2026-11-23"):
        assert days[date] == {
            "day": date, "opening": 4, "closing": 4, "min": 4, "max": 4, "limit": 10, "hard_limit": 12,
            "terms_known": True, "overdraft_seconds": 0, "unit_seconds": 4 * DAY, "elapsed_seconds": DAY,
            "peak_overage": 0, **NO_COUNTS, "state": "final",
        }  # fmt: skip


def test_a_stored_day_is_completed_to_its_end(utc: Place, put: Put, day_row: DayRows) -> None:
    put(
        utc.client,
        day_row(
            "2026-11-20", as_of_hours=18, opening=1, closing=13, min=0, max=15, limit=50, hard_limit=60, terms_known=True,
            overdraft_ms=1_500, unit_ms=2_250, peak_overage=5, activations=8, deactivations=5, refreshes=3, denials=2,
            units_used=0, closing_limit=10, closing_hard_limit=12, closing_terms_known=True,
        ),
    )  # fmt: skip
    days = utc.usage("2026-11-20", 1, at="2026-11-24 10:00:00.000")
    assert days["2026-11-20"] == {
        "day": "2026-11-20", "opening": 1, "closing": 13, "min": 0, "max": 15, "limit": 50, "hard_limit": 60,
        "terms_known": True, "overdraft_seconds": Decimal("1.5") + 6 * HOUR,
        "unit_seconds": Decimal("2.25") + 6 * HOUR * 13, "elapsed_seconds": DAY, "peak_overage": 5,
        "activations": 8, "deactivations": 5, "refreshes": 3, "denials": 2, "units_used": 0, "state": "final",
    }  # fmt: skip


def test_an_overdraft_goes_on_through_days_without_events(utc: Place, put: Put, day_row: DayRows) -> None:
    put(
        utc.client,
        day_row(
            "2026-11-20", as_of_hours=12, closing=13, max=13, limit=10, hard_limit=None, terms_known=True, peak_overage=3,
            closing_limit=10, closing_hard_limit=None, closing_terms_known=True, state="overdraft",
        ),
    )  # fmt: skip
    day = utc.usage("2026-11-22", 1, at="2026-11-24 10:00:00.000")["2026-11-22"]
    assert (day["overdraft_seconds"], day["peak_overage"], day["hard_limit"]) == (DAY, 3, None)


@pytest.mark.parametrize(("closing_limit", "terms_known"), [(None, True), (None, False), (13, True), (14, True)])
def test_at_the_limit_or_without_one_there_is_no_overdraft(
    utc: Place, put: Put, day_row: DayRows, closing_limit: int | None, terms_known: bool
) -> None:
    put(
        utc.client,
        day_row(
            "2026-11-20", closing=13, max=13, closing_limit=closing_limit, closing_hard_limit=closing_limit,
            closing_terms_known=terms_known,
        ),
    )  # fmt: skip
    for day in utc.usage("2026-11-21", 2, at="2026-11-24 10:00:00.000").values():
        assert (day["overdraft_seconds"], day["peak_overage"]) == (0, 0)
    assert (day["limit"], day["hard_limit"], day["terms_known"]) == (closing_limit, closing_limit, terms_known)


def test_a_limit_of_zero_is_a_limit(utc: Place, put: Put, day_row: DayRows) -> None:
    put(utc.client, day_row("2026-11-20", closing=1, closing_limit=0, closing_hard_limit=0, closing_terms_known=True))
    day = utc.usage("2026-11-21", 1, at="2026-11-24 10:00:00.000")["2026-11-21"]
    assert (day["limit"], day["overdraft_seconds"], day["peak_overage"]) == (0, DAY, 1)


def test_before_the_first_event_the_level_is_0_and_no_terms_are_known(utc: Place, put: Put, day_row: DayRows) -> None:
    put(utc.client, day_row("2026-11-23", opening=0, closing=5, max=5, limit=9, hard_limit=9, terms_known=True))
    days = utc.usage("2026-11-23", 30, at="2026-11-24 10:00:00.000")
    assert len(days) == 30
    assert next(iter(days)) == "2026-10-25"
    for date in ("2026-10-25", "2026-11-22"):
        assert days[date] == {
            "day": date, "opening": 0, "closing": 0, "min": 0, "max": 0, "limit": None, "hard_limit": None,
            "terms_known": False, "overdraft_seconds": 0, "unit_seconds": 0, "elapsed_seconds": DAY, "peak_overage": 0,
            **NO_COUNTS, "state": "final",
        }  # fmt: skip


def test_a_window_before_the_first_event_is_empty_days(utc: Place, put: Put, day_row: DayRows) -> None:
    put(utc.client, day_row("2026-11-23", closing=5))
    days = utc.usage("2026-11-21", 2, at="2026-11-24 10:00:00.000")
    assert {date: (day["closing"], day["terms_known"]) for date, day in days.items()} == {
        "2026-11-20": (0, False), "2026-11-21": (0, False),
    }  # fmt: skip


def test_only_the_latest_row_before_the_window_is_carried(utc: Place, put: Put, day_row: DayRows) -> None:
    put(utc.client, *(day_row(f"2026-0{month}-10", closing=month) for month in range(1, 10)))
    days = utc.usage("2026-09-11", 4, at="2026-11-24 10:00:00.000")
    assert [day["closing"] for day in days.values()] == [8, 8, 9, 9]
    assert [day["opening"] for day in days.values()] == [8, 8, 0, 9]


def test_a_row_of_long_ago_is_carried(utc: Place, put: Put, day_row: DayRows) -> None:
    """It is in none of the months that are looked into first."""
    put(utc.client, day_row("2025-02-10", closing=3, closing_limit=5, closing_terms_known=True))
    days = utc.usage("2026-11-23", 2, at="2026-11-24 10:00:00.000")
    assert [(day["opening"], day["closing"], day["limit"], day["terms_known"]) for day in days.values()] == [
        (3, 3, 5, True)
    ] * 2


def test_elements_do_not_bleed_into_each_other(utc: Place, put: Put, day_row: DayRows) -> None:
    put(
        utc.client,
        day_row("2026-11-20", element="render", closing=3),
        day_row("2026-11-21", element="seats", closing=7),
        day_row("2026-11-22", element="zoom", closing=9),
    )
    closings = {
        element: [day["closing"] for day in utc.usage("2026-11-23", 4, "2026-11-24 10:00:00.000", element).values()]
        for element in ("render", "seats", "zoom")
    }
    assert closings == {"render": [3, 3, 3, 3], "seats": [0, 7, 7, 7], "zoom": [0, 0, 9, 9]}


def test_today_is_completed_to_now_and_provisional(utc: Place, put: Put, day_row: DayRows) -> None:
    put(
        utc.client,
        day_row(
            "2026-11-24", as_of_hours=9, closing=3, max=3, limit=2, hard_limit=4, terms_known=True, unit_ms=500, peak_overage=1,
            closing_limit=2, closing_hard_limit=4, closing_terms_known=True,
        ),
    )  # fmt: skip
    day = utc.usage("2026-11-24", 1, at="2026-11-24 10:30:00.250")["2026-11-24"]
    assert day["elapsed_seconds"] == Decimal("37800.25")
    assert day["overdraft_seconds"] == Decimal("5400.25")
    assert day["unit_seconds"] == Decimal("0.5") + 3 * Decimal("5400.25")
    assert day["state"] == "provisional"


def test_today_reaches_to_its_last_event_when_that_is_after_now(utc: Place, put: Put, day_row: DayRows) -> None:
    """A producer's clock may be a little ahead of ours."""
    put(utc.client, day_row("2026-11-24", as_of_hours=9, closing=3, unit_ms=500))
    day = utc.usage("2026-11-24", 1, at="2026-11-24 08:58:00.000")["2026-11-24"]
    assert (day["elapsed_seconds"], day["unit_seconds"]) == (9 * HOUR, Decimal("0.5"))


def test_today_without_events_is_carried_to_now(utc: Place, put: Put, day_row: DayRows) -> None:
    put(utc.client, day_row("2026-11-23", closing=3, closing_limit=2, closing_terms_known=True))
    day = utc.usage("2026-11-24", 1, at="2026-11-24 00:00:01.500")["2026-11-24"]
    assert (day["elapsed_seconds"], day["overdraft_seconds"], day["unit_seconds"]) == (
        Decimal("1.5"), Decimal("1.5"), Decimal("4.5"),
    )  # fmt: skip
    assert day["state"] == "provisional"


def test_a_day_ends_at_midnight_exactly(utc: Place, put: Put, day_row: DayRows) -> None:
    put(utc.client, day_row("2026-11-23", closing=3))
    assert utc.usage("2026-11-23", 1, at="2026-11-23 23:59:59.999")["2026-11-23"]["state"] == "provisional"
    ended = utc.usage("2026-11-24", 2, at="2026-11-24 00:00:00.000")
    assert {date: (day["state"], day["elapsed_seconds"]) for date, day in ended.items()} == {
        "2026-11-23": ("final", DAY), "2026-11-24": ("provisional", 0),
    }  # fmt: skip


def test_a_row_of_a_day_still_to_come_stays_as_it_is(utc: Place, put: Put, day_row: DayRows) -> None:
    """An event dated shortly after midnight that came shortly before."""
    put(utc.client, day_row("2026-11-25", as_of_hours=0.05, closing=1, max=1, unit_ms=0))
    day = utc.usage("2026-11-25", 1, at="2026-11-24 23:58:00.000")["2026-11-25"]
    assert (day["elapsed_seconds"], day["unit_seconds"], day["state"]) == (180, 0, "provisional")


@pytest.mark.parametrize(
    ("date", "hours", "midnight_is_at"),
    [
        ("2026-03-28", 24, "2026-03-27 23:00:00.000"),
        ("2026-03-29", 23, "2026-03-28 23:00:00.000"),
        ("2026-03-30", 24, "2026-03-29 22:00:00.000"),
        ("2026-10-25", 25, "2026-10-24 22:00:00.000"),
        ("2026-10-26", 24, "2026-10-25 23:00:00.000"),
    ],
)
def test_a_filled_day_is_as_long_as_the_local_one(
    place_in: Callable[[str], Place], put: Put, day_row: DayRows, date: str, hours: int, midnight_is_at: str
) -> None:
    paris = place_in("Europe/Paris")
    put(paris.client, day_row("2026-03-01", "Europe/Paris", closing=2, closing_limit=1, closing_terms_known=True))
    day = paris.usage(date, 1, at="2026-11-24 10:00:00.000")[date]
    assert (day["elapsed_seconds"], day["unit_seconds"], day["overdraft_seconds"]) == (
        hours * HOUR, hours * HOUR * 2, hours * HOUR,
    )  # fmt: skip
    assert paris.usage(date, 1, at=midnight_is_at)[date]["elapsed_seconds"] == 0
    begun = paris.usage(date, 1, at=midnight_is_at.replace("00.000", "00.001"))[date]
    assert begun["elapsed_seconds"] == Decimal("0.001")


def test_a_stored_day_of_25_hours_is_completed_to_its_own_end(
    place_in: Callable[[str], Place], put: Put, day_row: DayRows
) -> None:
    paris = place_in("Europe/Paris")
    put(paris.client, day_row("2026-10-25", "Europe/Paris", as_of_hours=4, closing=1))
    day = paris.usage("2026-10-25", 1, at="2026-11-24 10:00:00.000")["2026-10-25"]
    assert (day["elapsed_seconds"], day["unit_seconds"]) == (25 * HOUR, 21 * HOUR)


def test_a_day_whose_midnight_was_skipped_begins_when_the_clock_jumped(
    place_in: Callable[[str], Place], put: Put, day_row: DayRows
) -> None:
    """In São Paulo, 15 October 2017 began at 01:00, which is 03:00 UTC."""
    sao_paulo = place_in("America/Sao_Paulo")
    put(sao_paulo.client, day_row("2017-10-13", "America/Sao_Paulo", closing=1))
    days = sao_paulo.usage("2017-10-16", 3, at="2026-11-24 10:00:00.000")
    assert {date: day["unit_seconds"] / HOUR for date, day in days.items()} == {
        "2017-10-14": 24, "2017-10-15": 23, "2017-10-16": 24,
    }  # fmt: skip
    assert list(sao_paulo.usage("2017-10-15", 2, at="2017-10-15 02:59:59.999"))[-1] == "2017-10-15"
    assert sao_paulo.usage("2017-10-15", 2, at="2017-10-15 02:59:59.999")["2017-10-14"]["state"] == "provisional"
    assert sao_paulo.usage("2017-10-15", 2, at="2017-10-15 03:00:00.000")["2017-10-14"]["state"] == "final"


def test_a_date_that_never_was_has_no_row(place_in: Callable[[str], Place], put: Put, day_row: DayRows) -> None:
    """Samoa went over the date line: 29 December 2011 was followed by the 31st."""
    apia = place_in("Pacific/Apia")
    put(apia.client, day_row("2011-12-28", "Pacific/Apia", closing=1))
    days = apia.usage("2012-01-01", 5, at="2026-11-24 10:00:00.000")
    assert {date: day["unit_seconds"] / HOUR for date, day in days.items()} == {
        "2011-12-28": 24, "2011-12-29": 24, "2011-12-31": 24, "2012-01-01": 24,
    }  # fmt: skip


def test_days_do_not_depend_on_the_server_s_time_zone_database(
    place_in: Callable[[str], Place], put: Put, day_row: DayRows
) -> None:
    """British Columbia stayed on daylight time in 2026; the engine of the tests has older rules, in which it does not."""
    vancouver = place_in("America/Vancouver")
    row = day_row("2026-11-05", "America/Vancouver", as_of_hours=0, closing=1)
    put(vancouver.client, row)
    days = vancouver.usage("2026-11-06", 3, at="2026-11-24 10:00:00.000")
    assert [day["unit_seconds"] for day in days.values()] == [0, DAY, DAY]
    [[starts_at]] = vancouver.client.query(
        "SELECT toUnixTimestamp64Milli(starts_at) FROM calendar FINAL WHERE day = '2026-11-05'"
    ).result_rows
    assert starts_at == row.day_start


def mark(row: DayRow, first_day: str, last_day: str, position: int) -> DayMark:
    return DayMark(
        entitlement=row.entitlement, element=row.element, first_day=first_day, last_day=last_day,
        timezone=row.timezone, position=position, since=0,
    )  # fmt: skip


AT = "2026-11-24 10:00:00.000"


def test_marked_days_are_provisional_with_or_without_a_row(utc: Place, put: Put, day_row: DayRows) -> None:
    row = day_row("2026-11-20", closing=1, position=5)
    put(utc.client, row, day_row("2026-11-22", closing=1, position=6))
    put(utc.client, mark(row, "2026-11-19", "2026-11-21", position=9), mark(row, "2026-11-19", "2026-11-19", position=12))
    states = {date: day["state"] for date, day in utc.usage("2026-11-23", 6, AT).items()}
    # The 18th and the 19th are before the first row; the 23rd is filled from the 22nd, which no mark covers.
    assert states == {
        "2026-11-18": "final", "2026-11-19": "provisional", "2026-11-20": "provisional", "2026-11-21": "provisional",
        "2026-11-22": "final", "2026-11-23": "final",
    }  # fmt: skip


def test_a_day_filled_from_a_provisional_row_is_provisional(utc: Place, put: Put, day_row: DayRows) -> None:
    row = day_row("2026-11-20", closing=1, position=5)
    put(utc.client, row)
    put(utc.client, mark(row, "2026-11-20", "2026-11-20", position=9))
    days = utc.usage("2026-11-22", 4, AT)
    assert {date: day["state"] for date, day in days.items()} == {
        "2026-11-19": "final", "2026-11-20": "provisional", "2026-11-21": "provisional", "2026-11-22": "provisional",
    }  # fmt: skip
    put(utc.client, day_row("2026-11-20", closing=2, position=9), restated=True)
    days = utc.usage("2026-11-22", 4, AT)
    assert {date: (day["closing"], day["state"]) for date, day in days.items()} == {
        "2026-11-19": (0, "final"), "2026-11-20": (2, "final"), "2026-11-21": (2, "final"), "2026-11-22": (2, "final"),
    }  # fmt: skip


def test_a_window_filled_from_a_provisional_row_before_it_is_provisional(utc: Place, put: Put, day_row: DayRows) -> None:
    row, other = day_row("2026-10-01", closing=1, position=5), day_row("2026-10-02", element="render", closing=1, position=5)
    put(utc.client, row, other)
    # Neither reaches into the window; the mark of the 30th does not cover the row.
    put(utc.client, mark(row, "2026-09-28", "2026-10-01", position=9), mark(row, "2026-10-30", "2026-10-30", position=12))
    put(utc.client, mark(other, "2026-10-01", "2026-10-01", position=9), mark(other, "2026-10-03", "2026-10-30", position=9))

    def states(element: str) -> set[str]:
        return {day["state"] for day in utc.usage("2026-11-23", 4, AT, element).values()}

    assert (states("seats"), states("render")) == ({"provisional"}, {"final"})
    put(utc.client, day_row("2026-10-01", closing=2, position=8), restated=True)
    assert states("seats") == {"provisional"}, "it was restated before the mark"
    put(utc.client, day_row("2026-10-01", closing=2, position=9), restated=True)
    assert states("seats") == {"final"}


def test_the_filled_days_of_a_marked_range_become_final_with_the_row_they_are_filled_from(
    utc: Place, put: Put, day_row: DayRows
) -> None:
    live = day_row("2026-11-18", closing=1, position=5)
    put(utc.client, live, day_row("2026-11-22", closing=4, position=8))
    put(utc.client, mark(live, "2026-11-19", "2026-11-22", position=9))
    assert {day["state"] for day in utc.usage("2026-11-22", 4, AT).values()} == {"provisional"}
    # Written by a restatement: the range's first day, and its days with a stored row.
    put(utc.client, day_row("2026-11-19", opening=1, closing=2, position=9), restated=True)
    days = utc.usage("2026-11-22", 5, AT)
    assert {date: (day["closing"], day["state"]) for date, day in days.items()} == {
        "2026-11-18": (1, "final"), "2026-11-19": (2, "final"), "2026-11-20": (2, "final"), "2026-11-21": (2, "final"),
        "2026-11-22": (4, "provisional"),
    }  # fmt: skip
    put(utc.client, day_row("2026-11-22", opening=2, closing=3, position=9), restated=True)
    assert {day["state"] for day in utc.usage("2026-11-22", 4, AT).values()} == {"final"}
    # A newer mark on a day without a row: it alone is provisional, for no later one is filled from it.
    put(utc.client, mark(live, "2026-11-20", "2026-11-20", position=11))
    states = {date: day["state"] for date, day in utc.usage("2026-11-22", 4, AT).items()}
    assert states == {
        "2026-11-19": "final", "2026-11-20": "provisional", "2026-11-21": "final", "2026-11-22": "final",
    }  # fmt: skip


def test_a_marked_day_filled_from_a_row_that_is_not_restated_is_provisional(utc: Place, put: Put, day_row: DayRows) -> None:
    """However new that row is: it tells of the events of its own day."""
    row = day_row("2026-11-20", closing=1, position=12)
    put(utc.client, row)
    put(utc.client, mark(row, "2026-11-21", "2026-11-21", position=9))
    states = {date: day["state"] for date, day in utc.usage("2026-11-22", 3, AT).items()}
    assert states == {"2026-11-20": "final", "2026-11-21": "provisional", "2026-11-22": "final"}


def test_a_mark_before_the_first_row_is_provisional_until_its_first_day_is_restated(
    utc: Place, put: Put, day_row: DayRows
) -> None:
    row = day_row("2026-11-22", closing=1, position=5)
    put(utc.client, row)
    put(utc.client, mark(row, "2026-11-20", "2026-11-21", position=9))
    states = {date: day["state"] for date, day in utc.usage("2026-11-22", 4, AT).items()}
    assert states == {
        "2026-11-19": "final", "2026-11-20": "provisional", "2026-11-21": "provisional", "2026-11-22": "final",
    }  # fmt: skip
    put(utc.client, day_row("2026-11-20", closing=1, position=9), restated=True)
    days = utc.usage("2026-11-22", 4, AT)
    assert {date: (day["closing"], day["state"]) for date, day in days.items()} == {
        "2026-11-19": (0, "final"), "2026-11-20": (1, "final"), "2026-11-21": (1, "final"), "2026-11-22": (1, "final"),
    }  # fmt: skip


def test_the_first_date_of_the_calendar_is_not_taken_for_the_row_that_is_missing(
    utc: Place, put: Put, day_row: DayRows
) -> None:
    """Where nothing is stored before a day, the engine fills in 1970-01-01; a mark on that date says nothing about it."""
    row = day_row("2026-11-22", closing=1, position=5)
    put(utc.client, row)
    put(utc.client, mark(row, "1970-01-01", "1970-01-01", position=9))
    assert {day["state"] for day in utc.usage("2026-11-21", 30_000, AT).values() if day["day"] > "1970-01-01"} == {"final"}


def test_today_and_later_are_provisional_even_when_restated(utc: Place, put: Put, day_row: DayRows) -> None:
    put(utc.client, day_row("2026-11-24", closing=1, position=5))
    put(utc.client, day_row("2026-11-24", closing=1, position=5), restated=True)
    assert {day["state"] for day in utc.usage("2026-11-25", 2, AT).values()} == {"provisional"}


def test_a_mark_of_one_element_leaves_the_others_alone(utc: Place, put: Put, day_row: DayRows) -> None:
    seats, render = day_row("2026-11-20"), day_row("2026-11-20", element="render")
    put(utc.client, seats, render)
    put(utc.client, mark(render, "2026-11-20", "2026-11-20", position=9))
    assert utc.usage("2026-11-20", 1, AT)["2026-11-20"]["state"] == "final"
    assert utc.usage("2026-11-20", 1, AT, "render")["2026-11-20"]["state"] == "provisional"


def test_a_restated_day_is_final_until_a_newer_mark(utc: Place, put: Put, day_row: DayRows) -> None:
    live = day_row("2026-11-20", closing=1, position=5)
    put(utc.client, live)
    put(utc.client, mark(live, "2026-11-20", "2026-11-20", position=9))
    put(utc.client, day_row("2026-11-20", closing=2, position=9), restated=True)
    day = utc.usage("2026-11-20", 1, AT)["2026-11-20"]
    assert (day["closing"], day["state"]) == (2, "final")
    put(utc.client, mark(live, "2026-11-20", "2026-11-20", position=11))
    assert utc.usage("2026-11-20", 1, AT)["2026-11-20"]["state"] == "provisional"


def test_a_live_row_after_a_restatement_keeps_the_mark(utc: Place, put: Put, day_row: DayRows) -> None:
    live = day_row("2026-11-20", closing=1, position=5)
    put(utc.client, live)
    put(utc.client, mark(live, "2026-11-20", "2026-11-20", position=9))
    put(utc.client, day_row("2026-11-20", closing=2, position=9), restated=True)
    put(utc.client, day_row("2026-11-20", closing=3, position=10))
    days = utc.usage("2026-11-21", 2, AT)
    assert {date: (day["closing"], day["state"]) for date, day in days.items()} == {
        "2026-11-20": (3, "provisional"), "2026-11-21": (3, "provisional"),
    }  # fmt: skip


def test_a_day_s_units_may_be_more_than_64_bits_hold(utc: Place, put: Put, day_row: DayRows) -> None:
    trillions = 4_000_000_000_000
    put(utc.client, day_row("2026-11-20", as_of_hours=12, closing=trillions, unit_ms=10**20 + 1))
    days = utc.usage("2026-11-21", 2, at="2026-11-24 10:00:00.000")
    assert days["2026-11-20"]["unit_seconds"] == Decimal(10**20 + 1) / 1000 + trillions * 12 * HOUR
    assert days["2026-11-21"]["unit_seconds"] == trillions * DAY


def test_the_view_for_analysts_gives_the_same_numbers(utc: Place, put: Put, day_row: DayRows, entitlement: str) -> None:
    [[now, today]] = utc.client.query("SELECT toString(now64(3)), toString(toDate(now64(3)))").result_rows
    week_ago = utc.client.query("SELECT toString(toDate({d:String}) - 7)", parameters={"d": today}).first_row[0]
    row = day_row(
        week_ago, as_of_hours=3, closing=3, max=4, limit=2, terms_known=True, closing_limit=2, closing_terms_known=True
    )
    put(utc.client, row, day_row(week_ago, element="render", closing=1))
    put(utc.client, mark(row, week_ago, week_ago, position=9))
    assert [day["state"] for day in utc.usage(today, 30, now).values()] == ["final"] * 22 + ["provisional"] * 8
    in_view = utc.client.query(
        "SELECT * REPLACE (toString(day) AS day) FROM usage_by_day WHERE entitlement = {e:String} ORDER BY element, day",
        parameters={"e": entitlement},
    )
    for element in ("render", "seats"):
        asked = list(utc.usage(today, 30, now, element).values())
        viewed = [row for row in in_view.named_results() if row["element"] == element]
        assert len(asked) == 30
        for ours, theirs in zip(asked[:-1], viewed[:-1], strict=True):
            assert ours == {field: theirs[field] for field in ours}
        # Today grows between the two questions.
        growing = ("elapsed_seconds", "unit_seconds", "overdraft_seconds")
        assert {k: v for k, v in asked[-1].items() if k not in growing} == {
            k: viewed[-1][k] for k in asked[-1] if k not in growing
        }
        assert all(viewed[-1][field] >= asked[-1][field] for field in growing)
