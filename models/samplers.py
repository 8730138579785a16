"""Samplers: pure functions over rows. Each row brings the coefficients of its own step.

A diffusers scheduler keeps its step index inside, so every row it steps must stand at the same
timestep. Here a trajectory is a table of numbers, and rows of one batch read different lines.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models.schedule import NoiseSchedule


@dataclass(frozen=True)
class Trajectory:
    """The coefficients of every step from noise to image; each array is [num_inference_steps].

    `alpha_bar` and `alpha_bar_prev` are ᾱ before and after the step; `sigma` is the standard
    deviation of the noise added (Song et al. 2021, eq. 16).
    """

    timesteps: NDArray[np.int64]
    alpha_bar: NDArray[np.float64]
    alpha_bar_prev: NDArray[np.float64]
    sigma: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.timesteps)


def ddim(schedule: NoiseSchedule, num_inference_steps: int, eta: float) -> Trajectory:
    """DDIM (Song et al. 2021): eta = 0 is deterministic, eta = 1 the ancestral sampler.

    Raises ValueError unless 1 <= num_inference_steps <= T and 0 <= eta <= 1.
    """
    limit = schedule.num_train_timesteps
    if not 1 <= num_inference_steps <= limit:
        raise ValueError(f"num_inference_steps is {num_inference_steps}, must be 1 to {limit}")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}, must be 0 to 1")
    timesteps = schedule.timesteps(num_inference_steps)
    alpha_bar = schedule.alphas_cumprod[timesteps]
    # A step ends where the next one starts. diffusers subtracts T // n instead, which misses that
    # timestep when n does not divide T, and leaves the noise of the difference in the image.
    alpha_bar_prev = np.append(alpha_bar[1:], schedule.final_alpha_cumprod)
    variance = (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)
    return Trajectory(timesteps, alpha_bar, alpha_bar_prev, eta * np.sqrt(variance))


def ddim_step(x_0: Tensor, eps: Tensor, alpha_bar_prev: Tensor, sigma: Tensor) -> Tensor:
    """The mean of x_{t-1} given x̂_0 and eps (Song et al. 2021, eq. 12), [B, C, H, W].

    Add `sigma` times standard normal noise for the sample itself. The coefficients are per row,
    broadcastable to x_0.
    """
    direction = (1 - alpha_bar_prev - sigma**2).clamp(min=0).sqrt()
    return alpha_bar_prev.sqrt() * x_0 + direction * eps
