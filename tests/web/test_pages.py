"""The pages say what the API says, and have something to say when there is nothing, or something is wrong."""

import html
import re
from collections.abc import AsyncIterator
from typing import Any, get_args
from urllib.parse import quote

import httpx
import pytest

from tests.web.conftest import ACME, NOW, Place, client_of, event, terms
from views.store import Store
from views.web import chart, wording
from views.web.app import create_app
from views.web.reading import REPORT_ORDERS, ReportOrder

HTML = {"accept": "text/html"}


def table(page: str, table_id: str = "") -> list[list[str]]:
    """The rows of a page's table, as texts."""
    start = page.index(f'id="{table_id}"') if table_id else page.index("<table")
    body = page[page.index("<tbody>", start) : page.index("</tbody>", start)]
    return [[text_of(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S)] for row in body.split("<tr")[1:]]


def text_of(fragment: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", fragment)).split())


@pytest.fixture
async def web(acme: Place) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(acme.app()) as client:
        yield client


@pytest.fixture
async def demo_web(demo: Place) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(demo.app()) as client:
        yield client


async def page_of(web: httpx.AsyncClient, path: str, status: int = 200) -> str:
    response = await web.get(path, headers=HTML)
    assert response.status_code == status, response.text
    return response.text


async def test_the_days_are_those_of_the_api(demo_web: httpx.AsyncClient) -> None:
    for element in ("seats", "hull-solver"):
        page = await page_of(demo_web, f"/entitlements/ent-1006?element={element}")
        usage = (await demo_web.get("/api/v1/entitlements/ent-1006/usage", params={"element": element})).json()
        assert table(page, "days") == [
            [
                day["day"], str(day["min"]), str(day["max"]), str(day["closing"]), str(day["limit"]),
                "unlimited" if day["hard_limit"] is None else str(day["hard_limit"]),
                wording.duration(day["overdraft_seconds"]), str(day["peak_overage"] or "\N{EN DASH}"),
                str(day["activations"]), str(day["deactivations"]), str(day["denials"]),
                "\N{DOTTED CIRCLE} Provisional" if day["state"] == "provisional" else "Final",
            ]
            for day in reversed(usage["days"])
        ]  # fmt: skip


async def test_the_events_are_those_of_the_api(web: httpx.AsyncClient) -> None:
    page = await page_of(web, "/entitlements/acme%2F1")
    events = (await web.get("/api/v1/entitlements/acme%2F1/history")).json()["events"]
    rows = table(page, "events")
    assert [(row[0], row[3], row[8]) for row in rows] == [
        (each["time"][:19].replace("T", " "), each["seat_id"] or "\N{EN DASH}", str(each["level"])) for each in events
    ]
    assert rows[1][10] == ""
    assert rows[0][10] == "above the limit"
    assert rows[4][10] == "all in use"
    assert rows[-3][10] == "lease until 2026-12-01 00:00"
    assert page.count('<tr class="overdrawn">') - page[: page.index('id="events"')].count('<tr class="overdrawn">') == 3


async def test_the_report_is_the_api_s(web: httpx.AsyncClient) -> None:
    [row] = table(await page_of(web, "/overdrafts"))
    assert row == [
        "acme acme/1 \N{MIDDLE DOT} cad \N{MIDDLE DOT} seats",
        "\N{BLACK DIAMOND} At the hard limit 3 of 2, since 2026-11-24 09:00",
        "0 / 1 / 1 enough: 2 / 3 / 3", "2 h 00 min 0.3 %", "3", "+1", "2.0", "2", "\N{NORTH EAST ARROW} +2 h 00 min",
    ]  # fmt: skip


async def test_the_report_in_every_order(demo_web: httpx.AsyncClient) -> None:
    rows = (await demo_web.get("/api/v1/overdrafts")).json()["overdrafts"]
    orders = {
        "customer": lambda row: row["customer"], "time": lambda row: -row["overdraft_seconds"],
        "episodes": lambda row: -row["episodes_in_30_days"], "denials": lambda row: -row["denials"],
        "buy": lambda row: -row["buy_100"], "unit_hours": lambda row: -row["unit_seconds_over"],
        "now": lambda row: (not row["overdrawn"], -row["overage"]), "peak": lambda row: -row["peak_overage"],
        "trend": lambda row: row["overdraft_seconds_earlier"] - row["overdraft_seconds_later"],
    }  # fmt: skip
    assert orders.keys() == set(get_args(ReportOrder)) == REPORT_ORDERS.keys()
    for sort, key in orders.items():
        page = await page_of(demo_web, f"/overdrafts?sort={sort}")
        shown = [row[0].split()[-5] for row in table(page)]
        assert shown == [row["entitlement"] for row in sorted(rows, key=key)], sort  # type: ignore[arg-type]
        assert page.count('aria-sort="descending"') + page.count('aria-sort="ascending"') == 1
    # The twins have the order of the page, here the last one.
    [twin] = re.findall(r'href="(/api/v1/overdrafts\?[^"]*)"', page)
    assert shown == [row["entitlement"] for row in (await demo_web.get(twin)).json()["overdrafts"]]


async def test_another_time_zone_is_used_for_everything_on_the_page(web: httpx.AsyncClient) -> None:
    page = await page_of(web, "/entitlements/acme%2F1?tz=Asia/Tokyo&day=2026-11-24")
    assert "Times and days in <b>Asia/Tokyo</b>" in page
    assert [row[0] for row in table(page, "events")] == ["2026-11-24 18:00:00", "2026-11-24 05:00:00"]
    assert 'at <time datetime="2026-11-24T09:00:00.000Z">2026-11-24 18:00:00</time>' in page


async def test_who_held_it(web: httpx.AsyncClient) -> None:
    page = await page_of(web, "/entitlements/acme%2F1?day=2026-11-22")
    assert [(row[0], row[1], row[3]) for row in table(page[page.index('id="opened"') :])] == [
        ("a", "1", "ann@acme.example"), ("b", "1", "bob@acme.example"), ("c", "1", "cem@acme.example"),
    ]  # fmt: skip
    assert "3 units in use at" in page
    nobody = await page_of(web, "/entitlements/acme%2F1?at=2026-11-01T00:00:00Z")
    assert "Nobody: no seat was in use" in nobody


async def test_a_moment_is_of_the_time_zone_of_the_page(web: httpx.AsyncClient) -> None:
    for at in ("2026-11-22T20:15:00", "2026-11-22T12:15:00+01:00"):
        page = await page_of(web, f"/entitlements/acme%2F1?tz=Asia/Tokyo&at={quote(at)}")
        assert 'at <time datetime="2026-11-22T11:15:00.000Z">2026-11-22 20:15:00</time>' in page
        # So the same is asked for once more.
        assert 'name="at" step="1" value="2026-11-22T20:15:00"' in page
    assert "query.at" in await page_of(web, "/entitlements/acme%2F1?at=noon", 422)


async def test_a_counter_is_used_and_held_by_nobody(place: Place) -> None:
    place.vendor.send(
        [
            event("entitlement.changed", "22T08:00", "calls", elements={"api": {"kind": "counter", "limit": 5}}),
            event("feature.used", "23T09:00", "calls", element="api", quantity=4),
            event("feature.used", "23T10:00", "calls", element="api", quantity=3),
        ]
    )
    async with client_of(place.app()) as web:
        page = await page_of(web, "/entitlements/calls?day=2026-11-23&days=2")
    # Least, greatest, at its end, limit, hard limit, above the limit and by how much, used, refused.
    assert table(page, "days")[1] == [
        "2026-11-23", "0", "7", "7", "5", "5", "14 h 00 min", "2", "7", "0", "Final",
    ]  # fmt: skip
    assert "Who held it" not in page
    assert [row[-1] for row in table(page, "events")] == ["above the limit", ""]


async def test_filters_of_the_overview(place: Place) -> None:
    place.vendor.send(
        [
            *ACME,
            event("seat.activated", "24T09:00", "ent-1", "Cobalt & Co", seat_id="a", product="sim"),
            event("seat.activated", "24T09:00", "ent-2", "Cobalt & Co", seat_id="a", product="cad"),
            event("seat.activated", "24T09:00", "ent-3", None, seat_id="a"),
        ]
    )
    async with client_of(place.app()) as web:
        page = await page_of(web, "/?customer=Cobalt+%26+Co&product=cad")
        assert [row[0] for row in table(page)] == ["ent-2"]
        # The numbers of the tiles are those that a click on them finds, and the twins have the same filter.
        assert "1 element of 1 entitlement, 1 customer." in " ".join(page.split())
        twins = [html.unescape(twin) for twin in re.findall(r'href="(/api/v1/entitlements[^"]*)"', page)]
        for twin in twins:
            assert re.findall(r"ent-\d|acme/1", (await web.get(twin)).text) == ["ent-2"]
        assert len(twins) == 2
        for path in ("/", "/?customer=Cobalt+%26+Co", "/overdrafts"):
            offered = re.findall(r'<option value="([^"]*)">(?!\w)', await page_of(web, path))
            assert [html.unescape(name) for name in offered] == ["Cobalt & Co", "acme", "cad", "sim"]
        assert "must be written in full" in await page_of(web, "/?customer=cobalt")


async def test_ids_and_names_are_texts(place: Place) -> None:
    """Whatever a licence server calls things, it is shown, and runs nowhere."""
    odd = "<script>alert(1)</script>\"'&{{7*7}}/ü ?#%2F"
    place.vendor.send(
        [
            terms("24T08:00", 1, odd, element=odd, customer=odd),
            event("feature.checked_out", "24T09:00", odd, odd, element=odd, seat_id=odd, user=odd, quantity=2),
        ]
    )
    async with client_of(place.app()) as web:
        for path in ("/", "/overdrafts"):
            page = await page_of(web, path)
            assert "<script>alert" not in page
            [address] = set(re.findall(r'href="(/entitlements/[^"]+)"', page))
        log = await page_of(web, html.unescape(address))
        assert "<script>alert" not in log
        assert text_of(re.findall(r"<h1>(.*?)</h1>", log)[0]) == " ".join(odd.split())
        assert table(log, "events")[0][3] == odd
        links = re.findall(r'(?:href|src|data-usage)="(/(?:api|entitlements)[^"]+)"', log)
        # One of each path; the stream has no end.
        for link in {link.partition("?")[0]: link for link in links if "/events" not in link}.values():
            assert (await web.get(html.unescape(link))).status_code == 200, link


# --- States


async def test_nothing_there_yet(place: Place) -> None:
    async with client_of(place.app()) as web:
        assert "Nothing here yet" in await page_of(web, "/")
        assert "Nobody was above the limit" in await page_of(web, "/overdrafts")


async def test_nothing_that_fits(web: httpx.AsyncClient) -> None:
    assert "No entitlement fits this search" in await page_of(web, "/?search=nowhere")
    assert "Nobody who fits this filter" in await page_of(web, "/overdrafts?customer=nowhere")
    assert "No events that fit the filter in these 30 days" in " ".join(
        (await page_of(web, "/entitlements/acme%2F1?seat=x")).split()
    )
    assert "on 2026-11-20" in await page_of(web, "/entitlements/acme%2F1?day=2026-11-20")


def test_the_small_graph_of_the_report() -> None:
    """Of the 24 units of height a unit of the level has 6 here; the ground is at 26. Without a limit nothing is above it."""
    days = [{"max": 4, "limit": 2}, {"max": 1, "limit": 2}, {"max": 3, "limit": None}]
    assert chart.spark(days) == (
        '<svg class="spark" viewBox="0 0 12 26" preserveAspectRatio="none" aria-hidden="true">'
        '<path class="used" d="M0 26.00V14.00h3.2V26.00zM4 26.00V20.00h3.2V26.00zM8 26.00V8.00h3.2V26.00z"/>'
        '<path class="over" d="M0 14.00V2.00h3.2V14.00z"/></svg>'
    )
    assert 'viewBox="0 0 4 26"' in chart.spark([{"max": 0, "limit": 0}])


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/entitlements/nobody", 404, "there is no entitlement"),
        ("/entitlements/acme%2F1?element=plot", 404, "there is no element"),
        ("/entitlements/acme%2F1?days=0", 422, "query.days"),
        ("/entitlements/acme%2F1?to=tomorrow", 422, "query.to"),
        ("/entitlements/acme%2F1?tz=Mars", 422, "query.tz"),
        ("/entitlements/acme%2F1?day=2027-01-01", 422, "query.day"),
        ("/entitlements/acme%2F1?cursor=x", 422, "query.cursor"),
        ("/?state=sad", 422, "query.state"),
        ("/nowhere", 404, "Not Found"),
    ],
)  # fmt: skip
async def test_what_is_not_there_or_cannot_be_asked_is_a_page_too(
    web: httpx.AsyncClient, path: str, status: int, said: str
) -> None:
    page = await page_of(web, path, status)
    assert f'<p class="status">{status}</p>' in page
    assert said in page
    assert '<a href="/">Overview</a>' in page


async def test_without_clickhouse_the_page_says_so() -> None:
    async with client_of(create_app(Store("http://seatmark:geheim@127.0.0.1:1/db"), sign_in=False)) as web:
        page = await page_of(web, "/", 503)
    assert "does not answer" in page
    assert "geheim" not in page


async def test_the_graph_as_an_image(web: httpx.AsyncClient) -> None:
    answer = await web.get("/entitlements/acme%2F1/chart.svg", params={"days": 3, "theme": "dark"})
    assert answer.headers["content-type"] == "image/svg+xml"
    colours = set(re.findall(r'(?:stroke|fill)="(#[0-9a-f]{6})"', answer.text))
    assert {"#171b20", "#4cc38a", "#e8ebee", "#ff7b72"} <= colours, "ground, limit, hard limit and overdraft of the dark theme"
    assert (await web.get("/entitlements/nobody/chart.svg")).status_code == 404
    assert (await web.get("/entitlements/acme%2F1/chart.gif")).status_code == 422


async def test_the_time_of_the_numbers_is_said(web: httpx.AsyncClient) -> None:
    for path in ("/", "/overdrafts", "/entitlements/acme%2F1"):
        assert NOW[:19].replace("T", " ") in await page_of(web, path)


def test_wording() -> None:
    assert [wording.units(number) for number in (0, 999, 1234567)] == ["0", "999", "1\u202f234\u202f567"]
    assert [wording.duration(seconds) for seconds in (0, 1, 90, 3600, 7265)] == [
        "\N{EN DASH}", "< 1 min", "2 min", "1 h 00 min", "2 h 01 min"
    ]  # fmt: skip
    assert [wording.trend(seconds) for seconds in (5400, 0, -60)] == [
        "\N{NORTH EAST ARROW} +1 h 30 min", "\N{EN DASH}", "\N{SOUTH EAST ARROW} \N{MINUS SIGN}1 min"
    ]  # fmt: skip
    assert wording.hours(12345.67) == "12\u202f345.7"
    assert [wording.change(delta) for delta in (2, 0, -3)] == ["+2", "\N{EN DASH}", "\N{MINUS SIGN}3"]
    assert wording.moment("2026-03-29T00:59:59.999Z", "Europe/Paris") == "2026-03-29 01:59:59"
    late: dict[str, Any] = {
        "late": True, "time": "a", "placed_at": "b", "source": "/s", "quantity": 3, "lease_expires_at": None,
        "reason": "why", "overdrawn": False, "delta": 0,
    }  # fmt: skip
    assert wording.note(late, "UTC") == "came too late: no effect on the live level; 3 units; why"
