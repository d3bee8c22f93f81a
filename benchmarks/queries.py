"""How long the questions of the web take in the engine, by the number of raw events, beside a scan of the raw log for the same answer.

    python -m benchmarks.queries [--events 2000000] [--repeat 20]

The events are made inside ClickHouse: entitlements with 10,000 events each, spread over the last 365 days, a tenth of them over
their limit again and again. Day rows are added up from the events. Prints JSON; seconds are wall time of one query in this process,
without HTTP.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

from clickhouse_connect.driver.client import Client

from views.migrate import migrate
from views.store import Store, connect

EVENTS_EACH = 10_000
DAYS = 365

_ACTIVITY = """
INSERT INTO activity
SELECT
    concat('ent-', leftPad(toString(number % {entitlements:UInt32}), 6, '0')) AS entitlement,
    'seats' AS element,
    {start:DateTime64(3, 'UTC')} + toIntervalMillisecond(
        intDiv(number, {entitlements:UInt32}) * {gap:UInt32} + cityHash64(number) % {gap:UInt32}
    ) AS time,
    '/license-servers/eu-1' AS source,
    toString(generateUUIDv4(number)) AS id,
    if(step < 20, 'seat.activated', 'seat.deactivated') AS type,
    concat('cus-', toString(number % {entitlements:UInt32} % 1000)) AS customer,
    'cad-pro' AS product,
    concat('wks-', toString(step % 20)) AS seat_id,
    concat('user', toString(step % 20), '@example.com') AS user,
    '203.0.113.7' AS ip, seat_id AS host, 'user' AS credential, NULL AS quantity, NULL AS lease_expires_at, NULL AS reason,
    'incarnation' AS incarnation, 1 AS epoch, 0 AS partition, number AS offset, time AS appended_at, time AS t, 1 AS version,
    false AS late, if(step < 20, 1, -1) AS delta, if(step < 20, step + 1, 39 - step) AS level,
    if(number % {entitlements:UInt32} % 10 = 0, 15, 40) AS limit, limit + 10 AS hard_limit, true AS terms_known,
    if(level > limit, 'overdraft', if(level = limit, 'at_limit', 'within')) AS state,
    concat('{"specversion":"1.0","id":"', id, '","source":"/license-servers/eu-1","type":"', type, '"}') AS event
FROM (SELECT number, intDiv(number, {entitlements:UInt32}) % 40 AS step FROM numbers({first:UInt64}, {count:UInt64}))
SETTINGS max_insert_threads = 2, max_threads = 2
"""

_DAYS = """
INSERT INTO days (entitlement, element, day, timezone, day_start, day_end, customer, product, name, kind, opening, closing, `min`,
    `max`, `limit`, hard_limit, terms_known, overdraft_ms, unit_ms, peak_overage, activations, deactivations, refreshes, denials,
    units_used, as_of, closing_limit, closing_hard_limit, closing_terms_known, state, entered_at, peak, position)
SELECT
    entitlement, element, toDate32(time) AS day, 'UTC', toStartOfDay(any(time)) AS day_start, day_start + INTERVAL 1 DAY,
    any(customer), any(product), NULL, 'pool', argMin(level - delta, offset), argMax(level, offset) AS closing, min(level),
    max(level), any(limit), any(hard_limit), true, greatest(0, max(level) - any(limit)) * 3600000, sum(level) * 1000000,
    greatest(0, max(level) - any(limit)), countIf(delta > 0), countIf(delta < 0), 0, 0, 0, max(t), any(limit), any(hard_limit),
    true, argMax(state, offset) AS closing_state, if(closing_state = 'overdraft', max(t), NULL), if(closing_state = 'overdraft', closing, NULL), max(offset)
FROM activity
GROUP BY entitlement, element, day
"""


def fill(client: Client, events: int) -> int:
    """Make raw events and the day rows that go with them; how many entitlements they have."""
    entitlements = max(1, events // EVENTS_EACH)
    gap = DAYS * 86_400_000 // EVENTS_EACH
    start = time.time() - DAYS * 86_400
    step = 5_000_000
    for first in range(0, events, step):
        parameters = {"entitlements": entitlements, "gap": gap, "first": first, "count": min(step, events - first),
                      "start": time.strftime("%Y-%m-%d %H:%M:%S.000", time.gmtime(start))}  # fmt: skip
        client.command(_ACTIVITY, parameters=parameters)
    client.command(_DAYS)
    for table in ("activity", "days", "elements"):
        client.command(f"OPTIMIZE TABLE {table} FINAL")
    return entitlements
