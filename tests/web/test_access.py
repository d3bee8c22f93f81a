"""Who may see what: tokens, sessions, and nothing of others in any answer."""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from fastapi import FastAPI

from tests.web.conftest import ACME, Place, client_of, event, terms
from views.store import connect, named_queries
from views.tokens import Scope, TokenRefused, list_tokens, make_token, revoke_token

QUERIES = Path(__file__).parents[2] / "views" / "queries"
# In everything that the other customer has.
MARKER = "zzsecretzz"
# What tells nothing of any customer.
PUBLIC = {
    "/livez", "/readyz", "/docs", "/docs/events", "/openapi.json", "/schemas/{name}", "/sign-in", "/sign-out",
    "/static/{version}/{name}",
}  # fmt: skip
STREAM = "/api/v1/events"


@pytest.fixture(scope="module")
def two(request: pytest.FixtureRequest) -> Iterator[tuple[Place, FastAPI]]:
    """Two customers: acme, and one whose every name holds MARKER but for its entitlement's id, `other/1`."""
    from tests.web.conftest import _place

    with _place(request.getfixturevalue("chdb_http")) as place:
        place.vendor.send(ACME)
        of = {"entitlement": "other/1", "customer": f"cus-{MARKER}"}
        seat = {"seat_id": f"seat-{MARKER}", "user": f"user-{MARKER}", "host": f"host-{MARKER}", "product": f"product-{MARKER}"}
        place.vendor.send(
            [
                {**terms("22T08:00", 0, **of), "id": f"terms-{MARKER}", "source": f"/{MARKER}"},
                event("seat.activated", "22T09:00", **of, **seat),
                event("seat.denied", "22T09:30", **of, **seat, reason=MARKER),
                event("seat.deactivated", "22T10:00", **of, **seat),
                event("seat.activated", "24T09:00", **of, **seat),
                event("feature.checked_out", "24T09:00", **of, **{**seat, "element": f"element-{MARKER}"}),
                # Of nobody: no customer was ever said.
                event("seat.activated", "24T09:00", "nobodys/1", None, seat_id=f"seat-{MARKER}"),
            ]
        )
        yield place, place.app(sign_in=True)


@pytest.fixture
async def scoped(two: tuple[Place, FastAPI]) -> AsyncIterator[httpx.AsyncClient]:
    """A client with a token for acme."""
    place, app = two
    async with client_of(app, place.token("acme")) as client:
        yield client


@pytest.fixture
async def anybody(two: tuple[Place, FastAPI]) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a token."""
    async with client_of(two[1]) as client:
        yield client


def routes_of(app: FastAPI) -> list[str]:
    """The paths of all routes that answer GET."""
    return sorted(set(_paths(app.routes)))


def _paths(routes: Any) -> Iterator[str]:
    for route in routes:
        if "GET" in (getattr(route, "methods", None) or ()):
            yield route.path
        # A router that was included is one of the routes.
        inner = getattr(route, "original_router", None)
        if inner is not None:
            yield from _paths(inner.routes)


def asked_for(path: str, entitlement: str) -> str:
    return path.replace("{entitlement:path}", quote(entitlement, safe="")).replace("{format}", "svg")


def test_the_routes_are_all_found(two: tuple[Place, FastAPI]) -> None:
    paths = routes_of(two[1])
    assert {"/", "/overdrafts", "/entitlements/{entitlement:path}", "/api/v1/entitlements", STREAM, "/livez"} <= set(paths)
    assert {
        path.removeprefix("/api/v1").replace("{entitlement:path}", "{entitlement}") for path in paths if path.startswith("/api")
    } <= {path.removeprefix("/api/v1") for path in two[1].openapi()["paths"]}


async def test_without_a_token_nothing_is_answered(two: tuple[Place, FastAPI], anybody: httpx.AsyncClient) -> None:
    for path in routes_of(two[1]):
        response = await anybody.get(asked_for(path, "acme/1"), headers={"accept": "text/html"})
        if path in PUBLIC:
            assert response.status_code != 401, path
        elif path.startswith("/api/"):
            assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer"), path
        else:
            assert (response.status_code, response.headers["location"][:14]) == (303, "/sign-in?next="), path
        assert "acme" not in response.text.replace("acme/1", "").replace("acme%2F1", ""), path


@pytest.mark.parametrize(
    "token", ["", "x", "seatmark_", "seatmark_0123456789ab_" + "A" * 43, "seatmark_0123456789ab_" + "é" * 43]
)
async def test_a_wrong_token_is_no_token(anybody: httpx.AsyncClient, token: str) -> None:
    headers = {"authorization": f"Bearer {token}".encode()}
    refused = await anybody.get("/api/v1/overdrafts", headers=headers)
    assert (refused.status_code, refused.json()["type"]) == (401, "urn:seatmark:problem:unauthorized")


async def test_a_secret_of_another_token_is_wrong(two: tuple[Place, FastAPI], anybody: httpx.AsyncClient) -> None:
    first, second = two[0].token("acme"), two[0].token("acme")
    mixed = first[:22] + second[22:]
    assert (await anybody.get("/api/v1/overdrafts", headers={"authorization": f"Bearer {mixed}"})).status_code == 401
    assert (await anybody.get("/api/v1/overdrafts", headers={"authorization": f"bearer {first}"})).status_code == 200


async def test_a_scoped_token_sees_nothing_of_others(two: tuple[Place, FastAPI], scoped: httpx.AsyncClient) -> None:
    """Every route, for its own and for the other's entitlement, with filters that would find the other's data."""
    answered = 0
    for path in routes_of(two[1]):
        if path in PUBLIC or path == STREAM:
            continue
        of_one = "{entitlement:path}" in path
        filters = [{"seat": f"seat-{MARKER}"}] if of_one else [{"search": MARKER}, {"customer": f"cus-{MARKER}"}]
        for entitlement in ("acme/1", "other/1", "nobodys/1") if of_one else ("",):
            for parameters in [{}, *filters]:
                response = await scoped.get(asked_for(path, entitlement), params=parameters, headers={"accept": "text/html"})
                assert response.status_code < 500, path
                # The page repeats what was searched for, in its own fields and links.
                text = response.text
                for value in parameters.values():
                    text = text.replace(value, "").replace(quote(value, safe=""), "")
                assert MARKER not in text, (path, entitlement, parameters)
                answered += response.status_code == 200
    assert answered > 25
    # The administrator finds it in each list: the test would see it.
    async with client_of(two[1], two[0].token()) as admin:
        for path in (
            "/",
            "/overdrafts",
            "/api/v1/entitlements",
            "/api/v1/overdrafts",
            "/api/v1/episodes",
            "/entitlements/other%2F1",
        ):
            assert MARKER in (await admin.get(path)).text, path


async def test_counts_are_of_what_may_be_seen(two: tuple[Place, FastAPI], scoped: httpx.AsyncClient) -> None:
    async with client_of(two[1], two[0].token()) as admin:
        everything = (await admin.get("/api/v1/entitlements")).json()["elements"]
        assert [row["entitlement"] for row in everything] == ["acme/1", "nobodys/1", "other/1", "other/1"]
        assert "4 elements of 3 entitlements, 2 customers" in " ".join((await admin.get("/")).text.split())
    assert [row["entitlement"] for row in (await scoped.get("/api/v1/entitlements")).json()["elements"]] == ["acme/1"]
    assert "1 element of 1 entitlement, 1 customer." in " ".join((await scoped.get("/")).text.split())


async def test_what_is_not_yours_is_not_there(two: tuple[Place, FastAPI], scoped: httpx.AsyncClient) -> None:
    for path in routes_of(two[1]):
        if "{entitlement:path}" not in path and path != STREAM:
            continue
        answers = []
        for entitlement in ("other/1", "absent/"):
            parameters = {"entitlement": entitlement} if path == STREAM else {}
            response = await scoped.get(asked_for(path, entitlement), params=parameters)
            answers.append((response.status_code, response.text.replace(entitlement, "...")))
        assert answers[0] == answers[1], path
        assert answers[0][0] == 404


async def test_a_token_for_two_customers_sees_both(two: tuple[Place, FastAPI]) -> None:
    place, app = two
    async with client_of(app, place.token("acme", f"cus-{MARKER}", "it's \\ [odd], 'yes'")) as client:
        rows = (await client.get("/api/v1/entitlements")).json()["elements"]
    assert sorted({row["entitlement"] for row in rows}) == ["acme/1", "other/1"]


async def test_a_customer_with_an_odd_name(place: Place) -> None:
    odd = "it's \\ [odd], 'yes' \" {x:String}\n"
    place.vendor.send([*ACME, event("seat.activated", "24T09:00", "odd/1", odd, seat_id="a")])
    async with client_of(place.app(sign_in=True), place.token(odd)) as client:
        assert [row["entitlement"] for row in (await client.get("/api/v1/entitlements")).json()["elements"]] == ["odd/1"]


def test_every_query_is_bound_to_the_scope() -> None:
    """What reads an entitlement's data reads who owns it through the one view that decides."""
    free = {"reporting_timezone", "token"}
    for file in QUERIES.glob("*.sql"):
        # What stays where no filter is set.
        text = "\n".join(line for line in file.read_text().split("\n") if " -- if " not in line)
        bound = (
            "visible_elements(everyone = {everyone:Bool}, customers = {customers:Array(String)})",
            "element IN {visible:Array(String)}",
            "(entitlement, element) IN {visible:Array(Tuple(String, String))}",
        )
        assert any(way in text for way in bound) == (file.stem not in free), file.name
        tables = re.findall(r"\b(?:FROM|JOIN) (elements|live_levels|overdrawn_now)\b", text)
        assert tables == [], f"{file.name} reads elements around the scope"
        sent = named_queries()[file.stem]
        assert sent.count("has({customers:Array(String)}, assumeNotNull(customer))") == text.count(bound[0]), file.name
        assert "visible_elements(" not in sent, f"{file.name} has the view in another spelling"


# --- Making and revoking


async def test_a_revoked_token_is_refused_from_the_next_request_on(place: Place) -> None:
    token = place.token("acme")
    async with client_of(place.app(sign_in=True), token) as client:
        assert (await client.get("/api/v1/overdrafts")).status_code == 200
        with closing(connect(place.dsn)) as database:
            revoked = revoke_token(database, token.split("_")[1])
            assert revoke_token(database, token.split("_")[1]) == revoked, "again changes nothing"
            [listed] = list_tokens(database)
        assert (await client.get("/api/v1/overdrafts")).status_code == 401
    assert listed == revoked
    assert (listed.scope, listed.revoked_at is not None) == (Scope(False, ("acme",)), True)


def test_secrets_are_not_kept(place: Place) -> None:
    token = place.token("acme")
    with closing(connect(place.dsn)) as client:
        [row] = client.query("SELECT * FROM tokens").result_rows
    assert token.split("_", 2)[2] not in str(row)


def test_tokens_that_cannot_be(place: Place) -> None:
    with closing(connect(place.dsn)) as client:
        for scope in (Scope(False), Scope(True, ("acme",))):
            with pytest.raises(TokenRefused, match="either --admin or for one --customer"):
                make_token(client, "x", scope)
        with pytest.raises(TokenRefused, match="empty text"):
            make_token(client, "x", Scope(False, ("acme", " ")))
        with pytest.raises(TokenRefused, match="there is no token 'nope'"):
            revoke_token(client, "nope")


# --- Sessions of browsers


async def test_sign_in_and_out(two: tuple[Place, FastAPI], anybody: httpx.AsyncClient) -> None:
    place, _ = two
    sent_away = await anybody.get("/entitlements/acme%2F1?days=7", headers={"accept": "text/html"})
    form = await anybody.get(sent_away.headers["location"])
    assert (
        'name="next" value="/entitlements/acme/1?days=7"' in form.text or 'value="/entitlements/acme%2F1?days=7"' in form.text
    )
    wrong = await anybody.post("/sign-in", data={"token": "seatmark_no", "next": "/"})
    assert (wrong.status_code, "not valid" in wrong.text, wrong.headers.get("set-cookie")) == (403, True, None)
    right = await anybody.post("/sign-in", data={"token": f" {place.token('acme')} ", "next": "/overdrafts"})
    assert (right.status_code, right.headers["location"]) == (303, "/overdrafts")
    cookie = right.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Secure" not in cookie, "over plain http the browser would not send it back"
    page = await anybody.get("/overdrafts")
    assert (page.status_code, page.headers["cache-control"]) == (200, "no-store")
    assert (await anybody.get("/api/v1/overdrafts")).status_code == 200
    out = await anybody.post("/sign-out")
    assert (out.status_code, out.headers["location"]) == (303, "/sign-in")
    assert (await anybody.get("/overdrafts")).status_code == 303


async def test_over_https_the_cookie_stays_on_https(two: tuple[Place, FastAPI]) -> None:
    place, app = two
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="https://seatmark.example") as client:
        response = await client.post("/sign-in", data={"token": place.token(), "next": "/"})
    assert "Secure" in response.headers["set-cookie"]


@pytest.mark.parametrize(
    "headers",
    [{"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}, {"origin": "https://evil.example"}, {"origin": "null"}],
)
async def test_forms_of_other_sites_are_refused(
    two: tuple[Place, FastAPI], anybody: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    for path in ("/sign-in", "/sign-out"):
        response = await anybody.post(path, data={"token": two[0].token(), "next": "/"}, headers=headers)
        assert (response.status_code, response.headers.get("set-cookie")) == (403, None)
    own = await anybody.post("/sign-in", data={"token": two[0].token()}, headers={"origin": "http://127.0.0.1:8000"})
    assert own.status_code == 303


@pytest.mark.parametrize(
    "next_path", ["https://evil.example/", "//evil.example/", "/\\evil.example", "javascript:alert(1)", ""]
)
async def test_signing_in_leads_to_our_own_pages_only(
    two: tuple[Place, FastAPI], anybody: httpx.AsyncClient, next_path: str
) -> None:
    response = await anybody.post("/sign-in", data={"token": two[0].token(), "next": next_path})
    assert response.headers["location"] == "/"


async def test_a_link_from_another_site_comes_through(anybody: httpx.AsyncClient) -> None:
    """It comes without the cookie, and then once more, from our own page, with it."""
    response = await anybody.get("/overdrafts", headers={"sec-fetch-site": "cross-site", "accept": "text/html"})
    assert (response.status_code, 'http-equiv="refresh" content="0"' in response.text) == (200, True)
    again = await anybody.get("/overdrafts", headers={"sec-fetch-site": "same-origin", "accept": "text/html"})
    assert again.status_code == 303


async def test_a_form_that_is_too_large(anybody: httpx.AsyncClient) -> None:
    assert (await anybody.post("/sign-in", data={"token": "x" * 5000})).status_code == 413


# --- Without sign-in


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "[::1]:8000"])
async def test_without_sign_in_this_machine_is_answered(acme: Place, host: str) -> None:
    async with client_of(acme.app()) as client:
        assert (await client.get("/api/v1/overdrafts", headers={"host": host})).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8000", "192.0.2.1", ""])
async def test_without_sign_in_other_names_are_not(acme: Place, host: str) -> None:
    """A page elsewhere whose name was made to lead to 127.0.0.1 would read everything."""
    async with client_of(acme.app()) as client:
        refused = await client.get("/api/v1/overdrafts", headers={"host": host})
    assert (refused.status_code, "acme" in refused.text) == (421, False)


# --- What browsers are told


async def test_pages_allow_nothing_from_elsewhere(scoped: httpx.AsyncClient) -> None:
    for path in ("/", "/overdrafts", "/entitlements/acme%2F1", "/sign-in", "/docs", "/nowhere"):
        response = await scoped.get(path, headers={"accept": "text/html"})
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["content-type"].startswith("text/html")
        # What such a policy would block is not there: scripts and styles within the page, and addresses of others.
        assert (
            re.findall(r"<script(?![^>]* src=)|<style|\bstyle=|\bon\w+=\"|(?:src|href)=\"(?:https?:)?//", response.text) == []
        )


async def test_static_files_are_kept_for_ever_and_change_their_address(scoped: httpx.AsyncClient) -> None:
    page = (await scoped.get("/entitlements/acme%2F1")).text
    addresses = re.findall(r'"(/static/[^"]+)"', page)
    assert {address.rsplit("/", 1)[1] for address in addresses} == {
        "seatmark.css", "icon.svg", "vega.js", "activity.js", "activity.vl.json"
    }  # fmt: skip
    for address in addresses:
        if not address.endswith("vega.js"):
            response = await scoped.get(address)
            assert (response.status_code, response.headers["cache-control"]) == (200, "public, max-age=31536000, immutable")
    assert (await scoped.get(f"/static/{'0' * 16}/seatmark.css")).status_code == 404
