"""Alerts: the transitions that the worker sends to `overdraft-alerts`, as CloudEvents that others act on."""

import uuid
from typing import Any, Literal

import msgspec
import orjson
from msgspec import Struct

SOURCE = "/seatmark/worker"

AlertType = Literal["limit.reached", "limit.cleared", "overdraft.entered", "overdraft.changed", "overdraft.left"]


class Cause(Struct, frozen=True, gc=False):
    """The event that made the transition."""

    source: str
    id: str
    type: str


class AlertData(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """One transition of one element. Units for levels and limits, RFC 3339 for times.

    at: when it took effect. entered_at, duration_seconds, peak, peak_overage: only on `overdraft.left`, of the episode
    that ended.
    """

    entitlement: str
    element: str
    from_state: str = msgspec.field(name="from")
    to_state: str = msgspec.field(name="to")
    level: int
    limit: int | None
    hard_limit: int | None
    overage: int
    cause: Cause
    at: str
    customer: str | None = None
    product: str | None = None
    entered_at: str | None = None
    duration_seconds: float | None = None
    peak: int | None = None
    peak_overage: int | None = None


class Alert(Struct, frozen=True, gc=False, kw_only=True):
    """The CloudEvent. `id` is the same for the same transition, whatever is replayed: drop ids that you have seen."""

    specversion: Literal["1.0"] = "1.0"
    id: str
    source: str
    type: AlertType
    subject: str
    time: str
    datacontenttype: str = "application/json"
    data: AlertData


def seatmark_id(*parts: Any) -> str:
    """The id of something that Seatmark makes: uuid5(NAMESPACE_URL, "seatmark:" + compact JSON array of the parts)."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "seatmark:" + orjson.dumps(parts).decode()))


_decoder = msgspec.json.Decoder(Alert)
_encoder = msgspec.json.Encoder()


def encode_alert(alert: Alert) -> bytes:
    """The record's value: one CloudEvent in structured JSON."""
    return _encoder.encode(alert)


def decode_alert(value: bytes) -> Alert:
    """Read a record of `overdraft-alerts`. Raises msgspec.ValidationError with the field that is wrong."""
    return _decoder.decode(value)
