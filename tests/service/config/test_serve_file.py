from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.config import ConfigError
from service.config.serve_file import read
from tests.bundles import settings
from tests.service.config.wrong import put

LOCAL = Path(__file__).parents[3] / "deploy/local.yaml"


def _document() -> dict[str, Any]:
    return {
        "http_options": {"host": "127.0.0.1", "port": 8123},
        "applications": [
            {
                "name": "winnow",
                "route_prefix": "/",
                "import_path": "service.app:build",
                "args": copy.deepcopy(settings("tiny")),
            }
        ],
    }


def _read(tmp_path: Path, document: Any) -> Any:
    path = tmp_path / "config.yaml"
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    return read(path)


def test_the_local_configuration_reads() -> None:
    file = read(LOCAL)
    assert file.serve.http_options.host == "127.0.0.1"
    assert file.settings.default_policy == "no-crossbar"
    assert set(file.settings.policies) == {
        "none",
        "no-crossbar",
        "no-crossbar-guided",
        "only-crossbar",
    }
    assert "admin" not in file.settings.auth.anonymous_scopes


def test_a_good_file_gives_serves_part_and_ours(tmp_path: Path) -> None:
    file = _read(tmp_path, _document())
    assert (file.application.name, file.serve.http_options.port) == ("winnow", 8123)
    assert set(file.settings.policies) == {"none", "bright"}


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("colour", "colour"),
        ("http_options.colour", "http_options.colour"),
        ("applications.0.colour", "applications.0.colour"),
        ("applications.0.args.colour", "applications.0.args.colour"),
        ("applications.0.args.limits", "applications.0.args.limits.colour"),
    ],
)
def test_an_unknown_key_stops_with_its_path_in_the_file(
    tmp_path: Path, path: str, where: str
) -> None:
    document: Any = _document()
    here = document
    *parents, last = path.split(".")
    for part in parents:
        here = here[int(part)] if part.isdecimal() else here[part]
    here[last] = {"colour": 1} if last == "limits" else 1
    with pytest.raises(ConfigError) as refusal:
        _read(tmp_path, document)
    assert any(line.startswith(f"{where}: ") for line in str(refusal.value).splitlines())


@pytest.mark.parametrize("host", ["0.0.0.0", None])
def test_anonymous_access_on_a_public_address_is_refused(tmp_path: Path, host: str | None) -> None:
    document = _document()
    document["http_options"] = {"host": host} if host else {}
    with pytest.raises(ConfigError, match=r"auth\.anonymous: refused"):
        _read(tmp_path, document)


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ("a: [", "is not YAML"),
        ("- 1", "must be a mapping"),
        ("", "must be a mapping"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
        ({"applications": []}, "must hold one entry"),
        ({"applications": [{"import_path": "other:app"}]}, "service.app:build"),
    ],
)
def test_what_is_not_our_file_is_refused(tmp_path: Path, document: Any, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        _read(tmp_path, document)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a: 1\na: 2\n", ["a: stands twice, in lines 1 and 2"]),
        ('a: 1\n"a": 1\n', ["a: stands twice, in lines 1 and 2"]),
        (
            "applications:\n- args:\n    limits:\n      n: 1\n      n: 100\n- x: 1\n  x: 2\n",
            [
                "applications.0.args.limits.n: stands twice, in lines 4 and 5",
                "applications.1.x: stands twice, in lines 6 and 7",
            ],
        ),
    ],
)
def test_a_key_that_stands_twice_is_refused(tmp_path: Path, text: str, lines: list[str]) -> None:
    with pytest.raises(ConfigError) as refusal:
        _read(tmp_path, text)
    assert str(refusal.value).split("\n") == lines


def test_anchors_may_share_what_is_alike(tmp_path: Path) -> None:
    document = _document()
    policies = document["applications"][0]["args"]["policies"]
    policies["again"] = policies["bright"]
    text = yaml.safe_dump(document)
    assert "&id001" in text
    assert "again" in _read(tmp_path, text).settings.policies


def _bomb(many: str, first: str = "[x]") -> bytes:
    """A few lines of ten aliases each, to the line before."""
    lines = [f"- &a0 {first}"]
    lines += [
        f"- &a{depth + 1} {many.format(', '.join([f'*a{depth}'] * 10))}" for depth in range(20)
    ]
    return "\n".join(lines).encode()


def test_a_key_that_stands_twice_is_told_once_however_many_aliases(tmp_path: Path) -> None:
    text = "a: &a {x: 1, x: 2}\n" + "\n".join(f"b{n}: *a" for n in range(9))
    with pytest.raises(ConfigError) as refusal:
        _read(tmp_path, text)
    assert str(refusal.value) == "a.x: stands twice, in lines 1 and 1"


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xfe\x00",
        b"a: \x00",
        b"a: 2001-99-99",
        b"a: 0b_",
        b"? [x]\n: 1",
        b"[" * 5000,
        b"&a {a: *a}",
        b"&a [*a]",
        b"a: &a {b: *a}",
        b"--- 1\n--- 2\n",
        b"a: !!binary '?'",
        b"a: *b",
        b"<<: 1",
        _bomb("[{}]"),
        _bomb("{{<<: [{}]}}", "{x: 1}"),
        b"{1: 2, null: 3}",
    ],
)
def test_what_cannot_be_read_is_a_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigError) as refusal:
        read(path)
    assert str(refusal.value)
    assert all(": " in line for line in str(refusal.value).split("\n"))


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("proxy_location", "HeadOnly", "must be Disabled: the service listens itself"),
        ("proxy_location", "EveryNode", "must be Disabled: the service listens itself"),
        ("grpc_options", {"port": 9000}, "not used by Winnow"),
        ("target_capacity", 50, "num_replicas"),
        ("tracing_config", {"enabled": True}, "not used by Winnow"),
        ("http_options.root_path", "/x", "proxy in front"),
        ("http_options.request_timeout_s", 1, "limits.max_deadline_s"),
        ("http_options.ssl_keyfile", "/key.pem", "TLS ends at the proxy in front"),
        ("applications.0.route_prefix", "/winnow", "must be /"),
        ("applications.0.runtime_env", {"pip": ["x"]}, "belong into the image"),
        ("applications.0.deployments", [], "stand in `args`"),
        ("applications.0.logging_config", {}, "top of the file"),
        ("applications.0.external_scaler_enabled", True, "not used by Winnow"),
    ],
)
def test_what_means_nothing_here_is_refused_by_name(
    tmp_path: Path, path: str, value: Any, says: str
) -> None:
    parts = [int(part) if part.isdecimal() else part for part in path.split(".")]
    with pytest.raises(ConfigError) as refusal:
        _read(tmp_path, put(_document(), tuple(parts), value))
    [line] = str(refusal.value).split("\n")
    assert line.startswith(f"{path}: ")
    assert says in line


def test_faults_of_every_part_are_told_at_once(tmp_path: Path) -> None:
    document = _document() | {"proxy_location": "HeadOnly", "colour": 1}
    document["http_options"]["port"] = 0
    document["applications"][0]["args"]["limits"] = {"n": 0, "deadline_s": float("nan")}
    document["applications"][0]["args"]["store"] = {"url": "sqlite://", "blobs_url": "x"}
    with pytest.raises(ConfigError) as refusal:
        _read(tmp_path, document)
    paths = {line.partition(": ")[0] for line in str(refusal.value).split("\n")}
    assert paths == {
        "proxy_location",
        "colour",
        "http_options.port",
        "applications.0.args.limits.n",
        "applications.0.args.limits.deadline_s",
        "applications.0.args.store.url",
        "applications.0.args.store.blobs_url",
    }


@pytest.mark.parametrize("file", sorted(LOCAL.parent.rglob("*.yaml")), ids=str)
def test_every_file_that_ships_reads_as_it_would_be_deployed(file: Path) -> None:
    if "import_path: service.app:build" in file.read_text():
        assert read(file, deployed=True).serve.proxy_location == "Disabled"
