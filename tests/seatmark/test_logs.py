"""How parts log: a JSON object a line or text, with context, and without what must not be in a log."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
from aiokafka.errors import InvalidProducerEpoch, ProducerFenced
from clickhouse_connect.driver.exceptions import DatabaseError

from schemas.errors import Explained, loggable
from seatmark.console import configure_logging, say_why_it_ends

logger = logging.getLogger("processors.test")


class Terminal(io.StringIO):
    """What says of itself that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., io.StringIO]]:
    """Sets up logging as a process of its own does; gives what stderr then gets."""
    before = logging.root.handlers[:]

    def configure(format: Literal["auto", "json", "text"], stderr: io.StringIO | None = None) -> io.StringIO:
        stderr = stderr or io.StringIO()
        monkeypatch.setattr(sys, "stderr", stderr)
        logging.root.handlers[:] = []
        configure_logging("INFO", format)
        return stderr

    yield configure
    logging.captureWarnings(False)
    logging.root.handlers[:] = before


def raised(raise_it: Callable[[], object]) -> None:
    try:
        raise_it()
    except Exception:
        logger.exception("it failed")


def test_json_lines_have_time_level_logger_text_and_known_context(configured: Callable[..., io.StringIO]) -> None:
    stderr = configured("json")
    logger.warning("%d records\nare gone", 3, extra={"topic": "t", "partition": 1, "offset": 7, "color_message": "x"})
    logging.getLogger("aiokafka").info("libraries say only warnings")
    logging.getLogger("aiokafka").warning("like this")
    logging.getLogger("urllib3.connectionpool").warning("Retrying")
    logging.getLogger("clickhouse_connect.driver.httpclient").warning("Unexpected Http Driver Exception")
    first, second = map(json.loads, stderr.getvalue().splitlines())
    assert first.pop("timestamp").endswith("Z")
    said = {"event": "3 records\nare gone", "level": "warning", "logger": "processors.test"}
    assert first == said | {"topic": "t", "partition": 1, "offset": 7}
    assert (second["logger"], second["event"]) == ("aiokafka", "like this")


async def test_what_a_fenced_producer_leaves_behind_is_no_news(configured: Callable[..., io.StringIO]) -> None:
    stderr = configured("json")
    for error in (ProducerFenced("a newer one"), InvalidProducerEpoch("a newer one"), ConnectionError("away")):
        asyncio.get_running_loop().create_future().set_exception(error)
    gc.collect()
    [line] = map(json.loads, stderr.getvalue().splitlines())
    assert line["logger"] == "asyncio"
    assert "ConnectionError" in line["exception"]


def test_what_aiokafka_repeats_is_said_once_in_a_while(
    configured: Callable[..., io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1_000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    stderr = configured("json")
    of_aiokafka = logging.getLogger("aiokafka.client")

    def said() -> list[str]:
        for number in range(50):
            of_aiokafka.error("Unable connect to node with id %s", number)
            logging.getLogger("aiokafka.conn").warning("Unable connect to node with id %s", number)
            logger.warning("ours is said each time")
        lines = [json.loads(line) for line in stderr.getvalue().splitlines()]
        stderr.truncate(0)
        stderr.seek(0)
        return [line["event"] for line in lines if line["logger"] != "processors.test"] + [f"{len(lines)} lines"]

    once = ["Unable connect to node with id 0"] * 2
    assert said() == [*once, "52 lines"]
    now[0] += 29
    assert said() == ["50 lines"]
    now[0] += 1
    assert said() == [*once, "52 lines"]
    # What is kept of them has a bound.
    for number in range(5_000):
        of_aiokafka.error(f"built beforehand: {number}")
    [seldom] = [kept for kept in logging.root.handlers[0].filters if isinstance(kept, logging.Filter)]
    assert len(vars(seldom)["_said_at"]) <= 1_000


def test_text_is_for_people(configured: Callable[..., io.StringIO]) -> None:
    stderr = configured("text")
    logger.warning("an insert failed", extra={"table": "days"})
    assert stderr.getvalue().split(maxsplit=1)[1] == "[warning  ] an insert failed [processors.test] table=days\n"


def test_auto_looks_at_stderr(configured: Callable[..., io.StringIO]) -> None:
    for stderr, is_json in ((io.StringIO(), True), (Terminal(), False)):
        configured("auto", stderr)
        logger.warning("x")
        assert stderr.getvalue().startswith("{") is is_json


def test_why_a_process_ends_is_a_line_of_the_log_where_programs_read_it(configured: Callable[..., io.StringIO]) -> None:
    stderr = configured("json")
    say_why_it_ends("offset 7 cannot be read")
    told = json.loads(stderr.getvalue())
    assert (told["level"], told["event"]) == ("critical", "seatmark: offset 7 cannot be read")


@pytest.mark.parametrize("format", ["json", "text"])
def test_a_traceback_shows_where_and_neither_variables_nor_what_messages_quote(
    configured: Callable[..., io.StringIO], format: str
) -> None:
    stderr = configured(format)

    def fails(user: str) -> None:
        try:
            {"a": 1}[user]
        except KeyError as error:
            raise ValueError(f"cannot use {user!r} or 'it\\'s {user}' or \"{user}") from error

    user = "@".join(["ann", "acme.example"])
    raised(lambda: fails(user))
    told = stderr.getvalue()
    assert "ann@acme" not in told
    assert "in fails" in told
    assert "KeyError: ..." in told
    assert "ValueError: cannot use ... or ... or ..." in told


def test_an_error_that_is_its_own_cause_is_told_once(configured: Callable[..., io.StringIO]) -> None:
    stderr = configured("json")
    one, other = ValueError("one"), ValueError("other")
    one.__context__, other.__context__ = other, one

    def fails() -> None:
        raise one

    raised(fails)
    assert json.loads(stderr.getvalue())["exception"].count("ValueError: one") == 1


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (Explained("the topic 'x' is gone: run `seatmark topics`"), "the topic 'x' is gone: run `seatmark topics`"),
        (KeyError("wks-7"), "KeyError: ..."),
        (
            DatabaseError("Code: 47. DB::Exception: Unknown identifier `a`. WHERE user = 'ann\\'s' OR ip = '::1'. (UNKNOWN)"),
            "DatabaseError: Code: 47. DB::Exception: Unknown identifier `a`. WHERE user = ... OR ip = .... (UNKNOWN)",
        ),
        # Cut off by the client.
        (DatabaseError("WHERE user = 'ann@acme"), "DatabaseError: WHERE user = ..."),
        (TimeoutError(), "TimeoutError: "),
    ],
)
def test_what_an_error_quotes_is_left_out(error: Any, told: str) -> None:
    assert loggable(error) == told
