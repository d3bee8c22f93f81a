"""Commands for tokens: who may read the web. They write to ClickHouse directly, not through the web."""

from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from seatmark.console import Format, print_csv, print_json, print_rows, say
from seatmark.settings import load_settings

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

commands = typer.Typer(help="Tokens for the web: make, list, revoke.", no_args_is_help=True)


@commands.command()
def make(
    name: Annotated[str, typer.Argument(help="who or what it is for; shown in the list")],
    admin: Annotated[bool, typer.Option("--admin", help="may see everything")] = False,
    customer: Annotated[
        list[str] | None, typer.Option(help="may see this customer's entitlements; may be given more than once")
    ] = None,
) -> None:
    """Make a token, and print it: it is kept nowhere, so it cannot be shown again."""
    from views.tokens import Scope, make_token

    with closing(_client()) as client:
        token = make_token(client, name, Scope(admin, tuple(dict.fromkeys(customer or ()))))
    print(token)
    say("This is the only time that it is shown. Sign in with it, or send it as `Authorization: Bearer ...`.")


@commands.command("list")
def list_command(
    format: Annotated[Format, typer.Option("--format", help="table for people, json or csv for programs")] = Format.table,
) -> None:
    """All tokens: what they may see, and which are revoked. Never the secrets."""
    from views.tokens import list_tokens

    with closing(_client()) as client:
        rows = [
            {
                "id": token.id,
                "name": token.name,
                "sees": "everything" if token.scope.everyone else ", ".join(token.scope.customers),
                "made": token.made_at,
                "revoked": token.revoked_at,
            }
            for token in list_tokens(client)
        ]
    if format is Format.json:
        print_json(rows)
    elif format is Format.csv:
        print_csv(rows)
    else:
        print_rows(rows, {name: name for name in ("id", "name", "sees", "made", "revoked")}, title="Tokens")


@commands.command()
def revoke(token: Annotated[str, typer.Argument(metavar="ID", help="the token's id, as in the list")]) -> None:
    """Revoke a token: it is refused from the next request on, and its sessions end."""
    from views.tokens import revoke_token

    with closing(_client()) as client:
        revoked = revoke_token(client, token)
    say(f"{revoked.id} ({revoked.name}) was revoked at {revoked.revoked_at}")


def _client() -> "Client":
    from views.store import connect

    return connect(load_settings().clickhouse_dsn.get_secret_value())
