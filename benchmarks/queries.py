"""How long the web's questions take in the engine, by the number of raw events, beside a scan of the raw log.

    python -m benchmarks.queries [--events 2000000] [--repeat 15] [--keep DIRECTORY]

The events are made inside ClickHouse: entitlements with 10,000 events each over the last 365 days, a tenth of them above
their limit again and again. Day rows are added up from the events. Prints JSON: wall seconds and this process's CPU seconds of
one answer (all the queries that it takes), median and 95th percentile, without HTTP. The report is asked for twice: with the
levels read from the raw log, and with those that the sink's process adds up beforehand. The scan is the same 30 days asked of
the raw log without a sort key. What is asked of one entitlement is asked of another one each time: ClickHouse remembers
which parts of a table an earlier question found nothing in.

`pages`: seconds that a page took over loopback, by a web in a process of its own: the first one that it is asked for, and the
median of the next ones.
"""

import argparse
import contextlib
import gc
import itertools
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from clickhouse_connect.driver.client import Client

from views.levels import add_up_levels
from views.migrate import migrate
from views.raw_log import RawLog
from views.store import Store, chdb_dsn, connect
from views.tokens import EVERYTHING
from views.web.reading import ElementFilter, EventFilter, Reader, at_once

EVENTS_EACH = 10_000
DAYS = 365
_INSERT_ROWS = 5_000_000

_ACTIVITY = """
INSERT INTO activity
SELECT
    concat('ent-', leftPad(toString(which), 6, '0')) AS entitlement,
    'seats' AS element,
    {start:DateTime64(3, 'UTC')} + toIntervalMillisecond(
        intDiv(number, {entitlements:UInt32}) * {gap:UInt32} + cityHash64(number) % {gap:UInt32}
    ) AS time,
    '/license-servers/eu-1' AS source,
    toString(generateUUIDv4(number)) AS id,
    if(step < 20, 'seat.activated', 'seat.deactivated') AS type,
    concat('cus-', toString(which % 1000)) AS customer,
    'cad-pro' AS product,
    concat('wks-', toString(step % 20)) AS seat_id,
    concat('user', toString(step % 20), '@example.com') AS user,
    '203.0.113.7' AS ip, seat_id AS host, 'user' AS credential, NULL AS quantity, NULL AS lease_expires_at, NULL AS reason,
    'incarnation' AS incarnation, 1 AS epoch, 0 AS partition, number AS offset, time AS appended_at, time AS t, 1 AS version,
    false AS late, if(step < 20, 1, -1) AS delta, if(step < 20, step + 1, 39 - step) AS level,
    if(which % 10 = 0, 15, 40) AS limit, limit + 10 AS hard_limit, true AS terms_known,
    if(level > limit, 'overdraft', if(level = limit, 'at_limit', 'within')) AS state,
    concat('{"specversion":"1.0","id":"', id, '","source":"/license-servers/eu-1","type":"', type, '"}') AS event
FROM
(
    SELECT number, number % {entitlements:UInt32} AS which, (intDiv(number, {entitlements:UInt32}) + which * 7) % 40 AS step
    FROM numbers({first:UInt64}, {count:UInt64})
)
"""

_DAYS = """
INSERT INTO days
(
    entitlement, element, day, timezone, day_start, day_end, customer, product, name, kind, opening, closing, `min`, `max`,
    `limit`, hard_limit, terms_known, overdraft_ms, unit_ms, peak_overage, activations, deactivations, refreshes, denials,
    units_used, as_of, closing_limit, closing_hard_limit, closing_terms_known, state, entered_at, peak, position
)
SELECT
    entitlement, element, toDate32(time) AS day, 'UTC', toStartOfDay(any(time)) AS day_start, day_start + INTERVAL 1 DAY,
    any(customer), any(product), NULL, 'pool', argMin(level - delta, offset), argMax(level, offset) AS closing, min(level),
    max(level), any(limit), any(hard_limit), true, greatest(0, max(level) - any(limit)) * 3600000, sum(level) * 1000000,
    greatest(0, max(level) - any(limit)), countIf(delta > 0), countIf(delta < 0), 0, 0, 0, max(t), any(limit),
    any(hard_limit), true, argMax(state, offset) AS closing_state, if(closing_state = 'overdraft', max(t), NULL),
    if(closing_state = 'overdraft', closing, NULL), max(offset)
FROM activity
GROUP BY entitlement, element, day
"""

_WEB = """
import asyncio, sys
from views.store import Store
from views.web.app import create_app, serve
asyncio.run(serve(create_app(Store(sys.argv[1]), sign_in=False), "127.0.0.1", int(sys.argv[2]), asyncio.Event()))
"""

_SCAN = """
SELECT toDate(t), min(level), max(level), countIf(delta > 0), countIf(delta < 0)
FROM activity
WHERE toString(entitlement) = {entitlement:String} AND t >= now() - INTERVAL 30 DAY
GROUP BY 1
ORDER BY 1
SETTINGS use_primary_key = 0, use_partition_pruning = 0, use_skip_indexes = 0
"""


def fill(client: Client, events: int) -> None:
    """Make raw events, and the day rows that go with them."""
    made = {
        "entitlements": max(1, events // EVENTS_EACH),
        "gap": DAYS * 86_400_000 // EVENTS_EACH,
        "start": time.strftime("%Y-%m-%d %H:%M:%S.000", time.gmtime(time.time() - DAYS * 86_400)),
    }
    for first in range(0, events, _INSERT_ROWS):
        client.command(_ACTIVITY, parameters={**made, "first": first, "count": min(_INSERT_ROWS, events - first)})
    client.command(_DAYS)
    for table in ("activity", "days", "elements"):
        client.command(f"OPTIMIZE TABLE {table} FINAL")


def answers(store: Store, client: Client, events: int) -> dict[str, Callable[[], Any]]:
    """What is asked, by name. Each is a request of its own, as the web makes it."""
    names = itertools.cycle(f"ent-{number:06}" for number in range(max(1, events // EVENTS_EACH)))
    now = int(time.time() * 1000)

    def read() -> Reader:
        return Reader(store, EVERYTHING, int(time.time() * 1000))

    half_a_year_ago = EventFilter(to_ms=now - 180 * 86_400_000)
    return {
        "usage_30_days": lambda: read().usage(next(names), "seats", 30, None, None),
        "history_first_page": lambda: read().history(next(names), EventFilter(), 50, None),
        "history_deep_page": lambda: read().history(next(names), half_a_year_ago, 50, None),
        "overdraft_report_without_what_was_added_up": lambda: read().overdrafts(),
        "adding_up": lambda: add_up_levels(RawLog(client, "entitlement-events"), store.reporting_days(), now),
        "overdraft_report": lambda: read().overdrafts(),
        "overview": lambda: at_once(
            lambda: read().elements(ElementFilter(), 50, None), lambda: read().totals(ElementFilter()), read().names
        ),
        "scan_of_the_raw_log": lambda: client.query(_SCAN, parameters={"entitlement": next(names)}),
    }


def measure(events: int, repeat: int, keep: Path | None) -> dict[str, Any]:
    """Fill a store and ask; per question the median and the 95th percentile of wall and of CPU seconds.

    keep: a directory for the store, else one that is deleted afterwards. What an earlier run left there is not made again.
    """
    with contextlib.ExitStack() as stack:
        directory = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="seatmark-queries-")))
        dsn = chdb_dsn(directory)
        migrate(dsn, "UTC")
        client, store = connect(dsn), Store(dsn)
        started = time.perf_counter()
        if client.command("SELECT count() FROM days") == 0:
            fill(client, events)
        client.command("TRUNCATE TABLE levels_held")
        filled = time.perf_counter() - started
        questions = {}
        # As the web does at its start.
        gc.freeze()
        for name, ask in answers(store, client, events).items():
            if name == "adding_up":
                started = time.perf_counter()
                ask()
                questions[name] = {"once": round(time.perf_counter() - started, 4)}
                continue
            ask()
            wall, cpu = [], []
            for _ in range(repeat):
                wall_started, cpu_started = time.perf_counter(), time.process_time()
                ask()
                wall.append(time.perf_counter() - wall_started)
                cpu.append(time.process_time() - cpu_started)
            questions[name] = {
                "median": round(statistics.median(wall), 4),
                "p95": round(statistics.quantiles(wall, n=20)[-1], 4),
                "cpu_median": round(statistics.median(cpu), 4),
                "cpu_p95": round(statistics.quantiles(cpu, n=20)[-1], 4),
            }
        store.close()
        client.close()
        opened = pages(dsn, f"ent-{max(1, events // EVENTS_EACH) // 2:06}", repeat)
    return {
        "events": events, "entitlements": events // EVENTS_EACH, "fill_seconds": round(filled, 1), "questions": questions,
        "pages": opened,
    }  # fmt: skip


def pages(dsn: str, entitlement: str, repeat: int) -> dict[str, Any]:
    """Seconds for each page over loopback, the first and the median of the next, each of a web that has just started."""
    opened = {}
    for path in ("/", f"/entitlements/{entitlement}", "/overdrafts"):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        web = subprocess.Popen([sys.executable, "-c", _WEB, dsn, str(port)])
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                while not _listens(port):
                    time.sleep(0.05)
                seconds = [client.get(path).raise_for_status().elapsed.total_seconds() for _ in range(repeat + 1)]
        finally:
            web.terminate()
            web.wait()
        opened[path] = {"first": round(seconds[0], 4), "median": round(statistics.median(seconds[1:]), 4)}
    return opened


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--keep", type=Path, help="a directory for the store, to ask it again; it must be there")
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.events, arguments.repeat, arguments.keep), indent=2))


if __name__ == "__main__":
    main()
