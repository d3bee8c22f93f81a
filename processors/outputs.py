"""What the worker sends: effects of the fold as records of the contract."""

from collections.abc import Sequence
from typing import Protocol

from processors.domain.ledger import Outcome, Transition
from schemas.activity import ActivityRow
from schemas.alerts import SOURCE, Alert, AlertData, Cause, seatmark_id
from schemas.dead_letters import DEAD_DETAIL, DEAD_OFFSET, DEAD_PARTITION, DEAD_REASON, DEAD_TOPIC
from schemas.events import Event, Refused, format_time


class SourceRecord(Protocol):
    """A record of `entitlement-events`, as aiokafka gives it. timestamp: ms; timestamp_type 1: the broker's own."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


def alert_of(transition: Transition) -> Alert:
    """The CloudEvent of a transition. The same transition always gets the same id."""
    at = format_time(transition.at)
    limit = transition.limit
    return Alert(
        id=seatmark_id("alert", transition.entitlement, transition.element, transition.cause_source, transition.cause_id),
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


def activity_row(
    event: Event, outcome: Outcome, incarnation: str, epoch: int, record: SourceRecord, appended_at: int, value: bytes
) -> ActivityRow:
    """The raw-log row of one event and one element. record: where the event stood. value: what is kept of its bytes."""
    terms = outcome.terms
    # `_make` because a named tuple's own constructor takes twice as long.
    return ActivityRow._make(
        (
            event.entitlement,
            outcome.element,
            event.time,
            event.source,
            event.id,
            event.type,
            outcome.customer,
            outcome.product,
            event.seat_id,
            event.user,
            event.ip,
            event.host,
            event.credential,
            event.quantity,
            event.lease_end,
            event.reason,
            incarnation,
            epoch,
            record.partition,
            record.offset,
            appended_at,
            outcome.t,
            1 if outcome.effect else 0,
            outcome.late,
            outcome.delta,
            outcome.level,
            None if terms is None else terms.limit,
            None if terms is None else terms.hard_limit,
            terms is not None,
            outcome.state,
            value,
        )
    )


def dead_letter_headers(record: SourceRecord, refused: Refused) -> list[tuple[str, bytes]]:
    """The original headers, and why and where the record was refused."""
    return [
        *record.headers,
        (DEAD_REASON, refused.reason.encode()),
        (DEAD_DETAIL, refused.detail.encode(errors="replace")),
        (DEAD_TOPIC, record.topic.encode()),
        (DEAD_PARTITION, str(record.partition).encode()),
        (DEAD_OFFSET, str(record.offset).encode()),
    ]
