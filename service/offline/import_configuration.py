"""A configuration for an imported model: ready to serve on this machine, to label and to train."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from models.bundles.bundle import Bundle
from models.diffusion.condition import size_text
from service.config import BackboneSettings

HEAD = """\
# Winnow with an imported model, on one machine: a Ray Serve config file.
#   winnow serve {path}
# Label at /feedback, train a reward, promote it as `screened`. Until then `screened`, the default,
# refuses every request. Unscreened images go to the admin key, by the policy `none`, and to whoever
# labels (scope `label`; with `approve` too, of whatever they choose). Below, `anonymous_scopes`
# gives both scopes to anybody on this machine.
"""
SLOTS = {"text": 4, "class": 8, "none": 16}
MAX_DRAWS = 8
DEADLINE_S = 120.0
PAGE = 25
"""Images of a labelling page, which are drawn at once."""


def configuration(
    bundle: Bundle,
    settings: BackboneSettings,
    steps: int,
    step_s: float,
    state: Path,
    sampling: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """The document of a Ray Serve config file. `step_s` are the seconds of a step of one image.

    `sampling` are the keys of a policy that say how the model is stepped through. `state` is an
    absolute folder for labels, rewards and policies: a store of its own, since every imported model
    has policies of the same names.
    """
    manifest = bundle.manifest
    options: dict[str, Any] = {"num_cpus": 1}
    backbone: dict[str, Any] = {"runtime": settings.runtime}
    slots = SLOTS[manifest.backbone.inputs.kind]
    whole = manifest.backbone.kind == "pipeline"
    if settings.device.startswith("cuda"):
        options |= {"num_gpus": 1}
        backbone |= {"device": settings.device}
        slots = max(slots, 16)
    else:
        backbone |= {"threads": max((os.cpu_count() or 2) // 2, 1)}
    if settings.dtype != "float32":
        backbone |= {"dtype": settings.dtype}
    # A whole pipeline draws one image at a time.
    backbone |= {"max_batch": 1 if whole else slots, "replicas": {"ray_actor_options": options}}
    needed = max(DEADLINE_S, math.ceil(step_s * steps * PAGE / 60) * 60)
    sizes = [size_text(size) for size in manifest.backbone.other_sizes]
    # `screened` lists none: each needs a threshold of its own.
    sized = {"sizes": sizes} if sizes else {}
    args = {
        "default_policy": "screened",
        "ingress_metrics": True,
        "models": {
            manifest.name: {
                "bundle": str(bundle.folder.resolve()),
                "backbone": backbone,
                "judge": {"replicas": {"ray_actor_options": {"num_cpus": 0.1}}},
            }
        },
        "policies": {
            "none": {"model": manifest.name, "num_inference_steps": [steps], **sampling, **sized},
            "screened": {
                "model": manifest.name,
                "trained": True,
                "max_draws": MAX_DRAWS,
                "num_inference_steps": [steps],
                **sampling,
            },
        },
        "store": {"url": f"sqlite:///{state}/store.sqlite", "blobs_url": f"{state}/blobs"},
        "limits": {"deadline_s": needed, "max_deadline_s": max(600.0, 2 * needed)},
        "auth": {
            "anonymous": True,
            "anonymous_scopes": ["generate", "scores", "label", "approve"],
            "keys": [{"name": "admin", "secret_env": "WINNOW_ADMIN_KEY", "scopes": ["admin"]}],
        },
        "feedback": {"enabled": True, "self_approval": True},
        "ingress": {"max_ongoing_requests": 256, "ray_actor_options": {"num_cpus": 0.1}},
    }
    return {
        "proxy_location": "Disabled",
        "http_options": {"host": "127.0.0.1", "port": 8000, "keep_alive_timeout_s": 65},
        "logging_config": {"encoding": "JSON", "enable_access_log": False},
        "applications": [
            {
                "name": "winnow",
                "route_prefix": "/",
                "import_path": "service.app:build",
                "args": args,
            }
        ],
    }


def write_configuration(file: Path, document: dict[str, Any], path: Path) -> None:
    """Write it to `file`, with a word on what it is; `path` is where it will stand."""
    text = yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=100)
    file.write_text(HEAD.format(path=path) + text)
