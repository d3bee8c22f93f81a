"""Creates the topics of the catalogue, or checks that those there are as it says."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import TopicAlreadyExistsError, for_code

from processors.brokers import Brokers
from schemas.errors import Explained
from schemas.topics import Topic, catalogue

# Compaction of events would drop events, and a changelog without it would lose state.
_NUMBERS_DEPEND_ON = "cleanup.policy"
# How long records are kept is the operator's choice: what the catalogue says is for topics made anew.
_OPERATORS_CHOICE = "retention.ms"
# After `seatmark topics`, until all brokers know them.
_NEW_TOPIC_SECONDS = 5.0


class TopicsWrong(Explained):
    """Topics that are there are not as the catalogue says; the message lists each difference and its repair."""


@dataclass(frozen=True)
class TopicResult:
    """What was found or done for one topic."""

    name: str
    partitions: int
    created: bool


async def ensure_topics(brokers: Brokers, *, prefix: str, partitions: int, replication: int) -> list[TopicResult]:
    """Create the topics that are missing and check the others.

    Raises TopicsWrong: a topic has another number of partitions, or another setting than the catalogue, but for `retention.ms`.
    Raises aiokafka.errors.KafkaError: the broker cannot be reached, or refuses.
    """
    admin = AIOKafkaAdminClient(**brokers.client)
    await admin.start()
    try:
        there = set(await admin.list_topics())
        wanted = catalogue()
        missing = [topic for topic in wanted if prefix + topic.name not in there]
        if missing:
            await _create(admin, missing, prefix, partitions, replication)
        present = [topic for topic in wanted if prefix + topic.name in there]
        counts = (
            await _check(admin, present, prefix, partitions, lambda setting: setting != _OPERATORS_CHOICE) if present else {}
        )
        return [
            TopicResult(prefix + topic.name, counts.get(topic.name, partitions), created=prefix + topic.name not in there)
            for topic in wanted
        ]
    finally:
        await admin.close()


async def check_topics(brokers: Brokers, *, prefix: str, partitions: int) -> None:
    """Before a worker starts: refuse topics on which its numbers would be wrong. Other settings may differ from the catalogue.

    Raises TopicsWrong: a topic is missing, or has another number of partitions or another `cleanup.policy` than it must have.
    Raises aiokafka.errors.KafkaError: the broker cannot be reached, or refuses.
    """
    admin = AIOKafkaAdminClient(**brokers.client)
    await admin.start()
    try:
        wanted = catalogue()
        deadline = time.monotonic() + _NEW_TOPIC_SECONDS
        while missing := {prefix + topic.name for topic in wanted} - set(await admin.list_topics()):
            if time.monotonic() > deadline:
                raise TopicsWrong(
                    f"these topics are missing: {', '.join(sorted(missing))}. Create them with `seatmark topics`; those that "
                    "are there are hidden from a user who may not describe them"
                )
            await asyncio.sleep(0.1)
        await _check(admin, wanted, prefix, partitions, lambda setting: setting == _NUMBERS_DEPEND_ON)
    finally:
        await admin.close()


async def _create(admin: AIOKafkaAdminClient, topics: list[Topic], prefix: str, partitions: int, replication: int) -> None:
    response = await admin.create_topics(
        [NewTopic(prefix + topic.name, partitions, replication, topic_configs=topic.config) for topic in topics]
    )
    for name, code, *message in response.topic_errors:
        error = for_code(code)
        # Another process that starts at the same moment may have made it.
        if code and error is not TopicAlreadyExistsError:
            raise error(f"could not create the topic {name}: {message[0] if message else ''}")


async def _check(
    admin: AIOKafkaAdminClient, topics: list[Topic], prefix: str, partitions: int, matters: Callable[[str], bool]
) -> dict[str, int]:
    wrong: list[str] = []
    counts: dict[str, int] = {}
    for found in await admin.describe_topics([prefix + topic.name for topic in topics]):
        name, count = found["topic"], len(found["partitions"])
        counts[name.removeprefix(prefix)] = count
        if count != partitions:
            wrong.append(
                f"{name}: it has {count} partitions, SEATMARK_PARTITIONS is {partitions}. All topics must have the same "
                "number: set SEATMARK_PARTITIONS to it, or make the topic anew"
            )
    settings = await _settings(admin, [prefix + topic.name for topic in topics])
    for topic in topics:
        found_settings = settings.get(prefix + topic.name, {})
        for key, value in topic.config.items():
            found_value = found_settings.get(key)
            # A setting that the broker does not know, and so does not tell, cannot be compared.
            if matters(key) and found_value is not None and found_value != value:
                lost = "; what it should have kept may be gone: then run `seatmark rebuild`" if value == "compact" else ""
                wrong.append(
                    f"{prefix + topic.name}: {key} is {found_value}, expected {value}. Alter the topic's setting{lost}"
                )
    if wrong:
        raise TopicsWrong("\n".join(wrong))
    return counts


async def _settings(admin: AIOKafkaAdminClient, names: list[str]) -> dict[str, dict[str, str]]:
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    settings: dict[str, dict[str, str]] = {}
    for response in await admin.describe_configs(resources):
        for _code, _message, _type, name, entries in response.resources:
            settings[name] = {entry[0]: entry[1] for entry in entries}
    return settings
