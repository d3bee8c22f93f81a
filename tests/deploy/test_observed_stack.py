"""All parts as processes on a real Kafka and ClickHouse over HTTP: what Prometheus, Grafana and a log's readers get.

One run for all of it, because it takes a while; the tests are in the order of what happens to it.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from aiokafka import AIOKafkaProducer
from prometheus_client.parser import text_string_to_metric_families

from deploy.kafka.cluster import KafkaCluster, free_ports
from processors.brokers import Brokers
from processors.partitions import partition_of
from processors.topics import Topics
from schemas.events import format_time
from seatmark.chdb_http import ChdbHttp
from seatmark.topics import ensure_topics
from tests.deploy.test_observe import OTHERS, listed, sample_names
from tests.prometheus import DASHBOARDS, Prometheus, panel_queries, panels, rules, running_prometheus
from tests.worker_process import WorkerProcess, running, settings_of
from views.migrate import migrate
from views.store import connect
from views.tokens import Scope, make_token

pytestmark = pytest.mark.kafka

# One for all: each client takes a moment to make.
HTTP = httpx.Client(timeout=60)
PARTITIONS = 2
SECONDS = 90
HOUR, DAY = 3_600_000, 86_400_000

# What must be in no log: of users and their machines, and what opens doors.
USER, HOST, IP, SEAT = "leak-user@acme.example", "leak-host-7", "203.0.113.77", "leak-seat-7"
ACTIVATION, TOKEN, PASSWORD = "leak-activation-code", "smt_leaktoken-of-this-run", "p@ss'word"
MARKERS = ("leak-", "leaktoken", "203.0.113", PASSWORD, "p%40ss", "ss%27word")

# A question about a person.
HISTORY = f"/api/v1/entitlements/acme/history?user={USER}&seat={SEAT}-1"

# Without a sample above 0 in a run in which all is well; each has its test elsewhere.
QUIET = {
    "seatmark_lease_failures_total": "brokers refuse (tests/processors/test_expiry.py)",
    "seatmark_sink_insert_failures_total": "ClickHouse is away (tests/processors/test_worker_health.py)",
    "seatmark_restate_unexplained_total": "a defect (tests/processors/test_restate.py)",
    "seatmark_upkeep_failures_total": "ClickHouse is away (tests/seatmark/test_upkeep.py)",
    "seatmark_audit_seconds_count": "the first audit comes after ten minutes (tests/processors/test_audit.py)",
}


ROLES = ("worker", "sink", "web", "collect")
STOPPED = {"SeatmarkStoredLate", "SeatmarkProcessDown"}


@dataclass
class Observed:
    """The running stack. processes: by role. ports: of their metrics, by job."""

    brokers: str
    prefix: str
    dsn: str
    settings: dict[str, str]
    directory: Path
    ports: dict[str, int]
    web: str
    collector: str
    token: str
    prometheus: Prometheus
    processes: dict[str, WorkerProcess] = field(default_factory=dict)

    @property
    def logs(self) -> list[Path]:
        return sorted(self.directory.glob("*.log"))

    def send(self, *records: dict[str, Any] | bytes, elsewhere: bool = False) -> None:
        """Send events, and bytes that are none. elsewhere: on the partition of another key."""

        async def send() -> None:
            topic = Topics(self.prefix).events
            async with AIOKafkaProducer(bootstrap_servers=self.brokers, acks="all") as producer:
                for record in records:
                    key, value = (b"acme", record) if isinstance(record, bytes) else (None, orjson.dumps(record))
                    subject = record["subject"] if isinstance(record, dict) else "acme"
                    partition = (partition_of(subject, PARTITIONS) + elsewhere) % PARTITIONS
                    await producer.send_and_wait(topic, value, key=key or subject.encode(), partition=partition)

        asyncio.run(send())

    def samples(self) -> dict[str, float]:
        """All samples of all processes, summed up by name."""
        found: dict[str, float] = {}
        for port in self.ports.values():
            text = HTTP.get(f"http://127.0.0.1:{port}/metrics").text
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    found[sample.name] = found.get(sample.name, 0) + sample.value
        return found

    def post(self, document: dict[str, Any], token: str = TOKEN) -> httpx.Response:
        """Send an event to the collector."""
        headers = {"authorization": f"Bearer {token}"}
        return HTTP.post(f"{self.collector}/collect/events", headers=headers, json=document)

    def ask(self, path: str, token: str | None = None) -> httpx.Response:
        """Ask the web."""
        return HTTP.get(self.web + path, headers={"authorization": f"Bearer {token or self.token}"})


@contextmanager
def without_a_column(stack: Observed) -> Iterator[None]:
    """The raw log lacks a column meanwhile: what reads or writes it fails, and ClickHouse says why and quotes the query."""
    with closing(connect(stack.dsn)) as client:
        client.command(
            "CREATE TABLE less ENGINE = ReplacingMergeTree ORDER BY entitlement AS SELECT * EXCEPT seat_id FROM activity"
        )
        client.command("EXCHANGE TABLES activity AND less")
        try:
            yield
        finally:
            client.command("EXCHANGE TABLES activity AND less")
            client.command("DROP TABLE less")


def until(fits: Callable[[], object], told: Callable[[], object] = str) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + SECONDS
    while not fits():
        assert time.monotonic() < deadline, told()
        time.sleep(0.1)


def answers(url: str) -> bool:
    try:
        return HTTP.get(url).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def observed(kafka: KafkaCluster, chdb_http: ChdbHttp, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    directory = tmp_path_factory.mktemp("observed")
    prefix = f"t{uuid.uuid4().hex[:8]}-"
    dsn = chdb_http.dsn(f"observed_{uuid.uuid4().hex}")
    *metrics_ports, web_port, collect_port = free_ports(6)
    ports = dict(zip([f"seatmark-{role}" for role in ROLES], metrics_ports, strict=True))
    settings = settings_of(kafka.bootstrap, prefix, PARTITIONS) | {
        "SEATMARK_CLICKHOUSE_DSN": dsn,
        "SEATMARK_TOKEN": TOKEN,
        "SEATMARK_FLUSH_INTERVAL": "200ms",
        "SEATMARK_RESTATE_INTERVAL": "1s",
        "SEATMARK_LEASE_GRACE": "1s",
        "SEATMARK_WEB_PORT": str(web_port),
        "SEATMARK_COLLECT_PORT": str(collect_port),
        "SEATMARK_COLLECT_TOKENS": TOKEN,
    }
    migrate(dsn, "UTC")
    asyncio.run(ensure_topics(Brokers(kafka.bootstrap), prefix=prefix, partitions=PARTITIONS, replication=1))
    with closing(connect(dsn)) as client:
        token = make_token(client, "test", Scope(True, ()))
    with ExitStack() as parts:
        prometheus = parts.enter_context(running_prometheus(directory / "prometheus", ports))
        web, collector = f"http://127.0.0.1:{web_port}", f"http://127.0.0.1:{collect_port}"
        stack = Observed(kafka.bootstrap, prefix, dsn, settings, directory, ports, web, collector, token, prometheus)
        for role in ROLES:
            parts.enter_context(started(stack, role))
        ready = [f"{part}/readyz" for part in (web, collector)]
        until(lambda: all(map(answers, ready)), lambda: [log.read_text() for log in stack.logs])
        feed(stack)
        yield stack


def started(stack: Observed, role: str) -> ExitStack:
    """Start a part; it is gone when this is left."""
    leaving = ExitStack()
    environment = stack.settings | {"SEATMARK_METRICS_PORT": str(stack.ports[f"seatmark-{role}"])}
    stack.processes[role] = leaving.enter_context(running(role, environment, stack.directory / f"{role}.log"))
    return leaving


def event(number: str, kind: str, at: int, entitlement: str = "acme", **data: Any) -> dict[str, Any]:
    """An event of a person whom no log must name. at: ms since 1970."""
    said = {"customer": "acme", "product": "cad", "seat_id": f"{SEAT}-{number}", "user": USER, "host": HOST, "ip": IP,
            "credential": "user", "activation_id": ACTIVATION, **data}  # fmt: skip
    return {"specversion": "1.0", "id": number, "source": "/s", "type": kind, "subject": entitlement, "time": format_time(at),
            "data": said}  # fmt: skip


def terms(number: str, at: int, entitlement: str = "acme") -> dict[str, Any]:
    """Limit 1, overdraft 5."""
    element = {"limit": 1, "overdraft": {"type": "absolute", "value": 5}}
    return {
        **event(number, "entitlement.changed", at, entitlement),
        "data": {"customer": "acme", "elements": {"seats": element}},
    }


def feed(stack: Observed) -> None:
    """Something of everything: what is applied, late, repeated, refused, run out, and put right afterwards."""
    now = int(time.time() * 1000)
    first = event("1", "seat.activated", now - 60_000)
    stack.send(
        terms("t1", now - HOUR // 2),
        first,
        first,
        event("2", "seat.activated", now - 59_000, lease_expires_at=format_time(now + DAY)),
        # Its lease ran out.
        event("3", "seat.activated", now - 58_000, lease_expires_at=format_time(now - 30_000)),
        # Days ago, then before that, and later still: disorder on days that are over, and a hold that live levels do not know.
        event("5", "seat.activated", now - 5 * DAY, "acme-old"),
        event("6", "seat.activated", now - 6 * DAY, "acme-old"),
        b'{"user": "%s", "ip": "%s"' % (USER.encode(), IP.encode()),
        event("7", f"seat.{USER}", now),
        event("8", "seat.activated", now, quantity=USER, seat_id=[HOST]),
        event("9", "seat.activated", now + DAY),
    )
    stack.send(event("10", "seat.activated", now), elsewhere=True)
    assert stack.post(event("4", "seat.denied", now - 57_000)).status_code == 202
    assert stack.post(event("11", f"seat.{USER}", now)).status_code == 422
    assert stack.post(event("11", "seat.activated", now), token=PASSWORD).status_code == 401


def test_every_metric_of_the_lists_is_set_by_what_runs(observed: Observed) -> None:
    gauges: set[str] = set()
    rising: set[str] = set()
    for metric in listed().values():
        names = sample_names(metric)
        if len(names) == 3:
            rising |= {name for name in names if name.endswith("_count")}
        else:
            (rising if next(iter(names)).endswith("_total") else gauges).update(names)
    assert QUIET.keys() <= rising
    observed.ask("/api/v1/overdrafts")

    def missing() -> set[str]:
        samples = observed.samples()
        return (gauges - samples.keys()) | {name for name in rising - QUIET.keys() if not samples.get(name)}

    until(lambda: not missing(), lambda: (missing(), [log.read_text() for log in observed.logs]))
    samples = observed.samples()
    assert {name: samples[name] for name in QUIET if samples[name]} == {}
    # 4 refused for what they are, 1 for its partition; a repeat; and the event that closes the lease.
    assert samples["seatmark_events_dead_lettered_total"] == 5
    assert samples["seatmark_events_duplicate_total"] == 1
    assert samples["seatmark_leases_watched"] == 1
    assert samples["seatmark_leases_expired_total"] == 1
    assert samples["seatmark_corrections_total"] >= 1
    # All is stored, so nothing is behind.
    behind = ("seatmark_unstored_seconds", "seatmark_lag_seconds", "seatmark_lag_records")
    until(lambda: not any(map(observed.samples().get, behind)))


def test_labels_name_no_customer_and_no_entitlement(observed: Observed) -> None:
    observed.ask("/api/v1/entitlements/acme/usage")
    for port in observed.ports.values():
        text = HTTP.get(f"http://127.0.0.1:{port}/metrics").text
        assert "acme" not in text
        assert not any(marker in text for marker in MARKERS)


def test_all_queries_of_rules_and_panels_give_something(observed: Observed) -> None:
    """Without their limits: what is compared is there, whatever it is. For a share of errors there must be one."""
    with closing(connect(observed.dsn)) as client:
        client.command("RENAME TABLE calendar TO calendar_away")
        try:
            assert observed.ask("/api/v1/entitlements").status_code == 503
        finally:
            client.command("RENAME TABLE calendar_away TO calendar")
    queries = [*(rule["expr"] for rule in rules()), *panel_queries()]
    without_limits = [re.sub(r" (==|>|<) [\d.]+(?= |$)", "", query.strip()) for query in queries]
    empty = list(without_limits)

    def ask_again() -> bool:
        empty[:] = [query for query in empty if not observed.prometheus.query(query)]
        return not empty

    observed.prometheus.until(ask_again, lambda: empty)
    for query in queries:
        observed.prometheus.query(query)
    for name in OTHERS - {"ALERTS"}:
        assert observed.prometheus.query(name)


def test_all_sql_of_the_panels_runs_on_what_is_stored(observed: Observed) -> None:
    [dashboard] = [file for file in DASHBOARDS.glob("*.json") if "rawSql" in file.read_text()]
    choices = {variable["name"]: variable["query"] for variable in json.loads(dashboard.read_text())["templating"]["list"]}
    with closing(connect(observed.dsn)) as client:

        def run(sql: str) -> list[dict[str, Any]]:
            chosen = sql.replace("${entitlement:sqlstring}", "'acme'").replace("${element:sqlstring}", "'seats'")
            assert "$" not in chosen
            return list(client.query(chosen).named_results())

        assert [row["entitlement"] for row in run(choices["entitlement"])] == ["acme", "acme-old"]
        assert [row["element"] for row in run(choices["element"])] == ["seats"]
        told = {panel["title"]: run(panel["targets"][0]["rawSql"]) for panel in panels(dashboard)}
    assert all(told.values())
    # Two seats are open of one; the third one's lease ran out.
    assert told["In overdraft now"] == [{"elements": 1}]
    [now] = told["Who is in overdraft now"]
    assert (now["customer"], now["entitlement"], now["element"]) == ("acme", "acme", "seats")
    assert (now["level"], now["limit"], now["overage"], now["peak"], now["state"]) == (2, 1, 1, 3, "overdraft")
    [lived] = told["Who lived in overdraft"]
    assert (lived["entitlement"], lived["peak_overage"]) == ("acme", 2)
    assert lived["hours"] > 0
    [fullest] = told["The fullest now"]
    assert (fullest["entitlement"], fullest["used"]) == ("acme", 2)
    assert len(told["30 days of one element"]) == 30
    assert told["30 days of one element"][-1]["max"] == 3
    assert sum(row["denials"] for row in told["Turned away, by day"]) == 1
    assert sum(row["overdraft entered"] for row in told["Changes of state, by day"]) == 1


def test_a_sink_that_is_stopped_fires_the_alerts(observed: Observed) -> None:
    prometheus = observed.prometheus
    prometheus.until(lambda: not STOPPED & prometheus.firing(), prometheus.firing)
    assert observed.processes["sink"].stop() == 0
    observed.send(event("20", "seat.activated", int(time.time() * 1000)), b"no JSON")
    prometheus.until(lambda: {*STOPPED, "SeatmarkDeadLetters"} <= prometheus.firing(), prometheus.firing)


def test_no_log_names_a_person_a_machine_or_a_secret(observed: Observed) -> None:
    """At INFO, after all of the above, and: a worker killed, a wrong token, rows that cannot be stored."""
    observed.processes["worker"].kill()
    with started(observed, "worker"), started(observed, "sink"):
        # All of it is back.
        observed.prometheus.until(lambda: not STOPPED & observed.prometheus.firing(), observed.prometheus.firing)
        assert observed.ask(HISTORY).status_code == 200
        assert observed.ask(HISTORY, token=TOKEN).status_code == 401
        with without_a_column(observed):
            assert observed.ask(HISTORY).status_code == 500
            observed.send(event("30", "seat.activated", int(time.time() * 1000)))
            assert observed.processes["sink"].wait(SECONDS) == 1
        for role in ("web", "worker", "collect"):
            assert observed.processes[role].stop() == 0
    told = {log.stem: log.read_text() for log in observed.logs}
    assert told.keys() == set(ROLES)
    for text in told.values():
        assert [marker for marker in (*MARKERS, observed.token) if marker in text] == []
        for line in text.splitlines():
            assert {"timestamp", "level", "logger", "event"} <= json.loads(line).keys()
    # What failed is told all the same, with the place.
    [failed] = [line for line in map(json.loads, told["web"].splitlines()) if "exception" in line]
    assert "UNKNOWN_IDENTIFIER" in failed["exception"]
    assert "views/store.py" in failed["exception"]
    last = json.loads(told["sink"].splitlines()[-1])
    assert last["level"] == "critical"
    assert "cannot be stored in the table activity" in last["event"]
