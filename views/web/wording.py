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
    """A number with thin spaces between thousands, as in 12 345."""
    return f"{number:,}".replace(",", "\u2009")


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


def note(event: dict[str, Any]) -> str:
    """What else there is to say of an event of the history."""
    notes = []
    if event["late"]:
        notes.append("came too late: no effect on the live level")
    elif event["placed_at"] != event["time"]:
        notes.append(f"came late: took effect at {event['placed_at'][11:19]} UTC")
    if event["source"] == RESTATE_SOURCE:
        notes.append("correction by Seatmark")
    if event["quantity"] not in (None, 1):
        notes.append(f"{units(event['quantity'])} units")
    if event["lease_expires_at"] is not None:
        notes.append(f"lease until {event['lease_expires_at'][:16].replace('T', ' ')} UTC")
    if event["reason"]:
        notes.append(event["reason"])
    if event["overdrawn"]:
        notes.append("above the limit")
    return "; ".join(notes)


def trend(row: dict[str, Any]) -> str:
    """Whether the time above the limit grew: the last 15 days beside the 15 before."""
    earlier, later = row["overdraft_seconds_earlier"], row["overdraft_seconds_later"]
    if later > earlier * 1.1:
        return "↗ rising"
    return "↘ falling" if later < earlier * 0.9 else "→ steady"
