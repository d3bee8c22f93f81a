"""Corrections: written so that the decoder reads the same again."""

import json

from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.corrections import HOLDS_PER_PART, encode_correction
from schemas.events import (
    MAX_EVENT_BYTES,
    MAX_LEVEL,
    MAX_PARTS,
    MAX_POSITION,
    MAX_QUANTITY,
    MAX_TEXT_LENGTH,
    CorrectedHold,
    CorrectedTerms,
    Correction,
    ElementTerms,
    Event,
    Overdraft,
    decode,
)
from tests.schemas.contract import EVENT, complaints

NOTHING = Correction(basis=7, part=0, parts=1, holds=(), difference=0, terms=None)


def test_a_correction_is_an_event_without_what_is_empty() -> None:
    written = encode_correction(entitlement="ent-1001", element="seats", time=1_795_486_494_123, correction=NOTHING, id="1")
    assert json.loads(written) == {
        "specversion": "1.0", "id": "1", "source": "/seatmark/restate", "type": "entitlement.snapshot", "subject": "ent-1001",
        "time": "2026-11-24T02:14:54.123Z", "data": {"element": "seats", "basis": 7, "part": 0, "parts": 1},
    }  # fmt: skip


def test_a_correction_says_all_that_differs() -> None:
    correction = Correction(
        basis=2**48 + 7,
        part=1,
        parts=3,
        holds=(CorrectedHold("wks-12", 2, 1_795_490_094_000, 1_795_486_494_000), CorrectedHold("wks-13", 0, None, 0)),
        difference=-5,
        terms=CorrectedTerms(
            ElementTerms(limit=None, kind="pool", overdraft=Overdraft(type="percentage", value=12.5)),
            1_795_486_494_000, "cus-9", None, "CAD Pro, Zürich", "keep",
        ),
    )  # fmt: skip
    written = encode_correction(entitlement="e", element="seats", time=0, correction=correction, id="1")
    assert json.loads(written)["data"] == {
        "element": "seats", "basis": 2**48 + 7, "part": 1, "parts": 3, "difference": -5,
        "holds": [
            {"seat_id": "wks-12", "quantity": 2, "lease_expires_at": "2026-11-24T03:14:54.000Z",
             "changed_at": "2026-11-24T02:14:54.000Z"},
            {"seat_id": "wks-13", "quantity": 0, "changed_at": "1970-01-01T00:00:00.000Z"},
        ],
        "terms": {
            "limit": None, "kind": "pool", "overdraft": {"type": "percentage", "value": 12.5},
            "changed_at": "2026-11-24T02:14:54.000Z", "customer": "cus-9", "name": "CAD Pro, Zürich", "lease_policy": "keep",
        },
    }  # fmt: skip


def test_the_holds_of_a_part_fit_into_an_event_whatever_their_ids() -> None:
    longest = "\0" * MAX_TEXT_LENGTH  # \u0000 in JSON: 6 bytes
    latest = 253_402_300_799_999
    holds = tuple(CorrectedHold(f"{number:03}" + longest[3:], MAX_QUANTITY, latest, latest) for number in range(HOLDS_PER_PART))
    overdraft = Overdraft(type="percentage", value=12.3456)
    terms = ElementTerms(limit=MAX_LEVEL, kind="counter", overdraft=overdraft)
    labelled = CorrectedTerms(terms, latest, longest, longest, longest, "release")
    correction = Correction(MAX_POSITION, MAX_PARTS - 1, MAX_PARTS, holds, -MAX_LEVEL, labelled)
    value = encode_correction(entitlement=longest, element=longest, time=latest, correction=correction, id=longest)
    assert 0.9 * MAX_EVENT_BYTES < len(value) <= MAX_EVENT_BYTES
    assert decode(value, key=longest.encode(), appended_at=None).correction == correction


names = st.text(min_size=1, max_size=8)
labels = st.none() | st.text(max_size=8)
instants = st.integers(0, 253_402_300_799_999)
levels = st.integers(0, MAX_LEVEL)
overdrafts = (
    st.none()
    | st.builds(Overdraft, type=st.sampled_from(["none", "unlimited"]))
    | st.builds(Overdraft, type=st.just("absolute"), value=levels)
    | st.builds(Overdraft, type=st.just("percentage"), value=st.integers(0, 10_000_000).map(lambda n: n / 10_000))
)
terms = st.builds(ElementTerms, limit=st.none() | levels, kind=st.sampled_from([None, "pool", "counter"]), overdraft=overdrafts)
holds = st.builds(CorrectedHold, names, st.integers(0, MAX_QUANTITY), st.none() | instants, instants)
policies = st.sampled_from([None, "release", "keep"])


@st.composite
def corrections(draw: st.DrawFn) -> Correction:
    parts = draw(st.integers(1, MAX_PARTS))
    return Correction(
        basis=draw(st.integers(0, MAX_POSITION)),
        part=draw(st.integers(0, parts - 1)),
        parts=parts,
        holds=tuple(draw(st.lists(holds, max_size=3, unique_by=lambda hold: hold.seat_id))),
        difference=draw(st.integers(-MAX_LEVEL, MAX_LEVEL)),
        terms=draw(st.none() | st.builds(CorrectedTerms, terms, instants, labels, labels, labels, policies)),
    )


@settings(deadline=None)
@given(names, names, instants, corrections(), names)
@example("e", "seats", 0, NOTHING, "1")
def test_what_is_written_fits_the_schema_and_is_read_as_it_was(
    entitlement: str, element: str, time: int, correction: Correction, id: str
) -> None:
    value = encode_correction(entitlement=entitlement, element=element, time=time, correction=correction, id=id)
    assert complaints(EVENT, json.loads(value)) == []
    assert decode(value, key=entitlement.encode(), appended_at=time) == Event(
        "entitlement.snapshot", entitlement, "/seatmark/restate", id, time, element, correction=correction
    )
