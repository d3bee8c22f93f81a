"""Fixtures with running brokers, one of each kind for the session; a plugin that ``tests/conftest.py`` names.

A broker is started by the first test that asks. Topics outlive tests: each makes its own (``create_topic``).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deploy.kafka.cluster import KafkaCluster, free_ports
from seatmark.tansu import Tansu
from tests.brokers import running_kafka


@pytest.fixture(scope="session")
def tansu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tansu]:
    """The embedded broker."""
    log_file = tmp_path_factory.mktemp("tansu") / "tansu.log"
    with log_file.open("wb") as log, Tansu(free_ports(1)[0], log) as broker:
        yield broker


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    """A real Kafka of one broker."""
    with running_kafka(1, tmp_path_factory.mktemp("kafka")) as cluster:
        yield cluster


@pytest.fixture(scope="session", params=["tansu", pytest.param("kafka", marks=pytest.mark.kafka)])
def broker(request: pytest.FixtureRequest) -> Tansu | KafkaCluster:
    """Runs the test on the embedded broker and on a real Kafka. Tests use its ``bootstrap``."""
    running: Tansu | KafkaCluster = request.getfixturevalue(request.param)
    return running
