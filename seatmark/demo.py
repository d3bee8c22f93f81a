"""The demo: 30 days of a made-up vendor through the whole embedded stack, and what it says of them."""

import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from schemas.alerts import seatmark_id
from schemas.events import format_time
from seatmark.console import progress, say
from seatmark.embedded import Stack, StackPlan, port_or_free_one
from seatmark.produce import produce_lines, wait_until_stored
from seatmark.reports import get, print_overdrafts, print_usage
from seatmark.settings import Settings

DAYS = 30
_WAIT_SECONDS = 60.0
_HOUR = 3_600_000
_DAY = 24 * _HOUR
_SEED = 20_160_330


@dataclass(frozen=True)
class Contract:
    """What a made-up customer bought, and how they use it.

    people: who could use it. busy: of them, the share that does on a working day. weekend: the same for Saturday and Sunday.
    hours: how long one use lasts on average. nights: whether they go on over night.
    """

    entitlement: str
    customer: str
    product: str
    element: str
    limit: int | None
    overdraft: dict[str, Any]
    people: int
    busy: float
    weekend: float = 0.1
    hours: float = 3.0
    nights: bool = False


CONTRACTS = [
    Contract("ent-1001", "Arkwright Engineering", "cad-pro", "seats", 40, {"type": "absolute", "value": 5}, 46, 0.72),
    # Lives in overdraft: a render farm of 17 machines on 12 seats, day and night.
    Contract(
        "ent-1002",
        "Borealis Studios",
        "render-suite",
        "seats",
        12,
        {"type": "percentage", "value": 50},
        people=17,
        busy=1.0,
        weekend=1.0,
        hours=9.0,
        nights=True,
    ),
    # Flaps around its limit all day long: short uses, and as many people as seats.
    Contract("ent-1003", "Cobalt Labs", "sim-lab", "seats", 10, {"type": "absolute", "value": 3}, 19, 0.9, 0.05, 1.2),
    # Idle over weekends.
    Contract("ent-1004", "Dunmore College", "cad-edu", "seats", 120, {"type": "none"}, 110, 0.8, 0.0),
    Contract("ent-1005", "Elsinore Bank", "ledger-view", "seats", None, {"type": "none"}, 60, 0.5),
    Contract("ent-1006", "Fathom Marine", "cad-pro", "seats", 25, {"type": "unlimited"}, 24, 0.8),
    Contract("ent-1006", "Fathom Marine", "cad-pro", "hull-solver", 4, {"type": "absolute", "value": 1}, 9, 0.4),
    Contract("ent-1007", "Grange Film", "render-suite", "gpu-node", 16, {"type": "percentage", "value": 25}, 20, 0.6, 0.4),
    Contract("ent-1008", "Harrow Health", "ledger-view", "seats", 80, {"type": "absolute", "value": 8}, 70, 0.65),
    # Bought and hardly used.
    Contract("ent-1009", "Isham Foods", "ledger-view", "seats", 50, {"type": "none"}, 4, 0.3, 0.0),
    Contract("ent-1010", "Jura Motors", "sim-lab", "seats", 30, {"type": "absolute", "value": 2}, 34, 0.75),
    Contract("ent-1010", "Jura Motors", "sim-lab", "crash-test", 6, {"type": "none"}, 12, 0.5),
    Contract("ent-1011", "Kestrel Aero", "cad-pro", "seats", 60, {"type": "percentage", "value": 10}, 58, 0.7),
    Contract("ent-1012", "Lowell Press", "cad-edu", "seats", 8, {"type": "absolute", "value": 2}, 8, 0.7),
]
# The one whose table the demo shows.
SHOWN = ("ent-1003", "seats")


def made_up_events(now: int) -> list[dict[str, Any]]:
    """The vendor's events of the last 30 days, in order of time; none later than `now` (ms).

    The same for the same day, whatever the hour, but for what has not happened yet.
    """
    first_day = now // _DAY * _DAY - (DAYS - 1) * _DAY
    events = [event for contract in CONTRACTS for event in _events_of(contract, first_day)]
    events = [event for event in events if event["time"] <= now]
    events.sort(key=lambda event: event["time"])
    for event in events:
        event["time"] = format_time(event["time"])
    return events


def _events_of(contract: Contract, first_day: int) -> Iterator[dict[str, Any]]:
    chance = random.Random(f"{_SEED} {contract.entitlement} {contract.element}")
    yield _event(
        contract,
        "entitlement.changed",
        first_day,
        {"elements": {contract.element: {"kind": "pool", "limit": contract.limit, "overdraft": contract.overdraft}}},
    )
    seats = contract.element == "seats"
    taken, given_back, denied = (
        ("seat.activated", "seat.deactivated", "seat.denied")
        if seats
        else ("feature.checked_out", "feature.returned", "feature.denied")
    )
    for number in range(DAYS):
        day = first_day + number * _DAY
        weekday = (day // _DAY + 3) % 7
        share = contract.weekend if weekday >= 5 else contract.busy
        for person in range(contract.people):
            if chance.random() > share:
                continue
            who = _who(contract, person)
            start = day + int((chance.uniform(0, 4) if contract.nights else chance.gauss(8.5, 1.2)) * _HOUR)
            # Gone for the day before the next begins, so that uses of one seat never overlap.
            last = day + _DAY if contract.nights else day + 20 * _HOUR
            while start < last:
                end = min(start + int(max(0.2, chance.gauss(contract.hours, contract.hours / 3)) * _HOUR), last)
                yield _event(contract, taken, start, who)
                yield _event(contract, given_back, end, who)
                start = end + int(chance.uniform(0.2, 1.0) * _HOUR)
                if not contract.nights and chance.random() < 0.35:
                    break
        for _ in range(chance.randint(0, 2) if contract.limit and contract.busy * contract.people > contract.limit else 0):
            yield _event(contract, denied, day + int(chance.gauss(11, 1) * _HOUR), _who(contract, contract.people))


def _who(contract: Contract, person: int) -> dict[str, Any]:
    prefix = contract.customer.split()[0].lower()
    who: dict[str, Any] = {
        "seat_id": f"{prefix}-{person:03d}",
        "user": f"user{person:03d}@{prefix}.example",
        "host": f"{prefix}-{person:03d}",
        "ip": f"198.51.100.{person % 250 + 1}",
        "credential": "user",
    }
    if contract.element != "seats":
        who["element"] = contract.element
    return who


def _event(contract: Contract, kind: str, time: int, data: dict[str, Any]) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": seatmark_id("demo", contract.entitlement, contract.element, kind, time, data.get("seat_id")),
        "source": "/license-servers/demo",
        "type": kind,
        "subject": contract.entitlement,
        "time": time,
        "data": {"customer": contract.customer, "product": contract.product, **data},
    }


async def run(settings: Settings, port: int, broker_port: int, clickhouse_port: int, stop: asyncio.Event) -> None:
    """Run the demo until `stop` is set, or just once where there is no terminal.

    Raises what `seatmark.embedded.Stack` and `seatmark.produce` raise.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="seatmark-demo-") as directory:
        plan = StackPlan(
            data_dir=Path(directory),
            port=port_or_free_one(port),
            broker_port=port_or_free_one(broker_port),
            clickhouse_port=port_or_free_one(clickhouse_port),
            partitions=settings.partitions,
        )
        say("starting the embedded stack: broker, worker, sink, ClickHouse, web ...")
        async with Stack(plan, say) as stack:
            events = made_up_events(int(time.time() * 1000))
            await _send(plan, [orjson.dumps(event) for event in events])
            say(
                f"{len(events):,} events of {len(CONTRACTS)} elements went through Kafka, the worker and ClickHouse; "
                f"{time.monotonic() - started:.0f} s since the start. What the API says of them:\n"
            )
            await asyncio.to_thread(_show, plan.url)
            say(f"\nIn a browser: {plan.url}   that one: {plan.url}/entitlements/{SHOWN[0]}   API: {plan.url}/docs")
            say("There is no sign-in (SEATMARK_AUTH=off): it can be reached from this machine only.")
            if sys.stdin.isatty() and sys.stdout.isatty():
                say("It keeps serving; Ctrl-C stops it.")
                await stack.run(stop)


async def _send(plan: StackPlan, lines: list[bytes]) -> None:
    with progress() as bar:
        sending = bar.add_task("sending", total=len(lines))
        produced = await produce_lines(
            lines, brokers=plan.brokers, prefix="", on_progress=lambda done: bar.update(sending, completed=done)
        )
        applying = bar.add_task("applying and storing", total=len(lines))
        await wait_until_stored(
            produced.ends,
            brokers=plan.brokers,
            prefix="",
            timeout=_WAIT_SECONDS,
            on_progress=lambda left: bar.update(applying, completed=len(lines) - left),
        )


def _show(url: str) -> None:
    entitlement, element = SHOWN
    print_usage(get(url, f"/api/v1/entitlements/{entitlement}/usage", {"element": element, "days": DAYS}))
    print()
    print_overdrafts(get(url, "/api/v1/overdrafts", {"now": True}))
