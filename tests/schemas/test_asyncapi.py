"""The AsyncAPI document: the published file, and that what it says is what the rest of the contract says."""

from typing import Any

import pytest
from jsonschema import Draft202012Validator

from processors.outputs import dead_letter_headers
from schemas.asyncapi import asyncapi, json_schemas, public_topics, published
from schemas.dead_letters import DEAD_REASON, HEADERS
from schemas.events import Refused
from tests.miniature import Record
from tests.schemas.contract import FORMATS, SCHEMAS, complaints, validator

DOCUMENT = asyncapi()


def test_the_published_file_is_what_is_made_of_the_contract() -> None:
    assert (SCHEMAS / "asyncapi.yaml").read_text(encoding="utf-8") == published(), "python -m schemas.asyncapi makes it"


def test_it_has_the_topics_that_others_write_or_read() -> None:
    assert list(DOCUMENT["channels"]) == ["entitlement-events", "entitlement-events-dlq", "overdraft-alerts"]
    actions = {operation["channel"]["$ref"]: operation["action"] for operation in DOCUMENT["operations"].values()}
    assert actions == {
        "#/channels/entitlement-events": "receive",
        "#/channels/entitlement-events-dlq": "send",
        "#/channels/overdraft-alerts": "send",
    }


def test_every_reference_leads_somewhere() -> None:
    refs = list(references(DOCUMENT))
    assert len(refs) > 7
    for ref in refs:
        if ref.startswith("#/"):
            node: Any = DOCUMENT
            for part in ref.removeprefix("#/").split("/"):
                node = node[part]
        else:
            assert ref.removeprefix("./") in json_schemas()


def references(node: Any) -> Any:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref":
                yield value
            elif key != "examples":
                yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


@pytest.mark.parametrize("topic", [topic for topic in public_topics() if topic.schema], ids=lambda topic: topic.name)
def test_it_shows_one_valid_record_of_each_type(topic: Any) -> None:
    examples = DOCUMENT["components"]["messages"][topic.name]["examples"]
    check = validator(topic.schema)
    assert [example["name"] for example in examples] == check.schema["properties"]["type"]["enum"]  # type: ignore[index]
    for example in examples:
        assert example["payload"]["type"] == example["name"]
        assert complaints(check, example["payload"]) == []


def test_the_headers_of_a_dead_letter_are_those_that_the_worker_writes() -> None:
    written = dead_letter_headers(
        Record("entitlement-events", 0, 7, b"ent-1", b"{"), Refused("not_json", "what is wrong with it")
    )
    assert [name for name, _ in written] == list(HEADERS)
    headers = DOCUMENT["components"]["messages"]["entitlement-events-dlq"]["headers"]
    check = Draft202012Validator(headers, format_checker=FORMATS)
    assert complaints(check, {name: value.decode() for name, value in written}) == []
    assert complaints(check, {DEAD_REASON: "because"}) != []
