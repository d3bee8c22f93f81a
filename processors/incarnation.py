"""Which incarnation of a topic is this? One that was deleted and created again has the same name and offsets.

Kafka gives every topic an id (a UUID, KIP-516) when it is created and tells it in metadata responses from
version 10 on. aiokafka 0.14 speaks metadata up to version 5, so version 12 is spelled out here, in aiokafka's
own terms. The layouts are those of ``MetadataRequest.json`` and ``MetadataResponse.json`` under
``common/message`` in Kafka's ``kafka-clients`` jar (sources: ``clients/src/main/resources``). Version 12 is
the first in which brokers handle topic ids in full (Kafka 3.1).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn
from uuid import UUID

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, UnknownTopicOrPartitionError, for_code
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

from processors.brokers import Brokers
from schemas.errors import Explained

_NO_ID = UUID(int=0)
_RETRY_SECONDS = 0.1
# A broker that has just started, or that was asked for a new topic, may not know it yet.
_UNKNOWN_SECONDS = 5.0
_WATCH_SECONDS = 2.0


HOW_TO_REBUILD = (
    "Stop all workers, let the sink store what there is, run `seatmark rebuild`, and start them again: the state is made anew "
    "from the raw log"
)


class IncarnationUnknown(Explained):
    """The brokers do not tell ids of topics: they are older than Kafka 3.1, or something else than Kafka."""


class TopicChanged(Explained):
    """A topic is gone, was made anew, or has another number of partitions than before."""


class _Uuid(AbstractType):  # type: ignore[misc]
    @classmethod
    def encode(cls, value: UUID) -> bytes:
        return value.bytes

    @classmethod
    def decode(cls, data: Any) -> UUID:
        return UUID(bytes=data.read(16))


class _MetadataResponseV12(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 12
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString()),
                ("port", Int32),
                ("rack", CompactString()),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString()),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", CompactString()),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _MetadataRequestV12(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 3
    API_VERSION = 12
    RESPONSE_TYPE = _MetadataResponseV12
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", _Uuid), ("name", CompactString()), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _TopicRequest(Request[_MetadataRequestV12]):  # type: ignore[misc]
    API_KEY = 3

    def __init__(self, topics: Sequence[str]) -> None:
        self._topics = topics

    def build(self, request_struct_class: type[_MetadataRequestV12]) -> _MetadataRequestV12:
        return request_struct_class([(_NO_ID, topic, {}) for topic in self._topics], False, False, {})


@dataclass(frozen=True)
class _Told:
    """What a broker tells of a topic. leaders: the broker of each partition that has one."""

    incarnation: str
    partitions: int
    leaders: frozenset[int]


async def topic_incarnation(brokers: Brokers, topic: str, wait_seconds: float = _UNKNOWN_SECONDS) -> str:
    """The id the brokers gave this topic when it was created, as UUID text.

    It is the same at every call until the topic is deleted, and another one if it is created again. One
    broker is asked; for some milliseconds after a topic was created again a broker may still tell the old id.

    Args:
        topic: the topic's name. It is not created if it does not exist.
        wait_seconds: how long to ask again when a broker is down or does not know the topic: a new one takes
            a moment to become known to all of them.

    Raises:
        aiokafka.errors.UnknownTopicOrPartitionError: there is no such topic.
        aiokafka.errors.KafkaConnectionError: no broker could be reached.
        aiokafka.errors.KafkaError: the brokers refuse to tell, for example for want of rights.
        IncarnationUnknown: the brokers do not tell ids of topics.
    """
    watch = TopicWatch(brokers, [topic])
    try:
        await watch.begin(wait_seconds)
        return watch.incarnation(topic)
    finally:
        await watch.close()


class TopicWatch:
    """Tells when topics are no longer those that they were, over connections that stay open.

    Nothing in a fetch tells that a topic was deleted and created again: whoever goes on at the old offset skips what is
    before it in the new one, and takes the rest for events of the old.
    """

    def __init__(self, brokers: Brokers, topics: Sequence[str]) -> None:
        self._brokers = brokers
        self._topics = topics
        self._began: Mapping[str, _Told] = {}
        self._leaders: frozenset[int] = frozenset()
        self._client: AIOKafkaClient | None = None
        self._one_at_a_time = asyncio.Lock()

    async def begin(self, wait_seconds: float = _UNKNOWN_SECONDS) -> None:
        """Note what the topics are now; arguments and errors are those of `topic_incarnation`."""
        client = await self._connected()
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                self._began = await _ask(client, client.get_random_node(), self._topics)
                return
            except KafkaError as error:
                if not error.retriable or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(_RETRY_SECONDS)

    def incarnation(self, topic: str) -> str:
        """The id that a topic had when the watch began."""
        return self._began[topic].incarnation

    async def check(self) -> None:
        """Ask again. What was fetched before this call is of the topics of the beginning, if it returns.

        Waits for as long as no broker can be reached.
        Raises TopicChanged: says what to do.
        Raises aiokafka.errors.KafkaError: the brokers refuse to tell.
        """
        async with self._one_at_a_time:
            deadline = None
            while True:
                try:
                    await self._ask_leaders()
                    return
                except UnknownTopicOrPartitionError as error:
                    deadline = deadline or time.monotonic() + _UNKNOWN_SECONDS
                    if time.monotonic() > deadline:
                        raise TopicChanged(
                            f"the topic {error.args[0]} is gone: it was deleted while the worker ran. Create it again with "
                            f"`seatmark topics`. {HOW_TO_REBUILD}"
                        ) from error
                except KafkaError as error:
                    if not error.retriable:
                        raise
                    # Perhaps the brokers are others now, or at other addresses.
                    await self.close()
                await asyncio.sleep(_RETRY_SECONDS)

    async def until_changed(self) -> NoReturn:
        """Check every two seconds, for ever. Raises what `check` raises."""
        while True:
            await self.check()
            await asyncio.sleep(_WATCH_SECONDS)

    async def close(self) -> None:
        """Close the connections; `check` opens them again."""
        client, self._client, self._leaders = self._client, None, frozenset()
        if client is not None:
            await client.close()

    async def _connected(self) -> AIOKafkaClient:
        if self._client is None:
            self._client = AIOKafkaClient(**self._brokers.client)
            await self._client.bootstrap()
        return self._client

    async def _ask_leaders(self) -> None:
        """Ask each broker that leads a partition: it cannot give out records of a topic that it does not know yet."""
        client = await self._connected()
        asked: set[int] = set()
        ask = self._leaders or frozenset([client.get_random_node()])
        while ask:
            answers = await asyncio.gather(*(_ask(client, node, self._topics) for node in ask))
            asked |= ask
            for answer in answers:
                self._compare(answer)
            self._leaders = frozenset().union(*(told.leaders for answer in answers for told in answer.values()))
            ask = self._leaders - asked

    def _compare(self, answer: Mapping[str, _Told]) -> None:
        for topic, now in answer.items():
            before = self._began[topic]
            if now.incarnation != before.incarnation:
                raise TopicChanged(
                    f"the topic {topic} was deleted and created again while the worker ran (its id was {before.incarnation} "
                    f"and is {now.incarnation}): its offsets no longer say what was applied. {HOW_TO_REBUILD}"
                )
            if now.partitions != before.partitions:
                raise TopicChanged(
                    f"the topic {topic} has {now.partitions} partitions now, and had {before.partitions}: entitlements have "
                    "moved to other partitions. Give all topics the same number (`seatmark topics` tells which have another) "
                    f"and SEATMARK_PARTITIONS too. {HOW_TO_REBUILD}"
                )


async def _ask(client: AIOKafkaClient, node: int, topics: Sequence[str]) -> dict[str, _Told]:
    """What one broker tells of topics."""
    try:
        response = await client.send(node, _TopicRequest(topics))
    except NotImplementedError as error:  # How aiokafka says that broker and client share no version.
        raise IncarnationUnknown("the broker does not know metadata requests of version 12") from error
    answer = {}
    for error_code, name, topic_id, _internal, partitions, *_rest in response.topics:
        if error_code:
            raise for_code(error_code)(name)
        if topic_id == _NO_ID:
            raise IncarnationUnknown(f"the broker has no id for the topic {name}")
        leaders = frozenset(leader for _error, _partition, leader, *_more in partitions if leader >= 0)
        answer[name] = _Told(str(topic_id), len(partitions), leaders)
    return answer
