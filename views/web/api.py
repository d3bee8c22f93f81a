"""The JSON API: /api/v1. Every answer comes from a `Reader`, which sees what the one who asks may see."""

import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import StreamingResponse

from schemas.events import EVENT_TYPES
from views.web.access import reader_of
from views.web.answers import (
    Entitlement,
    Entitlements,
    Episode,
    Episodes,
    History,
    HistoryEvent,
    Holder,
    Holders,
    ListedElement,
    Overdraft,
    Overdrafts,
    Sizing,
    Usage,
    UsageDay,
)
from views.web.live import stream_news
from views.web.problems import Problem, ProblemBody
from views.web.reading import MAX_DAYS, MAX_PAGE, WINDOW_DAYS, ElementFilter, EventFilter, Reader, ReportOrder, milliseconds
from views.web.tables import csv_response

Standing = Literal["within", "at_limit", "overdraft", "at_hard_limit", "over_hard_limit", "overdrawn", "idle", "denied"]

_Element = Annotated[
    str | None, Query(description="`seats`, or a feature. Default: `seats` if there is one, else the only element")
]
_OneElement = Annotated[str, Query(description="`seats`, or a feature. Default: all")]
_Days = Annotated[int, Query(ge=1, le=MAX_DAYS, description="how many days, the last one included")]
_To = Annotated[datetime.date | None, Query(description="the last day, a local date. Default: today")]
_Zone = Annotated[
    str | None,
    Query(
        description="days of another time zone than the reporting one, an IANA name. They are folded anew from the raw log, in "
        "order of time, so they are exact"
    ),
]
_Types = Annotated[
    list[str], Query(alias="type", description="only these event types, such as `seat.denied`; may be given more than once")
]
_Seat = Annotated[str, Query(description="only events of this seat_id")]
_User = Annotated[str, Query(description="only events of this user")]
_From = Annotated[str | None, Query(alias="from", description="only events at or after this time, RFC 3339 with a zone")]
_Before = Annotated[str | None, Query(alias="to", description="only events before this time, RFC 3339 with a zone")]
_Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="how many rows at most")]
_Cursor = Annotated[str | None, Query(description="`next` of the answer before this one")]
_Search = Annotated[
    str,
    Query(max_length=200, description="only those with this text in their id, customer, product or name; case does not matter"),
]
_Customer = Annotated[str, Query(description="only those of this customer")]
_Product = Annotated[str, Query(description="only those of this product")]
_Standing = Annotated[
    Standing | None,
    Query(
        alias="state",
        description="only those in this state; `overdrawn` is any above the limit, `idle` bought and hardly used in 30 days, "
        "`denied` refused somebody in 30 days",
    ),
]
_Sort = Annotated[
    Literal["entitlement", "utilisation"],
    Query(description="by entitlement and element, or by level / limit, the highest first"),
]

_Now = Annotated[bool, Query(description="only those above their limit now")]
_ReportSort = Annotated[
    ReportOrder | None,
    Query(
        description="by name of the customer, or the greatest first of: units above the limit now, time above it, episodes, "
        "peak, unit-hours, requests refused, trend, units to buy. Default: those above it now, then those that were for longest"
    ),
]

ERRORS: dict[int | str, dict[str, Any]] = {
    401: {"model": ProblemBody, "description": "There is no valid token"},
    404: {"model": ProblemBody, "description": "There is no such entitlement or element, or it is not yours to see"},
    422: {"model": ProblemBody, "description": "A parameter is missing or not as it should be"},
    503: {"model": ProblemBody, "description": "ClickHouse does not answer, or not in time"},
}
_CSV: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/csv": {"schema": {"type": "string"}}}, "description": "The rows, with a header line"},
    **ERRORS,
}
_STREAM: dict[str, Any] = {
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
    "description": "Server-sent events, until the stream ends",
}


async def _known_parameters(request: Request) -> None:
    """Refuse a parameter that the route does not have: a filter with a typing error would answer as if it were not there."""
    # On the event loop: a thread for it would cost each request more than this takes. The document is made at the start.
    route = request.app.openapi()["paths"][request.scope["route"].path_format]["get"]
    known = [parameter["name"] for parameter in route.get("parameters", []) if parameter["in"] == "query"]
    for name in request.query_params:
        if name not in known:
            raise Problem(
                422, "invalid-request", f"query.{name}: there is no such parameter here; there are {', '.join(known)}"
            )


router = APIRouter(prefix="/api/v1", dependencies=[Depends(_known_parameters)])

_Reading = Annotated[Reader, Depends(reader_of)]


def _event_filter(
    element: _OneElement = "",
    types: _Types = [],  # noqa: B006 (FastAPI copies it)
    seat: _Seat = "",
    user: _User = "",
    since: _From = None,
    before: _Before = None,
) -> EventFilter:
    unknown = sorted(set(types) - EVENT_TYPES)
    if unknown:
        raise Problem(
            422, "invalid-request", f"query.type: expected one of {', '.join(sorted(EVENT_TYPES))}, got {unknown[0]!r}"
        )
    span = {
        name: milliseconds(f"query.{parameter}", text)
        for name, parameter, text in (("from_ms", "from", since), ("to_ms", "to", before))
        if text is not None
    }
    return EventFilter(element, tuple(types), seat, user, **span)


_Events = Annotated[EventFilter, Depends(_event_filter)]


def _element_filter(
    search: _Search = "", customer: _Customer = "", product: _Product = "", state: _Standing = None, sort: _Sort = "entitlement"
) -> ElementFilter:
    return ElementFilter(search, customer, product, state or "", sort)


_Elements = Annotated[ElementFilter, Depends(_element_filter)]


@router.get("/entitlements", responses=ERRORS, tags=["entitlements"])
def entitlements(read: _Reading, wanted: _Elements, limit: _Limit = 50, cursor: _Cursor = None) -> Entitlements:
    """Entitlements, a row for each of their elements: how it stands, and its last 30 days."""
    page = read.elements(wanted, limit, cursor)
    return Entitlements.model_validate({"timezone": read.timezone, "elements": page.rows, "next": page.next})


@router.get("/entitlements.csv", responses=_CSV, tags=["entitlements"], response_class=StreamingResponse)
def entitlements_csv(read: _Reading, wanted: _Elements) -> StreamingResponse:
    """The same as CSV: all of them."""
    return csv_response(ListedElement, read.all_elements(wanted), "entitlements.csv")


@router.get("/overdrafts", responses=ERRORS, tags=["overdrafts"])
def overdrafts(
    read: _Reading,
    customer: _Customer = "",
    product: _Product = "",
    now: _Now = False,
    sort: _ReportSort = None,
) -> Overdrafts:
    """Who is above the limit now, or was in the last 30 days; and how many units would have been enough."""
    rows = read.overdrafts(customer=customer, product=product, now=now, sort=sort)
    return Overdrafts.model_validate({"timezone": read.timezone, "overdrafts": rows})


@router.get("/overdrafts.csv", responses=_CSV, tags=["overdrafts"], response_class=StreamingResponse)
def overdrafts_csv(
    read: _Reading,
    customer: _Customer = "",
    product: _Product = "",
    now: _Now = False,
    sort: _ReportSort = None,
) -> StreamingResponse:
    """The same as CSV, without the days."""
    return csv_response(Overdraft, read.overdrafts(customer=customer, product=product, now=now, sort=sort), "overdrafts.csv")


@router.get("/episodes", responses=ERRORS, tags=["overdrafts"])
def all_episodes(read: _Reading, days: _Days = WINDOW_DAYS, limit: _Limit = 50, cursor: _Cursor = None) -> Episodes:
    """Overdrafts of all entitlements that touch the last days, the latest first."""
    page = read.episodes("", "", days, limit, cursor)
    return Episodes.model_validate({"timezone": read.timezone, "episodes": page.rows, "next": page.next})


@router.get("/episodes.csv", responses=_CSV, tags=["overdrafts"], response_class=StreamingResponse)
def all_episodes_csv(read: _Reading, days: _Days = WINDOW_DAYS) -> StreamingResponse:
    """The same as CSV: all of them, sent as they are read."""
    return csv_response(Episode, read.all_episodes("", "", days), "episodes.csv")


@router.get("/events", responses={**ERRORS, 200: _STREAM}, tags=["live"], response_class=StreamingResponse)
async def events(
    request: Request,
    read: _Reading,
    entitlement: Annotated[str, Query(description="the entitlement whose events are sent")],
) -> StreamingResponse:
    """New events of one entitlement as they are stored, and its levels after them: server-sent events.

    `activity`: an event, as in the history. `levels`: the entitlement, as in its own answer; after new events, and else every
    five seconds, so that silence means trouble. `stale`: ClickHouse does not answer; it goes on later. Each `activity` has
    an id: with it as `Last-Event-ID` the stream goes on after that event. It ends after five minutes; browsers come back.
    """
    return await stream_news(request, read, entitlement)


# Ids may hold slashes, so they are matched as paths; the longer routes come first.


@router.get("/entitlements/{entitlement:path}/usage", responses=ERRORS, tags=["usage"])
def usage(
    read: _Reading, entitlement: str, element: _Element = None, days: _Days = WINDOW_DAYS, to: _To = None, tz: _Zone = None
) -> Usage:
    """How one element of an entitlement was used, day by day."""
    return Usage.model_validate(read.usage(entitlement, element, days, to, tz))


@router.get("/entitlements/{entitlement:path}/usage.csv", responses=_CSV, tags=["usage"], response_class=StreamingResponse)
def usage_csv(
    read: _Reading, entitlement: str, element: _Element = None, days: _Days = WINDOW_DAYS, to: _To = None, tz: _Zone = None
) -> StreamingResponse:
    """The same as CSV."""
    answer = read.usage(entitlement, element, days, to, tz)
    return csv_response(UsageDay, answer["days"], f"{entitlement}-{answer['element']}-usage.csv")


@router.get("/entitlements/{entitlement:path}/history", responses=ERRORS, tags=["history"])
def history(read: _Reading, entitlement: str, wanted: _Events, limit: _Limit = 50, cursor: _Cursor = None) -> History:
    """Events of one entitlement, newest first."""
    page = read.history(entitlement, wanted, limit, cursor)
    return History.model_validate(
        {"entitlement": entitlement, "timezone": read.timezone, "events": page.rows, "next": page.next}
    )


@router.get("/entitlements/{entitlement:path}/history.csv", responses=_CSV, tags=["history"], response_class=StreamingResponse)
def history_csv(read: _Reading, entitlement: str, wanted: _Events) -> StreamingResponse:
    """The same as CSV: all of them, sent as they are read."""
    return csv_response(HistoryEvent, read.whole_history(entitlement, wanted), f"{entitlement}-history.csv")


@router.get("/entitlements/{entitlement:path}/episodes", responses=ERRORS, tags=["overdrafts"])
def episodes(
    read: _Reading,
    entitlement: str,
    element: _OneElement = "",
    days: _Days = WINDOW_DAYS,
    limit: _Limit = 50,
    cursor: _Cursor = None,
) -> Episodes:
    """Overdrafts of one entitlement that touch the last days, the latest first."""
    page = read.episodes(entitlement, element, days, limit, cursor)
    return Episodes.model_validate({"timezone": read.timezone, "episodes": page.rows, "next": page.next})


@router.get(
    "/entitlements/{entitlement:path}/episodes.csv", responses=_CSV, tags=["overdrafts"], response_class=StreamingResponse
)
def episodes_csv(
    read: _Reading, entitlement: str, element: _OneElement = "", days: _Days = WINDOW_DAYS
) -> StreamingResponse:  # fmt: skip
    """The same as CSV: all of them, sent as they are read."""
    return csv_response(Episode, read.all_episodes(entitlement, element, days), f"{entitlement}-episodes.csv")


@router.get("/entitlements/{entitlement:path}/holders", responses=ERRORS, tags=["history"])
def holders(
    read: _Reading,
    entitlement: str,
    element: _Element = None,
    at: Annotated[str | None, Query(description="the moment, RFC 3339 with a zone. Default: the peak of the day")] = None,
    day: Annotated[datetime.date | None, Query(description="the day whose peak is meant, a local date. Default: today")] = None,
) -> Holders:
    """Who held an element at a moment."""
    return Holders.model_validate(read.holders(entitlement, element, at, day))


@router.get("/entitlements/{entitlement:path}/holders.csv", responses=_CSV, tags=["history"], response_class=StreamingResponse)
def holders_csv(
    read: _Reading,
    entitlement: str,
    element: _Element = None,
    at: Annotated[str | None, Query(description="the moment, RFC 3339 with a zone. Default: the peak of the day")] = None,
    day: Annotated[datetime.date | None, Query(description="the day whose peak is meant, a local date. Default: today")] = None,
) -> StreamingResponse:
    """The same as CSV."""
    answer = read.holders(entitlement, element, at, day)
    return csv_response(Holder, answer["holders"], f"{entitlement}-{answer['element']}-holders.csv")


@router.get("/entitlements/{entitlement:path}/sizing", responses=ERRORS, tags=["overdrafts"])
def sizing(read: _Reading, entitlement: str, element: _Element = None) -> Sizing:
    """How many units of one element would have been enough in the last 30 days."""
    return Sizing.model_validate(read.sizing(entitlement, element))


@router.get("/entitlements/{entitlement:path}", responses=ERRORS, tags=["entitlements"])
def entitlement(read: _Reading, entitlement: str) -> Entitlement:
    """An entitlement, and how its elements stand."""
    return Entitlement.model_validate(read.entitlement(entitlement))
