"""One element's state: its head, its holds, and the ids that it remembers."""

from msgspec import Struct, field

from processors.domain.days import Day
from processors.domain.holds import Hold, IdBlock, contains, ids_of
from processors.domain.overdraft import State, Terms

NEVER = -1

# A set of ids costs ten times the memory of the blocks, so only counters with many events have one.
SEARCHED_BLOCKS = 4


class Head(Struct, gc=False, array_like=True):
    """An element's state without its holds. Units, ms since 1970; -1 where something never happened.

    clock: never runs back. total: of a counter. counter_since, snapshot_at, terms_at: time of the last reset or counter
    snapshot, of the last pool snapshot, of the terms in force.
    entered_at, peak, peak_overage: of the overdraft it is in.
    recent, recent_latest: the open block of remembered ids, and the latest time among them.

    What corrections need are positions in the log, 0 where there is none:
    terms_position, counter_position: of the terms in force, of the last reset, counter snapshot or correction of the total.
    late_position: of the last late event that was not about a remembered hold.
    disordered_position: of the last event that came with a time before the clock.
    unsettled_since: of the first mark since live and exact state were known to be equal; 0: they are.
    marked_until: ms since 1970; the days before this instant are marked, if the element is unsettled.
    correctable_from: a correction that was computed before this says nothing any more; correction_basis: except the other
        parts of the one that was applied last.
    """

    entitlement: str
    element: str
    level: int = 0
    total: int = 0
    clock: int = NEVER
    state: State = "within"
    terms: Terms | None = None
    terms_at: int = NEVER
    counter_since: int = NEVER
    snapshot_at: int = NEVER
    is_counter: bool = False
    terms_customer: str | None = None
    terms_product: str | None = None
    event_customer: str | None = None
    event_product: str | None = None
    name: str | None = None
    lease_policy: str | None = None
    entered_at: int | None = None
    peak: int = 0
    peak_overage: int = 0
    day: Day | None = None
    recent: bytes = b""
    recent_latest: int = NEVER
    next_block: int = 0
    terms_position: int = 0
    counter_position: int = 0
    late_position: int = 0
    disordered_position: int = 0
    unsettled_since: int = 0
    marked_until: int = NEVER
    correctable_from: int = 0
    correction_basis: int = NEVER

    def cannot_correct_before(self, position: int) -> None:
        """Note something that a correction computed before this position cannot know of."""
        if position > self.correctable_from:
            self.correctable_from = position
        if position > self.correction_basis:
            self.correction_basis = NEVER

    @property
    def customer(self) -> str | None:
        """Of the latest terms, else of the latest event that names one."""
        return self.terms_customer or self.event_customer

    @property
    def product(self) -> str | None:
        """Of the latest terms, else of the latest event that names one."""
        return self.terms_product or self.event_product

    @property
    def kind(self) -> str:
        """`pool` or `counter`: as the terms say, else by the events seen."""
        if self.terms is not None and self.terms.kind is not None:
            return self.terms.kind
        return "counter" if self.is_counter else "pool"


class Element(Struct):
    """An element in memory: its head, its holds by seat, the closed ones among them, its full blocks of ids.

    block_ids: the ids of the blocks, where there are so many that searching them one by one takes long.
    changed, changed_holds, changed_blocks, day_changed: what differs from the state that was last taken.
    """

    head: Head
    holds: dict[str, Hold] = field(default_factory=dict)
    closed: dict[str, None] = field(default_factory=dict)
    blocks: list[IdBlock] = field(default_factory=list)
    block_ids: set[bytes] = field(default_factory=set)
    changed: bool = False
    day_changed: bool = False
    changed_holds: set[str] = field(default_factory=set)
    changed_blocks: dict[int, IdBlock | None] = field(default_factory=dict)

    def knows(self, identity: bytes) -> bool:
        """Whether an event with this identity is remembered."""
        if contains(self.head.recent, identity):
            return True
        if len(self.blocks) > SEARCHED_BLOCKS:
            return identity in self.block_ids
        # A loop, not any(): a generator costs more than the one or two looks that it takes here.
        for block in self.blocks:  # noqa: SIM110
            if contains(block.ids, identity):
                return True
        return False

    def add_block(self, block: IdBlock) -> None:
        """Remember one more full block of ids."""
        self.blocks.append(block)
        if len(self.blocks) == SEARCHED_BLOCKS + 1:
            self.block_ids.update(*(ids_of(known.ids) for known in self.blocks))
        elif len(self.blocks) > SEARCHED_BLOCKS:
            self.block_ids.update(ids_of(block.ids))

    def drop_oldest_block(self) -> IdBlock:
        """Forget the oldest block of ids; which it was."""
        gone = self.blocks.pop(0)
        if len(self.blocks) > SEARCHED_BLOCKS:
            self.block_ids.difference_update(ids_of(gone.ids))
        else:
            self.block_ids.clear()
        return gone


def last_change(head: Head, hold: Hold | None) -> int:
    """A pool snapshot is the last change of every seat that it does not name, known or not."""
    return head.snapshot_at if hold is None else max(hold.changed_at, head.snapshot_at)
