"""The proxy: what it does to connections is what the scenarios say that it does."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.faults.proxy import Proxy


@asynccontextmanager
async def echo() -> AsyncIterator[tuple[Proxy, list[bytes]]]:
    """A proxy in front of a server that answers each line with the line; and the lines that the server got."""
    got: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            got.append(line)
            writer.write(line)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, Proxy(server.sockets[0].getsockname()[1]) as proxy:
        yield proxy, got


async def ask(proxy: Proxy, line: bytes = b"hello\n") -> bytes:
    """The answer on a connection of its own; nothing if it is closed instead."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        writer.write(line)
        return await reader.readline()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_it_forwards() -> None:
    async with echo() as (proxy, got):
        assert await ask(proxy, b"x" * 50_000 + b"\n") == b"x" * 50_000 + b"\n"
        assert len(got) == 1


async def test_it_delays_either_way() -> None:
    async with echo() as (proxy, _):
        proxy.delay = 0.05
        started = time.monotonic()
        assert await ask(proxy) == b"hello\n"
        assert time.monotonic() - started >= 0.1


async def test_it_cuts_open_connections_and_takes_new_ones() -> None:
    async with echo() as (proxy, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"hello\n")
        assert await reader.readline() == b"hello\n"
        proxy.cut()
        assert await reader.read() == b""
        assert await ask(proxy) == b"hello\n"


async def test_it_refuses_until_it_is_healed() -> None:
    async with echo() as (proxy, got):
        proxy.refuse()
        assert await ask(proxy) == b""
        assert got == []
        proxy.heal()
        assert await ask(proxy) == b"hello\n"


async def test_what_it_swallows_gets_through_when_it_is_healed() -> None:
    async with echo() as (proxy, got):
        proxy.blackhole()
        waiting = asyncio.ensure_future(ask(proxy))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(waiting), 0.2)
        assert got == []
        proxy.heal()
        assert await waiting == b"hello\n"


async def test_it_lets_a_request_through_and_cuts_its_answer() -> None:
    async with echo() as (proxy, got):
        proxy.cut_answers(1)
        assert await ask(proxy) == b""
        assert got == [b"hello\n"]
        assert await ask(proxy) == b"hello\n"
