"""Held levels that were added up beforehand: the report says the same with them and without, and with outdated ones."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from processors.audit import Auditor, Findings
from tests.miniature import HOUR, Miniature
from tests.processors.domain.test_ledger import activated, deactivated, limited, ms
from tests.random_logs import DAY, START, logs
from views.levels import add_up_levels, begin_generation
from views.raw_log import RawLog
from views.reporting import ReportingDays
from views.store import Store, connect
from views.tokens import EVERYTHING
from views.web.reading import Reader

Document = dict[str, Any]
# All times below are in March 2026; it is the 25th. In New York days begin at 04:00 UTC then.
NOW = ms("25T12:00")
_EMBEDDED = pytest.mark.parametrize("new_database", ["chdb"], indirect=True)


class Place:
    """A miniature of the stack in a time zone, what adds up its levels, and its report."""

    def __init__(self, dsn: str, timezone: str, now_ms: int) -> None:
        self.stack = Miniature(connect(dsn), timezone=timezone, now_ms=now_ms)
        self.store = Store(dsn)
        self.log = RawLog(self.stack.client, self.stack.topic)
        self._days = ReportingDays(timezone)

    def add_up(self) -> int:
        return add_up_levels(self.log, self._days, self.stack.now_ms, self.stack.entitlements.__contains__)

    def report(self, subject: str) -> list[dict[str, Any]]:
        return Reader(self.store, EVERYTHING, self.stack.now_ms).overdrafts(entitlement=subject)

    def report_from_the_raw_log(self, subject: str) -> list[dict[str, Any]]:
        """As if nothing had been added up."""
        with pytest.MonkeyPatch.context() as patch:
            query = self.store.query
            patch.setattr(self.store, "query", lambda name, **more: [] if name == "levels_held" else query(name, **more))
            return self.report(subject)

    def audit(self, subject: str) -> Findings:
        auditor = Auditor(self.log, calendar=self.stack.calendar, late_after_ms=HOUR)
        return auditor.run(self.stack.now_ms, entitlement=subject, wait=lambda: None)

    def close(self) -> None:
        self.store.close()
        self.stack.client.close()


@pytest.fixture
def new_york(database_in: Callable[[str], str]) -> Iterator[Place]:
    with closing(Place(database_in("America/New_York"), "America/New_York", NOW)) as place:
        yield place


def own(documents: list[Document]) -> list[Document]:
    """The documents, of an entitlement that no other test has."""
    subject = f"ent-{uuid.uuid4().hex}"
    return [document | {"subject": subject} for document in documents]


# From the first event until now 128 hours: 34 with 0 seats, 70 with 1 and 24 with 2. One seat ends at midnight.
SESSIONS = [
    limited("20T04:00", 1),
    activated("a", "20T09:00"), activated("b", "20T10:00"), deactivated("b", "21T10:00"), deactivated("a", "22T04:00"),
    activated("c", "23T09:00"),
]  # fmt: skip
SUMS = {"unit_seconds_over": 24 * 3600, "covers_95": 2, "covers_99": 2, "covers_100": 2}
# With one more seat from 20:00 to 22:00 on the 20th there are 2 hours with 3 seats: 1.6 % of the time.
LATE = [activated("d", "20T20:00"), deactivated("d", "20T22:00")]
SUMS_LATE = {"unit_seconds_over": 26 * 3600, "covers_95": 2, "covers_99": 3, "covers_100": 3}


def arrived(place: Place, documents: list[Document]) -> str:
    place.stack.arrive(documents)
    place.stack.work()
    place.stack.sink()
    return str(documents[0]["subject"])


def sums(rows: list[dict[str, Any]]) -> dict[str, Any]:
    [row] = rows
    return {name: row[name] for name in SUMS}


def falsify(place: Place) -> None:
    """Make what was added up wrong, so that it shows where it is used."""
    place.stack.client.command(
        "INSERT INTO levels_held SELECT * REPLACE (arrayMap(level -> level + 10, levels) AS levels, "
        "written_at + INTERVAL 1 SECOND AS written_at) FROM levels_held FINAL"
    )


def test_what_was_added_up_gives_the_report_its_numbers(new_york: Place) -> None:
    subject = arrived(new_york, own(SESSIONS))
    assert sums(new_york.report(subject)) == SUMS
    assert new_york.add_up() == 4, "the 20th to the 23rd, in New York"
    assert new_york.add_up() == 0
    assert new_york.report(subject) == new_york.report_from_the_raw_log(subject)
    assert sums(new_york.report(subject)) == SUMS
    falsify(new_york)
    assert sums(new_york.report(subject))["covers_100"] == 12


@_EMBEDDED
def test_an_event_makes_its_day_outdated_and_no_other(new_york: Place) -> None:
    documents = own([*SESSIONS, activated("d", "23T10:00"), deactivated("d", "23T12:00")])
    subject = arrived(new_york, documents[:-2])
    new_york.add_up()
    arrived(new_york, documents[-2:])
    assert new_york.report(subject) == new_york.report_from_the_raw_log(subject)
    assert sums(new_york.report(subject)) == SUMS | {"unit_seconds_over": 26 * 3600}
    assert new_york.add_up() == 1
    assert sums(new_york.report(subject)) == SUMS | {"unit_seconds_over": 26 * 3600}


@_EMBEDDED
def test_restated_days_are_added_up_anew(new_york: Place) -> None:
    documents = own([*SESSIONS, *LATE])
    subject = arrived(new_york, documents[:-2])
    new_york.add_up()
    falsify(new_york)
    arrived(new_york, documents[-2:])
    assert new_york.add_up() == 0, "they are to be restated first"
    new_york.stack.settle()
    assert sums(new_york.report(subject)) == SUMS_LATE
    assert new_york.add_up() >= 2
    assert sums(new_york.report(subject)) == SUMS_LATE


@_EMBEDDED
def test_a_correction_does_not_count_on_a_restated_day(new_york: Place) -> None:
    """It said 3 at 12:00, when the exact level was 4: of an event that came after it, nothing was known then."""
    documents = own([limited("20T04:00", 1), activated("a", "20T09:00"), activated("b", "20T12:00"),
                     activated("late-1", "20T08:00"), activated("c", "20T15:00"), activated("late-2", "20T07:00")])  # fmt: skip
    for arriving in (documents[:4], documents[4:5], documents[5:]):
        subject = arrived(new_york, arriving)
        new_york.stack.settle()
    # Above the limit of 1: one seat from 08:00, two from 09:00, three from 12:00, four from 15:00 until noon of the 25th.
    assert sums(new_york.report(subject))["unit_seconds_over"] == (1 + 2 * 3 + 3 * 3 + 4 * (4 * 24 + 21)) * 3600
    new_york.add_up()
    found = new_york.audit(subject)
    assert (found.differences, found.held_days) == ([], 1)


@_EMBEDDED
def test_a_correction_counts_today(new_york: Place) -> None:
    """At 10:00 the live level becomes 2, and nothing else happens until noon."""
    subject = arrived(new_york, own([limited("25T04:00", 1), activated("a", "25T10:00"), activated("late", "25T08:00")]))
    new_york.stack.settle()
    assert sums(new_york.report(subject))["unit_seconds_over"] == 2 * 3600


@_EMBEDDED
def test_a_restatement_that_was_interrupted_is_not_taken_for_done(new_york: Place) -> None:
    documents = own([*SESSIONS, *LATE])
    subject = arrived(new_york, documents)
    store = new_york.stack.restater._store
    insert = store.insert

    def killed_after_the_days(table: str, rows: pa.Table) -> None:
        if table == "activity":
            raise ConnectionError("killed")
        insert(table, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "insert", killed_after_the_days)
        with pytest.raises(ConnectionError):
            new_york.stack.restate()
    assert new_york.add_up() == 0
    new_york.stack.settle()
    new_york.add_up()
    assert sums(new_york.report(subject)) == SUMS_LATE


@_EMBEDDED
def test_after_a_rebuild_nothing_of_before_counts(new_york: Place) -> None:
    subject = arrived(new_york, own(SESSIONS))
    new_york.add_up()
    falsify(new_york)
    begin_generation(new_york.stack.client)
    assert sums(new_york.report(subject)) == SUMS
    assert new_york.add_up() == 4
    assert sums(new_york.report(subject)) == SUMS


@_EMBEDDED
def test_an_event_of_a_clock_that_is_ahead_waits_for_its_time(new_york: Place) -> None:
    documents = own([*SESSIONS, activated("d", "25T12:03"), activated("e", "25T12:04")])
    subject = arrived(new_york, documents)
    new_york.add_up()
    assert sums(new_york.report(subject)) == SUMS
    new_york.stack.now_ms = ms("25T12:04")
    assert sums(new_york.report(subject)) == SUMS | {"unit_seconds_over": 24 * 3600 + 60, "covers_100": 3}


def brute_force(place: Place, subject: str, element: str, starts: int) -> dict[str, Any]:
    """The same from all raw rows, step by step."""
    rows = place.stack.client.query(
        "SELECT toUnixTimestamp64Milli(t), level, `limit` FROM activity FINAL WHERE entitlement = {e:String} "
        "AND element = {el:String} AND NOT late AND t <= {at:DateTime64(3, 'UTC')} ORDER BY t, epoch, `offset`",
        parameters={"e": subject, "el": element, "at": place.stack.now_ms / 1000},
    ).result_rows
    ends = [row[0] for row in rows[1:]] + [place.stack.now_ms]
    over, held = 0, []
    for (start, level, limit), end in zip(rows, ends, strict=True):
        if end >= starts:
            time = end - max(start, starts)
            held.append((level, time))
            over += time * max(0, level - limit) if limit is not None else 0
    needed = sum(time for _, time in held) * 0.95
    covers = next(level for level, _ in sorted(held) if sum(time for other, time in held if other <= level) >= needed)
    return {"unit_seconds_over": over / 1000, "covers_95": covers, "covers_100": max(level for level, _ in held)}


@_EMBEDDED
@pytest.mark.parametrize("timezone", ["America/New_York"])
@settings(
    max_examples=6,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(log=logs(), data=st.data())
def test_random_logs_say_the_same_with_and_without(
    database_in: Callable[[str], str], timezone: str, log: list[Document], data: st.DataObject
) -> None:
    with closing(Place(database_in(timezone), timezone, START + 4 * DAY)) as place:
        subject = f"ent-{uuid.uuid4().hex}"
        for document in log:
            place.stack.arrive([document | {"subject": subject}])
            step = data.draw(st.integers(0, 9))
            if step <= 5:
                place.stack.work()
            if step <= 3:
                place.stack.sink()
            if step == 1:
                place.stack.restate()
            if step <= 1:
                place.add_up()
                assert place.report(subject) == place.report_from_the_raw_log(subject)
        place.stack.settle(passes=10)
        # The window begins in the middle of the log, and all days are over.
        place.stack.now_ms = START + 31 * DAY + 20 * HOUR
        place.stack.settle(passes=10)
        place.add_up()
        assert place.audit(subject).differences == []
        report = place.report(subject)
        assert report == place.report_from_the_raw_log(subject)
        bounds = place.stack.calendar.day_of(place.stack.now_ms - 29 * DAY)
        for row in report:
            wanted = brute_force(place, subject, row["element"], bounds.start)
            assert {name: row[name] for name in wanted} == wanted
