"""The worker's state in memory: one ledger and one cursor for each source partition that it has."""

import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from processors import metrics
from processors.codec import STATE_VERSION, Cursor, UnreadableState, finish_restore, restore
from processors.domain.days import Calendar
from processors.domain.ledger import Ledger
from processors.incarnation import HOW_TO_REBUILD
from processors.leases import LeaseWatch
from processors.partitions import partition_of
from schemas.errors import Explained
from schemas.events import Refused


class StateRefused(Explained):
    """State that was recovered does not belong to this topic or these settings."""


class ChangelogRecord(Protocol):
    """A record of the changelog topic, as aiokafka gives it."""

    key: bytes
    value: bytes | None


class PartitionState:
    """The ledger of one source partition, the leases in it, and how far it is applied.

    placed: the entitlements of which it is known that they belong on this partition. written: up to which offset the state is
    with the brokers; behind the cursor while a chunk is under way.
    """

    def __init__(self, ledger: Ledger, timezone: str, partition: int, partitions: int) -> None:
        """partitions: how many the source topic has."""
        self.ledger = ledger
        self.leases = LeaseWatch(ledger)
        self.cursor = Cursor(STATE_VERSION, "", 0, -1, timezone)
        self.placed: set[str] = set()
        self.written = -1
        self._partition = partition
        self._partitions = partitions

    def place(self, entitlement: str) -> None:
        """Note that an entitlement belongs on this partition. Raises Refused: it belongs on another."""
        expected = partition_of(entitlement, self._partitions)
        if expected != self._partition:
            raise Refused(
                "key_mismatch",
                f"the record is on partition {self._partition}, and Kafka's own clients put this key on partition {expected} "
                f"of {self._partitions}: set partitioner=murmur2_random where it was sent from",
            )
        self.placed.add(entitlement)

    def begin(self, incarnation: str) -> None:
        """Start on a topic incarnation: its offsets start again, so a new epoch tells its positions from older ones."""
        if self.cursor.incarnation != incarnation:
            cursor = self.cursor
            self.cursor = Cursor(STATE_VERSION, incarnation, cursor.epoch + 1, -1, cursor.timezone)
            self.written = -1

    def advance(self, offset: int) -> None:
        """Note that everything up to this offset is applied."""
        cursor = self.cursor
        self.cursor = Cursor(STATE_VERSION, cursor.incarnation, cursor.epoch, offset, cursor.timezone, cursor.refusals)


class PartitionStates:
    """The states of all partitions that this worker has; filled by recovery.

    assigned: it was told once which partitions it has. recovered: their changelogs are read. records_read: of changelogs, ever.
    """

    def __init__(self, calendar: Calendar, late_after_ms: int, incarnation: str, partitions: int) -> None:
        """incarnation, partitions: of the source topic."""
        self._calendar = calendar
        self._late_after_ms = late_after_ms
        self._incarnation = incarnation
        self._partitions = partitions
        self._states: dict[int, PartitionState] = {}
        self._failure: Exception | None = None
        self._dropped_at = 0.0
        self.assigned = False
        self.recovered = False
        self.records_read = 0

    def of(self, partition: int) -> PartitionState:
        """The state of one partition, empty if there was none."""
        state = self._states.get(partition)
        if state is None:
            ledger = Ledger(self._calendar, self._late_after_ms)
            state = self._states[partition] = PartitionState(ledger, self._calendar.timezone, partition, self._partitions)
        return state

    def all(self) -> Mapping[int, PartitionState]:
        """All states, by partition."""
        return self._states

    def drop(self) -> None:
        """Forget everything: assignment begins anew."""
        self._states = {}
        self.assigned, self.recovered = True, False
        metrics.DEAD_LETTER_LIMIT_USED.clear()
        self._failure = None
        self._dropped_at = time.monotonic()

    def restore(self, partition: int, records: Sequence[ChangelogRecord]) -> None:
        """Put records of the changelog into the state, in their order."""
        # Faust only logs what is raised here, and would carry on with half a state: `resume_offset` raises it.
        try:
            state = self.of(partition)
            for record in records:
                cursor = restore(state.ledger, record.key, record.value)
                if cursor is not None:
                    self._check(partition, cursor)
                    state.cursor = cursor
                    state.written = cursor.offset
            self.records_read += len(records)
            metrics.RECOVERY_RECORDS.inc(len(records))
        except (UnreadableState, StateRefused) as error:
            self._failure = self._failure or error

    def restored(self) -> None:
        """All records were given."""
        for partition, state in self._states.items():
            finish_restore(state.ledger)
            try:
                for entitlement in {entitlement for entitlement, _ in state.ledger.elements}:
                    state.place(entitlement)
            except Refused:
                self._failure = self._failure or StateRefused(
                    f"the state of partition {partition} holds entitlements that belong on another of {self._partitions}, such "
                    f"as {entitlement!r}: SEATMARK_PARTITIONS was changed, or their events came on wrong partitions. "
                    f"{HOW_TO_REBUILD}"
                )
            state.leases.rebuild()
        self.recovered = True
        metrics.RECOVERY_REMAINING.set(0)
        metrics.RECOVERY_SECONDS.observe(time.monotonic() - self._dropped_at)

    def resume_offset(self, partition: int, committed: int | None) -> int | None:
        """The source offset to go on with after recovery; None: the topic's first.

        committed: the offset that the workers' group has committed of this partition; None where it has none.
        Raises StateRefused, UnreadableState: what `restore` and `restored` found wrong, or there is no state of a partition
        that was worked on.
        """
        if self._failure is not None:
            raise self._failure
        cursor = self.of(partition).cursor
        # Fresh state and rebuilt state have no incarnation; only what was rebuilt has an epoch.
        if not cursor.epoch and committed:
            raise StateRefused(
                f"partition {partition} has no state, although its events were applied up to offset {committed - 1}: the "
                f"changelog was emptied, or made anew. {HOW_TO_REBUILD}"
            )
        return None if cursor.incarnation != self._incarnation else cursor.offset + 1

    def _check(self, partition: int, cursor: Cursor) -> None:
        if cursor.state_version != STATE_VERSION:
            raise StateRefused(
                f"the state of partition {partition} has the layout {cursor.state_version}, and this version of Seatmark reads "
                f"{STATE_VERSION}: run the version that wrote it"
            )
        if cursor.timezone != self._calendar.timezone:
            raise StateRefused(
                f"the state of partition {partition} has days in the time zone {cursor.timezone}, but SEATMARK_TIMEZONE "
                f"is {self._calendar.timezone}: set it back"
            )
        # A rebuilt state has no incarnation yet: it goes on with whichever topic there is.
        if cursor.incarnation not in ("", self._incarnation):
            raise StateRefused(
                f"the state of partition {partition} belongs to another incarnation of the source topic "
                f"({cursor.incarnation}; the topic's id is now {self._incarnation}): it was deleted and created again, "
                f"and its offsets no longer say what was applied. {HOW_TO_REBUILD}"
            )
