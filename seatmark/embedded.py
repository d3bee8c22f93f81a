"""The embedded stack: broker, worker, and sink and web over one data directory, on this machine, supervised.

    seatmark up ─┬─ Tansu             the broker, in memory
                 ├─ seatmark prepare  once: tables, and the worker's state rebuilt from the raw log
                 ├─ seatmark store    sink, web and ClickHouse's HTTP interface in one process: the embedded ClickHouse is
                 │                    one process's
                 └─ seatmark worker   the same as in production

The broker keeps nothing: at every start the worker's state is rebuilt from the raw log, and at a stop everything that the
broker still holds is stored first.
"""

import asyncio
import contextlib
import fcntl
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
from aiokafka.errors import KafkaError

from processors.brokers import Brokers
from processors.topics import worker_group
from schemas.errors import Explained
from seatmark.children import end_with_parent
from seatmark.produce import NotStored, event_ends, group_is_stable, wait_until_stored
from seatmark.settings import PREFIX
from seatmark.tansu import Tansu
from seatmark.topics import ensure_topics
from views.store import chdb_dsn

_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
_DRAIN_SECONDS = 20.0
_RESTART_SECONDS = 1.0
# A child that ends this often without running for a minute in between is not going to work.
_MAX_RESTARTS = 5
_HEALTHY_SECONDS = 60.0
_LOG_LINES_SHOWN = 15


class StackFailed(Explained):
    """The embedded stack cannot start, or cannot go on; the message says what to do."""


@dataclass(frozen=True)
class StackPlan:
    """Where the stack lives. partitions: of each topic."""

    data_dir: Path
    port: int
    broker_port: int
    clickhouse_port: int
    partitions: int

    @property
    def brokers(self) -> Brokers:
        """The broker."""
        return Brokers(f"127.0.0.1:{self.broker_port}")

    @property
    def url(self) -> str:
        """The web's address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def clickhouse(self) -> str:
        """ClickHouse's address."""
        return f"http://127.0.0.1:{self.clickhouse_port}"

    @property
    def logs(self) -> Path:
        """The directory of the children's logs."""
        return self.data_dir / "logs"

    def environment(self) -> dict[str, str]:
        """The environment of the children: ours, with the stack's own addresses and quick timeouts."""
        settings = {
            "BROKERS": self.brokers.addresses,
            "TOPIC_PREFIX": "",
            "PARTITIONS": str(self.partitions),
            # It has no transactions.
            "FENCING": "off",
            # In files that people read.
            "LOG_FORMAT": "text",
            "CLICKHOUSE_DSN": chdb_dsn(self.data_dir / "clickhouse"),
            "CLICKHOUSE_PORT": str(self.clickhouse_port),
            "WEB_HOST": "127.0.0.1",
            "WEB_PORT": str(self.port),
            # One process at a time can open the embedded ClickHouse, so no token could be made while it runs.
            "AUTH": "off",
            # The embedded broker lets the first member of a group wait half the session timeout, and one that comes back
            # after a crash longer.
            "SESSION_TIMEOUT": "3s",
            "REBALANCE_TIMEOUT": "3s",
            "FLUSH_INTERVAL": "200ms",
        }
        # Its broker lets everybody in; and an address of ClickHouse must not come out of a file as well.
        ours = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX + "KAFKA_")}
        ours.pop(PREFIX + "CLICKHOUSE_DSN_FILE", None)
        return ours | {PREFIX + name: value for name, value in settings.items()}


class Child:
    """A process of the stack that is started again when it ends."""

    def __init__(self, name: str, plan: StackPlan) -> None:
        """name: the `seatmark` command that it runs."""
        self._name = name
        self._plan = plan
        self._log_file = plan.logs / f"{name}.log"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start the process; its output goes to its log file."""
        with self._log_file.open("ab") as log:
            self._process = await _run(self._name, self._plan, output=log.fileno())

    async def until_ready(self, ready: Callable[[], Awaitable[bool]]) -> None:
        """Wait until `ready` says so. Raises StackFailed when the process ends, or takes too long."""
        assert self._process is not None
        deadline = asyncio.get_running_loop().time() + _START_SECONDS
        while not await ready():
            if self._process.returncode is not None:
                raise StackFailed(f"the {self._name} ended at its start:\n{self._end_of_log()}")
            if asyncio.get_running_loop().time() > deadline:
                raise StackFailed(f"the {self._name} is not ready after {_START_SECONDS:.0f} s:\n{self._end_of_log()}")
            await asyncio.sleep(0.1)

    async def keep_running(self, say: Callable[[str], None]) -> None:
        """Start the process again whenever it ends. Raises StackFailed when that does not help."""
        clock = asyncio.get_running_loop().time
        restarts, started = 0, clock()
        while True:
            assert self._process is not None
            code = await self._process.wait()
            restarts = 1 if clock() - started > _HEALTHY_SECONDS else restarts + 1
            if restarts > _MAX_RESTARTS:
                raise StackFailed(f"the {self._name} keeps ending (exit code {code}):\n{self._end_of_log()}")
            say(f"the {self._name} ended (exit code {code}); starting it again. Its log: {self._log_file}")
            await asyncio.sleep(_RESTART_SECONDS)
            await self.start()
            started = clock()

    async def stop(self) -> None:
        """End the process: by asking, then by force."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _STOP_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()

    def _end_of_log(self) -> str:
        return "\n".join(self._log_file.read_text(errors="replace").splitlines()[-_LOG_LINES_SHOWN:])


class Stack:
    """The running stack, as an async context manager: entering returns when it is ready, leaving stops it in order.

    Raises StackFailed, seatmark.tansu.BrokerUnavailable on entering: a port or the data directory is taken, or a part does
    not start.
    """

    def __init__(self, plan: StackPlan, say: Callable[[str], None]) -> None:
        """say: told what happens, a line at a time."""
        self._plan = plan
        self._say = say
        self._exit = contextlib.AsyncExitStack()
        self._worker = Child("worker", plan)
        self._store = Child("store", plan)

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._exit.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exit.aclose()

    async def _start(self) -> None:
        plan = self._plan
        plan.logs.mkdir(parents=True, exist_ok=True)
        self._exit.enter_context(_locked(plan.data_dir))
        _refuse_taken_port(plan.port, "--port")
        _refuse_taken_port(plan.clickhouse_port, "--clickhouse-port")
        broker_log = self._exit.enter_context((plan.logs / "broker.log").open("ab"))
        self._tansu = self._exit.enter_context(Tansu(plan.broker_port, broker_log))
        await ensure_topics(plan.brokers, prefix="", partitions=plan.partitions, replication=1)
        preparing = await _run("prepare", plan, output=None)
        if await preparing.wait():
            raise StackFailed(f"the data in {plan.data_dir} could not be prepared; the reason is above")
        for child in (self._store, self._worker):
            self._exit.push_async_callback(child.stop)
            await child.start()
        await self._store.until_ready(self._web_is_ready)
        await self._worker.until_ready(lambda: group_is_stable(plan.brokers, worker_group("")))
        self._exit.push_async_callback(self._drain)

    async def run(self, stop: asyncio.Event) -> None:
        """Keep the stack running until `stop` is set. Raises StackFailed: the broker ended, or a child keeps ending."""
        parts = [self._worker.keep_running(self._say), self._store.keep_running(self._say), self._watch_broker()]
        tasks = [asyncio.ensure_future(part) for part in (*parts, stop.wait())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch_broker(self) -> None:
        while (code := self._tansu.poll()) is None:
            await asyncio.sleep(0.5)
        raise StackFailed(
            f"the broker ended (exit code {code}), and with it the events that were not stored yet. "
            "Start again: the state is rebuilt from the raw log"
        )

    async def _web_is_ready(self) -> bool:
        # Plain HTTP, asked often: reading the machine's certificates would cost more than all else.
        async with httpx.AsyncClient(verify=False) as client:
            try:
                return (await client.get(self._plan.url + "/readyz")).status_code == httpx.codes.OK
            except httpx.TransportError:
                return False

    async def _drain(self) -> None:
        """Store what the broker still holds: it is gone when the broker stops."""
        if self._tansu.poll() is not None:
            return
        brokers = self._plan.brokers
        try:
            ends = await event_ends(brokers, "", self._plan.partitions)
            await wait_until_stored(ends, brokers=brokers, prefix="", timeout=_DRAIN_SECONDS, on_progress=lambda _: None)
        except (NotStored, KafkaError) as error:
            self._say(f"stopping although not everything is stored: {error}")


async def _run(command: str, plan: StackPlan, output: int | None) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "seatmark",
        command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=plan.environment(),
        # Ctrl-C reaches only us; we stop the children in order.
        start_new_session=True,
        preexec_fn=end_with_parent,
    )


@contextlib.contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    with (data_dir / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StackFailed(
                f"another seatmark is running on the data directory {data_dir}: stop it, or choose another --data-dir"
            ) from error
        yield


def port_or_free_one(port: int) -> int:
    """The port, or a free one if it is taken."""
    try:
        _refuse_taken_port(port, "--port")
    except StackFailed:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            free: int = probe.getsockname()[1]
            return free
    return port


def _refuse_taken_port(port: int, option: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise StackFailed(f"cannot listen on 127.0.0.1:{port} ({error.strerror}): choose another {option}") from error
