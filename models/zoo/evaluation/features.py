"""Features for the Fréchet distance: the last hidden layer of a classifier of ten classes.

Inception's features mean nothing for 28 × 28 strokes; these know the digits (and no crossbars),
or what else they were trained on.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from models.diffusion.codec import from_uint8
from models.rewards.network import POOL, adaptive_pool
from models.zoo.mnist import Images


@dataclass(frozen=True)
class FeatureRecipe:
    """Hyperparameters, as recorded in the manifest; `width` is the number of features.

    `channels` are those of the three convolutions, the second and third in multiples of 4.
    """

    width: int = 40
    channels: tuple[int, int, int] = (12, 32, 48)
    epochs: int = 2
    batch_size: int = 128
    learning_rate: float = 2e-3
    seed: int = 3


class Classifier(nn.Module):
    """A small convolutional classifier of grey images with a hidden layer of `width` features."""

    def __init__(self, recipe: FeatureRecipe) -> None:
        super().__init__()
        self.width = recipe.width
        a, b, c = recipe.channels
        self.body = nn.Sequential(
            nn.Conv2d(1, a, 3, stride=2, padding=1), nn.SiLU(),
            nn.Conv2d(a, b, 3, stride=2, padding=1), nn.GroupNorm(4, b), nn.SiLU(),
            nn.Conv2d(b, c, 3, padding=1), nn.GroupNorm(4, c), nn.SiLU(),
        )  # fmt: skip
        self.hidden = nn.Linear(c * POOL**2, recipe.width)
        self.head = nn.Linear(recipe.width, 10)

    def embed(self, images: Tensor) -> Tensor:
        """Features [B, width] of images [B, 1, H, W] in [-1, 1]."""
        pooled = adaptive_pool(self.body(images)).flatten(1)
        return functional.silu(self.hidden(pooled))

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the ten classes, [B, 10]."""
        logits: Tensor = self.head(self.embed(images))
        return logits

    @torch.no_grad()
    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Features of pixels uint8 [N, H, W, 1], float64 [N, width]."""
        parts = [
            self.embed(from_uint8(pixels[i : i + 256])).double().numpy()
            for i in range(0, len(pixels), 256)
        ]
        return np.concatenate(parts) if parts else np.empty((0, self.width))

    @torch.no_grad()
    def classes(self, pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The likeliest class of pixels uint8 [N, H, W, 1] each, int64 [N]."""
        parts = [
            self(from_uint8(pixels[i : i + 256])).argmax(dim=1).numpy()
            for i in range(0, len(pixels), 256)
        ]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def error(self, data: Images) -> float:
        """Share of images that the classifier gets wrong."""
        return float((self.classes(data.images[..., None]) != data.labels).mean())


def train_features(
    data: Images, recipe: FeatureRecipe, on_step: Callable[[int], None] = lambda _: None
) -> Classifier:
    """Train on images of ten classes; `on_step` is called after each of `steps(...)` steps."""
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    model = Classifier(recipe)
    total = steps(data, recipe)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    for step in range(total):
        rows = torch.randint(len(data), (recipe.batch_size,), generator=generator).numpy()
        target = torch.from_numpy(data.labels[rows].astype(np.int64))
        loss = functional.cross_entropy(model(from_uint8(data.images[rows])), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        on_step(step + 1)
    return model.eval().requires_grad_(False)


def steps(data: Images, recipe: FeatureRecipe) -> int:
    """How many steps `train_features` takes."""
    return recipe.epochs * len(data) // recipe.batch_size


def save_features(model: Classifier, recipe: FeatureRecipe, path: Path) -> None:
    """Write safetensors (float16), with the recipe in the metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {k: v.half().contiguous() for k, v in model.state_dict().items()}
    save_file(weights, path, metadata={"recipe": json.dumps(asdict(recipe))})


def load_features(path: Path) -> Classifier:
    """Read what `save_features` wrote. Raises ValueError when the file is something else."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if "recipe" not in metadata:
        raise ValueError(f"{path}: no `recipe` in the metadata: not a classifier of ours")
    model = Classifier(FeatureRecipe(**json.loads(metadata["recipe"])))
    model.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return model.eval().requires_grad_(False)
