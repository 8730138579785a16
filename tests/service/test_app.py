"""The application as Serve builds it from a config file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray.serve import Application
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as call

from service.app import build

ROOT = Path(__file__).parents[2]


@pytest.fixture
def args() -> dict[str, Any]:
    """What stands in `args` of the file, as a cluster's controller passes it: a plain dict."""
    file = yaml.safe_load((ROOT / "deploy/local.yaml").read_text())
    found: dict[str, Any] = file["applications"][0]["args"]
    return found


def test_serve_builds_it_from_a_files_args(args: dict[str, Any]) -> None:
    assert isinstance(call(build, args), Application)


def test_an_unknown_key_stops_a_deploy(args: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="polices"):
        call(build, args | {"polices": {}})


def test_backbones_scale_by_nfe_where_the_file_says_so(args: dict[str, Any]) -> None:
    replicas = args["models"]["mnist-sevens"]["backbone"]["replicas"]
    replicas["autoscaling"] = {"max_replicas": 3, "utilization": 0.5, "look_back_s": 12}
    call(build, args)
    replicas["num_replicas"] = 2
    with pytest.raises(ValidationError, match="give one of them"):
        call(build, args)
