"""What the parts of the embedded stack are given; that it runs is in test_stack.py."""

import re
from pathlib import Path

import pytest

from seatmark.embedded import StackPlan

README = Path(__file__).parents[2] / "README.md"


def test_the_parts_get_the_settings_that_the_readme_names_and_the_stacks_own_addresses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sentence = re.search(r"of these settings it takes(.*?)\.\n", README.read_text(), re.DOTALL)
    assert sentence is not None
    named = set(re.findall(r"SEATMARK_\w+", sentence[1]))
    assert {"SEATMARK_LEASE_POLICY", "SEATMARK_LEASE_GRACE"} < named
    for variable in {
        *named,
        "SEATMARK_BROKERS",
        "SEATMARK_CLICKHOUSE_DSN",
        "SEATMARK_CLICKHOUSE_DSN_FILE",
        "SEATMARK_KAFKA_USER",
    }:
        monkeypatch.setenv(variable, "given")
    environment = StackPlan(tmp_path, 8000, 19092, 8123, 7).environment()
    # Through the plan, which `up` makes of its settings.
    assert environment["SEATMARK_PARTITIONS"] == "7"
    assert {environment[variable] for variable in named - {"SEATMARK_PARTITIONS"}} == {"given"}
    assert environment["SEATMARK_BROKERS"] == "127.0.0.1:19092"
    assert environment["SEATMARK_CLICKHOUSE_DSN"] == f"chdb://{tmp_path}/clickhouse"
    assert not {"SEATMARK_CLICKHOUSE_DSN_FILE", "SEATMARK_KAFKA_USER"} & set(environment)
