"""Tables on a terminal: as wide as it is, and whole."""

import re
from typing import Any

import pytest

from seatmark.reports import print_overdrafts, print_usage


def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int) -> list[str]:
    """What a terminal of so many columns shows: 30 days, then who is above the limit."""
    day: dict[str, Any] = {"min": 0, "max": 12, "closing": 7, "limit": 10, "hard_limit": 13, "terms_known": True}
    day |= {"overdraft_seconds": 960, "activations": 48, "denials": 2}
    days = [
        {**day, "day": f"2026-10-{number:02}", "state": "provisional" if number == 30 else "final"} for number in range(1, 31)
    ]
    overdraft = {"customer": "Borealis Studios", "product": "render-suite", "entitlement": "ent-1002", "element": "seats",
                 "level": 16, "limit": 12, "hard_limit": 18, "state": "overdraft",
                 "since": "2026-11-24T02:47:07.457Z"}  # fmt: skip
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    print_usage({"entitlement": "ent-1003", "element": "seats", "timezone": "UTC", "days": days})
    print_overdrafts({"overdrafts": [overdraft]})
    return re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()


def test_a_terminal_of_80_columns_has_all_of_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(monkeypatch, capsys, 80)
    assert max(map(len, lines)) <= 80
    rows = [line.split() for line in lines if line.startswith("2026-")]
    assert rows == [
        [f"2026-10-{number:02}", "0", "12", "7", "10", "13", "0", "h", "16", "min", "48", "2",
         "provisional" if number == 30 else "final"]
        for number in range(1, 31)
    ]  # fmt: skip
    [row] = [line.split() for line in lines if line.startswith("Borealis")]
    assert row[2:] == ["ent-1002", "seats", "16", "12", "18", "overdraft", "2026-11-24"]


@pytest.mark.parametrize("columns", [20, 60, 200])
def test_nothing_is_cut(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int) -> None:
    lines = shown(monkeypatch, capsys, columns)
    assert "…" not in "".join(lines)
    assert [line.split()[1:6] for line in lines if line.startswith("2026-")] == [["0", "12", "7", "10", "13"]] * 30
