"""A made-up vendor's events, by the thousand: all types, repeats, and events that come late."""

import random
from typing import Any

from schemas.events import format_time

SECOND = 1000
HOUR = 3600 * SECOND
DAY = 24 * HOUR


def arrivals(
    seed: int, *, events: int, entitlements: int, until_ms: int, days: int = 8, repeats: float = 0.05, late: float = 0.05
) -> list[dict[str, Any]]:
    """Events in order of arrival.

    until_ms: all are from the `days` before that. repeats: the share that comes again, up to a day later. late: the share
    that comes late, by up to three days.
    """
    chance = random.Random(seed)
    coming: list[tuple[int, int, dict[str, Any]]] = []
    for number in range(events):
        time = until_ms - chance.randrange(days * DAY)
        # Ties and midnights are where mistakes live.
        if chance.random() < 0.1:
            time -= time % HOUR
        document = _event(chance, f"ent-{chance.randrange(entitlements):05}", number, time)
        arrival = time + (chance.randrange(3 * DAY) if chance.random() < late else 0)
        coming.append((arrival, number, document))
        if chance.random() < repeats:
            coming.append((arrival + chance.randrange(DAY), number, document))
    coming.sort(key=lambda item: item[:2])
    return [document for _, _, document in coming]


def _event(chance: random.Random, subject: str, number: int, time: int) -> dict[str, Any]:
    kind = chance.choices(list(_SHARES), list(_SHARES.values()))[0]
    data: dict[str, Any] = {"customer": f"cus-{int(subject[4:]) % 97}", "product": "cad"}
    if kind.startswith("seat."):
        data["seat_id"] = f"seat-{chance.randrange(8)}"
    elif kind in ("feature.used", "feature.reset"):
        data["element"] = "exports"
    elif kind.startswith("feature."):
        data |= {"element": "render", "seat_id": f"seat-{chance.randrange(5)}"}
    if kind in ("feature.checked_out", "feature.returned", "feature.used", "feature.refreshed") and chance.random() < 0.5:
        data["quantity"] = chance.randint(1, 3)
    if kind in ("seat.activated", "seat.refreshed", "feature.checked_out", "feature.refreshed") and chance.random() < 0.3:
        data["lease_expires_at"] = format_time(time + chance.randrange(10 * SECOND, 12 * HOUR))
    if kind == "entitlement.changed":
        names = chance.sample(["seats", "render", "exports"], chance.randint(1, 3))
        data |= {"elements": {name: _terms(chance) for name in names}, "lease_policy": "keep"}
    if kind == "entitlement.snapshot":
        if chance.random() < 0.3:
            data |= {"element": "exports", "level": chance.randrange(20)}
        else:
            holds = [{"seat_id": f"seat-{seat}", "quantity": chance.randint(0, 2)} for seat in chance.sample(range(5), 3)]
            data |= {"element": chance.choice(["seats", "render"]), "holds": holds}
    return {
        "specversion": "1.0", "id": f"e{number}", "source": f"/server/{number % 3}", "type": kind, "subject": subject,
        "time": format_time(time), "data": data,
    }  # fmt: skip


def _terms(chance: random.Random) -> dict[str, Any]:
    overdrafts: list[dict[str, Any]] = [
        {"type": "none"},
        {"type": "absolute", "value": chance.randint(0, 3)},
        {"type": "percentage", "value": chance.choice([0, 12.5, 33.3333, 50])},
        {"type": "unlimited"},
    ]
    return {"limit": chance.choice([None, 0, 1, 2, 3, 5, 20]), "overdraft": chance.choice(overdrafts)}


_SHARES = {
    "seat.activated": 18, "seat.deactivated": 14, "seat.refreshed": 5, "seat.expired": 3, "seat.denied": 3,
    "feature.checked_out": 18, "feature.returned": 14, "feature.refreshed": 4, "feature.expired": 3, "feature.denied": 3,
    "feature.used": 9, "feature.reset": 1, "entitlement.changed": 3, "entitlement.snapshot": 2,
}  # fmt: skip
