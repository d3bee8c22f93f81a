"""Whether a worker or a sink gets on: looks every two seconds, says what it finds, and ends the process that stands still.

What is no standing still: a topic without new events; brokers or a ClickHouse that are away, because starting again would not
bring them back; a recovery that goes on, however long it takes.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from processors import metrics
from processors.brokers import AccessRefused, Brokers
from processors.health import Check, Health, end_process

logger = logging.getLogger(__name__)

_TURN_SECONDS = 0.5
_LOOK_SECONDS = 2.0
# Brokers that take longer to answer do not.
_ANSWER_SECONDS = 5.0
_FETCH_SECONDS = 0.5


@dataclass(frozen=True)
class Observation:
    """How a process stands, as far as it knows by itself.

    checks: its own, by name. phase: what must be over before any record is done, such as a recovery, and a number that changes
    while it goes on; None once it is over. next_offsets: per partition that it has, the offset after the last record done.
    waits: it waits for something else than brokers, and would after a new start as well.
    """

    checks: Mapping[str, Check]
    phase: tuple[str, int] | None = None
    next_offsets: Mapping[TopicPartition, int] = field(default_factory=dict)
    waits: bool = False


class Standstill:
    """For how long each of several things has stood where it stands."""

    def __init__(self) -> None:
        self._since: dict[Hashable, tuple[Hashable, float]] = {}

    def note(self, now: float, marks: Mapping[Hashable, Hashable]) -> tuple[Hashable, float] | None:
        """Note where each thing stands now; which has stood longest, and for how many seconds. None: there are no things.

        A thing that is not among the marks has nothing to do: when it is again, it begins anew.
        """
        known = self._since
        self._since = {
            thing: known[thing] if thing in known and known[thing][0] == mark else (mark, now) for thing, mark in marks.items()
        }
        if not marks:
            return None
        thing, (_, since) = min(self._since.items(), key=lambda item: item[1][1])
        return thing, now - since


class Behind(NamedTuple):
    """records: how many offsets lie between what is done and the end. came_at: when the first of them came to the topic, or one
    before it, in ms since 1970; None: not asked yet.
    """

    records: int
    came_at: int | None


class Log:
    """Asks the brokers how far topics go, over connections that stay open while they answer."""

    def __init__(self, brokers: Brokers, *, read_committed: bool) -> None:
        """read_committed: as for those whose progress this is about."""
        self._brokers = brokers
        self._isolation_level = "read_committed" if read_committed else "read_uncommitted"
        self._consumer: AIOKafkaConsumer | None = None
        self._asked: dict[TopicPartition, int] = {}
        # What came of the latest questions, those asked longest ago first.
        self._follows: dict[TopicPartition, _Follows] = {}

    async def behind(self, next_offsets: Mapping[TopicPartition, int]) -> dict[TopicPartition, Behind]:
        """By partition, what lies between these offsets, or the first that there is, and the end; without those at the end.

        Where there are only markers of transactions, it can take several questions to know.
        Raises AccessRefused, TimeoutError, and whatever the client raises: the brokers do not answer.
        """
        async with asyncio.timeout(_ANSWER_SECONDS):
            consumer = await self._connected()
            if not next_offsets:
                await consumer.topics()
                return {}
            asked, self._asked = self._asked, dict(next_offsets)
            places = list(next_offsets)
            ends, begins = await asyncio.gather(consumer.end_offsets(places), consumer.beginning_offsets(places))
            left = {
                place: (first, ends[place])
                for place, offset in next_offsets.items()
                if (first := max(offset, begins[place])) < ends[place]
            }
            self._follows = {place: known for place, known in self._follows.items() if place in left}
            # A backlog need not be read to know of it: where something was done since the last question, one place at a time is
            # looked into. Of the others, what was known of an earlier record says no less.
            stand = [place for place in left if asked.get(place) == next_offsets[place]]
            move = [place for place in left if place not in stand]
            waited_longest = [place for place in move if place not in self._follows] + [
                place for place in self._follows if place in move
            ]
            for place in stand + waited_longest[:1]:
                await self._look_into(consumer, place, *left[place])
            behind = {}
            for place, (first, end) in left.items():
                known = self._follows.get(place)
                if known is None:
                    behind[place] = Behind(end - first, None)
                elif known != _Follows(first, end, None):
                    behind[place] = Behind(end - first, known.came_at)
            return behind

    async def close(self) -> None:
        """Close the connections; `behind` opens them again."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            # One that never got to its brokers may say so once more.
            with suppress(Exception):
                async with asyncio.timeout(_ANSWER_SECONDS):
                    await consumer.stop()

    async def _connected(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            await self._brokers.refuse_if_refused()
            consumer = AIOKafkaConsumer(
                **self._brokers.client,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                isolation_level=self._isolation_level,
                fetch_max_wait_ms=int(_FETCH_SECONDS * 1000),
                max_partition_fetch_bytes=1,
            )
            self._consumer = consumer
            await consumer.start()
        return self._consumer

    async def _look_into(self, consumer: AIOKafkaConsumer, place: TopicPartition, first: int, end: int) -> None:
        """Learn what is at or after this offset; once, as long as that cannot have changed."""
        known = self._follows.pop(place, None)
        if known is None or known.first != first or (known.came_at is None and known.end != end):
            consumer.assign([place])
            consumer.seek(place, first)
            came_at = None
            while came_at is None and await consumer.position(place) < end:
                for records in (await consumer.getmany(timeout_ms=int(_FETCH_SECONDS * 1000), max_records=1)).values():
                    came_at = records[0].timestamp
            known = _Follows(first, end, came_at)
        self._follows[place] = known


class _Follows(NamedTuple):
    """What was found at or after the offset `first`, when the log ended at `end`: when the next record came, in ms since 1970.

    None: nothing follows, although the end is farther. Markers of transactions have offsets too.
    """

    first: int
    end: int
    came_at: int | None


class _Lag:
    """The gauges of how far a process is behind, in the partitions that it has."""

    def __init__(self) -> None:
        self._told: set[TopicPartition] = set()
        self._came_at: dict[TopicPartition, int] = {}

    def tell(self, places: Collection[TopicPartition], behind: Mapping[TopicPartition, Behind]) -> None:
        """Say how things stand. places: those that the process has."""
        for place in self._told.difference(places):
            for gauge in (metrics.LAG_RECORDS, metrics.LAG_SECONDS):
                gauge.remove(place.topic, place.partition)
        self._told = set(places)
        self._came_at = {place: lag.came_at for place, lag in behind.items() if lag.came_at is not None}
        for place in places:
            metrics.LAG_RECORDS.labels(*place).set(behind[place].records if place in behind else 0)
            if place not in behind:
                metrics.LAG_SECONDS.labels(*place).set(0)
        self.tell_ages()

    def tell_ages(self) -> None:
        """Say how old what is not done has become: also while the brokers do not answer."""
        for place, came_at in self._came_at.items():
            metrics.LAG_SECONDS.labels(*place).set(_seconds_since(came_at))


def _seconds_since(ms: int) -> float:
    return max(0.0, time.time() - ms / 1000)


class Monitor:
    """Puts together what a process says of itself, and ends it when it stands still.

    observe: says how the process stands; to be set once there is something that can say so. It must not block.
    """

    def __init__(
        self,
        health: Health,
        log: Log,
        stuck_after: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        end: Callable[[str, Iterable["asyncio.Task[Any]"]], object] = end_process,
    ) -> None:
        """stuck_after: seconds. clock, end: what tests replace."""
        self.observe: Callable[[], Observation] = lambda: Observation({"started": Check(False, "waits for the brokers")})
        self._health = health
        self._log = log
        self._stuck_after = stuck_after
        self._clock = clock
        self._end = end
        self._standstill = Standstill()
        self._lag = _Lag()
        self._answered = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Look until `stop` is set.

        Raises AccessRefused: the brokers have never let us in. Waiting would not change that; other settings would.
        """
        parts = [asyncio.ensure_future(part) for part in (self._turn(), self._keep_looking(), stop.wait())]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
            await self._log.close()

    async def brokers_answer(self, stop: asyncio.Event) -> bool:
        """Wait until the brokers have answered once. False: `stop` was set before. `run` must be running."""
        waiting = [asyncio.ensure_future(event.wait()) for event in (self._answered, stop)]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for one in waiting:
            one.cancel()
        return not stop.is_set()

    async def _turn(self) -> NoReturn:
        while True:
            self._health.turned()
            await asyncio.sleep(_TURN_SECONDS)

    async def _keep_looking(self) -> NoReturn:
        while True:
            await self.look()
            await asyncio.sleep(_LOOK_SECONDS)

    async def look(self) -> None:
        """Look once."""
        seen = self.observe()
        try:
            behind = await self._log.behind(seen.next_offsets)
        except Exception as error:
            # Whatever a client calls it. What could not be asked may be why nothing goes on.
            await self._log.close()
            self._standstill.note(self._clock(), {})
            self._lag.tell_ages()
            if isinstance(error, AccessRefused) and not self._answered.is_set():
                raise
            what = str(error) if isinstance(error, AccessRefused) else type(error).__name__
            why = f"do not answer ({what}); SEATMARK_BROKERS says where they are, SEATMARK_KAFKA_SECURITY what they expect"
            self._say({**seen.checks, "brokers": Check(False, why)})
            return
        self._answered.set()
        self._lag.tell(seen.next_offsets, behind)
        self._say({**seen.checks, "brokers": Check(True, "answer"), "progressing": self._progress(seen, behind)})

    def _progress(self, seen: Observation, behind: Mapping[TopicPartition, Behind]) -> Check:
        marks: dict[Hashable, Hashable] = {place: seen.next_offsets[place] for place in behind}
        if seen.phase is not None:
            marks = {seen.phase[0]: seen.phase[1]}
        if seen.waits:
            marks = {}
        standing = self._standstill.note(self._clock(), marks)
        lag = sum(place.records for place in behind.values())
        if standing is None:
            return Check(True, f"waits, with {lag} records to do" if lag else "nothing to do")
        thing, seconds = standing
        if isinstance(thing, TopicPartition):
            what = f"{lag} records to do; the last of {thing.topic}[{thing.partition}] was done at least {seconds:.0f} s ago"
        else:
            what = f"{thing}: {marks[thing]} records so far, the last at least {seconds:.0f} s ago"
        if seconds > self._stuck_after:
            self._end(
                f"nothing goes on for longer than SEATMARK_STUCK_AFTER, and the brokers answer: {what}", asyncio.all_tasks()
            )
        return Check(seconds <= self._stuck_after / 2, what)

    def _say(self, checks: Mapping[str, Check]) -> None:
        before, self._health.checks = self._health.checks, checks
        for name in before.keys() - checks.keys():
            with suppress(KeyError):
                metrics.CHECKS.remove(name)
        for name, check in checks.items():
            metrics.CHECKS.labels(name).set(check.ok)
            was_ok = before[name].ok if name in before else True
            if check.ok != was_ok:
                logger.log(logging.INFO if check.ok else logging.WARNING, "%s: %s", name, check.why)


class Unstored:
    """Tells how old the oldest raw row is that no sink has stored: for the partitions of one worker, as long as it has them."""

    def __init__(self, brokers: Brokers, topic: str, group: str) -> None:
        """topic: of the raw rows. group: the sinks'."""
        # Those that the worker has; to be set once there is one.
        self.partitions: Callable[[], Collection[int]] = lambda: ()
        self._brokers = brokers
        self._topic = topic
        self._group = group
        self._log = Log(brokers, read_committed=False)
        self._admin: AIOKafkaAdminClient | None = None
        # When the oldest came, in ms since 1970; None: all is stored.
        self._came_at: dict[int, int | None] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Look every two seconds until `stop` is set."""
        try:
            while not stop.is_set():
                await self.look()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await stop.wait()
        finally:
            await self._close()

    async def look(self) -> None:
        """Look once. What the brokers do not answer stays as it was, and grows older."""
        try:
            async with asyncio.timeout(2 * _ANSWER_SECONDS):
                came_at = await self._ask()
        except Exception:
            # Whatever a client calls it; the monitor says it, for it asks the same brokers.
            await self._close()
            came_at = self._came_at
        for partition in self._came_at.keys() - came_at.keys():
            metrics.UNSTORED_SECONDS.remove(partition)
        self._came_at = came_at
        for partition, ms in came_at.items():
            metrics.UNSTORED_SECONDS.labels(partition).set(0 if ms is None else _seconds_since(ms))

    async def _ask(self) -> dict[int, int | None]:
        places = [TopicPartition(self._topic, partition) for partition in self.partitions()]
        if not places:
            return {}
        if self._admin is None:
            self._admin = AIOKafkaAdminClient(**self._brokers.client)
            await self._admin.start()
        committed = await self._admin.list_consumer_group_offsets(self._group, partitions=places)
        # Where nothing was ever committed the answer is -1, which is before the first record.
        behind = await self._log.behind({place: committed[place].offset for place in places})
        return {place.partition: behind[place].came_at if place in behind else None for place in places}

    async def _close(self) -> None:
        admin, self._admin = self._admin, None
        if admin is not None:
            with suppress(Exception):
                async with asyncio.timeout(_ANSWER_SECONDS):
                    await admin.close()
        await self._log.close()
