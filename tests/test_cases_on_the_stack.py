"""The golden cases of tests/cases through the whole stack: Kafka, a worker, a sink, ClickHouse and its views.

No restatement runs beside them: what is stored stays live. All run at once. Each case is an entitlement of its own; those of
one time zone and SEATMARK_LATE_AFTER share a deployment.
"""

import asyncio
import uuid
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaProducer, ConsumerRecord
from clickhouse_connect.driver.client import Client

from processors.brokers import Brokers
from processors.domain.ledger import position_of
from processors.sink import Sink
from processors.topics import Topics
from seatmark.chdb_http import ChdbHttp
from seatmark.produce import wait_until_stored
from seatmark.topics import ensure_topics
from tests.brokers import read_topic
from tests.cases_compare import (
    CASES,
    DAY_FIELDS,
    Came,
    alert_words,
    cases_for,
    days_between,
    days_of,
    differences,
    report,
    result_problem,
)
from tests.cases_format import Case, Record, parse_instant
from tests.worker_process import running_worker, settings_of
from views.migrate import migrate
from views.store import chdb_dsn, connect

pytestmark = pytest.mark.kafka

PARTITIONS = 2
# What only the fold knows: who holds what is not stored by name yet.
NOT_STORED = {"holds"}


@dataclass
class Ran:
    """What came of one case. problems: what is not as the case says, other than the words of `then`."""

    came: Came
    problems: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def ran(kafka: Any, chdb_http: ChdbHttp, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Ran]:
    """What came of every case, by its name."""
    groups: dict[tuple[str, int], list[Case]] = defaultdict(list)
    for case in CASES:
        if "stack" not in case.not_in:
            groups[case.timezone, case.late_after].append(case)
    logs = tmp_path_factory.mktemp("cases")

    async def run() -> dict[str, Ran]:
        deployments = [Deployment(kafka.bootstrap, chdb_http, logs, cases) for cases in groups.values()]
        results = await asyncio.gather(*(deployment.run() for deployment in deployments))
        return {name: came for result in results for name, came in result.items()}

    return asyncio.run(run())


@pytest.mark.parametrize("case", cases_for("stack"))
def test_the_stack(case: Case, ran: Mapping[str, Ran]) -> None:
    result = ran[case.name]
    expected = {
        element: {word: value for word, value in words.items() if word not in NOT_STORED}
        for element, words in case.then.items()
    }
    found = [*result.problems, *differences(case, expected, result.came)]
    assert not found, report(case, found)


class Deployment:
    """The stack for the cases of one time zone and one SEATMARK_LATE_AFTER, with topics and a database of its own."""

    def __init__(self, bootstrap: str, clickhouse: ChdbHttp, logs: Path, cases: list[Case]) -> None:
        self.bootstrap = bootstrap
        self.cases = cases
        self.prefix = f"cases-{uuid.uuid4().hex[:8]}-"
        self.topics = Topics(self.prefix)
        self.dsn = f"{chdb_dsn(clickhouse.directory)}?database=cases_{uuid.uuid4().hex}"
        self.log = logs / f"{self.prefix}worker.log"
        # Where each record came to stand: (partition, offset).
        self.places: dict[Record, tuple[int, int]] = {}

    async def run(self) -> dict[str, Ran]:
        """Send all records, run worker and sink until everything is stored, and gather what came of each case."""
        timezone, late_after = self.cases[0].timezone, self.cases[0].late_after
        await asyncio.gather(
            ensure_topics(Brokers(self.bootstrap), prefix=self.prefix, partitions=PARTITIONS, replication=1),
            asyncio.to_thread(migrate, self.dsn, timezone),
        )
        ends = await self.send()
        settings = {
            **settings_of(self.bootstrap, self.prefix, PARTITIONS),
            "SEATMARK_TIMEZONE": timezone,
            "SEATMARK_LATE_AFTER": f"{late_after}ms",
        }
        sink = Sink(
            brokers=Brokers(self.bootstrap),
            topic_prefix=self.prefix,
            client_factory=lambda: connect(self.dsn),
            flush_seconds=0.05,
        )
        stop = asyncio.Event()
        with running_worker(settings, self.log):
            sinking = asyncio.create_task(sink.run(stop))
            waiting = asyncio.create_task(
                wait_until_stored(
                    ends, brokers=Brokers(self.bootstrap), prefix=self.prefix, timeout=60, on_progress=lambda _: None
                )
            )
            # A sink that fails ends first, and says why below.
            await asyncio.wait({sinking, waiting}, return_when=asyncio.FIRST_COMPLETED)
            stop.set()
            await sinking
            await waiting
        alerts, dead_letters = await self.read(self.topics.alerts), await self.read(self.topics.dead_letters)
        stored = await asyncio.to_thread(Stored, self.dsn, self.cases)
        return {case.name: self.ran(case, stored, alerts, dead_letters) for case in self.cases}

    async def send(self) -> dict[int, int]:
        """Send the records of all cases, a record of each case in turn; the ends of the partitions."""
        producer = AIOKafkaProducer(bootstrap_servers=self.bootstrap, acks="all", max_request_size=4 * 1024 * 1024)
        await producer.start()
        try:
            turns = zip_longest(*(case.records for case in self.cases))
            records = [record for turn in turns for record in turn if record is not None]
            basis_of = {
                record: case.basis_of(record) for case in self.cases for record in case.records if record.basis is not None
            }
            sent: dict[Record, asyncio.Future[Any]] = {}
            for record in records:
                value = record.value
                if record.basis is not None:
                    basis = await sent[basis_of[record]]
                    value = record.value_with(position_of(1, basis.offset))
                sent[record] = await producer.send(
                    self.topics.events, key=record.key, value=value, headers=[("line", b"%d" % record.line)]
                )
            await producer.flush()
            ends: dict[int, int] = {}
            for record, metadata in zip(sent, await asyncio.gather(*sent.values()), strict=True):
                self.places[record] = metadata.partition, metadata.offset
                ends[metadata.partition] = max(ends.get(metadata.partition, 0), metadata.offset + 1)
            return ends
        finally:
            await producer.stop()

    async def read(self, topic: str) -> list[ConsumerRecord]:
        """All records of a topic, in order within each partition."""
        return await read_topic(self.bootstrap, topic, PARTITIONS)

    def ran(self, case: Case, stored: "Stored", alerts: list[ConsumerRecord], dead_letters: list[ConsumerRecord]) -> Ran:
        """What came of one case."""
        result = Ran({element: stored.words(case, element) for element in case.elements})
        problems = result.problems
        for record in case.records:
            problem = self.dead_letter_problem(record, dead_letters) or stored.record_problem(record, self.places[record])
            if problem is not None:
                problems.append(problem)
        for entitlement, element in case.elements:
            sent: dict[str, dict[str, Any]] = {}
            for alert in alerts:
                document = orjson.loads(alert.value)
                if (document["data"]["entitlement"], document["data"]["element"]) == (entitlement, element):
                    assert alert.key == entitlement.encode()
                    sent.setdefault(document["id"], alert_words(document))
            result.came[entitlement, element]["alerts"] = list(sent.values())
            if stored.alerts[entitlement, element] != sent:
                problems.append(
                    f"{element}: the stored alerts {stored.alerts[entitlement, element]} are not those sent: {sent}"
                )
            first: dict[tuple[str, str], tuple[int, int]] = {}
            for record in case.accepted:
                if (entitlement, element) in record.touches:
                    first.setdefault((record.document["source"], record.document["id"]), self.places[record])
            if sorted(stored.history[entitlement, element]) != sorted((*event, *place) for event, place in first.items()):
                problems.append(
                    f"{element}: expected the first arrival of each event in the raw log, as source, id, partition and offset: "
                    f"{first}, but it shows {stored.history[entitlement, element]}"
                )
        return result

    def dead_letter_problem(self, record: Record, dead_letters: list[ConsumerRecord]) -> str | None:
        """What is wrong with the record's dead letter, or that it has one."""
        partition, offset = self.places[record]
        place = {
            "seatmark-source-topic": self.topics.events.encode(),
            "seatmark-source-partition": b"%d" % partition,
            "seatmark-source-offset": b"%d" % offset,
        }
        found = [letter for letter in dead_letters if place.items() <= dict(letter.headers).items()]
        if record.result.dead is None:
            return f"event {record.line}: it is a dead letter: {found[0].headers}" if found else None
        if len(found) != 1:
            return f"event {record.line}: expected a dead letter, found {len(found)}"
        reason, at = record.result.dead
        [letter] = found
        headers = dict(letter.headers)
        detail = headers["seatmark-detail"].decode()
        if (letter.key, letter.value, headers["line"]) != (record.key, record.value, b"%d" % record.line):
            return f"event {record.line}: its dead letter has not the key, bytes and headers of the record"
        if (headers["seatmark-reason"].decode(), detail[: len(at)]) != (reason, at):
            return f"event {record.line}: expected {reason} {at}, but it is {headers['seatmark-reason'].decode()} {detail}"
        return None


class Stored:
    """What is in ClickHouse, in the words of the cases, by entitlement and element."""

    def __init__(self, dsn: str, cases: list[Case]) -> None:
        client = connect(dsn)
        try:
            self.live = {_key(row): row for row in _rows(client, "SELECT * REPLACE (toUnixTimestamp64Milli(entered_at) AS "
                                                         "entered_at) FROM live_levels")}  # fmt: skip
            self.days = {
                at: _days(client, at, [case for case in cases if case.read_at == at]) for at in {c.read_at for c in cases}
            }
            self.day_rows = {
                (*_key(row), str(row["day"])): row for row in _rows(client, "SELECT * FROM days FINAL WHERE NOT restated")
            }
            self.marks: dict[Any, set[str]] = defaultdict(set)
            self.newest_mark: dict[Any, tuple[int, int]] = defaultdict(lambda: (0, 0))
            for row in _rows(client, "SELECT * FROM marks FINAL"):
                self.marks[_key(row)] |= set(days_between(str(row["first_day"]), str(row["last_day"])))
                self.newest_mark[_key(row)] = max(self.newest_mark[_key(row)], (row["position"], row["since"]))
            self.settled = {_key(row): row["position"] for row in _rows(client, "SELECT * FROM settled FINAL")}
            self.alerts: dict[Any, dict[str, dict[str, Any]]] = defaultdict(dict)
            for row in _rows(client, "SELECT * FROM alerts FINAL"):
                self.alerts[_key(row)][row["id"]] = _alert(row)
            self.raw = {
                (row["partition"], row["offset"], *_key(row)): row
                for row in _rows(client, "SELECT * EXCEPT event FROM activity")
            }
            self.history: dict[Any, list[tuple[str, str, int, int]]] = defaultdict(list)
            for row in _rows(client, "SELECT entitlement, element, source, id, partition, offset FROM activity_history"):
                self.history[_key(row)].append((row["source"], row["id"], row["partition"], row["offset"]))
        finally:
            client.close()

    def words(self, case: Case, element: tuple[str, str]) -> dict[str, Any]:
        """One element in the words of `then`."""
        live = self.live[element]
        marked_at, since = self.newest_mark[element]
        names = ("level", "state", "limit", "hard_limit", "customer", "product", "name", "kind", "entered_at", "peak")
        return {
            **{name: live[name] for name in names},
            "marks": sorted(self.marks[element]),
            "unsettled": since > 0 and marked_at > self.settled.get(element, 0),
            "days": {day: self.day(case, element, day) for day in days_of(case, element)},
        }

    def day(self, case: Case, element: tuple[str, str], day: str) -> dict[str, Any] | None:
        """One day as the view `usage` shows it; the stored row must say the same of all that needs no completing."""
        shown = self.days[case.read_at].get((*element, day))
        if shown is None:
            return None
        row = self.day_rows.get((*element, day))
        if row is not None:
            assert {name: row[name] for name in DAY_FIELDS} == {name: shown[name] for name in DAY_FIELDS}
        return {**shown, "stored": row is not None}

    def record_problem(self, record: Record, place: tuple[int, int]) -> str | None:
        """What the raw log says of one record, if that is not what the case says."""
        rows = {element: self.raw.get((*place, *element)) for element in record.touches}
        there = {element: row for element, row in rows.items() if row is not None}
        if record.result.dead is not None:
            return None
        if there and len(there) != len(rows):
            return f"event {record.line}: the raw log has {list(there)} of it only"
        if any(row["late"] and (row["delta"] or row["version"]) for row in there.values()):
            return f"event {record.line}: it is late, and has an effect in the raw log"
        return result_problem(
            record,
            repeat=not there,
            late=frozenset(element for element, row in there.items() if row["late"]),
            level=next((row["level"] for row in there.values()), None),
            effect=any(row["version"] for row in there.values()),
        )


def _rows(client: Client, query: str, **parameters: Any) -> list[dict[str, Any]]:
    return list(client.query(query, parameters=parameters).named_results())


def _key(row: dict[str, Any]) -> tuple[str, str]:
    return row["entitlement"], row["element"]


def _days(client: Client, at: int, cases: list[Case]) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Every day that these cases ask for, as the view shows it at that instant."""
    wanted = {(*element, day) for case in cases for element in case.elements for day in days_of(case, element)}
    if not wanted:
        return {}
    first, last = (date.fromisoformat(edge(day for *_, day in wanted)) for edge in (min, max))
    rows = _rows(
        client,
        "SELECT * FROM usage(entitlement = '', element = '', last_day = {last:Date32}, days = {days:UInt16}, "
        "at = {at:DateTime64(3, 'UTC')})",
        last=last.isoformat(),
        days=(last - first).days + 1,
        at=datetime.fromtimestamp(at / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3],
    )
    days = {}
    for row in rows:
        key = (*_key(row), str(row["day"]))
        if key in wanted:
            row["overdraft_seconds"], row["unit_seconds"], row["length"] = (
                int(row[name] * 1000) for name in ("overdraft_seconds", "unit_seconds", "elapsed_seconds")
            )
            days[key] = row
    return days


def _alert(row: dict[str, Any]) -> dict[str, Any]:
    """A stored alert, in the words of a case."""
    left = row["type"] == "overdraft.left"
    return {
        "at": _ms(row["at"]),
        "from": row["from_state"],
        "to": row["to_state"],
        **{name: row[name] for name in ("type", "level", "limit", "hard_limit", "overage", "customer", "product", "id")},
        **{name: row[name] for name in ("peak", "peak_overage", "cause_source", "cause_type")},
        "cause": row["cause_id"],
        "entered_at": _ms(row["entered_at"]) if left else None,
        "duration": int(row["duration_seconds"] * 1000) if left else None,
    }


def _ms(moment: datetime) -> int:
    return parse_instant(moment.replace(tzinfo=UTC).isoformat())
