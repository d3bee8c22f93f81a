"""Prometheus' rules and Grafana's dashboards, read: every metric that they name exists, every alert has its runbook."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase

from connectors import metrics as collector_metrics
from processors import metrics
from tests.prometheus import CONFIG, DASHBOARDS, ROOT, RULES, metrics_in, panel_queries, panels, program, rules
from views.web import metrics as web_metrics

# Not of our lists: of prometheus_client itself, and of Prometheus.
OTHERS = {"process_start_time_seconds", "process_resident_memory_bytes", "process_cpu_seconds_total", "up", "ALERTS"}
RULES_TEST = Path(__file__).with_name("rules_test.yml")
RUNBOOKS = ROOT / "docs" / "runbooks.md"
PROVISIONING = ROOT / "deploy" / "grafana" / "provisioning"


def listed() -> dict[str, MetricWrapperBase]:
    """The metrics of all lists, by their names in the lists."""
    return {
        name: metric
        for module in (metrics, collector_metrics, web_metrics)
        for name, metric in vars(module).items()
        if isinstance(metric, MetricWrapperBase)
    }


def sample_names(metric: MetricWrapperBase) -> set[str]:
    """The names that a metric has in Prometheus."""
    [family] = metric.describe()
    endings = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}[family.type]
    return {family.name + ending for ending in endings}


def asked_for() -> set[str]:
    """Every metric that a rule or a panel names."""
    return set().union(*map(metrics_in, [*(rule["expr"] for rule in rules()), *panel_queries()]))


def test_names_are_found_in_queries() -> None:
    query = 'sum by (job) (rate(a_total{b="c", d=~"e|f"}[5m])) / on (x) g_count > bool 0.5 or vector(0) unless h'
    assert metrics_in(query) == {"a_total", "g_count", "h"}


def test_every_metric_of_rules_and_panels_exists_and_every_metric_is_in_one() -> None:
    known = [sample_names(metric) for metric in listed().values()]
    assert asked_for() - OTHERS - set().union(*known) == set()
    assert [names for names in known if not names & asked_for()] == []


def test_every_metric_is_one_that_the_code_sets_and_has_the_form_of_the_others() -> None:
    code = "".join(
        file.read_text()
        for package in ("processors", "connectors", "views", "seatmark")
        for file in (ROOT / package).rglob("*.py")
        if file.name != "metrics.py"
    )
    for name, metric in listed().items():
        assert re.search(rf"\bmetrics\.{name}\b", code), f"nobody sets {name}"
        [family] = metric.describe()
        assert family.name.startswith("seatmark_")
        assert not re.search(r"milli|_ms\b|minute|hour|kilo|mega", family.name)
        assert set(metric._labelnames) <= {
            "check", "outcome", "partition", "reason", "route", "stage", "status", "table", "topic", "type", "what"
        }  # fmt: skip


def test_all_lists_are_registered_once() -> None:
    assert {metric.describe()[0].name for metric in listed().values()} <= set(REGISTRY._names_to_collectors)


# --- Rules


def test_rules_and_configuration_are_what_prometheus_takes() -> None:
    for arguments in (["check", "rules", str(RULES)], ["check", "config", str(CONFIG)], ["test", "rules", str(RULES_TEST)]):
        done = subprocess.run([program("promtool"), *arguments], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_it_means_and_has_its_section_and_its_test(rule: dict[str, Any]) -> None:
    name = rule["alert"]
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"docs/runbooks.md#{name.lower()}"
    section = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", RUNBOOKS.read_text(), flags=re.M | re.S)
    assert section is not None
    for part in ("**Means.**", "**Look.**", "**Do.**"):
        assert part in section[1]
    expected = yaml.safe_load(RULES_TEST.read_text())["tests"][1:]
    assert name in json.dumps(expected)


def test_every_section_is_of_an_alert_and_names_what_there_is() -> None:
    text = RUNBOOKS.read_text()
    assert re.findall(r"^## (\w+)", text, flags=re.M) == [rule["alert"] for rule in rules()]
    known = set().union(*map(sample_names, listed().values()))
    named = set(re.findall(r"`(seatmark_\w+)`", text))
    assert named
    assert {name for name in named if name not in known and f"{name}_count" not in known} == set()


def test_each_part_is_missed_where_there_is_none() -> None:
    jobs = [job["job_name"] for job in yaml.safe_load(CONFIG.read_text())["scrape_configs"]]
    [down] = [rule["expr"] for rule in rules() if rule["alert"] == "SeatmarkProcessDown"]
    # Not everybody has a collector, or has this Prometheus ask ClickHouse.
    needed = [job for job in jobs if job not in {"seatmark-collect", "seatmark-clickhouse"}]
    assert needed == re.findall(r'absent\(up\{job="([\w-]+)"\}\)', down)


# --- Dashboards


@pytest.mark.parametrize("file", sorted(DASHBOARDS.glob("*.json")), ids=lambda file: file.name)
def test_a_dashboard_asks_sources_that_are_provisioned_and_explains_its_panels(file: Path) -> None:
    sources = {
        source["uid"]: source["type"]
        for source in yaml.safe_load((PROVISIONING / "datasources" / "seatmark.yml").read_text())["datasources"]
    }
    dashboard = json.loads(file.read_text())
    every = dashboard["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    for panel in panels(file):
        assert panel["description"]
        for asked in (panel, *panel["targets"]):
            assert sources[asked["datasource"]["uid"]] == asked["datasource"]["type"]
    places = [(at["x"], at["y"]) for panel in every for at in [panel["gridPos"]]]
    assert len(set(places)) == len(places)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in every)


def test_dashboards_differ_in_their_ids_and_are_where_grafana_looks() -> None:
    files = sorted(DASHBOARDS.glob("*.json"))
    assert len({json.loads(file.read_text())["uid"] for file in files}) == len(files) == 2


def test_no_secret_is_in_a_file() -> None:
    text = (PROVISIONING / "datasources" / "seatmark.yml").read_text()
    assert re.findall(r"password: (.*)", text) == ["$CLICKHOUSE_PASSWORD"]
