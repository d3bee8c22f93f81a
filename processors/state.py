"""The worker's state in memory: one ledger and one cursor for each source partition that it has."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from processors.codec import STATE_VERSION, Cursor, UnreadableState, finish_restore, restore
from processors.domain.days import Calendar
from processors.domain.ledger import Ledger
from processors.leases import LeaseWatch
from schemas.errors import Explained


class StateRefused(Explained):
    """State that was recovered does not belong to this topic or these settings."""


class ChangelogRecord(Protocol):
    """A record of the changelog topic, as aiokafka gives it."""

    key: bytes
    value: bytes | None


class PartitionState:
    """The ledger of one source partition, the leases in it, and how far it is applied."""

    def __init__(self, ledger: Ledger, timezone: str) -> None:
        self.ledger = ledger
        self.leases = LeaseWatch(ledger)
        self.cursor = Cursor(STATE_VERSION, "", 0, -1, timezone)

    def begin(self, incarnation: str) -> None:
        """Start on a topic incarnation: its offsets start again, so a new epoch tells its positions from older ones."""
        if self.cursor.incarnation != incarnation:
            cursor = self.cursor
            self.cursor = Cursor(STATE_VERSION, incarnation, cursor.epoch + 1, -1, cursor.timezone)

    def advance(self, offset: int) -> None:
        """Note that everything up to this offset is applied."""
        cursor = self.cursor
        self.cursor = Cursor(STATE_VERSION, cursor.incarnation, cursor.epoch, offset, cursor.timezone)


class PartitionStates:
    """The states of all partitions that this worker has; filled by recovery."""

    def __init__(self, calendar: Calendar, late_after_ms: int, incarnation: str) -> None:
        self._calendar = calendar
        self._late_after_ms = late_after_ms
        self._incarnation = incarnation
        self._states: dict[int, PartitionState] = {}
        self._failure: Exception | None = None

    def of(self, partition: int) -> PartitionState:
        """The state of one partition, empty if there was none."""
        state = self._states.get(partition)
        if state is None:
            ledger = Ledger(self._calendar, self._late_after_ms)
            state = self._states[partition] = PartitionState(ledger, self._calendar.timezone)
        return state

    def all(self) -> Mapping[int, PartitionState]:
        """All states, by partition."""
        return self._states

    def drop(self) -> None:
        """Forget everything: assignment begins anew."""
        self._states = {}
        self._failure = None

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
        except (UnreadableState, StateRefused) as error:
            self._failure = self._failure or error

    def restored(self) -> None:
        """All records were given."""
        for state in self._states.values():
            finish_restore(state.ledger)
            state.leases.rebuild()

    def resume_offset(self, partition: int) -> int | None:
        """The source offset to go on with; None where the state has none of this incarnation.

        Raises StateRefused, UnreadableState: what `restore` found wrong.
        """
        if self._failure is not None:
            raise self._failure
        state = self._states.get(partition)
        if state is None or state.cursor.incarnation != self._incarnation:
            return None
        return state.cursor.offset + 1

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
                "and its offsets no longer say what was applied. Restore the topic that the state belongs to, or start on "
                "other topics (SEATMARK_TOPIC_PREFIX) with an empty store"
            )
