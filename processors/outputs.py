"""What the worker sends: effects of the fold as records of the contract."""

from processors.domain.ledger import Transition
from schemas.alerts import SOURCE, Alert, AlertData, Cause, seatmark_id
from schemas.events import format_time


def alert_of(transition: Transition) -> Alert:
    """The CloudEvent of a transition. The same transition always gets the same id."""
    at = format_time(transition.at)
    limit = transition.limit
    return Alert(
        id=seatmark_id(
            "alert", transition.entitlement, transition.element, transition.cause_source, transition.cause_id
        ),
        source=SOURCE,
        type=transition.type,
        subject=transition.entitlement,
        time=at,
        data=AlertData(
            entitlement=transition.entitlement,
            element=transition.element,
            from_state=transition.before,
            to_state=transition.after,
            level=transition.level,
            limit=limit,
            hard_limit=transition.hard_limit,
            overage=max(0, transition.level - limit) if limit is not None else 0,
            cause=Cause(transition.cause_source, transition.cause_id, transition.cause_type),
            at=at,
            customer=transition.customer,
            product=transition.product,
            entered_at=format_time(transition.entered_at) if transition.entered_at is not None else None,
            duration_seconds=transition.duration_ms / 1000 if transition.duration_ms is not None else None,
            peak=transition.peak,
            peak_overage=transition.peak_overage,
        ),
    )
