"""Features for the Fréchet distance: the last hidden layer of a ten-digit classifier.

Inception's features mean nothing for 28 × 28 strokes; these know digits and no crossbars.
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

from models.codec import from_uint8
from models.data import Images
from models.rewards.network import adaptive_pool


@dataclass(frozen=True)
class FeatureRecipe:
    """Hyperparameters, as recorded in the manifest; `width` is the number of features."""

    width: int = 40
    epochs: int = 2
    batch_size: int = 128
    learning_rate: float = 2e-3
    seed: int = 3


class DigitFeatures(nn.Module):
    """A small convolutional classifier of digits with a hidden layer of `width` features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.body = nn.Sequential(
            nn.Conv2d(1, 12, 3, stride=2, padding=1), nn.SiLU(),
            nn.Conv2d(12, 32, 3, stride=2, padding=1), nn.GroupNorm(4, 32), nn.SiLU(),
            nn.Conv2d(32, 48, 3, padding=1), nn.GroupNorm(4, 48), nn.SiLU(),
        )  # fmt: skip
        self.hidden = nn.Linear(48 * 9, width)
        self.head = nn.Linear(width, 10)

    def embed(self, images: Tensor) -> Tensor:
        """Features [B, width] of images [B, 1, H, W] in [-1, 1]."""
        pooled = adaptive_pool(self.body(images)).flatten(1)
        return functional.silu(self.hidden(pooled))

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the ten digits, [B, 10]."""
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
    def error(self, data: Images) -> float:
        """Share of digits that the classifier gets wrong."""
        wrong = 0
        for i in range(0, len(data), 256):
            guess = self(from_uint8(data.images[i : i + 256])).argmax(dim=1).numpy()
            wrong += int((guess != data.labels[i : i + 256]).sum())
        return wrong / len(data)


def train_features(
    data: Images, recipe: FeatureRecipe, on_step: Callable[[int], None] = lambda _: None
) -> DigitFeatures:
    """Train on all ten digits; `on_step` hears of each finished step out of `steps(...)`."""
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    model = DigitFeatures(recipe.width)
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


def save_features(model: DigitFeatures, recipe: FeatureRecipe, path: Path) -> None:
    """Write safetensors (float16), with the recipe in the metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {k: v.half().contiguous() for k, v in model.state_dict().items()}
    save_file(weights, path, metadata={"recipe": json.dumps(asdict(recipe))})


def load_features(path: Path) -> DigitFeatures:
    """Read what `save_features` wrote. Raises ValueError when the file is something else."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if "recipe" not in metadata:
        raise ValueError(f"{path}: no `recipe` in the metadata: not a digit classifier")
    model = DigitFeatures(FeatureRecipe(**json.loads(metadata["recipe"])).width)
    model.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return model.eval().requires_grad_(False)
