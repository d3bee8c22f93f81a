"""The contract as an AsyncAPI 3.0 document, made from the catalogue of topics, the JSON Schemas and their examples.

`python -m schemas.asyncapi > schemas/asyncapi.yaml` makes the published file anew; the web serves the same, beside the schemas.
Only topics that others write or read are in it: what goes from the worker to the sink may change with any release.
Source: https://www.asyncapi.com/docs/reference/specification/v3.0.0, and its bindings for Kafka, version 0.5.0.
"""

import json
import sys
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import yaml

from schemas.dead_letters import DEAD_REASON, HEADERS, REASONS
from schemas.events import RESTATE_SOURCE
from schemas.topics import Topic, catalogue

_DIALECT = "application/schema+json;version=draft-2020-12"
_BINDING = "0.5.0"
# What this program does on each topic, seen from here, as AsyncAPI wants it.
_ACTIONS = {
    "entitlement-events": ("receive", "Licence servers send what happens to their entitlements; the worker applies it."),
    "overdraft-alerts": ("send", "The worker says when an element's state changes; others act on it."),
    "entitlement-events-dlq": ("send", "The worker puts aside what it cannot apply; somebody looks at it, and replays it."),
}
_ABOUT = """What goes in and out of Seatmark through Kafka. The key of every record is the entitlement's id, in UTF-8.
Producers must choose the partition as Kafka's own clients do: murmur2 of the key.

Topics may have a prefix in front of their names (`SEATMARK_TOPIC_PREFIX`); their number of partitions is the deployment's."""


@cache
def public_topics() -> list[Topic]:
    """The topics that others write or read, in the catalogue's order."""
    return [topic for topic in catalogue() if topic.compatibility != "internal"]


@cache
def json_schema(name: str) -> dict[str, Any]:
    """A published JSON Schema by its file's name. Not to be changed: it is read once."""
    document: dict[str, Any] = json.loads(files("schemas").joinpath(name).read_text(encoding="utf-8"))
    return document


def json_schemas() -> list[str]:
    """The file names of the published JSON Schemas."""
    return [topic.schema for topic in public_topics() if topic.schema is not None]


def examples(topic: Topic) -> list[dict[str, Any]]:
    """Valid records of a topic that has a schema: one of each type, in the order of the schema."""
    assert topic.schema is not None
    folder = files("schemas").joinpath("examples", topic.name, "valid")
    documents = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in folder.iterdir()}
    chosen = []
    for kind in json_schema(topic.schema)["properties"]["type"]["enum"]:
        # Seatmark's corrections are for nobody else to send.
        of_kind = sorted(
            name for name, record in documents.items() if record["type"] == kind and record["source"] != RESTATE_SOURCE
        )
        # The plain example of a type has the type's name; those with more to their names show its corners.
        chosen.append(documents[f"{kind}.json" if f"{kind}.json" in of_kind else of_kind[-1]])
    return chosen


@cache
def asyncapi() -> dict[str, Any]:
    """The document. Addresses of JSON Schemas are relative to it. Not to be changed: it is made once."""
    topics = public_topics()
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Seatmark",
            "version": version("seatmark"),
            "description": _ABOUT,
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {topic.name: _channel(topic) for topic in topics},
        "operations": {_operation_name(topic): _operation(topic) for topic in topics},
        "components": {"messages": {topic.name: _message(topic) for topic in topics}},
    }


def _channel(topic: Topic) -> dict[str, Any]:
    return {
        "address": topic.name,
        "title": topic.name,
        "description": f"Key: {topic.key}. Value: {topic.value}. Written by: {topic.owner}.",
        "messages": {"record": {"$ref": f"#/components/messages/{topic.name}"}},
        "bindings": {
            "kafka": {"topic": topic.name, "topicConfiguration": _configuration(topic), "bindingVersion": _BINDING}
        },
    }  # fmt: skip


def _configuration(topic: Topic) -> dict[str, Any]:
    """What the binding knows of a topic's settings; it has no word for the kind of timestamps."""
    config = topic.config
    known: dict[str, Any] = {"cleanup.policy": [config["cleanup.policy"]]}
    return known | {name: int(config[name]) for name in ("retention.ms", "max.message.bytes") if name in config}


def _operation_name(topic: Topic) -> str:
    action, _ = _ACTIONS[topic.name]
    return f"{action}-{topic.name}"


def _operation(topic: Topic) -> dict[str, Any]:
    action, summary = _ACTIONS[topic.name]
    channel = {"$ref": f"#/channels/{topic.name}"}
    return {"action": action, "channel": channel, "summary": summary}


def _message(topic: Topic) -> dict[str, Any]:
    key = {"type": "string", "minLength": 1, "description": "The entitlement's id: the event's `subject`."}
    if topic.schema is None:
        return {
            "name": topic.name,
            "title": "Dead letter",
            "summary": "A record that could not be applied: its own bytes, key and headers, and these headers beside them.",
            "contentType": "application/octet-stream",
            "headers": {"type": "object", "required": list(HEADERS), "properties": _header_properties()},
            "payload": {"description": "The bytes as they came: anything."},
        }
    schema = json_schema(topic.schema)
    return {
        "name": topic.name,
        "title": schema["title"],
        "summary": schema["description"].split(". ")[0] + ".",
        "contentType": "application/cloudevents+json",
        "payload": {"schemaFormat": _DIALECT, "schema": {"$ref": f"./{topic.schema}"}},
        "bindings": {"kafka": {"key": key, "bindingVersion": _BINDING}},
        "examples": [{"name": example["type"], "payload": example} for example in examples(topic)],
    }


def _header_properties() -> dict[str, Any]:
    properties: dict[str, Any] = {name: {"type": "string", "description": says} for name, says in HEADERS.items()}
    properties[DEAD_REASON]["enum"] = list(REASONS)
    return properties


def published() -> str:
    """The document as the file schemas/asyncapi.yaml has it."""
    head = "# Made by `python -m schemas.asyncapi`; a test fails where it is not what that makes.\n"
    return head + yaml.safe_dump(asyncapi(), sort_keys=False, allow_unicode=True, width=120)


if __name__ == "__main__":
    sys.stdout.write(published())
