from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.config import ConfigError
from service.serve_file import read
from tests.bundles import settings

LOCAL = Path(__file__).parents[2] / "deploy/local.yaml"


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
