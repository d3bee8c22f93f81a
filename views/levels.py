"""Adds up how long each level was held, day by day, for the overdraft report: the table `levels_held`.

Whatever is missing or outdated there, the report reads from the raw log itself, with the same query. So a pass may end
anywhere, run twice at once, or not run at all.
"""

import datetime
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa
from clickhouse_connect.driver.client import Client

from views.raw_log import Key, RawLog
from views.reporting import ReportingDays

# As many as the report's 30 days, and one more: the report of just before midnight.
_DAYS = 31
_BATCH_ELEMENTS = 100
_ONE_DAY = datetime.timedelta(days=1)
_MS = pa.timestamp("ms", tz="UTC")

_COLUMNS: dict[str, pa.DataType] = {
    "entitlement": pa.string(),
    "element": pa.string(),
    "day": pa.date32(),
    "version": pa.uint64(),
    "generation": pa.string(),
    "first_at": _MS,
    "last_at": _MS,
    "last_level": pa.int64(),
    "last_limit": pa.int64(),
    "over_unit_ms": pa.decimal128(38, 0),
    "levels": pa.list_(pa.int64()),
    "held_ms": pa.list_(pa.int64()),
}


def add_up_levels(log: RawLog, days: ReportingDays, now_ms: int, owns: Callable[[str], bool] = lambda entitlement: True) -> int:
    """One pass over the days that are not added up yet; how many were. owns: whether this process looks after an entitlement.

    Raises what the log raises.
    """
    today = days.date_at(now_ms)
    first = today - (_DAYS - 1) * _ONE_DAY
    # The order matters. A day row is stored after the raw rows that it tells of, but for restatement: that writes day rows
    # first, then raw rows, and then that it is done. So: the day rows, whether anything is to be restated, the raw rows.
    # What is read of the raw log is then at least as new as the day row; and where it is newer, the day row is soon
    # another.
    rows = [row for row in log.days_to_add_up(first, today) if owns(row["entitlement"])]
    marked = set(log.marked_elements(today))
    of_element: dict[Key, list[dict[str, Any]]] = {}
    for row in rows:
        key = (row["entitlement"], row["element"])
        if key not in marked:
            of_element.setdefault(key, []).append(row)
    bounds = {datetime.date.fromisoformat(day.day): day for day in days.between(first, today)}
    keys = list(of_element)
    count = 0
    for at in range(0, len(keys), _BATCH_ELEMENTS):
        batch = keys[at : at + _BATCH_ELEMENTS]
        wanted = [row for key in batch for row in of_element[key] if row["day"] in bounds]
        if not wanted:
            continue
        since = min(bounds[row["day"]].start for row in wanted)
        found = log.levels_of_days(batch, [day.start for day in bounds.values()], since, bounds[today].end - 1)
        log.insert("levels_held", _table({**row, **_held(found, row, bounds[row["day"]].start)} for row in wanted))
        count += len(wanted)
    return count


def begin_generation(client: Client) -> None:
    """Let nothing count that was added up until now."""
    now = datetime.datetime.now(datetime.UTC)
    client.insert_arrow(
        "settings",
        pa.table(
            {"name": ["generation"], "value": [f"{now.isoformat()} {uuid.uuid4().hex}"], "written_at": pa.array([now], _MS)}
        ),
    )


def _held(found: dict[tuple[str, str, int], dict[str, Any]], row: dict[str, Any], start_ms: int) -> dict[str, Any]:
    nothing: dict[str, Any] = {
        "first_at": start_ms, "last_at": start_ms, "last_level": 0, "last_limit": None, "over_unit_ms": 0, "levels": [],
        "held_ms": [],
    }  # fmt: skip
    return found.get((row["entitlement"], row["element"], start_ms), nothing)


def _table(rows: Iterable[dict[str, Any]]) -> pa.Table:
    rows = list(rows)
    return pa.table({name: pa.array([row[name] for row in rows], type) for name, type in _COLUMNS.items()})
