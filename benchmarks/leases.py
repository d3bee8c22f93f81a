"""What watching leases costs: after a recovery, per event, and to find the next that ends, beside a scan of all holds."""

import gc
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import psutil

from benchmarks.open_seats import record
from processors.agents import fold_chunk
from processors.app import relax_garbage_collection
from processors.codec import encode_changes
from processors.domain.days import Calendar
from processors.domain.element import Element, Head
from processors.domain.holds import Hold
from processors.state import PartitionState, PartitionStates
from schemas.events import format_time

FEW, MANY = 1_000, 1_000_000
SEATS_OF_AN_ENTITLEMENT = 100
_CHUNKS, _CHUNK = 20, 250
_NOW = 1_800_000_000_000
_HOUR = 3_600_000


def cost_of_leases() -> dict[str, Any]:
    """Each cost by the number of open holds that have a lease, and ratios; microseconds unless a name says otherwise."""
    relax_garbage_collection()
    by_leases = {str(leases): _measured(leases) for leases in (FEW, MANY)}
    few, many = by_leases.values()
    return {
        "open_leases": by_leases,
        "ratios": {
            "note_many_to_few": round(many["note_us"] / few["note_us"], 2),
            "note_to_fold": round(many["note_us"] / many["fold_and_state_us"], 3),
            "scan_to_next": round(many["scan_us"] / many["next_us"]),
        },
    }


def _measured(leases: int) -> dict[str, float]:
    state = _with_open_leases(leases)
    gc.collect()
    memory = psutil.Process().memory_info().rss
    started = time.perf_counter()
    state.leases.rebuild()
    rebuilt = time.perf_counter() - started
    memory = psutil.Process().memory_info().rss - memory
    fold, note = _refreshes(state, leases)
    return {
        "rebuild_seconds": round(rebuilt, 3),
        "bytes_of_a_lease": round(memory / leases),
        "fold_and_state_us": round(fold, 1),
        "note_us": round(note, 2),
        # One is found, taken and put back.
        "next_us": round(_microseconds(lambda: _take_next(state)), 2),
        # None has ended: what a round costs when there is nothing to do.
        "none_us": round(_microseconds(lambda: state.leases.any_ended(_NOW - 1)), 2),
        "scan_us": round(_microseconds(lambda: _scan(state, _NOW), runs=3), 1),
    }


def _with_open_leases(leases: int) -> PartitionState:
    """A partition as recovery leaves it, but for the watch: leases that end in the next hour."""
    state = PartitionStates(Calendar("UTC"), _HOUR, "bench").of(0)
    state.begin("bench")
    elements = state.ledger.elements
    for number in range(leases):
        entitlement, seat = divmod(number, SEATS_OF_AN_ENTITLEMENT)
        key = (f"ent-{entitlement}", "seats")
        element = elements.get(key)
        if element is None:
            element = elements[key] = Element(Head(*key, clock=_NOW - _HOUR))
        # Spread without an order.
        lease_end = _NOW + number * 7_919 % _HOUR
        element.holds[f"seat-{seat}"] = Hold(1, _NOW - _HOUR, number, lease_end, b"12345678")
        element.head.level += 1
    return state


def _refreshes(state: PartitionState, leases: int) -> tuple[float, float]:
    """Microseconds of an event that renews a lease: fold and state without a broker, and telling the watch."""
    fold, note = [], []
    for chunk in range(_CHUNKS + 1):
        first = state.cursor.offset + 1
        records = [_refresh(first + number, (chunk * _CHUNK + number) * 7_919 % leases) for number in range(_CHUNK)]
        started = time.perf_counter()
        fold_chunk(state, records, _NOW)
        changes = state.ledger.take_changes()
        encode_changes(changes, state.cursor)
        folded = time.perf_counter()
        state.leases.note(changes)
        if chunk:
            fold.append((folded - started) / _CHUNK * 1e6)
            note.append((time.perf_counter() - folded) / _CHUNK * 1e6)
    return statistics.median(fold), statistics.median(note)


def _refresh(offset: int, number: int) -> Any:
    entitlement, seat = divmod(number, SEATS_OF_AN_ENTITLEMENT)
    data = {"seat_id": f"seat-{seat}", "lease_expires_at": format_time(_NOW + _HOUR + offset)}
    return record(offset, "seat.refreshed", f"ent-{entitlement}", format_time(_NOW - 1_000), data)


def _take_next(state: PartitionState) -> None:
    [lease] = state.leases.take(_NOW + 2 * _HOUR, "release", 1)
    state.leases.put_back(lease)


def _scan(state: PartitionState, by: int) -> int:
    """What finding them costs without an order."""
    return sum(
        1
        for element in state.ledger.elements.values()
        for hold in element.holds.values()
        if hold.quantity and hold.lease_end is not None and hold.lease_end <= by
    )


def _microseconds(run: Callable[[], object], runs: int = 1_000) -> float:
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        run()
        times.append((time.perf_counter() - started) * 1e6)
    return statistics.median(times)


if __name__ == "__main__":
    print(json.dumps(cost_of_leases(), indent=2))
