"""`config check` and `serve`: one check, with a line for each fault, before Ray starts."""

from __future__ import annotations

import base64
import copy
import io
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from rich.console import Console
from sqlalchemy import create_engine, text
from typer.testing import CliRunner

from models.bundles import bundle as bundles
from service.cli.main import app
from service.cluster import hardware, preflight
from service.cluster.ray_environment import ONE_MACHINE
from service.cluster.supervisor import ExitStatus
from service.config import ConfigError, Settings
from service.policies.registry import _seed
from service.policies.seeding import configured_policies
from service.store.store import Store
from tests.bundles import settings, write_bundle
from tests.service.config.wrong import put

KEYS = {"keys": [{"name": "ops", "secret_env": "OPS_KEY", "scopes": ["generate"]}]}
ARGS = ("applications", 0, "args")
OPTIONS = (*ARGS, "models", "tiny", "backbone", "replicas", "ray_actor_options")


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def document(tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A file that could be served here; its parts ask for less than the smallest machine has."""
    monkeypatch.setattr(hardware, "cpus", lambda: 2)
    hardware.resources.cache_clear()
    little: dict[str, Any] = {"ray_actor_options": {"num_cpus": 0.1}}
    args = settings(
        str(write_bundle(tmp_path / "bundle")),
        auth={"anonymous": True} | copy.deepcopy(KEYS),
        store={"url": f"sqlite:///{tmp_path}/state/d.sqlite", "blobs_url": f"{tmp_path}/blobs"},
        ingress=little,
    )
    args["models"]["tiny"] |= {"backbone": {"replicas": little}, "judge": {"replicas": little}}
    return {
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [{"name": "winnow", "import_path": "service.app:build", "args": args}],
    }


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle's judges are no networks; that real ones are tried is test_blind_judges'. And the
    server is in this process, where its console can be read; the supervisor has tests of its own.
    """
    monkeypatch.setattr("service.cluster.preflight.require_discriminating_judges", lambda *_: None)
    for name in ("TMPDIR", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.setenv(name, tempfile.gettempdir())

    def supervise(serve: Any, console: object, keep_logs: bool) -> int:
        folder = Path(tempfile.gettempdir())
        outcome = serve(SimpleNamespace(session=SimpleNamespace(folder=folder, ray=folder)))
        return 0 if outcome is ExitStatus.STOPPED else 1

    monkeypatch.setattr("service.cli.serve.supervise", supervise)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    # `winnow serve` sets these where they are not: they go back after the test.
    for name, value in ONE_MACHINE.items():
        monkeypatch.setenv(name, value)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "token")
    monkeypatch.setenv("OPS_KEY", "o" * 16)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    return {"OPS_KEY": "o" * 16}


def _file(tmp_path: Path, document: Any) -> Path:
    path = tmp_path / "winnow.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def _faults(path: Path, environment: dict[str, str], **how: Any) -> list[str]:
    try:
        preflight.check(path, environment, **how)
    except ConfigError as error:
        return str(error).split("\n")
    return []


@pytest.mark.usefixtures("environment")
def test_a_good_file_passes_and_nothing_is_written(
    document: dict[str, Any], tmp_path: Path
) -> None:
    file = _file(tmp_path, document)
    before = sorted(tmp_path.rglob("*"))
    answer = CliRunner().invoke(app, ["config", "check", str(file)])
    assert answer.exit_code == 0, answer.output
    assert "winnow.yaml: fine" in answer.output
    assert sorted(tmp_path.rglob("*")) == before


def test_an_ipv6_address_is_shown_as_a_url(document: dict[str, Any], tmp_path: Path) -> None:
    document |= {"proxy_location": "Disabled", "http_options": {"host": "::1", "port": 8123}}
    file = str(_file(tmp_path, document))
    answer = CliRunner().invoke(app, ["config", "check", "--remote", file])
    assert "http://[::1]:8123)" in answer.output


WRONG = [
    (OPTIONS, {"num_cpus": "a"}, "num_cpus"),
    (OPTIONS, {"num_cpu": 1}, "num_cpu"),
    (OPTIONS, {"num_cpus": -1}, "num_cpus"),
    ((*ARGS, "limits", "deadline_s"), float("inf"), ""),
    ((*ARGS, "store", "blobs_url"), "blobs", ""),
    (("proxy_location",), "HeadOnly", ""),
    (("proxy_location",), "EveryNode", ""),
    (("grpc_options",), {"port": 9000}, ""),
    (("http_options", "request_timeout_s"), 5.0, ""),
    (("applications", 0, "deployments"), [{"name": "Ingress"}], ""),
    ((*ARGS, "models", "tiny", "bundle"), "bundle", ""),
    ((*ARGS, "models", "tiny", "bundle"), "/nowhere", ""),
    ((*ARGS, "policies", "bright", "num_inference_steps"), [50, 20, 10], "policies.bright"),
    (
        (*ARGS, "policies", "odd"),
        {"model": "tiny", "sampler": "tcd", "sigma_spacing": "karras"},
        "policies.odd: sigma_spacing: TCDScheduler has no such spacing",
    ),
    (
        (*ARGS, "policies", "odd"),
        {"model": "tiny", "num_inference_steps": [2], "timesteps": [1000, 500]},
        "policies.odd: timesteps must lie in 0 to 999",
    ),
    (OPTIONS, {"num_cpus": 64}, "num_cpus"),
    (OPTIONS, {"num_gpus": 99}, "num_gpus"),
    (OPTIONS, {"num_gpus": 1.5}, "num_gpus"),
    (OPTIONS, {"memory": 10**13}, "memory"),
    (OPTIONS, {"resources": {"disk": 1}}, "resources"),
    (OPTIONS, {"resources": {"TPU": 0.3}}, "TPU"),
    (OPTIONS, {"accelerator_type": "H1OO"}, "accelerator_type"),
    (OPTIONS, {"label_selector": {"zone": "a"}}, "label_selector"),
    (OPTIONS, {"label_selector": {"zone": "-a"}}, "ray_actor_options"),
    (OPTIONS, {"runtime_env": {"pip": ["x"]}}, "runtime_env.pip"),
    ((*ARGS, "ingress"), {"num_replicas": 2, "max_replicas_per_node": 1}, "max_replicas_per_node"),
    ((*ARGS, "models", "tiny", "judge", "device"), "cuda:7", ""),
    ((*ARGS, "auth", "keys", 0, "secret_env"), "MISSING_KEY", "MISSING_KEY"),
    ((*ARGS, "store"), {"url_env": "MISSING_URL"}, "MISSING_URL"),
    ((*ARGS, "store", "url"), "sqlite:////dev/null/winnow.sqlite", "/dev/null"),
    ((*ARGS, "store", "url"), "sqlite:///winnow.sqlite", "absolute"),
    ((*ARGS, "store", "url"), "mysql://h/d", "sqlite or postgresql"),
    ((*ARGS, "store", "url"), "postgresql+asyncpg://h/d", "asyncpg"),
    ((*ARGS, "store", "blobs_url"), "memory://blobs", "memory"),
    ((*ARGS, "store", "blobs_url"), "nosuch://blobs", "nosuch"),
    ((*ARGS, "store", "blobs_url"), "/dev/null", "store.blobs_url"),
    ((*ARGS, "store", "blobs_url"), "/etc/passwd", "store.blobs_url"),
    ((*ARGS, "store", "blobs_url"), "/dev/null/x", "store.blobs_url"),
    ((*ARGS, "store", "blobs_url"), "file:///proc/blobs", "store.blobs_url"),
    ((*ARGS, "store", "url"), "sqlite:////proc/x.sqlite", "/proc"),
    ((*ARGS, "store", "url"), "sqlite:////proc/x/y.sqlite", "/proc"),
    ((*ARGS, "store", "url"), "sqlite:////tmp", "/tmp is a folder"),
    ((*ARGS, "store", "url"), "sqlite:////dev/null", "/dev/null is no file"),
    ((*ARGS, "store", "url"), "sqlite:////tmp/a.sqlite?mode=ro&foo=1", "foo, mode"),
    ((*ARGS, "metrics_ports"), [9000, 9001], "3 replicas"),
    (OPTIONS, {"runtime_env": {"env_vars": {"A": "x\0y"}}}, "env_vars.A"),
    ((*ARGS, "auth", "keys", 0, "name"), "anonymous", "keys.0.name"),
    ((*ARGS, "limits", "head_s"), 1e-6, "head_s"),
    ((*ARGS, "certificates"), {"signing_key_env": "MISSING_SIGNER"}, "MISSING_SIGNER"),
    (("http_options", "host"), "no-such-host.invalid", "http_options.host"),
]


@pytest.mark.parametrize(("path", "value", "named"), WRONG, ids=lambda part: str(part)[-40:])
def test_serve_refuses_what_the_check_refuses_in_the_same_words(
    path: tuple[str | int, ...],
    value: Any,
    named: str,
    document: dict[str, Any],
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray was started"))
    changed = put(document, path, value)
    if path[0] == "http_options" and "host" in path:
        changed["applications"][0]["args"]["auth"] = KEYS
    file = _file(tmp_path, changed)
    check = CliRunner().invoke(app, ["config", "check", str(file)])
    said = io.StringIO()
    monkeypatch.setattr("service.cli.serve.console", Console(file=said, width=10_000))
    serve = CliRunner().invoke(app, ["serve", str(file)])
    assert (check.exit_code, serve.exit_code) == (1, 1), check.output
    assert check.output == said.getvalue()
    assert named in check.output
    assert all(": " in line for line in check.output.splitlines()), "each is `path: reason`"
    assert "Traceback" not in check.output


def test_all_faults_are_told_at_once(document: dict[str, Any], port: int, tmp_path: Path) -> None:
    args = document["applications"][0]["args"]
    args["auth"]["keys"].append({"name": "web", "secret_env": "WEB_KEY", "scopes": ["generate"]})
    args["certificates"] = {"signing_key_env": "SIGNER"}
    args["models"]["tiny"]["judge"]["device"] = "cuda:9"
    args["policies"] |= {
        name: args["policies"]["bright"] | {"num_inference_steps": [steps]}
        for name, steps in (("one", 7), ("two", 8))
    }
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        lines = _faults(_file(tmp_path, document), {"WEB_KEY": "schlüssel" * 3})
    wanted = {
        "applications.0.args.auth.keys.0",
        "applications.0.args.auth.keys.1",
        "applications.0.args.certificates.signing_key_env",
        "applications.0.args.models.tiny.judge.device",
        "applications.0.args.policies.one",
        "applications.0.args.policies.two",
        "http_options.port",
    }
    assert {line.partition(": ")[0] for line in lines} == wanted
    assert "schlüssel" not in "".join(lines)


@pytest.mark.parametrize(
    "secret",
    ["schlüssel-schlüssel", "k" * 16 + "\n", "k" * 8 + " " + "k" * 8, "ключ" * 5, "k" * 2000, "k"],
)
def test_a_secret_that_no_header_carries_is_refused(
    secret: str, document: dict[str, Any], tmp_path: Path
) -> None:
    [line] = _faults(_file(tmp_path, document), {"OPS_KEY": secret})
    assert line.startswith("applications.0.args.auth.keys.0: environment variable OPS_KEY ")
    assert secret not in line or len(secret) == 1


def test_the_admin_key_that_a_start_makes_is_not_missed(
    document: dict[str, Any], tmp_path: Path
) -> None:
    keys = document["applications"][0]["args"]["auth"]["keys"]
    keys[0]["secret_env"] = preflight.ADMIN_KEY
    assert _faults(_file(tmp_path, document), {}) == []
    [line] = _faults(_file(tmp_path, document), {preflight.ADMIN_KEY: ""})
    assert preflight.ADMIN_KEY in line


def test_an_other_machines_file_is_not_held_against_this_one(
    document: dict[str, Any], tmp_path: Path
) -> None:
    args = document["applications"][0]["args"]
    args["models"]["tiny"]["bundle"] = "/bundles/model"
    args["models"]["tiny"]["backbone"]["device"] = "cuda"
    args["ingress"]["num_replicas"] = 100
    args["store"] = {"url_env": "DATABASE_URL", "blobs_url": "s3://bucket/winnow"}
    file = _file(tmp_path, document | {"proxy_location": "Disabled"})
    assert len(_faults(file, {})) >= 5
    checked = preflight.check(file, {}, remote=True)
    assert any("/bundles/model" in line for line in checked.unchecked)
    args["limits"] = {"deadline_s": -1}
    assert _faults(_file(tmp_path, document), {}, remote=True) != []


def test_a_file_to_be_deployed_says_that_serve_starts_no_proxies(
    document: dict[str, Any], environment: dict[str, str], tmp_path: Path
) -> None:
    assert _faults(_file(tmp_path, document), environment) == []
    checked = preflight.check(_file(tmp_path, document), environment)
    assert checked.file.serve.proxy_location == "Disabled"
    [line] = _faults(_file(tmp_path, document), environment, remote=True)
    assert line.startswith("proxy_location: must be there: Disabled")


def test_a_bundle_that_was_changed_is_refused(
    document: dict[str, Any], environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "bundle/backbone/denoiser.onnx").write_bytes(b"another")
    [line] = _faults(_file(tmp_path, document), environment)
    assert line.startswith("applications.0.args.models.tiny.bundle: ")
    assert "denoiser.onnx" in line


def test_a_bundle_of_this_folder_that_replicas_would_not_find_is_refused(
    document: dict[str, Any],
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    document["applications"][0]["args"]["models"]["tiny"]["bundle"] = "bundle"
    [line] = _faults(_file(tmp_path, document), environment)
    assert "absolute path" in line


def test_a_start_tries_its_blobs_and_a_check_leaves_nothing(
    document: dict[str, Any], environment: dict[str, str], tmp_path: Path
) -> None:
    blobs = tmp_path / "kept" / "blobs"
    document["applications"][0]["args"]["store"]["blobs_url"] = str(blobs)
    file = _file(tmp_path, document)
    assert _faults(file, environment) == []
    assert not blobs.parent.exists()
    preflight.check(file, environment, create=True)
    [blob] = (path for path in blobs.rglob("*") if path.is_file())
    blob.unlink()
    blob.parent.rmdir()
    blob.parent.write_text("in its way")
    [line] = _faults(file, environment, create=True)
    assert line.startswith("applications.0.args.store.blobs_url: ")


def test_only_the_owner_may_look_into_the_folder_that_a_start_makes(
    document: dict[str, Any], environment: dict[str, str], tmp_path: Path
) -> None:
    document["applications"][0]["args"]["store"] = {}
    state = environment | {"XDG_STATE_HOME": str(tmp_path / "home")}
    preflight.check(_file(tmp_path, document), state, create=True)
    assert stat.S_IMODE((tmp_path / "home/winnow").stat().st_mode) == 0o700


def test_a_start_makes_the_store_and_a_check_looks_at_it(
    document: dict[str, Any], environment: dict[str, str], tmp_path: Path
) -> None:
    file, store = _file(tmp_path, document), tmp_path / "state/d.sqlite"
    preflight.check(file, environment)
    assert not store.exists()
    preflight.check(file, environment, create=True)
    assert store.is_file()
    assert _faults(file, environment) == []
    _set_version(store, "9999")
    [line] = _faults(file, environment)
    assert "newer" in line


def _set_version(store: Path, version: str) -> None:
    engine = create_engine(f"sqlite:///{store}")
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :v"), {"v": version})
    engine.dispose()


def test_a_stranger_in_the_store_is_refused(
    document: dict[str, Any], environment: dict[str, str], tmp_path: Path
) -> None:
    store = document["applications"][0]["args"]["store"]
    preflight.check(_file(tmp_path, document), environment, create=True)
    other = copy.deepcopy(document["applications"][0]["args"])
    other["models"] = {"other": other["models"]["tiny"]}
    for policy in other["policies"].values():
        policy["model"] = "other"
    bundle = bundles.load(str(tmp_path / "bundle"))
    opened = Store(store["url"], store["blobs_url"])
    _seed(opened, configured_policies(Settings.model_validate(other), {"other": bundle}))
    opened.close()
    [line] = _faults(_file(tmp_path, document), environment)
    assert "store of its own" in line


def test_a_database_url_of_the_environment_is_checked_and_not_repeated(
    document: dict[str, Any], environment: dict[str, str], tmp_path: Path
) -> None:
    document["applications"][0]["args"]["store"] = {"url_env": "DATABASE_URL"}
    file = _file(tmp_path, document)
    for url in ("nonsense", "mysql://u:hunter2@h/d", "postgresql+nosuch://u:hunter2@h/d"):
        [line] = _faults(file, environment | {"DATABASE_URL": url})
        assert line.startswith(
            "applications.0.args.store.url_env: environment variable DATABASE_URL"
        )
        assert "hunter2" not in line


def test_a_state_folder_that_moves_with_the_process_is_refused(
    document: dict[str, Any], environment: dict[str, str], tmp_path: Path
) -> None:
    document["applications"][0]["args"]["store"] = {}
    lines = _faults(_file(tmp_path, document), environment | {"XDG_STATE_HOME": "state"})
    assert any("XDG_STATE_HOME must be an absolute path" in line for line in lines)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_port_that_is_taken_is_refused(
    host: str, document: dict[str, Any], environment: dict[str, str], tmp_path: Path, port: int
) -> None:
    document["http_options"]["host"] = host
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = int(taken.getsockname()[1])
        [line] = _faults(_file(tmp_path, document), environment, port=busy)
        assert line.startswith(f"http_options.port: port {busy}")
        assert _faults(_file(tmp_path, document), environment, port=port) == []


def test_metrics_ports_leave_the_services_port_alone(
    document: dict[str, Any], environment: dict[str, str], tmp_path: Path, port: int
) -> None:
    document["applications"][0]["args"]["metrics_ports"] = [port - 1, port + 1]
    [line] = _faults(_file(tmp_path, document), environment)
    assert line.startswith("applications.0.args.metrics_ports: ")
    document["applications"][0]["args"]["metrics_ports"] = [port + 1, port + 3]
    assert _faults(_file(tmp_path, document), environment) == []
    assert _faults(_file(tmp_path, document), environment, port=port + 2) != []


def test_each_replica_that_there_may_be_has_a_port_for_its_metrics(
    document: dict[str, Any], environment: dict[str, str], tmp_path: Path
) -> None:
    args = document["applications"][0]["args"]
    args["feedback"] = {"enabled": True}  # which exports none
    few = {"ray_actor_options": {"num_cpus": 0.1}}
    scaled = few | {"autoscaling": {"min_replicas": 1, "max_replicas": 4}}
    for replicas, most in ((few, 3), (few | {"num_replicas": 2}, 4), (scaled, 6)):
        args["models"]["tiny"]["backbone"]["replicas"] = replicas
        args["metrics_ports"] = [9400, 9400 + most - 1]
        assert _faults(_file(tmp_path, document), environment) == []
        args["metrics_ports"] = [9400, 9400 + most - 2]
        [line] = _faults(_file(tmp_path, document), environment)
        assert line.startswith("applications.0.args.metrics_ports: ")
        document["proxy_location"] = "Disabled"
        assert _faults(_file(tmp_path, document), environment, remote=True) == []


def test_a_key_of_32_bytes_signs(
    document: dict[str, Any], environment: dict[str, str], tmp_path: Path
) -> None:
    document["applications"][0]["args"]["certificates"] = {"signing_key_env": "SIGNER"}
    key = base64.b64encode(bytes(range(32))).decode()
    assert _faults(_file(tmp_path, document), environment | {"SIGNER": key}) == []
    assert _faults(_file(tmp_path, document), environment | {"SIGNER": key[:-4]}) != []


@pytest.mark.parametrize(
    ("gpus", "shares", "fits"),
    [
        (1, [0.5, 0.5], True),
        (1, [0.6, 0.6], False),
        (2, [0.6, 0.6, 0.6], False),
        (2, [0.6, 0.6, 0.4, 0.4], True),
        (2, [1, 0.5, 0.5], True),
        (3, [2, 0.6, 0.6], False),
    ],
)
def test_parts_of_gpus_must_fit_on_whole_ones(
    gpus: int,
    shares: list[float],
    fits: bool,
    document: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    args = document["applications"][0]["args"]
    args["models"] = {
        f"m{i}": args["models"]["tiny"]
        | {"backbone": {"replicas": {"ray_actor_options": {"num_cpus": 0, "num_gpus": share}}}}
        for i, share in enumerate(shares)
    }
    args["policies"] = {
        f"p{i}": args["policies"]["bright"] | {"model": f"m{i}"} for i in range(len(shares))
    }
    args["default_policy"] = "p0"
    monkeypatch.setattr(hardware, "resources", lambda: {"CPU": 8.0, "GPU": float(gpus)})
    found = list(hardware.faults(Settings.model_validate(args)))
    assert (found == []) is fits


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    if hasattr(hardware.resources, "cache_clear"):
        hardware.resources.cache_clear()
