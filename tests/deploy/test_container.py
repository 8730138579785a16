"""The image and the stack of deploy/compose.yaml: what they promise, read from their files.

Building the image takes ten minutes and a builder; docs/operations/container.md says what a real
build showed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.cluster.ray_environment import EVERYWHERE
from service.config import ConfigError, secrets
from service.config.serve_file import read

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
CONFIG = DEPLOY / "compose/winnow.yaml"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
EXAMPLE = (DEPLOY / ".env.example").read_text()


def _instructions() -> list[list[tuple[str, str]]]:
    """Each stage's instructions: name and arguments, on one line."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE, flags=re.MULTILINE)
    stages: list[list[tuple[str, str]]] = [[]]
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip():
            name, _, rest = line.strip().partition(" ")
            if name == "FROM":
                stages.append([])
            stages[-1].append((name, rest.strip()))
    return stages


ARGS, BUILD, FINAL = _instructions()


def _of(stage: list[tuple[str, str]], name: str) -> list[str]:
    return [rest for instruction, rest in stage if instruction == name]


def _tool(name: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A command to run; the test is skipped where there is none."""
    if shutil.which(name) is None:
        pytest.skip(f"{name} was not found: what it checks is not checked here")
    return lambda *arguments: subprocess.run(
        [name, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )


def test_hadolint_finds_nothing() -> None:
    found = _tool("hadolint")("--no-color", ROOT / "Dockerfile")
    assert found.returncode == 0, found.stdout


def test_the_image_does_not_run_as_root() -> None:
    # A number, so that Kubernetes' runAsNonRoot can tell.
    assert _of(FINAL, "USER") == ["1000:1000"]


def test_nothing_secret_is_baked_in() -> None:
    secret = re.compile(r"key|secret|passw|token", re.IGNORECASE)
    named = [
        rest.split("=")[0]
        for stage in (ARGS, BUILD, FINAL)
        for name in ("ARG", "ENV")
        for line in _of(stage, name)
        for rest in line.split()
    ]
    assert named
    assert not [name for name in named if secret.search(name)]


def test_only_what_is_copied_reaches_the_builder() -> None:
    copied = {
        source
        for stage in (BUILD, FINAL)
        for line in _of(stage, "COPY")
        if not line.startswith("--from")
        for source in line.split()[:-1]
    }
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignore
    assert {line[1:] for line in ignore if line.startswith("!")} == copied
    assert all((ROOT / source).exists() for source in copied)


def test_every_package_is_installed_at_its_tested_version() -> None:
    [install] = [line for line in _of(BUILD, "ENV") if line.startswith("INSTALL=")]
    assert "--constraint constraints.txt" in install
    runs = " ".join(_of(BUILD, "RUN"))
    # The one other way that pip is called makes the tools of the build, which stay there.
    tools = re.findall(r"pip install (\S+)", runs)
    assert [tool for tool in tools if not re.fullmatch(r"\w+==[\d.]+", tool)] == []
    assert not [line for line in _of(FINAL, "RUN") if "pip" in line]


def test_the_versions_for_cuda_do_not_contradict_the_others() -> None:
    shared, cuda = (
        dict(line.split("==") for line in (ROOT / name).read_text().split("\n") if "==" in line)
        for name in ("constraints.txt", "constraints-cuda.txt")
    )
    assert "onnxruntime-gpu" in cuda
    assert not set(shared) & set(cuda)


def test_the_base_has_the_python_of_the_constraints() -> None:
    assert "(Python 3.11," in (ROOT / "constraints.txt").read_text()
    [base] = [line for line in _of(ARGS, "ARG") if line.startswith("BASE=")]
    assert base.startswith("BASE=python:3.11-slim-")
    assert set(re.findall(r"/lib/(python[\d.]+)/", DOCKERFILE)) == {"python3.11"}


def test_the_label_has_the_projects_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"VERSION={project['version']}" in _of(FINAL, "ARG")
    [labels] = _of(FINAL, "LABEL")
    assert f'licenses="{project["license"]}"' in labels
    assert project["description"] in labels


def test_ray_started_by_kuberay_has_the_settings_of_winnow_serve() -> None:
    [env] = _of(FINAL, "ENV")
    settings = dict(pair.split("=", 1) for pair in env.split())
    assert {name: settings.get(name) for name in EVERYWHERE} == EVERYWHERE


def test_nobody_is_told_that_it_runs() -> None:
    [env] = _of(FINAL, "ENV")
    assert {"ORT_DISABLE_TELEMETRY=1", "RAY_USAGE_STATS_ENABLED=0"} <= set(env.split())


def test_the_default_command_serves_the_configuration_for_containers() -> None:
    assert _of(FINAL, "CMD") == ['["winnow", "serve", "/etc/winnow/winnow.yaml"]']
    assert "deploy/compose/winnow.yaml /etc/winnow/winnow.yaml" in _of(FINAL, "COPY")
    file = read(CONFIG)  # refuses anonymous callers, and self-approval, since others can reach it
    http = file.serve.http_options
    assert http.host == "0.0.0.0"
    assert file.settings.feedback.enabled
    assert str(http.port) in _of(FINAL, "EXPOSE")[0].split()
    assert f"127.0.0.1:{http.port}/health/ready" in _of(FINAL, "HEALTHCHECK")[0]


def test_the_container_does_not_start_without_keys() -> None:
    with pytest.raises(ConfigError, match="WINNOW_APP_KEY"):
        secrets(read(CONFIG).settings.auth, {})


def test_every_port_is_on_loopback() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(published) == 4
    assert [port for port in published if not port.startswith("127.0.0.1:")] == []


def test_every_mounted_path_exists_and_is_read_only() -> None:
    mounts = [mount for service in SERVICES.values() for mount in service.get("volumes", [])]
    paths = [mount for mount in mounts if mount.startswith(".")]
    assert len(paths) == 7
    for mount in paths:
        path, _, mode = mount.split(":")
        assert (DEPLOY / path).exists(), f"{mount}: deploy/{path} does not exist"
        assert mode == "ro", mount
    named = {mount.split(":")[0] for mount in mounts} - {mount.split(":")[0] for mount in paths}
    assert named == set(COMPOSE["volumes"])


def test_every_container_is_locked_and_checked() -> None:
    for name, service in SERVICES.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged"), name
        # Ours has its check in the image.
        assert "healthcheck" in service or service["image"] == "winnow", name
        assert service["image"] == "winnow" or re.search(r":v?\d+\.\d+\.\d+$", service["image"])


def test_secrets_come_from_a_file_that_git_ignores() -> None:
    used = set(re.findall(r"\$\{(\w+):\?", (DEPLOY / "compose.yaml").read_text()))
    offered = re.findall(r"^(\w+)=(.*)$", EXAMPLE, re.MULTILINE)
    assert {name for name, _ in offered} == used
    assert not [name for name, value in offered if value]
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()
    keys = {key.secret_env for key in read(CONFIG).settings.auth.keys}
    assert keys == set(SERVICES["winnow"]["environment"])


def test_the_example_fills_itself(tmp_path: Path) -> None:
    recipe = "\n".join(line[1:] for line in EXAMPLE.splitlines() if line.startswith("#   "))
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy/.env.example").write_text(EXAMPLE)
    subprocess.run(["bash", "-c", recipe], cwd=tmp_path, check=True, timeout=60)
    made = tmp_path / "deploy/.env"
    values = dict(line.split("=", 1) for line in made.read_text().splitlines())
    assert set(values) == set(re.findall(r"^(\w+)=", EXAMPLE, re.MULTILINE))
    assert made.stat().st_mode & 0o077 == 0
    settings = read(CONFIG).settings
    assert len(secrets(settings.auth, values)) == len(settings.auth.keys)


def test_prometheus_scrapes_what_the_exporter_serves() -> None:
    exporter = SERVICES["exporter"]
    assert exporter["network_mode"] == "service:winnow"
    options = dict(zip(exporter["command"][2::2], exporter["command"][3::2], strict=True))
    ports = read(CONFIG).settings.metrics_ports
    assert ports is not None
    assert options["--ports"] == f"{ports[0]}-{ports[1]}"
    prometheus = yaml.safe_load((DEPLOY / "compose/prometheus.yml").read_text())
    targets = {
        job["job_name"]: job["static_configs"][0]["targets"] for job in prometheus["scrape_configs"]
    }
    assert targets["winnow"] == [f"winnow:{options['--port']}"]
    assert options["--port"] in _of(FINAL, "EXPOSE")[0].split()
    [alertmanagers] = prometheus["alerting"]["alertmanagers"]
    assert alertmanagers["static_configs"][0]["targets"] == ["alertmanager:9093"]


def test_prometheus_takes_its_configuration(tmp_path: Path) -> None:
    promtool = _tool("promtool")
    # As the container sees them: side by side.
    for source in ("compose/prometheus.yml", "observability/rules.yml"):
        shutil.copy(DEPLOY / source, tmp_path)
    found = promtool("check", "config", tmp_path / "prometheus.yml")
    assert found.returncode == 0, found.stdout + found.stderr


def test_alertmanager_takes_its_configuration() -> None:
    found = _tool("amtool")("check-config", DEPLOY / "compose/alertmanager.yml")
    assert found.returncode == 0, found.stdout + found.stderr


def test_every_alert_has_a_receiver() -> None:
    route = yaml.safe_load((DEPLOY / "compose/alertmanager.yml").read_text())["route"]
    routed = {route["receiver"], *(child["receiver"] for child in route["routes"])}
    groups = yaml.safe_load((DEPLOY / "observability/rules.yml").read_text())["groups"]
    severities = {
        rule["labels"]["severity"] for group in groups for rule in group["rules"] if "alert" in rule
    }
    assert severities == routed == {"page", "ticket"}


def test_grafana_finds_its_dashboards() -> None:
    grafana = SERVICES["grafana"]
    provided = yaml.safe_load((DEPLOY / "compose/grafana/dashboards/winnow.yaml").read_text())
    [provider] = provided["providers"]
    [mount] = [mount for mount in grafana["volumes"] if provider["options"]["path"] in mount]
    folder = DEPLOY / mount.split(":")[0]
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == provider["options"]["path"]
    assert (folder / home.name).is_file()
    sources = yaml.safe_load((DEPLOY / "compose/grafana/datasources/prometheus.yaml").read_text())
    [source] = sources["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert source["isDefault"]  # the dashboards ask for a Prometheus, and take the default
