"""Train a backbone: denoising score matching with an EMA, resumable, without pickle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor

from models.backbones.training_loop import Progress, Recipe, fit
from models.diffusion.noise_schedule import NoiseSchedule
from models.diffusion.parameterization import add_noise, training_target


@dataclass(frozen=True)
class Labels:
    """A class for each row of the data, and how often training hides it.

    `values`: int64 [N]. A hidden label becomes `null_class`, so that the one network learns the
    conditional and the unconditional score (classifier-free guidance, Ho & Salimans 2022).
    """

    values: Tensor
    null_class: int
    dropout: float = 0.1


def train(
    data: Tensor,
    out: Path,
    recipe: Recipe,
    network: Mapping[str, Any],
    scheduler: Mapping[str, Any],
    save: Callable[[UNet2DModel], None],
    labels: Labels | None = None,
    on_step: Callable[[Progress], None] = lambda _: None,
) -> UNet2DModel:
    """Train on `data`, x_0 [N, C, H, W] in the backbone's space, and return the EMA model.

    `network` configures the `UNet2DModel`, `scheduler` is a diffusers scheduler's config. The
    loss is the mean squared error on the prediction that the scheduler's config names.
    Writes `out/checkpoint.safetensors`, and calls `save` with the EMA model, every
    `recipe.checkpoint_every` steps and at the end; resumes from `out` if it can.
    Raises ValueError when `out` holds a checkpoint of another recipe.
    """
    torch.manual_seed(recipe.seed)
    schedule = NoiseSchedule.from_diffusers(scheduler)
    size = (recipe.batch_size,)

    def loss(model: UNet2DModel, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(data), size, generator=generator)
        timestep = torch.randint(schedule.num_train_timesteps, size, generator=generator)
        x_0 = data[rows]
        eps = torch.randn(x_0.shape, generator=generator)
        classes = None
        if labels is not None:
            hidden = torch.rand(size, generator=generator) < labels.dropout
            classes = labels.values[rows].masked_fill(hidden, labels.null_class)
        alpha, sigma = schedule.at(timestep)
        x_t = add_noise(x_0, eps, alpha, sigma).contiguous(memory_format=torch.channels_last)
        target = training_target(x_0, eps, alpha, sigma, schedule.prediction_type)
        output = model(x_t, timestep, class_labels=classes).sample
        return torch.nn.functional.mse_loss(output, target)

    return fit(UNet2DModel(**network), loss, out, recipe, save, on_step)
