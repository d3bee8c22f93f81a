"""What the sink writes is what is read: every column, repeats, and the tables that views fill."""

import json
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from clickhouse_connect.driver.client import Client

from processors.domain.ledger import position_of
from processors.sink import INSERT_SETTINGS, Progress, days_table, progress_table
from schemas.activity import ActivityRow, decode_activity, encode_activity
from schemas.alerts import Alert, AlertData, Cause
from schemas.days import DayMark, DayRow, Settled
from schemas.events import format_time
from views.migrate import migrate
from views.raw_log import RawLog
from views.store import connect

pytestmark = pytest.mark.both_ways

Put = Callable[..., None]
DayRows = Callable[..., DayRow]
ActivityRows = Callable[..., ActivityRow]

MS_2026 = 1_790_000_000_123
FAR = 253_402_300_799_999  # the last millisecond of the year 9999, which a lease may name


def rows_of(client: Client, query: str, entitlement: str) -> list[dict[str, Any]]:
    result = client.query(query, parameters={"entitlement": entitlement})
    return list(result.named_results())


def in_ms(value: Any) -> Any:
    """Instants as ms since 1970, dates as text, as the contract has them."""
    if isinstance(value, datetime):
        since = value.replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)
        return round(since.total_seconds() * 1000)
    return value.isoformat() if isinstance(value, date) else value


@pytest.mark.parametrize("full", [True, False])
def test_an_activity_row_comes_back_as_it_was(
    client: Client, put: Put, activity_row: ActivityRows, entitlement: str, full: bool
) -> None:
    optional = {
        "customer": "Ärzte & Söhne", "product": "cad-pro", "seat_id": "wks\t12", "user": "ann@example.com", "ip": "2001:db8::7",
        "host": "wks-12", "credential": "user", "quantity": 1_000_000_000, "lease_expires_at": FAR, "reason": "limit",
        "limit": 2**62, "hard_limit": 2**63 - 1,
    }  # fmt: skip
    row = activity_row(
        time=MS_2026, epoch=2**32 - 1, partition=2**31 - 1, offset=2**47, version=2**63, late=True, delta=-(2**62), level=2**62,
        state="over_hard_limit", event='{"é":"\\u0000"}'.encode(),
        **(optional if full else dict.fromkeys(optional)),
    )  # fmt: skip
    put(client, row)
    # Read as integers: Python's datetime would do, but not keep a millisecond of the year 9999 exactly.
    [stored] = rows_of(
        client,
        "SELECT * REPLACE (toUnixTimestamp64Milli(time) AS time, toUnixTimestamp64Milli(appended_at) AS appended_at, "
        "toUnixTimestamp64Milli(t) AS t, toUnixTimestamp64Milli(lease_expires_at) AS lease_expires_at) "
        "FROM activity WHERE entitlement = {entitlement:String}",
        entitlement,
    )
    assert stored | {"event": stored["event"].encode()} == row._asdict()


@pytest.mark.parametrize("full", [True, False])
def test_a_day_row_comes_back_as_it_was(client: Client, put: Put, day_row: DayRows, entitlement: str, full: bool) -> None:
    optional = {
        "customer": "cus-9", "product": "cad-pro", "name": "CAD", "limit": 10, "hard_limit": 12, "closing_limit": 11,
        "closing_hard_limit": 13, "state": "overdraft", "entered_at": MS_2026, "peak": 17,
    }  # fmt: skip
    row = day_row(
        "2026-10-25", "Europe/Paris", as_of_hours=1.5, opening=1, closing=2**62, min=0, max=2**63 - 1, terms_known=True,
        overdraft_ms=90_000_000, unit_ms=10**30 + 1, peak_overage=5, activations=6, deactivations=7, refreshes=8,
        denials=9, units_used=10**15, closing_terms_known=True, position=2**62 + 7,
        **(optional if full else dict.fromkeys(optional) | {"state": "within"}),
    )  # fmt: skip
    put(client, row)
    [stored] = rows_of(client, "SELECT *, version FROM days FINAL WHERE entitlement = {entitlement:String}", entitlement)
    assert stored.pop("restated") is False
    assert stored.pop("version") == 2 * (2**62 + 7)
    assert {name: in_ms(value) for name, value in stored.items()} == msgspec.structs.asdict(row)


def alert(entitlement: str, **fields: Any) -> Alert:
    data: dict[str, Any] = {
        "entitlement": entitlement, "element": "seats", "from_state": "overdraft", "to_state": "within", "level": 3,
        "limit": 5, "hard_limit": None, "overage": 0, "cause": Cause("/license-servers/eu-1", "id-1", "seat.deactivated"),
        "at": format_time(MS_2026),
    }  # fmt: skip
    return Alert(
        id="alert-1", source="/seatmark/worker", type="overdraft.left", subject=entitlement, time=format_time(MS_2026 + 1),
        data=AlertData(**data | fields),
    )  # fmt: skip


@pytest.mark.parametrize("full", [True, False])
def test_an_alert_comes_back_as_it_was(client: Client, put: Put, entitlement: str, full: bool) -> None:
    optional = {
        "customer": "cus-9", "product": "cad-pro", "entered_at": format_time(MS_2026 - 1500), "duration_seconds": 1.5,
        "peak": 8, "peak_overage": 3, "hard_limit": 9,
    }  # fmt: skip
    sent = alert(entitlement, **(optional if full else {}))
    put(client, sent)
    [stored] = rows_of(client, "SELECT * FROM alerts WHERE entitlement = {entitlement:String}", entitlement)
    data = sent.data
    assert {name: in_ms(value) for name, value in stored.items()} == {
        "entitlement": entitlement, "element": "seats", "at": MS_2026, "id": "alert-1", "source": "/seatmark/worker",
        "type": "overdraft.left", "time": MS_2026 + 1, "customer": data.customer, "product": data.product,
        "from_state": "overdraft", "to_state": "within", "level": 3, "limit": 5, "hard_limit": data.hard_limit, "overage": 0,
        "cause_source": "/license-servers/eu-1", "cause_id": "id-1", "cause_type": "seat.deactivated",
        "entered_at": MS_2026 - 1500 if full else None, "duration_seconds": Decimal("1.500") if full else None,
        "peak": data.peak, "peak_overage": data.peak_overage,
    }  # fmt: skip


def test_a_mark_comes_back_as_it_was_and_the_latest_of_a_range_stays(client: Client, put: Put, entitlement: str) -> None:
    for position, since in ((7, 3), (9, 0), (8, 3)):
        put(
            client,
            DayMark(
                entitlement=entitlement, element="seats", first_day="2026-11-20", last_day="2026-11-21", timezone="UTC",
                position=position, since=since,
            ),
        )  # fmt: skip
    stored = rows_of(client, "SELECT * FROM marks FINAL WHERE entitlement = {entitlement:String}", entitlement)
    assert stored == [
        {"entitlement": entitlement, "element": "seats", "first_day": date(2026, 11, 20), "last_day": date(2026, 11, 21),
         "position": 9, "since": 0}
    ]  # fmt: skip


def test_the_latest_settled_position_of_an_element_stays(client: Client, put: Put, entitlement: str) -> None:
    for position in (7, 2**62, 8):
        put(client, Settled(entitlement=entitlement, element="seats", position=position))
    put(client, Settled(entitlement=entitlement, element="render", position=3))
    stored = rows_of(
        client, "SELECT * FROM settled FINAL WHERE entitlement = {entitlement:String} ORDER BY element", entitlement
    )
    assert stored == [
        {"entitlement": entitlement, "element": "render", "position": 3},
        {"entitlement": entitlement, "element": "seats", "position": 2**62},
    ]


def test_the_highest_progress_of_a_partition_stays_whatever_the_order(client: Client, entitlement: str) -> None:
    """The test's entitlement names the topic, so that no other test has it."""
    for partition, epoch, offset in ((0, 1, 900), (0, 2, 5), (0, 2, 4), (0, 1, 901), (1, 2**15 - 1, 2**48 - 1)):
        reached = Progress(entitlement, partition, epoch, offset, f"incarnation-{epoch}")
        client.insert_arrow("progress", progress_table([reached]))
    stored = rows_of(
        client,
        "SELECT partition, epoch, offset, incarnation, position FROM progress FINAL "
        "WHERE topic = {entitlement:String} ORDER BY partition",
        entitlement,
    )
    assert stored == [
        {"partition": 0, "epoch": 2, "offset": 5, "incarnation": "incarnation-2", "position": position_of(2, 5)},
        {
            "partition": 1, "epoch": 2**15 - 1, "offset": 2**48 - 1, "incarnation": f"incarnation-{2**15 - 1}",
            "position": position_of(2**15 - 1, 2**48 - 1),
        },
    ]  # fmt: skip


def test_the_latest_restatement_of_an_element_stays(client: Client, entitlement: str) -> None:
    written_at = [datetime(2026, 11, 24, 10, minute, tzinfo=UTC) for minute in (0, 2, 1)]
    for position, through, at in zip((9, 9, 7), (20, 22, 23), written_at, strict=True):
        rows = {
            "entitlement": [entitlement], "element": ["seats"], "position": pa.array([position], pa.uint64()),
            "through": pa.array([date(2026, 11, through)], pa.date32()), "written_at": [at],
        }  # fmt: skip
        client.insert_arrow("restatements", pa.table(rows))
    query = "SELECT position, through FROM restatements FINAL WHERE entitlement = {entitlement:String}"
    assert rows_of(client, query, entitlement) == [{"position": 9, "through": date(2026, 11, 22)}]


def test_of_an_exact_state_the_one_of_more_events_stays_and_old_ones_go(client: Client, entitlement: str) -> None:
    """Old is what was written long ago: an import of an old log has states of old days."""
    [now] = client.query("SELECT now()").first_row
    for day, position, days_ago in ((20, 8, 3), (20, 9, 2), (20, 7, 1), (21, 5, 39), (22, 5, 41)):
        rows = {
            "entitlement": [entitlement], "element": ["seats"], "day": pa.array([date(2016, 11, day)], pa.date32()),
            "position": pa.array([position], pa.uint64()), "state": [f"state-{position}"],
            "written_at": [now.replace(tzinfo=UTC) - timedelta(days=days_ago)],
        }  # fmt: skip
        client.insert_arrow("exact_states", pa.table(rows))
    # Merges happen sooner or later; this is one.
    client.command("OPTIMIZE TABLE exact_states FINAL")
    query = "SELECT day, position, state FROM exact_states WHERE entitlement = {entitlement:String} ORDER BY day"
    assert rows_of(client, query, entitlement) == [
        {"day": date(2016, 11, 20), "position": 9, "state": "state-9"},
        {"day": date(2016, 11, 21), "position": 5, "state": "state-5"},
    ]


def test_a_repeated_insert_with_the_same_token_is_dropped_everywhere(
    client: Client, activity_row: ActivityRows, entitlement: str
) -> None:
    """Counted without FINAL: nothing but the token keeps the rows apart."""
    rows = [activity_row(id=f"id-{n}", offset=n, type="entitlement.changed") for n in range(10)]
    table = decode_activity(encode_activity(rows))
    counts = []
    for token in ("first", "first", "second"):
        client.insert_arrow(
            "activity",
            table,
            settings=INSERT_SETTINGS | {"insert_deduplication_token": f"{entitlement} {token}"},
        )
        [count] = rows_of(
            client,
            "SELECT (SELECT count() FROM activity WHERE entitlement = {entitlement:String}) AS activity, "
            "(SELECT count() FROM terms WHERE entitlement = {entitlement:String}) AS terms",
            entitlement,
        )
        counts.append((count["activity"], count["terms"]))
    assert counts == [(10, 10), (10, 10), (20, 20)]


def test_rows_that_come_again_in_other_batches_count_once(
    client: Client, put: Put, activity_row: ActivityRows, entitlement: str
) -> None:
    rows = [activity_row(id=f"id-{n}", offset=n, time=MS_2026 + n) for n in range(10)]
    put(client, *rows[:4])
    put(client, *rows[4:])
    put(client, *rows[:7])
    put(client, *rows[2:])
    [stored] = rows_of(
        client, "SELECT count() AS n, sum(delta) AS d FROM activity FINAL WHERE entitlement = {entitlement:String}", entitlement
    )
    assert stored == {"n": 10, "d": 10}


def test_the_row_with_an_effect_stays_whichever_comes_last(
    client: Client, put: Put, activity_row: ActivityRows, entitlement: str
) -> None:
    put(client, activity_row(version=1, level=4))
    put(client, activity_row(version=0, level=9, late=True))
    query = "SELECT level FROM activity FINAL WHERE entitlement = {entitlement:String}"
    assert rows_of(client, query, entitlement) == [{"level": 4}]
    put(client, activity_row(version=2, level=3))
    assert rows_of(client, query, entitlement) == [{"level": 3}]


def test_of_the_arrivals_of_an_event_the_first_stays_whichever_is_stored_last(
    client: Client, put: Put, activity_row: ActivityRows, entitlement: str
) -> None:
    """With an effect or without: of rows that are alike in this, the one with the lowest position. Read, and after a merge."""
    first, second, next_epoch = ({"epoch": 1, "offset": 7}, {"epoch": 1, "offset": 2**48 - 1}, {"epoch": 2, "offset": 0})
    orders = [(first, second, next_epoch), (next_epoch, first, second), (second, next_epoch, first)]
    for version in (0, 1):
        for number, order in enumerate(orders):
            for arrival in order:
                put(client, activity_row(id=f"{version}-{number}", version=version, **arrival))
    query = "SELECT id, epoch, offset FROM activity {} WHERE entitlement = {{entitlement:String}} ORDER BY id"
    stored = [{"id": f"{version}-{number}"} | first for version in (0, 1) for number in range(3)]
    assert rows_of(client, query.format("FINAL"), entitlement) == stored
    client.command("OPTIMIZE TABLE activity FINAL")
    assert rows_of(client, query.format(""), entitlement) == stored


def test_a_row_with_an_effect_stays_before_an_earlier_one_without(
    client: Client, put: Put, activity_row: ActivityRows, entitlement: str
) -> None:
    """What the level came from is not hidden by an arrival that did nothing."""
    put(client, activity_row(version=1, offset=9))
    put(client, activity_row(version=0, offset=7))
    put(client, activity_row(version=0, offset=8))
    put(client, activity_row(version=1, offset=10))
    query = "SELECT version, offset FROM activity FINAL WHERE entitlement = {entitlement:String}"
    assert rows_of(client, query, entitlement) == [{"version": 1, "offset": 9}]


def test_a_restated_row_stays_before_all_others_and_the_latest_of_them(
    client: Client, put: Put, activity_row: ActivityRows, entitlement: str
) -> None:
    put(client, activity_row(version=position_of(2, 0) + 2, offset=7, level=3))
    put(client, activity_row(version=position_of(1, 2**48 - 1) + 2, offset=7, level=2))
    # Positions below that of the restated row.
    put(client, activity_row(version=1, offset=6, level=1))
    put(client, activity_row(version=0, offset=5, level=0))
    query = "SELECT offset, level FROM activity FINAL WHERE entitlement = {entitlement:String}"
    assert rows_of(client, query, entitlement) == [{"offset": 7, "level": 3}]
    # Restated at the lowest position that there can be.
    put(client, activity_row(id="lowest", version=2, offset=0, level=1))
    put(client, activity_row(id="lowest", version=1, epoch=0, offset=0, level=9))
    assert rows_of(client, query + " AND id = 'lowest'", entitlement) == [{"offset": 0, "level": 1}]


def test_a_position_that_is_too_high_to_be_ranked_is_below_all_others(
    client: Client, put: Put, activity_row: ActivityRows, entitlement: str
) -> None:
    """From 16,384 epochs on. It must not look like a row of another kind."""
    query = "SELECT epoch, version FROM activity FINAL WHERE entitlement = {entitlement:String} AND id = 'a'"
    put(client, activity_row(id="a", version=1, epoch=2**14 - 2))
    put(client, activity_row(id="a", version=1, epoch=2**14))
    assert rows_of(client, query, entitlement) == [{"epoch": 2**14 - 2, "version": 1}]
    put(client, activity_row(id="b", version=1, epoch=2**32 - 1))
    put(client, activity_row(id="b", version=0, epoch=1))
    assert rows_of(client, query.replace("'a'", "'b'"), entitlement) == [{"epoch": 2**32 - 1, "version": 1}]


def test_of_the_arrivals_of_terms_the_first_is_shown(
    client: Client, put: Put, activity_row: ActivityRows, entitlement: str
) -> None:
    def arrival(offset: int, limit: int, version: int) -> ActivityRow:
        event = json.dumps({"data": {"elements": {"seats": {"limit": limit}}}}).encode()
        return activity_row(type="entitlement.changed", offset=offset, version=version, event=event)

    query = "SELECT offset, `limit` FROM terms FINAL WHERE entitlement = {entitlement:String}"
    put(client, arrival(offset=9, limit=3, version=0))
    put(client, arrival(offset=8, limit=2, version=0))
    put(client, arrival(offset=10, limit=4, version=0))
    assert rows_of(client, query, entitlement) == [{"offset": 8, "limit": 2}]
    put(client, arrival(offset=12, limit=6, version=1))
    put(client, arrival(offset=13, limit=7, version=1))
    assert rows_of(client, query, entitlement) == [{"offset": 12, "limit": 6}]
    put(client, arrival(offset=12, limit=6, version=position_of(1, 13) + 2))
    put(client, arrival(offset=11, limit=5, version=1))
    assert rows_of(client, query, entitlement) == [{"offset": 12, "limit": 6}]


@pytest.mark.parametrize("new_database", ["chdb"], indirect=True)
def test_an_epoch_counts_although_only_repeats_came_in_it(
    new_database: Callable[[], str], put: Put, activity_row: ActivityRows
) -> None:
    """Their rows make way for those of the first arrivals. What comes next must still have positions of its own."""
    dsn = new_database()
    migrate(dsn, "UTC")
    client = connect(dsn)
    assert RawLog(client, "entitlement-events").highest_epoch() == 0
    put(client, activity_row(epoch=2, offset=7))
    put(client, activity_row(epoch=3, offset=0))
    client.insert_arrow("progress", progress_table([Progress("entitlement-events", 0, 3, 0, "incarnation-3")]))
    client.command("OPTIMIZE TABLE activity FINAL")
    assert client.query("SELECT epoch FROM activity").result_rows == [(2,)]
    assert RawLog(client, "entitlement-events").highest_epoch() == 3
    client.close()


def test_a_repeat_with_another_time_shows_once_in_the_history(
    client: Client, put: Put, activity_row: ActivityRows, entitlement: str
) -> None:
    put(
        client,
        activity_row(id="a", time=MS_2026 + 3, epoch=2, offset=1),
        activity_row(id="a", time=MS_2026 + 2, epoch=1, offset=9),
        activity_row(id="a", time=MS_2026 + 1, epoch=1, offset=10),
        activity_row(id="a", element="render", time=MS_2026, epoch=3, offset=5),
        activity_row(id="a", source="/license-servers/eu-2", time=MS_2026 + 5, epoch=3, offset=6),
        activity_row(id="b", time=MS_2026 + 4, epoch=3, offset=7),
    )
    history = rows_of(
        client,
        "SELECT element, id, epoch, offset FROM activity_history WHERE entitlement = {entitlement:String}",
        entitlement,
    )
    assert history == [
        {"element": "seats", "id": "a", "epoch": 3, "offset": 6},
        {"element": "seats", "id": "b", "epoch": 3, "offset": 7},
        {"element": "seats", "id": "a", "epoch": 1, "offset": 9},
        {"element": "render", "id": "a", "epoch": 3, "offset": 5},
    ]


def test_terms_are_what_the_event_says(client: Client, put: Put, activity_row: ActivityRows, entitlement: str) -> None:
    event = {
        "data": {
            "name": "CAD for all", "lease_policy": "keep",
            "elements": {
                "seats": {"kind": "pool", "limit": 10, "overdraft": {"type": "percentage", "value": 12.5}},
                "render farm": {"kind": "counter", "limit": None, "overdraft": {"type": "unlimited"}},
                "scan": {"limit": 7.0},
            },
        }
    }  # fmt: skip
    rows = [
        # Late: the limit in force is another one than the event's.
        activity_row(
            element=element, type="entitlement.changed", version=0, late=True, limit=99, event=json.dumps(event).encode()
        )
        for element in event["data"]["elements"]
    ]
    put(client, *rows, activity_row(type="seat.activated", id="other"))
    stored = rows_of(
        client,
        "SELECT element, name, lease_policy, kind, `limit`, overdraft_type, overdraft_value, version FROM terms FINAL "
        "WHERE entitlement = {entitlement:String} ORDER BY element",
        entitlement,
    )
    names = ("element", "name", "lease_policy", "kind", "limit", "overdraft_type", "overdraft_value", "version")
    assert stored == [
        dict(zip(names, values, strict=True))
        for values in [
            ("render farm", "CAD for all", "keep", "counter", None, "unlimited", None, 0),
            ("scan", "CAD for all", "keep", None, 7, "none", None, 0),
            ("seats", "CAD for all", "keep", "pool", 10, "percentage", Decimal("12.5"), 0),
        ]
    ]


def test_a_restated_raw_row_stands_in_the_place_of_its_live_one(
    client: Client, put: Put, activity_row: ActivityRows, entitlement: str
) -> None:
    """Its version is the position it was restated at and 2: above every live row, and above earlier restatements."""
    basis = position_of(1, 40)
    # Late, because it came after `b`; in exact order it came first. `a` came once more with another time.
    first = activity_row(id="a", offset=7, time=MS_2026, t=MS_2026 + 5, version=0, late=True, delta=0, level=9)
    again = activity_row(id="a", offset=8, time=MS_2026 + 3, t=MS_2026 + 5, version=0, late=True, delta=0, level=9)
    second = activity_row(id="b", offset=6, time=MS_2026 + 5, version=1, delta=1, level=9)
    put(client, second)
    put(client, first, again)
    exact = first._replace(t=MS_2026, late=False, delta=1, level=1)
    put(client, exact._replace(version=basis + 2), second._replace(level=2, version=basis + 2))
    # What a sink stores again after a restart.
    put(client, second)
    put(client, first, again)

    def history() -> list[dict[str, Any]]:
        return rows_of(
            client,
            "SELECT id, offset, delta, level, late, toUnixTimestamp64Milli(placed_at) AS placed_at FROM activity_history "
            "WHERE entitlement = {entitlement:String}",
            entitlement,
        )

    restated = [
        {"id": "b", "offset": 6, "delta": 1, "level": 2, "late": False, "placed_at": MS_2026 + 5},
        {"id": "a", "offset": 7, "delta": 1, "level": 1, "late": False, "placed_at": MS_2026},
    ]
    assert history() == restated
    versions = rows_of(
        client,
        "SELECT id, offset, version FROM activity FINAL WHERE entitlement = {entitlement:String} ORDER BY offset",
        entitlement,
    )
    assert versions == [
        {"id": "b", "offset": 6, "version": basis + 2},
        {"id": "a", "offset": 7, "version": basis + 2},
        {"id": "a", "offset": 8, "version": 0},
    ]
    put(client, exact._replace(level=5, version=position_of(2, 0) + 2), exact._replace(level=3, version=basis + 3))
    assert history() == [restated[0], restated[1] | {"level": 5}]


def test_restated_terms_are_one_row_and_still_what_the_event_says(
    client: Client, put: Put, activity_row: ActivityRows, entitlement: str
) -> None:
    event = json.dumps({"data": {"elements": {"seats": {"limit": 10, "overdraft": {"type": "absolute", "value": 2}}}}}).encode()
    live = activity_row(type="entitlement.changed", version=0, late=True, limit=99, hard_limit=99, event=event)
    put(client, live)
    put(client, live._replace(version=position_of(1, 40) + 2, late=False, limit=10, hard_limit=12))
    put(client, live)
    query = "SELECT `limit`, overdraft_type, overdraft_value, version FROM terms FINAL WHERE entitlement = {entitlement:String}"
    assert rows_of(client, query, entitlement) == [
        {
            "limit": 10, "overdraft_type": "absolute", "overdraft_value": Decimal(2), "version": position_of(1, 40) + 2,
        }
    ]  # fmt: skip


def test_of_a_day_the_highest_position_stays_and_at_the_same_one_the_restated(
    client: Client, put: Put, day_row: DayRows, entitlement: str
) -> None:
    query = "SELECT closing FROM days FINAL WHERE entitlement = {entitlement:String}"
    put(client, day_row("2026-11-20", closing=2, position=8))
    put(client, day_row("2026-11-20", closing=1, position=7))
    assert rows_of(client, query, entitlement) == [{"closing": 2}]
    put(client, day_row("2026-11-20", closing=3, position=8), restated=True)
    put(client, day_row("2026-11-20", closing=2, position=8))
    assert rows_of(client, query, entitlement) == [{"closing": 3}]
    put(client, day_row("2026-11-20", closing=4, position=9))
    assert rows_of(client, query, entitlement) == [{"closing": 4}]


def test_live_levels_are_the_end_of_the_latest_live_row(client: Client, put: Put, day_row: DayRows, entitlement: str) -> None:
    put(client, day_row("2026-11-20", closing=1, position=5), day_row("2026-11-20", element="render", closing=7, position=6))
    put(
        client,
        day_row(
            "2026-11-21", closing=12, closing_limit=10, closing_hard_limit=12, closing_terms_known=True,
            state="at_hard_limit", entered_at=MS_2026, peak=12, position=8, name="CAD",
        ),
    )  # fmt: skip
    put(client, day_row("2026-11-20", closing=3, position=9), restated=True)
    levels = rows_of(
        client,
        "SELECT element, level, state FROM live_levels WHERE entitlement = {entitlement:String} ORDER BY element",
        entitlement,
    )
    assert levels == [
        {"element": "render", "level": 7, "state": "within"}, {"element": "seats", "level": 12, "state": "at_hard_limit"},
    ]  # fmt: skip
    [overdrawn] = rows_of(client, "SELECT * FROM overdrawn_now WHERE entitlement = {entitlement:String}", entitlement)
    as_of = overdrawn.pop("as_of")
    assert in_ms(as_of) == day_row("2026-11-21").as_of
    assert {name: in_ms(value) for name, value in overdrawn.items()} == {
        "entitlement": entitlement, "element": "seats", "customer": "cus-1", "product": "cad-pro", "name": "CAD",
        "kind": "pool", "since": MS_2026, "level": 12, "limit": 10, "hard_limit": 12, "overage": 2, "peak": 12,
        "state": "at_hard_limit",
    }  # fmt: skip


def test_rows_of_many_months_fit_in_one_insert(client: Client, day_row: DayRows, entitlement: str) -> None:
    """The first import of an old log. ClickHouse takes rows of 100 partitions at most, unless the sink's settings are used."""
    rows = [day_row(f"{year}-{month:02}-01") for year in range(2010, 2020) for month in range(1, 13)]
    client.insert_arrow("days", days_table(rows), settings=INSERT_SETTINGS)
    [stored] = rows_of(client, "SELECT count() AS n FROM days WHERE entitlement = {entitlement:String}", entitlement)
    assert stored == {"n": 120}
