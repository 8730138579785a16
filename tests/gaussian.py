"""A world where everything is known: pixels of x_0 are independent, each N(mu, s²).

Then p_t = N(α mu, α² s² + σ²), so the score, eps, v and the flow's velocity are exact. With the
log-linear reward log r(x_0) = a·x_0, r_t(x_t) = E[exp(a x_0) | x_t] has ∇ log r_t
= a · dE[x_0|x_t]/dx_t = a α s² / (α² s² + σ²), and the censored law p·r/Z is N(mu + s² a, s²).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.diffusion.conditioning import Conditions
from models.diffusion.method import Method
from models.diffusion.noise_schedule import NoiseSchedule
from models.diffusion.samplers import levels


@dataclass(frozen=True)
class Gaussian:
    """The world. Call it as a denoiser; its output is what the schedule's prediction_type says."""

    schedule: NoiseSchedule
    mu: float
    s: float

    def __call__(self, x_t: Tensor, timestep: Tensor) -> Tensor:
        alpha, sigma = self._level(timestep)
        eps = sigma * (x_t - alpha * self.mu) / self._variance(timestep)
        x_0 = self.mu + self.gain(timestep) * (x_t - alpha * self.mu)
        output = {
            "epsilon": eps,
            "sample": x_0,
            "v_prediction": alpha * eps - sigma * x_0,
            "flow_prediction": eps - x_0,
        }[self.schedule.prediction_type]
        return output.float()

    def guide(self, a: float) -> LinearGuide:
        """The guide of the reward exp(a·x_0)."""
        return LinearGuide(self, a)

    def gain(self, timestep: Tensor) -> Tensor:
        """dE[x_0|x_t]/dx_t, [B, 1, 1, 1]."""
        return self._level(timestep)[0] * self.s**2 / self._variance(timestep)

    def _level(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) in float64, [B, 1, 1, 1]."""
        times = timestep.double().numpy()
        alpha, sigma = (
            torch.from_numpy(np.interp(times, self.schedule.times, table)).view(-1, 1, 1, 1)
            for table in (self.schedule.alpha, self.schedule.sigma)
        )
        return alpha, sigma

    def _variance(self, timestep: Tensor) -> Tensor:
        alpha, sigma = self._level(timestep)
        return alpha**2 * self.s**2 + sigma**2


@dataclass(frozen=True)
class LinearGuide:
    """∇ log r_t of the reward exp(a·x_0): the same everywhere, at a given timestep."""

    world: Gaussian
    a: float

    def gradient(
        self, x_t: Tensor, timestep: Tensor, conditions: Conditions | None = None
    ) -> Tensor:
        """See `models.diffusion.guidance.Guide`."""
        return (self.a * self.world.gain(timestep)).float().expand_as(x_t)


def discrete_law(
    world: Gaussian, steps: int, eta: float, gradient: float = 0.0, recurrences: int = 1
) -> tuple[float, float]:
    """Mean and standard deviation of what `steps` steps of DDIM draw, in float64.

    A step is affine in x_t here (Song et al. 2021, eq. 12 with the exact eps), so the law stays
    Gaussian and two numbers follow it. `gradient` is w·a of guidance by exp(a·x_0) at scale w.
    Each step is made `recurrences` times, going back in noise in between.
    """
    schedule, mu, s = world.schedule, world.mu, world.s
    mean, variance = 0.0, 1.0
    timesteps = levels(schedule, Method(steps)).timesteps.astype(int).tolist()
    alphas_cumprod = schedule.alpha**2
    for t, before in zip(timesteps, [*timesteps[1:], None], strict=True):
        here = alphas_cumprod[t]
        there = 1.0 if before is None else alphas_cumprod[before]
        spread = here * s**2 + 1 - here
        slope = np.sqrt(1 - here) / spread
        offset = -slope * np.sqrt(here) * mu
        offset -= np.sqrt(1 - here) * gradient * np.sqrt(here) * s**2 / spread
        sigma = eta * np.sqrt((1 - there) / (1 - here) * (1 - here / there))
        keep = np.sqrt(there / here)
        push = np.sqrt(1 - there - sigma**2) - keep * np.sqrt(1 - here)
        for again in reversed(range(recurrences)):
            mean = (keep + push * slope) * mean + push * offset
            variance = (keep + push * slope) ** 2 * variance + sigma**2
            if again:
                mean *= np.sqrt(here / there)
                variance = here / there * variance + 1 - here / there
    return float(mean), float(np.sqrt(variance))


def values(pixels: list[NDArray[np.uint8]]) -> NDArray[np.float64]:
    """All pixels of delivered images, back in [-1, 1]."""
    return np.concatenate([image.ravel() for image in pixels]) / 127.5 - 1
