"""Winnow's engine beside diffusers' own pipeline, on a Stable Diffusion of random weights.

Both draw the same prompts with the same sampler, from text to pixels; the engine has encoded a
prompt once and keeps it. `--size full` has the real
model's 860 million parameters and wants a GPU; `small` is for a CPU. Runs take turns, because
machines are noisy: the ratio is what to look at. `python -m loadtest.bench.text_to_image`.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel

from loadtest.bench.report import save, show
from models.bundles import bundle as bundles
from models.diffusion.condition import Condition
from service.config import BackboneSettings
from service.engine.engine import Engine, canary_plan
from service.engine.load import load_engine
from service.engine.scheduler import Draw, Ticket
from service.ports import DrawKey
from tests.pipelines import tokenizer

SIZES: dict[str, dict[str, Any]] = {
    "small": {"latent": 16, "unet": (64, 128), "vae": (16, 32, 32, 32), "text": 64, "layers": 2},
    "full": {
        "latent": 64,
        "unet": (320, 640, 1280, 1280),
        "vae": (128, 256, 512, 512),
        "text": 768,
        "layers": 12,
    },
}
STEPS, ROUNDS, SCALE = 20, 3, 7.5
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
WORDS = ("cat", "dog", "owl", "a cat")


def main() -> None:
    """Run it, print one table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=tuple(SIZES), default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--compile", action="store_true", help="both, by torch.compile")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows, figures = [], {}
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pipeline = make(folder / "pipeline", SIZES[arguments.size])
        pipeline.to(arguments.device, getattr(torch, arguments.dtype))
        if arguments.compile:
            pipeline.unet = torch.compile(pipeline.unet)
        engine = load(folder, arguments)
        for batch in arguments.batch:
            for scale in (1.0, SCALE):
                ours, theirs = compare(
                    lambda b=batch, s=scale: engine_draws(engine, b, s),
                    lambda b=batch, s=scale: pipeline_draws(pipeline, b, s),
                )
                step_ms = 1000 * ours / STEPS
                figures[f"{batch} at {scale:g}"] = {"engine_s": ours, "diffusers_s": theirs}
                rows.append(
                    [
                        str(batch),
                        f"{scale:g}",
                        f"{batch / ours:.3g}",
                        f"{batch / theirs:.3g}",
                        f"{theirs / ours:.2f}",
                        f"{step_ms:.3g}",
                    ]
                )
        engine.decoder.close()
    device = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else "CPU"
    columns = ["batch", "guidance_scale", "engine, images/s", "diffusers, images/s", "ratio"]
    title = f"Stable Diffusion of random weights, {arguments.size}, {STEPS} steps, {device}"
    show(title, [*columns, "engine, ms a step"], rows)
    save(f"text_to_image_{arguments.size}", figures | {"device": device})


def make(folder: Path, size: dict[str, Any]) -> StableDiffusionPipeline:
    """A pipeline of random weights, saved."""
    torch.manual_seed(0)
    words = tokenizer(folder / "tokenizer", "<|endoftext|>")
    blocks, width = len(size["unet"]), size["text"]
    attends = ("CrossAttnDownBlock2D",) * (blocks - 1), ("CrossAttnUpBlock2D",) * (blocks - 1)
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=size["vae"],
            down_block_types=("DownEncoderBlock2D",) * len(size["vae"]),
            up_block_types=("UpDecoderBlock2D",) * len(size["vae"]),
            latent_channels=4,
            norm_num_groups=16,
            sample_size=8 * size["latent"],
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(words),
                hidden_size=width,
                intermediate_size=4 * width,
                num_hidden_layers=size["layers"],
                num_attention_heads=width // 64,
                eos_token_id=2,
            )
        ),
        tokenizer=words,
        unet=UNet2DConditionModel(
            sample_size=size["latent"],
            block_out_channels=size["unet"],
            down_block_types=(*attends[0], "DownBlock2D"),
            up_block_types=("UpBlock2D", *attends[1]),
            cross_attention_dim=width,
        ),
        scheduler=PNDMScheduler(skip_prk_steps=True, steps_offset=1, **BETAS),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for network in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
        network.eval().requires_grad_(False)
    pipeline.save_pretrained(folder)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load(folder: Path, arguments: argparse.Namespace) -> Engine:
    """The engine over the imported pipeline, warm."""
    command = [
        Path(sys.executable).with_name("winnow"), "bundle", "import", folder / "pipeline",
        "--out", folder / "bundle", "--device", arguments.device, "--dtype", arguments.dtype,
    ]  # fmt: skip
    subprocess.run([str(word) for word in command], check=True)
    settings = BackboneSettings(
        runtime="torch",
        device=arguments.device,
        dtype=arguments.dtype,
        compile_mode="default" if arguments.compile else None,
        max_batch=max(arguments.batch),
        decode_batch=max(arguments.batch),
    )
    engine = load_engine(bundles.load(str(folder / "bundle")), settings)
    engine.warm_up()
    return engine


def compare(ours: Callable[[], None], theirs: Callable[[], None]) -> tuple[float, float]:
    """Median seconds of each, taken in turns after one of each that does not count."""
    times: dict[Callable[[], None], list[float]] = {ours: [], theirs: []}
    for draws, seconds in list(times.items()) * (ROUNDS + 1):
        started = time.perf_counter()
        draws()
        seconds.append(time.perf_counter() - started)
    found = [statistics.median(seconds[1:]) for seconds in times.values()]
    return found[0], found[1]


def engine_draws(engine: Engine, batch: int, scale: float) -> None:
    """One image of each prompt, by the engine, decoded and delivered."""
    ticket = Ticket(lambda item: None, deadline=float("inf"))
    plan = canary_plan()
    plan = replace(plan, method=replace(plan.method, num_inference_steps=STEPS))
    engine.scheduler.add(
        [
            Draw(
                replace(plan, condition=Condition(prompt=prompt, guidance_scale=scale)),
                DrawKey(i, i, 0),
                ticket,
            )
            for i, prompt in enumerate(prompts(batch))
        ]
    )
    engine.run_to_end()


def pipeline_draws(pipeline: StableDiffusionPipeline, batch: int, scale: float) -> None:
    """The same by diffusers."""
    pipeline(
        prompt=prompts(batch),
        guidance_scale=scale,
        num_inference_steps=STEPS,
        output_type="np",
    )


def prompts(batch: int) -> list[str]:
    """So many, most of them told twice."""
    return [WORDS[i % len(WORDS)] for i in range(batch)]


if __name__ == "__main__":
    main()
