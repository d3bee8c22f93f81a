"""Events without personal data say the same as before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.events import MAX_EVENT_BYTES, RESTATE_SOURCE, Event, Refused, decode
from schemas.personal import PERSONAL_FIELDS, REWRITTEN, rewritten, seats_of, truncated_ip, with_truncated_ip
from tests.schemas.test_schema_and_decoder_agree import corrections, events

VALID = sorted((Path(__file__).parents[2] / "schemas/examples/entitlement-events/valid").glob("*.json"))


def read(value: bytes) -> Event:
    return decode(value, key="any", appended_at=None)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("203.0.113.77", "203.0.113.0"),
        ("203.0.113.0", "203.0.113.0"),
        ("2001:DB8:1:2:3:4:5:6", "2001:db8:1::"),
        ("::1", "::"),
        ("fe80::1%eth0", "fe80::"),
        ("::ffff:203.0.113.77", "203.0.113.0"),
        # No addresses: nobody knows what of them tells who it is.
        ("203.0.113.77:5555", None),
        ("wks-12", None),
        ("", None),
    ],
)
def test_of_an_address_the_network_stays(address: str, network: str | None) -> None:
    assert truncated_ip(address) == network


def check(value: bytes) -> None:
    """Only what is personal changes, and it changes once."""
    event = read(value)
    assert read(rewritten(value, {}, {})) == event
    anonymous = dict.fromkeys(PERSONAL_FIELDS)
    anew = rewritten(value, anonymous, {})
    assert anew.startswith(REWRITTEN)
    assert read(anew) == msgspec.structs.replace(event, **anonymous)
    assert rewritten(anew, anonymous, {}) == anew

    short, read_short = with_truncated_ip(value, event)
    assert read(short) == read_short == msgspec.structs.replace(event, ip=None if event.ip is None else truncated_ip(event.ip))
    assert (short == value) == (read_short == event)

    seats = {seat: f"forgotten-{number}" for number, seat in enumerate(dict.fromkeys(seats_of(event)))}
    renamed = rewritten(value, {}, seats)
    assert seats_of(read(renamed)) == [seats[seat] for seat in seats_of(event)]
    assert read(rewritten(renamed, {}, {new: old for old, new in seats.items()})) == event


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_only_the_personal_fields_of_an_event_change(path: Path) -> None:
    check(path.read_bytes())


@given(events() | corrections(), st.none() | st.ip_addresses().map(str) | st.text(max_size=5))
def test_only_the_personal_fields_of_any_event_change(document: dict[str, Any], ip: str | None) -> None:
    if document["source"] != RESTATE_SOURCE:
        document["data"]["ip"] = ip
    value = json.dumps(document).encode()
    try:
        read(value)
    except Refused:
        return
    check(value)


def test_numbers_stay_as_they_were_written_where_an_address_is_truncated() -> None:
    value = (
        b'{"data":{"ip":"198.51.100.7","seat_id":"a","x":1.50,"y":1e999,"\\u00e4":"\\u00e4"},"specversion":"1.0","id":"1",'
        b'"source":"/s","type":"seat.activated","subject":"e","time":"2026-03-20T09:00:00Z","z":{"ip":"198.51.100.7"}}'
    )
    short, event = with_truncated_ip(value, read(value))
    assert event.ip == "198.51.100.0"
    assert b'"x":1.50,"y":1e999,' in short
    assert short.count(b'"198.51.100.7"') == 1


def test_of_two_fields_with_the_same_name_the_last_one_counts_as_before() -> None:
    value = (
        b'{"specversion":"1.0","id":"1","source":"/s","type":"feature.used","subject":"e","time":"2026-03-20T09:00:00Z",'
        b'"data":{"element":"x","quantity":1,"ip":"192.0.2.1","quantity":2,"ip":"198.51.100.7"}}'
    )
    event = read(value)
    assert event.quantity == 2
    assert read(rewritten(value, {}, {})) == event
    short, _ = with_truncated_ip(value, event)
    assert read(short) == msgspec.structs.replace(event, ip="198.51.100.0")
    assert b"192.0.2.1" not in short


def test_unknown_fields_go_wherever_they_are() -> None:
    document = orjson.loads((VALID[0].parent / "entitlement.snapshot-pool.json").read_bytes())
    document["data"]["holds"][0]["user"] = document["data"]["note"] = document["extra"] = "ann"
    assert b"ann" not in rewritten(orjson.dumps(document), {}, {})


def test_an_event_that_would_be_too_large_is_refused() -> None:
    """It could not be read back."""
    document = orjson.loads((VALID[0].parent / "entitlement.snapshot-pool.json").read_bytes())
    # Each new id is 24 bytes longer.
    seats = {f"{number:04}{'x' * 996}": f"{number:04}{'y' * 1020}" for number in range(1010)}
    document["data"] = {"element": "seats", "holds": [{"seat_id": seat} for seat in seats]}
    value = orjson.dumps(document)
    assert len(value) < MAX_EVENT_BYTES
    with pytest.raises(Refused, match="too_large"):
        rewritten(value, {}, seats)
