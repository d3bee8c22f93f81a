"""What the API says of a log that a person worked out by hand (ACME in conftest.py), and that its ways of saying it agree."""

import csv
import io
from collections.abc import AsyncIterator
from datetime import date
from typing import Any

import httpx
import pytest

from processors.domain.days import Calendar
from schemas.events import format_time, parse_time
from tests.web.conftest import ACME, DEMO, NOW_MS, Place, client_of, event, terms
from views import store
from views.tokens import EVERYTHING
from views.web.reading import EventFilter, Reader

ONE = "/api/v1/entitlements/acme%2F1"


@pytest.fixture
async def api(acme: Place) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(acme.app()) as client:
        yield client


@pytest.fixture
async def own_api(place: Place) -> AsyncIterator[httpx.AsyncClient]:
    """The API over a database with ACME in it that may be written to."""
    place.vendor.send(ACME)
    async with client_of(place.app()) as client:
        yield client


async def got(api: httpx.AsyncClient, path: str, **parameters: Any) -> Any:
    response = await api.get(path, params=parameters)
    assert response.status_code == 200, response.text
    return response.json()


async def table(api: httpx.AsyncClient, path: str, **parameters: Any) -> list[dict[str, str]]:
    response = await api.get(path, params=parameters)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    return list(csv.DictReader(io.StringIO(response.text, newline="")))


# --- The report


async def test_the_overdraft_report(api: httpx.AsyncClient) -> None:
    [row] = (await got(api, "/api/v1/overdrafts"))["overdrafts"]
    days = {day["day"]: day for day in row.pop("days")}
    # 50 hours since the first event: 1 with 0 seats, 1 with 1, 2 with 3, and 46 with 2. So 2 are enough for 96 % of the time.
    assert row == {
        "entitlement": "acme/1", "element": "seats", "customer": "acme", "product": "cad", "name": None, "kind": "pool",
        "overdrawn": True, "since": "2026-11-24T09:00:00.000Z", "state": "at_hard_limit", "level": 3, "limit": 2,
        "hard_limit": 3, "overage": 1, "peak": 3, "as_of": "2026-11-24T09:00:00.000Z", "episodes_in_30_days": 3,
        "overdraft_seconds": 7200, "overdraft_seconds_earlier": 0, "overdraft_seconds_later": 7200, "trend_seconds": 7200,
        "unit_seconds_over": 7200, "peak_overage": 1, "denials": 2, "covers_95": 2, "covers_99": 3, "covers_100": 3,
        "buy_95": 0, "buy_99": 1, "buy_100": 1,
    }  # fmt: skip
    assert (len(days), min(days), max(days)) == (30, "2026-10-26", "2026-11-24")
    assert days["2026-11-21"] == {
        "day": "2026-11-21", "max": 0, "limit": None, "overdraft_seconds": 0, "peak_overage": 0, "denials": 0
    }  # fmt: skip
    assert days["2026-11-24"] == {
        "day": "2026-11-24", "max": 3, "limit": 2, "overdraft_seconds": 3600, "peak_overage": 1, "denials": 0
    }  # fmt: skip


async def test_an_overdraft_that_is_over_and_one_that_was_carried_into_the_window(place: Place) -> None:
    place.vendor.send(
        [
            terms("01T00:00", 1, "carried"),
            event("seat.activated", "01T01:00", "carried", seat_id="a"),
            event("seat.activated", "01T02:00", "carried", seat_id="b"),
        ]
    )
    # 40 days later the 30 days hold not one event, and all of their time is above the limit.
    later = NOW_MS + 40 * 86_400_000
    [row] = Reader(place.store, EVERYTHING, later).overdrafts()
    assert (row["overdraft_seconds"], row["unit_seconds_over"]) == (29 * 86400 + 36000, 29 * 86400 + 36000)
    assert (row["covers_95"], row["covers_100"], row["buy_95"], row["episodes_in_30_days"]) == (2, 2, 1, 1)
    [episode] = Reader(place.store, EVERYTHING, later).episodes("", "", 1, 10, None).rows
    assert (episode["start"], episode["end"]) == ("2026-11-01T02:00:00.000Z", None)


async def test_filters_of_the_report(own_api: httpx.AsyncClient, place: Place) -> None:
    place.vendor.send(
        [
            terms("23T08:00", 0, "other/1", customer="other"),
            event("seat.activated", "23T09:00", "other/1", "other", seat_id="a"),
            event("seat.deactivated", "23T10:00", "other/1", "other", seat_id="a"),
        ]
    )
    names = [row["entitlement"] for row in (await got(own_api, "/api/v1/overdrafts"))["overdrafts"]]
    assert names == ["acme/1", "other/1"], "those above the limit now come first"
    for parameters in ({"customer": "acme"}, {"now": True}):
        rows = (await got(own_api, "/api/v1/overdrafts", **parameters))["overdrafts"]
        assert [row["entitlement"] for row in rows] == ["acme/1"]
    assert (await got(own_api, "/api/v1/overdrafts", product="none"))["overdrafts"] == []


async def test_sizing_says_the_same_of_one_element(own_api: httpx.AsyncClient, place: Place) -> None:
    [row] = (await got(own_api, "/api/v1/overdrafts"))["overdrafts"]
    assert await got(own_api, f"{ONE}/sizing") == {**row, "timezone": "UTC"}
    place.vendor.send(
        [
            terms("24T09:30", None, element="render"),
            event("feature.checked_out", "24T09:45", element="render", seat_id="r", quantity=4),
        ]
    )
    render = await got(own_api, f"{ONE}/sizing", element="render")
    assert (render["limit"], render["covers_95"], render["covers_100"], render["buy_100"]) == (None, 4, 4, None)
    assert (render["overdrawn"], render["overdraft_seconds"], render["episodes_in_30_days"]) == (False, 0, 0)


async def test_episodes(api: httpx.AsyncClient) -> None:
    answer = await got(api, f"{ONE}/episodes")
    assert [(row["start"], row["end"], row["seconds"]) for row in answer["episodes"]] == [
        ("2026-11-24T09:00:00.000Z", None, 3600),
        ("2026-11-23T09:00:00.000Z", "2026-11-23T09:30:00.000Z", 1800),
        ("2026-11-22T11:00:00.000Z", "2026-11-22T11:30:00.000Z", 1800),
    ]
    assert [(row["peak"], row["peak_overage"]) for row in answer["episodes"]] == [(3, 1)] * 3
    assert len((await got(api, f"{ONE}/episodes", days=2))["episodes"]) == 2
    assert await got(api, "/api/v1/episodes") == answer
    first = await got(api, "/api/v1/episodes", limit=2)
    rest = await got(api, "/api/v1/episodes", limit=2, cursor=first["next"])
    assert first["episodes"] + rest["episodes"] == answer["episodes"]
    assert rest["next"] is None


async def test_episodes_as_csv_are_all_there_are(place: Place) -> None:
    """More than any page holds: 601 in ten hours, each of half a minute."""
    start = parse_time("2026-11-23T00:00:00Z")
    flapping = [terms("22T08:00", 0, "flaps")]
    for number in range(601):
        for kind, seconds in (("seat.activated", 60 * number), ("seat.deactivated", 60 * number + 30)):
            time = format_time(start + seconds * 1000)[8:].removesuffix(".000Z")
            flapping.append(event(kind, time, "flaps", seat_id="a"))
    place.vendor.send(flapping)
    starts = [format_time(start + number * 60_000) for number in reversed(range(601))]
    async with client_of(place.app()) as api:
        for path in ("/api/v1/entitlements/flaps/episodes.csv", "/api/v1/episodes.csv"):
            assert [row["start"] for row in await table(api, path)] == starts
        assert await table(api, "/api/v1/entitlements/flaps/episodes.csv", days=1) == []


# --- The history


async def test_history_newest_first(api: httpx.AsyncClient) -> None:
    events = (await got(api, f"{ONE}/history"))["events"]
    assert [(event["time"], event["id"]) for event in events] == [(sent["time"], sent["id"]) for sent in reversed(ACME)]
    assert events[-3] == {
        "time": "2026-11-22T10:00:00.000Z", "element": "seats", "type": "seat.activated", "seat_id": "b",
        "user": "bob@acme.example", "ip": None, "host": None, "credential": None, "quantity": None, "delta": 1, "level": 2,
        "limit": 2, "hard_limit": 3, "terms_known": True, "state": "at_limit", "late": False, "reason": None,
        "lease_expires_at": "2026-12-01T00:00:00.000Z", "placed_at": "2026-11-22T10:00:00.000Z",
        "source": "/license-servers/eu-1", "id": "seat.activated 22T10:00 b", "overdrawn": False,
    }  # fmt: skip
    denied = events[1]
    assert (denied["type"], denied["delta"], denied["overdrawn"]) == ("seat.denied", 0, False)
    assert [event["overdrawn"] for event in events[:1]] == [True]


@pytest.mark.parametrize("limit", [1, 50])
async def test_history_reaches_back_over_months_without_events(own_api: httpx.AsyncClient, place: Place, limit: int) -> None:
    old = ["2026-06-01T09:00:00.000Z", "2026-04-10T09:00:00.000Z", "2025-12-24T09:00:00.000Z"]
    place.vendor.send({**event("seat.refreshed", "22T10:30", seat_id="old"), "id": time, "time": time} for time in old)
    times, cursor = [], None
    while True:
        page = await got(own_api, f"{ONE}/history", seat="old", limit=limit, **({"cursor": cursor} if cursor else {}))
        times += [event["time"] for event in page["events"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert times == old


@pytest.mark.parametrize("limit", [1, 3, 10, 11])
async def test_history_in_pages_is_the_whole_history(api: httpx.AsyncClient, limit: int) -> None:
    whole = (await got(api, f"{ONE}/history"))["events"]
    paged, cursor = [], None
    while True:
        page = await got(api, f"{ONE}/history", limit=limit, **({"cursor": cursor} if cursor else {}))
        paged += page["events"]
        cursor = page["next"]
        if cursor is None:
            break
        assert len(page["events"]) == limit
    assert paged == whole


async def test_pages_do_not_lose_events_of_the_same_moment(own_api: httpx.AsyncClient, place: Place) -> None:
    place.vendor.send(event("seat.refreshed", "24T09:15", seat_id=f"r{number}") for number in range(7))
    seats, cursor = [], None
    for _ in range(4):
        page = await got(own_api, f"{ONE}/history", limit=2, **({"cursor": cursor} if cursor else {}))
        seats += [event["seat_id"] for event in page["events"]]
        cursor = page["next"]
    assert seats == ["r6", "r5", "r4", "r3", "r2", "r1", "r0", "c"], "the one that arrived last comes first"


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        ({"type": "seat.denied"}, 2),
        ({"type": ["seat.denied", "entitlement.changed"]}, 3),
        ({"seat": "c"}, 5),
        ({"user": "eve@acme.example"}, 2),
        ({"element": "seats", "user": "eve@acme.example", "type": "seat.denied"}, 0),
        ({"from": "2026-11-23T09:00:00Z"}, 4),
        ({"to": "2026-11-23T09:00:00Z"}, 6),
        ({"from": "2026-11-23T10:00:00+01:00", "to": "2026-11-23T10:30:00.001+01:00"}, 2),
    ],
)
async def test_filters_of_the_history(api: httpx.AsyncClient, filters: dict[str, Any], count: int) -> None:
    assert len((await got(api, f"{ONE}/history", **filters))["events"]) == count
    assert len(await table(api, f"{ONE}/history.csv", **filters)) == count


async def test_an_event_that_came_again_with_another_time_is_shown_where_it_came_first(
    place: Place, own_api: httpx.AsyncClient
) -> None:
    """The worker remembers an element's last ids; one that slips through has a raw row of its own."""
    again = {**ACME[1], "time": "2026-11-24T09:30:00.000Z"}
    place.vendor.forget()
    place.vendor.send([again])
    events = (await got(own_api, f"{ONE}/history"))["events"]
    assert [event["time"] for event in events if event["seat_id"] == "a"] == ["2026-11-22T09:00:00.000Z"]


async def test_a_row_that_was_written_again_is_shown_once(own_api: httpx.AsyncClient, place: Place) -> None:
    place.vendor.rewrite_raw_rows()
    assert len((await got(own_api, f"{ONE}/history"))["events"]) == len(ACME)
    page = await got(own_api, f"{ONE}/history", limit=4)
    assert len(page["events"]) == 4
    assert len((await got(own_api, f"{ONE}/history", limit=50, cursor=page["next"]))["events"]) == len(ACME) - 4


@pytest.mark.parametrize("cursor", ["x", "bm90IGpzb24", "W10", "WzEsMiwzLDRd", "WzEsMiwzLDQsNV0", "é", "A" * 9])
async def test_a_cursor_that_is_none_of_ours(api: httpx.AsyncClient, cursor: str) -> None:
    for path in (f"{ONE}/history", "/api/v1/entitlements", "/api/v1/episodes"):
        refused = await api.get(path, params={"cursor": cursor})
        assert (refused.status_code, "query.cursor" in refused.json()["detail"]) == (422, True)


# --- Holders, other time zones


async def test_who_held_it_at_a_moment(api: httpx.AsyncClient) -> None:
    answer = await got(api, f"{ONE}/holders", at="2026-11-22T12:00:00+01:00")
    assert (answer["at"], answer["level"], answer["limit"], answer["state"]) == (
        "2026-11-22T11:00:00.000Z",
        3,
        2,
        "at_hard_limit",
    )
    assert [(hold["seat_id"], hold["since"], hold["user"], hold["quantity"]) for hold in answer["holders"]] == [
        ("a", "2026-11-22T09:00:00.000Z", "ann@acme.example", 1),
        ("b", "2026-11-22T10:00:00.000Z", "bob@acme.example", 1),
        ("c", "2026-11-22T11:00:00.000Z", "cem@acme.example", 1),
    ]
    first = answer["holders"][0]
    assert (first["host"], first["ip"], first["credential"]) == ("wks-a", "203.0.113.1", "user")
    assert answer["holders"][1]["lease_expires_at"] == "2026-12-01T00:00:00.000Z"


async def test_who_held_it_at_the_peak_of_a_day(api: httpx.AsyncClient) -> None:
    answer = await got(api, f"{ONE}/holders", day="2026-11-23")
    assert answer["at"] == "2026-11-23T09:00:00.000Z"
    # Opened a second time, by somebody else.
    assert [(hold["seat_id"], hold["user"], hold["since"][:10]) for hold in answer["holders"]] == [
        ("a", "ann@acme.example", "2026-11-22"),
        ("b", "bob@acme.example", "2026-11-22"),
        ("c", "eve@acme.example", "2026-11-23"),
    ]
    quiet = await got(api, f"{ONE}/holders", day="2026-11-20")
    assert (quiet["at"], quiet["level"], quiet["holders"]) == ("2026-11-20T00:00:00.000Z", 0, [])
    today = await got(api, f"{ONE}/holders")
    assert today["at"] == "2026-11-24T09:00:00.000Z"


async def test_a_snapshot_opens_and_closes_holds(place: Place) -> None:
    holds = [{"seat_id": "b", "quantity": 3}, {"seat_id": "c"}]
    place.vendor.send(
        [
            event("feature.checked_out", "22T09:00", element="render", seat_id="a", user="ann@acme.example"),
            event("feature.checked_out", "22T10:00", element="render", seat_id="b", user="bob@acme.example", quantity=2),
            event("entitlement.snapshot", "22T11:00", element="render", holds=holds),
        ]
    )
    answer = Reader(place.store, EVERYTHING, NOW_MS).holders("acme/1", None, "2026-11-22T11:00:00Z", None)
    assert [(hold["seat_id"], hold["quantity"], hold["since"][11:16], hold["user"]) for hold in answer["holders"]] == [
        ("b", 3, "10:00", "bob@acme.example"),
        ("c", 1, "11:00", None),
    ]


async def test_days_of_another_time_zone(api: httpx.AsyncClient) -> None:
    answer = await got(api, f"{ONE}/usage", tz="Asia/Tokyo", days=3)
    assert answer["timezone"] == "Asia/Tokyo"
    rows = {day["day"]: day for day in answer["days"]}
    assert list(rows) == ["2026-11-22", "2026-11-23", "2026-11-24"]
    # 20:00 UTC on the 23rd is 5:00 on the 24th there; NOW is 19:00.
    assert [row["denials"] for row in rows.values()] == [1, 0, 1]
    assert [row["overdraft_seconds"] for row in rows.values()] == [1800, 1800, 3600]
    assert (rows["2026-11-24"]["elapsed_seconds"], rows["2026-11-24"]["state"]) == (19 * 3600, "provisional")
    # From 18:00 one seat, from 19:00 two, and half an hour one more, until 24:00.
    assert rows["2026-11-22"]["unit_seconds"] == 3600 + 5 * 7200 + 1800
    assert (rows["2026-11-23"]["opening"], rows["2026-11-23"]["min"], rows["2026-11-23"]["max"]) == (2, 2, 3)


@pytest.mark.parametrize(
    ("path", "parameters", "said"),
    [
        ("usage", {"tz": "Mars/Olympus"}, "query.tz"),
        ("usage", {"tz": "Asia/Tokyo", "to": "2026-11-25"}, "query.to"),
        ("holders", {"at": "noon"}, "query.at"),
        ("holders", {"day": "2026-11-25"}, "query.day"),
        ("history", {"type": "seat.stolen"}, "query.type"),
        ("history", {"from": "2026-11-22"}, "query.from"),
        ("history", {"limit": 501}, "query.limit"),
        # A filter that is not there must not look as if it worked.
        ("history", {"users": "ann"}, "query.users: there is no such parameter here; there are limit, cursor, element, type, "),
        ("history.csv", {"limit": 5}, "query.limit: there is no such parameter here"),
    ],
)
async def test_what_cannot_be_asked(api: httpx.AsyncClient, path: str, parameters: dict[str, Any], said: str) -> None:
    refused = await api.get(f"{ONE}/{path}", params=parameters)
    assert refused.status_code == 422
    assert said in refused.json()["detail"]


# --- The list


async def test_entitlements_by_state_and_search(place: Place) -> None:
    place.vendor.send(
        [
            *ACME,
            terms("10T00:00", 50, "idle-1", customer="Bystander"),
            event("seat.activated", "10T01:00", "idle-1", "Bystander", seat_id="x"),
            terms("10T00:00", 1, "full-1", customer="Crowd"),
            event("seat.activated", "10T01:00", "full-1", "Crowd", seat_id="x"),
            event("seat.activated", "10T01:00", "free-1", "Freed", seat_id="x"),
        ]
    )
    async with client_of(place.app()) as api:

        async def names(**parameters: Any) -> list[str]:
            return [row["entitlement"] for row in (await got(api, "/api/v1/entitlements", **parameters))["elements"]]

        assert await names() == ["acme/1", "free-1", "full-1", "idle-1"]
        assert await names(state="overdrawn") == await names(state="at_hard_limit") == ["acme/1"]
        assert await names(state="at_limit") == ["full-1"]
        assert await names(state="idle") == ["idle-1"]
        assert await names(state="denied") == ["acme/1"]
        assert await names(search="CROWD") == await names(customer="Crowd") == ["full-1"]
        assert await names(search="-1") == ["free-1", "full-1", "idle-1"]
        assert await names(search="%") == []
        assert await names(sort="utilisation") == ["acme/1", "full-1", "idle-1", "free-1"]
        rows = (await got(api, "/api/v1/entitlements"))["elements"]
        assert [(row["peak_30_days"], row["denials_30_days"], row["idle"]) for row in rows] == [
            (3, 2, False), (1, 0, False), (1, 0, False), (1, 0, True)
        ]  # fmt: skip
        for sort in ("entitlement", "utilisation"):
            paged, cursor = [], None
            while True:
                page = await got(api, "/api/v1/entitlements", sort=sort, limit=1, **({"cursor": cursor} if cursor else {}))
                paged += [row["entitlement"] for row in page["elements"]]
                cursor = page["next"]
                if cursor is None:
                    break
            assert paged == await names(sort=sort)
        assert [row["entitlement"] for row in await table(api, "/api/v1/entitlements.csv")] == await names()


# --- The same numbers in every way of asking


async def test_csv_has_what_json_has(api: httpx.AsyncClient) -> None:
    twins = [
        (f"{ONE}/usage", "days"), (f"{ONE}/history", "events"), (f"{ONE}/holders", "holders"), (f"{ONE}/episodes", "episodes"),
        ("/api/v1/entitlements", "elements"), ("/api/v1/overdrafts", "overdrafts"), ("/api/v1/episodes", "episodes"),
    ]  # fmt: skip
    for path, name in twins:
        rows = (await got(api, path))[name]
        lines = await table(api, f"{path}.csv")
        assert len(rows) == len(lines) > 0
        for row, line in zip(rows, lines, strict=True):
            row.pop("days", None)
            assert list(line) == list(row)
            assert [_same(line[field], value) for field, value in row.items()] == [True] * len(row), path


def _same(text: str, value: Any) -> bool:
    if value is None or isinstance(value, bool | str):
        return text == {None: "", True: "true", False: "false"}.get(value, value)
    return float(text) == value


async def test_texts_that_a_spreadsheet_would_run_are_told_as_texts(place: Place) -> None:
    place.vendor.send([event("seat.activated", "24T09:00", seat_id="=cmd|' /C calc'!A0", user="@sum")])
    async with client_of(place.app()) as api:
        [line] = await table(api, f"{ONE}/history.csv")
    assert (line["seat_id"], line["user"], line["delta"]) == ("'=cmd|' /C calc'!A0", "'@sum", "1")


def test_stored_days_are_those_of_the_exact_fold(demo: Place) -> None:
    """Two ways to one number: SQL over day rows, and the domain over raw events that came in order."""
    read = Reader(demo.store, EVERYTHING, NOW_MS)
    for entitlement in DEMO:
        for element in read.elements_of(entitlement):
            stored = read.usage(entitlement, element["element"], 30, None, None)["days"]
            folded = read._log(entitlement, element["element"]).days(
                Calendar("UTC"), date(2026, 10, 26), date(2026, 11, 24), NOW_MS
            )
            for row in stored:
                for seconds in ("overdraft_seconds", "unit_seconds", "elapsed_seconds"):
                    row[seconds] = float(row[seconds])
            assert stored == folded


def test_the_report_adds_up_the_days_of_usage(demo: Place) -> None:
    read = Reader(demo.store, EVERYTHING, NOW_MS)
    report = read.overdrafts()
    assert {row["entitlement"] for row in report} >= {"ent-1002", "ent-1003"}
    for row in report:
        days = read.usage(row["entitlement"], row["element"], 30, None, None)["days"]
        assert row["overdraft_seconds"] == pytest.approx(sum(float(day["overdraft_seconds"]) for day in days), abs=1e-6)
        assert row["peak_overage"] == max(day["peak_overage"] for day in days)
        assert row["denials"] == sum(day["denials"] for day in days)
        assert row["covers_100"] == max(day["max"] for day in days)
        assert [(day["day"], day["max"], day["limit"]) for day in row["days"]] == [
            (day["day"], day["max"], day["limit"]) for day in days
        ]
        ended = read.episodes(row["entitlement"], row["element"], 30, 500, None).rows
        assert row["episodes_in_30_days"] == len(ended)


def test_every_event_of_the_demo_is_in_its_history_once(demo: Place) -> None:
    read = Reader(demo.store, EVERYTHING, NOW_MS)
    rows = list(read.whole_history("ent-1003", EventFilter()))
    assert len({(row["source"], row["id"], row["element"]) for row in rows}) == len(rows) > 1000
    times = [parse_time(row["time"]) for row in rows]
    assert times == sorted(times, reverse=True)


async def test_a_question_that_takes_too_long_is_given_up(api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(store._QUERY_SETTINGS, "max_execution_time", 0.001)
    refused = await api.get("/api/v1/overdrafts")
    assert (refused.status_code, refused.json()["type"]) == (503, "urn:seatmark:problem:query-too-large")


async def test_large_answers_are_compressed(api: httpx.AsyncClient) -> None:
    answer = await api.get("/api/v1/overdrafts", headers={"accept-encoding": "gzip"})
    assert (answer.headers["content-encoding"], len(answer.json()["overdrafts"])) == ("gzip", 1)
