"""Those who rely on the published schemas can go on to: nothing that breaks them gets in unnoticed."""

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest

from schemas.topics import Topic, catalogue
from tests.schemas.compatibility import Side, breaks
from tests.schemas.contract import SCHEMAS, schema

TOPICS = {topic.name: topic for topic in catalogue() if topic.schema is not None}
SIDES: dict[str, Side] = {"entitlement-events": "reads", "overdraft-alerts": "writes"}
EVENTS = schema("entitlement-events.schema.json")
ALERTS = schema("overdraft-alerts.schema.json")


@pytest.mark.parametrize("topic", TOPICS.values(), ids=lambda topic: topic.name)
def test_nothing_breaks_those_who_rely_on_what_is_published(topic: Topic) -> None:
    assert topic.schema is not None
    published = schema(f"published/{topic.name}.{topic.version}.schema.json")
    assert breaks(published, schema(topic.schema), SIDES[topic.name]) == []


def test_all_versions_up_to_the_current_one_are_published() -> None:
    found = sorted(path.name for path in (SCHEMAS / "published").glob("*.json"))
    assert found == sorted(
        f"{topic.name}.{version}.schema.json" for topic in TOPICS.values() for version in range(1, topic.version + 1)
    )
    for name in found:
        topic, version = re.fullmatch(r"(.+)\.(\d+)\.schema\.json", name).groups()  # type: ignore[union-attr]
        assert schema(f"published/{name}")["$id"] == f"urn:seatmark:schema:{topic}:{version}"


# --- That the check finds what it is for


def data_of(document: dict[str, Any]) -> Any:
    return document["properties"]["data"]["properties"]


BREAKING: dict[str, tuple[Side, Callable[[Any], Any]]] = {
    "a type is read no more": ("reads", lambda it: it["properties"]["type"]["enum"].remove("seat.expired")),
    "an envelope field becomes required": ("reads", lambda it: it["required"].append("dataschema")),
    "a field of the data becomes required": ("reads", lambda it: it["$defs"]["seat.denied"].update(required=["seat_id"])),
    "a field is read no more": ("reads", lambda it: it["$defs"]["hold"]["properties"].pop("quantity")),
    "null is refused": ("reads", lambda it: it["$defs"]["optional_quantity"].update(type="integer")),
    "a number must be smaller": ("reads", lambda it: it["$defs"]["optional_quantity"].update(maximum=1000)),
    "a number must be greater": ("reads", lambda it: it["$defs"]["hold"]["properties"]["quantity"].update(minimum=1)),
    "a text must be shorter": ("reads", lambda it: it["$defs"]["name"].update(maxLength=100)),
    "a text gets a pattern": ("reads", lambda it: it["$defs"]["name"].update(pattern="^[a-z]+$")),
    "times look otherwise": ("reads", lambda it: it["$defs"]["instant"].update(pattern="Z$")),
    "a choice is gone": ("reads", lambda it: it["$defs"]["overdraft"]["properties"]["type"]["enum"].remove("percentage")),
    "unknown fields are refused": ("reads", lambda it: it.update(additionalProperties=False)),
    "a known type gets a further condition": (
        "reads",
        lambda it: it["allOf"].append(
            {"if": {"properties": {"type": {"const": "seat.denied"}}, "required": ["source"]}, "then": {"required": ["x"]}}
        ),
    ),
    "a field is written no more": ("writes", lambda it: data_of(it).pop("overage")),
    "a field is not always written": ("writes", lambda it: it["properties"]["data"]["required"].remove("level")),
    "an unknown type is written": ("writes", lambda it: it["properties"]["type"]["enum"].append("limit.raised")),
    "a number can be negative": ("writes", lambda it: data_of(it)["level"].pop("minimum")),
    "another source": ("writes", lambda it: it["properties"]["source"].update(const="/seatmark/other")),
    "an id of another form": ("writes", lambda it: it["properties"]["id"].pop("pattern")),
}

HARMLESS: dict[str, tuple[Side, Callable[[Any], Any]]] = {
    "other words": ("reads", lambda it: it["properties"]["id"].update(description="Names it.")),
    "a new field may be read": ("reads", lambda it: it["$defs"]["hold"]["properties"].update(colour={"type": "string"})),
    "a field is not required any more": ("reads", lambda it: it["$defs"]["seat.activated"]["required"].remove("seat_id")),
    "a number may be greater": ("reads", lambda it: it["$defs"]["optional_quantity"].update(maximum=10**12)),
    "a new choice": ("reads", lambda it: it["$defs"]["overdraft"]["properties"]["type"]["enum"].append("burst")),
    "a new type, with its data": (
        "reads",
        lambda it: (
            it["properties"]["type"]["enum"].append("seat.moved"),
            it["$defs"].update({"seat.moved": {"type": "object"}}),
            it["allOf"].append(
                {
                    "if": {"properties": {"type": {"const": "seat.moved"}}, "required": ["type"]},
                    "then": {"properties": {"data": {"$ref": "#/$defs/seat.moved"}}},
                }
            ),
        ),
    ),
    "a new field is written": ("writes", lambda it: data_of(it).update(colour={"type": "string"})),
    "a field is always written": ("writes", lambda it: it["properties"]["data"]["required"].append("customer")),
    "a type is written no more": ("writes", lambda it: it["properties"]["type"]["enum"].remove("overdraft.changed")),
}


def changed(side: Side, change: Callable[[Any], Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A schema before and after a change, which did change it."""
    old = EVENTS if side == "reads" else ALERTS
    new = copy.deepcopy(old)
    change(new)
    assert new != old
    return old, new


@pytest.mark.parametrize("what", BREAKING)
def test_a_break_is_found(what: str) -> None:
    side, change = BREAKING[what]
    old, new = changed(side, change)
    assert len(breaks(old, new, side)) == 1


@pytest.mark.parametrize("what", HARMLESS)
def test_what_breaks_nobody_is_let_through(what: str) -> None:
    side, change = HARMLESS[what]
    old, new = changed(side, change)
    assert breaks(old, new, side) == []
