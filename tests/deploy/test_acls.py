"""deploy/kafka/acls.yaml: the docs show it, and the script makes commands of it."""

import re
import subprocess
import sys
from pathlib import Path

import yaml

from deploy.kafka.acls import FILE, RESOURCES, Acl, acls_of, roles
from processors.topics import Topics, sink_group, worker_group
from schemas.topics import catalogue

ROOT = Path(__file__).parents[2]


def test_the_docs_show_each_right() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    granted = yaml.safe_load(FILE.read_text())
    rows = ["| role | who | on | may |", "| --- | --- | --- | --- |"]
    for role, entry in granted.items():
        for kind, resource in RESOURCES.items():
            for name, operations in entry.get(kind, {}).items():
                rows.append(f"| {role} | {entry['who']} | {resource} `{name}` | {', '.join(operations)} |")
    assert "\n".join(rows) in text


def test_names_are_those_of_the_parts() -> None:
    named = {(acl.resource, acl.name) for role in roles() for acl in acls_of(role, "p-")}
    assert {name for resource, name in named if resource == "topic"} == {f"p-{topic.name}" for topic in catalogue()}
    groups = {name for resource, name in named if resource == "group"}
    assert groups == {worker_group("p-"), sink_group("p-"), "p-alerts-"}
    assert {name for resource, name in named if resource == "transactional-id"} == {Topics("p-").changelog + "-"}


def test_the_script_prints_the_commands_of_a_role() -> None:
    assert list(acls_of("producer", "p-")) == [Acl("topic", "p-entitlement-events", False, ("Write",))]
    done = subprocess.run(
        [sys.executable, str(ROOT / "deploy/kafka/acls.py"), "worker", "User:CN=w", "--prefix", "p-"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert len(lines) == len(list(acls_of("worker")))
    assert (
        "kafka-acls.sh --add --allow-principal User:CN=w --transactional-id p-seatmark-ledger-changelog- "
        "--resource-pattern-type prefixed --operation Write"
    ) in lines
    assert all(
        re.fullmatch(r"kafka-acls\.sh --add --allow-principal User:CN=w --(topic|group|transactional-id) p-.*", line)
        for line in lines
    )
