"""A guidance method that nobody knew is a network and a row of the table, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from models.bundles import bundle as bundles
from models.bundles.bundle import Bundle
from models.bundles.manifest import Manifest
from models.bundles.parts import PARTS, PartKind, Stage
from models.diffusion.conditioning import Conditions
from models.rewards.opening import Context
from service.config import BackboneSettings, Settings
from service.engine.engine import Engine
from service.engine.load import load_engine
from service.policies.policy import Overrides, Policy, resolve
from service.policies.seeding import configured_policies
from service.ports import DrawKey
from tests.engines import run_to_end, submit

TOY = PartKind(
    "toy", Stage.STEERS, "toy_file", ".safetensors", opens=f"{__name__}:Lighter", guidance="toy"
)
FILE = "guides/no-crossbar.clean.safetensors"
"""Any file that the bundle vouches for."""


class Lighter:
    """Steers every pixel up."""

    def __init__(self, path: Path, context: Context) -> None:
        assert path.name == Path(FILE).name
        assert context.shape == (4, 14, 14)

    def gradient(self, x_t: Tensor, timestep: Tensor, conditions: Conditions) -> Tensor:
        """10 everywhere."""
        return torch.full_like(x_t, 10.0)


def _bundle() -> Bundle:
    shipped = bundles.load("mnist-sevens")
    document = shipped.manifest.model_dump()
    document["rewards"]["no-crossbar"]["parts"]["toy_file"] = FILE
    return Bundle(shipped.folder, Manifest.model_validate(document))


def _policy(bundle: Bundle, **spec: object) -> Policy:
    policy = {"model": "m", "reward": "no-crossbar", "threshold": 0.5, "num_inference_steps": [4]}
    config = Settings.model_validate(
        {
            "models": {"m": {"bundle": "mnist-sevens"}},
            "policies": {"p": policy | spec},
            "default_policy": "p",
            "auth": {"anonymous": True},
        }
    )
    return configured_policies(config, {"m": bundle})["p"]


def _draw(engine: Engine, policy: Policy) -> NDArray[np.uint8]:
    plan = resolve(policy, Overrides(), 7, admin=False)
    key = DrawKey(0, 7, 0)
    caller = submit(engine, plan, [key])
    run_to_end(engine)
    pixels = caller.results[key].pixels
    assert pixels is not None
    return pixels


def test_a_row_of_the_table_takes_it_from_the_configuration_to_the_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(PARTS, "toy", TOY)
    bundle = _bundle()
    policy = _policy(bundle, guidance="toy", censor_scale=1.0)
    assert policy.parts == {"toy": bundle.sha256(FILE), "judge": policy.judge}
    engine = load_engine(bundle, BackboneSettings(max_batch=2))
    engine.warm_up()
    plain = _draw(engine, _policy(bundle))
    assert _draw(engine, policy).mean() > plain.mean() + 20


def test_without_its_row_it_is_refused_wherever_it_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ValidationError, match="'toy_file' is none of canary, clean_guide"):
        _bundle()
    with monkeypatch.context() as patched:
        patched.setitem(PARTS, "toy", TOY)
        bundle = _bundle()
    with pytest.raises(ValidationError, match="guidance: is 'toy', must be time or distilled or"):
        _policy(bundle, guidance="toy", censor_scale=1.0)
