"""ClickHouse as a process of its own, that can be killed, frozen and started again with its data.

`python -m tests.faults.clickhouse DIRECTORY PORT` is that process: the embedded engine behind its HTTP interface.
"""

import asyncio
import signal
import sys
import threading
import urllib.request
from pathlib import Path

from seatmark.chdb_http import ChdbHttp
from seatmark.children import end_with_parent

_READY_SECONDS = 60.0


class ClickHouse:
    """The process. directory: its data; kept. port: of 127.0.0.1."""

    def __init__(self, directory: Path, port: int) -> None:
        self.port = port
        self._directory = directory
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it; done when it answers."""
        self._directory.mkdir(parents=True, exist_ok=True)
        with self._directory.with_suffix(".log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.faults.clickhouse", str(self._directory), str(self.port)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=end_with_parent,
            )
        async with asyncio.timeout(_READY_SECONDS):
            while not await asyncio.to_thread(self._answers):
                assert self._process.returncode is None, f"ClickHouse has ended: see {self._directory.with_suffix('.log')}"
                await asyncio.sleep(0.1)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ping", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    async def kill(self) -> None:
        """kill -9."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open, nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def dsn(self, database: str, port: int | None = None) -> str:
        """The data source name of a database; port: of a proxy in front."""
        return f"http://127.0.0.1:{port or self.port}/{database}"


if __name__ == "__main__":
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.set())
    with ChdbHttp(Path(sys.argv[1]), int(sys.argv[2]), unrestricted=True):
        stopped.wait()
