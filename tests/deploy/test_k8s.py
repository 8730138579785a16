"""The manifests for Kubernetes: each overlay is valid, and each fault that we know of is found."""

from __future__ import annotations

import copy
import functools
import inspect
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.k8s import check, consistency, crds
from deploy.observability.files import DASHBOARDS, prometheus_rule
from models.bundles.bundle import ZOO
from service.cli.exporter import exporter
from service.cluster.ray_environment import EVERYWHERE

ROOT = Path(__file__).parents[2]
CPU = check.HERE / "overlays/cpu"

kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl was not found")
definitions = pytest.mark.skipif(
    not check.crd_folder().is_dir(), reason=f"no CRDs in {check.crd_folder()}: WINNOW_CRDS"
)


@functools.cache
def _built(overlay: Path) -> list[dict[str, Any]]:
    return check.build(overlay)


@functools.cache
def _schemas() -> dict[tuple[str, str], dict[str, Any]]:
    return crds.load(check.crd_folder())


def _faults(change: Any, kind: str = "RayService") -> list[str]:
    """The faults of the CPU overlay, once one object of it was changed."""
    documents = copy.deepcopy(_built(CPU))
    changed = next(one for one in documents if one["kind"] == kind)
    change(changed)
    return [*check.schema_faults(changed, _schemas()), *consistency.faults(documents)]


@kubectl
@definitions
@pytest.mark.parametrize("overlay", check.overlays(), ids=lambda path: path.name)
def test_every_overlay_is_valid(overlay: Path) -> None:
    assert list(check.faults(_built(overlay), _schemas())) == []


@kubectl
def test_every_patch_in_the_documents_builds(tmp_path: Path) -> None:
    """What people paste: as it stands there, into an overlay of their own."""
    pages = [ROOT / "docs/operations/kubernetes.md", check.HERE / "components/prometheus"]
    text = pages[0].read_text()
    blocks = [textwrap.dedent(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.S)]
    patches = [
        one for block in blocks if "patches:" in block for one in yaml.safe_load(block)["patches"]
    ]
    comment = (pages[1] / "kustomization.yaml").read_text()
    patches += yaml.safe_load(
        "\n".join(line[2:] for line in comment.splitlines() if line.startswith("#   "))
    )["patches"]
    assert len(patches) >= 7
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    for example in (tmp_path / "deploy").rglob("*.env.example"):
        shutil.copy(example, example.with_suffix(""))
    mine = tmp_path / "deploy/k8s/overlays/mine"
    mine.mkdir()
    for patch in patches:
        kustomization = {"resources": ["../cpu"], "patches": [patch]}
        (mine / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        built = subprocess.run(
            ["kubectl", "kustomize", mine], capture_output=True, text=True, check=False
        )
        assert built.returncode == 0, (patch, built.stderr)


def _misspelt(path: str) -> Any:
    """Rename the last key of a path by leaving out its last letter."""

    def change(document: Any) -> None:
        *parents, last = path.split(".")
        for part in parents:
            document = document[int(part)] if part.isdecimal() else document[part]
        document[last[:-1]] = document.pop(last)

    return change


HEAD = "spec.rayClusterConfig.headGroupSpec"
WORKER = "spec.rayClusterConfig.workerGroupSpecs.0"


@kubectl
@definitions
@pytest.mark.parametrize(
    "path",
    [
        "spec.rayClusterDeletionDelaySeconds",
        "spec.rayClusterConfig.enableInTreeAutoscaling",
        "spec.rayClusterConfig.gcsFaultToleranceOptions.redisAddress",
        f"{HEAD}.template.spec.containers.0.securityContext.readOnlyRootFilesystem",
        f"{WORKER}.template.spec.volumes.1.emptyDir.sizeLimit",
        f"{WORKER}.template.metadata.labels",
    ],
)
def test_a_typo_in_a_rayservice_is_found(path: str) -> None:
    typo = path.rpartition(".")[2][:-1]
    found = _faults(_misspelt(path))
    assert any(f"'{typo}' was unexpected" in line or f"'{typo}'" in line for line in found), found


@kubectl
@definitions
@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("NetworkPolicy", "spec.podSelector"),
        ("PodDisruptionBudget", "spec.minAvailable"),
        ("StatefulSet", "spec.template.spec.containers.0.readinessProbe.periodSeconds"),
    ],
)
def test_a_typo_in_a_core_kind_is_found(kind: str, path: str) -> None:
    typo = path.rpartition(".")[2][:-1]
    assert any(typo in line for line in _faults(_misspelt(path), kind))


def _put(path: str, value: Any) -> Any:
    def change(document: Any) -> None:
        *parents, last = path.split(".")
        for part in parents:
            document = document[int(part)] if part.isdecimal() else document[part]
        document[last] = value

    return change


def _serve(old: str, new: str) -> Any:
    def change(document: Any) -> None:
        text = document["spec"]["serveConfigV2"]
        assert old in text
        document["spec"]["serveConfigV2"] = text.replace(old, new)

    return change


@kubectl
@definitions
@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (_serve("default_policy:", "default_policies:"), "default_policies: unknown key"),
        (_serve("probes: [0.16, ", "probes: [0.17, "), "holds no calibration"),
        (_serve("bundle: mnist-sevens", "bundle: mnist-eights"), "neither a folder nor a shipped"),
        (_serve("host: 0.0.0.0", "host: 127.0.0.1"), "http_options.host must be 0.0.0.0"),
        (_serve("url_env: WINNOW_DATABASE_URL", "keep_days: 9"), "store.url_env is missing"),
        (_serve("/var/lib/winnow/blobs", "/var/lib/blobs"), "is on no volume of workers"),
        (_serve("WINNOW_APP_KEY", "WINNOW_APPS_KEY"), "no Secret holds WINNOW_APPS_KEY"),
        (_serve("max_deadline_s: 600", "max_deadline_s: 900"), "must be above limits.max_deadl"),
        (_serve("metrics_ports: [9400, 9463]", "metrics_ports: [9500, 9563]"), "has no exporter"),
        (_serve("{num_cpus: 1.5}", "{num_cpus: 4}"), "may want 8 of"),
        (_serve("{num_cpus: 1.5}", "{num_cpus: 1}"), "2 backbones of mnist-sevens fill a worker"),
        (_serve("{num_cpus: 0.1}  # above 0", "{num_cpus: 0}  #"), "may start on the head"),
        (
            _serve("keep_alive_timeout_s: 680", "keep_alive_timeout_s: 660"),
            "must be above 660, for",
        ),
        (
            _serve("graceful_shutdown_timeout_s: 620\n", "graceful_shutdown_timeout_s: 600\n"),
            "ingress.graceful_shutdown_timeout_s must be above limits.max_deadline_s",
        ),
        (
            _serve("graceful_shutdown_timeout_s: 620\n", "graceful_shutdown_timeout_s: 721\n"),
            "preStop must drain with --deadline-remaining-seconds of 901 or more",
        ),
        (_put(f"{WORKER}.template.spec.containers.0.lifecycle", {}), "preStop must drain with"),
        (_put(f"{WORKER}.template.spec.terminationGracePeriodSeconds", 919), "must be 920 or more"),
        (
            _put(f"{WORKER}.template.spec.topologySpreadConstraints.1.nodeTaintsPolicy", "Ignore"),
            "zone: nodeTaintsPolicy must be Honor",
        ),
        (_put("spec.rayClusterConfig.rayVersion", "2.9.0"), "is not the tested one"),
        (_put("spec.upgradeStrategy.type", "None"), "must be NewCluster"),
        (_put("spec.rayClusterConfig.authOptions.mode", "disabled"), "must be token"),
        (_put(f"{HEAD}.rayStartParams", {}), 'num-cpus must be "0"'),
        (_put(f"{HEAD}.template.spec.automountServiceAccountToken", True), "must be false"),
        (_put(f"{WORKER}.template.spec.securityContext", {}), "runAsNonRoot must be true"),
        (_put(f"{WORKER}.template.spec.containers.0.image", "winnow"), "has no tag"),
        (_put(f"{WORKER}.template.spec.containers.0.securityContext", {}), "must be [ALL]"),
        (
            _put(f"{WORKER}.template.spec.containers.0.readinessProbe", {"periodSeconds": 1}),
            "leave its probes to KubeRay",
        ),
        (_put(f"{WORKER}.template.spec.volumes.0.name", "bulbs"), "is no volume of the pod"),
    ],
)
def test_parts_that_do_not_fit_are_found(change: Any, complaint: str) -> None:
    assert any(complaint in line for line in _faults(change)), _faults(change)


def test_ray_has_the_settings_of_winnow_serve_in_every_container() -> None:
    service = yaml.safe_load((ROOT / "deploy/k8s/base/rayservice.yaml").read_text())
    cluster = service["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        [container] = group["template"]["spec"]["containers"]
        settings = {one["name"]: one["value"] for one in container["env"]}
        assert {name: settings.get(name) for name in EVERYWHERE} == EVERYWHERE


@kubectl
def test_the_rayservice_follows_a_changed_secret() -> None:
    documents = _built(CPU)
    secrets = {one["metadata"]["name"] for one in documents if one["kind"] == "Secret"}
    [service] = [one for one in documents if one["kind"] == "RayService"]
    [worker] = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    [source] = worker["template"]["spec"]["containers"][0]["envFrom"]
    name = source["secretRef"]["name"]
    assert name in secrets
    assert name != "winnow", "kustomize must put a hash of the content into the name"


@kubectl
def test_a_change_of_kustomize_that_cannot_be_built_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "deploy/k8s/overlays/broken"
    broken.mkdir(parents=True)
    (broken / "kustomization.yaml").write_text("resources: [nowhere.yaml]\n")
    monkeypatch.setattr(check, "ROOT", tmp_path)
    monkeypatch.setattr(check, "HERE", tmp_path / "deploy/k8s")
    assert check.main() == 1
    assert "overlays/broken: " in capsys.readouterr().err


@kubectl
def test_without_crds_it_says_loudly_what_was_not_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WINNOW_CRDS", str(tmp_path / "nowhere"))
    assert check.main() == 0
    assert "*** NOT CHECKED: custom kinds" in capsys.readouterr().err


def test_without_kubectl_it_says_loudly_what_was_not_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    assert check.main() == 0
    assert "*** NOT CHECKED: the overlays: kubectl" in capsys.readouterr().err


def test_git_ignores_secrets_and_holds_their_examples() -> None:
    folder = check.HERE / "components/secrets"
    for name in ("winnow.env", "redis.env"):
        assert (folder / f"{name}.example").is_file()
        ignored = subprocess.run(
            ["git", "check-ignore", "--quiet", str(folder / name)], cwd=ROOT, check=False
        )
        assert ignored.returncode == 0, f"git does not ignore {name}"


def test_one_port_of_the_exporter_everywhere() -> None:
    port = inspect.signature(exporter).parameters["port"].default
    text = (check.HERE / "base/rayservice.yaml").read_text()
    assert re.findall(r'--port, "(\d+)"', text) == [str(port)]
    assert re.findall(r"winnow-metrics, containerPort: (\d+)", text) == [str(port)]
    policies = yaml.safe_load_all((check.HERE / "base/networkpolicies.yaml").read_text())
    [metrics] = [one for one in policies if one["metadata"]["name"] == "metrics"]
    assert metrics["spec"]["ingress"][0]["ports"] == [{"protocol": "TCP", "port": port}]
    for page in (ROOT / "docs/runbooks").glob("*.md"):
        assert set(re.findall(r"127\.0\.0\.1:(\d+)", page.read_text())) <= {str(port)}, page.name


RULES = {
    "groups": [
        {
            "name": "winnow",
            "interval": "30s",
            "rules": [
                {"record": "policy:x:rate5m", "expr": "rate(winnow_draws_total[5m])"},
                {
                    "alert": "Unchecked",
                    "expr": 'increase(winnow_images_delivered_total{checked="false"}[5m]) > 0',
                    "for": "1m",
                    "labels": {"severity": "page"},
                    "annotations": {"summary": "{{ $labels.policy }}"},
                },
            ],
        }
    ]
}


@definitions
def test_rules_become_a_prometheusrule() -> None:
    made = prometheus_rule(RULES["groups"])
    assert made["spec"] == RULES
    assert made["metadata"]["labels"] == {"release": "kube-prometheus-stack"}
    schema = _schemas()["monitoring.coreos.com/v1", "PrometheusRule"]
    assert crds.faults(made, schema) == []
    made["spec"]["groups"][0]["rules"][0]["expression"] = "1"
    assert crds.faults(made, schema) != []


@kubectl
def test_dashboards_become_configmaps_for_grafanas_sidecar() -> None:
    built = subprocess.run(
        ["kubectl", "kustomize", str(check.ROOT / "deploy/observability")],
        capture_output=True,
        text=True,
        check=True,
    )
    made = list(yaml.safe_load_all(built.stdout))
    assert {one["metadata"]["name"] for one in made} == {f"winnow-{name}" for name in DASHBOARDS}
    for one in made:
        assert one["metadata"]["labels"] == {"grafana_dashboard": "1"}
        assert list(one["data"]) == [f"{one['metadata']['name'].removeprefix('winnow-')}.json"]
        assert check.core_faults(one) == []


def _nothing(model: Path) -> None:
    pass


def _another_manifest(model: Path) -> None:
    with (model / "manifest.json").open("a") as file:
        file.write("\n")


def _another_weight(model: Path) -> None:
    weights = next(model.rglob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def _code_that_says_yes(model: Path) -> None:
    (model / "models/bundles").mkdir(parents=True)
    (model / "models/__init__.py").touch()
    (model / "models/bundles/__init__.py").touch()
    (model / "models/bundles/bundle.py").write_text("def load(reference): print('I ran')\n")


@pytest.mark.parametrize(
    "change", [_nothing, _another_manifest, _another_weight, _code_that_says_yes]
)
def test_a_worker_starts_only_with_the_bundle_that_was_written_down(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """The init container's own command, on a copy of the shipped bundle."""
    steps = yaml.safe_load((check.HERE / "components/bundle/fetch.yaml").read_text())
    containers = [one["value"] for one in steps if "initContainers" in one["path"]]
    [verify] = [one for one in containers if one["name"] == "verify-bundle"]
    model = tmp_path / "model"
    shutil.copytree(ZOO / "mnist-sevens", model)
    pin = subprocess.run(
        ["sha256sum", "manifest.json"], cwd=model, capture_output=True, text=True, check=True
    )
    (tmp_path / "bundle.sha256").write_text(pin.stdout)
    change(model)
    [script] = verify["args"]
    script = script.replace("/etc/winnow", str(tmp_path)).replace("/bundles/model", str(model))
    script = script.replace("python ", f"{sys.executable} ")
    run = subprocess.run(
        [*verify["command"], script], cwd=model, capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    honest = change is _nothing
    assert (run.returncode == 0) is honest, run.stderr
    assert honest == ("every file is as the manifest says" in run.stdout)
    assert "I ran" not in run.stdout
