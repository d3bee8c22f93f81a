"""Reading entitlement events: times, the record around the event, numbers, and bytes of any kind."""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.events import MAX_EVENT_BYTES, MAX_EVENT_COPIES_BYTES, Refused, decode, format_time, parse_time
from tests.schemas.contract import EVENT, complaints, examples, read

VALID = [json.dumps(example.document).encode() for example in examples("entitlement-events/valid")]


def activated(**changes: Any) -> bytes:
    """The bytes of a valid event, with other attributes."""
    event = {
        "specversion": "1.0", "id": "1", "source": "/s", "type": "seat.activated", "subject": "ent",
        "time": "2026-11-24T02:14:54Z", "data": {"seat_id": "a"},
    }  # fmt: skip
    return json.dumps(event | changes).encode()


def with_number(text: str, template: str = '{"element": "pages", "quantity": %s}', type: str = "feature.used") -> bytes:
    """The bytes of an event with a number in its data written just so."""
    return activated(type=type, data=0).replace(b'"data": 0', b'"data": ' + (template % text).encode())


def refused(value: bytes, *, key: bytes | Literal["any"] | None = "any", appended_at: int | None = None) -> Refused:
    with pytest.raises(Refused) as caught:
        decode(value, key=key, appended_at=appended_at)
    return caught.value


# --- Times.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:00.001Z", 1),
        ("2026-11-24T02:14:54Z", 1_795_486_494_000),
        ("2026-11-24T02:14:54.1Z", 1_795_486_494_100),
        ("2026-11-24T02:14:54.12Z", 1_795_486_494_120),
        ("2026-11-24T02:14:54.123Z", 1_795_486_494_123),
        pytest.param("2026-11-24T02:14:54.1239Z", 1_795_486_494_123, id="truncated, not rounded"),
        pytest.param("2026-11-24T02:14:54.999999999Z", 1_795_486_494_999, id="nanoseconds"),
        pytest.param("2026-11-24T02:14:54." + "9" * 1000 + "Z", 1_795_486_494_999, id="a thousand digits"),
        ("2026-11-24T02:14:54+00:00", 1_795_486_494_000),
        ("2026-11-24T02:14:54-00:00", 1_795_486_494_000),
        ("2026-11-24T03:14:54+01:00", 1_795_486_494_000),
        ("2026-11-23T22:44:54-03:30", 1_795_486_494_000),
        ("2026-11-25T02:13:54+23:59", 1_795_486_494_000),
        pytest.param("1969-12-31T23:00:00-01:00", 0, id="the last year before, but not before"),
        pytest.param("2024-02-29T00:00:00Z", 1_709_164_800_000, id="leap day"),
        pytest.param("2000-02-29T00:00:00Z", 951_782_400_000, id="leap day of a century"),
        ("9999-12-31T23:59:59.999Z", 253_402_300_799_999),
    ],
)
def test_a_time_is_read_to_the_millisecond(text: str, expected: int) -> None:
    assert parse_time(text) == expected
    assert decode(activated(time=text), key=b"ent", appended_at=None).time == expected


@pytest.mark.parametrize(
    "text",
    ["2023-02-29T00:00:00Z", "2100-02-29T00:00:00Z", "2026-02-30T00:00:00Z", "2026-04-31T00:00:00Z", "2026-00-01T00:00:00Z",
     "2026-01-32T00:00:00Z", "2026-01-01T24:00:00Z", "2026-01-01T00:60:00Z", "2026-06-30T23:59:60Z", "0000-01-01T00:00:00Z",
     "1969-12-31T23:59:59.999Z", "1970-01-01T00:59:59+01:00", "2026-01-01T00:00:00+00:60", "2026-01-01T00:00:00",
     "2026-01-01T00:00:00 Z", " 2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z\n", "20260101T000000Z",
     "2026-W01-1T00:00:00Z", ""],
)  # fmt: skip
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_time(text)


@given(st.integers(0, 253_402_300_799_999))
def test_a_time_survives_writing_and_reading(milliseconds: int) -> None:
    text = format_time(milliseconds)
    assert parse_time(text) == milliseconds
    assert complaints(EVENT, json.loads(activated(time=text))) == []


def test_a_time_may_be_5_minutes_after_the_append_but_not_more() -> None:
    time = parse_time("2026-11-24T02:14:54Z")
    assert decode(activated(), key=b"ent", appended_at=time - 300_000).time == time
    error = refused(activated(), appended_at=time - 300_001)
    assert error.reason == "time_in_future"
    assert error.detail == "time: expected at most 5 minutes after 2026-11-24T02:09:53.999Z, got 2026-11-24T02:14:54Z"


# --- The record around the event.


@pytest.mark.parametrize("key", [b"ent-2", b"", None, b"\xff", b"any"])
def test_the_key_must_be_the_subject(key: bytes | None) -> None:
    error = refused(activated(), key=key)
    assert error.reason == "key_mismatch"
    assert "subject 'ent'" in error.detail


def test_the_key_is_compared_as_utf_8() -> None:
    assert decode(activated(subject="ent-ä"), key="ent-ä".encode(), appended_at=None).entitlement == "ent-ä"
    assert refused(activated(subject="ent-ä"), key="ent-ä".encode("latin-1")).reason == "key_mismatch"


def test_an_event_may_have_1_mib_but_not_more() -> None:
    padding = MAX_EVENT_BYTES - len(activated(note=""))
    assert decode(activated(note="x" * padding), key=b"ent", appended_at=None).seat_id == "a"
    error = refused(activated(note="x" * (padding + 1)))
    assert error.reason == "too_large"
    assert error.detail == "expected at most 1048576 bytes, got 1048577"


def test_too_large_is_said_before_anything_is_read() -> None:
    assert refused(b"x" * (MAX_EVENT_BYTES + 1)).reason == "too_large"


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(activated(type="\x80" * 150_000), id="type"),
        pytest.param(activated(specversion="\x80" * 150_000), id="specversion"),
        pytest.param(activated(id=["x" * 1_000_000]), id="id"),
        pytest.param(activated(data={"seat_id": "a", "credential": "x" * 1_000_000}), id="credential"),
        pytest.param(activated(data={"seat_id": "a", "lease_expires_at": "x" * 1_000_000}), id="lease end"),
        pytest.param(activated(time="9" * 1_000_000), id="time"),
        pytest.param(activated(subject="\x80" * 1024), id="subject that is not the key"),
    ],
)
def test_the_detail_fits_into_a_header_whatever_it_quotes(value: bytes) -> None:
    """A dead letter carries the original and the detail; the topic takes no more than 5 MiB."""
    error = refused(value, key=b"\x80" * 1_000_000)
    assert error.reason != "too_large"
    assert len(error.detail.encode()) < 4096


# --- Texts: what is kept many times is short, counted in characters, not in bytes.


def changed(elements: dict[str, Any], **more: Any) -> bytes:
    return activated(type="entitlement.changed", data={"elements": elements} | more)


def corrected(**more: Any) -> bytes:
    data = {"element": "a", "basis": 1, "part": 0, "parts": 1} | more
    return activated(type="entitlement.snapshot", source="/seatmark/restate", data=data)


CORRECTED_TERMS = {"limit": 1, "changed_at": "2026-11-24T02:14:54Z"}
CORRECTED_HOLD = {"quantity": 1, "changed_at": "2026-11-24T02:14:54Z"}
TEXTS: dict[str, Callable[[str], bytes]] = {
    "id": lambda text: activated(id=text),
    "source": lambda text: activated(source=text),
    "subject": lambda text: activated(subject=text),
    "data.seat_id": lambda text: activated(data={"seat_id": text}),
    "data.element": lambda text: activated(type="feature.used", data={"element": text}),
    "data.customer": lambda text: activated(data={"seat_id": "a", "customer": text}),
    "data.product": lambda text: activated(data={"seat_id": "a", "product": text}),
    "data.user": lambda text: activated(data={"seat_id": "a", "user": text}),
    "data.ip": lambda text: activated(data={"seat_id": "a", "ip": text}),
    "data.host": lambda text: activated(data={"seat_id": "a", "host": text}),
    "data.reason": lambda text: activated(data={"seat_id": "a", "reason": text}),
    "data.name": lambda text: changed({"seats": {"limit": 1}}, name=text),
    "data.holds[0].seat_id": lambda text: activated(
        type="entitlement.snapshot", data={"element": "a", "holds": [{"seat_id": text}]}
    ),
    "data.terms.customer": lambda text: corrected(terms=CORRECTED_TERMS | {"customer": text}),
    "data.terms.product": lambda text: corrected(terms=CORRECTED_TERMS | {"product": text}),
    "data.terms.name": lambda text: corrected(terms=CORRECTED_TERMS | {"name": text}),
}


@pytest.mark.parametrize("field", TEXTS)
@pytest.mark.parametrize("letter", ["x", "é", "😀"])
def test_a_text_may_have_1024_characters_but_not_more(field: str, letter: str) -> None:
    longest, too_long = TEXTS[field](letter * 1024), TEXTS[field](letter * 1025)
    assert decode(longest, key="any", appended_at=None).time == 1_795_486_494_000
    error = refused(too_long)
    assert error.reason == "invalid_data"
    assert error.detail == f"{field}: expected a text of at most 1024 characters"


def test_in_a_correction_too() -> None:
    """Element and seats are checked as anywhere, by a decoder of its own."""
    assert refused(corrected(element="x" * 1025)).detail == "data.element: expected a text of at most 1024 characters"
    error = refused(corrected(holds=[CORRECTED_HOLD | {"seat_id": "x" * 1025}]))
    assert error.detail == "data.holds[0].seat_id: expected a text of at most 1024 characters"


def test_the_name_of_an_element_may_have_1024_characters_but_not_more() -> None:
    event = decode(changed({"x" * 1024: {"limit": 1}}), key="any", appended_at=None)
    assert event.terms is not None
    assert list(event.terms) == ["x" * 1024]
    error = refused(changed({"seats": {"limit": 1}, "x" * 1025: {"limit": 1}}))
    assert error.reason == "invalid_data"
    assert error.detail == "data.elements: expected the name of each element to be a text of at most 1024 characters"


def test_an_empty_text_is_refused_in_the_same_words() -> None:
    assert refused(activated(data={"seat_id": ""})).detail == "data.seat_id: expected a text that is not empty"
    assert refused(activated(id="")).detail == "id: expected a text that is not empty, got ''"


@pytest.mark.parametrize("terms", [{"limit": -1}, {"limit": 1, "overdraft": {"type": "absolute", "value": -1}}])
def test_a_long_name_does_not_hide_what_is_wrong_with_the_terms(terms: dict[str, Any]) -> None:
    error = refused(changed({"x" * 1024: terms}))
    assert error.detail.startswith(f"data.elements.{'x' * 100}....")
    assert "xpected" in error.detail


def test_what_nobody_reads_may_be_longer() -> None:
    assert decode(activated(note="x" * 2000), key="any", appended_at=None).seat_id == "a"
    assert decode(activated(data={"seat_id": "a", "element": "x" * 2000}), key="any", appended_at=None).element == "seats"


@pytest.mark.parametrize("escaped", [True, False])
def test_10_elements_with_the_longest_ids_are_read(escaped: bool) -> None:
    """So the limits leave room: what an event's copies take is counted in bytes, and escapes make them the most."""
    longest = "😀" * 1024
    elements = {longest[:-1] + str(number): {"limit": number} for number in range(10)}
    labels = dict.fromkeys(("customer", "product", "user", "ip", "host", "reason", "name"), longest)
    envelope = {"specversion": "1.0", "id": longest, "source": longest, "subject": longest, "time": "2026-11-24T02:14:54Z"}
    document = envelope | {"type": "entitlement.changed", "data": {"elements": elements} | labels}
    value = json.dumps(document, ensure_ascii=escaped).encode()
    assert len(value) * len(elements) < MAX_EVENT_COPIES_BYTES
    event = decode(value, key=longest.encode(), appended_at=None)
    assert (event.entitlement, event.id, event.source, event.customer, event.name) == (longest,) * 5
    assert event.terms is not None
    assert [terms.limit for terms in event.terms.values()] == list(range(10))


# --- Numbers: whole is what is whole, as JSON Schema has it, and nothing takes for ever.


@pytest.mark.parametrize(("text", "expected"), [("3", 3), ("3.0", 3), ("3.000", 3), ("3e0", 3), ("0.3e1", 3), ("1E9", 10**9)])
def test_a_whole_number_may_be_written_with_point_or_exponent(text: str, expected: int) -> None:
    assert decode(with_number(text), key="any", appended_at=None).quantity == expected


@pytest.mark.parametrize(("text", "expected"), [("2", 2), ("2.0", 2), ("2e0", 2), ("0", 0), ("0.0", 0), ("1e12", 10**12)])
@pytest.mark.parametrize("limit", ["10", "10.0"])
def test_so_may_the_units_of_an_overdraft_whatever_else_is_in_the_event(text: str, expected: int, limit: str) -> None:
    template = '{"elements": {"seats": {"limit": ' + limit + ', "overdraft": {"type": "absolute", "value": %s}}}}'
    event = decode(with_number(text, template, "entitlement.changed"), key="any", appended_at=None)
    assert event.terms is not None
    overdraft = event.terms["seats"].overdraft
    assert overdraft is not None
    assert overdraft.value == expected


@pytest.mark.parametrize("text", ["1e400", "1e5000", "1e99999999999999999999999", "-1e400", "1e-400", "9" * 400, "1.5"])
def test_a_number_out_of_range_is_refused_by_its_field(text: str) -> None:
    error = refused(with_number(text))
    assert (error.reason, error.detail.partition(":")[0]) == ("invalid_data", "data.quantity")


@pytest.mark.parametrize("text", ["1e400", "1e5000", "1e99999999999999999999999"])
@pytest.mark.parametrize("type", ["absolute", "percentage"])
def test_so_is_an_overdraft_out_of_range(text: str, type: str) -> None:
    template = '{"elements": {"seats": {"limit": 1, "overdraft": {"type": "' + type + '", "value": %s}}}}'
    error = refused(with_number(text, template, "entitlement.changed"))
    assert (error.reason, error.detail.partition(":")[0]) == ("invalid_data", "data.elements.seats.overdraft.value")


def test_a_number_that_nobody_reads_does_no_harm() -> None:
    template = '{"element": "pages", "quantity": 3.0, "note": %s}'
    assert decode(with_number("1e99999999999999999999999", template), key="any", appended_at=None).quantity == 3


def test_a_number_with_a_huge_exponent_takes_no_time() -> None:
    """Worked out as an integer it would fill the memory, so this has a process and a time of its own."""
    script = (
        "import sys\n"
        "from schemas.events import Refused, decode\n"
        "try:\n"
        "    decode(sys.stdin.buffer.read(), key='any', appended_at=None)\n"
        "except Refused as refused:\n"
        "    print(refused.reason)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], input=with_number("1e999999999"), capture_output=True, timeout=10, check=True
    )
    assert done.stdout.strip() == b"invalid_data"


# --- Bytes of any kind.


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_and_nothing_else(value: bytes) -> None:
    assert refused(value).reason in ("not_json", "not_cloudevent")


@given(st.data())
def test_a_damaged_event_is_refused_or_still_one(data: st.DataObject) -> None:
    value = bytearray(data.draw(st.sampled_from(VALID)))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(value)))
        end = data.draw(st.integers(start, min(start + 3, len(value))))
        value[start:end] = data.draw(st.binary(max_size=3) | st.sampled_from([b'"', b"{", b"}", b",", b"null", b"1e9", b"\\"]))
    found = read(bytes(value))
    if isinstance(found, Refused):
        assert found.detail != ""
    else:
        assert complaints(EVENT, json.loads(bytes(value).decode("utf-8"))) == []


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b'{"seat_id": "a\xff"}', id="in a field that is read"),
        pytest.param(b'{"seat_id": "a", "note": "\xff"}', id="in a field that is not"),
        pytest.param(b'{"seat_id": "a", "note": "\xed\xa0\x80"}', id="half of a surrogate pair"),
        pytest.param(b'{"seat_id": "a", "\xc0\x80": 1}', id="in the name of a field"),
    ],
)
def test_what_is_not_utf_8_is_refused_wherever_it_stands(data: bytes) -> None:
    assert refused(activated(data=0).replace(b'"data": 0', b'"data": ' + data)).reason == "not_json"


@pytest.mark.parametrize("depth", [600, 2_000, 100_000])
@pytest.mark.parametrize(
    "template",
    [
        pytest.param("%s", id="nothing else"),
        pytest.param('{"seat_id": "a", "note": %s}', id="in a valid event"),
        pytest.param('{"seat_id": 1, "note": %s}', id="in an invalid event"),
    ],
)
def test_depth_stops_nothing(template: str, depth: int) -> None:
    """Refused, or accepted where it is in a field that nobody reads: never anything else."""
    nested = (template % ("[" * depth + "]" * depth)).encode()
    value = nested if template == "%s" else activated(data=0).replace(b'"data": 0', b'"data": ' + nested)
    found = read(value)
    if isinstance(found, Refused):
        assert found.reason in ("not_json", "not_cloudevent", "invalid_data")
        assert found.detail != ""
    else:
        assert (found.seat_id, template) == ("a", '{"seat_id": "a", "note": %s}')


def test_of_two_fields_with_one_name_the_last_counts() -> None:
    value = activated().replace(b'"seat_id": "a"', b'"seat_id": "", "seat_id": "b"')
    assert decode(value, key="any", appended_at=None).seat_id == "b"
