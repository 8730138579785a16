"""What a time-dependent guide says along draws: the examples that its student learns from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from models.diffusion.conditioning import Conditions
from models.diffusion.method import Method
from models.offline.generator import Generator
from models.rewards.distillation import DistilRecipe, Examples

BATCH = 64


class Teacher(Protocol):
    """A guide that needs to know nothing of what is asked."""

    def gradient(self, x_t: Tensor, timestep: Tensor) -> Tensor:
        """See `guidance.Guide`."""
        ...


class _Said:
    """A guide that repeats what the teacher has just said of these rows, so that it is asked once,
    whether it steers or not."""

    def __init__(self) -> None:
        self.last = torch.zeros(0)

    def gradient(
        self, x_t: Tensor, timestep: Tensor, conditions: Conditions | None = None
    ) -> Tensor:
        return self.last


def observe(
    teacher: Teacher,
    generator: Generator,
    recipe: DistilRecipe,
    first_seed: int,
    on_line: Callable[[], None] = lambda: None,
) -> Examples:
    """What the teacher says along `draws` draws at each scale, in the order of the draws.

    `on_line` is called before each step of a batch.
    """
    said, parts = _Said(), []
    for number, scale in enumerate(recipe.censor_scales):
        method = Method(recipe.num_inference_steps, censor_scale=scale)
        for start in range(0, recipe.draws, BATCH):
            first = first_seed + number * recipe.draws + start
            seeds = range(first, first + min(BATCH, recipe.draws - start))
            rows = []
            for batch in generator.steps(method, seeds, {"guide": said}):
                on_line()
                x_t, timestep = batch.x_t.clone(), torch.from_numpy(batch.now(len(seeds))[0])
                said.last = teacher.gradient(x_t, timestep)
                rows.append((x_t.half(), timestep, said.last.half()))
            # [steps, draws] to [draws, steps]: one draw's examples stand together.
            columns = (torch.stack(column, dim=1) for column in zip(*rows, strict=True))
            parts.append([column.flatten(0, 1) for column in columns])
    x_t, timestep, gradient = (torch.cat(column) for column in zip(*parts, strict=True))
    return Examples(x_t, timestep, gradient)
