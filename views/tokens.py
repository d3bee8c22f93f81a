"""Tokens: who may read what. Made, listed and revoked in ClickHouse's table `tokens`; the secret itself is kept nowhere.

A token is `seatmark_` and an id and a secret. The secret has 256 random bits, so its plain SHA-256 tells nothing.
"""

import datetime
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass

import pyarrow as pa
from clickhouse_connect.driver.client import Client

from schemas.errors import Explained
from views.store import Store

_TOKEN = re.compile(r"seatmark_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_MS = pa.timestamp("ms", tz="UTC")


class TokenRefused(Explained):
    """A token cannot be made or revoked as asked; the message says why."""


@dataclass(frozen=True)
class Scope:
    """What a reader may see. everyone: all; else the entitlements of these customers, in the words of the events."""

    everyone: bool
    customers: tuple[str, ...] = ()


EVERYTHING = Scope(everyone=True)


@dataclass(frozen=True)
class Token:
    """A token as it is listed. Times: RFC 3339 in UTC."""

    id: str
    name: str
    scope: Scope
    made_at: str
    revoked_at: str | None


def scope_of(store: Store, token: str) -> Scope | None:
    """What the holder of a token may see; None: there is no such token, or it was revoked.

    Raises StoreUnavailable.
    """
    parts = _TOKEN.fullmatch(token)
    if parts is None:
        return None
    for row in store.query("token", id=parts[1]):
        if hmac.compare_digest(row["secret_sha256"], _hash(parts[2])):
            return Scope(bool(row["admin"]), tuple(row["customers"]))
    return None


def make_token(client: Client, name: str, scope: Scope) -> str:
    """Make a token and give it back: it cannot be shown again.

    Raises TokenRefused: the scope is empty, or names a customer that is empty.
    """
    if scope.everyone == bool(scope.customers):
        raise TokenRefused("a token is either --admin or for one --customer or more")
    if not all(customer.strip() for customer in scope.customers):
        raise TokenRefused("--customer: expected a customer's id, got an empty text")
    identity, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    _write(client, identity, name, _hash(secret), scope, _now(), None)
    return f"seatmark_{identity}_{secret}"


def list_tokens(client: Client) -> list[Token]:
    """All tokens, revoked ones too, the oldest first."""
    return [
        Token(
            identity, name, Scope(bool(admin), tuple(customers)), _text(made), _text(revoked) if revoked is not None else None
        )
        for identity, name, admin, customers, made, revoked in client.query(
            "SELECT id, name, admin, customers, made_at, revoked_at FROM tokens FINAL ORDER BY made_at, id"
        ).result_rows
    ]


def revoke_token(client: Client, identity: str) -> Token:
    """Revoke a token by its id. It is refused from then on; revoking it again changes nothing.

    Raises TokenRefused: there is no such token.
    """
    rows = client.query(
        "SELECT name, secret_sha256, admin, customers, made_at, revoked_at FROM tokens FINAL WHERE id = {id:String}",
        parameters={"id": identity},
    ).result_rows
    if not rows:
        raise TokenRefused(f"there is no token {identity!r}: `seatmark tokens list` shows their ids")
    name, hashed, admin, customers, made, revoked = rows[0]
    scope = Scope(bool(admin), tuple(customers))
    if revoked is None:
        revoked = _now()
        _write(client, identity, name, hashed, scope, made, revoked)
    return Token(identity, name, scope, _text(made), _text(revoked))


def _write(
    client: Client,
    identity: str,
    name: str,
    hashed: str,
    scope: Scope,
    made: datetime.datetime,
    revoked: datetime.datetime | None,
) -> None:
    client.insert_arrow(
        "tokens",
        pa.table(
            {
                "id": [identity],
                "name": [name],
                "secret_sha256": [hashed],
                "admin": [scope.everyone],
                "customers": pa.array([list(scope.customers)], pa.list_(pa.string())),
                "made_at": pa.array([_aware(made)], _MS),
                "revoked_at": pa.array([_aware(revoked) if revoked is not None else None], _MS),
                "written_at": pa.array([_now()], _MS),
            }
        ),
    )


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _aware(moment: datetime.datetime) -> datetime.datetime:
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=datetime.UTC)


def _text(moment: datetime.datetime) -> str:
    return _aware(moment).isoformat(timespec="seconds").replace("+00:00", "Z")
