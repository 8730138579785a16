"""Train the backbone: denoising score matching with an EMA, resumable, without pickle.

Every random number of step k comes from a generator seeded by (seed, k), so a resumed run takes
the same steps as one that was never interrupted.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DModel
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.backbones.unet import PIXEL_SHUFFLE, SCHEDULER_CONFIG, UNET_CONFIG, save_pipeline
from models.codec import PixelShuffle, from_uint8
from models.parameterization import add_noise, training_target
from models.schedule import NoiseSchedule


@dataclass(frozen=True)
class BackboneRecipe:
    """Hyperparameters, as recorded in the manifest."""

    steps: int = 10_000
    batch_size: int = 64
    learning_rate: float = 1.5e-3
    warmup_steps: int = 200
    ema_decay: float = 0.999
    grad_clip: float = 1.0
    weight_decay: float = 0.01
    seed: int = 0
    checkpoint_every: int = 250


@dataclass(frozen=True)
class Progress:
    """One finished training step; `loss` is the batch's mean squared error on the target."""

    step: int
    loss: float


def learning_rate(recipe: BackboneRecipe, step: int) -> float:
    """Linear warm-up, then half a cosine down to zero at `recipe.steps`."""
    warm = min(1.0, (step + 1) / recipe.warmup_steps)
    return recipe.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))


def train(
    images: NDArray[np.uint8],
    out: Path,
    recipe: BackboneRecipe,
    on_step: Callable[[Progress], None] = lambda _: None,
) -> UNet2DModel:
    """Train on `images` [N, H, W] uint8 and return the EMA model; resumes from `out` if it can.

    Writes `out/checkpoint.safetensors` and the EMA model as a diffusers folder in
    `out/backbone` every `recipe.checkpoint_every` steps and at the end.
    Raises ValueError when `out` holds a checkpoint of another recipe.
    """
    torch.manual_seed(recipe.seed)
    model = UNet2DModel(**UNET_CONFIG).to(memory_format=torch.channels_last)
    ema = UNet2DModel(**UNET_CONFIG)
    ema.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    schedule = NoiseSchedule.from_diffusers(SCHEDULER_CONFIG)
    alphas_cumprod = torch.from_numpy(schedule.alphas_cumprod).float()
    data = PixelShuffle(PIXEL_SHUFFLE).encode(from_uint8(images))

    out.mkdir(parents=True, exist_ok=True)
    start = _resume(out, recipe, model, ema, optimizer)
    for step in range(start, recipe.steps):
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        rows = torch.randint(len(data), (recipe.batch_size,), generator=generator)
        timestep = torch.randint(
            schedule.num_train_timesteps, (recipe.batch_size,), generator=generator
        )
        x_0 = data[rows]
        eps = torch.randn(x_0.shape, generator=generator)
        alpha_bar = alphas_cumprod[timestep].view(-1, 1, 1, 1)
        x_t = add_noise(x_0, eps, alpha_bar).contiguous(memory_format=torch.channels_last)
        target = training_target(x_0, eps, alpha_bar, schedule.prediction_type)
        loss = torch.nn.functional.mse_loss(model(x_t, timestep).sample, target)

        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.grad_clip)
        optimizer.step()
        _update_ema(ema, model, min(recipe.ema_decay, (1 + step) / (10 + step)))

        done = step + 1
        on_step(Progress(done, loss.item()))
        if done % recipe.checkpoint_every == 0 or done == recipe.steps:
            _checkpoint(out, recipe, done, model, ema, optimizer)
    return ema


@torch.no_grad()
def _update_ema(ema: UNet2DModel, model: UNet2DModel, decay: float) -> None:
    for average, value in zip(ema.parameters(), model.parameters(), strict=True):
        average.lerp_(value, 1 - decay)


def _moments(model: UNet2DModel, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """AdamW's two moments as named tensors, so that they fit a safetensors file."""
    for name, parameter in model.named_parameters():
        for key in ("exp_avg", "exp_avg_sq"):
            yield f"optimizer.{key}.{name}", optimizer.state[parameter][key]


def _checkpoint(
    out: Path,
    recipe: BackboneRecipe,
    step: int,
    model: UNet2DModel,
    ema: UNet2DModel,
    optimizer: torch.optim.Optimizer,
) -> None:
    tensors = dict(_moments(model, optimizer))
    tensors |= {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"ema.{name}": value for name, value in ema.state_dict().items()}
    metadata = {"step": str(step), "recipe": json.dumps(vars(recipe), sort_keys=True)}
    fresh = out / "checkpoint.new.safetensors"
    save_file({k: v.contiguous() for k, v in tensors.items()}, fresh, metadata=metadata)
    os.replace(fresh, out / "checkpoint.safetensors")
    save_pipeline(ema, out / "backbone")


def _resume(
    out: Path,
    recipe: BackboneRecipe,
    model: UNet2DModel,
    ema: UNet2DModel,
    optimizer: torch.optim.Optimizer,
) -> int:
    from safetensors import safe_open

    path = out / "checkpoint.safetensors"
    if not path.exists():
        return 0
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    if metadata["recipe"] != json.dumps(vars(recipe), sort_keys=True):
        raise ValueError(
            f"{path} was written by another recipe ({metadata['recipe']}): "
            "give the same options, or another --out"
        )
    tensors = load_file(path)
    step = int(metadata["step"])
    model.load_state_dict(_part(tensors, "model."))
    ema.load_state_dict(_part(tensors, "ema."))
    for name, parameter in model.named_parameters():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(step)),
            "exp_avg": tensors[f"optimizer.exp_avg.{name}"],
            "exp_avg_sq": tensors[f"optimizer.exp_avg_sq.{name}"],
        }
    return step


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
