"""The answers of the API, as models: what they hold and what it means, for OpenAPI."""

from datetime import date
from typing import Literal

from pydantic import BaseModel, Field

ElementState = Literal["within", "at_limit", "overdraft", "at_hard_limit", "over_hard_limit"]

_LIMIT = "units bought; null: not limited, or `terms_known` is false"
_HARD_LIMIT = "the most that may be used, overdraft included; null: no such end, or not limited"
_TIME = "RFC 3339, UTC"
_NEXT = "where the next rows start: give it as `cursor`; null: there are no more"


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
    since: str | None = Field(description=f"when it went above its limit, if it is above it now; {_TIME}")
    as_of: str = Field(description=f"when its last event took effect; {_TIME}")


class Entitlement(BaseModel):
    """An entitlement, and how its elements stand."""

    entitlement: str
    customer: str | None
    product: str | None
    name: str | None
    timezone: str = Field(description="the reporting time zone, an IANA name")
    elements: list[ElementNow]


class OverdraftDay(BaseModel):
    """What overdraft one element had on one local date."""

    day: date
    max: int = Field(description="greatest level of the day")
    limit: int | None = Field(description=f"highest limit in force in the day: {_LIMIT}")
    overdraft_seconds: float = Field(description="time with more units in use than the limit")
    peak_overage: int = Field(description="greatest level above the limit; 0 if never above")
    denials: int = Field(description="requests that the license server refused")


class Overdraft(BaseModel):
    """An element that is above its limit, or was in the last 30 days (today and the 29 days before it)."""

    entitlement: str
    element: str = Field(description="`seats`, or a feature")
    customer: str | None
    product: str | None
    name: str | None
    kind: str = Field(description="`pool` or `counter`")
    overdrawn: bool = Field(description="it is above its limit now")
    since: str | None = Field(description=f"when it went above its limit, if it is above it now; {_TIME}")
    state: ElementState
    level: int = Field(description="units in use, or used")
    limit: int | None = Field(description=_LIMIT)
    hard_limit: int | None = Field(description=_HARD_LIMIT)
    overage: int = Field(description="level - limit, 0 if it is not above it")
    peak: int | None = Field(description="greatest level since it went above its limit, if it is above it now")
    as_of: str = Field(description=f"when its last event took effect; {_TIME}")
    episodes_in_30_days: int = Field(description="how often it was above its limit, this time included")
    overdraft_seconds: float = Field(description="time above the limit, the sum of the days' `overdraft_seconds` of usage")
    overdraft_seconds_earlier: float = Field(description="the part of it in the first 15 days")
    overdraft_seconds_later: float = Field(description="the part of it in the last 15 days")
    trend_seconds: float = Field(description="the later part less the earlier: above 0, time above the limit is rising")
    unit_seconds_over: float = Field(description="units above the limit, summed over time; by 3600, seat-hours over")
    peak_overage: int = Field(description="greatest level above the limit")
    denials: int = Field(description="requests that the license server refused")
    covers_95: int = Field(description="the fewest units that would have been enough for 95 % of the time")
    covers_99: int = Field(description="the fewest units that would have been enough for 99 % of the time")
    covers_100: int = Field(description="the fewest units that would have been enough at every instant")
    buy_95: int | None = Field(description="units to buy for that, above the limit of now; null: not limited")
    buy_99: int | None = Field(description="units to buy for that, above the limit of now; null: not limited")
    buy_100: int | None = Field(description="units to buy for that, above the limit of now; null: not limited")
    days: list[OverdraftDay] = Field(description="day by day, the oldest first")


class Overdrafts(BaseModel):
    """Who is above the limit now, or was in the last 30 days: those above it now first, then those above it for longest."""

    timezone: str = Field(description="the reporting time zone, an IANA name")
    overdrafts: list[Overdraft]


class Sizing(Overdraft):
    """How many units of one element would have been enough in the last 30 days."""

    timezone: str = Field(description="the reporting time zone, an IANA name")


class Episode(BaseModel):
    """The time from going above the limit to being at or below it again."""

    entitlement: str
    element: str = Field(description="`seats`, or a feature")
    customer: str | None
    product: str | None
    start: str = Field(description=f"when the level went above the limit; {_TIME}")
    end: str | None = Field(description=f"when it was at or below it again; null: it is still above; {_TIME}")
    seconds: float = Field(description="how long that was; up to now where it goes on")
    peak: int | None = Field(description="greatest level in it")
    peak_overage: int | None = Field(description="greatest level above the limit in it")


class Episodes(BaseModel):
    """Overdrafts, the latest first."""

    timezone: str = Field(description="the reporting time zone, an IANA name")
    episodes: list[Episode]
    next: str | None = Field(description=_NEXT)


class HistoryEvent(BaseModel):
    """One event and one element that it touched, with what it did."""

    time: str = Field(description=f"when it happened, by the sender's clock; {_TIME}")
    element: str = Field(description="`seats`, or a feature")
    type: str = Field(description="what happened, such as `seat.activated`")
    seat_id: str | None
    user: str | None
    ip: str | None
    host: str | None
    credential: str | None = Field(description="`code` or `user`: what the entitlement was activated by")
    quantity: int | None = Field(description="as sent; null: not said")
    delta: int = Field(description="change of the level")
    level: int = Field(description="level right after it")
    limit: int | None = Field(description=f"limit in force after it: {_LIMIT}")
    hard_limit: int | None = Field(description=f"hard limit in force after it: {_HARD_LIMIT}")
    terms_known: bool = Field(description="false: no limit had been set yet")
    state: ElementState = Field(description="the level against its limits, after it")
    late: bool = Field(description="it came too late to have an effect on the live level")
    reason: str | None = Field(description="as sent, such as why it was denied")
    lease_expires_at: str | None = Field(description=f"end of the lease that it gave; {_TIME}")
    placed_at: str = Field(description=f"when it took effect: its time, or later where it came out of order; {_TIME}")
    source: str = Field(description="who sent it")
    id: str = Field(description="its id; unique for the source")
    overdrawn: bool = Field(description="more units were in use than the limit, after it")


class History(BaseModel):
    """Events of one entitlement, newest first."""

    entitlement: str
    timezone: str = Field(description="the reporting time zone, an IANA name")
    events: list[HistoryEvent]
    next: str | None = Field(description=_NEXT)


class Holder(BaseModel):
    """Who held units of an element at a moment."""

    seat_id: str
    quantity: int = Field(description="units")
    since: str = Field(description=f"when the seat took its first unit of them; {_TIME}")
    user: str | None
    host: str | None
    ip: str | None
    credential: str | None = Field(description="`code` or `user`: what the entitlement was activated by")
    lease_expires_at: str | None = Field(description=f"end of the lease; null: without a lease; {_TIME}")


class Holders(BaseModel):
    """Who held an element at a moment, by seat. Folded from the raw log in order of time, so these are the exact numbers."""

    entitlement: str
    element: str = Field(description="`seats`, or a feature")
    timezone: str = Field(description="the reporting time zone, an IANA name")
    at: str = Field(description=f"the moment, its events included; {_TIME}")
    level: int = Field(description="units in use, or used")
    limit: int | None = Field(description=_LIMIT)
    hard_limit: int | None = Field(description=_HARD_LIMIT)
    terms_known: bool = Field(description="false: no limit had been set yet")
    state: ElementState = Field(description="the level against its limits")
    holders: list[Holder]


class ListedElement(BaseModel):
    """One element of an entitlement, and its last 30 days."""

    entitlement: str
    element: str = Field(description="`seats`, or a feature")
    customer: str | None
    product: str | None
    name: str | None
    kind: str = Field(description="`pool` or `counter`")
    level: int = Field(description="units in use, or used")
    limit: int | None = Field(description=_LIMIT)
    hard_limit: int | None = Field(description=_HARD_LIMIT)
    terms_known: bool = Field(description="false: no limit has been set yet")
    state: ElementState = Field(description="the level against its limits")
    as_of: str = Field(description=f"when its last event took effect; {_TIME}")
    peak_30_days: int = Field(description="greatest level of the last 30 days")
    denials_30_days: int = Field(description="requests refused in the last 30 days")
    idle: bool = Field(description="bought, and never more than a tenth of it used in the last 30 days")


class Entitlements(BaseModel):
    """Entitlements, a row for each of their elements."""

    timezone: str = Field(description="the reporting time zone, an IANA name")
    elements: list[ListedElement]
    next: str | None = Field(description=_NEXT)


class Alive(BaseModel):
    """The process answers."""

    status: Literal["alive"]


class Ready(BaseModel):
    """The process and all that it needs answer."""

    status: Literal["ready"]
    dependencies: dict[str, str] = Field(description="`ok`, by the name of what is needed")
