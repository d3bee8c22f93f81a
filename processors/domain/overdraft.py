"""Limits, hard limits and the states an element can be in."""

from decimal import Decimal
from typing import Literal

from msgspec import Struct

from schemas.alerts import AlertType
from schemas.events import ElementTerms, Overdraft

State = Literal["within", "at_limit", "overdraft", "at_hard_limit", "over_hard_limit"]

OVERDRAWN: frozenset[str] = frozenset({"overdraft", "at_hard_limit", "over_hard_limit"})


class Terms(Struct, frozen=True, gc=False, array_like=True):
    """The terms in force. Units; limit None: not limited; hard_limit None: no end to the overdraft, or not limited."""

    limit: int | None
    hard_limit: int | None
    kind: str | None = None


def terms_of(sent: ElementTerms) -> Terms:
    """The terms as the fold keeps them, with the hard limit worked out."""
    return Terms(sent.limit, hard_limit_of(sent.limit, sent.overdraft), sent.kind)


def hard_limit_of(limit: int | None, overdraft: Overdraft | None) -> int | None:
    """limit + n (absolute), limit + floor(limit * p / 100) (percentage, exact), the limit (none), else None."""
    if limit is None:
        return None
    if overdraft is None or overdraft.type == "none":
        return limit
    if overdraft.type == "unlimited":
        return None
    value = overdraft.value or 0
    if overdraft.type == "absolute":
        return limit + int(value)
    # At most 4 decimals were let in, so this product is whole, and everything after it is integer arithmetic.
    ten_thousandths = int(Decimal(repr(value)) * 10_000)
    return limit + limit * ten_thousandths // 1_000_000


def state_of(level: int, terms: Terms | None) -> State:
    """The state of an element at a level, under terms (None: no terms yet, so nothing to be over)."""
    if terms is None or terms.limit is None or level < terms.limit:
        return "within"
    limit, hard_limit = terms.limit, terms.hard_limit
    if level == limit:
        return "at_limit" if limit > 0 else "within"
    if hard_limit is None or level < hard_limit:
        return "overdraft"
    return "at_hard_limit" if level == hard_limit else "over_hard_limit"


def alert_type(before: State, after: State) -> AlertType:
    """What a change of state is called. The two states must differ."""
    if after in OVERDRAWN:
        return "overdraft.changed" if before in OVERDRAWN else "overdraft.entered"
    if before in OVERDRAWN:
        return "overdraft.left"
    return "limit.reached" if after == "at_limit" else "limit.cleared"
