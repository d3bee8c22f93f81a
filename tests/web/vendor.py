"""Events as a vendor sends them, folded and stored as worker and sink would, without a broker."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson
import pyarrow as pa
from clickhouse_connect.driver.client import Client

from processors.domain.days import Calendar
from processors.domain.ledger import Ledger, position_of
from processors.outputs import activity_row, alert_of
from processors.sink import alerts_table, days_table, marks_table, settled_table
from schemas.activity import decode_activity, encode_activity
from schemas.events import decode

_LATE_AFTER = 3_600_000


@dataclass
class _Record:
    """A record of `entitlement-events`, as far as a raw-log row needs it."""

    offset: int
    timestamp: int
    value: bytes
    key: bytes
    topic: str = "entitlement-events"
    partition: int = 0
    timestamp_type: int = 1
    headers: list[tuple[str, bytes]] = field(default_factory=list)


class Vendor:
    """One source partition: what is sent comes in order, and is folded by the one fold there is."""

    def __init__(self, client: Client, timezone: str = "UTC") -> None:
        self._client = client
        self._timezone = timezone
        self._ledger = Ledger(Calendar(timezone), _LATE_AFTER)
        self._offset = 0

    def send(self, events: Iterable[dict[str, Any]], *, appended_at: int | None = None) -> None:
        """Fold and store events: CloudEvents as dicts. appended_at: ms; default: each event's own time, plus 5 ms."""
        rows, alerts = [], []
        for sent in events:
            value = orjson.dumps(sent)
            event = decode(value, key="any", appended_at=None)
            self._offset += 1
            arrived = event.time + 5 if appended_at is None else appended_at
            record = _Record(self._offset, arrived, value, event.entitlement.encode())
            for outcome in self._ledger.apply(event, position_of(1, self._offset)):
                rows.append(activity_row(event, outcome, "incarnation-1", 1, record, arrived, record.value))
                if outcome.transition is not None:
                    alerts.append(alert_of(outcome.transition))
        changes = self._ledger.take_changes()
        if rows:
            self._insert("activity", decode_activity(encode_activity(rows)))
        if changes.days:
            self._insert("days", days_table(changes.days))
        if changes.marks:
            self._insert("marks", marks_table(changes.marks))
        if changes.settled:
            self._insert("settled", settled_table(changes.settled))
        if alerts:
            self._insert("alerts", alerts_table(alerts))

    def again(self) -> Vendor:
        """A vendor of whom nothing is stored yet: all that there was is deleted."""
        for table in ("activity", "days", "marks", "elements", "alerts", "terms", "settled", "tokens"):
            self._client.command(f"TRUNCATE TABLE {table}")
        return Vendor(self._client, self._timezone)

    def forget(self) -> None:
        """Lose the memory of ids, as a worker does of old ones."""
        for element in self._ledger.elements.values():
            element.head.recent, element.blocks = b"", []
            for hold in element.holds.values():
                hold.ids = b""

    def rewrite_raw_rows(self) -> None:
        """Write the raw rows once more with a higher version, as a restatement does; both stay until ClickHouse merges them."""
        self._client.command("INSERT INTO activity SELECT * REPLACE (version + 2 AS version) FROM activity")

    def _insert(self, table: str, rows: pa.Table) -> None:
        self._client.insert_arrow(table, rows)
