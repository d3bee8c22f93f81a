"""The cost of an event by the number of seats that are open in its entitlement: it must not grow with them."""

import json
import statistics
import time
from dataclasses import dataclass
from typing import Any

import orjson

from processors.agents import fold_chunk
from processors.codec import encode_changes
from processors.domain.days import Calendar
from processors.state import PartitionState, PartitionStates
from schemas.events import format_time

FEW, MANY = 10, 100_000
_CHUNKS, _CHUNK = 40, 250


@dataclass(frozen=True)
class _Record:
    offset: int
    key: bytes
    value: bytes
    topic: str = "entitlement-events"
    partition: int = 0
    timestamp: int = 0
    timestamp_type: int = 0
    headers: tuple[Any, ...] = ()


def cost_by_open_seats() -> dict[str, float]:
    """Microseconds per event (fold, outputs and state, without a broker), by open seats, and their ratio."""
    states = {seats: _with_open_seats(seats) for seats in (FEW, MANY)}
    costs: dict[int, list[float]] = {FEW: [], MANY: []}
    for chunk in range(_CHUNKS):
        for seats, state in states.items():
            records = _chunk(state.cursor.offset + 1, first_seat=seats)
            started = time.perf_counter()
            fold_chunk(state, records, _NOW)
            encode_changes(state.ledger.take_changes(), state.cursor)
            if chunk:
                costs[seats].append((time.perf_counter() - started) / _CHUNK * 1e6)
    few, many = (statistics.median(costs[seats]) for seats in (FEW, MANY))
    return {f"{FEW}_open_us": round(few, 1), f"{MANY}_open_us": round(many, 1), "ratio": round(many / few, 2)}


_NOW = 1_800_000_000_000


def _with_open_seats(seats: int) -> PartitionState:
    state = PartitionStates(Calendar("UTC"), 3_600_000, "bench", partitions=1).of(0)
    state.begin("bench")
    fold_chunk(state, [_seat(offset, "seat.activated", offset) for offset in range(seats)], _NOW)
    state.ledger.take_changes()
    return state


def _chunk(offset: int, first_seat: int) -> list[_Record]:
    """New seats that come, and leave again."""
    kinds = ("seat.activated", "seat.deactivated")
    return [_seat(offset + number, kinds[number % 2], first_seat + number // 2) for number in range(_CHUNK)]


def _seat(offset: int, kind: str, seat: int) -> _Record:
    return record(offset, kind, "ent", format_time(_NOW - 500_000 + offset), {"seat_id": f"seat-{seat}"})


def record(offset: int, kind: str, entitlement: str, time: str, data: dict[str, Any]) -> _Record:
    """A record of entitlement-events."""
    event = {
        "specversion": "1.0", "id": str(offset), "source": "/s", "type": kind, "subject": entitlement,
        "time": time, "data": data,
    }  # fmt: skip
    return _Record(offset, entitlement.encode(), orjson.dumps(event))


if __name__ == "__main__":
    print(json.dumps(cost_by_open_seats()))
