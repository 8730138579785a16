"""Fashion-MNIST: an unconditional backbone in the latent space of a small autoencoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, UNet2DModel

from models.backbones.training import train
from models.backbones.training_loop import Progress, Recipe
from models.backbones.unet import SCHEDULER_CONFIG, UNET_CONFIG, save_pipeline
from models.diffusion.codec import from_uint8
from models.zoo.examples.autoencoder import AutoencoderRecipe, latents, train_autoencoder
from models.zoo.mnist import Images

NETWORK: dict[str, Any] = UNET_CONFIG | {"sample_size": 8, "block_out_channels": (64, 128)}
# A latent is not bounded as a pixel is, so x̂_0 must not be clamped.
SCHEDULER: dict[str, Any] = SCHEDULER_CONFIG | {"clip_sample": False}
RECIPE = Recipe(steps=5000)
AUTOENCODER = AutoencoderRecipe()

OnStep = Callable[[Progress], None]


def train_fashion(
    data: Images,
    out: Path,
    recipe: Recipe = RECIPE,
    autoencoder: AutoencoderRecipe = AUTOENCODER,
    on_autoencoder_step: OnStep = lambda _: None,
    on_step: OnStep = lambda _: None,
) -> None:
    """Train the autoencoder, then the backbone on its latents; resumes from `out` if it can.

    `data` is [N, 32, 32]; its labels are not used. Writes the folder of an LDMPipeline,
    `out/model`. Raises ValueError when `out` holds a checkpoint of another recipe.
    """
    images = from_uint8(data.images)
    vae = train_autoencoder(images, out / "autoencoder", autoencoder, on_autoencoder_step)
    train(
        latents(vae, images),
        out,
        recipe,
        NETWORK,
        SCHEDULER,
        save=lambda unet: save_latent_pipeline(vae, unet, out / "model"),
        on_step=on_step,
    )


def save_latent_pipeline(vae: AutoencoderKL, unet: UNet2DModel, folder: Path) -> None:
    """Write `vqvae/`, `unet/`, `scheduler/`, `model_index.json`, as diffusers' LDMPipeline does."""
    save_pipeline(unet, folder, SCHEDULER)
    vae.save_pretrained(folder / "vqvae", safe_serialization=True)
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": "LDMPipeline", "vqvae": ["diffusers", "AutoencoderKL"]}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
