"""Corrections: what Seatmark sends to its own `entitlement-events` where an element's live state is not the exact one.

A correction is an `entitlement.snapshot` with a source of its own. `schemas.events.decode` reads it.
"""

from typing import Any

import msgspec

from schemas.events import RESTATE_SOURCE, CorrectedHold, CorrectedTerms, Correction, format_time

# So many holds fit into one event whatever their ids: a correction of more comes in parts.
HOLDS_PER_PART = 150

_encoder = msgspec.json.Encoder()


def encode_correction(*, entitlement: str, element: str, time: int, correction: Correction, id: str) -> bytes:
    """The record's value: one CloudEvent in structured JSON, without what is empty. Its key is the entitlement.

    time: ms since 1970. Nothing is checked here: `decode` refuses what is out of range. More than HOLDS_PER_PART holds may be
    too many for one event.
    """
    data: dict[str, Any] = {
        "element": element,
        "basis": correction.basis,
        "part": correction.part,
        "parts": correction.parts,
    }
    if correction.holds:
        data["holds"] = [_hold(hold) for hold in correction.holds]
    if correction.difference:
        data["difference"] = correction.difference
    if correction.terms is not None:
        data["terms"] = _terms(correction.terms)
    return _encoder.encode(
        {
            "specversion": "1.0",
            "id": id,
            "source": RESTATE_SOURCE,
            "type": "entitlement.snapshot",
            "subject": entitlement,
            "time": format_time(time),
            "data": data,
        }
    )


def _hold(hold: CorrectedHold) -> dict[str, Any]:
    written: dict[str, Any] = {"seat_id": hold.seat_id, "quantity": hold.quantity}
    if hold.lease_end is not None:
        written["lease_expires_at"] = format_time(hold.lease_end)
    return written | {"changed_at": format_time(hold.changed_at)}


def _terms(corrected: CorrectedTerms) -> dict[str, Any]:
    terms = corrected.terms
    overdraft = terms.overdraft
    optional = {
        "kind": terms.kind,
        "overdraft": None if overdraft is None else _filled({"type": overdraft.type, "value": overdraft.value}),
        "customer": corrected.customer,
        "product": corrected.product,
        "name": corrected.name,
        "lease_policy": corrected.lease_policy,
    }
    # A limit of null is one too: not limited.
    return {"limit": terms.limit, "changed_at": format_time(corrected.changed_at)} | _filled(optional)


def _filled(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
