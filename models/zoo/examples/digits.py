"""Handwritten digits, all ten: a class-conditional backbone with classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.backbones.training import Labels, train
from models.backbones.training_loop import Progress, Recipe
from models.backbones.unet import PIXEL_SHUFFLE, SCHEDULER_CONFIG, UNET_CONFIG, save_pipeline
from models.diffusion.codec import PixelShuffle, from_uint8
from models.zoo.mnist import Images

NULL_CLASS = 10
NETWORK: dict[str, Any] = UNET_CONFIG | {"num_class_embeds": NULL_CLASS + 1}
RECIPE = Recipe(steps=6000)


def train_digits(
    data: Images,
    out: Path,
    recipe: Recipe = RECIPE,
    on_step: Callable[[Progress], None] = lambda _: None,
) -> None:
    """Train on `data` [N, 28, 28] with labels 0..9; resumes from `out` if it can.

    Writes the diffusers folder `out/model`, whose x_0 is the image folded by PIXEL_SHUFFLE. In
    one of ten rows the label is hidden: class 10 means "any digit".
    Raises ValueError when `out` holds a checkpoint of another recipe.
    """
    train(
        PixelShuffle(PIXEL_SHUFFLE).encode(from_uint8(data.images)),
        out,
        recipe,
        NETWORK,
        SCHEDULER_CONFIG,
        save=lambda unet: save_pipeline(unet, out / "model"),
        labels=Labels(torch.from_numpy(data.labels.astype(np.int64)), NULL_CLASS),
        on_step=on_step,
    )
