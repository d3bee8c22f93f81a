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
from typing import Any
from uuid import UUID

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, for_code
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

from schemas.errors import Explained

_NO_ID = UUID(int=0)


class IncarnationUnknown(Explained):
    """The brokers do not tell ids of topics: they are older than Kafka 3.1, or something else than Kafka."""


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

    def __init__(self, topic: str) -> None:
        self._topic = topic

    def build(self, request_struct_class: type[_MetadataRequestV12]) -> _MetadataRequestV12:
        return request_struct_class([(_NO_ID, self._topic, {})], False, False, {})


async def topic_incarnation(bootstrap: str, topic: str, wait_seconds: float = 5.0) -> str:
    """The id the brokers gave this topic when it was created, as UUID text.

    It is the same at every call until the topic is deleted, and another one if it is created again. One
    broker is asked; for some milliseconds after a topic was created again a broker may still tell the old id.

    Args:
        bootstrap: addresses of brokers, as aiokafka takes them.
        topic: the topic's name. It is not created if it does not exist.
        wait_seconds: how long to ask again when a broker is down or does not know the topic: a new one takes
            a moment to become known to all of them.

    Raises:
        aiokafka.errors.UnknownTopicOrPartitionError: there is no such topic.
        aiokafka.errors.KafkaConnectionError: no broker could be reached.
        aiokafka.errors.KafkaError: the brokers refuse to tell, for example for want of rights.
        IncarnationUnknown: the brokers do not tell ids of topics.
    """
    client = AIOKafkaClient(bootstrap_servers=bootstrap)
    deadline = time.monotonic() + wait_seconds
    try:
        await client.bootstrap()
        while True:
            try:
                return await _ask(client, topic)
            except KafkaError as error:
                if not error.retriable or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(0.1)
    finally:
        await client.close()


async def _ask(client: AIOKafkaClient, topic: str) -> str:
    try:
        response = await client.send(client.get_random_node(), _TopicRequest(topic))
    except NotImplementedError as error:  # How aiokafka says that broker and client share no version.
        raise IncarnationUnknown("the broker does not know metadata requests of version 12") from error
    [(error_code, _name, topic_id, *_rest)] = response.topics
    if error_code:
        raise for_code(error_code)(topic)
    if topic_id == _NO_ID:
        raise IncarnationUnknown(f"the broker has no id for the topic {topic}")
    return str(topic_id)
