"""Rows as the sink writes them, and how to write them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import Any

import pyarrow as pa
import pytest
from clickhouse_connect.driver.client import Client

from processors.domain.days import Calendar
from processors.sink import alerts_table, days_table, marks_table, settled_table
from schemas.activity import ActivityRow, decode_activity, encode_activity
from schemas.alerts import Alert
from schemas.days import DayMark, DayRow, Settled

Put = Callable[..., None]


def _put(client: Client, *rows: ActivityRow | DayRow | DayMark | Settled | Alert, restated: bool = False) -> None:
    """Insert rows of one kind, as one insert."""
    kind = type(rows[0])
    if kind is ActivityRow:
        client.insert_arrow("activity", decode_activity(encode_activity(rows)))
    elif kind is DayRow:
        table = days_table(rows)
        client.insert_arrow("days", table.append_column("restated", pa.array([restated] * len(rows))))
    elif kind is DayMark:
        client.insert_arrow("marks", marks_table(rows))
    elif kind is Settled:
        client.insert_arrow("settled", settled_table(rows))
    else:
        client.insert_arrow("alerts", alerts_table(rows))


@pytest.fixture
def put() -> Put:
    """put(client, *rows, restated=False): inserts rows of one kind."""
    return _put


@pytest.fixture
def day_row(entitlement: str) -> Callable[..., DayRow]:
    """day_row("2026-03-29", "Europe/Paris", as_of_hours=3, closing=2, ...): a quiet day of a pool without terms.

    as_of_hours: how long after the day's first instant its last event was.
    """

    def make(day: str, timezone: str = "UTC", *, as_of_hours: float = 0, **fields: Any) -> DayRow:
        bounds = Calendar(timezone).bounds(date.fromisoformat(day))
        assert bounds is not None
        row: dict[str, Any] = {
            "entitlement": entitlement, "element": "seats", "day": day, "timezone": timezone,
            "day_start": bounds.start, "day_end": bounds.end, "customer": "cus-1", "product": "cad-pro", "name": None,
            "kind": "pool", "opening": 0, "closing": 0, "min": 0, "max": 0, "limit": None, "hard_limit": None,
            "terms_known": False, "overdraft_ms": 0, "unit_ms": 0, "peak_overage": 0, "activations": 0,
            "deactivations": 0, "refreshes": 0, "denials": 0, "units_used": 0,
            "as_of": bounds.start + int(as_of_hours * 3_600_000), "closing_limit": None, "closing_hard_limit": None,
            "closing_terms_known": False, "state": "within", "entered_at": None, "peak": None, "position": 1,
        }  # fmt: skip
        return DayRow(**row | fields)

    return make


@pytest.fixture
def activity_row(entitlement: str) -> Callable[..., ActivityRow]:
    """activity_row(time=..., id=..., ...): a seat activated at its time, the first of its entitlement."""

    def make(**fields: Any) -> ActivityRow:
        time = fields.get("time", 1_790_000_000_000)
        row: dict[str, Any] = {
            "entitlement": entitlement, "element": "seats", "time": time, "source": "/license-servers/eu-1", "id": "id-1",
            "type": "seat.activated", "customer": "cus-1", "product": "cad-pro", "seat_id": "wks-12", "user": None,
            "ip": None, "host": None, "credential": None, "quantity": None, "lease_expires_at": None, "reason": None,
            "incarnation": "incarnation-1", "epoch": 1, "partition": 0, "offset": 7, "appended_at": time + 5, "t": time,
            "version": 1, "late": False, "delta": 1, "level": 1, "limit": None, "hard_limit": None,
            "terms_known": False, "state": "within", "event": b"{}",
        }  # fmt: skip
        return ActivityRow(**row | fields)

    return make
