"""The answers of the API, as models: what they hold and what it means, for OpenAPI."""

from datetime import date
from typing import Literal

from pydantic import BaseModel, Field

ElementState = Literal["within", "at_limit", "overdraft", "at_hard_limit", "over_hard_limit"]

_LIMIT = "units bought; null: not limited, or `terms_known` is false"
_HARD_LIMIT = "the most that may be used, overdraft included; null: no such end, or not limited"
_TIME = "RFC 3339, UTC"


class UsageDay(BaseModel):
    """How one element was used on one local date. Numbers are units unless they say seconds."""

    day: date = Field(description="the local date, in the answer's time zone")
    opening: int = Field(description="level before the day's first instant")
    closing: int = Field(description="level at the day's end, or now")
    min: int = Field(description="least level of the day, `opening` included")
    max: int = Field(description="greatest level of the day, `opening` included")
    limit: int | None = Field(description=f"highest limit in force in the day: {_LIMIT}")
    hard_limit: int | None = Field(description=f"highest hard limit in force in the day: {_HARD_LIMIT}")
    terms_known: bool = Field(description="false: no limit had been set yet, at any moment of the day")
    overdraft_seconds: float = Field(description="time with more units in use than the limit, to the millisecond")
    unit_seconds: float = Field(description="units in use, summed over time; by elapsed_seconds, the average level")
    elapsed_seconds: float = Field(description="how much of the day this covers: all, or up to now; not always 86400")
    peak_overage: int = Field(description="greatest level above the limit; 0 if never above")
    activations: int = Field(description="seats activated and features checked out")
    deactivations: int = Field(description="seats and features given back, or closed because their lease ran out")
    refreshes: int = Field(description="leases renewed")
    denials: int = Field(description="requests that the license server refused")
    units_used: int = Field(description="units counted by feature.used")
    state: Literal["provisional", "final"] = Field(
        description="provisional: today, or late events came for this day that are not counted in it yet"
    )


class Usage(BaseModel):
    """The days of one element, oldest first. A date that the time zone left out has no row."""

    entitlement: str
    element: str = Field(description="`seats`, or a feature")
    timezone: str = Field(description="the time zone in which days begin and end, an IANA name")
    days: list[UsageDay]


class ElementNow(BaseModel):
    """How one element of an entitlement stands."""

    element: str = Field(description="`seats`, or a feature")
    kind: str = Field(description="`pool`: units are taken and given back; `counter`: units add up until a reset")
    level: int = Field(description="units in use, or used")
    limit: int | None = Field(description=_LIMIT)
    hard_limit: int | None = Field(description=_HARD_LIMIT)
    terms_known: bool = Field(description="false: no limit has been set yet")
    state: ElementState = Field(description="the level against its limits")
    as_of: str = Field(description=f"when its last event took effect; {_TIME}")


class Entitlement(BaseModel):
    """An entitlement, and how its elements stand."""

    entitlement: str
    customer: str | None
    product: str | None
    name: str | None
    timezone: str = Field(description="the reporting time zone, an IANA name")
    elements: list[ElementNow]


class OverdraftNow(BaseModel):
    """An element that is above its limit."""

    entitlement: str
    element: str = Field(description="`seats`, or a feature")
    customer: str | None
    product: str | None
    name: str | None
    kind: str = Field(description="`pool` or `counter`")
    since: str | None = Field(description=f"when it went above its limit; {_TIME}")
    state: ElementState
    level: int = Field(description="units in use, or used")
    limit: int = Field(description="units bought")
    hard_limit: int | None = Field(description=_HARD_LIMIT)
    overage: int = Field(description="level - limit")
    peak: int | None = Field(description="greatest level since then")
    episodes_in_30_days: int = Field(description="how often it went above its limit in the last 30 days, this time included")
    as_of: str = Field(description=f"when its last event took effect; {_TIME}")


class Overdrafts(BaseModel):
    """Who is above the limit now, the longest first."""

    timezone: str = Field(description="the reporting time zone, an IANA name")
    overdrafts: list[OverdraftNow]


class Alive(BaseModel):
    """The process answers."""

    status: Literal["alive"]


class Ready(BaseModel):
    """The process and all that it needs answer."""

    status: Literal["ready"]
    dependencies: dict[str, str] = Field(description="`ok`, by the name of what is needed")
