"""What the worker sends to `entitlement-days`: the current row of each day that changed, marks of
disordered days, and elements that are settled again.

One JSON object a record, keyed by entitlement, told apart by its `record` field. Rows of one day replace each other:
the one with the highest `position` counts.
"""

from typing import Any

import msgspec
from msgspec import Struct


class DayRow(Struct, frozen=True, gc=False, kw_only=True, tag_field="record", tag="day"):
    """How one day of one element stood at `as_of`.

    Levels, limits and counts in units; times in milliseconds since 1970 (UTC). `day` is the local date, YYYY-MM-DD, in
    `timezone`; day_start and day_end (exclusive) are its bounds.
    overdraft_ms: time with level > limit. unit_ms: integral of the level. Both from the day's first instant to `as_of`; a
        reader completes them to the day's end with `closing` and the closing terms.
    limit, hard_limit: the highest in force in the day; None is not limited when `terms_known`, else there were no
        terms. closing_*: the terms in force at `as_of`.
    state: the element's state at `as_of`; entered_at, peak: of the overdraft
        it is in, else None.
    position: sorts everything that happened to the element: `epoch * 2**48 + offset`, where the epoch counts the
        incarnations of the source topic.
    """

    entitlement: str
    element: str
    day: str
    timezone: str
    day_start: int
    day_end: int
    customer: str | None
    product: str | None
    name: str | None
    kind: str
    opening: int
    closing: int
    min: int
    max: int
    limit: int | None
    hard_limit: int | None
    terms_known: bool
    overdraft_ms: int
    unit_ms: int
    peak_overage: int
    activations: int
    deactivations: int
    refreshes: int
    denials: int
    units_used: int
    as_of: int
    closing_limit: int | None
    closing_hard_limit: int | None
    closing_terms_known: bool
    state: str
    entered_at: int | None
    peak: int | None
    position: int


class DayMark(Struct, frozen=True, gc=False, kw_only=True, tag_field="record", tag="mark"):
    """Days (inclusive, local dates) of one element whose rows may differ from the exact ones: to be restated.

    position: of the event that marked them.
    since: the element is unsettled, and this is the position of the first mark of that time; 0: it is settled, and a day
        that was marked before got another event.
    """

    entitlement: str
    element: str
    first_day: str
    last_day: str
    timezone: str
    position: int
    since: int


class Settled(Struct, frozen=True, gc=False, kw_only=True, tag_field="record", tag="settled"):
    """One element whose live state is the exact one again: at `position` a correction found nothing to change."""

    entitlement: str
    element: str
    position: int


DayRecord = DayRow | DayMark | Settled

_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(DayRecord)
_encoder = msgspec.json.Encoder()


def encode_day(record: DayRecord) -> bytes:
    """The record's value: compact JSON."""
    return _encoder.encode(record)


def decode_day(value: bytes) -> DayRecord:
    """Read a record of `entitlement-days`. Raises msgspec.ValidationError with the field that is wrong."""
    record: DayRecord = _decoder.decode(value)
    return record
