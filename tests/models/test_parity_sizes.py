"""Several sizes in one engine: each draws what diffusers' pipeline draws at that size, alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.bundles.bundle import load
from models.diffusion.noise_schedule import NoiseSchedule, read_config
from service.config import BackboneSettings
from service.engine.load import load_engine
from service.ports import DrawKey
from tests.engines import run_to_end, submit
from tests.imports import import_folder
from tests.parity import KINDS, ask, noise, scheduler_of

SIZES = [None, (32, 48), (40, 32)]


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_rows_of_several_sizes_are_what_diffusers_draws(kind: str, tmp_path: Path) -> None:
    """XL is told the size of each, in its time_ids."""
    pipeline: Any = KINDS[kind](tmp_path / "pipeline")
    made = import_folder(tmp_path / "pipeline", tmp_path / "bundle", size="32x32,32x48,40x32")
    assert made.manifest.backbone.other_sizes == ((32, 48), (40, 32))
    bundle = load(str(tmp_path / "bundle"))
    engine = load_engine(bundle, BackboneSettings(runtime="torch", max_batch=4))
    told: list[torch.Tensor] = []
    denoise = engine._runner._denoiser

    def watch(x_t: torch.Tensor, timestep: torch.Tensor, inputs: Any) -> torch.Tensor:
        told.extend(inputs.get("time_ids", ()))
        return denoise(x_t, timestep, inputs)

    engine._runner._denoiser = watch
    name = bundle.backbone_sha256("torch")
    plans = [
        ask(8, prompt="a cat", negative_prompt="owl", guidance_scale=3.0, size=size)
        for size in SIZES
    ]
    key = DrawKey(0, 7, 0)
    callers = []
    for plan in plans:
        callers.append(submit(engine, replace(plan, backbone=name), [key]))
        engine.tick()
    run_to_end(engine)
    engine.decoder.close()
    schedule = NoiseSchedule.from_diffusers(read_config(tmp_path / "pipeline"))
    for plan, caller in zip(plans, callers, strict=True):
        height, width = plan.condition.size or (32, 32)
        shape = bundle.x_t_shapes.get((height, width), bundle.x_t_shape)
        pipeline.scheduler = scheduler_of(schedule, plan.method)
        theirs = pipeline(
            "a cat", negative_prompt="owl", guidance_scale=3.0, num_inference_steps=8,
            height=height, width=width, latents=noise(7, shape), output_type="np",
        ).images[0]  # fmt: skip
        pixels = caller.results[key].pixels
        assert pixels is not None
        assert pixels.shape == (height, width, 3)
        assert np.ptp(pixels) > 50
        # A level of rounding.
        assert np.abs(pixels / 255 - theirs).max() < 0.6 / 255 + 1e-4
    if kind == "sdxl":
        sizes = {tuple(one.tolist()) for one in told}
        assert sizes == {(h, w, 0, 0, h, w) for h, w in ((32, 32), (32, 48), (40, 32))}
