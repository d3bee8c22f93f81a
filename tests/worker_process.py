"""Worker and sink as processes of their own, as in production, for tests that kill them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


def settings_of(bootstrap: str, prefix: str, partitions: int) -> dict[str, str]:
    """The settings that a worker or sink needs, with timeouts fit for tests."""
    return {
        "SEATMARK_BROKERS": bootstrap,
        "SEATMARK_TOPIC_PREFIX": prefix,
        "SEATMARK_PARTITIONS": str(partitions),
        "SEATMARK_SESSION_TIMEOUT": "6s",
        "SEATMARK_REBALANCE_TIMEOUT": "2s",
    }


class WorkerProcess:
    """`seatmark worker`, or another part, running."""

    def __init__(
        self, settings: Mapping[str, str], log: Path, part: str = "worker", *options: str, module: str = "seatmark"
    ) -> None:
        """module: what runs the command line."""
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, part, *options],
                env={**os.environ, **settings},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def kill(self) -> None:
        """kill -9."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(30)

    def wait(self, seconds: float) -> int:
        """The exit code, once it ends by itself."""
        return self._process.wait(seconds)

    def poll(self) -> int | None:
        """The exit code, if it has ended."""
        return self._process.poll()


@contextmanager
def running_worker(settings: Mapping[str, str], log: Path) -> Iterator[WorkerProcess]:
    """A worker that is gone at the end, whatever happens."""
    with running("worker", settings, log) as worker:
        yield worker


@contextmanager
def running(
    part: str, settings: Mapping[str, str], log: Path, *options: str, module: str = "seatmark"
) -> Iterator[WorkerProcess]:
    """A part, or another command, that is gone at the end, whatever happens."""
    process = WorkerProcess(settings, log, part, *options, module=module)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
