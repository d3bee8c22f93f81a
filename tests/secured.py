"""A Kafka that lets in only whom it knows: its certificates, users and rights, and a server that gives tokens."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote_plus

import trustme
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import for_code
from aiokafka.protocol.admin import CreateAclsRequest
from cryptography.hazmat.primitives import serialization as keys

from deploy.kafka.acls import acls_of, roles
from deploy.kafka.cluster import HOST, KafkaCluster, Security
from tests.brokers import running_kafka

# As Kafka numbers them.
_RESOURCES = {"topic": 2, "group": 3, "transactional-id": 5}
_OPERATIONS = {"Read": 3, "Write": 4, "Create": 5, "Delete": 6, "Describe": 8, "DescribeConfigs": 10}
_LITERAL, _PREFIXED, _ALLOW = 3, 4, 3


class Authority:
    """Who signs certificates. file: its own."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._directory = directory
        self._authority = trustme.CA()
        self.file = directory / "ca.pem"
        self._authority.cert_pem.write_to_path(str(self.file))

    def certificate(self, name: str) -> Path:
        """The file of a certificate for this user and this machine, and of its key."""
        issued = self._authority.issue_cert(HOST, common_name=name)
        key = keys.load_pem_private_key(issued.private_key_pem.bytes(), None)
        file = self._directory / f"{name}.pem"
        # PKCS #8, because Kafka reads no other form.
        pem = key.private_bytes(keys.Encoding.PEM, keys.PrivateFormat.PKCS8, keys.NoEncryption())
        file.write_bytes(pem + b"".join(part.bytes() for part in issued.cert_chain_pems))
        return file


@dataclass
class SecuredKafka:
    """A running cluster of three. passwords: of each role of deploy/kafka/acls.yaml, which is a user of that name."""

    cluster: KafkaCluster
    security: Security
    authority: Authority
    passwords: dict[str, str]

    def signed_in(self, role: str) -> dict[str, str]:
        """The settings of a user with a password."""
        file = self.authority.file.with_name(f"{role}.password")
        file.write_text(self.passwords[role] + "\n")
        return {
            "SEATMARK_BROKERS": self.cluster.bootstrap,
            "SEATMARK_KAFKA_SECURITY": "sasl_tls",
            "SEATMARK_KAFKA_CA_FILE": str(self.authority.file),
            "SEATMARK_KAFKA_USER": role,
            "SEATMARK_KAFKA_PASSWORD_FILE": str(file),
        }

    def certified(self, role: str) -> dict[str, str]:
        """The settings of a user with a certificate."""
        return {
            "SEATMARK_BROKERS": self.cluster.certified_bootstrap,
            "SEATMARK_KAFKA_SECURITY": "tls",
            "SEATMARK_KAFKA_CA_FILE": str(self.authority.file),
            "SEATMARK_KAFKA_CERTIFICATE_FILE": str(self.authority.certificate(role)),
        }

    def with_tokens(self, tokens: Tokens) -> dict[str, str]:
        """The settings of a user with tokens from this server."""
        return {
            "SEATMARK_BROKERS": self.cluster.bootstrap,
            "SEATMARK_KAFKA_SECURITY": "sasl_tls",
            "SEATMARK_KAFKA_CA_FILE": str(self.authority.file),
            "SEATMARK_KAFKA_SASL_MECHANISM": "oauthbearer",
            "SEATMARK_KAFKA_OAUTH_TOKEN_URL": tokens.url,
            "SEATMARK_KAFKA_OAUTH_CLIENT_ID": tokens.client,
            "SEATMARK_KAFKA_OAUTH_CLIENT_SECRET": tokens.secret,
        }

    async def grant(self, prefix: str) -> None:
        """Give all roles their rights on the topics with this prefix, and nobody any other."""
        requests = [
            CreateAclsRequest(
                _RESOURCES[acl.resource], acl.name, _PREFIXED if acl.begins else _LITERAL,
                f"User:{role}", "*", _OPERATIONS[operation], _ALLOW,
            )
            for role in roles()
            for acl in acls_of(role, prefix)
            for operation in acl.operations
        ]  # fmt: skip
        admin = AIOKafkaAdminClient(
            bootstrap_servers=self.cluster.certified_bootstrap,
            security_protocol="SSL",
            ssl_context=self.security.as_broker(),
        )
        await admin.start()
        try:
            for response in await asyncio.gather(*map(admin._send_request, requests)):
                [(code, message)] = response.creation_responses
                if code:
                    raise for_code(code)(message)
        finally:
            await admin.close()


@contextmanager
def secured_kafka(directory: Path) -> Iterator[SecuredKafka]:
    """Three brokers. A user may do nothing until rights are granted."""
    authority = Authority(directory / "authority")
    passwords = {role: secrets.token_urlsafe(16) for role in roles()}
    security = Security(authority.file, authority.certificate("broker"), passwords)
    with running_kafka(3, directory / "kafka", security=security) as cluster:
        yield SecuredKafka(cluster, security, authority, passwords)
        for broker in (1, 2, 3):
            cluster.kill(broker)  # Nobody wants its data; to end in order takes them seconds.


@dataclass
class Tokens:
    """A server of OAuth 2.0 tokens, that knows one client. asked: the forms it was sent by this client.

    Tokens are signed by nobody, and live for so many seconds. answer: what it says instead, and with which status.
    """

    url: str
    client: str
    secret: str
    seconds: int = 3600
    answer: tuple[int, bytes] | None = None
    asked: list[dict[str, list[str]]] = field(default_factory=list)

    def token(self) -> str:
        """A token of the client, as a JWT."""
        now = int(time.time())
        claims = {"sub": self.client, "iat": now, "exp": now + self.seconds, "jti": secrets.token_hex(4)}
        return ".".join([*(_base64(json.dumps(part).encode()) for part in ({"alg": "none"}, claims)), ""])


def _base64(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).decode().rstrip("=")


@contextmanager
def token_server(client: str, secret: str) -> Iterator[Tokens]:
    """A server of tokens for this client."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            form = self.rfile.read(int(self.headers["content-length"])).decode()
            known = base64.b64encode(f"{quote_plus(client)}:{quote_plus(secret)}".encode()).decode()
            status, body = 401, b'{"error": "invalid_client"}'
            if self.headers["authorization"] == f"Basic {known}":
                tokens.asked.append(parse_qs(form))
                token = {"access_token": tokens.token(), "expires_in": tokens.seconds, "token_type": "Bearer"}
                status, body = tokens.answer or (200, json.dumps(token).encode())
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nothing."""

    with ThreadingHTTPServer((HOST, 0), Handler) as server:
        tokens = Tokens(f"http://{HOST}:{server.server_address[1]}/token", client, secret)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield tokens
        finally:
            server.shutdown()
            thread.join()
