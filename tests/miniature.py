"""Seatmark in one process, without a broker: real decoding, fold, outputs, state, sink rows, ClickHouse and restatement.

Records go from list to list, each step when the test says so, so that every interleaving can be tried.
"""

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson
from clickhouse_connect.driver.client import Client

from processors.agents import fold_chunk
from processors.domain.days import Calendar
from processors.restate import Outgoing, Report, Restater
from processors.sink import ACTIVITY, ALERTS, DAYS, INSERT_SETTINGS, Batch
from processors.state import PartitionStates
from schemas.alerts import decode_alert
from schemas.days import encode_day
from views.raw_log import RawLog

HOUR = 3_600_000


@dataclass
class Record:
    """A record of any topic, as aiokafka gives it."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes
    headers: list[tuple[str, bytes]] = field(default_factory=list)
    timestamp: int = 0
    timestamp_type: int = 0


class Miniature:
    """One source partition, its worker and its sink.

    client: of a migrated database with this time zone. now_ms: the wall clock, which the test sets.
    """

    def __init__(
        self,
        client: Client,
        *,
        timezone: str = "UTC",
        late_after_ms: int = HOUR,
        now_ms: int | None = None,
        truncate_ips: bool = False,
    ) -> None:
        self.client = client
        self.now_ms = now_ms if now_ms is not None else int(time.time() * 1000)
        self.topic = f"t{uuid.uuid4().hex[:8]}-entitlement-events"
        self.calendar = Calendar(timezone)
        self._truncate_ips = truncate_ips
        self._states = PartitionStates(self.calendar, late_after_ms, "incarnation-1", partitions=1)
        self.state = self._states.of(0)
        self.state.begin("incarnation-1")
        self.log: list[Record] = []
        self.unsunk: list[tuple[str, Record]] = []
        self.alerts: list[Any] = []
        self.dead_letters: list[Any] = []
        self.restater = Restater(
            RawLog(client, self.topic), self._send, calendar=self.calendar, late_after_ms=late_after_ms, partitions=1
        )
        self.entitlements: set[str] = set()
        self.applied = 0
        self._outputs: Counter[str] = Counter()

    @property
    def ledger(self) -> Any:
        """The live state."""
        return self.state.ledger

    def arrive(self, documents: Iterable[dict[str, Any]]) -> None:
        """Events are appended to the topic."""
        for document in documents:
            self.entitlements.add(document["subject"])
            self._append(document["subject"].encode(), orjson.dumps(document))

    async def _send(self, outgoing: Outgoing) -> None:
        self._append(outgoing.key, outgoing.value)

    def _append(self, key: bytes, value: bytes) -> None:
        self.log.append(Record(self.topic, 0, len(self.log), key, value))

    def work(self, records: int | None = None) -> None:
        """The worker applies what is on the topic, as one chunk."""
        end = len(self.log) if records is None else min(len(self.log), self.applied + records)
        while self.applied < end:
            chunk = self.log[self.applied : end]
            out = fold_chunk(self.state, chunk, self.now_ms, truncate_ips=self._truncate_ips)
            self.applied += out.taken
            changes = self.ledger.take_changes()
            days = [encode_day(record) for record in (*changes.days, *changes.marks, *changes.settled)]
            for topic, values in ((ACTIVITY, out.activity), (ALERTS, out.alerts), (DAYS, [(None, day, []) for day in days])):
                for _, value, headers in values:
                    self.unsunk.append((topic, Record(topic, 0, self._outputs[topic], None, value or b"", headers)))
                    self._outputs[topic] += 1
            self.alerts += [decode_alert(value) for _, value, _ in out.alerts if value is not None]
            self.dead_letters += out.dead_letters

    def sink(self) -> None:
        """The sink stores what the worker has put out."""
        batch = Batch()
        for topic, record in self.unsunk:
            batch.add(record, topic)  # type: ignore[arg-type]
        self.unsunk.clear()
        for insert in batch.inserts():
            settings = dict(INSERT_SETTINGS) | ({"insert_deduplication_token": insert.token} if insert.token else {})
            self.client.insert_arrow(insert.table, insert.rows, settings=settings)

    def restate(self) -> Report:
        """One pass of the restatement; what it sends is on the topic."""
        # Other tests have left theirs in the same database.
        return asyncio.run(self.restater.run(self.now_ms, owns=self.entitlements.__contains__))

    def settle(self, passes: int = 6) -> None:
        """Everything is applied and stored, and restated until there is nothing left to do."""
        for _ in range(passes):
            self.work()
            self.sink()
            if not self.restate().elements:
                return
        raise AssertionError(f"still not settled after {passes} passes")
