"""Distil a time-dependent guide into a student (Hinton et al. 2015, here by regression).

The student is shown x_t where samplers go, steered and not, and learns what its teacher says there.
No label is used: all that it knows of malign it has from the teacher.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.rewards.descent import descend
from models.rewards.student import Student, StudentConfig

HELD_OUT = 8
"""Of so many draws, one is kept to measure the student on."""


@dataclass(frozen=True)
class DistilRecipe:
    """Hyperparameters, as recorded in the manifest.

    `draws` are made at each of `censor_scales`, with DDIM at `num_inference_steps`, and every x_t
    on the way is an example.
    """

    draws: int = 512
    censor_scales: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0)
    num_inference_steps: int = 50
    iterations: int = 5000
    batch_size: int = 256
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    seed: int = 0


@dataclass(frozen=True)
class Examples:
    """x_t [N, C, H, W] as float16, timesteps [N], and the teacher's gradients, as x_t."""

    x_t: Tensor
    timestep: Tensor
    gradient: Tensor

    def __getitem__(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.x_t[rows].float(), self.timestep[rows], self.gradient[rows].float()


def distil(
    examples: Examples,
    recipe: DistilRecipe,
    on_iteration: Callable[[int], None] = lambda _: None,
) -> tuple[Student, dict[str, float]]:
    """Fit a student by least squares; returns it and how it does on the draws that were held out.

    `cosine` is that of the student's field and the teacher's, over all of their elements; `r2` the
    share of the teacher's variance that the student explains. Raises ValueError for an odd size.
    """
    channels, height, width = examples.x_t.shape[1:]
    if height % 2 or width % 2:
        raise ValueError(f"a student needs x_t of even size, and this is {height} by {width}")
    torch.manual_seed(recipe.seed)
    draw = torch.arange(len(examples.x_t)) // recipe.num_inference_steps
    seen, unseen = ((draw % HELD_OUT != 0).nonzero()[:, 0], (draw % HELD_OUT == 0).nonzero()[:, 0])
    student = Student(StudentConfig(channels)).train()

    def loss() -> Tensor:
        x_t, timestep, gradient = examples[seen[torch.randint(len(seen), (recipe.batch_size,))]]
        error = student(x_t, timestep) - gradient
        total: Tensor = error.square().flatten(1).sum(1).mean()
        return total

    descend(student, recipe, loss, on_iteration, max_norm=5.0)
    # As it is stored: what is measured is what will be served.
    student = student.eval().half().float()
    return student, _compare(student, examples, unseen)


@torch.no_grad()
def _compare(student: Student, examples: Examples, rows: Tensor) -> dict[str, float]:
    dot = own = theirs = error = 0.0
    for part in rows.split(512):
        x_t, timestep, gradient = examples[part]
        found = student(x_t, timestep)
        dot += float((found * gradient).sum())
        own += float(found.square().sum())
        theirs += float(gradient.square().sum())
        error += float((found - gradient).square().sum())
    return {
        "cosine": round(dot / math.sqrt(own * theirs), 4),
        "r2": round(1 - error / theirs, 4),
    }
