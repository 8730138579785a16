from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary

from service.app import build

LOCAL = Path(__file__).parents[2] / "deploy/local.yaml"


def _args() -> Any:
    return yaml.safe_load(LOCAL.read_text())["applications"][0]["args"]


def test_serve_deploy_builds_the_application_from_the_file() -> None:
    """What `serve deploy` and KubeRay do: not `build(Settings)`, but `build` with a mapping."""
    app = call_user_app_builder_with_args_if_necessary(build, _args())
    assert app._bound_deployment.name == "Ingress"


def test_serve_deploy_refuses_an_unknown_key() -> None:
    with pytest.raises(ValidationError, match="colour"):
        call_user_app_builder_with_args_if_necessary(build, _args() | {"colour": 1})
