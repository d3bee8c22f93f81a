"""docker-compose.yml and deploy/Dockerfile, read: no container runs here, so what can be held without one is held."""

import hashlib
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from typer.testing import CliRunner

from deploy.kafka.cluster import kafka_version
from schemas.topics import catalogue
from seatmark.cli import app
from seatmark.settings import Settings, known_variables, load_settings

ROOT = Path(__file__).parents[2]
COMPOSE_TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(COMPOSE_TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
OURS = sorted(name for name, service in SERVICES.items() if service["image"].startswith("seatmark:"))

# What deploy/clickhouse/passwords makes.
PASSWORDS = {
    "CLICKHOUSE_WRITER_PASSWORD": "a1b2c3",
    "CLICKHOUSE_WRITER_SHA256": hashlib.sha256(b"a1b2c3").hexdigest(),
    "CLICKHOUSE_READER_PASSWORD": "d4e5f6",
    "CLICKHOUSE_READER_SHA256": hashlib.sha256(b"d4e5f6").hexdigest(),
}

# With a default that may be a variable itself.
_PLACEHOLDER = re.compile(r"\$\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<text>(?:[^{}]|\$\{[^}]*\})*))?\}")


def filled(value: str, given: Mapping[str, str]) -> str:
    """A value of the file as Compose fills it in; a variable that must be set and is not is a KeyError."""

    def one(found: re.Match[str]) -> str:
        if given.get(found["name"]):
            return given[found["name"]]
        if found["kind"] == "-":
            return filled(found["text"], given)
        raise KeyError(found["name"])

    return _PLACEHOLDER.sub(one, value)


def environment(name: str) -> dict[str, str]:
    """A service's environment, where only what must be set is set."""
    given = PASSWORDS
    return {variable: filled(value, given) for variable, value in SERVICES[name].get("environment", {}).items()}


def one_shot(service: Mapping[str, Any]) -> bool:
    return str(service["restart"]) == "no"


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions in order, comments gone and lines put together."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "deploy" / "Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
    split = (line.split(maxsplit=1) for line in text.splitlines() if line.strip())
    return [(word.upper(), rest) for word, rest in split]


def copied() -> list[str]:
    """What the Dockerfile copies from the project."""
    return [
        source for word, rest in instructions() if word == "COPY" and "--from=" not in rest for source in shlex.split(rest)[:-1]
    ]


# --- Settings and commands


def test_all_parts_are_there() -> None:
    assert OURS == ["collect", "migrate", "sink", "topics", "web", "worker"]


@pytest.mark.parametrize("name", OURS)
def test_every_variable_is_a_setting_and_every_value_is_accepted(name: str) -> None:
    variables = environment(name)
    assert set(variables) <= known_variables()
    load_settings(variables)


@pytest.mark.parametrize("name", OURS)
def test_every_command_is_one_that_help_lists(name: str) -> None:
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "120"})
    assert shown.exit_code == 0
    listed = set(re.findall(r"^\W*(\w+)  ", shown.output, flags=re.M))
    assert SERVICES[name]["command"] == [name]
    assert name in listed


def test_who_only_reads_signs_in_as_the_reader_and_all_others_as_the_writer() -> None:
    who = {
        name: environment(name)["SEATMARK_CLICKHOUSE_DSN"] for name in OURS if "SEATMARK_CLICKHOUSE_DSN" in environment(name)
    }
    writer, reader = (
        f"http://{user}@clickhouse:8123/seatmark" for user in ("seatmark_writer:a1b2c3", "seatmark_reader:d4e5f6")
    )
    assert who == {"migrate": writer, "sink": writer, "web": reader}
    grafana = environment("grafana")
    assert (grafana["CLICKHOUSE_USER"], grafana["CLICKHOUSE_PASSWORD"]) == ("seatmark_reader", "d4e5f6")


def test_clickhouse_knows_these_users_by_their_hashes_from_its_environment() -> None:
    users = ElementTree.parse(ROOT / "deploy" / "clickhouse" / "users.d" / "seatmark.xml").getroot().findall("users/*")
    hashes = {user.tag: hashed.attrib for user in users for hashed in user.findall("password_sha256_hex")}
    assert hashes == {
        "seatmark_writer": {"from_env": "CLICKHOUSE_WRITER_SHA256"},
        "seatmark_reader": {"from_env": "CLICKHOUSE_READER_SHA256"},
    }
    given = environment("clickhouse")
    assert {name: given.get(name) for name in PASSWORDS} == {
        name: value if name.endswith("SHA256") else None for name, value in PASSWORDS.items()
    }


def test_clickhouse_has_the_files_of_deploy_and_makes_no_user_of_its_own() -> None:
    mounts = [volume.split(":") for volume in SERVICES["clickhouse"]["volumes"] if volume.startswith("./")]
    assert {inside: (ROOT / outside).exists() for outside, inside, _ in mounts} == {
        "/etc/clickhouse-server/users.d": True,
        "/etc/clickhouse-server/config.d/seatmark.xml": True,
        "/etc/clickhouse-server/config.d/prometheus.xml": True,
    }
    assert {how for _, _, how in mounts} == {"ro"}
    assert environment("clickhouse")["CLICKHOUSE_SKIP_USER_SETUP"] == "1"


def test_no_password_is_in_the_file_and_each_must_be_set() -> None:
    named = re.findall(r"\$\{(CLICKHOUSE_\w+)(:.)", COMPOSE_TEXT)
    assert {name for name, _ in named} == set(PASSWORDS)
    assert {kind for _, kind in named} == {":?"}
    for name in PASSWORDS:
        with pytest.raises(KeyError, match=name):
            filled(COMPOSE_TEXT, {other: value for other, value in PASSWORDS.items() if other != name})


def test_the_script_makes_the_passwords_and_their_hashes() -> None:
    def made() -> dict[str, str]:
        script = ROOT / "deploy" / "clickhouse" / "passwords"
        lines = subprocess.run([script], capture_output=True, text=True, check=True).stdout.splitlines()
        return dict(line.split("=") for line in lines)

    first, second = made(), made()
    assert set(first) == set(PASSWORDS)
    for user in ("WRITER", "READER"):
        password = first[f"CLICKHOUSE_{user}_PASSWORD"]
        assert re.fullmatch(r"[0-9a-f]{48}", password)
        assert first[f"CLICKHOUSE_{user}_SHA256"] == hashlib.sha256(password.encode()).hexdigest()
        assert second[f"CLICKHOUSE_{user}_PASSWORD"] != password


def test_parts_that_must_agree_on_partitions_and_time_zone_get_them_from_one_place() -> None:
    agree = {
        "SEATMARK_PARTITIONS": ["topics", "worker", "sink"],
        "SEATMARK_TIMEZONE": ["migrate", "worker", "sink"],
        # The sink folds anew what disorder left.
        "SEATMARK_LATE_AFTER": ["worker", "sink"],
    }
    for setting, names in agree.items():
        given = {SERVICES[name]["environment"][setting] for name in names}
        assert len(given) == 1
        assert given.pop().startswith("${" + setting + ":-")


# --- Images


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned(name: str) -> None:
    assert re.fullmatch(r"[a-z/-]+:v?\d+\.\d+\.\d+[\w.-]*", SERVICES[name]["image"])


def test_one_service_builds_the_image_and_the_others_come_after_it() -> None:
    [builder] = [name for name, service in SERVICES.items() if "build" in service]
    build = SERVICES[builder]["build"]
    assert (ROOT / build["context"] / build["dockerfile"]) == ROOT / "deploy" / "Dockerfile"
    assert SERVICES[builder]["pull_policy"] == "build"

    def waits_for(name: str) -> set[str]:
        direct = set(SERVICES[name].get("depends_on", {}))
        return direct.union(*map(waits_for, direct))

    for name in set(OURS) - {builder}:
        assert SERVICES[name]["image"] == SERVICES[builder]["image"]
        assert SERVICES[name]["pull_policy"] == "never"
        assert builder in waits_for(name)


def test_versions_are_those_of_the_project_and_of_what_the_tests_run_on() -> None:
    tags = {name: service["image"].rpartition(":")[2] for name, service in SERVICES.items()}
    assert {tags[name] for name in OURS} == {PROJECT["project"]["version"]}
    assert tags["kafka"] == kafka_version()
    # The engine in the tests is that of chDB.
    engine = re.search(r"^chdb-core==(\d+\.\d+)\.", (ROOT / "constraints.txt").read_text(), flags=re.M)
    assert engine is not None
    assert tags["clickhouse"].startswith(f"{engine[1]}.")


# --- How containers run


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_loopback_only(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)


@pytest.mark.parametrize("name", SERVICES)
def test_memory_is_limited(name: str) -> None:
    assert re.fullmatch(r"\d+[mg]", SERVICES[name]["mem_limit"])


@pytest.mark.parametrize("name", SERVICES)
def test_it_is_checked_and_started_again_or_runs_once(name: str) -> None:
    service = SERVICES[name]
    if one_shot(service):
        assert name in {"migrate", "topics"}
    else:
        assert service["restart"] == "unless-stopped"
        assert service["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}


@pytest.mark.parametrize("name", SERVICES)
def test_it_has_few_rights(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["user"].partition(":")[0] not in {"", "0", "root"}
    assert not service.get("privileged", False)


@pytest.mark.parametrize("name", SERVICES)
def test_what_it_waits_for_is_healthy_or_has_done_its_work(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        done = one_shot(SERVICES[other])
        assert how == {"condition": "service_completed_successfully" if done else "service_healthy"}


@pytest.mark.parametrize("name", ["worker", "sink"])
def test_the_check_asks_the_port_where_the_process_says_whether_it_is_ready(name: str) -> None:
    port = load_settings(environment(name)).metrics_port
    assert port
    assert f"http://127.0.0.1:{port}/readyz" in SERVICES[name]["healthcheck"]["test"][-1]


def test_the_web_listens_where_its_port_is_published_and_checked() -> None:
    settings = load_settings(environment("web"))
    assert settings.web_host == "0.0.0.0"
    assert SERVICES["web"]["ports"] == [f"127.0.0.1:8000:{settings.web_port}"]
    assert f"http://127.0.0.1:{settings.web_port}/readyz" in SERVICES["web"]["healthcheck"]["test"][-1]
    # So that the command line on the host finds it, and the one inside the container too.
    assert Settings.model_fields["url"].default == "http://127.0.0.1:8000"


def test_workers_can_be_many() -> None:
    assert not {"container_name", "ports", "hostname"} & set(SERVICES["worker"])


def test_volumes_that_are_used_are_named_and_files_are_there_and_only_read() -> None:
    mounts = [volume.split(":") for service in SERVICES.values() for volume in service.get("volumes", [])]
    assert {source for source, *_ in mounts if not source.startswith(".")} == set(COMPOSE["volumes"])
    for source, _, *options in (mount for mount in mounts if mount[0].startswith(".")):
        assert (ROOT / source).exists()
        assert options == ["ro"]


# --- The profile `observe`


def test_who_does_not_observe_need_set_nothing_for_it_and_gets_none_of_it() -> None:
    assert {name for name in SERVICES if SERVICES[name].get("profiles") == ["observe"]} == {"prometheus", "grafana"}
    assert SERVICES["prometheus"]["profiles"] == SERVICES["grafana"]["profiles"] == ["observe"]
    assert environment("grafana")["GF_SECURITY_ADMIN_PASSWORD"] == ""
    for name in set(SERVICES) - {"prometheus", "grafana"}:
        assert not {"prometheus", "grafana"} & set(SERVICES[name].get("depends_on", {}))


@pytest.mark.parametrize(("password", "code", "told"), [("", 1, "set GRAFANA_PASSWORD"), ("geheim", 127, "/run.sh")])
def test_grafana_does_not_start_without_a_password(password: str, code: int, told: str) -> None:
    """With one it goes on to what the image runs, which is not here."""
    # Compose makes one dollar of two.
    script = [part.replace("$$", "$") for part in SERVICES["grafana"]["entrypoint"]]
    given = {"PATH": "/usr/bin:/bin", "GF_SECURITY_ADMIN_PASSWORD": password}
    done = subprocess.run(script, env=given, capture_output=True, text=True, timeout=60)
    assert (done.returncode, told in done.stderr) == (code, True)


def test_prometheus_finds_every_part_where_it_serves_its_metrics() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    found = {
        found["names"][0]: found["port"] for job in config["scrape_configs"] for found in job["dns_sd_configs"]
    }  # fmt: skip
    xml = (ROOT / "deploy" / "clickhouse" / "config.d" / "prometheus.xml").read_text()
    [port] = re.findall(r"<port>(\d+)</port>", xml)
    ours = {name: load_settings(environment(name)).metrics_port for name in ("worker", "sink", "web", "collect")}
    assert found == ours | {"clickhouse": int(port)}
    for name in found:
        assert not any(f":{found[name]}" in published for published in SERVICES[name].get("ports", []))


def test_grafana_is_given_what_its_data_sources_ask_for() -> None:
    given = environment("grafana")
    sources = (ROOT / "deploy" / "grafana" / "provisioning" / "datasources" / "seatmark.yml").read_text()
    asked = set(re.findall(r": \$(\w+)$", sources, flags=re.M))
    assert asked == {name for name in given if not name.startswith("GF_")}
    assert given["PROMETHEUS_URL"] == "http://prometheus:9090"
    plugin = given["GF_PLUGINS_PREINSTALL_SYNC"].partition("@")
    assert f"type: {plugin[0]}\n" in sources
    assert re.fullmatch(r"\d+\.\d+\.\d+", plugin[2])
    [provided] = re.findall(r"path: ([^}]+)}", (ROOT / "deploy/grafana/provisioning/dashboards/seatmark.yml").read_text())
    assert f"./deploy/grafana/dashboards:{provided}:ro" in SERVICES["grafana"]["volumes"]


# --- Kafka


def test_kafka_takes_the_largest_batch_of_the_catalogue() -> None:
    largest = max(int(topic.config.get("max.message.bytes", 0)) for topic in catalogue())
    kafka = environment("kafka")
    assert int(kafka["KAFKA_MESSAGE_MAX_BYTES"]) >= largest
    assert int(kafka["KAFKA_REPLICA_FETCH_MAX_BYTES"]) >= largest
    assert int(kafka["KAFKA_SOCKET_REQUEST_MAX_BYTES"]) > largest


def test_kafka_makes_no_topics_on_the_side() -> None:
    assert environment("kafka")["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"


def test_kafka_is_found_by_containers_and_from_the_host() -> None:
    advertised = dict(listener.split("://") for listener in environment("kafka")["KAFKA_ADVERTISED_LISTENERS"].split(","))
    assert {environment(name)["SEATMARK_BROKERS"] for name in ("topics", "worker", "sink")} == {advertised["CONTAINERS"]}
    # The host's address is the default of the setting, and the published port.
    assert advertised["HOST"] == Settings.model_fields["brokers"].default
    assert SERVICES["kafka"]["ports"] == [f"{advertised['HOST']}:{advertised['HOST'].rpartition(':')[2]}"]


def test_kafka_can_load_the_library_that_it_unpacks_for_snappy() -> None:
    [options] = [mount.partition(":")[2] for mount in SERVICES["kafka"]["tmpfs"] if mount.startswith("/tmp:")]
    assert "exec" in options.split(",")


def test_kafka_keeps_its_data_in_the_volume() -> None:
    assert f"kafka-data:{environment('kafka')['KAFKA_LOG_DIRS']}" in SERVICES["kafka"]["volumes"]


# --- The image


def test_the_image_has_every_package_and_what_its_build_reads() -> None:
    packages = [pattern.rstrip("*").rstrip(".") for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]]
    project = PROJECT["project"]
    needed = {*packages, "pyproject.toml", "constraints.txt", project["readme"], *project["license-files"]}
    assert set(copied()) == needed
    for source in copied():
        assert (ROOT / source).exists()


def test_what_is_installed_has_every_file_of_the_packages(tmp_path: Path) -> None:
    """Queries, templates, schemas: what is missing is missed only when a command asks for it."""
    for source in copied():
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        copy(ROOT / source, tmp_path / source)
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", "made", "."]
    subprocess.run(wheel, cwd=tmp_path, check=True)
    [made] = (tmp_path / "made").iterdir()
    installed = {name for name in zipfile.ZipFile(made).namelist() if ".dist-info/" not in name}
    files = (path for source in copied() for path in (ROOT / source).rglob("*") if path.is_file())
    assert installed == {path.relative_to(ROOT).as_posix() for path in files if path.parent.name != "__pycache__"}


def test_the_build_gets_what_it_copies_and_nothing_else() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    assert sorted(line[1:] for line in lines if line.startswith("!")) == sorted(copied())


def test_the_base_is_pinned_and_one() -> None:
    froms = [rest.split() for word, rest in instructions() if word == "FROM"]
    stages: set[str] = set()
    outside = []
    for image, *named in froms:
        if image not in stages:
            outside.append(image)
        stages.update(named[1:])
    assert len(froms) >= 2
    [base] = outside
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-[a-z]+", base)


def test_the_image_runs_seatmark_as_a_numbered_user_that_is_not_root() -> None:
    last_stage = instructions()[max(at for at, (word, _) in enumerate(instructions()) if word == "FROM") :]
    users = [rest for word, rest in last_stage if word == "USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1])
    assert {SERVICES[name]["user"] for name in OURS} == {users[-1]}
    assert dict(last_stage)["ENTRYPOINT"] == '["seatmark"]'


def test_the_image_has_tested_versions_and_no_extras() -> None:
    installs = [rest for word, rest in instructions() if word == "RUN" and "install" in rest]
    assert "-c constraints.txt" in installs[0]
    assert not any("embedded" in rest or ".[" in rest for rest in installs)
