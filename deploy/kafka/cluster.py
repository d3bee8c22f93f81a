"""A real Apache Kafka on loopback, without containers: one broker, or three that replicate.

The jars come through Maven (``pom.xml`` beside this file) into a cache directory, once. Every node is broker
and controller (KRaft) in its own JVM, so that a test can kill one. Standard library only: it also runs as a
script, before anything is installed. ``deploy/kafka/start`` is the command, the test fixtures use
:class:`KafkaCluster`.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import os
import random
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self
from xml.etree import ElementTree

HOST = "127.0.0.1"
POM = Path(__file__).with_name("pom.xml")
CACHE = Path(__file__).resolve().parents[2] / ".cache" / "kafka"

LARGEST_BATCH = 64 * 1024 * 1024
"""Largest record batch the brokers take. A changelog gets one batch per chunk: only a batch is atomic."""

_JVM_OPTIONS = (
    "-Xmx512m",
    # A broker that lives for minutes is up sooner with the quick compiler and one collector thread.
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:+ExitOnOutOfMemoryError",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
)
_JAVA_NEEDED = 17
_READY_SECONDS = 60.0
_STOP_SECONDS = 20.0


class KafkaUnavailable(RuntimeError):
    """Kafka cannot be run here, or did not start; the message says what to do."""


def kafka_version() -> str:
    """The version that ``pom.xml`` asks for."""
    version = ElementTree.parse(POM).findtext(".//{*}kafka.version")
    if not version:
        raise KafkaUnavailable(f"{POM} has no <kafka.version>")
    return version


def find_java() -> str:
    """The ``java`` to run: of ``JAVA_HOME``, else the one on the path.

    Raises:
        KafkaUnavailable: there is none, or it is too old.
    """
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home, "bin", "java")) if home else "java"
    try:
        told = subprocess.run([java, "-version"], capture_output=True, text=True, check=True).stderr
    except (OSError, subprocess.CalledProcessError) as error:
        raise KafkaUnavailable(f"Kafka needs Java {_JAVA_NEEDED} or later: {java} does not run ({error})") from error
    found = re.search(r'version "(\d+)', told)
    if found is None or int(found[1]) < _JAVA_NEEDED:
        raise KafkaUnavailable(f"Kafka needs Java {_JAVA_NEEDED} or later, {java} says: {told.splitlines()[0]}")
    return java


def fetch_jars(cache: Path = CACHE) -> Path:
    """The directory with Kafka's jars, fetched by Maven if this is the first time.

    Raises:
        KafkaUnavailable: Maven is missing, or could not fetch them.
    """
    jars = cache / kafka_version()
    if jars.is_dir():
        return jars
    maven = shutil.which("mvn")
    if maven is None:
        raise KafkaUnavailable("fetching Kafka needs Maven: mvn is not on the path")
    cache.mkdir(parents=True, exist_ok=True)
    # Fetched beside its place and renamed, so that an interrupted fetch never passes for a complete one.
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        fetched = Path(scratch, "jars")
        options = ["-q", "-B", "-f", str(POM), "-DincludeScope=runtime", f"-DoutputDirectory={fetched}"]
        command = [maven, *options, "dependency:copy-dependencies"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise KafkaUnavailable(f"Maven could not fetch Kafka's jars:\n{_tail(done.stdout + done.stderr)}")
        try:
            fetched.rename(jars)
        except OSError:
            if not jars.is_dir():  # Unless another process has just put the same jars there.
                raise
    return jars


def free_ports(count: int) -> list[int]:
    """Loopback ports nobody listens on now.

    From below the range the system hands out to outgoing connections: a broker that is down for a moment
    would otherwise find that some client's connection has taken its port.
    """
    candidates = range(20_000, 30_000)
    return list(islice(filter(_is_free, random.sample(candidates, len(candidates))), count))


@dataclass(frozen=True)
class Security:
    """For a cluster that encrypts, and lets in only whom it knows: how it is told who that is. All files are PEM.

    Clients sign in at ``bootstrap``, with SCRAM, PLAIN or OAUTHBEARER, or show a certificate at ``certified_bootstrap``; its
    common name is the user. Without an ACL nobody may do anything but who has the brokers' own certificate.

    Args:
        authority: certificate of who signs those of brokers and clients.
        broker: certificate of the brokers and its key, unencrypted in PKCS #8. Their user is ``broker``, its common name.
        passwords: of the users with SCRAM and PLAIN. Tokens of OAUTHBEARER need no signature: this is for tests.
    """

    authority: Path
    broker: Path
    passwords: Mapping[str, str]

    def settings(self) -> dict[str, object]:
        """What brokers need to be told, beside their listeners."""
        modules = "org.apache.kafka.common.security"
        users = " ".join(f'user_{name}="{password}"' for name, password in self.passwords.items())
        oauth = f'{modules}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";'
        return {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": self.broker,
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": self.authority,
            "listener.name.certified.ssl.client.auth": "required",
            "listener.name.controller.ssl.client.auth": "required",
            "ssl.principal.mapping.rules": "RULE:^.*CN=([^,]+).*$/$1/",
            "sasl.enabled.mechanisms": "SCRAM-SHA-512,SCRAM-SHA-256,PLAIN,OAUTHBEARER",
            "listener.name.sasl.scram-sha-512.sasl.jaas.config": f"{modules}.scram.ScramLoginModule required;",
            "listener.name.sasl.scram-sha-256.sasl.jaas.config": f"{modules}.scram.ScramLoginModule required;",
            "listener.name.sasl.plain.sasl.jaas.config": f"{modules}.plain.PlainLoginModule required {users};",
            "listener.name.sasl.oauthbearer.sasl.jaas.config": oauth,
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:broker",
        }

    def as_broker(self) -> ssl.SSLContext:
        """For a client that is a broker."""
        context = ssl.create_default_context(cafile=self.authority)
        context.load_cert_chain(self.broker)
        return context


@dataclass
class _Node:
    number: int
    port: int
    controller_port: int
    certified_port: int
    directory: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def settings_file(self) -> Path:
        return self.directory / "server.properties"

    @property
    def log_file(self) -> Path:
        return self.directory / "broker.log"

    @property
    def data(self) -> Path:
        return self.directory / "data"


class KafkaCluster:
    """Kafka brokers on loopback, numbered from 1. A context manager: starts on entry, stops on exit.

    Args:
        brokers: how many, 1 or 3.
        data_dir: where topics, settings and logs go. Kept: a later cluster of the same size finds its topics
            there.
        port: port of the first broker, the others take the following ones. Without it free ones are chosen.
        proxies: by broker, a port of loopback on which something forwards to the broker's second listener, whose port is in
            ``behind_proxies``. Clients that come that way are told these ports: Kafka tells its clients where to connect.
        security: without it everybody may do everything, unencrypted.
    """

    def __init__(
        self,
        brokers: int,
        data_dir: Path,
        port: int | None = None,
        proxies: Sequence[int] = (),
        security: Security | None = None,
    ) -> None:
        # By size, because one that was formatted as one broker cannot become three.
        self._directory = data_dir.resolve() / f"cluster-of-{brokers}"
        free = free_ports(4 * brokers)
        ports = free[:brokers] if port is None else range(port, port + brokers)
        controller_ports = free[brokers : 2 * brokers]
        certified_ports = free[2 * brokers : 3 * brokers]
        self.behind_proxies = free[3 * brokers :] if proxies else []
        self.proxies = list(proxies)
        self._security = security
        self._nodes = {
            number: _Node(number, *of_node, self._directory / f"broker-{number}")
            for number, of_node in enumerate(zip(ports, controller_ports, certified_ports, strict=True), start=1)
        }
        self._java = ""
        self._class_path = ""

    @property
    def bootstrap(self) -> str:
        """Addresses of all brokers, as clients take them."""
        return ",".join(f"{HOST}:{node.port}" for node in self._nodes.values())

    @property
    def certified_bootstrap(self) -> str:
        """Addresses of all brokers for clients with a certificate; only with ``security``."""
        return ",".join(f"{HOST}:{node.certified_port}" for node in self._nodes.values())

    @property
    def proxied_bootstrap(self) -> str:
        """Addresses of all brokers for clients that come through the proxies."""
        return ",".join(f"{HOST}:{port}" for port in self.proxies)

    def start(self) -> None:
        """Start all brokers and return once each of them knows of all.

        Raises:
            KafkaUnavailable: Java or the jars are missing, a port is taken, or a broker did not come up.
        """
        self._java = find_java()
        self._class_path = str(fetch_jars() / "*")
        for node in self._nodes.values():
            if not _is_free(node.port):
                raise KafkaUnavailable(f"port {node.port} of {HOST} is taken: stop what listens there, or choose another")
        try:
            self._format()
            for node in self._nodes.values():
                self._launch(node)
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the brokers that run, politely if they can."""
        running = self._running()
        for node, process in running:
            process.terminate()
            node.process = None
        deadline = time.monotonic() + _STOP_SECONDS
        for _, process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def kill(self, broker: int) -> None:
        """Kill one broker without warning (SIGKILL). The others elect leaders when its session runs out."""
        node = self._nodes[broker]
        if node.process is not None:
            node.process.kill()
            node.process.wait()
            node.process = None

    def freeze(self, broker: int) -> None:
        """Stop one broker where it is (SIGSTOP): its connections stay open, and it answers nothing until `thaw`."""
        self._signal(broker, signal.SIGSTOP)

    def thaw(self, broker: int) -> None:
        """Let a frozen broker go on."""
        self._signal(broker, signal.SIGCONT)

    def _signal(self, broker: int, number: signal.Signals) -> None:
        process = self._nodes[broker].process
        if process is not None:
            process.send_signal(number)

    def restart(self, broker: int) -> None:
        """Start a killed broker again, with its data, and return once all running brokers know of each other.

        Raises:
            KafkaUnavailable: it did not come up.
        """
        self._launch(self._nodes[broker])
        self._wait_until_ready()

    def wait(self) -> NoReturn:
        """Watch over the brokers for good.

        Raises:
            KafkaUnavailable: a broker has ended by itself.
        """
        while True:
            self._check_alive()
            time.sleep(0.5)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _running(self) -> list[tuple[_Node, subprocess.Popen[bytes]]]:
        return [(node, node.process) for node in self._nodes.values() if node.process is not None]

    def _settings(self, node: _Node) -> dict[str, object]:
        count = len(self._nodes)
        voters = (f"{peer.number}@{HOST}:{peer.controller_port}" for peer in self._nodes.values())
        replicas = min(count, 3)
        in_sync = min(count, 2)
        listeners = f"PLAINTEXT://{HOST}:{node.port}"
        advertised, protocols = listeners, "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT"
        if self.proxies:
            listeners += f",PROXIED://{HOST}:{self.behind_proxies[node.number - 1]}"
            advertised += f",PROXIED://{HOST}:{self.proxies[node.number - 1]}"
            protocols += ",PROXIED:PLAINTEXT"
        if self._security:
            listeners = advertised = f"SASL://{HOST}:{node.port},CERTIFIED://{HOST}:{node.certified_port}"
            protocols = "SASL:SASL_SSL,CERTIFIED:SSL,CONTROLLER:SSL"
        return {
            **(self._security.settings() if self._security else {}),
            "process.roles": "broker,controller",
            "node.id": node.number,
            # Voters by setting rather than in the metadata: controller ports may differ the next time.
            "controller.quorum.voters": ",".join(voters),
            "controller.listener.names": "CONTROLLER",
            "listeners": f"{listeners},CONTROLLER://{HOST}:{node.controller_port}",
            "advertised.listeners": advertised,
            "listener.security.protocol.map": protocols,
            "inter.broker.listener.name": "CERTIFIED" if self._security else "PLAINTEXT",
            "log.dirs": node.data,
            "auto.create.topics.enable": "false",
            "default.replication.factor": replicas,
            "min.insync.replicas": in_sync,
            "offsets.topic.replication.factor": replicas,
            "transaction.state.log.replication.factor": replicas,
            "transaction.state.log.min.isr": in_sync,
            # Each partition of the internal topics costs start-up time, and one machine has no use for 50.
            "offsets.topic.num.partitions": 4,
            "transaction.state.log.num.partitions": 4,
            "message.max.bytes": LARGEST_BATCH,
            "replica.fetch.max.bytes": LARGEST_BATCH,
            "socket.request.max.bytes": 2 * LARGEST_BATCH,
            # Groups form at once, and short sessions are allowed: tests wait for neither.
            "group.initial.rebalance.delay.ms": 0,
            "group.min.session.timeout.ms": 1000,
            # A killed broker is missed after 3 s instead of 9.
            "broker.session.timeout.ms": 3000,
            "broker.heartbeat.interval.ms": 500,
            # Nothing happens for long on a machine for tests: a sign of life in the metadata need not come twice a second.
            "metadata.max.idle.interval.ms": 5000,
            # The default of 128 MiB is a quarter of this heap.
            "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,
        }

    def _format(self) -> None:
        """Write each node's settings, and prepare the storage of those that have none yet."""
        self._directory.mkdir(parents=True, exist_ok=True)
        identity = self._directory / "cluster-id"
        if not identity.exists():
            identity.write_text(base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("="))
        formatting = []
        for node in self._nodes.values():
            node.directory.mkdir(exist_ok=True)
            lines = (f"{name}={value}\n" for name, value in self._settings(node).items())
            node.settings_file.write_text("".join(lines))
            if not (node.data / "meta.properties").exists():
                cluster = f"--cluster-id={identity.read_text()}"
                command = ["format", cluster, *self._users(), "--config"]
                formatting.append(self._run(node, "kafka.tools.StorageTool", *command))
                node.process = formatting[-1]
        for node, process in self._running():
            failed = process.wait()
            node.process = None
            if failed:
                raise KafkaUnavailable(f"formatting Kafka's storage failed:\n{_tail(node.log_file.read_text())}")

    def _users(self) -> list[str]:
        if self._security is None:
            return []
        users = self._security.passwords.items()
        return [
            f"--add-scram=SCRAM-SHA-{bits}=[name={name},password={password}]" for name, password in users for bits in (512, 256)
        ]

    def _launch(self, node: _Node) -> None:
        node.process = self._run(node, "kafka.Kafka")

    def _run(self, node: _Node, main_class: str, *arguments: str) -> subprocess.Popen[bytes]:
        jvm = [self._java, *_JVM_OPTIONS, "-cp", self._class_path]
        command = [*jvm, main_class, *arguments, str(node.settings_file)]
        with node.log_file.open("ab") as log:
            # In a session of its own, so that Ctrl-C reaches only this process, which then stops the brokers.
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        running = [node for node, _ in self._running()]
        tls = self._security.as_broker() if self._security else None
        while any(_known_brokers(node.certified_port if tls else node.port, tls) < len(running) for node in running):
            self._check_alive()
            if time.monotonic() > deadline:
                raise KafkaUnavailable(f"Kafka is not ready after {_READY_SECONDS:.0f} s: see the logs in {self._directory}")
            time.sleep(0.05)

    def _check_alive(self) -> None:
        for node, process in self._running():
            if process.poll() is not None:
                raise KafkaUnavailable(f"Kafka broker {node.number} has ended:\n{_tail(node.log_file.read_text())}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the broker itself does: connections that linger after a previous broker do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _known_brokers(port: int, tls: ssl.SSLContext | None) -> int:
    """How many live brokers the one at this port tells its clients about: 0 while it does not answer."""
    metadata_api, version, no_topics = 3, 1, 0
    request = struct.pack(">hhihi", metadata_api, version, 0, -1, no_topics)
    try:
        with contextlib.ExitStack() as opened:
            connection = opened.enter_context(socket.create_connection((HOST, port), timeout=2))
            if tls:
                connection = opened.enter_context(tls.wrap_socket(connection, server_hostname=HOST))
            connection.sendall(struct.pack(">i", len(request)) + request)
            _size, _correlation, brokers = struct.unpack(">iii", connection.makefile("rb").read(12))
    except (OSError, struct.error):
        return 0
    return int(brokers)


def _tail(text: str) -> str:
    return "\n".join(text.splitlines()[-15:])


def main(arguments: list[str] | None = None) -> int:
    """Run a cluster in the foreground until it is interrupted; returns the exit code."""
    parser = argparse.ArgumentParser(description="Run a real Apache Kafka on loopback until Ctrl-C.")
    parser.add_argument("--port", type=int, default=9092, help="of the first broker (default: %(default)s)")
    parser.add_argument("--data", type=Path, default=CACHE / "data", help="directory, kept (default: %(default)s)")
    parser.add_argument("--brokers", type=int, choices=(1, 3), default=1, help="default: %(default)s")
    options = parser.parse_args(arguments)
    # Also for SIGINT, which a shell makes background commands ignore.
    for interrupt in (signal.SIGINT, signal.SIGTERM):
        signal.signal(interrupt, signal.default_int_handler)
    try:
        with KafkaCluster(options.brokers, options.data, options.port) as cluster:
            print(
                f"Kafka {kafka_version()} is ready at {cluster.bootstrap}, its data in {options.data}",
                flush=True,
            )
            cluster.wait()
    except KafkaUnavailable as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
