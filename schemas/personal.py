"""Personal data in entitlement events: users, hosts and addresses, and how they are taken out without changing a number.

`docs/privacy.md` says where else there is any, and who takes it out when.
"""

from collections.abc import Mapping
from ipaddress import IPv6Address, ip_address
from typing import Any

import msgspec

from schemas.events import MAX_EVENT_BYTES, Event, Refused, wire_of

# The fields of `data` that are about a person, or that anything may have been written into.
PERSONAL_FIELDS = ("user", "ip", "host", "reason")

# So begins an event that was written anew here. As any field that is not known it means nothing to a reader.
REWRITTEN = b'{"forgotten":true,'

_IPV4_KEPT, _IPV6_KEPT = 24, 48

_raw_objects = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encoder = msgspec.json.Encoder()


def truncated_ip(text: str) -> str | None:
    """The network of an address: of IPv4 the first 24 bits, of IPv6 the first 48. None: the text is no address."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    dropped = address.max_prefixlen - (_IPV4_KEPT if address.version == 4 else _IPV6_KEPT)
    # By way of the number: what comes after a % names an interface of that host.
    return str(type(address)(int(address) >> dropped << dropped))


def with_truncated_ip(value: bytes, event: Event) -> tuple[bytes, Event]:
    """An event and what was read of it, with `data.ip` truncated, or left out where it is no address.

    Nothing else is touched: an address in another field stays.
    """
    kept = None if event.ip is None else truncated_ip(event.ip)
    if kept == event.ip:
        return value, event
    document = _raw_objects.decode(value)
    data = _raw_objects.decode(document["data"])
    if kept is None:
        del data["ip"]
    else:
        data["ip"] = msgspec.Raw(_encoder.encode(kept))
    document["data"] = msgspec.Raw(_encoder.encode(data))
    return _encoder.encode(document), msgspec.structs.replace(event, ip=kept)


def rewritten(value: bytes, fields: Mapping[str, str | None], seats: Mapping[str, str]) -> bytes:
    """An event with other values in some of PERSONAL_FIELDS, other seat ids, and without the fields that are not known.

    fields: the new values, by name; None leaves the field out. Those that are not named stay. seats: new ids by the old ones.
    All else that an event says is read from it as before. Raises Refused: it cannot be read, or would be too large.
    """
    wire = wire_of(value)
    data = wire.data
    changes: dict[str, Any] = {name: text for name, text in fields.items() if hasattr(data, name)}
    seat_id: str | None = getattr(data, "seat_id", None)
    if seat_id is not None and seat_id in seats:
        changes["seat_id"] = seats[seat_id]
    holds: list[Any] | None = getattr(data, "holds", None)
    if holds:
        changes["holds"] = [msgspec.structs.replace(hold, seat_id=seats.get(hold.seat_id, hold.seat_id)) for hold in holds]
    anew = msgspec.structs.replace(wire, data=msgspec.structs.replace(data, **changes))
    encoded = REWRITTEN + _encoder.encode(anew)[1:]
    if len(encoded) > MAX_EVENT_BYTES:
        raise Refused("too_large", f"expected at most {MAX_EVENT_BYTES} bytes, got {len(encoded)}")
    return encoded


def seats_of(event: Event) -> list[str]:
    """The seat ids in an event: its own, and those of the holds in it."""
    seats = [hold.seat_id for hold in event.holds or ()]
    if event.seat_id is not None:
        seats.append(event.seat_id)
    if event.correction is not None:
        seats += [hold.seat_id for hold in event.correction.holds]
    return seats
