"""The commands that belong to the web: tokens, graphs, and what `seatmark web` refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi import FastAPI
from typer.testing import CliRunner

from schemas.errors import Explained
from seatmark.cli import app, make_web
from seatmark.settings import SettingsWrong, load_settings
from tests.web.conftest import Place, Running
from views.tokens import Scope, TokenRefused, scope_of

PNG = b"\x89PNG\r\n\x1a\n"


def run(*arguments: str) -> str:
    """What a command prints on stdout."""
    result = CliRunner().invoke(app, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_tokens_are_made_listed_and_revoked(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEATMARK_CLICKHOUSE_DSN", place.dsn)
    admin = run("tokens", "make", "ops", "--admin").strip()
    acme = run("tokens", "make", "portal", "--customer", "acme", "--customer", "bee", "--customer", "acme").strip()
    assert scope_of(place.store, admin) == Scope(True)
    assert scope_of(place.store, acme) == Scope(False, ("acme", "bee"))
    identity = acme.split("_")[1]
    run("tokens", "revoke", identity)
    assert scope_of(place.store, acme) is None
    assert scope_of(place.store, admin) == Scope(True), "the others stay"
    listed = json.loads(run("tokens", "list", "--format", "json"))
    assert [(row["name"], row["sees"], row["revoked"] is not None) for row in listed] == [
        ("ops", "everything", False),
        ("portal", "acme, bee", True),
    ]
    shown = run("tokens", "list") + run("tokens", "list", "--format", "csv")
    for token in (admin, acme):
        assert token.split("_", 2)[2] not in shown
    with pytest.raises(TokenRefused, match="either --admin or for one --customer"):
        run("tokens", "make", "nothing")


def test_a_graph_as_a_file(
    acme: Place, run_web: Callable[[FastAPI], Running], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SEATMARK_URL", run_web(acme.app(sign_in=True)).url)
    monkeypatch.setenv("SEATMARK_TOKEN", acme.token("acme"))
    printed = run("usage", "acme/1", "--plot", str(tmp_path / "graph.svg"))
    assert "2026-11-24" in printed
    picture = (tmp_path / "graph.svg").read_text()
    for said in ("<svg", "acme/1, seats", "provisional", ">23 Nov<", ">units<"):
        assert said in picture
    run("usage", "acme/1", "--plot", str(tmp_path / "graph.png"), "--format", "json")
    assert (tmp_path / "graph.png").read_bytes().startswith(PNG)
    refused = CliRunner().invoke(app, ["usage", "acme/1", "--plot", "graph.pdf"])
    assert (refused.exit_code, ".svg or .png" in refused.output) == (2, True)
    with pytest.raises(Explained, match="cannot write the graph"):
        run("usage", "acme/1", "--plot", str(tmp_path / "no-such-directory" / "graph.svg"))


def test_without_a_token_the_command_line_is_told_what_to_set(
    acme: Place, run_web: Callable[[FastAPI], Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEATMARK_URL", run_web(acme.app(sign_in=True)).url)
    with pytest.raises(Explained, match="SEATMARK_TOKEN"):
        run("overdrafts")
    monkeypatch.setenv("SEATMARK_TOKEN", acme.token())
    assert [row["entitlement"] for row in json.loads(run("overdrafts", "--format", "json"))["overdrafts"]] == ["acme/1"]
    assert run("overdrafts", "--format", "csv").splitlines()[1].startswith("acme/1,seats,acme,cad,")


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "::", "seatmark.example"])
def test_without_sign_in_the_web_does_not_listen_where_others_can_reach_it(host: str) -> None:
    with pytest.raises(SettingsWrong, match=f"SEATMARK_AUTH=off .*SEATMARK_WEB_HOST must be .*not '{host}'"):
        make_web(load_settings({"SEATMARK_AUTH": "off", "SEATMARK_WEB_HOST": host}))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_without_sign_in_it_listens_on_this_machine(host: str) -> None:
    open_to_all = make_web(load_settings({"SEATMARK_AUTH": "off", "SEATMARK_WEB_HOST": host}))
    assert open_to_all.state.access.required is False
    assert make_web(load_settings({"SEATMARK_WEB_HOST": "0.0.0.0"})).state.access.required is True
