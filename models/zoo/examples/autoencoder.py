"""A small `AutoencoderKL`: 32 × 32 grey images to 4 × 8 × 8 latents of unit deviation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from models.backbones.training_loop import Progress, Recipe, fit

CONFIG: dict[str, Any] = {
    "sample_size": 32,
    "in_channels": 1,
    "out_channels": 1,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (16, 32, 64),
    "layers_per_block": 1,
    "norm_num_groups": 8,
}


@dataclass(frozen=True)
class AutoencoderRecipe(Recipe):
    """Hyperparameters; `kl_weight` is per element of the latent, against an L1 per pixel.

    It is small, and leaves a latent's own noise at 2 to 12 % of its deviation. Five times more
    cost but 0.4 dB: what the reconstructions (25.3 dB) lack is texture, for which four numbers for
    4 × 4 pixels are too few. Outlines are sharp.
    """

    steps: int = 1500
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    ema_decay: float = 0.99
    kl_weight: float = 4e-4


def train_autoencoder(
    images: Tensor,
    out: Path,
    recipe: AutoencoderRecipe,
    on_step: Callable[[Progress], None] = lambda _: None,
) -> AutoencoderKL:
    """Train on `images` [N, 1, 32, 32] in [-1, 1]; resumes from `out` if it can.

    Its `config.scaling_factor` makes the latents' deviation 1, measured over `images`.
    Raises ValueError when `out` holds a checkpoint of another recipe.
    """
    torch.manual_seed(recipe.seed)

    def loss(model: AutoencoderKL, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(images), (recipe.batch_size,), generator=generator)
        image = images[rows].contiguous(memory_format=torch.channels_last)
        posterior = model.encode(image).latent_dist
        decoded = model.decode(posterior.sample(generator)).sample
        divergence = posterior.kl().sum() / posterior.mean.numel()
        total: Tensor = torch.nn.functional.l1_loss(decoded, image) + recipe.kl_weight * divergence
        return total

    vae = fit(AutoencoderKL(**CONFIG), loss, out, recipe, on_step=on_step)
    vae = vae.eval().requires_grad_(False)
    vae.register_to_config(scaling_factor=1.0)
    vae.register_to_config(scaling_factor=1 / float(latents(vae, images).std()))
    return vae


@torch.no_grad()
def latents(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """The scaled means of the posterior, x_0 [N, 4, H/4, W/4], of images [N, 1, H, W]."""
    means = torch.cat([vae.encode(part).latent_dist.mode() for part in images.split(256)])
    scale: float = vae.config.scaling_factor
    return means * scale
