"""deploy/k8s, built by kustomize and held against Kubernetes' own schemas: no cluster runs here."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from processors.app import _END_SECONDS
from processors.topics import worker_group
from schemas.topics import catalogue
from seatmark.settings import PREFIX, Settings, load_settings
from tests.prometheus import CONFIG as PROMETHEUS
from tests.prometheus import RULES

ROOT = Path(__file__).parents[2]
K8S = ROOT / "deploy" / "k8s"
KUBERNETES = ("1.31", "1.37")

Object = dict[str, Any]

# No schemas are published in a package for these. What is used of them, as their references say.
_TEXT, _NUMBER = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0}


def _only(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    properties = {**required, **(optional or {})}
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


_POLICIES = {
    "type": "array",
    "items": _only(
        {"type": {"enum": ["Pods", "Percent"]}, "value": _NUMBER, "periodSeconds": {"type": "integer", "maximum": 1800}}
    ),
}
_BEHAVIOUR = _only({"stabilizationWindowSeconds": {"type": "integer", "minimum": 0, "maximum": 3600}, "policies": _POLICIES})
_RELABELING = _only({"sourceLabels": {"type": "array", "items": _TEXT}, "targetLabel": _TEXT, "replacement": _TEXT})
_RULE = _only({"alert": _TEXT, "expr": _TEXT, "labels": {"type": "object"}, "annotations": {"type": "object"}}, {"for": _TEXT})
_RULES = _only({"name": _TEXT, "rules": {"type": "array", "items": _RULE}})
CUSTOM = {
    ("monitoring.coreos.com/v1", "PodMonitor"): _only(
        {
            "selector": _only({"matchLabels": {"type": "object"}}),
            "podMetricsEndpoints": {
                "type": "array",
                "items": _only(
                    {"port": _TEXT, "interval": {"pattern": r"^\d+s$"}, "relabelings": {"type": "array", "items": _RELABELING}}
                ),
            },
        }
    ),
    ("monitoring.coreos.com/v1", "PrometheusRule"): _only({"groups": {"type": "array", "items": _RULES}}),
    ("keda.sh/v1alpha1", "ScaledObject"): _only(
        {
            "scaleTargetRef": _only({"name": _TEXT}),
            "pollingInterval": _NUMBER,
            "minReplicaCount": _NUMBER,
            "maxReplicaCount": _NUMBER,
            "advanced": _only(
                {"horizontalPodAutoscalerConfig": _only({"behavior": _only({"scaleUp": _BEHAVIOUR, "scaleDown": _BEHAVIOUR})})}
            ),
            "triggers": {
                "type": "array",
                "items": _only(
                    {
                        "type": {"const": "kafka"},
                        "metadata": _only(
                            {
                                "bootstrapServers": _TEXT,
                                "consumerGroup": _TEXT,
                                "topic": _TEXT,
                                # KEDA takes texts only.
                                "lagThreshold": {"type": "string", "pattern": r"^\d+$"},
                                "offsetResetPolicy": {"enum": ["earliest", "latest"]},
                            },
                            {"sasl": {"enum": ["scram_sha256", "scram_sha512"]}, "tls": {"enum": ["enable", "disable"]}},
                        ),
                    },
                    {"authenticationRef": _only({"name": _TEXT})},
                ),
            },
        }
    ),
    ("keda.sh/v1alpha1", "TriggerAuthentication"): _only(
        {
            "secretTargetRef": {
                "type": "array",
                "items": _only(
                    {"parameter": {"enum": ["username", "password", "ca", "cert", "key"]}, "name": _TEXT, "key": _TEXT}
                ),
            }
        }
    ),
}


def built(directory: Path) -> list[Object]:
    """What kustomize makes of a directory."""
    if shutil.which("kubectl"):
        command = ["kubectl", "kustomize", str(directory)]
    elif shutil.which("kustomize"):
        command = ["kustomize", "build", str(directory)]
    elif os.environ.get("CI"):
        pytest.fail("neither kubectl nor kustomize is there")
    else:
        pytest.skip("needs kubectl or kustomize")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module")
def base() -> list[Object]:
    return built(K8S / "base")


@pytest.fixture(scope="module")
def example() -> list[Object]:
    """The base with all components."""
    return built(K8S / "overlays" / "example")


@pytest.fixture(scope="module", params=["base", "example"])
def objects(request: pytest.FixtureRequest) -> list[Object]:
    found: list[Object] = request.getfixturevalue(request.param)
    return found


def of_kind(objects: list[Object], *kinds: str) -> dict[str, Object]:
    return {one["metadata"]["name"]: one for one in objects if one["kind"] in kinds}


def pods(objects: list[Object]) -> dict[str, Object]:
    """The pods that the objects make, by the name of what makes them."""
    return {name: one["spec"]["template"] for name, one in of_kind(objects, "Deployment", "Job").items()}


def run_on(objects: list[Object]) -> set[str]:
    """The parts that run all the time; people's commands do not."""
    return set(of_kind(objects, "Deployment")) - {"seatmark-operator"}


def container(pod: Object) -> Object:
    [only] = pod["spec"]["containers"]
    found: Object = only
    return found


def environment(objects: list[Object], pod: Object) -> dict[str, str]:
    """A pod's variables; those of secrets are what docs/kubernetes.md says that the secrets hold."""
    secrets = {
        ("seatmark-clickhouse", "writer-dsn"): "https://seatmark_writer:a1@clickhouse:8443/seatmark",
        ("seatmark-clickhouse", "reader-dsn"): "https://seatmark_reader:b2@clickhouse:8443/seatmark",
        ("seatmark-kafka", "user"): "seatmark",
        ("seatmark-kafka", "password"): "c3",
        ("seatmark-kafka-operator", "user"): "seatmark-operator",
        ("seatmark-kafka-operator", "password"): "f6",
        ("seatmark-collect", "tokens"): "d4d4d4d4d4d4d4d4,e5e5e5e5e5e5e5e5",
    }
    variables: dict[str, str] = {}
    for source in container(pod)["envFrom"]:
        variables |= of_kind(objects, "ConfigMap")[source["configMapRef"]["name"]]["data"]
    for variable in container(pod).get("env", []):
        secret = variable.get("valueFrom", {}).get("secretKeyRef")
        variables[variable["name"]] = secrets[secret["name"], secret["key"]] if secret else variable["value"]
    for name, value in variables.items():
        if name.endswith("_FILE"):
            assert value in files_of_secrets(pod)
            # Settings look whether it can be read.
            variables[name] = __file__
    return variables


def files_of_secrets(pod: Object) -> set[str]:
    """The files that a pod gets from secrets."""
    items = {volume["name"]: volume["secret"]["items"] for volume in pod["spec"]["volumes"] if "secret" in volume}
    return {
        f"{mount['mountPath']}/{item['path']}"
        for mount in container(pod)["volumeMounts"]
        for item in items.get(mount["name"], [])
    }


def selected(selector: Object, pod: Object) -> bool:
    """Whether a label selector takes a pod."""
    labels = pod["metadata"]["labels"]
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In"
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def takes_of(objects: list[Object], policy: str) -> set[str]:
    """The pods that a network policy is for."""
    selector = of_kind(objects, "NetworkPolicy")[policy]["spec"]["podSelector"]
    return {name for name, pod in pods(objects).items() if selected(selector, pod)}


# --- Against schemas


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_knows_every_field(objects: list[Object], version: str) -> None:
    for one in objects:
        if (one["apiVersion"], one["kind"]) not in CUSTOM:
            kubernetes_validate.validate(one, version, strict=True)


def test_custom_resources_have_the_fields_of_their_references(example: list[Object]) -> None:
    custom = [one for one in example if (one["apiVersion"], one["kind"]) in CUSTOM]
    assert {one["kind"] for one in custom} == {"PodMonitor", "PrometheusRule", "ScaledObject", "TriggerAuthentication"}
    for one in custom:
        assert set(one) == {"apiVersion", "kind", "metadata", "spec"}
        jsonschema.validate(one["spec"], CUSTOM[one["apiVersion"], one["kind"]])


@pytest.mark.parametrize(
    "left_out", [{"collect"}, {"operator"}, {"pod-monitor", "alerts"}, {"keda"}, {"sasl-tls"}, {"keda", "sasl-tls"}], ids=sorted
)
def test_components_may_be_left_out_of_the_example(left_out: set[str], tmp_path: Path) -> None:
    copied = shutil.copytree(K8S, tmp_path / "k8s")
    file = copied / "overlays" / "example" / "kustomization.yaml"
    overlay = yaml.safe_load(file.read_text())
    if left_out & {"keda", "sasl-tls"}:
        left_out = left_out | {"keda-sasl-tls"}
    overlay["components"] = [path for path in overlay["components"] if Path(path).name not in left_out]
    file.write_text(yaml.safe_dump(overlay))
    objects = built(file.parent)
    assert ("seatmark-collect" in pods(objects)) == ("collect" not in left_out)
    assert ("seatmark-operator" in pods(objects)) == ("operator" not in left_out)
    assert ("seatmark" in of_kind(objects, "PodMonitor")) == ("pod-monitor" not in left_out)
    signs_in = [name for name, pod in pods(objects).items() if "SEATMARK_KAFKA_USER" in environment(objects, pod)]
    assert bool(signs_in) == ("sasl-tls" not in left_out)
    scaled = of_kind(objects, "ScaledObject").values()
    assert bool(scaled) == ("keda" not in left_out)
    keda_signs_in = "keda-sasl-tls" not in left_out
    assert bool(of_kind(objects, "TriggerAuthentication")) == keda_signs_in
    assert bool(of_kind(objects, "PrometheusRule")) == ("alerts" not in left_out)
    for one in scaled:
        [trigger] = one["spec"]["triggers"]
        assert ("authenticationRef" in trigger) == ({"sasl", "tls"} <= set(trigger["metadata"])) == keda_signs_in
        assert (
            trigger["metadata"]["bootstrapServers"]
            == load_settings(environment(objects, pods(objects)["seatmark-worker"])).brokers
        )


def test_the_patches_of_the_documentation_change_what_they_say(tmp_path: Path) -> None:
    copied = shutil.copytree(K8S, tmp_path / "k8s")
    file = copied / "overlays" / "example" / "kustomization.yaml"
    overlay = yaml.safe_load(file.read_text())
    blocks = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs" / "kubernetes.md").read_text(), flags=re.M | re.S)
    overlay["patches"] += [patch for block in blocks for patch in yaml.safe_load(block)["patches"]]
    file.write_text(yaml.safe_dump(overlay))
    objects = built(file.parent)
    policies = of_kind(objects, "NetworkPolicy")
    for name, block, port in (("kafka", "10.1.0.0/24", 9094), ("clickhouse", "10.2.0.0/24", 9440)):
        assert policies[f"seatmark-to-{name}"]["spec"]["egress"] == [
            {"to": [{"ipBlock": {"cidr": block}}], "ports": [{"protocol": "TCP", "port": port}]}
        ]
    for kind in ("PodMonitor", "PrometheusRule"):
        assert of_kind(objects, kind)["seatmark"]["metadata"]["labels"]["release"] == "kube-prometheus-stack"
    assert of_kind(objects, "ServiceAccount")["seatmark"]["imagePullSecrets"] == [{"name": "registry"}]
    for one in objects:
        if (one["apiVersion"], one["kind"]) not in CUSTOM:
            kubernetes_validate.validate(one, KUBERNETES[-1], strict=True)


def test_the_example_uses_every_component() -> None:
    overlay = yaml.safe_load((K8S / "overlays" / "example" / "kustomization.yaml").read_text())
    assert {Path(path).name for path in overlay["components"]} == {path.name for path in (K8S / "components").iterdir()}


# --- Settings


def test_every_variable_is_a_setting_and_every_value_is_accepted(objects: list[Object]) -> None:
    for name, pod in pods(objects).items():
        if name == "seatmark-operator":
            assert container(pod)["command"] == ["sleep", "infinity"]
        else:
            assert container(pod)["args"] == [name.removeprefix("seatmark-")]
        variables = environment(objects, pod)
        assert all(name.startswith(PREFIX) for name in variables)
        load_settings(variables)


def test_services_give_pods_no_variables_that_are_no_settings(objects: list[Object]) -> None:
    """The kubelet would give SEATMARK_WEB_SERVICE_HOST and others to every pod, and with them no part starts."""
    assert {name: pod["spec"].get("enableServiceLinks") for name, pod in pods(objects).items()} == dict.fromkeys(
        pods(objects), False
    )


def test_the_example_has_every_part(base: list[Object], example: list[Object]) -> None:
    assert set(pods(base)) == {f"seatmark-{part}" for part in ("migrate", "topics", "worker", "sink", "web")}
    assert set(pods(example)) == {*pods(base), "seatmark-collect", "seatmark-operator"}


def test_settings_that_parts_must_agree_on_come_from_one_place(objects: list[Object]) -> None:
    assert len({container(pod)["envFrom"][0]["configMapRef"]["name"] for pod in pods(objects).values()}) == 1
    for pod in pods(objects).values():
        for variable in container(pod).get("env", []):
            assert re.match("SEATMARK_(CLICKHOUSE_DSN|COLLECT_TOKENS|KAFKA_|URL)", variable["name"])


def test_no_secret_is_in_the_files(objects: list[Object]) -> None:
    assert not of_kind(objects, "Secret")
    secret = {PREFIX + name.upper() for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
    secret |= {"SEATMARK_CLICKHOUSE_DSN"}
    for pod in pods(objects).values():
        for variable in container(pod).get("env", []):
            if variable["name"] in secret:
                assert set(variable) == {"name", "valueFrom"}
    for settings in of_kind(objects, "ConfigMap").values():
        assert not secret & set(settings["data"])


def test_the_web_reads_and_the_others_write(objects: list[Object]) -> None:
    keys = {
        name.removeprefix("seatmark-"): variable["valueFrom"]["secretKeyRef"]["key"]
        for name, pod in pods(objects).items()
        for variable in container(pod).get("env", [])
        if variable["name"] == "SEATMARK_CLICKHOUSE_DSN"
    }
    there = {name.removeprefix("seatmark-") for name in pods(objects)}
    assert keys == dict.fromkeys(there & {"migrate", "sink", "operator"}, "writer-dsn") | {"web": "reader-dsn"}


# --- What belongs together


def test_selectors_take_the_pods_that_they_are_for_and_no_others(objects: list[Object]) -> None:
    for name, one in (
        of_kind(objects, "Deployment")
        | {f"budget of {name}": one for name, one in of_kind(objects, "PodDisruptionBudget").items()}
    ).items():
        takes = {pod for pod, template in pods(objects).items() if selected(one["spec"]["selector"], template)}
        assert takes == {name.removeprefix("budget of ")}
    for pod in pods(objects).values():
        for spread in pod["spec"].get("topologySpreadConstraints", []):
            assert [template for template in pods(objects).values() if selected(spread["labelSelector"], template)] == [pod]
    assert set(of_kind(objects, "PodDisruptionBudget")) == run_on(objects)


def test_ports_are_those_that_the_parts_listen_on(objects: list[Object]) -> None:
    for name, pod in pods(objects).items():
        ports = {port["name"]: port["containerPort"] for port in container(pod).get("ports", [])}
        settings = load_settings(environment(objects, pod))
        expected = {
            "seatmark-worker": {"metrics": settings.metrics_port},
            "seatmark-sink": {"metrics": settings.metrics_port},
            "seatmark-web": {"http": settings.web_port, "metrics": settings.metrics_port},
            "seatmark-collect": {"http": settings.collect_port, "metrics": settings.metrics_port},
        }
        assert ports == expected.get(name, {})
    for name, service in of_kind(objects, "Service").items():
        assert [pod for pod, made in pods(objects).items() if selected({"matchLabels": service["spec"]["selector"]}, made)] == [
            name
        ]
        assert service["spec"]["ports"][0]["targetPort"] == "http"


def test_what_runs_on_is_asked_how_it_is_at_its_own_port(objects: list[Object]) -> None:
    for name in run_on(objects):
        only = container(pods(objects)[name])
        port = only["ports"][0]["name"]
        paths = {probe: only[probe]["httpGet"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
        assert paths == {
            "startupProbe": {"path": "/livez", "port": port},
            "livenessProbe": {"path": "/livez", "port": port},
            "readinessProbe": {"path": "/readyz", "port": port},
        }


def test_a_part_that_hangs_ends_itself_before_it_is_killed(objects: list[Object]) -> None:
    for name in ("seatmark-worker", "seatmark-sink"):
        pod = pods(objects)[name]
        probe = container(pod)["livenessProbe"]
        assert (
            probe["periodSeconds"] * (probe["failureThreshold"] - 1) * 1000
            >= load_settings(environment(objects, pod)).stuck_after
        )


def test_a_worker_has_the_time_to_end(objects: list[Object]) -> None:
    assert pods(objects)["seatmark-worker"]["spec"]["terminationGracePeriodSeconds"] > 2 * _END_SECONDS


def test_who_needs_kafka_and_clickhouse_may_reach_them_and_nobody_else(objects: list[Object]) -> None:
    policies = of_kind(objects, "NetworkPolicy")

    def takes(policy: str) -> set[str]:
        return {name.removeprefix("seatmark-") for name in takes_of(objects, policy)}

    there = {name.removeprefix("seatmark-") for name in pods(objects)}
    assert takes("seatmark-to-kafka") == there - {"migrate", "web"}
    assert takes("seatmark-to-clickhouse") == there & {"migrate", "sink", "web", "operator"}
    assert takes("seatmark-dns") == there
    for part in there & {"web", "collect"}:
        assert takes(f"seatmark-{part}") == {part}
    if "operator" in there:
        assert takes("seatmark-operator-to-web") == {"operator"}
        url = environment(objects, pods(objects)["seatmark-operator"])["SEATMARK_URL"]
        assert url.removeprefix("http://") in of_kind(objects, "Service")
        [rule] = policies["seatmark-operator-to-web"]["spec"]["egress"]
        assert [name for name, pod in pods(objects).items() if selected(rule["to"][0]["podSelector"], pod)] == ["seatmark-web"]
    assert policies["seatmark-default-deny"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_who_may_reach_kafka_signs_in_there(example: list[Object]) -> None:
    """The component `sasl-tls` changes what components before it have made."""
    signs_in = {name for name, pod in pods(example).items() if "SEATMARK_KAFKA_USER" in environment(example, pod)}
    assert signs_in == takes_of(example, "seatmark-to-kafka")
    users = {name: environment(example, pods(example)[name])["SEATMARK_KAFKA_USER"] for name in signs_in}
    assert users == dict.fromkeys(signs_in, "seatmark") | {"seatmark-operator": "seatmark-operator"}


def test_named_ports_of_policies_and_monitors_exist(example: list[Object]) -> None:
    ports = {port["name"] for pod in pods(example).values() for port in container(pod).get("ports", [])}
    named = {
        port["port"]
        for policy in of_kind(example, "NetworkPolicy").values()
        for rule in policy["spec"].get("ingress", [])
        for port in rule["ports"]
    }
    [monitor] = of_kind(example, "PodMonitor").values()
    assert named == ports
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] == "metrics"
    deployments = run_on(example)
    assert takes_of(example, "seatmark-metrics") == deployments
    # Jobs are called as in deploy/prometheus.
    [relabeling] = endpoint["relabelings"]
    assert relabeling["targetLabel"] == "job"
    [label] = [label.removeprefix("__meta_kubernetes_pod_label_") for label in relabeling["sourceLabels"]]
    jobs = {
        relabeling["replacement"].replace("$1", value)
        for name in deployments
        for key, value in pods(example)[name]["metadata"]["labels"].items()
        if re.sub(r"\W", "_", key) == label
    }
    assert jobs == {job["job_name"] for job in yaml.safe_load(PROMETHEUS.read_text())["scrape_configs"]} - {
        "seatmark-clickhouse"
    }


def test_the_alerts_are_those_of_prometheus(example: list[Object]) -> None:
    [rules] = of_kind(example, "PrometheusRule").values()
    assert rules["spec"] == yaml.safe_load(RULES.read_text()), "components/alerts/kustomization.yaml says how to make it anew"


def test_keda_looks_at_the_workers_backlog_and_starts_no_more_than_there_are_partitions(example: list[Object]) -> None:
    [scaled] = of_kind(example, "ScaledObject").values()
    settings = load_settings(environment(example, pods(example)["seatmark-worker"]))
    [trigger] = scaled["spec"]["triggers"]
    assert trigger["metadata"]["consumerGroup"] == worker_group(settings.topic_prefix)
    assert trigger["metadata"]["topic"] in {topic.name for topic in catalogue()}
    assert trigger["metadata"]["bootstrapServers"] == settings.brokers
    assert scaled["spec"]["maxReplicaCount"] == settings.partitions
    assert scaled["spec"]["scaleTargetRef"]["name"] in of_kind(example, "Deployment")
    assert "replicas" not in of_kind(example, "Deployment")["seatmark-worker"]["spec"]
    assert trigger["authenticationRef"]["name"] in of_kind(example, "TriggerAuthentication")


def test_workers_are_not_more_than_the_partitions(base: list[Object]) -> None:
    worker = of_kind(base, "Deployment")["seatmark-worker"]["spec"]
    assert worker["replicas"] <= load_settings(environment(base, worker["template"])).partitions


# --- How pods run


def test_images_are_pinned_and_are_the_projects_version(objects: list[Object]) -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), flags=re.M)
    assert version is not None
    for pod in pods(objects).values():
        assert re.fullmatch(rf"[a-z./]*seatmark:{re.escape(version[1])}", container(pod)["image"])


def test_every_pod_is_restricted(objects: list[Object]) -> None:
    """Kubernetes' pod security standard `restricted`, and a little more."""
    [user] = re.findall(r"^USER (\d+):\d+$", (ROOT / "deploy" / "Dockerfile").read_text(), flags=re.M)
    for pod in pods(objects).values():
        spec, only = pod["spec"], container(pod)
        assert spec["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": int(user),
            "runAsGroup": int(user),
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        assert only["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert {kind for volume in spec["volumes"] for kind in volume} <= {"name", "emptyDir", "secret"}
        assert spec["automountServiceAccountToken"] is False
        assert spec["serviceAccountName"] in of_kind(objects, "ServiceAccount")
    [namespace] = of_kind(objects, "Namespace").values()
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert {one["metadata"]["namespace"] for one in objects if one["kind"] != "Namespace"} == {"seatmark"}


def test_every_pod_asks_for_what_it_needs_and_is_held_to_a_limit(objects: list[Object]) -> None:
    for pod in pods(objects).values():
        assert set(container(pod)["resources"]["requests"]) == {"cpu", "memory"}
        assert set(container(pod)["resources"]["limits"]) == {"memory"}
