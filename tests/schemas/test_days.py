"""Day rows, marks and settled elements on their way from worker to sink."""

import json
from typing import Any

import msgspec
import pytest

from processors.domain.days import Calendar
from processors.domain.ledger import Ledger, position_of
from schemas.days import DayMark, DayRecord, DayRow, Settled, decode_day, encode_day
from schemas.events import decode

ROW = DayRow(
    entitlement="ent-1001",
    element="seats",
    day="2026-11-24",
    timezone="Europe/Berlin",
    day_start=1_795_474_800_000,
    day_end=1_795_561_200_000,
    customer="cus-9",
    product="cad-pro",
    name="CAD Pro, Zürich",
    kind="pool",
    opening=3,
    closing=12,
    min=3,
    max=13,
    limit=10,
    hard_limit=12,
    terms_known=True,
    overdraft_ms=1_500,
    unit_ms=86_400_000,
    peak_overage=3,
    activations=11,
    deactivations=2,
    refreshes=40,
    denials=1,
    units_used=0,
    as_of=1_795_486_494_123,
    closing_limit=10,
    closing_hard_limit=12,
    closing_terms_known=True,
    state="at_hard_limit",
    entered_at=1_795_486_000_000,
    peak=13,
    position=position_of(3, 123_456_789),
)
WITHOUT_TERMS = msgspec.structs.replace(
    ROW, customer=None, product=None, name=None, kind="counter", limit=None, hard_limit=None, terms_known=False,
    closing_limit=None, closing_hard_limit=None, closing_terms_known=False, state="within", entered_at=None, peak=None,
)  # fmt: skip
# A level of a million million held for a day is more unit-milliseconds than 64 bits hold.
LARGEST = msgspec.structs.replace(ROW, unit_ms=10**12 * 86_400_000, position=position_of(2**15 - 1, 2**48 - 1))
MARK = DayMark(
    entitlement="ent-1001",
    element="64300ACD_F",
    first_day="2026-11-20",
    last_day="2026-11-24",
    timezone="UTC",
    position=position_of(1, 7),
    since=position_of(1, 3),
)
MARK_OF_A_SETTLED_ELEMENT = msgspec.structs.replace(MARK, since=0)
SETTLED = Settled(entitlement="ent-1001", element="seats", position=position_of(1, 9))


@pytest.mark.parametrize(
    "record",
    [ROW, WITHOUT_TERMS, LARGEST, MARK, MARK_OF_A_SETTLED_ELEMENT, SETTLED],
    ids=["with terms", "without terms", "largest numbers", "mark", "mark of a settled element", "settled"],
)
def test_a_record_survives_writing_and_reading(record: DayRecord) -> None:
    assert decode_day(encode_day(record)) == record


def test_a_record_says_what_it_is() -> None:
    assert json.loads(encode_day(ROW))["record"] == "day"
    assert json.loads(encode_day(MARK)) == {
        "record": "mark", "entitlement": "ent-1001", "element": "64300ACD_F", "first_day": "2026-11-20",
        "last_day": "2026-11-24", "timezone": "UTC", "position": 2**48 + 7, "since": 2**48 + 3,
    }  # fmt: skip
    assert json.loads(encode_day(SETTLED)) == {
        "record": "settled", "entitlement": "ent-1001", "element": "seats", "position": 2**48 + 9,
    }  # fmt: skip


def test_what_is_not_known_is_written_as_null_not_left_out() -> None:
    written = json.loads(encode_day(WITHOUT_TERMS))
    assert set(written) == {"record", *DayRow.__struct_fields__}
    assert [written[name] for name in ("limit", "closing_hard_limit", "customer", "peak")] == [None] * 4


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"record": "week"}, "record"),
        ({"opening": "3"}, "opening"),
        ({"limit": 1.5}, "limit"),
        ({"terms_known": None}, "terms_known"),
        ({"position": None}, "position"),
    ],
)
def test_a_wrong_record_is_refused_by_its_field(changes: dict[str, Any], field: str) -> None:
    wrong = json.loads(encode_day(ROW)) | changes
    with pytest.raises(msgspec.ValidationError, match=rf"\$\.{field}`"):
        decode_day(json.dumps(wrong).encode())


@pytest.mark.parametrize(
    ("record", "name"), [(record, name) for record in (ROW, MARK, SETTLED) for name in record.__struct_fields__]
)
def test_a_record_without_one_of_its_fields_is_refused(record: DayRecord, name: str) -> None:
    wrong = json.loads(encode_day(record))
    del wrong[name]
    with pytest.raises(msgspec.ValidationError, match=f"`{name}`"):
        decode_day(json.dumps(wrong).encode())


def test_what_the_fold_makes_survives_writing_and_reading() -> None:
    ledger = Ledger(Calendar("Europe/Berlin"), 3_600_000)
    # The last one is disordered: a row and a mark.
    for number, time in enumerate(["2026-03-28T10:00:00Z", "2026-03-29T10:00:00Z", "2026-03-29T09:30:00Z"]):
        event = {
            "specversion": "1.0", "id": str(number), "source": "/s", "type": "seat.activated", "subject": "e",
            "time": time, "data": {"seat_id": f"s{number}"},
        }  # fmt: skip
        ledger.apply(decode(json.dumps(event).encode(), key=b"e", appended_at=None), number)
    changes = ledger.take_changes()
    made: list[DayRecord] = [*changes.days, *changes.marks]
    assert [type(record) for record in made] == [DayRow, DayRow, DayMark]
    assert [decode_day(encode_day(record)) for record in made] == made
