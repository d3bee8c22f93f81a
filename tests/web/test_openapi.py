"""The API against its own description: whatever is asked, the answer is one that it describes."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.specs.openapi.checks import response_schema_conformance

from tests.web.conftest import Place

# Of each operation. More find more, and take longer.
EXAMPLES = 5


@pytest.fixture(scope="module")
def token(acme: Place) -> dict[str, str]:
    return {"authorization": f"Bearer {acme.token('acme')}"}


def operations(place: Place) -> Iterator[Any]:
    """What the document describes, but for the stream, which has no end."""
    document = schemathesis.openapi.from_asgi("/openapi.json", place.app(sign_in=True))
    for found in document.get_all_operations():
        operation = found.ok()
        if operation.path != "/api/v1/events":
            yield operation


def test_every_answer_is_as_described(acme: Place, token: dict[str, str]) -> None:
    asked = set()
    for operation in operations(acme):

        @given(case=operation.as_strategy())
        @settings(max_examples=EXAMPLES, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
        def check(case: Any) -> None:
            response = case.call(headers=token)
            assert response.status_code < 500, (case.path, response.text)
            case.validate_response(response, checks=[response_schema_conformance])
            asked.add(case.path)

        check()
    assert len(asked) > 15


def test_questions_that_have_answers_are_as_described(acme: Place, token: dict[str, str]) -> None:
    """Made-up ids find nothing; this one is there."""
    asked = set()
    for operation in operations(acme):
        case = operation.Case(path_parameters={"entitlement": "acme/1"} if "{entitlement}" in operation.path else {})
        response = case.call(headers=token)
        assert response.status_code == 200, (operation.path, response.text)
        case.validate_response(response, checks=[response_schema_conformance])
        asked.add(operation.path)
    assert len(asked) > 15
