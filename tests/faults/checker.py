"""After the faults: is everything there, once, and as the independent model says (tests/model.py)?

Nothing here comes from the fold of the product. The topic of events is the truth, if all that was acknowledged is on it.
"""

import asyncio
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiokafka import ConsumerRecord

from processors.domain.days import Calendar
from schemas.events import RESTATE_SOURCE
from seatmark.upkeep import audited, restate_until_settled
from tests import model
from tests.brokers import read_topic
from tests.faults.stack import PARTITIONS, Deployment
from tests.test_vendor import FIELDS, stored_days
from views.store import connect

_SHOWN = 5

Place = tuple[int, int]


@dataclass
class Check:
    """What was compared, and what differs. wrong: how many, by what it is. examples: a few of them, in words."""

    acknowledged: int = 0
    elements: int = 0
    days: int = 0
    alerts: int = 0
    repeated_alerts: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def differs(self, what: str, example: Any) -> None:
        """Note one difference. what: a word of the totals."""
        if self.wrong[what] < _SHOWN:
            self.examples.append(f"{what}: {example}")
        self.wrong[what] += 1


async def checked(deployment: Deployment) -> Check:
    """Compare everything. The deployment must have caught up, and nothing may be sent to it."""
    check = Check(acknowledged=len(deployment.feed.acknowledged))
    topics, bootstrap = deployment.topics, deployment.stack.kafka.bootstrap
    records = await read_topic(bootstrap, topics.events, PARTITIONS)
    log = {(record.partition, record.offset): record for record in records}
    for place, value in deployment.feed.acknowledged.items():
        if place not in log or log[place].value != value:
            check.differs("acknowledged events lost", place)

    poison = {place: record for place, record in log.items() if record.value in deployment.feed.poison}
    _check_dead_letters(check, poison, await read_topic(bootstrap, topics.dead_letters, PARTITIONS))
    # In order of arrival: of an entitlement all are on one partition.
    places = sorted(log.keys() - poison.keys())
    documents = [orjson.loads(log[place].value) for place in places]
    ours = [number for number, document in enumerate(documents) if document["source"] != RESTATE_SOURCE]
    assert deployment.restates or len(ours) == len(documents), "the model knows no corrections, and there are some"
    places, documents = [places[number] for number in ours], [documents[number] for number in ours]
    settings = deployment.settings
    if deployment.restates:
        await restate_until_settled(settings, "")
    expected = await asyncio.to_thread(
        model.run, documents, timezone="UTC", late_after_ms=settings.late_after, exact=deployment.restates
    )
    check.elements = len(expected)

    alerts = _without_repeats(check, await read_topic(bootstrap, topics.alerts, PARTITIONS))
    check.alerts = len(alerts)
    if not deployment.restates:
        # Alerts that were sent are not unsent: where days were restated, the audit says whether they join up.
        _check_alerts(check, expected, documents, alerts)
    dsn = settings.clickhouse_dsn.get_secret_value()
    await asyncio.to_thread(_check_store, check, dsn, expected, documents, places, exact=deployment.restates)
    audit = await asyncio.to_thread(audited, settings)
    for difference in audit.differences:
        check.differs("audit", difference)
    if deployment.restates and audit.unsettled:
        check.differs("audit", f"{audit.unsettled} elements are not settled")
    return check


def _check_dead_letters(check: Check, poison: dict[Place, ConsumerRecord], dead_letters: list[ConsumerRecord]) -> None:
    """Each record that is no event is there, maybe more than once, as it came; and no other."""
    found = set()
    for record in dead_letters:
        headers = {name: value.decode() for name, value in record.headers}
        place = int(headers["seatmark-source-partition"]), int(headers["seatmark-source-offset"])
        found.add(place)
        if place not in poison or (record.key, record.value) != (poison[place].key, poison[place].value):
            check.differs("wrong dead letters", (place, headers, record.value))
    for place in poison.keys() - found:
        check.differs("lost dead letters", (place, poison[place].value))


def _without_repeats(check: Check, records: list[ConsumerRecord]) -> list[dict[str, Any]]:
    """The alerts in the order in which a consumer sees them that drops ids it has seen; a repeat is equal to the first."""
    first: dict[str, dict[str, Any]] = {}
    for record in records:
        alert = orjson.loads(record.value)
        if record.key != alert["subject"].encode():
            check.differs("wrong alerts", (record.key, alert))
        if first.setdefault(alert["id"], alert) is not alert:
            check.repeated_alerts += 1
            if first[alert["id"]] != alert:
                check.differs("wrong alerts", ("a repeat that is not equal", first[alert["id"]], alert))
    return list(first.values())


def _check_alerts(
    check: Check, live: dict[tuple[str, str], Any], documents: list[dict[str, Any]], alerts: list[dict[str, Any]]
) -> None:
    """The alerts of an entitlement are those of the model, in the order of the events that caused them."""
    of_entitlement: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for alert in alerts:
        of_entitlement[alert["subject"]].append({"id": alert["id"], "type": alert["type"], **alert["data"]})
    came: dict[tuple[str, str, str], int] = {}
    for number, document in enumerate(documents):
        came.setdefault((document["subject"], document["source"], document["id"]), number)
    wanted: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for (entitlement, _), element in live.items():
        for alert in element.alerts:
            wanted[entitlement].append(
                {name: value for name, value in alert.items() if value is not None or name in ("limit", "hard_limit")}
            )
    check.alerts = sum(map(len, wanted.values()))
    for entitlement in wanted.keys() | of_entitlement.keys():
        expected = {alert["id"]: alert for alert in wanted[entitlement]}
        got = {alert["id"]: alert for alert in of_entitlement[entitlement]}
        for missing in expected.keys() - got.keys():
            check.differs("lost alerts", expected[missing])
        for extra in got.keys() - expected.keys():
            check.differs("wrong alerts", ("not of the model", got[extra]))
        for both in got.keys() & expected.keys():
            if got[both] != expected[both]:
                check.differs("wrong alerts", (got[both], "expected", expected[both]))
        causes = [came.get((entitlement, alert["cause"]["source"], alert["cause"]["id"]), -1) for alert in got.values()]
        if causes != sorted(causes):
            check.differs("wrong alerts", ("not in order", entitlement, list(got.values())))


def _check_store(
    check: Check,
    dsn: str,
    expected: dict[tuple[str, str], Any],
    documents: list[dict[str, Any]],
    places: list[Place],
    *,
    exact: bool,
) -> None:
    client = connect(dsn)
    try:
        _check_raw_rows(check, client, expected, documents, places, exact=exact)
        _check_levels_and_days(check, client, expected, exact=exact)
    finally:
        client.close()


def _check_raw_rows(
    check: Check,
    client: Any,
    live: dict[tuple[str, str], Any],
    documents: list[dict[str, Any]],
    places: list[Place],
    *,
    exact: bool,
) -> None:
    """One row for each event and element, of the event's first arrival, with the model's level after it."""
    expected: dict[tuple[str, ...], tuple[Any, ...]] = {}
    for number, document in enumerate(documents):
        for name in model.elements_of(document):
            element = live[document["subject"], name]
            key = (document["subject"], name, document["source"], document["id"])
            if key not in expected:
                late = _late(document["type"], number in element.late)
                expected[key] = (*places[number], late, element.levels_after[number])
    rows = client.query(
        "SELECT entitlement, element, source, id, type, `partition`, `offset`, late, level, event FROM activity FINAL "
        f"WHERE source != '{RESTATE_SOURCE}'"
    ).result_rows
    found: dict[tuple[str, ...], tuple[Any, ...]] = {}
    event_at = dict(zip(places, documents, strict=True))
    for entitlement, name, source, event_id, kind, partition, offset, late, level, event in rows:
        key = (entitlement, name, source, event_id)
        if key in found:
            check.differs("double raw rows", key)
        found[key] = (partition, offset, _late(kind, late), level)
        if orjson.loads(event) != event_at.get((partition, offset)):
            check.differs("wrong raw rows", (key, event))
    for key in expected.keys() - found.keys():
        check.differs("missing raw rows", (key, expected[key]))
    for key in found.keys() - expected.keys():
        check.differs("wrong raw rows", (key, found[key], "of no event"))
    for key in found.keys() & expected.keys():
        # Restated rows have levels of their own, and only those of days that were marked.
        same = found[key][:2] == expected[key][:2] if exact else found[key] == expected[key]
        if not same:
            check.differs("wrong raw rows", (key, found[key], "expected", expected[key]))


def _late(kind: str, late: bool) -> bool:
    """Of an expiry that closes nothing, being late is all that a hold says that the worker may have forgotten by then."""
    return late and not kind.endswith(".expired")


def _check_levels_and_days(check: Check, client: Any, live: dict[tuple[str, str], Any], *, exact: bool) -> None:
    stored = {
        (row[0], row[1]): row[2:]
        for row in client.query("SELECT entitlement, element, level, state FROM live_levels").result_rows
    }
    for key in stored.keys() | live.keys():
        wanted = (live[key].level, live[key].state) if key in live else None
        if stored.get(key) != wanted:
            check.differs("wrong levels", (key, stored.get(key), "expected", wanted))
    now = int(time.time() * 1000)
    today = Calendar("UTC").day_of(now).day
    days = stored_days(client, today, now)
    for key, element in live.items():
        for day, row in element.day_rows(now).items():
            if exact and day.isoformat() >= today:
                continue  # Restated once it is over.
            wanted_row = tuple(row[name] for name in FIELDS)
            got = days.get(key, {}).get(day.isoformat(), ())[1:]
            check.days += 1
            if got != wanted_row:
                check.differs("wrong days", (key, day, got, "expected", wanted_row))
