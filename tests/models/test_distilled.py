"""Latent consistency models and pruned U-Nets: as their own pipelines in diffusers draw them."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import diffusers
import pytest
import torch
from diffusers import LatentConsistencyModelPipeline, StableDiffusionPipeline
from torch import Tensor

from models.bundles.bundle import load
from models.diffusion.noise import Purpose, normal
from models.diffusion.noise_schedule import read_config
from models.offline.generator import load_generator
from tests.imports import import_folder
from tests.parity import Made, ask, draw_each, noise
from tests.pipelines import HIDDEN, STABLE, tiny_sd, tiny_sdxl

TOLERANCE = 1e-4


def _made(pipeline: Any, folder: Path) -> Made:
    pipeline.save_pretrained(folder / "pipeline", safe_serialization=True)
    import_folder(folder / "pipeline", folder / "bundle")
    bundle = load(str(folder / "bundle"))
    config = read_config(bundle.folder / "backbone")
    return Made("lcm", pipeline, config, bundle, load_generator(bundle, "torch"))


def _narrow(**more: Any) -> Any:
    torch.manual_seed(21)
    unet = diffusers.UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), layers_per_block=1, norm_num_groups=4,
        attention_head_dim=4, **more,
    )  # fmt: skip
    return unet.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def lcm(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A latent consistency model, whose U-Net takes the guidance scale."""
    folder = tmp_path_factory.mktemp("lcm")
    parts: StableDiffusionPipeline = tiny_sd(folder / "sd")
    pipeline = LatentConsistencyModelPipeline(
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        tokenizer=parts.tokenizer,
        unet=_narrow(cross_attention_dim=HIDDEN, time_cond_proj_dim=32),
        scheduler=diffusers.LCMScheduler.from_config(STABLE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return _made(pipeline, folder)


def test_a_latent_consistency_model_is_drawn_with_embedded_guidance(lcm: Made) -> None:
    """In mixed batches of steps and scales, each for one evaluation a step."""
    inputs = lcm.bundle.manifest.backbone.inputs
    assert (inputs.guidance, inputs.guidance_scale) == ("embedded", 8.5)
    plans = [
        ask(steps, "lcm", prompt=prompt, guidance_scale=scale)
        for steps, prompt, scale in ((4, "a cat", 8.5), (2, "a dog", 1.0), (8, "a cat", 3.0))
    ]
    results = draw_each(lcm.engine(max_batch=2), plans)
    assert [result.nfe for result in results] == [4, 2, 8]
    images = []
    for seed, (plan, result) in enumerate(zip(plans, results, strict=True)):
        kept: list[Tensor] = []
        steps = plan.method.num_inference_steps
        shape = (steps, 1, *lcm.generator.shape)
        drawn = iter(torch.from_numpy(normal(seed, 0, Purpose.STEP, shape)))

        def keep(pipe: Any, step: int, t: Any, given: dict[str, Any], kept=kept) -> dict[str, Any]:  # type: ignore[no-untyped-def]
            kept.append(given["denoised"])
            return given

        target = "diffusers.schedulers.scheduling_lcm.randn_tensor"
        with patch(target, lambda *_, drawn=drawn, **__: next(drawn)):
            lcm.pipeline(
                plan.condition.prompt,
                guidance_scale=plan.condition.guidance_scale,
                num_inference_steps=steps,
                latents=noise(seed, lcm.generator.shape),
                output_type="latent",
                callback_on_step_end=keep,
                callback_on_step_end_tensor_inputs=["denoised"],
            )
        images.append(lcm.image(result).x_0)
        assert float((images[-1] - kept[-1][0]).abs().max()) <= TOLERANCE
    other = ask(4, "lcm", prompt="a cat", guidance_scale=2.0)
    (changed,) = draw_each(lcm.engine(), [other])
    assert (lcm.image(changed).x_0 - images[0]).abs().max() > 10 * TOLERANCE


def test_a_u_net_that_was_pruned_is_drawn_like_the_whole_one(tmp_path: Path) -> None:
    """As SSD-1B and Vega are: no middle block, and fewer transformer layers here and there."""
    pipeline = tiny_sdxl(tmp_path / "sdxl")
    pipeline.unet = _narrow(
        cross_attention_dim=2 * HIDDEN, mid_block_type=None,
        transformer_layers_per_block=[[2], 1], reverse_transformer_layers_per_block=[1, [1, 2]],
        addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=HIDDEN + 48,
    )  # fmt: skip
    made = _made(pipeline, tmp_path)
    made.kind, made.scheduler = "sdxl", read_config(tmp_path / "sdxl")
    plan = ask(8, "euler", prompt="a cat", negative_prompt="owl", guidance_scale=5.0)
    (result,) = draw_each(made.engine(), [plan])
    assert made.image(result).difference(made.diffusers(plan, 0)) <= TOLERANCE
