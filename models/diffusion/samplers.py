"""Samplers as tables: a draw is a list of lines, and every line is one linear step.

    x_next = c_x·x_t + c_0·x̂_0 + c_e·eps + c_h·(x̂_0 of the line before) + sigma·z

DDIM, ancestral sampling, DPM-Solver++(2M) and recurrence differ in their numbers alone, so rows of
one batch may follow different samplers at different timesteps. A diffusers scheduler keeps its
step index inside, and every row that it steps must stand at the same one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from numpy.typing import NDArray
from torch import Tensor

from models.diffusion.method import Method, SamplerName
from models.diffusion.noise_schedule import NoiseSchedule

Numbers = NDArray[np.float64]
FEW_STEPS = 15
"""Below it, DPM-Solver++ ends with a first-order step, as diffusers does."""


@dataclass(frozen=True)
class Trajectory:
    """Every denoiser call of a draw, from noise to image; each array is [lines].

    `alpha_bar` and `alpha_bar_prev` are ᾱ before and after the step; `x_t`, `x_0`, `eps`,
    `history` and `sigma` are the coefficients c_x, c_0, c_e, c_h and sigma. `step` numbers the
    step that a line belongs to, from 0: recurrence makes a step several times.
    """

    timesteps: NDArray[np.int64]
    alpha_bar: Numbers
    alpha_bar_prev: Numbers
    x_t: Numbers
    x_0: Numbers
    eps: Numbers
    history: Numbers
    sigma: Numbers
    step: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.timesteps)


def trajectory(schedule: NoiseSchedule, method: Method) -> Trajectory:
    """The lines of a method, recurrences included.

    Raises ValueError unless 1 <= num_inference_steps <= T and 0 <= eta <= 1.
    """
    steps, limit = method.num_inference_steps, schedule.num_train_timesteps
    if not 1 <= steps <= limit:
        raise ValueError(f"num_inference_steps is {steps}, must be 1 to {limit}")
    if not 0 <= method.eta <= 1:
        raise ValueError(f"eta is {method.eta}, must be 0 to 1")
    sampler = SAMPLERS[method.sampler]
    timesteps = schedule.timesteps(steps, sampler.scheduler, method.timestep_spacing)
    alpha_bar = schedule.alphas_cumprod[timesteps]
    # A step ends where the next one starts. diffusers' DDIM subtracts T // n instead, which misses
    # that timestep when n does not divide T, and leaves the noise of the difference in the image.
    alpha_bar_prev = np.append(alpha_bar[1:], sampler.final_alpha_bar(schedule))
    lines = sampler.lines(timesteps, alpha_bar, alpha_bar_prev, method.eta)
    return _recur(lines, guided(lines, method), method.recurrences)


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
    """The mean of the next x, [B, C, H, W]; add sigma·z for the sample itself.

    `coefficients` are c_x, c_0, c_e and c_h, per row, broadcastable to x_t.
    """
    c_x, c_0, c_e, c_h = coefficients
    return c_x * x_t + c_0 * x_0 + c_e * eps + c_h * history


def _ddim(
    timesteps: NDArray[np.int64], alpha_bar: Numbers, alpha_bar_prev: Numbers, eta: float
) -> Trajectory:
    """DDIM (Song et al. 2021, eq. 12 and 16): eta = 0 is deterministic, 1 the ancestral sampler."""
    variance = (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)
    sigma = eta * np.sqrt(variance)
    zero = np.zeros_like(alpha_bar)
    return Trajectory(
        timesteps=timesteps,
        alpha_bar=alpha_bar,
        alpha_bar_prev=alpha_bar_prev,
        x_t=zero,
        x_0=np.sqrt(alpha_bar_prev),
        eps=np.sqrt(np.maximum(1 - alpha_bar_prev - sigma**2, 0)),
        history=zero,
        sigma=sigma,
        step=np.arange(len(timesteps)),
    )


def _dpmsolver(
    timesteps: NDArray[np.int64], alpha_bar: Numbers, alpha_bar_prev: Numbers, eta: float
) -> Trajectory:
    """DPM-Solver++(2M) in x̂_0 (Lu et al. 2022, algorithm 2); `eta` is 0 here.

    With λ = log(√ᾱ/√(1−ᾱ)), h = λ' − λ and r = (λ − λ_before)/h, the step is
    (√(1−ᾱ')/√(1−ᾱ))·x_t + √ᾱ'·(1 − e^{−h})·((1 + 1/2r)·x̂_0 − (1/2r)·x̂_0 before).
    """
    with np.errstate(divide="ignore"):  # λ' is infinite where no noise is left
        before, after = (np.log(a / (1 - a)) / 2 for a in (alpha_bar, alpha_bar_prev))
    h = after - before
    gain = np.sqrt(alpha_bar_prev) * -np.expm1(-h)
    half_inverse_r = np.zeros_like(h)
    half_inverse_r[1:] = h[1:] / (2 * np.diff(before))
    if alpha_bar_prev[-1] == 1 or len(timesteps) < FEW_STEPS:
        half_inverse_r[-1] = 0
    return Trajectory(
        timesteps=timesteps,
        alpha_bar=alpha_bar,
        alpha_bar_prev=alpha_bar_prev,
        x_t=np.sqrt((1 - alpha_bar_prev) / (1 - alpha_bar)),
        x_0=gain * (1 + half_inverse_r),
        eps=np.zeros_like(h),
        history=-gain * half_inverse_r,
        sigma=np.zeros_like(h),
        step=np.arange(len(timesteps)),
    )


def _configured_end(schedule: NoiseSchedule) -> float:
    return schedule.final_alpha_cumprod


def _end_by_final_sigmas_type(schedule: NoiseSchedule) -> float:
    """DPM-Solver++ ignores `set_alpha_to_one`."""
    last = schedule.config.get("final_sigmas_type") == "sigma_min"
    return float(schedule.alphas_cumprod[0]) if last else 1.0


@dataclass(frozen=True)
class Sampler:
    """One sampler.

    `lines` makes the steps from (timesteps, ᾱ before and after each, eta). `scheduler` is the class
    of diffusers that spaces its timesteps, and that it is held to; `final_alpha_bar` gives ᾱ where
    its last step ends, as that class has it.
    """

    lines: Callable[[NDArray[np.int64], Numbers, Numbers, float], Trajectory]
    scheduler: Any
    final_alpha_bar: Callable[[NoiseSchedule], float]


SAMPLERS: dict[SamplerName, Sampler] = {
    "ddim": Sampler(_ddim, DDIMScheduler, _configured_end),
    "dpmsolver++": Sampler(_dpmsolver, DPMSolverMultistepScheduler, _end_by_final_sigmas_type),
}


def _recur(lines: Trajectory, where: NDArray[np.bool_], recurrences: int) -> Trajectory:
    """Make the steps of `where` so many times, going back in noise in between.

    Going back is x_t = √(ᾱ_t/ᾱ')·x' + √(1 − ᾱ_t/ᾱ')·z (Lugmayr et al. 2022; Bansal et al. 2023).
    Merged into the line before it, it costs no denoiser call of its own. A step made again knows
    no x̂_0 before its own: its history is reset.
    """
    index = np.repeat(np.arange(len(lines)), np.where(where, recurrences, 1))
    again = np.append(False, index[1:] == index[:-1])
    back = np.append(again[1:], False)
    columns = {name: column[index] for name, column in vars(lines).items()}
    columns["x_0"] = columns["x_0"] + np.where(again, columns["history"], 0)
    columns["history"] = np.where(again, 0, columns["history"])
    keep = np.where(back, columns["alpha_bar"] / columns["alpha_bar_prev"], 1.0)
    for name in ("x_t", "x_0", "eps", "history"):
        columns[name] = columns[name] * np.sqrt(keep)
    columns["sigma"] = np.sqrt(keep * columns["sigma"] ** 2 + 1 - keep)
    return Trajectory(**columns)
