"""Takes dead letters from their topic, and sends those again that are valid now."""

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from contextlib import aclosing, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal

from aiokafka import AIOKafkaConsumer, TopicPartition

from processors.brokers import Brokers
from processors.topics import Topics
from schemas.dead_letters import DEAD_DETAIL, DEAD_OFFSET, DEAD_PARTITION, DEAD_REASON, DEAD_TOPIC
from schemas.errors import Explained
from schemas.events import Event, Refused, decode
from seatmark.produce import end_offsets, open_sender, partitions_of

_OUR_HEADERS = {DEAD_REASON, DEAD_DETAIL, DEAD_TOPIC, DEAD_PARTITION, DEAD_OFFSET}
_FETCH_WAIT_MS = 200
# Details quote what they found, so that there can be as many as letters.
_KEPT_DETAILS = 1_000
OTHER_DETAILS = "(other details)"


class NoDeadLetters(Explained):
    """There is no topic of dead letters."""


@dataclass
class Replayed:
    """What became of the letters that were asked for.

    valid: how many are valid now, and were sent if it was no dry run. repeats: how many have the bytes of one of these; a
    worker that crashed writes its letters twice. refused: how many are still no valid event, by reason and detail.
    complete: whether all letters were looked at, and `limit` did not come first.
    ends: by partition of `entitlement-events`, the offset after the last event sent.
    """

    valid: int = 0
    repeats: int = 0
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)
    complete: bool = True
    ends: dict[int, int] = field(default_factory=dict)


async def replay(
    reasons: Collection[str],
    *,
    brokers: Brokers,
    prefix: str,
    now: int,
    since: int = 0,
    limit: int | None = None,
    dry_run: bool = False,
    on_progress: Callable[[int], None] = lambda read: None,
) -> Replayed:
    """Check the dead letters with these reasons again, oldest first in each partition, and send those that are valid now.

    They are sent as they came: bytes and headers, but the subject as the key. Letters stay in their topic.
    now: against which a `time` in the future is refused. since: letters written before it (ms) are left out.
    limit: send at most this many. on_progress(read): called now and then with the number of letters read, of any reason.
    Raises NoDeadLetters. Raises aiokafka.errors.KafkaError: the broker cannot be reached, or refuses.
    """
    replayed = Replayed()
    seen: set[bytes] = set()
    async with (
        nullcontext() if dry_run else open_sender(brokers, prefix) as sender,
        aclosing(_letters(brokers, Topics(prefix).dead_letters, on_progress)) as letters,
    ):
        async for letter in letters:
            # The last one is the worker's: a header of that name may have come with the record.
            reason = dict(letter.headers).get(DEAD_REASON, b"").decode(errors="replace")
            if reason not in reasons or letter.timestamp < since:
                continue
            try:
                event = _checked(letter, reason, now)
            except Refused as refused:
                _count(replayed.refused, refused)
                continue
            digest = blake2b(letter.value, digest_size=16).digest()
            if digest in seen:
                replayed.repeats += 1
                continue
            if replayed.valid == limit:
                replayed.complete = False
                break
            seen.add(digest)
            replayed.valid += 1
            if sender is not None:
                headers = [(name, value) for name, value in letter.headers if name not in _OUR_HEADERS]
                await sender.send(event, letter.value, headers)
    if sender is not None:
        replayed.ends = sender.ends
    return replayed


def _checked(letter: Any, reason: str, now: int) -> Event:
    """The event of a letter. Raises Refused, as the worker would."""
    # Of a letter with this reason the key is what was wrong, and the subject is put in its place.
    key: bytes | Literal["any"] | None = "any" if reason == "key_mismatch" else letter.key
    return decode(letter.value or b"", key=key, appended_at=now)


def _count(refused: Counter[tuple[str, str]], problem: Refused) -> None:
    kind = (problem.reason, problem.detail)
    if kind not in refused and len(refused) >= _KEPT_DETAILS:
        kind = (problem.reason, OTHER_DETAILS)
    refused[kind] += 1


async def _letters(brokers: Brokers, topic: str, on_progress: Callable[[int], None]) -> AsyncGenerator[Any]:
    """The letters that are there now, as aiokafka gives them, one partition after the other."""
    places = [TopicPartition(topic, partition) for partition in await partitions_of(brokers, topic)]
    if not places:
        raise NoDeadLetters(f"there is no topic {topic}: are SEATMARK_BROKERS and SEATMARK_TOPIC_PREFIX right?")
    ends = await end_offsets(brokers, places)
    async with _open_consumer(brokers) as consumer:
        read = 0
        for place in places:
            consumer.assign([place])
            await consumer.seek_to_beginning(place)
            while await consumer.position(place) < ends[place]:
                letters = (await consumer.getmany(place, timeout_ms=_FETCH_WAIT_MS)).get(place, [])
                for letter in letters:
                    if letter.offset < ends[place]:
                        yield letter
                read += len(letters)
                on_progress(read)


@asynccontextmanager
async def _open_consumer(brokers: Brokers) -> AsyncIterator[AIOKafkaConsumer]:
    consumer = AIOKafkaConsumer(**brokers.client, auto_offset_reset="earliest", enable_auto_commit=False)
    await consumer.start()
    try:
        yield consumer
    finally:
        await consumer.stop()
