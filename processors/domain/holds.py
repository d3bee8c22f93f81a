"""Holds, and the memory of ids by which repeats of an event are known."""

from hashlib import blake2b

from msgspec import Struct

IDENTITY_BYTES = 8

# Ids are remembered in blocks: a full block is written once, only the open one grows. Keeping one full block beside
# the open one remembers at least the last 64 ids.
BLOCK_IDS = 64
MAX_COUNTER_IDS = 10_000


class Hold(Struct, gc=False, array_like=True):
    """What one seat has open of a pool. quantity 0: closed, and remembered for a while.

    changed_at: time (ms) of the last event that touched it; position: where that stood in the log.
    lease_end: ms since 1970, None without a lease.
    ids: the identities of the events at its last change, one after the other.
    """

    quantity: int
    changed_at: int
    position: int
    lease_end: int | None
    ids: bytes


class IdBlock(Struct, frozen=True, gc=False, array_like=True):
    """A full block of remembered identities. latest: the latest `time` (ms) among their events."""

    number: int
    latest: int
    ids: bytes


def identity_of(source: str, event_id: str) -> bytes:
    """8 bytes that stand for (source, id) within an element.

    They are compared with a few hundred others at most, so a chance equality is one in 10^16 events.
    """
    return blake2b(f"{len(source)}:{source}{event_id}".encode(), digest_size=IDENTITY_BYTES).digest()


def ids_of(identities: bytes) -> list[bytes]:
    """A run of 8-byte identities, one by one."""
    return [identities[at : at + IDENTITY_BYTES] for at in range(0, len(identities), IDENTITY_BYTES)]


def contains(identities: bytes, identity: bytes) -> bool:
    """Whether a run of 8-byte identities holds this one."""
    if identity not in identities:
        return False
    at = identities.find(identity)
    # A match across a boundary between two identities is none: look on.
    while at >= 0 and at % IDENTITY_BYTES:
        at = identities.find(identity, at + 1)
    return at >= 0
