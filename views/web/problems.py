"""The one shape of errors: RFC 9457, `application/problem+json`."""

from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from views.store import QueryTooLarge, StoreUnavailable

MEDIA_TYPE = "application/problem+json"
_TYPE = "urn:seatmark:problem:"


class ProblemBody(BaseModel):
    """What went wrong. Some problems carry more members, which their `detail` speaks of."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="What kind of problem it is; the same text whenever it is the same kind")
    title: str = Field(description="The kind of problem, for people")
    status: int = Field(description="The HTTP status")
    detail: str = Field(description="This very problem, and what to do")


class Problem(Exception):
    """Ends a request with a problem. kind: the end of its type, such as `unknown-entitlement`."""

    def __init__(self, status: int, kind: str, detail: str, **members: Any) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.members = members

    @property
    def title(self) -> str:
        """The kind for people."""
        return self.kind.replace("-", " ").capitalize()


def problem_response(request: Request, problem: Problem) -> Response:
    """The answer that tells a problem: as JSON, and to a browser that asked for a page as one."""
    if not request.url.path.startswith(("/api/", "/static/")) and "text/html" in request.headers.get("accept", ""):
        page: Response = request.app.state.problem_page(problem)
        return page
    body = {
        "type": _TYPE + problem.kind,
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
        **problem.members,
    }
    headers = {"www-authenticate": "Bearer"} if problem.status == HTTPStatus.UNAUTHORIZED else None
    return Response(orjson.dumps(body), problem.status, headers=headers, media_type=MEDIA_TYPE)


def answer_with_problems(app: FastAPI) -> None:
    """Let every error of an application be answered as a problem. app.state.problem_page: draws one as a page."""

    @app.exception_handler(Problem)
    def known(request: Request, error: Problem) -> Response:
        return problem_response(request, error)

    @app.exception_handler(StoreUnavailable)
    def store_unavailable(request: Request, error: StoreUnavailable) -> Response:
        return problem_response(request, Problem(503, "store-unavailable", str(error)))

    @app.exception_handler(QueryTooLarge)
    def too_large(request: Request, error: QueryTooLarge) -> Response:
        return problem_response(request, Problem(503, "query-too-large", str(error)))

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> Response:
        errors = [{"field": ".".join(str(part) for part in found["loc"]), "expected": found["msg"]} for found in error.errors()]
        detail = "; ".join(f"{found['field']}: {found['expected']}" for found in errors)
        return problem_response(request, Problem(422, "invalid-request", detail, errors=errors))

    @app.exception_handler(HTTPException)
    def by_status(request: Request, error: HTTPException) -> Response:
        phrase = HTTPStatus(error.status_code).phrase
        response = problem_response(
            request,
            Problem(error.status_code, phrase.lower().replace(" ", "-"), f"{request.method} {request.url.path}: {phrase}"),
        )
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    def unexpected(request: Request, error: Exception) -> Response:
        # Starlette logs the error with its traceback; the caller learns nothing of our insides.
        return problem_response(request, Problem(500, "internal-error", "Seatmark failed to answer; its log says why"))


def describe_problems(schema: dict[str, Any]) -> None:
    """Give the error answers of an OpenAPI document their media type: FastAPI writes application/json for every model."""
    for operations in schema["paths"].values():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                if status >= "400" and "application/json" in response.get("content", {}):
                    response["content"] = {MEDIA_TYPE: response["content"].pop("application/json")}
