"""Restatement over the real engine: day rows, raw rows and live state end at the exact values."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from typing import Any

import orjson
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from processors.audit import Auditor
from processors.domain.ledger import position_of
from processors.restate import ChangedRow, restated_rows
from processors.standing import stored_rows
from schemas.events import RESTATE_SOURCE, format_time
from tests import model
from tests.miniature import HOUR, Miniature
from tests.processors.domain.test_ledger import (
    activated,
    counted,
    deactivated,
    denied,
    limited,
    ms,
    snapshot,
    used,
)
from tests.random_logs import DAY, START, logs
from tests.vendor import arrivals
from views.store import connect

Document = dict[str, Any]
# All times below are in March 2026; it is the 25th.
NOW = ms("25T12:00")


@pytest.fixture
def stack(database_in: Callable[[str], str]) -> Iterator[Miniature]:
    client = connect(database_in("UTC"))
    yield Miniature(client, now_ms=NOW)
    client.close()


def own(documents: list[Document]) -> list[Document]:
    """The documents, of an entitlement that no other test has."""
    subject = f"ent-{uuid.uuid4().hex}"
    return [document | {"subject": subject} for document in documents]


def days(
    stack: Miniature, entitlement: str, element: str = "seats", last: str = "2026-03-25", count: int = 30
) -> dict[str, dict[str, Any]]:
    rows = stack.client.query(
        "SELECT * EXCEPT (entitlement, element, customer, product, name, kind), toString(day) AS day "
        "FROM usage(entitlement = {e:String}, element = {el:String}, last_day = {last:Date32}, days = {count:UInt16}, "
        "at = {at:DateTime64(3, 'UTC')}) ORDER BY day",
        parameters={"e": entitlement, "el": element, "last": date.fromisoformat(last), "count": count,
                    "at": format_time(stack.now_ms)[:-1]},
    )  # fmt: skip
    return {row["day"]: row for row in rows.named_results()}


def levels(stack: Miniature, entitlement: str) -> list[tuple[str, bool, int, int]]:
    """The raw log: (time, late, delta, level)."""
    rows = stack.client.query(
        "SELECT formatDateTime(time, '%dT%H:%i'), late, delta, level FROM activity_history WHERE entitlement = {e:String} "
        "AND source != {restate:String} ORDER BY time, epoch, offset",
        parameters={"e": entitlement, "restate": RESTATE_SOURCE},
    )
    return [(row[0], bool(row[1]), row[2], row[3]) for row in rows.result_rows]


def test_a_late_session_corrects_its_days_and_leaves_today_alone(stack: Miniature) -> None:
    documents = own(
        [
            limited("20T00:00", 1),
            activated("a", "20T09:00"), deactivated("a", "20T17:00"),
            activated("a", "25T09:00"),
            # An offline server uploads its week.
            activated("b", "20T10:00"), deactivated("b", "21T10:00"),
        ]
    )  # fmt: skip
    subject = documents[0]["subject"]
    stack.arrive(documents)
    stack.work()
    stack.sink()
    alerts = len(stack.alerts)
    before = days(stack, subject)
    assert (before["2026-03-20"]["max"], before["2026-03-21"]["max"], before["2026-03-25"]["max"]) == (1, 0, 1)
    assert {before[f"2026-03-{day}"]["state"] for day in (20, 21, 22, 23, 24, 25)} == {"provisional"}
    assert levels(stack, subject)[2:4] == [("20T10:00", True, 0, 1), ("20T17:00", False, -1, 0)]

    stack.settle()

    after = days(stack, subject)
    assert (after["2026-03-20"]["max"], after["2026-03-20"]["closing"], after["2026-03-20"]["overdraft_seconds"]) == (
        2,
        1,
        7 * 3600,
    )
    assert (after["2026-03-21"]["opening"], after["2026-03-21"]["max"], after["2026-03-21"]["closing"]) == (1, 1, 0)
    assert (after["2026-03-22"]["max"], after["2026-03-25"]["max"]) == (0, 1)
    assert [after[f"2026-03-{day}"]["state"] for day in (20, 21, 22, 24)] == ["final"] * 4
    assert after["2026-03-25"]["state"] == "provisional"
    assert len(stack.alerts) == alerts
    assert levels(stack, subject) == [
        ("20T00:00", False, 0, 0),
        ("20T09:00", False, 1, 1),
        ("20T10:00", False, 1, 2),
        ("20T17:00", False, -1, 1),
        ("21T10:00", False, -1, 0),
        ("25T09:00", False, 1, 1),
    ]


def test_a_seat_that_is_still_held_is_opened_by_a_correction(stack: Miniature) -> None:
    documents = own([limited("20T00:00", 1), activated("a", "25T09:00"), activated("b", "24T10:00")])
    subject = documents[0]["subject"]
    stack.arrive(documents)
    stack.settle()
    head = stack.ledger.elements[subject, "seats"].head
    assert (head.level, head.unsettled_since) == (2, 0)
    [alert] = [alert for alert in stack.alerts if alert.type == "overdraft.entered"]
    assert (alert.data.cause.source, alert.data.at) == (RESTATE_SOURCE, "2026-03-25T09:00:00.000Z")
    corrections = [orjson.loads(record.value) for record in stack.log if RESTATE_SOURCE.encode() in record.value]
    assert [len(correction["data"].get("holds", [])) for correction in corrections] == [1, 0]
    assert corrections[0]["data"]["holds"] == [{"seat_id": "b", "quantity": 1, "changed_at": "2026-03-24T10:00:00.000Z"}]


def test_a_level_that_the_raw_log_does_not_explain_is_left_alone_and_told(
    stack: Miniature, caplog: pytest.LogCaptureFixture
) -> None:
    """A correction that is computed from a wrong idea of the present could make a right level wrong."""
    documents = own([limited("20T00:00", 1), activated("a", "25T09:00"), activated("b", "24T10:00")])
    stack.arrive(documents)
    stack.work()
    stack.sink()
    stack.client.command(
        "ALTER TABLE elements UPDATE level = 7 WHERE entitlement = {e:String} SETTINGS mutations_sync = 2",
        parameters={"e": documents[0]["subject"]},
    )
    before = REGISTRY.get_sample_value("seatmark_restate_unexplained_total") or 0
    assert stack.restate().differing == 0
    assert REGISTRY.get_sample_value("seatmark_restate_unexplained_total") == before + 1
    [told] = caplog.records
    assert (told.entitlement, told.element) == (documents[0]["subject"], "seats")  # type: ignore[attr-defined]
    assert "seats is 7, and its raw log gives 1" in told.message


def test_equal_levels_can_hide_different_holds(stack: Miniature) -> None:
    """Late: b took the seat from a. The level is 1 all along."""
    documents = own([activated("a", "25T06:00"), activated("x", "25T09:00"), deactivated("x", "25T09:01"),
                     deactivated("a", "25T07:00"), activated("b", "25T07:00")])  # fmt: skip
    subject = documents[0]["subject"]
    stack.arrive(documents)
    stack.work()
    assert {s for s, hold in stack.ledger.elements[subject, "seats"].holds.items() if hold.quantity} == {"a"}
    stack.settle()
    assert {s for s, hold in stack.ledger.elements[subject, "seats"].holds.items() if hold.quantity} == {"b"}


def test_a_counter_gets_the_difference(stack: Miniature) -> None:
    documents = own([used("24T09:00", quantity=5), used("25T09:00", quantity=1), used("24T10:00", quantity=3)])
    stack.arrive(documents)
    stack.settle()
    subject = documents[0]["subject"]
    assert stack.ledger.elements[subject, "count"].head.total == 9
    after = days(stack, subject, "count")
    assert (after["2026-03-24"]["closing"], after["2026-03-24"]["units_used"]) == (8, 8)


def test_a_snapshot_that_came_late_counts_exactly(stack: Miniature) -> None:
    documents = own([counted(7, "25T09:00"), used("25T10:00"), counted(2, "25T09:30"), used("25T09:40", quantity=4)])
    stack.arrive(documents)
    stack.settle()
    assert stack.ledger.elements[documents[0]["subject"], "count"].head.total == 7


def test_today_stays_as_known_until_it_ends(stack: Miniature) -> None:
    documents = own([activated("a", "25T06:00"), activated("b", "25T05:00"), deactivated("b", "25T06:30")])
    subject = documents[0]["subject"]
    stack.arrive(documents)
    stack.settle()
    assert days(stack, subject)["2026-03-25"]["opening"] == 0
    assert days(stack, subject)["2026-03-25"]["unit_seconds"] != 0
    stack.now_ms = ms("26T00:01")
    stack.settle()
    row = days(stack, subject, last="2026-03-26")["2026-03-25"]
    assert (row["state"], row["max"], row["unit_seconds"]) == ("final", 2, 18 * 3600 + 90 * 60)


def test_events_after_a_restatement_make_the_day_provisional_until_the_next(stack: Miniature) -> None:
    documents = own([activated("a", "24T06:00"), activated("b", "24T05:00")])
    subject = documents[0]["subject"]
    stack.arrive(documents)
    stack.settle()
    assert days(stack, subject)["2026-03-24"]["state"] == "final"
    stack.arrive([activated("c", "24T20:00") | {"subject": subject}])
    stack.work()
    stack.sink()
    assert days(stack, subject)["2026-03-24"]["state"] == "provisional"
    stack.settle()
    row = days(stack, subject)["2026-03-24"]
    assert (row["state"], row["max"], row["activations"]) == ("final", 3, 3)


def test_the_second_restatement_starts_from_a_checkpoint(stack: Miniature) -> None:
    mine = own([activated("a", "20T06:00"), activated("b", "20T05:00"), activated("c", "25T06:00"),
                deactivated("a", "25T05:00")])  # fmt: skip
    subject = mine[0]["subject"]
    stack.arrive(mine)
    stack.settle()
    stored = stack.client.query(
        "SELECT toString(day) FROM exact_states WHERE entitlement = {e:String}", parameters={"e": subject}
    )
    assert {row[0] for row in stored.result_rows} == {"2026-03-25"}
    read_from = []
    rows = stack.restater._store.rows
    stack.restater._store.rows = lambda elements, start: read_from.append(start) or rows(elements, start)  # type: ignore
    stack.arrive([activated("d", "25T05:30") | {"subject": subject}])
    stack.settle()
    assert set(read_from) == {ms("25T00:00")}
    stack.arrive([activated("e", "21T05:30") | {"subject": subject}])
    stack.settle()
    assert read_from[-1] == 0
    assert stack.ledger.elements[subject, "seats"].head.level == 4


def test_an_event_whose_mark_is_not_stored_yet_is_not_missed(stack: Miniature) -> None:
    """Its raw row is there: a fold from a later checkpoint would not see it, and call the days final without it."""
    mine = own([activated("a", "25T06:00"), activated("b", "25T05:00")])
    subject = mine[0]["subject"]
    stack.arrive(mine)
    stack.settle()
    stack.arrive([activated("c", "23T06:00") | {"subject": subject}, activated("d", "25T05:30") | {"subject": subject}])
    stack.work(1)
    marks = [item for item in stack.unsunk if item[0] == "entitlement-days"]
    stack.unsunk = [item for item in stack.unsunk if item[0] != "entitlement-days"]
    stack.sink()
    stack.work()
    stack.sink()
    stack.restate()
    stack.unsunk = marks + stack.unsunk
    stack.settle()
    assert stack.ledger.elements[subject, "seats"].head.level == 4
    assert days(stack, subject)["2026-03-23"]["max"] == 1


def test_nothing_beyond_the_watermark_is_taken_for_the_truth(stack: Miniature) -> None:
    mine = own([activated("a", "24T06:00"), activated("b", "24T05:00")])
    stack.arrive(mine)
    stack.work()
    stack.sink()
    offset = len(stack.log) - 1
    stack.client.command(
        "ALTER TABLE progress DELETE WHERE topic = {t:String} SETTINGS mutations_sync = 2", parameters={"t": stack.topic}
    )
    stack.client.command(
        "INSERT INTO progress (topic, `partition`, epoch, `offset`, incarnation) VALUES ({t:String}, 0, 1, {o:Int64}, 'i')",
        parameters={"t": stack.topic, "o": offset - 1},
    )
    stack.restate()
    assert len(stack.log) == 2
    assert days(stack, mine[0]["subject"])["2026-03-24"]["state"] == "provisional"


def test_an_event_that_came_twice_with_two_times_counts_once(stack: Miniature) -> None:
    subject = own([activated("a", "20T06:00")])[0]["subject"]
    filler = [activated(f"f{n}", "24T07:00") for n in range(200)] + [deactivated(f"f{n}", "24T08:00") for n in range(200)]
    documents = [
        activated("a", "24T06:00", id="twice"),
        *filler,
        activated("b", "24T09:00", id="twice"),
        deactivated("z", "24T05:00"),
    ]
    stack.arrive(document | {"subject": subject} for document in documents)
    stack.settle(passes=10)
    row = days(stack, subject)["2026-03-24"]
    assert (row["state"], row["closing"]) == ("final", 1)
    # b came as a repeat: it is not in use.
    holds = stack.ledger.elements[subject, "seats"].holds
    assert {seat for seat, hold in holds.items() if hold.quantity} == {"a"}


@pytest.mark.parametrize("time", ["24T06:00", "24T09:55"], ids=["late", "disordered"])
def test_a_repeat_that_has_no_row_of_its_own_does_not_keep_its_days_provisional(stack: Miniature, time: str) -> None:
    """Its id is forgotten and its time is that of the first arrival, whose row stays: only its mark tells of it."""
    subject = own([activated("a", "20T06:00")])[0]["subject"]
    documents = [
        denied(time, id="twice"),
        *(denied("24T10:00") for _ in range(200)),
        activated("a", "24T10:00"),
        denied(time, id="twice"),
    ]
    stack.arrive(document | {"subject": subject} for document in documents)
    stack.work()
    stack.sink()
    assert days(stack, subject)["2026-03-24"]["state"] == "provisional"
    stack.settle()
    row = days(stack, subject)["2026-03-24"]
    assert (row["state"], row["closing"], row["denials"]) == ("final", 1, 201)
    assert stack.ledger.elements[subject, "seats"].head.unsettled_since == 0
    offsets = stack.client.query(
        "SELECT offset FROM activity_history WHERE entitlement = {e:String} AND id = 'twice'", parameters={"e": subject}
    )
    assert offsets.result_rows == [(0,)]


def test_a_repeat_that_has_no_row_of_its_own_is_waited_for(stack: Miniature) -> None:
    """Its mark is stored, and up to it the raw log is not: there may be another event in the hole."""
    subject = own([activated("a", "20T06:00")])[0]["subject"]
    filler = [denied("24T10:00") for _ in range(200)]
    documents = [denied("24T06:00", id="twice"), *filler, denied("24T06:00", id="twice")]
    stack.arrive(document | {"subject": subject} for document in documents)
    stack.work(201)
    stack.sink()
    stack.work()
    raw = [item for item in stack.unsunk if item[0] == "entitlement-activity"]
    stack.unsunk = [item for item in stack.unsunk if item[0] != "entitlement-activity"]
    stack.sink()
    stack.restate()
    assert days(stack, subject)["2026-03-24"]["state"] == "provisional"
    stack.unsunk = raw
    stack.settle()
    assert days(stack, subject)["2026-03-24"]["state"] == "final"


def test_raw_rows_that_are_restated_again_stand_before_what_was_restated_earlier(stack: Miniature) -> None:
    """Also if the position is lower: a rebuild takes that of the last row, a pass that of a later mark without one."""
    mine = own([activated("a", "24T06:00"), activated("b", "24T05:00")])
    subject = mine[0]["subject"]
    stack.arrive(mine)
    stack.settle()
    store = stack.restater._store
    key = (subject, "seats")
    # Without the row of the correction, which has no exact effect.
    [first, second] = [row for row in stored_rows(store.rows([key], 0), {}) if row.raw.offset < 2]
    again = restated_rows([ChangedRow(first, first.effect, basis=0), ChangedRow(second, second.effect, basis=2**60)])
    assert again.column("version").to_pylist() == [position_of(1, 1) + 2, 2**60 + 2]
    store.insert("activity", again.set_column(again.schema.names.index("level"), "level", pa.array([7, 8], pa.int64())))
    assert [level for _, _, _, level in levels(stack, subject)] == [7, 8]


def test_a_pass_over_what_is_settled_does_nothing(stack: Miniature) -> None:
    stack.arrive(own([activated("a", "24T06:00"), activated("b", "24T05:00"), snapshot("24T10:00", {"a": 1})]))
    stack.settle()
    sent = len(stack.log)
    report = stack.restate()
    assert (report.elements, report.days, report.corrections, len(stack.log)) == (0, 0, 0, sent)


def exact_days(documents: list[Document], timezone: str, until: int) -> dict[tuple[str, str], dict[date, dict[str, Any]]]:
    exact = model.run(documents, timezone=timezone, late_after_ms=HOUR, exact=True)
    return {key: element.day_rows(until) for key, element in exact.items()}


@pytest.mark.parametrize("new_database", ["chdb"], indirect=True)
@pytest.mark.parametrize("timezone", ["UTC", "America/Sao_Paulo"])
# Not shrunk: each example takes the engine a tenth of a second.
@settings(
    max_examples=10,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(log=logs(), data=st.data())
def test_random_logs_end_at_the_models_exact_numbers(
    database_in: Callable[[str], str], timezone: str, log: list[Document], data: st.DataObject
) -> None:
    client = connect(database_in(timezone))
    stack = Miniature(client, timezone=timezone, now_ms=START + 4 * DAY)
    subject = f"ent-{uuid.uuid4().hex}"
    documents = [document | {"subject": subject} for document in log]
    for document in documents:
        stack.arrive([document])
        step = data.draw(st.integers(0, 9))
        if step <= 5:
            stack.work()
        if step <= 2:
            stack.sink()
        if step == 0:
            stack.restate()
    stack.settle(passes=10)
    # The clock moves on until all days are over; nothing else happens.
    stack.now_ms = START + 10 * DAY
    stack.settle(passes=10)

    last = date.fromisoformat(stack.calendar.day_of(stack.now_ms).day)
    for (_, element), rows in exact_days(documents, timezone, stack.now_ms).items():
        stored = days(stack, subject, element, last.isoformat(), 20)
        for day, wanted in rows.items():
            got = stored[day.isoformat()]
            assert {name: got[name] for name in wanted if not name.endswith("_ms")} == {
                name: value for name, value in wanted.items() if not name.endswith("_ms")
            }, (element, day)
            assert int(got["overdraft_seconds"] * 1000) == wanted["overdraft_ms"]
            assert int(got["unit_seconds"] * 1000) == wanted["unit_ms"]
            assert got["state"] == ("provisional" if day >= last else "final")
        before = min(rows) - timedelta(days=1)
        assert stored[before.isoformat()]["max"] == 0
    exact = model.run(documents, timezone=timezone, late_after_ms=HOUR, exact=True)
    for (_, name), wanted_element in exact.items():
        element_now = stack.ledger.elements[subject, name]
        assert {s: hold.quantity for s, hold in element_now.holds.items() if hold.quantity} == wanted_element.holds
        assert (element_now.head.level, element_now.head.state) == (wanted_element.level, wanted_element.state)
    findings = Auditor(stack.restater._store, calendar=stack.calendar, late_after_ms=HOUR).run(
        stack.now_ms, entitlement=subject, wait=lambda: None
    )
    assert (findings.differences, findings.provisional_days, findings.unsettled) == ([], 0, 0)
    client.close()


@pytest.mark.parametrize("new_database", ["chdb"], indirect=True)
def test_corrections_under_load_never_make_a_right_level_wrong(stack: Miniature) -> None:
    """Traffic goes on while what is stored is always some hundred events behind, and so are the corrections."""
    name = uuid.uuid4().hex[:8]
    sent = arrivals(3, events=1500, entitlements=100, until_ms=NOW - HOUR, late=0.15)
    documents = [document | {"subject": f"{name}-{document['subject']}"} for document in sent]
    so_far: dict[str, list[Document]] = {}
    corrected = 0

    def right(subject: str) -> dict[tuple[str, str], Any]:
        exact = model.run(so_far[subject], timezone="UTC", late_after_ms=HOUR, exact=True)
        found: dict[tuple[str, str], Any] = {}
        for (_, element), wanted in exact.items():
            live = stack.ledger.elements[subject, element]
            for seat in live.holds.keys() | wanted.holds.keys():
                hold = live.holds.get(seat)
                if (hold.quantity if hold else 0) == wanted.holds.get(seat, 0):
                    found[element, seat] = wanted.holds.get(seat, 0)
            if live.head.total == wanted.total:
                found[element, ""] = wanted.total
        return found

    behind: list[Any] = []
    for start in range(0, len(documents), 100):
        for document in documents[start : start + 100]:
            so_far.setdefault(document["subject"], []).append(document)
        stack.arrive(documents[start : start + 100])
        stack.work()
        # The sink stores what was put out three steps ago.
        behind.append(stack.unsunk)
        stack.unsunk = behind.pop(0) if len(behind) > 3 else []
        stack.sink()
        stack.restate()
        while len(stack.log) > stack.applied:
            subject = (stack.log[stack.applied].key or b"").decode()
            before = right(subject)
            stack.work(1)
            after = right(subject)
            # A seat that is closed in both is no longer there once it is forgotten.
            lost = {
                key
                for key, value in before.items()
                if key not in after and (value or key[1] in live_seats(stack, subject, key[0]))
            }
            assert not lost, (subject, lost)
            corrected += 1
    for items in behind:
        stack.unsunk = items + stack.unsunk
    stack.unsunk.sort(key=lambda item: (item[0], item[1].offset))
    stack.settle(passes=10)
    for subject, log in so_far.items():
        for (_, element), wanted in model.run(log, timezone="UTC", late_after_ms=HOUR, exact=True).items():
            head = stack.ledger.elements[subject, element].head
            assert (head.level, head.state, head.unsettled_since) == (wanted.level, wanted.state, 0)
    assert corrected > 100


def live_seats(stack: Miniature, subject: str, element: str) -> set[str]:
    return {seat for seat, hold in stack.ledger.elements[subject, element].holds.items() if hold.quantity}


def test_a_log_that_is_sent_again_is_settled_too(stack: Miniature) -> None:
    """Of its late repeats no row is left beside the first arrivals, but their marks are."""
    documents = own([limited("20T00:00", 1), activated("a", "20T09:00"), *(activated(f"s{n}", "20T10:00") for n in range(200)),
                     deactivated("a", "20T17:00"), activated("b", "24T09:00")])  # fmt: skip
    subject = documents[0]["subject"]
    stack.arrive(documents)
    stack.settle()
    before = days(stack, subject)
    stack.arrive(documents)
    stack.work()
    stack.sink()
    assert days(stack, subject)["2026-03-20"]["state"] == "provisional"
    stack.settle()
    assert days(stack, subject) == before
    assert stack.ledger.elements[subject, "seats"].head.unsettled_since == 0


def test_a_use_that_was_counted_twice_is_taken_back(stack: Miniature) -> None:
    """Its id was forgotten, and its repeat left no row of its own."""
    documents = own([used("24T09:00", id="once", quantity=7), *(used("24T09:30") for _ in range(11_000))])
    subject = documents[0]["subject"]
    stack.arrive([*documents, documents[0]])
    stack.work()
    assert stack.ledger.elements[subject, "count"].head.total == 11_014
    stack.settle()
    assert stack.ledger.elements[subject, "count"].head.total == 11_007
    assert days(stack, subject, "count")["2026-03-24"]["closing"] == 11_007
