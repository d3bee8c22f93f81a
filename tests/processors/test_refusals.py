"""When a worker stops because too much is refused: by hand, and as a function of the log however it is cut and restarted."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from processors.agents import ChunkProcessor, fold_chunk
from processors.codec import CURSOR_KEY, STATE_VERSION, Cursor, encode_cursor
from processors.domain.days import Calendar
from processors.refusals import LEAST_REFUSED, NO_LIMIT, RefusalLimit, Refusals, TooManyRefused
from processors.state import PartitionState, PartitionStates
from processors.topics import Topics

HOUR = 3_600_000
# 2026-11-24T02:00:00Z.
TWO = 1_795_485_600_000
HALF = RefusalLimit(count=0, percent=50, window_ms=HOUR)
TEN_THOUSAND = RefusalLimit(count=10_000, percent=100, window_ms=HOUR)


def refusals_of(*spans: tuple[int, int, int], limit: RefusalLimit = HALF) -> Refusals:
    """Counts after (time of each, good, refused) records."""
    refusals = Refusals()
    offset = 0
    for timestamp, good, refused in spans:
        for number in range(good + refused):
            refusals.count(timestamp, limit.window_ms)
            if number >= good:
                refusals.refuse("not_json", offset)
            offset += 1
    return refusals


@pytest.mark.parametrize(
    ("limit", "good", "refused", "stops"),
    [
        # A share counts only of more than 100 refused records.
        (HALF, 0, 1, False),
        (HALF, 0, 100, False),
        (HALF, 0, 101, True),
        # More than a half, not a half.
        (HALF, 101, 101, False),
        (HALF, 100, 101, True),
        (HALF, 1_000_000, 10_000, False),
        (RefusalLimit(0, 30, HOUR), 700, 300, False),
        (RefusalLimit(0, 30, HOUR), 699, 301, True),
        # Never by share.
        (RefusalLimit(0, 100, HOUR), 0, 50_000, False),
        # More than so many, whatever the share, and however few they may be.
        (TEN_THOUSAND, 1_000_000, 10_000, False),
        (TEN_THOUSAND, 1_000_000, 10_001, True),
        (RefusalLimit(5, 100, HOUR), 0, 5, False),
        (RefusalLimit(5, 100, HOUR), 0, 6, True),
        # Either of them.
        (RefusalLimit(200, 50, HOUR), 1000, 201, True),
        (RefusalLimit(200, 50, HOUR), 0, 101, True),
    ],
)
def test_a_limit_is_crossed_by_more_than_it_says(limit: RefusalLimit, good: int, refused: int, stops: bool) -> None:
    assert (limit.used(refusals_of((TWO, good, refused), limit=limit)) > 1) is stops


def test_how_much_is_used_up_is_a_number_to_be_warned_by() -> None:
    assert HALF.used(Refusals()) == 0
    assert HALF.used(refusals_of((TWO, 0, 50))) == 0.5
    # 200 of 1000 are two fifths of a half.
    assert HALF.used(refusals_of((TWO, 800, 200))) == 0.4
    assert TEN_THOUSAND.used(refusals_of((TWO, 0, 2500))) == 0.25


def test_the_span_before_counts_and_what_is_older_does_not() -> None:
    an_hour, two_hours = TWO + HOUR, TWO + 2 * HOUR
    assert HALF.used(refusals_of((TWO + HOUR - 1, 0, 60), (an_hour, 0, 40))) == 1
    assert HALF.used(refusals_of((TWO + HOUR - 1, 0, 60), (an_hour, 0, 41))) > 1
    # In the third hour the first is forgotten, and after a quiet hour so is the one before it.
    assert HALF.used(refusals_of((TWO, 0, 60), (an_hour, 0, 30), (two_hours, 0, 30))) == 0.6
    assert HALF.used(refusals_of((TWO, 0, 100), (two_hours, 0, 1))) == 0.01


def test_a_burst_at_the_beginning_of_a_busy_span_is_seen_beside_the_span_before() -> None:
    """A big vendor's hundred thousand good records an hour, and a customer's thousand bad ones at the stroke of the hour."""
    assert HALF.used(refusals_of((TWO, 100_000, 0), (TWO + HOUR, 0, 1_000))) < 0.1


def test_a_bad_record_a_day_never_adds_up() -> None:
    assert HALF.used(refusals_of(*((TWO + day * 24 * HOUR, 0, 1) for day in range(500)))) == 0.01


def test_a_record_that_says_to_be_older_counts_in_the_running_span() -> None:
    refusals = refusals_of((TWO + HOUR, 10, 0), (TWO, 0, 5), (-1, 0, 5))
    assert (refusals.start, refusals.records, refusals.records_before) == (TWO + HOUR, 20, 0)


def test_another_window_goes_on_with_the_counts_there_are() -> None:
    refusals = refusals_of((TWO, 0, 60))
    refusals.count(TWO + 30 * 60_000, 2 * HOUR)
    assert (refusals.start, refusals.records) == (TWO, 61)
    # 02:25 is in the ten minutes from 02:20 on; those before are from 02:10 on, and what began at 02:00 is older.
    refusals.count(TWO + 25 * 60_000, 600_000)
    assert (refusals.start, refusals.records, refusals.records_before) == (TWO + 20 * 60_000, 1, 0)


def test_the_message_says_what_happened_and_what_to_do() -> None:
    refusals = Refusals()
    for offset in range(40):
        refusals.count(TWO + 5 * 60_000, HOUR)
        refusals.refuse("not_json", offset)
    for offset in range(40, 140):
        refusals.count(TWO + HOUR + 5 * 60_000, HOUR)
        if offset >= 60:
            refusals.refuse("invalid_data" if offset < 130 else "not_json", offset)
    told = str(HALF.explain(refusals, "vendor-entitlement-events", 3, offset=139, applied=99))
    assert told.startswith(
        "vendor-entitlement-events[3]: 120 of the 140 records that came since 2026-11-24T02:00:00.000Z were refused, which is "
        "more than SEATMARK_DEAD_LETTER_PERCENT=50 allows: invalid_data 70 times (last at offset 129), not_json 50 times (last "
        "at offset 139). The worker stopped before the record at offset 139."
    )
    assert "no record from offset 100 on is applied or sent to vendor-entitlement-events-dlq" in told
    assert "SEATMARK_DEAD_LETTER_WINDOW=0s" in told
    told = str(RefusalLimit(100, 50, HOUR).explain(refusals, "t", 3, offset=139, applied=99))
    assert "more than SEATMARK_DEAD_LETTER_COUNT=100 allows" in told


# --- In a chunk


@dataclass
class Source:
    """A record of entitlement-events. Its entitlement is on the only partition there is."""

    offset: int
    value: bytes
    timestamp: int = TWO
    timestamp_type: int = 1
    key: bytes = b"acme"
    headers: tuple[tuple[str, bytes], ...] = ()
    topic: str = "entitlement-events"
    partition: int = 0


def good(offset: int, timestamp: int = TWO, timestamp_type: int = 1) -> Source:
    event = {"specversion": "1.0", "id": f"e{offset}", "source": "/s", "type": "feature.used", "subject": "acme",
             "time": "2026-11-24T01:00:00Z", "data": {"element": "render", "quantity": 1}}  # fmt: skip
    return Source(offset, orjson.dumps(event), timestamp, timestamp_type)


def bad(offset: int, timestamp: int = TWO, timestamp_type: int = 1) -> Source:
    return Source(offset, b"{", timestamp, timestamp_type)


def fresh_state() -> PartitionState:
    state = PartitionStates(Calendar("UTC"), HOUR, "topic-1", partitions=1).of(0)
    state.begin("topic-1")
    return state


def started_again(state: PartitionState) -> PartitionState:
    """What a worker finds that starts now: the cursor on the changelog."""

    @dataclass
    class Stored:
        key: bytes
        value: bytes | None

    states = PartitionStates(Calendar("UTC"), HOUR, "topic-1", partitions=1)
    states.restore(0, [Stored(*encode_cursor(state.cursor))])
    states.restored()
    assert states.resume_offset(0, None) == state.cursor.offset + 1
    recovered = states.of(0)
    recovered.begin("topic-1")
    return recovered


def test_a_chunk_that_crosses_the_limit_stops_at_the_record_that_does() -> None:
    state = fresh_state()
    assert len(fold_chunk(state, [bad(offset) for offset in range(60)], TWO, HALF).dead_letters) == 60
    with pytest.raises(TooManyRefused, match=r"101 of the 111 records .* before the record at offset 110") as stopped:
        fold_chunk(state, [*map(good, range(60, 70)), *map(bad, range(70, 200))], TWO, HALF)
    assert "no record from offset 60 on is applied" in str(stopped.value)
    assert state.cursor.offset == 59


def test_repeated_records_that_the_cursor_covers_do_not_count_again() -> None:
    state = fresh_state()
    fold_chunk(state, [bad(offset) for offset in range(100)], TWO, HALF)
    fold_chunk(state, [bad(offset) for offset in range(100)], TWO, HALF)
    assert state.cursor.refusals.records == LEAST_REFUSED


def test_a_worker_that_is_started_again_and_again_lets_nothing_pass() -> None:
    """Its fetches may be as small as one record."""
    state = fresh_state()
    backlog = [bad(offset) for offset in range(500)]
    with pytest.raises(TooManyRefused):
        fold_chunk(state, backlog, TWO, HALF)
    state = fresh_state()
    for _ in range(5):
        state = started_again(state)
        for record in backlog[state.cursor.offset + 1 : 100]:
            fold_chunk(state, [record], TWO + 5 * HOUR, HALF)
        with pytest.raises(TooManyRefused, match="before the record at offset 100"):
            fold_chunk(state, [backlog[100]], TWO + 5 * HOUR, HALF)
        assert state.cursor.offset == 99


def test_without_a_limit_everything_passes_and_what_passed_is_forgotten() -> None:
    state = fresh_state()
    fold_chunk(state, [bad(offset) for offset in range(100)], TWO, HALF)
    assert len(fold_chunk(state, [bad(offset) for offset in range(100, 400)], TWO, NO_LIMIT).dead_letters) == 300
    assert state.cursor.refusals == Refusals()
    # The limit is on again, and one more bad record does not stop the worker again.
    fold_chunk(state, [bad(400)], TWO, HALF)
    assert HALF.used(state.cursor.refusals) == 0.01


def test_a_producers_clock_that_is_far_ahead_does_not_keep_a_span_open() -> None:
    state = fresh_state()
    fold_chunk(state, [good(0, TWO + 900 * HOUR, timestamp_type=0), good(1, TWO, timestamp_type=0)], TWO + HOUR, HALF)
    assert (state.cursor.refusals.start, state.cursor.refusals.records) == (TWO + HOUR, 2)


def test_a_new_incarnation_of_the_topic_begins_with_no_counts() -> None:
    state = fresh_state()
    fold_chunk(state, [bad(offset) for offset in range(100)], TWO, HALF)
    state.begin("topic-2")
    assert state.cursor.refusals == Refusals()


def test_state_from_before_there_was_a_limit_is_read() -> None:
    old = msgspec.msgpack.encode((STATE_VERSION, "topic-1", 1, 41, "UTC"))

    @dataclass
    class Stored:
        key: bytes
        value: bytes

    states = PartitionStates(Calendar("UTC"), HOUR, "topic-1", partitions=1)
    states.restore(0, [Stored(CURSOR_KEY, old)])
    assert states.of(0).cursor == Cursor(STATE_VERSION, "topic-1", 1, 41, "UTC")


class Brokers:
    """Takes what a `ChunkProcessor` writes: the producer of outputs, and the changelog."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.cursors: list[int] = []

    def create_batch(self) -> Any:
        records: list[Any] = []
        return SimpleNamespace(append=lambda **record: records.append(record) or True, record_count=lambda: len(records))

    async def send_batch(self, batch: Any, topic: str, partition: int) -> Any:
        self.sent += [topic] * batch.record_count()
        acknowledged = asyncio.get_running_loop().create_future()
        acknowledged.set_result(None)
        return acknowledged

    async def write(self, partition: int, records: Any) -> None:
        self.cursors += [msgspec.msgpack.decode(value)[3] for key, value in records if key == CURSOR_KEY]


async def test_of_the_chunk_that_crosses_the_limit_nothing_is_put_out() -> None:
    state, brokers = fresh_state(), Brokers()
    processor = ChunkProcessor(brokers, brokers, Topics(), "topic-1", HALF)  # type: ignore[arg-type]
    await processor.process(state, [bad(offset) for offset in range(80)])
    assert (brokers.sent, brokers.cursors) == (["entitlement-events-dlq"] * 80, [79])
    assert REGISTRY.get_sample_value("seatmark_dead_letter_limit_used_ratio", {"partition": "0"}) == 0.8
    with pytest.raises(TooManyRefused):
        await processor.process(state, [good(80), *map(bad, range(81, 200))])
    assert (len(brokers.sent), brokers.cursors, state.written) == (80, [79], 79)


LIMIT = RefusalLimit(count=12, percent=60, window_ms=100)


@given(
    log=st.lists(st.tuples(st.booleans(), st.sampled_from([0, 0, 0, 1, 7, 40, 101, 250])), max_size=60),
    cuts=st.lists(st.integers(1, 9), min_size=1),
    restarts=st.lists(st.booleans(), min_size=1),
)
def test_where_a_worker_stops_is_a_function_of_the_log(
    log: list[tuple[bool, int]], cuts: list[int], restarts: list[bool]
) -> None:
    """Not of chunks and restarts; and it is where counting it all over again, for each record, says so."""
    records, timestamp = [], TWO
    for offset, (is_bad, pause) in enumerate(log):
        timestamp += pause
        records.append((bad if is_bad else good)(offset, timestamp))

    expected = None
    for at, record in enumerate(records):
        span = record.timestamp // LIMIT.window_ms
        counted = [earlier for earlier in records[: at + 1] if earlier.timestamp // LIMIT.window_ms >= span - 1]
        if record.value == b"{" and sum(earlier.value == b"{" for earlier in counted) > LIMIT.count:
            expected = at
            break

    state, stopped, at, turn = fresh_state(), None, 0, 0
    state_before = state
    while at < len(records) and stopped is None:
        chunk = records[at : at + cuts[turn % len(cuts)]]
        try:
            fold_chunk(state, chunk, timestamp, LIMIT)
            at += len(chunk)
        except TooManyRefused:
            if len(chunk) == 1:
                stopped = at
            # What is on the changelog has nothing of this chunk. The next try is smaller.
            state, cuts = started_again(state_before), [1]
        if restarts[turn % len(restarts)]:
            state = started_again(state)
        state_before = started_again(state)
        turn += 1
    assert stopped == expected
