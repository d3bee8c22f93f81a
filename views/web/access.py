"""Who is asking: a bearer token, or the cookie of a signed-in browser. Nothing is answered before that is known.

The cookie holds the token itself: there is no second kind of secret to keep, and revoking the token ends the session.
"""

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from views.store import Store
from views.tokens import EVERYTHING, Scope, scope_of
from views.web.problems import Problem
from views.web.reading import Reader

COOKIE = "seatmark_session"
SESSION_SECONDS = 12 * 3600
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class SignInNeeded(Exception):
    """A page was asked for by somebody who is not signed in."""


@dataclass(frozen=True)
class Access:
    """Finds out what a request may see, and reads for it.

    required: False lets everybody see everything. now_ms: the present, in ms since 1970.
    """

    store: Store
    required: bool
    now_ms: Callable[[], int]

    def scope(self, request: HTTPConnection) -> Scope:
        """What the one who asks may see. Raises Problem 401, the same for every kind of wrong token."""
        if not self.required:
            return EVERYTHING
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer":
            token = request.cookies.get(COOKIE, "")
        scope = scope_of(self.store, token.strip())
        if scope is None:
            raise Problem(
                401,
                "unauthorized",
                "expected a valid token: `Authorization: Bearer seatmark_...`, made with `seatmark tokens make`",
            )
        return scope


def reader_of(request: Request) -> Reader:
    """What answers a request of the API. Raises Problem 401."""
    access: Access = request.app.state.access
    return Reader(access.store, access.scope(request), access.now_ms())


def page_reader_of(request: Request) -> Reader:
    """What answers a request for a page. Raises SignInNeeded."""
    try:
        return reader_of(request)
    except Problem as refused:
        raise SignInNeeded from refused


def refuse_other_sites(request: Request) -> None:
    """Let a form be sent by our own pages only; browsers say where it comes from. Raises Problem 403.

    A cookie is not enough to tell: signing somebody in to another's account needs none.
    """
    if request.method in _SAFE_METHODS:
        return
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    ours = (
        site in ("same-origin", "none") if site is not None else origin is None or urlsplit(origin).netloc == request.url.netloc
    )
    if not ours:
        raise Problem(403, "other-site", "this form was sent by a page of another site: open Seatmark itself and send it there")


def sign_in(response: Response, request: Request, token: str) -> None:
    """Let the browser keep the token: out of reach of scripts, and sent with requests that our own pages make only."""
    response.set_cookie(
        COOKIE, token, max_age=SESSION_SECONDS, path="/", httponly=True, samesite="strict", secure=request.url.scheme == "https"
    )


def sign_out(response: Response) -> None:
    """Let the browser forget it."""
    response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
