"""The rights of acls.yaml, and the commands of Kafka that give them.

    python deploy/kafka/acls.py worker User:seatmark-worker --prefix eu-

prints one `kafka-acls.sh` command for each resource. An administrator adds --bootstrap-server and --command-config.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

FILE = Path(__file__).with_name("acls.yaml")
# As acls.yaml has them, and as the options of kafka-acls.sh are called.
RESOURCES = {"topics": "topic", "groups": "group", "transactional_ids": "transactional-id"}


@dataclass(frozen=True)
class Acl:
    """Allows these operations on one resource, or on all of its kind whose names begin so."""

    resource: str
    name: str
    begins: bool
    operations: tuple[str, ...]


def roles() -> list[str]:
    """All roles."""
    return list(yaml.safe_load(FILE.read_text()))


def acls_of(role: str, prefix: str = "") -> Iterator[Acl]:
    """What a role may do. prefix: SEATMARK_TOPIC_PREFIX."""
    granted = yaml.safe_load(FILE.read_text())[role]
    for kind, resource in RESOURCES.items():
        for name, operations in granted.get(kind, {}).items():
            yield Acl(resource, prefix + name.removesuffix("*"), name.endswith("*"), tuple(operations))


def main() -> None:
    """Print the commands for one role."""
    parser = argparse.ArgumentParser(description="Print the commands that give a role of acls.yaml its rights on Kafka.")
    parser.add_argument("role", choices=roles())
    parser.add_argument("principal", help="such as User:seatmark-worker")
    parser.add_argument("--prefix", default="", help="SEATMARK_TOPIC_PREFIX (default: none)")
    options = parser.parse_args()
    for acl in acls_of(options.role, options.prefix):
        command = ["kafka-acls.sh", "--add", "--allow-principal", options.principal, f"--{acl.resource}", acl.name]
        command += ["--resource-pattern-type", "prefixed" if acl.begins else "literal"]
        for operation in acl.operations:
            command += ["--operation", operation]
        print(shlex.join(command))


if __name__ == "__main__":
    main()
