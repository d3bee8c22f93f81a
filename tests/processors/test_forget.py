"""Personal data goes out of the raw log over the real engine, and every number stays."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from datetime import date
from typing import Any

import orjson
import pytest

from processors import forget as forgetting
from processors.audit import Auditor
from processors.forget import Forgotten, OthersFirst, Person, forget, remove_expired
from processors.sink import Batch
from schemas.events import RESTATE_SOURCE
from tests.miniature import HOUR, Miniature
from tests.processors.domain.test_ledger import activated, checked_out, deactivated, denied, limited, ms, returned, snapshot
from tests.vendor import arrivals
from views.raw_log import HalfForgotten, RawLog, open_raw_log
from views.store import connect

# Once is enough; over HTTP it is tried in tests/seatmark/test_forget.py.
pytestmark = pytest.mark.parametrize("new_database", ["chdb"], indirect=True, scope="session")

Document = dict[str, Any]
# All times below are in March 2026; it is the 25th.
NOW = ms("25T12:00")


@pytest.fixture
def stack(database_in: Callable[[str], str]) -> Iterator[Miniature]:
    client = connect(database_in("UTC"))
    yield Miniature(client, now_ms=NOW)
    client.close()


@pytest.fixture
def name() -> str:
    """The user to be forgotten; nothing else in any table has this text in it."""
    return f"ann-{uuid.uuid4().hex}@example.com"


@pytest.fixture
def subject() -> str:
    return f"ent-{uuid.uuid4().hex}"


def of(subject: str, documents: list[Document]) -> list[Document]:
    return [document | {"subject": subject} for document in documents]


def forgotten(stack: Miniature, person: Person, **options: Any) -> Forgotten:
    options = {"calendar": stack.calendar, "late_after_ms": HOUR} | options
    return forget(RawLog(stack.client, stack.topic), person, **options)


def raw_rows(stack: Miniature, columns: str) -> list[tuple[Any, ...]]:
    """What a reader sees of the raw log, in order of arrival."""
    rows = stack.client.query(
        f"SELECT {columns} FROM activity FINAL WHERE entitlement IN {{e:Array(String)}} AND source != {{restate:String}} "
        "ORDER BY entitlement, epoch, offset, element",
        parameters={"e": sorted(stack.entitlements), "restate": RESTATE_SOURCE},
    )
    return list(rows.result_rows)


def numbers(stack: Miniature) -> list[Any]:
    """All that is told of the entitlements, but who it was."""
    found: list[Any] = [
        raw_rows(
            stack,
            "entitlement, element, time, source, id, type, customer, product, credential, quantity, lease_expires_at, epoch, "
            "offset, appended_at, t, late, delta, level, limit, hard_limit, terms_known, state",
        )
    ]
    for entitlement in sorted(stack.entitlements):
        for query in (
            "SELECT * FROM usage(entitlement = {e:String}, element = '', last_day = '2026-03-25', days = 30, "
            "at = fromUnixTimestamp64Milli({at:Int64})) ORDER BY element, day",
            "SELECT * FROM live_levels WHERE entitlement = {e:String} ORDER BY element",
            "SELECT * FROM alerts FINAL WHERE entitlement = {e:String} ORDER BY element, at, id",
            "SELECT * EXCEPT version FROM terms FINAL WHERE entitlement = {e:String} ORDER BY element, time, id",
        ):
            found.append(stack.client.query(query, parameters={"e": entitlement, "at": stack.now_ms}).result_rows)
    return found


def tables_with(stack: Miniature, text: str) -> list[str]:
    """The columns of all tables in which a text is, in rows that were replaced too."""
    tables = stack.client.query(
        "SELECT table, groupArray(name) FROM system.columns WHERE database = currentDatabase() AND type LIKE '%String%' "
        "AND table IN (SELECT name FROM system.tables WHERE database = currentDatabase() AND engine LIKE '%MergeTree') "
        "GROUP BY table"
    ).result_rows
    assert "event" in dict(tables)["activity"]
    found = stack.client.query(
        " UNION ALL ".join(
            f"SELECT arrayJoin(groupUniqArrayArray([{', '.join(has(table, column) for column in columns)}])) FROM {table}"
            for table, columns in tables
        ),
        parameters={"text": text},
    )
    return sorted(row[0] for row in found.result_rows if row[0])


def has(table: str, column: str) -> str:
    """In SQL: the name of a column if a text is in it."""
    return f"if(position(toString(`{column}`), {{text:String}}) > 0, '{table}.{column}', '')"


def audit_is_clean(stack: Miniature) -> bool:
    auditor = Auditor(RawLog(stack.client, stack.topic), calendar=stack.calendar, late_after_ms=HOUR)
    found = [auditor.run(stack.now_ms, entitlement=entitlement, wait=lambda: None) for entitlement in stack.entitlements]
    return not [difference for findings in found for difference in findings.differences]


def a_session(name: str) -> list[Document]:
    """Ann on a seat of her name, with all that events may tell of her; Bob beside her. Both have gone when the day ends."""
    of_ann = {"user": name, "host": "anns-laptop", "ip": "203.0.113.7", "reason": f"asked by {name}", "phone": "555-0100"}
    return [
        limited("20T00:00", 1, "absolute", 1),
        activated(f"{name}/1", "20T09:00", credential="user", lease="20T23:00", **of_ann),
        activated("wks-2", "20T10:00", user="bob", host="wks-2", badge=7),
        denied("20T10:30", seat_id="wks-3", user="bob", host="wks-3", note=f"waits for {name}"),
        deactivated("wks-2", "20T11:00", user="bob"),
        deactivated(f"{name}/1", "20T12:00", host="anns-laptop"),
        activated("wks-2", "25T09:00", user="bob"),
    ]


def test_a_person_is_replaced_and_nothing_else_changes(stack: Miniature, subject: str, name: str) -> None:
    stack.arrive(of(subject, a_session(name)))
    stack.settle()
    before = numbers(stack)
    assert {"activity.user", "activity.event", "activity.seat_id", "activity.reason"} <= set(tables_with(stack, name))

    planned = forgotten(stack, Person(name), dry_run=True)
    assert {"activity.user", "activity.event", "activity.seat_id", "activity.reason"} <= set(tables_with(stack, name))
    done = forgotten(stack, Person(name))

    assert done == planned
    # Ann's two events, and the note about her.
    assert (done.elements, done.rows, done.seats, done.kept_seats, done.ids) == (1, 3, 1, {}, 0)
    assert tables_with(stack, name) == []
    assert numbers(stack) == before
    assert audit_is_clean(stack)
    rows = raw_rows(stack, "seat_id, user, host, ip, reason")
    user, seat = rows[1][1], rows[1][0]
    assert user.startswith("forgotten-")
    assert seat.startswith("forgotten-")
    assert user != seat
    assert rows == [
        (None, None, None, None, None),
        (seat, user, None, None, None),
        ("wks-2", "bob", "wks-2", None, None),
        ("wks-3", "bob", "wks-3", None, None),
        ("wks-2", "bob", None, None, None),
        (seat, None, None, None, None),
        ("wks-2", "bob", None, None, None),
    ]
    events = [orjson.loads(row[0])["data"] for row in raw_rows(stack, "event")]
    assert events[1] == {"seat_id": seat, "user": user, "credential": "user", "lease_expires_at": "2026-03-20T23:00:00Z"}
    assert events[2]["badge"] == 7
    assert events[3] == {"seat_id": "wks-3", "user": "bob", "host": "wks-3"}
    assert forgotten(stack, Person(name)) == Forgotten()


def test_what_a_restatement_writes_afterwards_does_not_name_the_person(stack: Miniature, subject: str, name: str) -> None:
    stack.arrive(of(subject, a_session(name)))
    stack.settle()
    forgotten(stack, Person(name))
    # On the day of Ann's session: her rows get other levels.
    stack.arrive(of(subject, [activated("late", "20T08:00"), deactivated("late", "20T12:30")]))
    stack.settle()
    assert [row[0] for row in raw_rows(stack, "level")] == [0, 2, 3, 3, 2, 1, 1, 1, 0]
    assert tables_with(stack, name) == []
    assert audit_is_clean(stack)
    # Back again, the person is a new one, and counts once.
    stack.arrive(of(subject, [activated(f"{name}/1", "25T10:00", user=name)]))
    stack.settle()
    assert [row[0] for row in raw_rows(stack, "level")][-1] == 2
    assert audit_is_clean(stack)


def test_rows_that_the_sink_delivers_again_do_not_bring_the_person_back(stack: Miniature, subject: str, name: str) -> None:
    stack.arrive(of(subject, a_session(name)))
    stack.work()
    delivered = list(stack.unsunk)
    stack.settle()
    before = numbers(stack)
    forgotten(stack, Person(name))
    batch = Batch()
    for topic, record in delivered:
        batch.add(record, topic)  # type: ignore[arg-type]
    for insert in batch.inserts():
        stack.client.insert_arrow(insert.table, insert.rows, settings={"insert_deduplicate": 0})
    assert numbers(stack) == before
    assert not [row for row in raw_rows(stack, "user, seat_id, event") if name in str(row)]
    # They are on the disk until ClickHouse merges them, or somebody is forgotten again.
    assert "activity.user" in tables_with(stack, name)
    assert forgotten(stack, Person(name)).rows == 0
    assert tables_with(stack, name) == []


def test_the_id_of_a_seat_that_somebody_still_needs_stays(stack: Miniature, subject: str, name: str) -> None:
    stack.arrive(of(subject, [activated(name, "25T09:00", user=name), activated("wks-1", "25T09:01", user="bob")]))
    stack.settle()
    done = forgotten(stack, Person(name))
    assert (done.rows, done.seats, done.kept_seats) == (1, 0, {"in use": 1})
    assert [row for row in raw_rows(stack, "user, seat_id") if name in row] == [(raw_rows(stack, "user")[0][0], name)]

    stack.arrive(of(subject, [deactivated(name, "25T10:00", user=name)]))
    stack.settle()
    done = forgotten(stack, Person(name))
    assert (done.rows, done.seats, done.kept_seats) == (1, 0, {"given back, and the worker still remembers it": 1})

    # An hour later the worker does not any more.
    stack.arrive(of(subject, [deactivated("wks-1", "25T11:30")]))
    stack.settle()
    before = numbers(stack)
    done = forgotten(stack, Person(name))
    assert (done.rows, done.seats, done.kept_seats) == (2, 1, {})
    assert tables_with(stack, name) == []
    assert numbers(stack) == before
    assert audit_is_clean(stack)


def test_where_the_state_is_made_anew_only_seats_in_use_stay(stack: Miniature, subject: str, name: str) -> None:
    stack.arrive(of(subject, [activated(name, "25T09:00", user=name), deactivated(name, "25T10:00"),
                              checked_out(name, "25T09:00", user=name)]))  # fmt: skip
    stack.settle()
    done = forgotten(stack, Person(name), state_is_made_anew=True)
    assert (done.elements, done.rows, done.seats, done.kept_seats) == (2, 3, 1, {"in use": 1})


def test_a_run_that_was_ended_must_be_made_again_before_anything_else(
    stack: Miniature, subject: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the rows have the new seat id: to a fold that hold was never closed."""
    stack.arrive(of(subject, a_session(name)))
    stack.settle()
    before = numbers(stack)
    log = RawLog(stack.client, stack.topic)
    checkpoints = "SELECT state FROM exact_states WHERE entitlement = {e:String}"
    stack.client.insert("exact_states", [[subject, "seats", name]], column_names=["entitlement", "element", "state"])
    written: list[Any] = []

    class Killed(Exception):
        pass

    def insert(table: str, rows: Any) -> None:
        if written:
            raise Killed
        written.append(rows)
        RawLog.insert(log, table, rows)

    monkeypatch.setattr(forgetting, "_FLUSH_ROWS", 1)
    monkeypatch.setattr(log, "insert", insert)
    arguments: Any = {"calendar": stack.calendar, "late_after_ms": HOUR}
    with pytest.raises(Killed):
        forget(log, Person(name), **arguments)
    assert not audit_is_clean(stack)
    # A fold from a state with the old seat id would be wrong for good.
    assert stack.client.query(checkpoints, parameters={"e": subject}).result_rows == []
    with pytest.raises(HalfForgotten, match=r"If `seatmark forget` does not run any more, .* again with the same options"):
        open_raw_log(stack.client, stack.topic)
    with pytest.raises(OthersFirst):
        forgotten(stack, Person("bob"))

    # Of Ann's two events the second, and the note about her.
    assert forgotten(stack, Person(name)).rows == 2
    open_raw_log(stack.client, stack.topic)
    assert numbers(stack) == before
    assert audit_is_clean(stack)
    assert tables_with(stack, name) == []
    [_, seat] = raw_rows(stack, "user, seat_id")[1]
    assert raw_rows(stack, "seat_id")[5] == (seat,)
    assert stack.client.query("SELECT * FROM settings WHERE name = 'forgetting'").result_rows == []


def test_a_seat_in_a_very_large_event_stays(stack: Miniature, subject: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forgetting, "_LARGE_BYTES", 400)
    large = deactivated(name, "20T10:00", note="x" * 400)
    stack.arrive(of(subject, [activated(name, "20T09:00", user=name), large, deactivated("b", "25T09:00")]))
    stack.settle()
    done = forgotten(stack, Person(name))
    # Of the large one only the note goes.
    assert (done.rows, done.kept_seats) == (1, {"in an event that is too large to be written anew": 1})
    assert [row[0] == name for row in raw_rows(stack, "seat_id")] == [True, True, False]
    assert audit_is_clean(stack)


def test_seats_of_an_element_that_waits_for_a_correction_stay(stack: Miniature, subject: str, name: str) -> None:
    """Live her seat is in use, exactly it is not: the correction will name it."""
    documents = [activated(name, "24T09:00", user=name), activated("b", "24T12:00"), deactivated(name, "24T10:00"),
                 deactivated("b", "24T23:00")]  # fmt: skip
    stack.arrive(of(subject, documents))
    stack.work()
    stack.sink()
    done = forgotten(stack, Person(name))
    assert (done.seats, done.kept_seats) == (0, {"of an element that waits for a correction": 1})
    stack.settle()
    assert audit_is_clean(stack)
    assert stack.ledger.elements[subject, "seats"].head.level == 0
    assert forgotten(stack, Person(name)).seats == 1
    # The correction had the seat in it too.
    assert tables_with(stack, name) == []


def test_only_an_entitlement_or_a_customer(stack: Miniature, subject: str, name: str) -> None:
    customer = f"cus-{uuid.uuid4().hex}"
    for number in range(3):
        owner = customer if number else "another"
        session = [activated("s", "20T09:00", user=name, customer=owner), deactivated("s", "20T10:00", customer=owner)]
        stack.arrive(of(f"{subject}-{number}", session))
    stack.settle()
    assert forgotten(stack, Person(name), entitlement=f"{subject}-1").rows == 1
    assert forgotten(stack, Person(name), customer=customer).rows == 1
    assert [row[0] == name for row in raw_rows(stack, "user") if row[0]] == [True, False, False]


@pytest.mark.parametrize("user", ["DOMÄNE\\müller", 'the "boss"', "o'hara (temp)"])
def test_names_that_json_writes_otherwise(stack: Miniature, subject: str, user: str) -> None:
    mark = uuid.uuid4().hex
    stack.arrive(
        of(subject, [denied("20T09:00", user="bob", note=f"by {user}{mark}"), denied("20T10:00", user=f"{user}{mark}")])
    )
    # As a producer that writes ASCII only.
    stack.log[0].value = json.dumps(orjson.loads(stack.log[0].value)).encode()
    stack.settle()
    assert forgotten(stack, Person(f"{user}{mark}")).rows == 2
    assert tables_with(stack, mark) == []


def test_a_name_within_another_one_is_somebody_else(stack: Miniature, subject: str) -> None:
    ann = f"ann{uuid.uuid4().hex}"
    stack.arrive(of(subject, [activated(f"jo{ann}", "20T09:00", user=f"jo{ann}", note="x"), deactivated(f"jo{ann}", "20T10:00"),
                              denied("20T11:00", user=ann), denied("20T12:00", id=f"{ann}-1", user=ann)]))  # fmt: skip
    stack.settle()
    done = forgotten(stack, Person(ann))
    # What tells repeats stays, and is told.
    assert (done.rows, done.seats, done.ids) == (2, 0, 1)
    assert raw_rows(stack, "user")[0] == (f"jo{ann}",)


def test_a_vendor_with_repeats_and_late_events_keeps_every_number(stack: Miniature) -> None:
    """Each user has a seat; two of them are forgotten, one by a seat id that does not say who it is."""
    mark = uuid.uuid4().hex
    documents = arrivals(7, events=300, entitlements=2, until_ms=NOW - HOUR)
    # A repeat is the same one once more.
    for document in {id(document): document for document in documents}.values():
        document["subject"] = f"{mark}-{document['subject']}"
        data = document["data"]
        if "seat_id" in data:
            data |= {"seat_id": f"{data['seat_id']}-{mark}", "user": f"user-{data['seat_id']}-{mark}", "host": mark}
        for hold in data.get("holds", []):
            hold["seat_id"] = f"{hold['seat_id']}-{mark}"
    stack.arrive(documents)
    # The two go, and an hour later nobody remembers their seats.
    for entitlement in sorted(stack.entitlements):
        for n in (0, 3):
            seat = f"seat-{n}-{mark}"
            stack.arrive(of(entitlement, [deactivated(seat, "25T11:00"), returned(seat, "25T11:00")]))
        stack.arrive(of(entitlement, [deactivated("last", "25T12:01"), returned("last", "25T12:01")]))
    stack.settle()
    before = numbers(stack)

    done = [forgotten(stack, Person(f"user-seat-{n}-{mark}", [f"seat-{n}-{mark}"])) for n in (0, 3)]
    assert [(of_one.seats, of_one.kept_seats) for of_one in done] == [(1, {}), (1, {})]
    assert numbers(stack) == before
    assert audit_is_clean(stack)

    # Days are restated once more, from the first event on.
    late = [activated(f"late-{mark}", "20T08:00"), deactivated(f"late-{mark}", "21T08:00")]
    for entitlement in sorted(stack.entitlements):
        stack.arrive(of(entitlement, [document | {"id": f"{document['id']}-{entitlement}"} for document in late]))
    stack.settle(passes=10)
    assert audit_is_clean(stack)
    names = [f"seat-{n}-{mark}" for n in (0, 3)]
    assert not [row for row in raw_rows(stack, "user, seat_id, event") if any(name in str(row) for name in names)]


def test_personal_data_goes_out_of_old_rows(stack: Miniature, subject: str, name: str) -> None:
    held = snapshot("2026-01-31T23:59", {})
    held["data"]["holds"] = [{"seat_id": "c", "quantity": 1, "user": name}]
    old = [
        limited("2026-01-10T00:00", 2),
        activated("a", "2026-01-10T09:00", user=name, host="h", ip="2001:db8::1", reason="r", phone=name),
        held,
        denied("2026-02-01T00:00", user=name),
    ]
    stack.arrive(of(subject, old))
    stack.settle()
    before = numbers(stack)

    def removed(day: str) -> int:
        log = RawLog(stack.client, stack.topic)
        return remove_expired(log, date.fromisoformat(day), owns=stack.entitlements.__contains__).rows

    # A month goes as a whole, when it is over.
    assert removed("2026-01-31") == 0
    assert removed("2026-02-28") == 3
    assert numbers(stack) == before
    assert audit_is_clean(stack)
    assert raw_rows(stack, "seat_id, user, host, ip, reason") == [
        (None, None, None, None, None),
        ("a", None, None, None, None),
        (None, None, None, None, None),
        (None, name, None, None, None),
    ]
    assert [name in row[0] for row in raw_rows(stack, "event")] == [False, False, False, True]
    on_disk = "SELECT count() FROM activity WHERE entitlement = {e:String} AND position(event, {name:String}) > 0"
    assert stack.client.query(on_disk, parameters={"e": subject, "name": name}).result_rows == [(1,)]
    assert removed("2026-02-28") == 0

    # An old log that comes afterwards, and a restatement of what is there.
    stack.arrive(of(subject, [activated("b", "2026-01-11T00:00", user=name), deactivated("b", "2026-01-11T10:00", user=name)]))
    stack.settle()
    assert removed("2026-02-28") == 2
    assert removed("2026-03-01") == 1
    assert tables_with(stack, name) == []
    assert audit_is_clean(stack)


def test_a_removal_that_was_ended_half_way_is_finished_by_the_next(stack: Miniature, subject: str, name: str) -> None:
    stack.arrive(of(subject, [denied("2026-01-10T00:00", user=name)]))
    stack.settle()

    class Ended(Exception):
        pass

    def end(done: int, total: int) -> None:
        raise Ended

    log = RawLog(stack.client, stack.topic)
    with pytest.raises(Ended):
        remove_expired(log, date(2026, 2, 1), owns=stack.entitlements.__contains__, on_progress=end)
    assert "activity.user" in tables_with(stack, name)
    assert remove_expired(log, date(2026, 2, 1), owns=stack.entitlements.__contains__).rows == 0
    assert tables_with(stack, name) == []


def test_addresses_are_truncated_before_anything_is_stored(database_in: Callable[[str], str], subject: str) -> None:
    client = connect(database_in("UTC"))
    stack = Miniature(client, now_ms=NOW, truncate_ips=True)
    v4, v6 = "198.51.100.77", "2001:db8:77:88::99"
    documents = of(subject, [
        activated("a", "25T09:00", ip=v4, user="ann", n=1.50),
        activated("b", "25T10:00", ip=v6),
        activated("c", "25T10:01", ip=f"{v4}:5555"),
        activated("d", "25T10:02"),
    ])  # fmt: skip
    stack.arrive([*documents, documents[0]])
    stack.settle()
    assert raw_rows(stack, "ip, level") == [("198.51.100.0", 1), ("2001:db8:77::", 2), (None, 3), (None, 4)]
    assert orjson.loads(raw_rows(stack, "event")[0][0]) == documents[0] | {
        "data": {**documents[0]["data"], "ip": "198.51.100.0"}
    }
    assert (tables_with(stack, v4), tables_with(stack, v6)) == ([], [])
    assert audit_is_clean(stack)
    client.close()
