"""What all tests share: the fixtures with running brokers and stores, and how hypothesis draws."""

import logging
import os
import random
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import settings

pytest_plugins = ["tests.fixtures_brokers", "tests.fixtures_stores"]

# In CI the same examples each time, so that a change fails for what it changed; elsewhere new ones, which find more.
settings.register_profile("ci", derandomize=True)
settings.register_profile("here", print_blob=True)
# pytest --hypothesis-profile=long: for hours, where a test leaves the number of its examples to the profile.
settings.register_profile("long", max_examples=20_000, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")


@pytest.fixture(autouse=True)
def log_levels_as_before() -> Iterator[None]:
    """Commands that run in this process set levels, as in one of their own; other tests look at what is logged."""
    loggers = [
        logging.getLogger(name) for name in ("", "processors", "seatmark", "views", "processors.batching", "aiokafka.conn")
    ]
    before = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start brokers and processes first: they take longest, and at the end of a run no process should be left alone
    with one of them while the others have nothing to do.
    """
    slow = Counter(item.path for item in items if any(item.get_closest_marker(name) for name in ("kafka", "stack", "browser")))
    items.sort(key=lambda item: not slow[item.path])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--vendor-events", type=int, default=5000, help="how many events tests/test_vendor.py sends")
    seed = 1 if os.environ.get("CI") else random.randrange(2**32)
    parser.addoption("--vendor-seed", type=int, default=seed, help="which events these are")
    parser.addoption("--load-seconds", type=int, default=6, help="how long tests/test_corrections_under_load.py goes on")
    parser.addoption("--fuzz-inputs", type=int, default=20_000, help="how many records tests/test_fuzz.py tries")
