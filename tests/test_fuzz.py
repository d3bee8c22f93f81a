"""Whatever is on the topic: nothing crashes, each record is applied, a repeat, or a dead letter with a reason.

    make test ARGS="tests/test_fuzz.py --fuzz-inputs 1000000"

Events of all types, damaged as bytes and as JSON, go through decoding, fold, outputs and state as a worker's chunks do.
"""

import random
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest

from processors.agents import ChunkOutputs, fold_chunk
from processors.codec import encode_changes, finish_restore, restore
from processors.domain.days import Calendar
from processors.domain.ledger import Ledger
from processors.state import PartitionState, PartitionStates
from schemas.activity import decode_activity
from schemas.alerts import decode_alert
from schemas.days import decode_day, encode_day
from schemas.dead_letters import DEAD_OFFSET, DEAD_REASON, REASONS
from schemas.events import RESTATE_SOURCE, decode
from tests.miniature import Record
from tests.schemas.contract import examples
from tests.vendor import HOUR, arrivals

NOW = 1_790_000_000_000
CHUNK = 400
LOG_APPEND_TIME = 1
# Deeper than any decoder goes, and longer than any id may be.
DEEP = b"[" * 2000 + b"]" * 2000
NASTY: list[bytes] = [
    b"null", b"true", b"-1", b"0", b"1e400", b"-0.0", b"3.0", b"1.5", b"9223372036854775808", b"1" * 400, b"NaN", b"Infinity",
    b'""', b'"\\u0000"', b'"\\ud800"', b'"' + b"x" * 1100 + b'"', b'"9999-12-31T23:59:60Z"', b'"0001-01-01T00:00:00Z"',
    b'"2026-02-30T00:00:00Z"', b"[]", b"{}", b'[{"seat_id":"a"},{"seat_id":"a"}]', b'{"a":{"limit":0}}', DEEP, b"\xff", b"",
]  # fmt: skip


def originals(chance: random.Random) -> list[dict[str, Any]]:
    """Events that are as they should be, of all types, forged corrections among them."""
    found = arrivals(chance.randrange(2**32), events=2000, entitlements=40, until_ms=NOW - HOUR)
    found += [example.document for example in examples("entitlement-events") for _ in range(20)]
    for number in range(100):
        data: dict[str, Any] = {
            "element": chance.choice(["seats", "render", "exports"]),
            "part": chance.randrange(2),
            "parts": 2,
        }
        data["basis"] = 2**48 + chance.randrange(10**6)
        if chance.random() < 0.7:
            data["holds"] = [
                {
                    "seat_id": f"seat-{chance.randrange(8)}",
                    "quantity": chance.randrange(3),
                    "changed_at": "2026-09-20T10:00:00Z",
                }
            ]
        if chance.random() < 0.5:
            data["difference"] = chance.randrange(-50, 50)
        if chance.random() < 0.3:
            data["terms"] = {"limit": chance.choice([None, 0, 5]), "changed_at": "2026-09-20T10:00:00Z"}
        found.append({
            "specversion": "1.0", "id": f"c{number}", "source": RESTATE_SOURCE, "type": "entitlement.snapshot",
            "subject": f"ent-{chance.randrange(40):05}", "time": "2026-09-20T12:00:00Z", "data": data,
        })  # fmt: skip
    return found


def damaged(chance: random.Random, document: dict[str, Any], others: list[bytes]) -> bytes:
    """One event, whole or damaged in one to three places."""
    kind = chance.randrange(10)
    if kind < 4:
        # A new event, so that the state goes on.
        return orjson.dumps(document | {"id": f"n{chance.randrange(10**9)}"})
    if kind == 4:
        return bytes(chance.randrange(256) for _ in range(chance.randrange(60)))
    value = orjson.dumps(document | {"id": f"n{chance.randrange(10**9)}"})
    for _ in range(chance.randint(1, 3)):
        value = chance.choice(_DAMAGES)(chance, value, others)
    return value


def _another_value(chance: random.Random, value: bytes, others: list[bytes]) -> bytes:
    """What comes after some colon is something else."""
    colons = [at for at, byte in enumerate(value) if byte == ord(":")]
    if not colons:
        return value
    start = chance.choice(colons) + 1
    end = min((at for stop in (b",", b"}") if (at := value.find(stop, start)) >= 0), default=len(value))
    return value[:start] + chance.choice(NASTY) + value[end:]


def _flipped(chance: random.Random, value: bytes, others: list[bytes]) -> bytes:
    at = chance.randrange(len(value) + 1)
    return value[:at] + bytes([chance.randrange(256)]) + value[at + 1 :]


def _cut(chance: random.Random, value: bytes, others: list[bytes]) -> bytes:
    first, last = sorted(chance.randrange(len(value) + 1) for _ in range(2))
    return value[:first] + value[last:]


def _repeated(chance: random.Random, value: bytes, others: list[bytes]) -> bytes:
    """A part comes twice: a field of the same name again, for example."""
    first, last = sorted(chance.randrange(len(value) + 1) for _ in range(2))
    return value[:last] + value[first:]


def _spliced(chance: random.Random, value: bytes, others: list[bytes]) -> bytes:
    other = chance.choice(others)
    return value[: chance.randrange(len(value) + 1)] + other[chance.randrange(len(other) + 1) :]


def _of_another_type(chance: random.Random, value: bytes, others: list[bytes]) -> bytes:
    types = [
        b"seat.activated",
        b"feature.used",
        b"entitlement.changed",
        b"entitlement.snapshot",
        b"seat.expired",
        b"seat.nonsense",
    ]
    for known in types:
        value = value.replace(known, chance.choice(types))
    return value


Damage = Callable[[random.Random, bytes, list[bytes]], bytes]
_DAMAGES: list[Damage] = [_another_value, _another_value, _another_value, _flipped, _cut, _repeated, _spliced, _of_another_type]


def records(chance: random.Random, count: int) -> Iterator[Record]:
    """Records of one partition, in order."""
    documents = originals(chance)
    others = [orjson.dumps(document) for document in documents]
    value = b""
    for offset in range(count):
        document = chance.choice(documents)
        if chance.random() > 0.05:
            # Else the one before comes again.
            value = damaged(chance, document, others)
        key = chance.choice([b"", b"\xff", b"another", None]) if chance.random() < 0.02 else document["subject"].encode()
        yield Record("events", 0, offset, key, value, timestamp=NOW, timestamp_type=LOG_APPEND_TIME)


def test_each_input_is_applied_or_a_repeat_or_a_dead_letter(request: pytest.FixtureRequest) -> None:
    count: int = request.config.getoption("--fuzz-inputs")
    seed = request.config.getoption("--vendor-seed")
    print(f"seed {seed}")
    state = PartitionStates(Calendar("America/New_York"), HOUR, "one", partitions=1).of(0)
    state.begin("one")
    changelog: dict[bytes, bytes | None] = {}
    applied = dead = repeats = 0
    known: set[tuple[str, str, str]] = set()
    chunk: list[Record] = []
    for record in records(random.Random(seed), count):
        chunk.append(record)
        if len(chunk) < CHUNK and record.offset < count - 1:
            continue
        rest = chunk
        while rest:
            out = fold_chunk(state, rest, NOW)  # type: ignore[arg-type]
            taken, rest = rest[: out.taken], rest[out.taken :]
            rows, letters = outcome(out)
            assert not rows & letters
            for one in taken:
                if one.offset in letters:
                    continue
                event = decode(one.value, key=one.key, appended_at=NOW)
                identity = (event.entitlement, event.source, event.id)
                if one.offset not in rows:
                    # Nothing is dropped but what came before.
                    assert identity in known, (seed, one)
                    repeats += 1
                known.add(identity)
            applied, dead = applied + len(rows), dead + len(letters)
        changes = state.ledger.take_changes()
        for told in (*changes.days, *changes.marks, *changes.settled):
            assert decode_day(encode_day(told)) == told
        for key, value in encode_changes(changes, state.cursor):
            changelog[key] = value
        check(state)
        chunk = []
    print(f"{applied} applied, {repeats} repeats, {dead} dead letters")
    assert applied + repeats + dead == count
    assert min(applied, repeats, dead) > 0
    # What was written is what there is.
    again = Ledger(Calendar("America/New_York"), HOUR)
    for key, value in changelog.items():
        restore(again, key, value)
    finish_restore(again)
    assert again.elements == state.ledger.elements


def outcome(out: ChunkOutputs) -> tuple[set[int], set[int]]:
    """The offsets that have rows, and those that have dead letters; all that is put out can be read."""
    rows: set[int] = set()
    for _, value, _ in out.activity:
        rows |= set(decode_activity(value or b"").column("offset").to_pylist())
    for _, value, _ in out.alerts:
        decode_alert(value or b"")
    letters = set()
    for _, _, headers in out.dead_letters:
        told = dict(headers)
        assert told[DEAD_REASON].decode() in REASONS
        letters.add(int(told[DEAD_OFFSET]))
    return rows, letters


def check(state: PartitionState) -> None:
    """What is always so of each element."""
    for element in state.ledger.elements.values():
        head = element.head
        assert head.level >= 0
        if head.day is not None:
            assert head.day.min <= head.level <= head.day.max
