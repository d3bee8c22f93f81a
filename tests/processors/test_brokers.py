"""What clients of the brokers do at their end is waited for, but not for ever."""

import asyncio

import pytest

from processors.brokers import ended_in_time


async def broken_off() -> None:
    raise asyncio.CancelledError


async def failing() -> None:
    raise OSError("away")


async def silent() -> None:
    await asyncio.Event().wait()


async def done() -> None:
    pass


@pytest.mark.parametrize(
    ("work", "told"),
    [
        (broken_off, "the end was not waited for: what it waits for has broken off"),
        (failing, "the end did not come about: OSError: away"),
        (silent, "the end was not waited for: it had not ended"),
    ],
)
async def test_what_does_not_end_well_is_one_line(
    work: object, told: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("processors.brokers.STOP_SECONDS", 0.01)
    assert callable(work)
    assert not await ended_in_time(work(), "the end")
    [line] = caplog.records
    assert line.levelname == "WARNING"
    assert line.getMessage().startswith(told)


async def test_what_ends_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    assert await ended_in_time(done(), "the end")
    assert not caplog.records
