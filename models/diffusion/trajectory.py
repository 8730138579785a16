"""Every denoiser call of a draw, in order: a sampler's steps, with their recurrences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models.diffusion.method import Method
from models.diffusion.noise_schedule import NoiseSchedule
from models.diffusion.samplers import SAMPLERS, levels
from models.diffusion.spacing import Numbers


@dataclass(frozen=True)
class Trajectory:
    """Every denoiser call of a draw, from noise to image; each array is [lines].

    `alpha`, `sigma`, `alpha_next` and `sigma_next` are the levels of x before and after the step;
    `x_t`, `x_0`, `eps`, `history` and `noise` are the coefficients c_x, c_0, c_e, c_h and c_z.
    `step` numbers the step that a line belongs to, from 0: recurrence makes a step several times.
    """

    timesteps: Numbers
    alpha: Numbers
    sigma: Numbers
    alpha_next: Numbers
    sigma_next: Numbers
    x_t: Numbers
    x_0: Numbers
    eps: Numbers
    history: Numbers
    noise: Numbers
    step: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.timesteps)


def trajectory(schedule: NoiseSchedule, method: Method) -> tuple[Trajectory, float]:
    """The lines of a method, recurrences included, and the standard deviation of x_T.

    Raises ValueError as `samplers.levels`, and unless 0 <= eta <= 1.
    """
    if not 0 <= method.eta <= 1:
        raise ValueError(f"eta is {method.eta}, must be 0 to 1")
    # A step ends where the next one starts. diffusers' DDIM subtracts T // n instead, which misses
    # that timestep when n does not divide T, and leaves the noise of the difference in the image.
    at = levels(schedule, method)
    lines = Trajectory(
        at.timesteps,
        at.alpha[:-1],
        at.sigma[:-1],
        at.alpha[1:],
        at.sigma[1:],
        **vars(SAMPLERS[method.sampler].steps(schedule, at, method)),
        step=np.arange(len(at.timesteps)),
    )
    return _recur(lines, guided(lines, method), method.recurrences), at.initial


def guided(lines: Trajectory, method: Method) -> NDArray[np.bool_]:
    """Which lines lie in the method's guide interval, [lines]."""
    low, high = method.guide_interval
    return (lines.timesteps >= low) & (lines.timesteps < high)


def linear_step(
    coefficients: tuple[Tensor, Tensor, Tensor, Tensor],
    x_t: Tensor,
    x_0: Tensor,
    eps: Tensor,
    history: Tensor,
) -> Tensor:
    """The mean of the next x, [B, C, H, W]; add c_z·z for the sample itself.

    `coefficients` are c_x, c_0, c_e and c_h, per row, broadcastable to x_t.
    """
    c_x, c_0, c_e, c_h = coefficients
    return c_x * x_t + c_0 * x_0 + c_e * eps + c_h * history


def _recur(lines: Trajectory, where: NDArray[np.bool_], recurrences: int) -> Trajectory:
    """Make the steps of `where` so many times, going back in noise in between.

    Going back is x_t = k·x' + √(sigma² − k²·sigma'²)·z with k = alpha/alpha' (Lugmayr et al. 2022;
    Bansal et al. 2023). Merged into the line before it, it costs no denoiser call of its own. A
    step made again knows no x̂_0 before its own: its history is reset.
    """
    index = np.repeat(np.arange(len(lines)), np.where(where, recurrences, 1))
    again = np.append(False, index[1:] == index[:-1])
    back = np.append(again[1:], False)
    columns = {name: column[index] for name, column in vars(lines).items()}
    columns["x_0"] = columns["x_0"] + np.where(again, columns["history"], 0)
    columns["history"] = np.where(again, 0, columns["history"])
    keep = np.where(back, columns["alpha"] / columns["alpha_next"], 1.0)
    for name in ("x_t", "x_0", "eps", "history"):
        columns[name] = columns[name] * keep
    fresh = np.where(back, columns["sigma"] ** 2 - (keep * columns["sigma_next"]) ** 2, 0.0)
    columns["noise"] = np.sqrt((keep * columns["noise"]) ** 2 + np.maximum(fresh, 0))
    return Trajectory(**columns)
