"""The published contract: the JSON Schemas, their examples, and the code that reads and writes the same records."""

import json
from collections.abc import Iterator
from typing import Any, Literal

import msgspec
import pytest
from jsonschema import Draft202012Validator

from processors.domain.days import Calendar
from processors.domain.ledger import Ledger, Transition
from processors.outputs import alert_of
from schemas.alerts import Alert, AlertData, Cause, decode_alert, encode_alert, seatmark_id
from schemas.events import (
    EVENT_TYPES,
    MAX_LEVEL,
    MAX_PARTS,
    MAX_POSITION,
    MAX_QUANTITY,
    MAX_TEXT_LENGTH,
    RESTATE_SOURCE,
    CorrectedHold,
    CorrectedTerms,
    Correction,
    ElementTerms,
    Event,
    Overdraft,
    Refused,
    SnapshotHold,
    decode,
    parse_time,
)
from tests.schemas.contract import ALERT, EVENT, FORMATS, Example, complaints, examples, schema

SCHEMA_FILES = ["entitlement-events.schema.json", "overdraft-alerts.schema.json"]


def by_name(example: Example) -> str:
    return example.name


# --- The schemas themselves.


@pytest.mark.parametrize("file", SCHEMA_FILES)
def test_a_schema_is_a_json_schema(file: str) -> None:
    document = schema(file)
    Draft202012Validator.check_schema(document)
    assert document["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize("file", SCHEMA_FILES)
def test_every_field_is_described(file: str) -> None:
    document = schema(file)
    fields = list(_fields(document, document))
    assert len(fields) > 20
    assert [name for name, field in fields if not field.get("description")] == []


@pytest.mark.parametrize("file", SCHEMA_FILES)
def test_the_examples_in_a_schema_are_valid(file: str) -> None:
    document = schema(file)
    check = Draft202012Validator(document, format_checker=FORMATS)
    assert [complaint for example in document.get("examples", []) for complaint in complaints(check, example)] == []


def test_formats_are_checked_at_all() -> None:
    """Without the package rfc3339-validator, jsonschema silently lets every date-time through."""
    assert "date-time" in FORMATS.checkers


def test_the_schema_knows_the_types_that_the_decoder_knows() -> None:
    document = schema("entitlement-events.schema.json")
    assert set(document["properties"]["type"]["enum"]) == EVENT_TYPES
    assert len(EVENT_TYPES) == 14
    cases = [(case["if"]["properties"], case["then"]["properties"]["data"]["$ref"]) for case in document["allOf"]]
    correction = {"type": {"const": "entitlement.snapshot"}, "source": {"const": RESTATE_SOURCE}}
    assert cases[-1] == (correction, "#/$defs/correction")
    assert {case["type"]["const"]: ref for case, ref in cases[:-1]} == {name: f"#/$defs/{name}" for name in EVENT_TYPES}


def test_the_schema_has_the_limits_that_the_decoder_has() -> None:
    shapes = schema("entitlement-events.schema.json")["$defs"]
    assert shapes["optional_quantity"]["maximum"] == MAX_QUANTITY
    assert shapes["hold"]["properties"]["quantity"]["maximum"] == MAX_QUANTITY
    assert shapes["terms"]["properties"]["limit"]["maximum"] == MAX_LEVEL
    assert shapes["entitlement.snapshot"]["properties"]["level"]["maximum"] == MAX_LEVEL
    correction = shapes["correction"]["properties"]
    assert correction["basis"]["maximum"] == MAX_POSITION
    assert correction["part"]["maximum"] + 1 == correction["parts"]["maximum"] == MAX_PARTS
    assert -correction["difference"]["minimum"] == correction["difference"]["maximum"] == MAX_LEVEL
    assert shapes["corrected_hold"]["properties"]["quantity"]["maximum"] == MAX_QUANTITY


def test_every_text_of_an_event_has_the_greatest_length_that_the_decoder_has() -> None:
    document = schema("entitlement-events.schema.json")
    texts = [(name, field) for name, field in _fields(document, document) if "string" in field.get("type", ())]
    assert len(texts) > 30
    lengths = {(name, field.get("maxLength")) for name, field in texts}
    # A time is read, not kept.
    times = {"time", "lease_expires_at", "changed_at"}
    assert lengths == {(name, None if name in times else MAX_TEXT_LENGTH) for name, _ in texts}


def _fields(node: Any, root: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field that a schema introduces; not those that its conditions only narrow."""
    if isinstance(node, dict):
        for name, field in node.get("properties", {}).items():
            target = root["$defs"][field["$ref"].removeprefix("#/$defs/")] if "$ref" in field else {}
            yield name, target | field
        for keyword, child in node.items():
            if keyword not in ("if", "then", "else", "not", "examples"):
                yield from _fields(child, root)
    elif isinstance(node, list):
        for child in node:
            yield from _fields(child, root)


# --- Entitlement events: what is accepted, and how it is read.

TIME = 1_795_486_494_123  # 2026-11-24T02:14:54.123Z
LEASE_END = 1_795_490_094_000  # 2026-11-24T03:14:54Z


def event(number: int, type: str, element: str | None, **fields: Any) -> Event:
    envelope: dict[str, Any] = {"entitlement": "ent-1001", "source": "/license-servers/eu-1", "time": TIME}
    return Event(**(envelope | {"id": f"evt-{number:04}", "type": type, "element": element} | fields))


def changed(number: int, elements: dict[str, ElementTerms], **fields: Any) -> Event:
    return event(number, "entitlement.changed", None, terms=elements, **fields)


def seats(limit: int | None, type: Any = None, value: float | None = None, **more: Any) -> dict[str, ElementTerms]:
    overdraft = None if type is None else Overdraft(type=type, value=value)
    return {"seats": ElementTerms(limit=limit, overdraft=overdraft, **more)}


def corrected(number: int, element: str, **fields: Any) -> Event:
    nothing: dict[str, Any] = {"part": 0, "parts": 1, "holds": (), "difference": 0, "terms": None}
    correction = Correction(**(nothing | fields))
    return event(number, "entitlement.snapshot", element, source="/seatmark/restate", correction=correction)


# Worked out by hand, one for each file of schemas/examples/entitlement-events/valid.
READ_AS: dict[str, Event] = {
    "seat.activated": event(
        1, "seat.activated", "seats", seat_id="wks-12", lease_end=LEASE_END, customer="cus-9", product="cad-pro",
        credential="user", user="ann@example.com", ip="203.0.113.7", host="wks-12",
    ),
    "seat.activated-with-a-code": event(2, "seat.activated", "seats", seat_id="wks-13", credential="code"),
    "seat.activated-with-unknown-fields": event(3, "seat.activated", "seats", seat_id="wks-14"),
    "seat.activated-with-nulls": event(4, "seat.activated", "seats", seat_id="wks-15"),
    "seat.refreshed": event(5, "seat.refreshed", "seats", seat_id="wks-12", lease_end=LEASE_END + 3_600_500),
    "seat.refreshed-with-offsets-in-times": event(
        6, "seat.refreshed", "seats", time=TIME - 123, seat_id="wks-12", lease_end=LEASE_END
    ),
    "seat.deactivated": event(
        7, "seat.deactivated", "seats", seat_id="wks-12", user="ann@example.com", reason="user signed out"
    ),
    "seat.deactivated-with-nanoseconds": event(8, "seat.deactivated", "seats", seat_id="wks-12"),
    "seat.expired": event(9, "seat.expired", "seats", source="/seatmark/leases", seat_id="wks-12"),
    "seat.denied": event(
        10, "seat.denied", "seats", seat_id="wks-16", user="bo@example.com", reason="all seats are taken"
    ),
    "seat.denied-to-nobody-in-particular": event(11, "seat.denied", "seats"),
    "feature.checked_out": event(
        12, "feature.checked_out", "64300ACD_F", seat_id="wks-12", quantity=4, lease_end=LEASE_END
    ),
    "feature.checked_out-without-quantity": event(13, "feature.checked_out", "render", seat_id="wks-12"),
    "feature.checked_out-quantity-with-a-point": event(14, "feature.checked_out", "render", seat_id="wks-12", quantity=3),
    "feature.checked_out-greatest-quantity": event(
        15, "feature.checked_out", "render", seat_id="wks-12", quantity=1_000_000_000
    ),
    "feature.returned": event(16, "feature.returned", "render", seat_id="wks-12", quantity=1),
    "feature.returned-all-of-it": event(17, "feature.returned", "render", seat_id="wks-12"),
    "feature.refreshed": event(18, "feature.refreshed", "render", seat_id="wks-12", quantity=2, lease_end=LEASE_END),
    "feature.expired": event(19, "feature.expired", "render", source="/seatmark/leases", seat_id="wks-12"),
    "feature.used": event(20, "feature.used", "pages", quantity=250, seat_id="printer-3", user="Zoë", host="印刷機"),
    "feature.used-without-quantity": event(21, "feature.used", "pages"),
    "feature.reset": event(22, "feature.reset", "pages", reason="new billing month"),
    "feature.denied": event(23, "feature.denied", "render", seat_id="wks-12", quantity=8, reason="not enough left"),
    "entitlement.changed": changed(
        24,
        seats(10, "absolute", 2, kind="pool")
        | {"pages": ElementTerms(limit=5000, kind="counter", overdraft=Overdraft(type="none"))},
        customer="cus-9", product="cad-pro", name="CAD Pro, Berlin", lease_policy="keep",
    ),
    "entitlement.changed-not-limited": changed(25, seats(None), lease_policy="release"),
    "entitlement.changed-limit-0": changed(26, seats(0)),
    "entitlement.changed-absolute-0": changed(27, seats(10, "absolute", 0)),
    "entitlement.changed-absolute-with-a-point": changed(28, seats(10, "absolute", 2)),
    "entitlement.changed-percentage": changed(29, seats(10, "percentage", 25)),
    "entitlement.changed-percentage-with-4-decimals": changed(30, seats(10, "percentage", 12.3456)),
    "entitlement.changed-unlimited-overdraft": changed(31, seats(10, "unlimited")),
    "entitlement.snapshot-pool": event(
        32, "entitlement.snapshot", "seats",
        holds=(SnapshotHold("wks-12", 1, LEASE_END), SnapshotHold("wks-13", 1, None), SnapshotHold("wks-14", 0, None)),
    ),
    "entitlement.snapshot-empty-pool": event(33, "entitlement.snapshot", "render", holds=()),
    "entitlement.snapshot-counter": event(34, "entitlement.snapshot", "pages", level=1250),
    "entitlement.snapshot-counter-at-0": event(35, "entitlement.snapshot", "pages", level=0),
    "entitlement.snapshot-correction": corrected(
        36, "seats", basis=2**48 + 119, parts=2,
        holds=(
            CorrectedHold("wks-12", 1, LEASE_END, TIME - 123 - 4_494_000),
            CorrectedHold("wks-13", 0, None, TIME - 123 - 893_500),
            CorrectedHold("wks-14", 3, LEASE_END - 86_400_000, TIME - 123 - 894_000 - 86_400_000),
        ),
        terms=CorrectedTerms(
            ElementTerms(limit=10, kind="pool", overdraft=Overdraft(type="absolute", value=2)),
            1_793_491_200_000, "cus-9", "cad-pro", "CAD Pro, Berlin", "keep",
        ),
    ),
    "entitlement.snapshot-correction-of-a-counter": corrected(37, "pages", basis=2**48 + 119, difference=-250),
    "entitlement.snapshot-correction-of-nothing": corrected(38, "seats", basis=0),
    "entitlement.snapshot-correction-to-no-limit": corrected(
        39, "seats", basis=2**48 + 119, part=1, parts=2,
        terms=CorrectedTerms(ElementTerms(limit=None), 1_793_491_200_000, None, None, None, None),
    ),
    "entitlement.snapshot-of-another-source-with-a-corrections-fields": event(40, "entitlement.snapshot", "pages", level=3),
    "seat.denied-with-the-longest-texts": event(
        41, "seat.denied", "seats", seat_id="x" * 1024, reason="印" * 1024, host="😀" * 1024
    ),
}  # fmt: skip

VALID_EVENTS = examples("entitlement-events/valid")


def test_every_type_has_a_valid_example_and_every_valid_example_has_its_reading() -> None:
    assert {example.document["type"] for example in VALID_EVENTS} == EVENT_TYPES
    assert {example.name for example in VALID_EVENTS} == set(READ_AS)


@pytest.mark.parametrize("example", VALID_EVENTS, ids=by_name)
def test_a_valid_event_fits_the_schema_and_is_read_as_expected(example: Example) -> None:
    document = example.document
    assert complaints(EVENT, document) == []
    value = json.dumps(document).encode()
    assert decode(value, key=document["subject"].encode(), appended_at=TIME) == READ_AS[example.name]


# --- Entitlement events: what is refused, and why.

INVALID_EVENTS = examples("entitlement-events/invalid")


def test_every_reason_has_an_example() -> None:
    # An event of more than 1 MiB is made in test_events.py.
    reasons = {example.document["reason"] for example in INVALID_EVENTS}
    assert reasons | {"too_large"} == {
        "not_json", "not_cloudevent", "unknown_type", "invalid_data", "key_mismatch", "too_large", "time_in_future",
    }  # fmt: skip


@pytest.mark.parametrize("example", INVALID_EVENTS, ids=by_name)
def test_an_invalid_event_is_dead_lettered_with_reason_and_field(example: Example) -> None:
    expected = example.document
    value = _bytes_of(expected)
    appended_at = parse_time(expected["appended_at"]) if "appended_at" in expected else None
    with pytest.raises(Refused) as refused:
        decode(value, key=_key_of(expected), appended_at=appended_at)
    assert refused.value.reason == expected["reason"]
    assert expected["detail"] in refused.value.detail
    assert str(refused.value) == f"{refused.value.reason}: {refused.value.detail}"


@pytest.mark.parametrize("example", [e for e in INVALID_EVENTS if e.document["schema"]], ids=by_name)
def test_an_invalid_event_does_not_fit_the_schema_which_names_the_field(example: Example) -> None:
    expected = example.document
    field = expected["detail"].rpartition(".")[2].removesuffix("[1]")
    found = complaints(EVENT, json.loads(_bytes_of(expected)))
    assert [complaint for complaint in found if field in complaint] != []


@pytest.mark.parametrize(
    "example", [e for e in INVALID_EVENTS if not e.document["schema"] and "event" in e.document], ids=by_name
)
def test_what_a_schema_cannot_say_fits_it(example: Example) -> None:
    """So that a producer's developer sees which rules need care of their own."""
    assert complaints(EVENT, example.document["event"]) == []


def _key_of(example: dict[str, Any]) -> bytes | Literal["any"] | None:
    """As the example says; else the subject, if it has one."""
    subject = example.get("event", {}).get("subject")
    if "key" not in example and not isinstance(subject, str):
        return "any"
    key: str | None = example.get("key", subject)
    return None if key is None else key.encode()


def _bytes_of(example: dict[str, Any]) -> bytes:
    assert ("bytes" in example) != ("event" in example)
    text: str = example["bytes"] if "bytes" in example else json.dumps(example["event"])
    return text.encode()


# --- Overdraft alerts.

VALID_ALERTS = examples("overdraft-alerts/valid")
INVALID_ALERTS = examples("overdraft-alerts/invalid")
ALERT_TYPES = {"limit.reached", "limit.cleared", "overdraft.entered", "overdraft.changed", "overdraft.left"}


def test_every_alert_type_has_a_valid_example() -> None:
    assert {example.document["type"] for example in VALID_ALERTS} == ALERT_TYPES
    assert set(schema("overdraft-alerts.schema.json")["properties"]["type"]["enum"]) == ALERT_TYPES


@pytest.mark.parametrize("example", VALID_ALERTS, ids=by_name)
def test_a_valid_alert_fits_the_schema_and_survives_reading_and_writing(example: Example) -> None:
    document = example.document
    assert complaints(ALERT, document) == []
    alert = decode_alert(json.dumps(document).encode())
    written = encode_alert(alert)
    assert json.loads(written) == document
    assert decode_alert(written) == alert


@pytest.mark.parametrize("example", VALID_ALERTS, ids=by_name)
def test_the_id_of_an_alert_is_made_of_what_it_is_about(example: Example) -> None:
    data = example.document["data"]
    cause = data["cause"]
    made = seatmark_id("alert", data["entitlement"], data["element"], cause["source"], cause["id"])
    assert example.document["id"] == made


def test_an_alert_is_read_field_by_field() -> None:
    (left,) = (example.document for example in VALID_ALERTS if example.name == "overdraft.left")
    assert decode_alert(json.dumps(left).encode()) == Alert(
        id=left["id"],
        source="/seatmark/worker",
        type="overdraft.left",
        subject="ent-1001",
        time="2026-11-24T02:14:54.123Z",
        data=AlertData(
            entitlement="ent-1001",
            element="seats",
            from_state="at_hard_limit",
            to_state="at_limit",
            level=10,
            limit=10,
            hard_limit=12,
            overage=0,
            cause=Cause("/license-servers/eu-1", "evt-0007", "seat.deactivated"),
            at="2026-11-24T02:14:54.123Z",
            customer="cus-9",
            product="cad-pro",
            entered_at="2026-11-23T14:00:00.000Z",
            duration_seconds=44094.123,
            peak=12,
            peak_overage=2,
        ),
    )


@pytest.mark.parametrize("example", INVALID_ALERTS, ids=by_name)
def test_an_invalid_alert_does_not_fit_the_schema_which_names_the_field(example: Example) -> None:
    found = complaints(ALERT, example.document["event"])
    assert [complaint for complaint in found if example.document["field"] in complaint] != []


@pytest.mark.parametrize("example", INVALID_ALERTS, ids=by_name)
def test_reading_an_alert_refuses_what_it_could_not_work_with(example: Example) -> None:
    """It takes more than the schema lets pass: Seatmark reads its own alerts."""
    value = json.dumps(example.document["event"]).encode()
    if not example.document["decoder"]:
        assert encode_alert(decode_alert(value)) != b""
        return
    with pytest.raises(msgspec.ValidationError, match=example.document["field"]):
        decode_alert(value)


# --- Alerts as the worker makes them.


def transitions(*steps: dict[str, Any]) -> list[Transition]:
    """Of events of one entitlement, a second apart: each gives its type and its data."""
    ledger = Ledger(Calendar("UTC"), 3_600_000)
    found: list[Transition] = []
    for second, data in enumerate(steps):
        envelope = {"specversion": "1.0", "id": f"{second}", "source": "/s", "subject": "e"}
        document = envelope | {"type": data.pop("type"), "time": f"2026-11-24T02:14:{second:02}Z", "data": data}
        assert complaints(EVENT, document) == []
        outcomes = ledger.apply(decode(json.dumps(document).encode(), key=b"e", appended_at=None), second + 1)
        found += [outcome.transition for outcome in outcomes if outcome.transition is not None]
    return found


def terms(limit: int | None, **overdraft: Any) -> dict[str, Any]:
    more = {"overdraft": overdraft} if overdraft else {}
    return {"type": "entitlement.changed", "customer": "cus", "elements": {"seats": {"limit": limit} | more}}


def on(seat: str) -> dict[str, Any]:
    return {"type": "seat.activated", "seat_id": seat}


def off(seat: str) -> dict[str, Any]:
    return {"type": "seat.deactivated", "seat_id": seat}


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        pytest.param([terms(1), on("a"), off("a")], ["limit.reached", "limit.cleared"], id="at the limit and back"),
        pytest.param(
            [terms(1, type="absolute", value=2), *map(on, "abcd"), *map(off, "abcd")],
            ["limit.reached", "overdraft.entered", "overdraft.changed", "overdraft.changed",
             "overdraft.changed", "overdraft.changed", "overdraft.left", "limit.cleared"],
            id="through all states and back",
        ),
        pytest.param(
            [terms(0, type="unlimited"), on("a"), off("a")], ["overdraft.entered", "overdraft.left"], id="without hard limit"
        ),
        pytest.param(
            [on("a"), on("b"), terms(1), terms(2), terms(1), terms(None)],
            ["overdraft.entered", "overdraft.left", "overdraft.entered", "overdraft.left"],
            id="by new terms only",
        ),
        pytest.param([on("a"), terms(1), terms(None)], ["limit.reached", "limit.cleared"], id="limit taken away"),
    ],
)  # fmt: skip
def test_alerts_of_the_worker_fit_the_schema(steps: list[dict[str, Any]], expected: list[str]) -> None:
    found = transitions(*(dict(step) for step in steps))
    alerts = [alert_of(transition) for transition in found]
    assert [alert.type for alert in alerts] == expected
    for alert in alerts:
        written = encode_alert(alert)
        assert complaints(ALERT, json.loads(written)) == []
        assert decode_alert(written) == alert


def test_an_alert_says_what_the_transition_says() -> None:
    left = transitions(terms(1, type="absolute", value=1), on("a"), on("b"), on("c"), terms(3, type="none"))[-1]
    assert json.loads(encode_alert(alert_of(left))) == {
        "specversion": "1.0",
        "id": seatmark_id("alert", "e", "seats", "/s", "4"),
        "source": "/seatmark/worker",
        "type": "overdraft.left",
        "subject": "e",
        "time": "2026-11-24T02:14:04.000Z",
        "datacontenttype": "application/json",
        "data": {
            "entitlement": "e", "element": "seats", "customer": "cus", "from": "over_hard_limit", "to": "at_limit",
            "level": 3, "limit": 3, "hard_limit": 3, "overage": 0,
            "cause": {"source": "/s", "id": "4", "type": "entitlement.changed"}, "at": "2026-11-24T02:14:04.000Z",
            "entered_at": "2026-11-24T02:14:02.000Z", "duration_seconds": 2.0, "peak": 3, "peak_overage": 2,
        },
    }  # fmt: skip
