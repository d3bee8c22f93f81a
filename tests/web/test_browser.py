"""The pages in a real Chromium: open, filter, hover, open a day, page the history, download, sign in, see what is new.

Screenshots are left in .cache/screenshots, for a person to look at.
"""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from axe_playwright_python.sync_playwright import Axe
from fastapi import FastAPI
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from schemas.events import format_time
from seatmark.demo import made_up_events
from tests.seatmark.test_stack import RunningStack
from tests.web.conftest import ACME, Place, Running, event

pytestmark = pytest.mark.browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WAIT_MS = 20_000
SCREENSHOTS = Path(__file__).resolve().parents[2] / ".cache" / "screenshots"
SIZES = {"desk": {"width": 1360, "height": 900}, "phone": {"width": 390, "height": 844}}


# Of this file only: while it runs there is an event loop in the main thread, and asyncio tests could not have theirs.
@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium. Without it these tests are skipped; in CI they fail."""
    if CHROMIUM is None:
        assert not os.environ.get("CI"), "there is no chromium: apt-get install chromium"
        pytest.skip("there is no chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def demo_web(demo: Place) -> Iterator[Running]:
    """The demo's entitlements, served."""
    web = Running(demo.app())
    web.start()
    yield web
    web.stop()


class Opened:
    """A page, and what it complained about."""

    def __init__(self, context: BrowserContext) -> None:
        self.page: Page = context.new_page()
        self.page.set_default_timeout(WAIT_MS)
        self.complaints: list[str] = []
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def go(self, url: str) -> Page:
        """Open an address; a graph on it is drawn."""
        self.page.goto(url)
        if self.page.locator("#chart").count():
            self.page.wait_for_selector("#chart[data-drawn]")
        return self.page


@pytest.fixture
def open_page(chromium: Browser) -> Iterator[Callable[..., Opened]]:
    """open_page(size="phone", scheme="dark"): a page in a browser of its own, that must not complain of anything."""
    opened: list[Opened] = []

    def make(size: str = "desk", scheme: Any = "light") -> Opened:
        context = chromium.new_context(viewport=SIZES[size], color_scheme=scheme, accept_downloads=True)  # type: ignore[arg-type]
        opened.append(Opened(context))
        return opened[-1]

    yield make
    for each in opened:
        each.page.context.close()
        # A Content-Security-Policy that blocks something of ours is told here too.
        assert each.complaints == []


def keep(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


@pytest.mark.parametrize(("size", "scheme"), [("desk", "light"), ("phone", "dark")])
def test_every_page_can_be_used_by_everybody(
    demo_web: Running, open_page: Callable[..., Opened], size: str, scheme: str
) -> None:
    """axe-core finds no serious violation; nothing is wider than the screen."""
    opened = open_page(size, scheme)
    pages = {
        "overview": "/", "overview-nothing": "/?search=nothing-like-it", "activity-log": "/entitlements/ent-1003",
        "activity-log-day": "/entitlements/ent-1006?element=hull-solver&day=2026-11-20", "overdrafts": "/overdrafts",
        "sign-in": "/sign-in", "unlimited": "/entitlements/ent-1005?days=7", "docs-events": "/docs/events",
    }  # fmt: skip
    for name, path in pages.items():
        page = opened.go(demo_web.url + path)
        keep(page, f"{name}-{scheme}-{size}")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} is wider than the screen"
        found = Axe().run(page).response["violations"]
        serious = [(rule["id"], rule["nodes"][0]["html"]) for rule in found if rule["impact"] in ("serious", "critical")]
        assert serious == [], name


def test_the_graph_shows_a_day_and_opens_it(demo_web: Running, open_page: Callable[..., Opened]) -> None:
    page = open_page().go(f"{demo_web.url}/entitlements/ent-1003")
    box = page.locator("#chart svg").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 120)
    expect(page.locator("#day-row")).to_contain_text("min ")
    said = page.inner_text("#day-row")
    day = said[:10]
    # The row under the graph says what the table says.
    row = page.locator(f"#days tr[data-day='{day}'] td").all_text_contents()
    for name, number in (("min", row[0]), ("max", row[1]), ("taken", row[7]), ("given back", row[8]), ("refused", row[9])):
        assert f"{name} {number}" in said
    page.mouse.click(box["x"] + box["width"] * 0.5, box["y"] + 120)
    page.wait_for_url(re.compile(f"day={day}"))
    expect(page.locator("#history-title")).to_have_text(f"Events of {day}")
    times = page.locator("#events time").all_text_contents()
    assert {time[:10] for time in times} == {day}
    expect(page.locator("#opened")).to_contain_text(f"the peak of {day}")
    page.wait_for_selector("#chart[data-drawn]")
    assert page.inner_text("#day-row") == said, "the row of the day that was opened"
    assert page.locator("#opened tbody tr").count() == int(row[1])


def test_the_graph_by_keyboard(demo_web: Running, open_page: Callable[..., Opened]) -> None:
    page = open_page().go(f"{demo_web.url}/entitlements/ent-1003")
    page.focus("#chart")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#day-row")).to_contain_text("2026-11-24")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#day-row")).to_contain_text("2026-11-23")
    page.keyboard.press("Home")
    expect(page.locator("#day-row")).to_contain_text("2026-10-26")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("day=2026-10-26"))


def test_the_history_in_pages_and_filtered(demo_web: Running, open_page: Callable[..., Opened]) -> None:
    page = open_page().go(f"{demo_web.url}/entitlements/ent-1003")
    first = page.locator("#events tbody tr").all_text_contents()
    page.click("text=Older")
    page.wait_for_url(re.compile("cursor="))
    second = page.locator("#events tbody tr").all_text_contents()
    assert (len(first), len(second), set(first) & set(second)) == (50, 50, set())
    page.click("text=Newest")
    page.wait_for_url(lambda url: "cursor=" not in url)
    page.select_option("select[name=type]", "seat.denied")
    page.click("text=Show >> nth=0")
    page.wait_for_url(re.compile("type=seat.denied"))
    assert set(page.locator("#events td:nth-child(2)").all_text_contents()) == {"Seat refused"}
    shown = page.locator("#events tbody tr").count()
    with page.expect_download() as download:
        page.click("#history >> text=CSV")
    lines = Path(download.value.path()).read_text().splitlines()
    assert (download.value.suggested_filename, len(lines)) == ("ent-1003-history.csv", 1 + shown)


def test_from_the_report_to_the_customer(demo_web: Running, open_page: Callable[..., Opened]) -> None:
    page = open_page().go(f"{demo_web.url}/overdrafts")
    page.click("thead >> text=Customer")
    page.wait_for_url(re.compile("sort=customer"))
    names = page.locator("tbody th b").all_text_contents()
    assert names == sorted(names) != []
    page.emulate_media(media="print")
    for hidden in (".filters", ".top nav", ".twins >> nth=0"):
        expect(page.locator(hidden)).to_be_hidden()
    keep(page, "overdrafts-printed")
    page.emulate_media(media="screen")
    page.click("tbody th a >> nth=0")
    page.wait_for_selector("#chart[data-drawn]")


def test_the_overview_finds_a_customer(demo_web: Running, open_page: Callable[..., Opened]) -> None:
    page = open_page().go(demo_web.url)
    page.fill("input[name=search]", "cobalt")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("search=cobalt"))
    assert page.locator("tbody th a").all_text_contents() == ["ent-1003"]
    page.click("text=Clear")
    page.fill("input[name=customer]", "Cobalt Labs")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("customer=Cobalt"))
    assert page.locator("tbody th a").all_text_contents() == ["ent-1003"]
    expect(page.locator(".tile.all strong")).to_have_text("1")
    page.click("text=Clear")
    page.click(".tile.overdrawn")
    page.wait_for_url(re.compile("state=overdrawn"))
    assert page.locator("tbody th a").all_text_contents() == ["ent-1002"]


def test_what_happens_while_somebody_looks(
    place: Place, open_page: Callable[..., Opened], run_web: Callable[[FastAPI], Running]
) -> None:
    place.vendor.send(ACME)
    web = run_web(place.app())
    opened = open_page()
    page = opened.go(f"{web.url}/entitlements/acme%2F1")
    expect(page.locator("#live")).to_have_attribute("data-state", "live")
    expect(page.locator("#elements")).to_contain_text("3 of 2")
    place.vendor.send([event("seat.activated", "24T09:30", seat_id="new", user="zoe@acme.example")])
    expect(page.locator("#events tbody tr").first).to_contain_text("zoe@acme.example", timeout=WAIT_MS)
    expect(page.locator("#elements")).to_contain_text("4 of 2")
    expect(page.locator("#elements .state")).to_have_class("state over_hard_limit")
    web.stop()
    expect(page.locator("#live")).to_have_attribute("data-state", "stale", timeout=WAIT_MS)
    expect(page.locator("#live-text")).to_contain_text("last heard of at")
    keep(page, "activity-log-stale")
    # It tries to reach the server until it is closed.
    page.close()
    # That the server is gone, the browser says too.
    opened.complaints = [said for said in opened.complaints if "ERR_" not in said]


def test_signing_in(acme: Place, open_page: Callable[..., Opened], run_web: Callable[[FastAPI], Running]) -> None:
    web = run_web(acme.app(sign_in=True))
    page = open_page().go(f"{web.url}/entitlements/acme%2F1?days=7")
    page.fill("input[name=token]", acme.token("acme"))
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("days=7"))
    page.wait_for_selector("#chart[data-drawn]")
    expect(page.locator("#live")).to_have_attribute("data-state", "live")
    assert page.evaluate("document.cookie") == "", "no script can read the session"
    page.click("text=Sign out")
    page.wait_for_url(re.compile("/sign-in"))
    page.goto(web.url)
    page.wait_for_url(re.compile("/sign-in"))


def test_a_graph_that_cannot_be_drawn_says_so(demo_web: Running, open_page: Callable[..., Opened]) -> None:
    opened = open_page()
    opened.page.route("**/usage?**", lambda route: route.abort())
    page = opened.page
    page.goto(f"{demo_web.url}/entitlements/ent-1003")
    expect(page.locator("#chart .failed")).to_contain_text("The table below has the same numbers")
    opened.complaints = [said for said in opened.complaints if "ERR_" not in said]


def test_on_the_running_stack_what_is_sent_is_seen_and_all_numbers_agree(
    open_page: Callable[..., Opened], tmp_path: Path
) -> None:
    """`seatmark up` with the demo's events: broker, worker, sink, ClickHouse and web as processes of their own."""
    stack = RunningStack(tmp_path / "data")
    try:
        stack.start()
        lines = [orjson.dumps(event) for event in made_up_events(int(time.time() * 1000))]
        assert stack.run("produce", "-", given=b"\n".join(lines)).returncode == 0
        web = stack.environment["SEATMARK_URL"]
        page = open_page().go(web)
        page.click("text=ent-1002")
        page.wait_for_selector("#chart[data-drawn]")
        expect(page.locator("#live")).to_have_attribute("data-state", "live")
        keep(page, "activity-log-running-stack")

        # The table of the page, the API and the command line say the same, and the audit has nothing against it.
        shown = {
            str(row.get_attribute("data-day")): row.locator("td").all_text_contents()[:2]
            for row in page.locator("#days tr[data-day]").all()
        }
        told = {day["day"]: [str(day["min"]), str(day["max"])] for day in stack.usage("ent-1002")}
        assert shown == told != {}
        audit = stack.run("audit")
        assert audit.returncode == 0, audit.stdout

        with page.expect_download() as download:
            page.click("#history >> text=CSV")
        rows = Path(download.value.path()).read_bytes()
        assert rows == httpx.get(f"{web}/api/v1/entitlements/ent-1002/history.csv").content

        # Somebody takes a seat while the page is open, and the link that was clicked has the focus.
        live = event("seat.activated", "24T09:30", seat_id="seen-live", user="zoe@borealis.example") | {
            "subject": "ent-1002", "time": format_time(int(time.time() * 1000)),
        }  # fmt: skip
        assert stack.run("produce", "-", given=orjson.dumps(live)).returncode == 0
        expect(page.locator("#events tbody tr").first).to_contain_text("zoe@borealis.example", timeout=WAIT_MS)
        assert page.evaluate("document.activeElement.textContent") == "CSV"
        page.close()
    finally:
        stack.kill()
