"""The published contract, read from its files: the JSON Schemas and their examples."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from schemas.events import Event, Refused, decode

SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"
EXAMPLES = SCHEMAS / "examples"

FORMATS = Draft202012Validator.FORMAT_CHECKER


def schema(name: str) -> dict[str, Any]:
    """The JSON Schema in a file of `schemas/`."""
    document: dict[str, Any] = json.loads((SCHEMAS / name).read_text(encoding="utf-8"))
    return document


def validator(name: str) -> Draft202012Validator:
    """A validator of the JSON Schema in a file of `schemas/`. Formats count: a date that does not exist is refused."""
    return Draft202012Validator(schema(name), format_checker=FORMATS)


EVENT = validator("entitlement-events.schema.json")
ALERT = validator("overdraft-alerts.schema.json")


@dataclass(frozen=True)
class Example:
    """One file of `schemas/examples/`. name: without folder and ending."""

    name: str
    document: dict[str, Any]


def examples(folder: str) -> list[Example]:
    """All examples of a folder, by name."""
    paths = sorted((EXAMPLES / folder).glob("*.json"))
    return [Example(path.stem, json.loads(path.read_text(encoding="utf-8"))) for path in paths]


def read(value: bytes) -> Event | Refused:
    """What the decoder makes of an event, or why it refuses it. Raises nothing: whatever else comes is a defect."""
    try:
        return decode(value, key="any", appended_at=None)
    except Refused as refused:
        return refused


def complaints(check: Draft202012Validator, document: Any) -> list[str]:
    """What a JSON Schema has against a document: for each error the path, and what was expected there."""
    errors: list[ValidationError] = list(check.iter_errors(document))
    return [f"{'.'.join(str(part) for part in error.absolute_path)}: {error.message}" for error in errors]
