"""How numbers, times and events are said on the pages."""

from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from schemas.events import RESTATE_SOURCE, parse_time

_NONE = "\u2013"
_MINUS = "\u2212"

EVENT_NAMES = {
    "seat.activated": "Seat activated",
    "seat.refreshed": "Seat refreshed",
    "seat.deactivated": "Seat given back",
    "seat.expired": "Seat expired",
    "seat.denied": "Seat refused",
    "feature.checked_out": "Checked out",
    "feature.returned": "Returned",
    "feature.refreshed": "Refreshed",
    "feature.expired": "Expired",
    "feature.denied": "Refused",
    "feature.used": "Used",
    "feature.reset": "Counter reset",
    "entitlement.changed": "Terms set",
    "entitlement.snapshot": "Snapshot",
}


def units(number: int) -> str:
    """A number with narrow spaces between thousands, as in 12 345; no line breaks there."""
    return f"{number:,}".replace(",", "\u202f")


def hours(number: float) -> str:
    """Hours with one decimal."""
    return f"{number:,.1f}".replace(",", "\u202f")


def change(delta: int) -> str:
    """A change of level with its sign; nothing for none."""
    return f"+{units(delta)}" if delta > 0 else f"{_MINUS}{units(-delta)}" if delta < 0 else _NONE


def duration(seconds: float) -> str:
    """Hours and minutes; a dash for none."""
    minutes = round(float(seconds) / 60)
    if not seconds:
        return _NONE
    if minutes < 60:
        return f"{minutes} min" if minutes else "< 1 min"
    return f"{units(minutes // 60)} h {minutes % 60:02d} min"


def moment(time: str, timezone: str) -> str:
    """An RFC 3339 time in a time zone, to the second."""
    return datetime.fromtimestamp(parse_time(time) / 1000, UTC).astimezone(ZoneInfo(timezone)).strftime("%Y-%m-%d %H:%M:%S")


def event_name(kind: str) -> str:
    """An event's type in words."""
    return EVENT_NAMES.get(kind, kind)


def note(event: dict[str, Any], timezone: str) -> str:
    """What else there is to say of an event of the history; times in a time zone."""
    notes = []
    if event["late"]:
        notes.append("came too late: no effect on the live level")
    elif event["placed_at"] != event["time"]:
        notes.append(f"came late: took effect at {moment(event['placed_at'], timezone)}")
    if event["source"] == RESTATE_SOURCE:
        notes.append("correction by Seatmark")
    if event["quantity"] not in (None, 1, abs(event["delta"])):
        notes.append(f"{units(event['quantity'])} units")
    if event["lease_expires_at"] is not None:
        notes.append(f"lease until {moment(event['lease_expires_at'], timezone)[:16]}")
    if event["reason"]:
        notes.append(event["reason"])
    if event["overdrawn"]:
        notes.append("above the limit")
    return "; ".join(notes)


def trend(seconds: float) -> str:
    """By how much a time grew or shrank; a dash for not at all."""
    if seconds > 0:
        return f"↗ +{duration(seconds)}"
    return f"↘ {_MINUS}{duration(-seconds)}" if seconds < 0 else _NONE
