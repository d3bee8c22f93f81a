"""Prometheus for tests, from Debian's package: its tool, a running server, and what rules and dashboards ask it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from deploy.kafka.cluster import free_ports

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "deploy" / "prometheus" / "prometheus.yml"
RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
DASHBOARDS = ROOT / "deploy" / "grafana" / "dashboards"
# Where .ci/run unpacks the package.
_UNPACKED = ROOT / ".cache" / "prometheus" / "usr" / "bin"
_SECONDS = 90.0


def program(name: str) -> str:
    """The path of `prometheus` or `promtool`. Where there is none the test is skipped, or fails if `CI` is set."""
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), str(_UNPACKED)]))
    if found is None:
        assert not os.environ.get("CI"), f"there is no {name}: .ci/run fetches Debian's prometheus"
        pytest.skip(f"there is no {name}")
    return found


def rules() -> list[dict[str, Any]]:
    """The alerting rules."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels(dashboard: Path) -> list[dict[str, Any]]:
    """The panels of a dashboard that ask something."""
    return [panel for panel in json.loads(dashboard.read_text())["panels"] if panel["type"] != "row"]


def panel_queries() -> list[str]:
    """Every PromQL query of the dashboards, as Grafana sends it with a short interval."""
    return [
        target["expr"].replace("$__rate_interval", "10s")
        for dashboard in sorted(DASHBOARDS.glob("*.json"))
        for panel in panels(dashboard)
        for target in panel["targets"]
        if "expr" in target
    ]


def metrics_in(query: str) -> set[str]:
    """The names of the metrics in a PromQL query."""
    bare = re.sub(r'"[^"]*"', "", query)
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\b(by|without|on|ignoring)\s*\([^)]*\)", " ", bare)
    words = re.findall(r"(?<![\w.])[a-zA-Z_:][\w:]*(?!\w*\s*\()", bare)
    return set(words) - {"and", "or", "unless", "bool"}


class Prometheus:
    """A running server."""

    def __init__(self, url: str, process: subprocess.Popen[bytes]) -> None:
        self.url = url
        self._process = process

    def query(self, query: str) -> list[dict[str, Any]]:
        """What a query gives at this moment. Fails where Prometheus refuses it."""
        answer = httpx.post(f"{self.url}/api/v1/query", data={"query": query}, timeout=30)
        assert answer.status_code == 200, f"{query}: {answer.text}"
        result: list[dict[str, Any]] = answer.json()["data"]["result"]
        return result

    def firing(self) -> set[str]:
        """The names of the alerts that fire."""
        alerts = httpx.get(f"{self.url}/api/v1/alerts", timeout=30).json()["data"]["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    def until(self, fits: Callable[[], object], told: Callable[[], object] = str) -> None:
        """Wait until something is so. told: what to say if it never is."""
        deadline = time.monotonic() + _SECONDS
        while not fits():
            assert self._process.poll() is None, "Prometheus ended"
            assert time.monotonic() < deadline, f"it did not come to that: {told()}"
            time.sleep(0.2)


@contextmanager
def running_prometheus(directory: Path, targets: Mapping[str, int]) -> Iterator[Prometheus]:
    """The configuration and the rules of deploy/, with this machine's ports and with shorter times.

    targets: port by job. What is changed: how targets are found; intervals and the `for` of rules: a second; ages: 3 seconds.
    """
    config = yaml.safe_load(CONFIG.read_text())
    for interval in ("scrape_interval", "scrape_timeout", "evaluation_interval"):
        config["global"][interval] = "1s"
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    assert targets.keys() <= jobs.keys()
    config["scrape_configs"] = [
        {"job_name": name, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]} for name, port in targets.items()
    ]
    quick = re.sub(r"\bfor: \d+m\b", "for: 1s", RULES.read_text())
    quick = re.sub(r"(_seconds(?:\{[^}]*\})?\)) > \d+", r"\1 > 3", quick)
    directory.mkdir()
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    (directory / "rules.yml").write_text(quick)
    [port] = free_ports(1)
    process = subprocess.Popen(
        [
            program("prometheus"),
            f"--config.file={directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
        ]
    )  # fmt: skip
    try:
        prometheus = Prometheus(f"http://127.0.0.1:{port}", process)
        prometheus.until(lambda: _answers(f"{prometheus.url}/-/ready"))
        yield prometheus
    finally:
        process.terminate()
        process.wait(60)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False
