"""When so much is refused that something upstream must be broken: the worker stops, rather than dead-letter a whole topic.

Whether it stops, and at which record, is a function of the log alone. Records are counted by their own times, not by when
they are worked on; and the counts stand in the partition's cursor, in the same batch as the state. So a worker that is started
again meets the same record with the same counts: restarts do not let a backlog pass bit by bit, and how a log is cut into
chunks makes no difference.
"""

from dataclasses import dataclass

from msgspec import Struct

from schemas.errors import Explained
from schemas.events import format_time

# So few are never too many for a share: a quiet topic has one bad record, and that is all it has.
LEAST_REFUSED = 100


class TooManyRefused(Explained):
    """A partition has more refused records than its limit allows. Nothing of the chunk was put out or counts as applied."""


class Refusals(Struct, array_like=True):
    """Records of one partition in the running span of its log, and in the span before.

    Spans are as long as the limit's window and begin at its multiples. start: of the running one, in ms since 1970.
    records: how many there were. refused: of them, by reason, how many were refused, and the last one's offset.
    """

    start: int = 0
    records: int = 0
    refused: dict[str, tuple[int, int]] = {}
    records_before: int = 0
    refused_before: dict[str, tuple[int, int]] = {}

    def count(self, timestamp: int, window_ms: int) -> None:
        """Count one record. One that is older than the running span, by a producer's clock, counts in it all the same."""
        if timestamp - self.start >= window_ms:
            start = timestamp - timestamp % window_ms
            adjoining = start - self.start <= window_ms
            self.records_before, self.refused_before = (self.records, self.refused) if adjoining else (0, {})
            self.start, self.records, self.refused = start, 0, {}
        self.records += 1

    def refuse(self, reason: str, offset: int) -> None:
        """Note that the record that was counted last is refused."""
        self.refused[reason] = (self.refused.get(reason, (0, 0))[0] + 1, offset)

    def forget(self) -> None:
        """Begin anew, as if there had been no records."""
        self.start, self.records, self.refused, self.records_before, self.refused_before = 0, 0, {}, 0, {}

    def by_reason(self) -> list[tuple[str, int, int]]:
        """(reason, how many, the last one's offset) of both spans, the most frequent first."""
        found = [
            (
                reason,
                sum(span.get(reason, (0, 0))[0] for span in (self.refused, self.refused_before)),
                # Every offset of the running span is higher.
                (self.refused.get(reason) or self.refused_before[reason])[1],
            )
            for reason in self.refused.keys() | self.refused_before.keys()
        ]
        return sorted(found, key=lambda one: (-one[1], one[0]))


@dataclass(frozen=True)
class RefusalLimit:
    """How many records of a partition may be refused, in the running span of its log and the span before together.

    count: so many, whatever their share; 0: any number. percent: this share of all records, but LEAST_REFUSED in any case; 100:
    any share. window_ms: the length of a span; 0: there is no limit, and nothing is counted.
    """

    count: int
    percent: int
    window_ms: int

    def used(self, refusals: Refusals) -> float:
        """How much of the limit is used up: above 1 it is crossed."""
        refused = sum(many for span in (refusals.refused, refusals.refused_before) for many, _ in span.values())
        by_count = refused / self.count if self.count else 0.0
        records = refusals.records + refusals.records_before
        # Of whole numbers, so that exactly the limit is exactly 1.
        by_share = 0.0
        if records and self.percent < 100:
            by_share = min(refused / LEAST_REFUSED, refused * 100 / (records * self.percent))
        return max(by_count, by_share)

    def explain(self, refusals: Refusals, topic: str, partition: int, offset: int, applied: int) -> TooManyRefused:
        """The error when the record at `offset` crossed the limit, and everything up to the offset `applied` is applied."""
        reasons = refusals.by_reason()
        refused = sum(many for _, many, _ in reasons)
        which = (
            f"SEATMARK_DEAD_LETTER_COUNT={self.count}"
            if self.count and refused > self.count
            else f"SEATMARK_DEAD_LETTER_PERCENT={self.percent}"
        )
        since = refusals.start - self.window_ms if refusals.records_before else refusals.start
        told = ", ".join(f"{reason} {many} times (last at offset {last})" for reason, many, last in reasons[:3])
        return TooManyRefused(
            f"{topic}[{partition}]: {refused} of the {refusals.records + refusals.records_before} records that came since "
            f"{format_time(since)} were refused, which is more than {which} allows: {told}. The worker stopped before the "
            f"record at offset {offset}. Nothing is lost: no record from offset {applied + 1} on is applied or sent to "
            f"{topic}-dlq, and started again the worker stops at the same record. What is in {topic}-dlq already says in "
            "the header seatmark-detail what is wrong; put that right where the records come from. To let the records pass "
            "that are in the topic, each refused one to the dead letters, start all workers with "
            "SEATMARK_DEAD_LETTER_WINDOW=0s (no limit), and again without it when they have caught up"
        )


NO_LIMIT = RefusalLimit(count=0, percent=100, window_ms=0)
