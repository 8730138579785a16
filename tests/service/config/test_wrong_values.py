"""Every key of a file with every kind of wrong value: refused, in a line with its path."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve import Deployment
from ray.serve._private.build_app import build_app

from service.app import _deploy, build
from service.config import ConfigError, Settings
from service.config.serve_file import Document, read
from service.serving.backbone import Backbone
from tests.bundles import settings
from tests.service.config.wrong import HUGE, Key, keys, parts, put

DOCUMENT: dict[str, Any] = {
    "proxy_location": "Disabled",
    "http_options": {"host": "127.0.0.1", "port": 8123},
    "applications": [
        {
            "name": "winnow",
            "import_path": "service.app:build",
            "args": settings("tiny")
            | {
                "auth": {
                    "anonymous": True,
                    "keys": [{"name": "ops", "secret_env": "OPS_KEY", "scopes": ["generate"]}],
                }
            },
        }
    ],
}
KEYS = list(keys(Document, DOCUMENT))


def _faults(path: Path, document: Any) -> list[str]:
    """The lines of the refusal; none where the file is taken."""
    path.write_text(yaml.dump(document, Dumper=yaml.CSafeDumper, sort_keys=False))
    try:
        read(path)
    except ConfigError as error:
        return str(error).split("\n")
    return []


def test_the_document_of_these_tests_is_good(tmp_path: Path) -> None:
    assert _faults(tmp_path / "file.yaml", DOCUMENT) == []
    names = {key.path[-1] for key in KEYS}
    assert {"num_cpus", "url", "threshold", "metrics_ports", "max_replicas", "secret_env"} <= names


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_wrong_values_are_refused_with_their_path(key: Key, tmp_path: Path) -> None:
    taken = []
    for value in [*key.wrong, *([] if key.optional else [None])]:
        lines = _faults(tmp_path / "file.yaml", put(DOCUMENT, key.path, value))
        if not any(line.startswith((f"{key.name}: ", f"{key.name}.")) for line in lines):
            taken.append((value, lines))
    assert taken == []


@pytest.mark.parametrize(
    "path", sorted(parts(Document, DOCUMENT), key=str), ids=lambda path: ".".join(map(str, path))
)
def test_an_unknown_key_beside_the_others_is_refused(path: Any, tmp_path: Path) -> None:
    lines = _faults(tmp_path / "file.yaml", put(DOCUMENT, (*path, "num_cpu"), 1))
    where = ".".join(str(part) for part in (*path, "num_cpu"))
    assert f"{where}: unknown key" in lines


# What Serve is told of each deployment. One of them stands for all: they share a class.
REPLICAS = ("applications", 0, "args", "models", "tiny", "backbone", "replicas")
NUMBERS = [0, 0.0001, 0.1, 0.5, 1, 1.0, 2, 100, 1000, 3600, 86_400, 100_000, 10**6, 10**14, HUGE]
OTHERS = [True, "H100", {"disk": 2.5}, {"market-type": "!spot"}, {"env_vars": {"A": ""}}]


@pytest.mark.parametrize(
    "key", [key for key in KEYS if key.path[:7] == REPLICAS], ids=lambda key: key.name
)
def test_what_is_taken_gets_past_serves_own_build(key: Key, tmp_path: Path) -> None:
    documents = (put(DOCUMENT, key.path, value) for value in (*NUMBERS, *OTHERS))
    if "autoscaling" in key.path[:-1]:
        most = (*REPLICAS, "autoscaling", "max_replicas")
        documents = (
            document if key.path == most else put(document, most, 1000) for document in documents
        )
    taken = [document for document in documents if not _faults(tmp_path / "file.yaml", document)]
    for document in {id(one): one for one in (*taken[:1], *taken[-1:])}.values():
        model = Settings.model_validate(document["applications"][0]["args"]).models["tiny"]
        _told(_deploy(Backbone, "Backbone", model.backbone.replicas))


def test_options_together_get_past_serves_own_build(tmp_path: Path) -> None:
    for gpus, memory in itertools.product((0.25, 2, None), (10**9, None)):
        options = {"num_gpus": gpus, "memory": memory, "resources": {"TPU": 1, "disk": 0.5}}
        selector = {"label_selector": {"market-type": "!spot"}}
        document = put(DOCUMENT, (*REPLICAS, "ray_actor_options"), options | selector)
        assert _faults(tmp_path / "file.yaml", document) == []
        settings = Settings.model_validate(document["applications"][0]["args"])
        for deployment in build_app(build(settings), name="winnow").deployments:
            _told(deployment)


def _told(deployment: Deployment) -> None:
    """As far as Serve goes before it asks a cluster: options checked, all of it as protobuf."""
    deployment._deployment_config.to_proto_bytes()
    deployment._replica_config.to_proto_bytes()
