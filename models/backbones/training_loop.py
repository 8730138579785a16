"""The training loop of whatever is learned by steps: AdamW, an average of the weights, resumable.

Every random number of step k comes from a generator seeded by (seed, k), so a resumed run takes
the same steps as one that was never interrupted.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from models.backbones.checkpoint import Checkpoint

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters, as recorded in the checkpoint and in a bundle's manifest."""

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
    """One finished training step; `loss` is the batch's."""

    step: int
    loss: float


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then half a cosine down to zero at `recipe.steps`."""
    warm = min(1.0, (step + 1) / recipe.warmup_steps)
    return recipe.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))


def fit(
    model: Model,
    loss: Callable[[Model, torch.Generator], Tensor],
    out: Path,
    recipe: Recipe,
    save: Callable[[Model], None] = lambda _: None,
    on_step: Callable[[Progress], None] = lambda _: None,
) -> Model:
    """Minimise `loss(model, generator)` and return the average of the weights (EMA).

    `loss` takes all its randomness, the choice of the batch included, from the generator.
    Every `recipe.checkpoint_every` steps and at the end, writes `out/checkpoint.safetensors`
    and calls `save` with the average; resumes from `out` if it can.
    Raises ValueError when `out` holds a checkpoint of another recipe.
    """
    ema = copy.deepcopy(model)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    out.mkdir(parents=True, exist_ok=True)
    path = out / "checkpoint.safetensors"
    checkpoint = Checkpoint(path, vars(recipe), model, ema, optimizer)
    for step in range(checkpoint.resume(), recipe.steps):
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        value = loss(model, generator)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.grad_clip)
        optimizer.step()
        _update(ema, model, min(recipe.ema_decay, (1 + step) / (10 + step)))

        done = step + 1
        on_step(Progress(done, value.item()))
        if done % recipe.checkpoint_every == 0 or done == recipe.steps:
            checkpoint.save(done)
            save(ema)
    return ema


@torch.no_grad()
def _update(ema: nn.Module, model: nn.Module, decay: float) -> None:
    for average, value in zip(ema.parameters(), model.parameters(), strict=True):
        average.lerp_(value, 1 - decay)
