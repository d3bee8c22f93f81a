"""The pages, drawn on the server from the same answers as the API's. What is asked for is all in the address."""

import contextlib
import datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs, quote, urlencode
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from processors.domain.days import Calendar
from processors.domain.overdraft import OVERDRAWN
from schemas.events import EVENT_TYPES, format_time
from views.store import QueryTooLarge, Store, StoreUnavailable
from views.tokens import EVERYTHING, scope_of
from views.web import chart, wording
from views.web.access import page_reader_of, refuse_other_sites, sign_in, sign_out
from views.web.api import Standing
from views.web.assets import static
from views.web.problems import Problem
from views.web.reading import MAX_DAYS, WINDOW_DAYS, ElementFilter, EventFilter, Reader, ReportOrder, at_once, choose_element

_PAGE = 50
_MAX_FORM_BYTES = 4096
_ONE_DAY = datetime.timedelta(days=1)

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)

_Reading = Annotated[Reader, Depends(page_reader_of)]
_Days = Annotated[int, Query(ge=1, le=MAX_DAYS)]


def _environment() -> Environment:
    templates = Path(__file__).parent / "templates"
    environment = Environment(loader=FileSystemLoader(templates), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.globals["static"] = static
    environment.globals["over"] = OVERDRAWN
    environment.globals["page_of"] = page_of
    for word in (
        wording.units,
        wording.change,
        wording.duration,
        wording.hours,
        wording.moment,
        wording.event_name,
        wording.note,
        wording.trend,
        chart.spark,
    ):
        environment.filters[word.__name__] = word
    return environment


def page_of(entitlement: str, **parameters: Any) -> str:
    """The address of an entitlement's page."""
    return f"/entitlements/{quote(entitlement, safe='')}{_query(parameters)}"


_templates = _environment()


def prepare(store: Store, now_ms: int) -> None:
    """Do what the first request would wait for: compile the templates, open the store, and ask it what the pages ask.

    A store that does not answer yet is left for the first request.
    """
    for template in _templates.list_templates():
        _templates.get_template(template)
    read = Reader(store, EVERYTHING, now_ms)
    with contextlib.suppress(StoreUnavailable, QueryTooLarge):
        read.overdrafts()
        page, _ = at_once(lambda: read.elements(ElementFilter(), 1, None), lambda: read.totals(ElementFilter()), read.names)
        for row in page.rows:
            read.usage(row["entitlement"], row["element"], WINDOW_DAYS, None, None)
            read.history(row["entitlement"], EventFilter(), _PAGE, None)


def drawn(template: str, status_code: int = 200, /, **context: Any) -> HTMLResponse:
    """A page. It is not kept by caches: it holds what one reader may see."""
    text = _templates.get_template(template).render(**context)
    return HTMLResponse(text, status_code, headers={"cache-control": "no-store"})


@router.get("/")
def overview(
    request: Request,
    read: _Reading,
    search: Annotated[str, Query(max_length=200)] = "",
    customer: str = "",
    product: str = "",
    state: Annotated[Standing | Literal[""], Query()] = "",
    sort: Literal["entitlement", "utilisation"] = "entitlement",
    cursor: str | None = None,
) -> Response:
    """Entitlements by state and utilisation."""
    wanted = ElementFilter(search.strip(), customer, product, state, sort)
    page, [totals, names] = at_once(lambda: read.elements(wanted, _PAGE, cursor), lambda: read.totals(wanted), read.names)
    asked = {"search": wanted.search, "customer": customer, "product": product, "state": state, "sort": sort}
    return drawn(
        "overview.html",
        **_frame(request, read, "overview"),
        rows=page.rows,
        next=page.next,
        cursor=cursor,
        wanted=wanted,
        totals=totals,
        names=names,
        query=_query(asked),
        scoped=not read.scope.everyone,
    )


@router.get("/overdrafts")
def overdrafts(
    request: Request,
    read: _Reading,
    customer: str = "",
    product: str = "",
    now: bool = False,
    sort: ReportOrder = "time",
) -> Response:
    """The overdraft report."""
    rows, [names] = at_once(lambda: read.overdrafts(customer=customer, product=product, now=now, sort=sort), read.names)
    first_day = read.today - (WINDOW_DAYS - 1) * _ONE_DAY
    first = Calendar(read.timezone).bounds(first_day)
    return drawn(
        "overdrafts.html",
        **_frame(request, read, "overdrafts"),
        rows=rows,
        first_day=first_day,
        window_seconds=max(1, read.now_ms - (first.start if first is not None else 0)) / 1000,
        names=names,
        customer=customer,
        product=product,
        only_now=now,
        sort=sort,
        query=_query({"customer": customer, "product": product, "now": "true" if now else "", "sort": sort}),
    )


@router.get("/entitlements/{entitlement:path}/chart.{format}")
def chart_image(
    read: _Reading,
    entitlement: str,
    format: Literal["svg", "png"],
    element: str | None = None,
    days: _Days = WINDOW_DAYS,
    to: datetime.date | None = None,
    tz: str | None = None,
    theme: chart.Theme = "light",
) -> Response:
    """The graph of an element as an image."""
    usage = read.usage(entitlement, element, days, to, tz or None)
    media_type = {"svg": "image/svg+xml", "png": "image/png"}[format]
    return Response(chart.drawn(usage, format, theme), media_type=media_type, headers={"cache-control": "no-store"})


@router.get("/entitlements/{entitlement:path}")
def activity_log(
    request: Request,
    read: _Reading,
    entitlement: str,
    element: str | None = None,
    days: _Days = WINDOW_DAYS,
    to: str = "",
    type: Annotated[list[str], Query()] = [],  # noqa: B006 (FastAPI copies it)
    seat: str = "",
    user: str = "",
    tz: str = "",
    day: str = "",
    at: str = "",
    cursor: str | None = None,
) -> Response:
    """The Activity log of one entitlement."""
    said = read.entitlement(entitlement)
    chosen = choose_element(entitlement, said["elements"], element or said["elements"][0]["element"])
    last_asked = _date("query.to", to)
    usage = read.usage(entitlement, chosen, days, last_asked, tz.strip() or None)
    zone = usage["timezone"]
    opened = _date("query.day", day)
    first_day, last_day = (opened, opened) if opened is not None else _first_and_last(usage, read)
    types = tuple(sorted({name for name in type if name in EVENT_TYPES}))
    wanted = EventFilter(chosen, types, seat.strip(), user.strip(), *_span(zone, first_day, last_day))
    history = read.history(entitlement, wanted, _PAGE, cursor)
    kind = next(each["kind"] for each in said["elements"] if each["element"] == chosen)
    held = None
    # Nobody holds what a counter counts.
    if kind == "pool" and (at.strip() or opened is not None):
        held = read.holders(entitlement, chosen, _moment(at.strip(), zone) or None, opened, zone)
    asked = {"element": chosen, "days": days, "to": to, "tz": tz.strip()}
    of_events = {
        "element": chosen, "type": list(types), "seat": wanted.seat, "user": wanted.user, "from": format_time(wanted.from_ms),
        "to": format_time(wanted.to_ms),
    }  # fmt: skip
    of_holders = {"element": chosen, "at": held["at"] if held is not None else ""}
    address = f"/api/v1/entitlements/{quote(entitlement, safe='')}"
    return drawn(
        "entitlement.html",
        **_frame(request, read, "entitlement", zone),
        here=page_of(entitlement),
        said=said,
        element=chosen,
        kind=kind,
        usage=usage,
        summary=_summary(usage),
        days=days,
        to=to,
        tz=tz.strip(),
        reporting_zone=read.timezone,
        wanted=wanted,
        event_types=sorted(wording.EVENT_NAMES.items(), key=lambda named: named[1]),
        day=opened.isoformat() if opened is not None else "",
        last_day=last_day.isoformat(),
        at=at.strip(),
        held=held,
        kept=[(name, value) for name, value in {**asked, "day": day}.items() if value],
        events=history.rows,
        next=history.next,
        cursor=cursor,
        credential=next((event["credential"] for event in history.rows if event["credential"]), None),
        scripts=static("vega.js"),
        usage_json=f"{address}/usage{_query(asked)}",
        usage_csv=f"{address}/usage.csv{_query(asked)}",
        history_json=f"{address}/history{_query(of_events)}",
        history_csv=f"{address}/history.csv{_query(of_events)}",
        held_json=f"{address}/holders{_query(of_holders)}",
        held_csv=f"{address}/holders.csv{_query(of_holders)}",
        chart_svg=f"{page_of(entitlement)}/chart.svg{_query(asked)}",
        chart_png=f"{page_of(entitlement)}/chart.png{_query(asked)}",
    )


@router.get("/sign-in")
def sign_in_page(request: Request, next: str = "/") -> Response:
    """The form to sign in with a token."""
    return drawn("sign_in.html", next=_own_path(next), wrong=False)


@router.post("/sign-in")
async def sign_in_with_token(request: Request) -> Response:
    """Sign in: the browser keeps the token in a cookie that no script and no other site can use."""
    refuse_other_sites(request)
    body = await request.body()
    if len(body) > _MAX_FORM_BYTES:
        raise Problem(413, "too-large", "expected a form with a token")
    form = {name: values[0] for name, values in parse_qs(body.decode(errors="replace")).items()}
    token, following = form.get("token", "").strip(), _own_path(form.get("next", "/"))
    if scope_of(request.app.state.access.store, token) is None:
        return drawn("sign_in.html", 403, next=following, wrong=True)
    response = RedirectResponse(following, 303)
    sign_in(response, request, token)
    return response


@router.post("/sign-out")
def sign_out_of_it(request: Request) -> Response:
    """Sign out."""
    refuse_other_sites(request)
    response = RedirectResponse("/sign-in", 303)
    sign_out(response)
    return response


def _frame(request: Request, read: Reader, page: str, zone: str | None = None) -> dict[str, Any]:
    """What every page shows: who looks, when, in which time zone; and how its links keep what was asked for."""

    def link(**changes: Any) -> str:
        asked = {name: request.query_params.getlist(name) for name in request.query_params}
        return address_of(request) + _query({**asked, **changes})

    return {
        "page": page,
        "signed_in": request.app.state.access.required,
        "now": format_time(read.now_ms),
        "today": read.today.isoformat(),
        "zone": zone or read.timezone,
        "link": link,
    }


def address_of(request: Request) -> str:
    """The path as it was asked for: decoded, `%2F` of an id would be a slash, and `%252F` a `%2F`."""
    return bytes(request.scope.get("raw_path") or quote(request.url.path).encode()).decode("ascii", "replace").partition("?")[0]


def _query(parameters: dict[str, Any]) -> str:
    """`?a=b` of those that are said."""
    said = {name: value for name, value in parameters.items() if value not in (None, "", [])}
    return f"?{urlencode(said, doseq=True)}" if said else ""


def _own_path(path: str) -> str:
    """A path of ours, whatever was asked for: nobody is sent to another site after signing in."""
    return path if path.startswith("/") and not path.startswith(("//", "/\\")) else "/"


def _date(parameter: str, text: str) -> datetime.date | None:
    if not text.strip():
        return None
    try:
        return datetime.date.fromisoformat(text.strip())
    except ValueError as error:
        raise Problem(422, "invalid-request", f"{parameter}: expected a date such as 2026-01-31, got {text!r}") from error


def _moment(text: str, timezone: str) -> str:
    """A time of a form, which names no zone, as RFC 3339; any other text as it is."""
    try:
        time = datetime.datetime.fromisoformat(text)
    except ValueError:
        return text
    return text if time.tzinfo is not None else time.replace(tzinfo=ZoneInfo(timezone)).isoformat()


def _first_and_last(usage: dict[str, Any], read: Reader) -> tuple[datetime.date, datetime.date]:
    dates = [datetime.date.fromisoformat(day["day"]) for day in usage["days"]] or [read.today]
    return dates[0], dates[-1]


def _span(timezone: str, first: datetime.date, last: datetime.date) -> tuple[int, int]:
    """From the first instant of a date to the end of another, in ms."""
    calendar = Calendar(timezone)
    start, end = calendar.bounds(first), calendar.bounds(last)
    if start is None or end is None:
        raise Problem(422, "invalid-request", f"query.day: {first} or {last} does not exist in {timezone}")
    return max(0, start.start), end.end


def _summary(usage: dict[str, Any]) -> str:
    """The graph in a sentence, for who does not see it."""
    days = usage["days"]
    if not days:
        return "No days."
    over = sum(1 for day in days if day["peak_overage"])
    return (
        f"Graph of {usage['element']}, {len(days)} days up to {days[-1]['day']}: between {min(day['min'] for day in days)} and "
        f"{max(day['max'] for day in days)} units in use, above the limit on {over} days."
    )
