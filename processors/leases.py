"""Leases that run out: which open holds of a partition have one that ended, and the event that closes such a hold.

Nothing is closed here. A lease that ran out becomes an event in the log (processors/expiry.py), and the fold decides, when it
comes to it, whether the hold is still as it was.
"""

from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace
from typing import Literal, NamedTuple

import orjson

from processors.domain.element import NEVER, Head
from processors.domain.ledger import Changes, Ledger
from schemas.alerts import seatmark_id
from schemas.events import LEASES_SOURCE, SEATS, format_time

# release: Seatmark closes a hold whose lease ended. keep: it stays open until somebody else closes it.
LeasePolicy = Literal["release", "keep"]

# A heap may have this many entries more than twice the leases that it watches before it is made anew.
_SPARE_ENTRIES = 1_000


# Entitlement, element and seat_id. Not a named tuple: there are as many as holds, and one is made for each event.
_Seat = tuple[str, str, str]


class Lease(NamedTuple):
    """A lease that ended, and whose hold it is of. end: ms since 1970."""

    end: int
    entitlement: str
    element: str
    seat_id: str


@dataclass
class _Kept:
    """The leases of one entitlement that ended and were not to be released.

    policy: what its terms said then; when they say something else, the leases are looked at again.
    """

    policy: str | None = None
    seats: set[_Seat] = field(default_factory=set)


class LeaseWatch:
    """The leases of one partition's open holds, in the order in which they end.

    A heap finds the next one, without a look at the others. A hold has one entry, made when it got its lease: a refresh
    moves the end and leaves the entry, which is put right when it comes up. So a refresh costs a look into a dictionary, and
    the heap does not grow with the number of refreshes. What is in the ledger always decides.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._heap: list[tuple[int, _Seat]] = []
        # The end in the entry that stands for a seat; any other entry of that seat is void.
        self._watched: dict[_Seat, int] = {}
        # Taken, and not known to have closed the hold; the end that each had.
        self._taken: dict[_Seat, int] = {}
        self._kept: dict[str, _Kept] = {}
        self._terms: dict[str, dict[str, Head]] = {}

    def __len__(self) -> int:
        """Open holds with a lease that was not taken or set aside."""
        return len(self._watched)

    def rebuild(self) -> None:
        """Start from the ledger as it is, after a recovery: looks at every hold, once."""
        self._watched = {
            (entitlement, name, seat_id): hold.lease_end
            for (entitlement, name), element in self._ledger.elements.items()
            for seat_id, hold in element.holds.items()
            if hold.quantity and hold.lease_end is not None
        }
        self._make_heap()
        self._taken, self._kept, self._terms = {}, {}, {}
        for element in self._ledger.elements.values():
            self._note_terms(element.head)

    def note(self, changes: Changes) -> None:
        """Follow the ledger: to be called with all that changed in it."""
        for head in changes.heads:
            self._note_terms(head)
            kept = self._kept.get(head.entitlement)
            if kept is not None and kept.policy != self._policy_of(head.entitlement):
                self._look_again_at_kept(head.entitlement)
        for head, seat_id, hold in changes.holds:
            seat = (head.entitlement, head.element, seat_id)
            if hold is not None and hold.quantity and hold.lease_end is not None:
                self._watch(seat, hold.lease_end)
            else:
                self._watched.pop(seat, None)
                self._taken.pop(seat, None)
                self._no_longer_kept(seat)
        if len(self._heap) > 2 * len(self._watched) + _SPARE_ENTRIES:
            self._make_heap()

    def any_ended(self, by: int) -> bool:
        """Whether there is a lease to take or to set aside that ended at or before this time (ms since 1970)."""
        heap = self._heap
        while heap and heap[0][0] <= by:
            end, seat = heap[0]
            if self._watched.get(seat) != end:
                heappop(heap)
                continue
            now_ends = self._lease_end(seat)
            if now_ends == end:
                return True
            if now_ends is None:
                heappop(heap)
                del self._watched[seat]
            else:
                heapreplace(heap, (now_ends, seat))
                self._watched[seat] = now_ends
        return False

    def first_ended(self, by: int) -> int | None:
        """When the earliest lease ended that `any_ended` speaks of (ms since 1970); None: there is none."""
        return self._heap[0][0] if self.any_ended(by) else None

    def take(self, by: int, default: LeasePolicy, most: int) -> list[Lease]:
        """Leases to release that ended at or before this time, the earliest first. Each is given once, until it is put back.

        default: the policy of entitlements whose latest terms name none.
        most: how many to look at. There may be more even where none is returned: ask `any_ended`.
        """
        taken: list[Lease] = []
        for _ in range(most):
            if not self.any_ended(by):
                break
            end, seat = heappop(self._heap)
            del self._watched[seat]
            entitlement = seat[0]
            policy = self._policy_of(entitlement)
            if (policy or default) == "keep":
                kept = self._kept.setdefault(entitlement, _Kept())
                kept.policy = policy
                kept.seats.add(seat)
            else:
                self._taken[seat] = end
                taken.append(Lease(end, *seat))
        return taken

    def put_back(self, lease: Lease) -> None:
        """A lease that was taken could not be dealt with: it will be given again, unless its hold has changed since."""
        seat = (lease.entitlement, lease.element, lease.seat_id)
        if self._taken.get(seat) == lease.end:
            del self._taken[seat]
            self._push(seat, lease.end)

    def _watch(self, seat: _Seat, end: int) -> None:
        known = self._watched.get(seat)
        if known is not None:
            if end < known:
                self._push(seat, end)
            return
        if self._taken.get(seat) == end:
            return
        self._taken.pop(seat, None)
        self._no_longer_kept(seat)
        self._push(seat, end)

    def _push(self, seat: _Seat, end: int) -> None:
        self._watched[seat] = end
        heappush(self._heap, (end, seat))

    def _make_heap(self) -> None:
        self._heap = list(zip(self._watched.values(), self._watched, strict=True))
        heapify(self._heap)

    def _lease_end(self, seat: _Seat) -> int | None:
        """When the lease of a hold ends as it is now; None where it is closed or has no lease."""
        entitlement, name, seat_id = seat
        element = self._ledger.elements.get((entitlement, name))
        hold = element.holds.get(seat_id) if element is not None else None
        return hold.lease_end if hold is not None and hold.quantity else None

    def _note_terms(self, head: Head) -> None:
        if head.terms_at != NEVER:
            self._terms.setdefault(head.entitlement, {})[head.element] = head

    def _policy_of(self, entitlement: str) -> str | None:
        """What the latest terms of an entitlement say, of whichever element they are; None where they say nothing."""
        heads = self._terms.get(entitlement)
        if heads is None:
            return None
        return max(heads.values(), key=lambda head: (head.terms_at, head.terms_position)).lease_policy

    def _no_longer_kept(self, seat: _Seat) -> None:
        entitlement = seat[0]
        kept = self._kept.get(entitlement)
        if kept is not None:
            kept.seats.discard(seat)
            if not kept.seats:
                del self._kept[entitlement]

    def _look_again_at_kept(self, entitlement: str) -> None:
        for seat in self._kept.pop(entitlement).seats:
            end = self._lease_end(seat)
            if end is not None:
                self._push(seat, end)


def expiry_of(lease: Lease, grace_ms: int) -> bytes:
    """The event that closes a hold whose lease ended, as a record's value; its key is the entitlement.

    The same lease always gives the same id. Customer and product are left out: the fold knows them, and those of today would
    get into the days before.
    """
    end, entitlement, element, seat_id = lease
    data = {"seat_id": seat_id, "reason": "lease_expired"}
    if element != SEATS:
        data["element"] = element
    return orjson.dumps(
        {
            "specversion": "1.0",
            "id": seatmark_id("lease", entitlement, element, seat_id, end),
            "source": LEASES_SOURCE,
            "type": "seat.expired" if element == SEATS else "feature.expired",
            "subject": entitlement,
            "time": format_time(end + grace_ms),
            "data": data,
        }
    )
