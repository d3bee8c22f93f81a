"""Entitlement events: what producers send to `entitlement-events`, and how it is read.

The wire format is one CloudEvents 1.0 event in structured JSON (`schemas/entitlement-events.schema.json`).
`decode` turns it into one flat `Event`, or raises `Refused` with the reason under which it is dead-lettered.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

MAX_EVENT_BYTES = 1024 * 1024
# Of each id and label, in code points. They are in keys, in every row and in the state: one as long as an event would be
# there many times.
MAX_TEXT_LENGTH = 1024
MAX_QUANTITY = 1_000_000_000
MAX_LEVEL = 1_000_000_000_000
MAX_PERCENTAGE = 1_000_000
MAX_POSITION = 2**63 - 1
MAX_PARTS = 1_000_000
# An event that names many elements becomes as many rows, each with the event in it.
MAX_EVENT_COPIES_BYTES = 16 * 1024 * 1024
FUTURE_TOLERANCE_MS = 5 * 60 * 1000
_MAX_DETAIL = 500
_MAX_QUOTED = 100

Reason = Literal[
    "not_json",
    "not_cloudevent",
    "unknown_type",
    "invalid_data",
    "key_mismatch",
    "too_large",
    "time_in_future",
]

SEATS = "seats"

# The sources of events that Seatmark itself produces.
RESTATE_SOURCE = "/seatmark/restate"
LEASES_SOURCE = "/seatmark/leases"

Id = Annotated[str, Meta(min_length=1, max_length=MAX_TEXT_LENGTH)]
Label = Annotated[str, Meta(max_length=MAX_TEXT_LENGTH)]
Quantity = Annotated[int, Meta(ge=1, le=MAX_QUANTITY)]
Level = Annotated[int, Meta(ge=0, le=MAX_LEVEL)]


class Refused(Exception):
    """A record that cannot be applied.

    reason: one of `Reason`, the header of the dead letter.
    detail: which field, and what was expected there; cut off where it quotes too much, for it must fit into a header.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        if len(detail) > _MAX_DETAIL:
            detail = detail[:_MAX_DETAIL] + "..."
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail


# --- The wire: one class per shape of `data`, one per event type. Unknown fields are ignored here and stay in
# --- the original bytes, which the raw log keeps.


class _Data(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    customer: Label | None = None
    product: Label | None = None
    credential: Literal["code", "user"] | None = None
    user: Label | None = None
    ip: Label | None = None
    host: Label | None = None
    reason: Label | None = None


class _Seat(_Data, frozen=True, gc=False, kw_only=True):
    seat_id: Id


class _SeatLease(_Data, frozen=True, gc=False, kw_only=True):
    seat_id: Id
    lease_expires_at: str | None = None


class _SeatDenied(_Data, frozen=True, gc=False, kw_only=True):
    seat_id: Id | None = None


class _Feature(_Data, frozen=True, gc=False, kw_only=True):
    element: Id
    seat_id: Id
    quantity: Quantity | None = None


class _FeatureLease(_Data, frozen=True, gc=False, kw_only=True):
    element: Id
    seat_id: Id
    quantity: Quantity | None = None
    lease_expires_at: str | None = None


class _FeatureUse(_Data, frozen=True, gc=False, kw_only=True):
    element: Id
    seat_id: Id | None = None
    quantity: Quantity | None = None


class Overdraft(Struct, frozen=True, gc=False, kw_only=True, forbid_unknown_fields=False, omit_defaults=True):
    """What may be used above the limit. `value`: units for absolute, percent for percentage, else unused."""

    type: Literal["none", "absolute", "percentage", "unlimited"]
    value: int | float | None = None


class ElementTerms(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """The terms of one element. `limit` in units; None: not limited."""

    limit: Level | None
    kind: Literal["pool", "counter"] | None = None
    overdraft: Overdraft | None = None


class _Changed(_Data, frozen=True, gc=False, kw_only=True):
    elements: Annotated[dict[Id, ElementTerms], Meta(min_length=1)]
    name: Label | None = None
    lease_policy: Literal["release", "keep"] | None = None


class _WireHold(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    seat_id: Id
    quantity: Annotated[int, Meta(ge=0, le=MAX_QUANTITY)] = 1
    lease_expires_at: str | None = None


class _Snapshot(_Data, frozen=True, gc=False, kw_only=True):
    element: Id
    holds: list[_WireHold] | None = None
    level: Level | None = None


# A correction has nothing in common with what licence servers tell: `customer` and the like are in its terms.


class _WireCorrectedHold(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    seat_id: Id
    quantity: Annotated[int, Meta(ge=0, le=MAX_QUANTITY)]
    changed_at: str
    lease_expires_at: str | None = None


class _WireCorrectedTerms(ElementTerms, frozen=True, gc=False, kw_only=True):
    changed_at: str
    customer: Label | None = None
    product: Label | None = None
    name: Label | None = None
    lease_policy: Literal["release", "keep"] | None = None


class _WireCorrection(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    element: Id
    basis: Annotated[int, Meta(ge=0, le=MAX_POSITION)]
    part: Annotated[int, Meta(ge=0, le=MAX_PARTS - 1)]
    parts: Annotated[int, Meta(ge=1, le=MAX_PARTS)]
    holds: list[_WireCorrectedHold] | None = None
    difference: Annotated[int, Meta(ge=-MAX_LEVEL, le=MAX_LEVEL)] | None = None
    terms: _WireCorrectedTerms | None = None


class _Wire(Struct, frozen=True, gc=False, kw_only=True, tag_field="type"):
    specversion: Literal["1.0"]
    id: Id
    source: Id
    subject: Id
    time: str


class _SeatActivated(_Wire, frozen=True, gc=False, tag="seat.activated"):
    data: _SeatLease


class _SeatRefreshed(_Wire, frozen=True, gc=False, tag="seat.refreshed"):
    data: _SeatLease


class _SeatDeactivated(_Wire, frozen=True, gc=False, tag="seat.deactivated"):
    data: _Seat


class _SeatExpired(_Wire, frozen=True, gc=False, tag="seat.expired"):
    data: _Seat


class _SeatWasDenied(_Wire, frozen=True, gc=False, tag="seat.denied"):
    data: _SeatDenied


class _FeatureCheckedOut(_Wire, frozen=True, gc=False, tag="feature.checked_out"):
    data: _FeatureLease


class _FeatureReturned(_Wire, frozen=True, gc=False, tag="feature.returned"):
    data: _Feature


class _FeatureRefreshed(_Wire, frozen=True, gc=False, tag="feature.refreshed"):
    data: _FeatureLease


class _FeatureExpired(_Wire, frozen=True, gc=False, tag="feature.expired"):
    data: _Feature


class _FeatureUsed(_Wire, frozen=True, gc=False, tag="feature.used"):
    data: _FeatureUse


class _FeatureReset(_Wire, frozen=True, gc=False, tag="feature.reset"):
    data: _FeatureUse


class _FeatureDenied(_Wire, frozen=True, gc=False, tag="feature.denied"):
    data: _FeatureUse


class _EntitlementChanged(_Wire, frozen=True, gc=False, tag="entitlement.changed"):
    data: _Changed


class _EntitlementSnapshot(_Wire, frozen=True, gc=False, tag="entitlement.snapshot"):
    data: _Snapshot


class _EntitlementCorrected(_Wire, frozen=True, gc=False, tag="entitlement.snapshot"):
    """A snapshot of the source RESTATE_SOURCE. Not in `_AnyWire`, which tells types apart and not sources."""

    data: _WireCorrection


_AnyWire = (
    _SeatActivated
    | _SeatRefreshed
    | _SeatDeactivated
    | _SeatExpired
    | _SeatWasDenied
    | _FeatureCheckedOut
    | _FeatureReturned
    | _FeatureRefreshed
    | _FeatureExpired
    | _FeatureUsed
    | _FeatureReset
    | _FeatureDenied
    | _EntitlementChanged
    | _EntitlementSnapshot
)

EVENT_TYPES: frozenset[str] = frozenset(str(wire.__struct_config__.tag) for wire in _AnyWire.__args__)


# --- What the fold reads.


class SnapshotHold(Struct, frozen=True, gc=False):
    """One hold of a pool's snapshot. lease_end in milliseconds since 1970."""

    seat_id: str
    quantity: int
    lease_end: int | None


class CorrectedHold(Struct, frozen=True, gc=False):
    """What a correction makes of one hold. quantity 0: closed. lease_end, changed_at: ms since 1970."""

    seat_id: str
    quantity: int
    lease_end: int | None
    changed_at: int


class CorrectedTerms(Struct, frozen=True, gc=False):
    """The terms that should be in force. changed_at: the `time` (ms) of the event that set them."""

    terms: ElementTerms
    changed_at: int
    customer: str | None
    product: str | None
    name: str | None
    lease_policy: str | None


class Correction(Struct, frozen=True, gc=False):
    """What an exact fold found different in the live one, at the position `basis`.

    part, parts: a large correction comes in `parts` events, numbered from 0. holds: only those that differ. difference: of
    the counter's total, exact minus live. terms: None where they are right.
    """

    basis: int
    part: int
    parts: int
    holds: tuple[CorrectedHold, ...]
    difference: int
    terms: CorrectedTerms | None


class Event(Struct, frozen=True, gc=False):
    """One entitlement event, read. Times in milliseconds since 1970, UTC.

    element: None only for `entitlement.changed`, which names its elements in `terms`.
    quantity: as sent; None when absent (what that means depends on the type).
    correction: only of an `entitlement.snapshot` that Seatmark itself made; it has neither `holds` nor `level` then.
    """

    type: str
    entitlement: str
    source: str
    id: str
    time: int
    element: str | None = None
    seat_id: str | None = None
    quantity: int | None = None
    lease_end: int | None = None
    customer: str | None = None
    product: str | None = None
    credential: str | None = None
    user: str | None = None
    ip: str | None = None
    host: str | None = None
    reason: str | None = None
    name: str | None = None
    lease_policy: str | None = None
    terms: dict[str, ElementTerms] | None = None
    holds: tuple[SnapshotHold, ...] | None = None
    level: int | None = None
    correction: Correction | None = None


_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_AnyWire)
_correction_decoder = msgspec.json.Decoder(_EntitlementCorrected)


def _number(text: str) -> int | float:
    """A number with a point or an exponent: as int where it is whole, as JSON Schema counts it.

    By way of a float: `1e999999999` is short to write, and an int of as many digits takes all time and memory there is.
    """
    value = float(text)
    return int(value) if value.is_integer() and abs(value) <= MAX_POSITION else value


_generic_decoder = msgspec.json.Decoder(float_hook=_number)

# RFC 3339, section 5.6; upper case T and Z only.
_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(?:Z|([+-])([01]\d|2[0-3]):([0-5]\d))", re.ASCII)
_EPOCH = datetime(1970, 1, 1)
_EPOCH_UTC = _EPOCH.replace(tzinfo=UTC)


def parse_time(text: str) -> int:
    """Milliseconds since 1970 of an RFC 3339 time, truncated to the millisecond.

    Raises ValueError: not RFC 3339, no such date, or before 1970.
    """
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError("expected an RFC 3339 time with a zone, such as 2026-11-24T02:14:54.123Z")
    whole, fraction, sign, hours, minutes = match.groups()
    try:
        since = datetime.fromisoformat(whole) - _EPOCH
    except ValueError as error:
        raise ValueError(f"expected an existing date and time ({error})") from error
    milliseconds = since.days * 86_400_000 + since.seconds * 1000
    if fraction:
        milliseconds += int((fraction + "00")[:3])
    if sign:
        offset = (int(hours) * 60 + int(minutes)) * 60_000
        milliseconds += offset if sign == "-" else -offset
    if milliseconds < 0:
        raise ValueError("expected a time after 1970-01-01T00:00:00Z")
    return milliseconds


def format_time(milliseconds: int) -> str:
    """The RFC 3339 text, in UTC with milliseconds, of a time in milliseconds since 1970."""
    moment = _EPOCH_UTC + timedelta(milliseconds=milliseconds)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def wire_of(value: bytes) -> Any:
    """A record as it stands on the wire, without the fields that are not known; its times are not looked at.

    Encoded as JSON it is an event that decodes to the same. Raises Refused: with the dead-letter reason.
    """
    if len(value) > MAX_EVENT_BYTES:
        raise Refused("too_large", f"expected at most {MAX_EVENT_BYTES} bytes, got {len(value)}")
    try:
        if not value.isascii():
            value.decode()  # msgspec does not look into the texts of fields that it skips
        wire = _decoder.decode(value)
        if wire.source == RESTATE_SOURCE and type(wire) is _EntitlementSnapshot:
            wire = _correction_decoder.decode(value)
        return wire
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _decode_slowly(value)
    except RecursionError as error:
        raise Refused("not_json", "expected objects and arrays that are less deep in one another") from error


def decode(value: bytes, *, key: bytes | Literal["any"] | None, appended_at: int | None) -> Event:
    """Read one record of `entitlement-events`.

    value, key: the record's bytes; the key must be the subject, or "any" where there is no record yet.
    appended_at: the record's append timestamp in ms, against which a `time` in the future is refused; None: not
        checked (a record of the raw log was checked when it came in).
    Raises Refused: with the dead-letter reason, and the field and what was expected of it.
    """
    wire = wire_of(value)
    try:
        time = parse_time(wire.time)
    except ValueError as error:
        raise Refused("not_cloudevent", f"time: {error}") from error
    if key != "any" and key != wire.subject.encode():
        raise Refused("key_mismatch", f"expected the record's key to be the subject {wire.subject!r}, got {key!r}")
    if appended_at is not None and time > appended_at + FUTURE_TOLERANCE_MS:
        raise Refused(
            "time_in_future",
            f"time: expected at most 5 minutes after {format_time(appended_at)}, got {wire.time}",
        )
    data = wire.data
    element: str | None = None
    seat_id: str | None = None
    quantity: int | None = None
    lease_end: int | None = None
    shape = type(data)
    if shape is _SeatLease:
        element, seat_id = SEATS, data.seat_id
        lease_end = _lease_end(data.lease_expires_at, time, wire.time, "data.lease_expires_at")
    elif shape is _FeatureLease:
        element, seat_id, quantity = data.element, data.seat_id, data.quantity
        lease_end = _lease_end(data.lease_expires_at, time, wire.time, "data.lease_expires_at")
    elif shape is _Feature or shape is _FeatureUse:
        element, seat_id, quantity = data.element, data.seat_id, data.quantity
    elif shape is _Seat or shape is _SeatDenied:
        element, seat_id = SEATS, data.seat_id
    elif shape is _Changed:
        if len(data.elements) * len(value) > MAX_EVENT_COPIES_BYTES:
            raise Refused("invalid_data", f"data.elements: expected fewer than {len(data.elements)}: send several events")
        return _changed(wire, time)
    elif shape is _WireCorrection:
        return _corrected(wire, time)
    else:
        return _snapshot(wire, time)
    return Event(
        wire.__struct_config__.tag,
        wire.subject,
        wire.source,
        wire.id,
        time,
        element,
        seat_id,
        quantity,
        lease_end,
        data.customer,
        data.product,
        data.credential,
        data.user,
        data.ip,
        data.host,
        data.reason,
    )


def _instant(text: str, field: str) -> int:
    try:
        return parse_time(text)
    except ValueError as error:
        raise Refused("invalid_data", f"{field}: {error}") from error


def _lease_end(text: str | None, time: int, time_text: str, field: str) -> int | None:
    if text is None:
        return None
    end = _instant(text, field)
    if end <= time:
        raise Refused("invalid_data", f"{field}: expected a lease end after the event's time {time_text}, got {text}")
    return end


def _check_overdraft(terms: ElementTerms, field: str) -> None:
    """Refuse an overdraft that has no fitting value. field: where the terms stand."""
    overdraft = terms.overdraft
    if overdraft is None or overdraft.type in ("none", "unlimited"):
        return
    field += ".overdraft.value"
    value = overdraft.value
    highest = MAX_LEVEL if overdraft.type == "absolute" else MAX_PERCENTAGE
    if value is None or value < 0 or value > highest:
        raise Refused("invalid_data", f"{field}: expected a number from 0 to {highest}, got {value}")
    if overdraft.type == "absolute" and value != int(value):
        raise Refused("invalid_data", f"{field}: expected a whole number of units, got {value}")
    if overdraft.type == "percentage" and Decimal(repr(value)).normalize().as_tuple().exponent < -4:  # type: ignore[operator]
        raise Refused("invalid_data", f"{field}: expected at most 4 decimals, got {value}")


def _check_seats(holds: Sequence[SnapshotHold | CorrectedHold]) -> None:
    if len({hold.seat_id for hold in holds}) != len(holds):
        raise Refused("invalid_data", "data.holds: expected each seat_id once")


def _changed(wire: Any, time: int) -> Event:
    data: _Changed = wire.data
    for element, terms in data.elements.items():
        _check_overdraft(terms, f"data.elements.{_shortened(element)}")
    return Event(
        type=wire.__struct_config__.tag,
        entitlement=wire.subject,
        source=wire.source,
        id=wire.id,
        time=time,
        customer=data.customer,
        product=data.product,
        credential=data.credential,
        user=data.user,
        ip=data.ip,
        host=data.host,
        reason=data.reason,
        name=data.name,
        lease_policy=data.lease_policy,
        terms=data.elements,
    )


def _snapshot(wire: Any, time: int) -> Event:
    data: _Snapshot = wire.data
    if (data.holds is None) == (data.level is None):
        raise Refused("invalid_data", "data: expected either `holds` (a pool) or `level` (a counter)")
    holds: tuple[SnapshotHold, ...] | None = None
    if data.holds is not None:
        holds = tuple(
            SnapshotHold(
                hold.seat_id,
                hold.quantity,
                _lease_end(hold.lease_expires_at, time, wire.time, f"data.holds[{index}].lease_expires_at"),
            )
            for index, hold in enumerate(data.holds)
        )
        _check_seats(holds)
    return Event(
        type=wire.__struct_config__.tag,
        entitlement=wire.subject,
        source=wire.source,
        id=wire.id,
        time=time,
        element=data.element,
        customer=data.customer,
        product=data.product,
        credential=data.credential,
        user=data.user,
        ip=data.ip,
        host=data.host,
        reason=data.reason,
        holds=holds,
        level=data.level,
    )


def _corrected(wire: Any, time: int) -> Event:
    data: _WireCorrection = wire.data
    if data.part >= data.parts:
        raise Refused("invalid_data", f"data.part: expected a number below `parts` ({data.parts}), got {data.part}")
    holds = tuple(
        CorrectedHold(
            hold.seat_id,
            hold.quantity,
            # It may have ended before the event's time: the exact fold says what is, not what will be.
            None if hold.lease_expires_at is None else _instant(hold.lease_expires_at, f"data.holds[{index}].lease_expires_at"),
            _instant(hold.changed_at, f"data.holds[{index}].changed_at"),
        )
        for index, hold in enumerate(data.holds or ())
    )
    _check_seats(holds)
    terms: CorrectedTerms | None = None
    if data.terms is not None:
        _check_overdraft(data.terms, "data.terms")
        terms = CorrectedTerms(
            ElementTerms(limit=data.terms.limit, kind=data.terms.kind, overdraft=data.terms.overdraft),
            _instant(data.terms.changed_at, "data.terms.changed_at"),
            data.terms.customer,
            data.terms.product,
            data.terms.name,
            data.terms.lease_policy,
        )
    return Event(
        type=wire.__struct_config__.tag,
        entitlement=wire.subject,
        source=wire.source,
        id=wire.id,
        time=time,
        element=data.element,
        correction=Correction(data.basis, data.part, data.parts, holds, data.difference or 0, terms),
    )


def _decode_slowly(value: bytes) -> Any:
    """Decode what the fast decoder refused: either find out why, or accept 3.0 where 3 is meant, as JSON Schema does.

    Raises Refused: with the reason.
    """
    try:
        value.decode()
        document = _generic_decoder.decode(value)
    except UnicodeDecodeError as error:
        raise Refused("not_json", f"expected UTF-8 ({error})") from error
    except msgspec.DecodeError as error:
        raise Refused("not_json", str(error)) from error
    except RecursionError as error:
        raise Refused("not_json", "expected objects and arrays that are less deep in one another") from error
    if not isinstance(document, dict):
        raise Refused("not_cloudevent", f"expected a JSON object, got {type(document).__name__}")
    if document.get("specversion") != "1.0":
        raise Refused("not_cloudevent", f'specversion: expected "1.0", got {_quoted(document.get("specversion"))}')
    for attribute in ("id", "source", "type", "subject", "time"):
        text = document.get(attribute)
        if not isinstance(text, str) or not text:
            raise Refused("not_cloudevent", f"{attribute}: expected a text that is not empty, got {_quoted(text)}")
    if document["type"] not in EVENT_TYPES:
        raise Refused(
            "unknown_type", f"type: got {_quoted(document['type'])}, expected one of {', '.join(sorted(EVENT_TYPES))}"
        )
    corrected = document["type"] == "entitlement.snapshot" and document["source"] == RESTATE_SOURCE
    try:
        return msgspec.convert(document, _EntitlementCorrected if corrected else _AnyWire)
    except msgspec.ValidationError as error:
        raise Refused("invalid_data", _explained(str(error), document)) from error


def _quoted(node: Any) -> str:
    """A text as it came, cut off where it is long; of anything else its kind."""
    return repr(node[:_MAX_QUOTED]) if isinstance(node, str) else "nothing" if node is None else type(node).__name__


def _shortened(name: str) -> str:
    """The name of an element as part of the name of a field."""
    return name if len(name) <= _MAX_QUOTED else name[:_MAX_QUOTED] + "..."


_WHERE = re.compile(r"(.*) - at (`key` in )?`\$\.?(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(\w+)`")
_LENGTHS = {
    "Expected `str` of length >= 1": "that is not empty",
    f"Expected `str` of length <= {MAX_TEXT_LENGTH}": f"of at most {MAX_TEXT_LENGTH} characters",
}
_CHOICES = {
    "credential": "`code` or `user`",
    "kind": "`pool` or `counter`",
    "lease_policy": "`release` or `keep`",
    "type": "`none`, `absolute`, `percentage` or `unlimited`",
}


def _explained(message: str, document: dict[str, Any]) -> str:
    """What msgspec found wrong, as `field: what was expected`."""
    where = _WHERE.fullmatch(message)
    field = ""
    what = "a text"
    if where is not None:
        message, in_key, field = where.groups()
        what = "the name of each element to be a text" if in_key else what
    missing = _MISSING.fullmatch(message)
    if missing is not None:
        message, field = "expected, but it is not there", f"{field}.{missing[1]}".lstrip(".")
    elif message in _LENGTHS:
        message = f"expected {what} {_LENGTHS[message]}"
    elif message.startswith("Invalid enum value"):
        message += f", expected {_CHOICES[field.rpartition('.')[2]]}"
    if "[...]" in field:
        # msgspec does not say which key of an object it was.
        field = field.replace("[...]", f".{_shortened(_first_wrong(document['data']['elements']))}", 1)
    return f"{field}: {message}"


def _first_wrong(elements: dict[str, Any]) -> str:
    for name, terms in elements.items():
        try:
            msgspec.convert(terms, ElementTerms)
        except msgspec.ValidationError:
            return name
    return "?"
