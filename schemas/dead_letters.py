"""Dead letters: what could not be applied, on `entitlement-events-dlq` with its own bytes and key, and more headers."""

from typing import get_args

from schemas.events import Reason

# Header names. Values are text in UTF-8.
DEAD_REASON = "seatmark-reason"
DEAD_DETAIL = "seatmark-detail"
DEAD_TOPIC = "seatmark-source-topic"
DEAD_PARTITION = "seatmark-source-partition"
DEAD_OFFSET = "seatmark-source-offset"

# What each says, for the published contract.
HEADERS = {
    DEAD_REASON: "Why it was refused.",
    DEAD_DETAIL: "Which field was wrong, and what was expected there.",
    DEAD_TOPIC: "The topic that it came from.",
    DEAD_PARTITION: "Its partition there.",
    DEAD_OFFSET: "Its offset there.",
}

REASONS: tuple[str, ...] = get_args(Reason)
