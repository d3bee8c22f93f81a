"""A TCP proxy that can delay, cut and swallow what goes through it."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

_PIECE = 256 * 1024


class Proxy:
    """Forwards connections to a port of 127.0.0.1, as an async context manager; what it does to them can change.

    delay: seconds that each piece of data waits, either way.
    """

    def __init__(self, target: int, port: int = 0) -> None:
        """port: to listen on; 0 takes a free one."""
        self._target = target
        self.port = port
        self.delay = 0.0
        self._answers_to_cut = 0
        self._open = asyncio.Event()
        self._open.set()
        self._refusing = False
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.answers_cut = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port, limit=_PIECE)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Close all connections."""
        for writer in list(self._writers):
            writer.transport.abort()

    def refuse(self) -> None:
        """Close all connections, and new ones at once, until `heal`."""
        self._refusing = True
        self.cut()

    def blackhole(self) -> None:
        """Connections stay open and are accepted, but nothing gets through, until `heal`."""
        self._open.clear()

    def cut_answers(self, count: int) -> None:
        """Let requests through, and close the connection in place of the next so many answers."""
        self._answers_to_cut = count

    def heal(self) -> None:
        """Forward everything again, also what waited."""
        self._refusing = False
        self.delay = 0.0
        self._answers_to_cut = 0
        self._open.set()

    async def _connected(self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(client)
        try:
            if self._refusing:
                return
            # Cancelled only when the proxy ends, and asyncio would complain of it.
            with suppress(OSError, asyncio.CancelledError):
                await self._open.wait()
                server_reader, server = await asyncio.open_connection("127.0.0.1", self._target, limit=_PIECE)
                self._writers.add(server)
                try:
                    await self._forward(client_reader, client, server_reader, server)
                finally:
                    self._writers.discard(server)
                    server.transport.abort()
        finally:
            self._tasks.discard(task)
            self._writers.discard(client)
            client.transport.abort()

    async def _forward(
        self,
        client_reader: asyncio.StreamReader,
        client: asyncio.StreamWriter,
        server_reader: asyncio.StreamReader,
        server: asyncio.StreamWriter,
    ) -> None:
        """Until one side ends: half-open connections are none that the product makes."""
        both = {
            asyncio.ensure_future(self._pump(client_reader, server, self._pass_request)),
            asyncio.ensure_future(self._pump(server_reader, client, self._pass_answer)),
        }
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in both:
                pump.cancel()
            await asyncio.gather(*both, return_exceptions=True)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, may_pass: Callable[[], Awaitable[bool]]
    ) -> None:
        with suppress(OSError):
            while piece := await reader.read(_PIECE):
                if not await may_pass():
                    return
                writer.write(piece)
                await writer.drain()

    async def _pass_request(self) -> bool:
        if self.delay:
            await asyncio.sleep(self.delay)
        await self._open.wait()
        return True

    async def _pass_answer(self) -> bool:
        if self._answers_to_cut:
            self._answers_to_cut -= 1
            self.answers_cut += 1
            return False
        return await self._pass_request()
