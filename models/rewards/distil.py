"""Distil a time-dependent guide into a student (Hinton et al. 2015, here by regression).

The student is shown x_t where samplers go, steered and not, and learns what its teacher says there.
No label is used: all that it knows of malign it has from the teacher.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models import noise
from models.guidance import Guide, guided_x0
from models.method import Method
from models.parameterization import to_x0_eps, x0_to_eps
from models.rewards.student import Student, StudentConfig
from models.samplers import linear_step, trajectory
from models.schedule import NoiseSchedule

BATCH = 64
HELD_OUT = 8
"""Of so many draws, one is kept to measure the student on."""

Watched = Callable[[Tensor, Tensor, Sequence[int]], Tensor]
"""(x_t, timestep, the seeds of the rows) to the model's output."""


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


def observe(
    teacher: Guide,
    denoise: Watched,
    schedule: NoiseSchedule,
    shape: tuple[int, int, int],
    recipe: DistilRecipe,
    first_seed: int,
    on_draws: Callable[[int], None] = lambda _: None,
) -> Examples:
    """What the teacher says along `draws` draws at each scale, in the order of the draws."""
    parts = []
    for number, scale in enumerate(recipe.censor_scales):
        for start in range(0, recipe.draws, BATCH):
            count = min(BATCH, recipe.draws - start)
            first = first_seed + number * recipe.draws + start
            seeds = range(first, first + count)
            rows = _along(teacher, denoise, schedule, shape, recipe, scale, seeds)
            # [steps, draws] to [draws, steps]: one draw's examples stand together.
            columns = (torch.stack(column, dim=1) for column in zip(*rows, strict=True))
            parts.append([column.flatten(0, 1) for column in columns])
            on_draws(count)
    x_t, timestep, gradient = (torch.cat(column) for column in zip(*parts, strict=True))
    return Examples(x_t, timestep, gradient)


def _along(
    teacher: Guide,
    denoise: Watched,
    schedule: NoiseSchedule,
    shape: tuple[int, int, int],
    recipe: DistilRecipe,
    scale: float,
    seeds: Sequence[int],
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    lines = trajectory(schedule, Method(recipe.num_inference_steps))
    initial = [noise.normal(seed, 0, noise.Purpose.INITIAL, shape) for seed in seeds]
    x_t = torch.from_numpy(np.stack(initial))
    limit = schedule.clip_sample_range or math.inf
    for i in range(len(lines)):
        alpha_bar, c_x, c_0, c_e = (
            torch.tensor(column[i], dtype=torch.float32)
            for column in (lines.alpha_bar, lines.x_t, lines.x_0, lines.eps)
        )
        timestep = torch.full((len(seeds),), int(lines.timesteps[i]))
        gradient = teacher.gradient(x_t, timestep)
        yield x_t.half(), timestep, gradient.half()
        with torch.no_grad():
            output = denoise(x_t, timestep, seeds)
            x_0, eps = to_x0_eps(output, x_t, alpha_bar, schedule.prediction_type)
            if scale:
                x_0 = guided_x0(x_0, gradient, alpha_bar, torch.tensor(scale))
                x_0 = x_0.clamp(-limit, limit)
                eps = x0_to_eps(x_t, x_0, alpha_bar)
            coefficients = c_x, c_0, c_e, torch.zeros(())
            x_t = linear_step(coefficients, x_t, x_0.clamp(-limit, limit), eps, x_0)


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
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    for i in range(recipe.iterations):
        for group in optimizer.param_groups:
            group["lr"] = (
                recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * i / recipe.iterations))
            )
        x_t, timestep, gradient = examples[seen[torch.randint(len(seen), (recipe.batch_size,))]]
        loss = (student(x_t, timestep) - gradient).square().flatten(1).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        optimizer.step()
        on_iteration(1)
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
