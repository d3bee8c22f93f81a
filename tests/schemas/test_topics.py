"""The catalogue of topics."""

import re

import pytest

from processors.changelog import MAX_STATE_BATCH_BYTES
from processors.topics import Topics
from schemas.alerts import Alert, AlertData, Cause, encode_alert
from schemas.events import MAX_EVENT_BYTES, MAX_TEXT_LENGTH
from schemas.topics import Topic, catalogue
from tests.schemas.contract import SCHEMAS, schema

TOPICS = {topic.name: topic for topic in catalogue()}
DAY_MS = 24 * 60 * 60 * 1000


def by_name(topic: Topic) -> str:
    return topic.name


def size(name: str) -> int:
    return int(TOPICS[name].config["max.message.bytes"])


def test_the_catalogue_has_the_topics_that_the_worker_uses() -> None:
    names = Topics("")
    used = {names.events, names.dead_letters, names.alerts, names.activity, names.days, names.changelog}
    assert set(TOPICS) == used


@pytest.mark.parametrize("topic", TOPICS.values(), ids=by_name)
def test_every_topic_has_an_owner_a_version_and_what_is_in_it(topic: Topic) -> None:
    assert all([topic.owner, topic.key, topic.value])
    assert topic.version >= 1
    assert topic.compatibility in ("backward", "internal")
    assert re.fullmatch(r"[a-z][a-z-]*[a-z]", topic.name)


@pytest.mark.parametrize("topic", [topic for topic in TOPICS.values() if topic.schema], ids=by_name)
def test_the_schema_of_a_topic_is_there_in_the_same_version(topic: Topic) -> None:
    assert topic.schema is not None
    assert (SCHEMAS / topic.schema).is_file()
    assert schema(topic.schema)["$id"] == f"urn:seatmark:schema:{topic.name}:{topic.version}"


def test_what_others_write_or_read_as_json_has_a_schema() -> None:
    described = {topic.name for topic in TOPICS.values() if topic.schema is not None}
    assert described == {"entitlement-events", "overdraft-alerts"}


@pytest.mark.parametrize("topic", TOPICS.values(), ids=by_name)
def test_settings_are_known_ones_and_text_as_kafka_wants_them(topic: Topic) -> None:
    known = {"cleanup.policy", "retention.ms", "max.message.bytes", "message.timestamp.type"}
    assert set(topic.config) <= known
    assert all(isinstance(value, str) for value in topic.config.values())
    assert topic.config["cleanup.policy"] in ("delete", "compact")
    # Records are kept for some time, or the last of each key for ever.
    assert ("retention.ms" in topic.config) == (topic.config["cleanup.policy"] == "delete")
    assert int(topic.config.get("retention.ms", DAY_MS)) >= DAY_MS


def test_events_carry_the_time_at_which_the_broker_got_them() -> None:
    assert TOPICS["entitlement-events"].config["message.timestamp.type"] == "LogAppendTime"


def test_what_is_refused_for_its_size_still_fits_and_so_does_its_dead_letter() -> None:
    assert MAX_EVENT_BYTES < size("entitlement-events") == 4 * 1024 * 1024
    assert size("entitlement-events") < size("entitlement-events-dlq") == 5 * 1024 * 1024


def test_an_alert_with_the_longest_texts_has_some_50_kib() -> None:
    """As the catalogue says. A day row has fewer of them."""
    longest = "\0" * MAX_TEXT_LENGTH  # \u0000 in JSON
    data = AlertData(
        entitlement=longest, element=longest, customer=longest, product=longest,
        cause=Cause(longest, longest, "seat.activated"),
        from_state="within", to_state="at_limit", level=1, limit=1, hard_limit=1, overage=0, at="2026-11-24T02:14:54.123Z",
    )  # fmt: skip
    alert = Alert(id="1", source="/seatmark/worker", type="limit.reached", subject=longest, time=data.at, data=data)
    record = len(longest.encode()) + len(encode_alert(alert))
    assert 40 * 1024 < record < 50 * 1024 < size("overdraft-alerts") == size("entitlement-days")


def test_dead_letters_outlive_the_events() -> None:
    kept = {name: int(topic.config.get("retention.ms", 0)) for name, topic in TOPICS.items()}
    assert kept["entitlement-events"] < kept["entitlement-events-dlq"]


def test_the_state_of_a_chunk_fits_into_one_batch() -> None:
    assert size("seatmark-ledger-changelog") > MAX_STATE_BATCH_BYTES


def test_only_the_state_is_compacted() -> None:
    compacted = {name for name, topic in TOPICS.items() if topic.config["cleanup.policy"] == "compact"}
    assert compacted == {"seatmark-ledger-changelog"}
