"""Samplers as rows of a table: each turns the levels of a draw into coefficients of linear steps.

    x_next = c_x·x_t + c_0·x̂_0 + c_e·eps + c_h·(x̂_0 of the line before) + c_z·z

They differ in their numbers alone, so rows of one batch may follow different samplers at different
timesteps. A diffusers scheduler keeps its step index inside, and every row that it steps must stand
at the same one. They are written in (alpha, sigma), so each is right for any noise schedule.

Not here: UniPC. Its corrector moves x_t again once x̂_0 is known, for which a row would have to keep
the x before and a second x̂_0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import diffusers
import numpy as np

from models.diffusion.method import Method, SamplerName
from models.diffusion.noise_schedule import NoiseSchedule
from models.diffusion.spacing import Levels, Numbers
from models.diffusion.spacing import levels as spaced

FEW_STEPS = 15
"""Below it, DPM-Solver++ ends with a first-order step, as diffusers does."""

LCM_SIGMA_DATA = 0.5


@dataclass(frozen=True)
class Coefficients:
    """c_x, c_0, c_e, c_h and c_z of each step, [N]."""

    x_t: Numbers
    x_0: Numbers
    eps: Numbers
    history: Numbers
    noise: Numbers


Steps = Callable[[NoiseSchedule, Levels, Method], Coefficients]


def _ddim(
    schedule: NoiseSchedule, at: Levels, method: Method, eta: float | None = None
) -> Coefficients:
    """DDIM (Song et al. 2021, eq. 12 and 16): eta = 0 is deterministic, 1 the ancestral sampler.

    Euler's step on the probability flow is DDIM's at eta 0, in x_t/alpha as on a flow.
    """
    alpha, sigma, after, left = at.alpha[:-1], at.sigma[:-1], at.alpha[1:], at.sigma[1:]
    eta = method.eta if eta is None else eta
    noise = eta * left * np.sqrt(np.maximum(1 - (left * alpha / (after * sigma)) ** 2, 0))
    zero = np.zeros_like(alpha)
    return Coefficients(zero, after, np.sqrt(np.maximum(left**2 - noise**2, 0)), zero, noise)


def _dpmsolver(
    schedule: NoiseSchedule, at: Levels, method: Method, stochastic: bool = False
) -> Coefficients:
    """DPM-Solver++(2M) in x̂_0 (Lu et al. 2022, algorithm 2), or its SDE form (eq. 19).

    With λ = log(alpha/sigma), h = λ' − λ and r = (λ − λ_before)/h, the step is
    (sigma'/sigma)·x_t + alpha'·(1 − e^{−h})·((1 + 1/2r)·x̂_0 − (1/2r)·x̂_0 before); the SDE has
    e^{−2h} there, x_t falls by e^{−h} more, and noise of sigma'·√(1 − e^{−2h}) comes to it.
    """
    alpha, sigma, after, left = at.alpha[:-1], at.sigma[:-1], at.alpha[1:], at.sigma[1:]
    with np.errstate(divide="ignore"):  # λ' is infinite where no noise is left
        before, then = np.log(alpha / sigma), np.log(after / left)
    h = then - before
    gain = after * -np.expm1(-2 * h if stochastic else -h)
    half_inverse_r = np.zeros_like(h)
    half_inverse_r[1:] = h[1:] / (2 * np.diff(before))
    if left[-1] == 0 or len(h) < FEW_STEPS:
        half_inverse_r[-1] = 0
    return Coefficients(
        x_t=left / sigma * (np.exp(-h) if stochastic else 1.0),
        x_0=gain * (1 + half_inverse_r),
        eps=np.zeros_like(h),
        history=-gain * half_inverse_r,
        noise=left * np.sqrt(-np.expm1(-2 * h)) if stochastic else np.zeros_like(h),
    )


def _lcm(schedule: NoiseSchedule, at: Levels, method: Method) -> Coefficients:
    """Multistep sampling of a latent consistency model (Luo et al. 2023, algorithm 3).

    Its function is c_skip·x_t + c_out·x̂_0, which noise brings to the next level. On a flow its
    boundary needs no scaling.
    """
    after, left = at.alpha[1:], at.sigma[1:]
    skip, out = np.zeros_like(after), np.ones_like(after)
    if not schedule.flow:
        scaled = at.timesteps * float(schedule.config.get("timestep_scaling", 10.0))
        skip = LCM_SIGMA_DATA**2 / (scaled**2 + LCM_SIGMA_DATA**2)
        out = scaled / np.sqrt(scaled**2 + LCM_SIGMA_DATA**2)
    # The last step ends in the function itself, whatever the table calls its end.
    after, left = np.append(after[:-1], 1.0), np.append(left[:-1], 0.0)
    zero = np.zeros_like(after)
    return Coefficients(after * skip, after * out, zero, zero, left)


def _tcd(schedule: NoiseSchedule, at: Levels, method: Method) -> Coefficients:
    """Strategic stochastic sampling of trajectory consistency (Zheng et al. 2024, algorithm 4).

    A step goes to s = (1 − eta)·t' without noise, and back to t' with it.
    """
    following = np.append(at.timesteps[1:], 0.0)
    there = np.floor((1 - method.eta) * following)
    alpha, sigma = (
        np.interp(there, schedule.times, one) for one in (schedule.alpha, schedule.sigma)
    )
    back = at.alpha[1:] / alpha
    back[-1] = 1.0
    zero = np.zeros_like(alpha)
    return Coefficients(zero, back * alpha, back * sigma, zero, np.sqrt(1 - back**2))


def _configured_end(schedule: NoiseSchedule) -> float:
    return schedule.final_alpha


def _end_by_final_sigmas_type(schedule: NoiseSchedule) -> float:
    """DPM-Solver++ ignores `set_alpha_to_one`."""
    last = schedule.config.get("final_sigmas_type") == "sigma_min"
    return float(schedule.alpha[0]) if last else 1.0


def _first_of_table(schedule: NoiseSchedule) -> float:
    return float(schedule.alpha[0])


@dataclass(frozen=True)
class Sampler:
    """One sampler.

    `steps` makes its coefficients. `scheduler` is the class of diffusers that spaces its timesteps,
    and that it is held to; `flow` the one on a flow, None where there is none. `final_alpha` gives
    alpha where its last step ends, as that class has it; `scaled` says that the class keeps
    x_t/alpha; `stochastic` says that `eta` counts.
    """

    steps: Steps
    scheduler: Any
    flow: Any = None
    final_alpha: Callable[[NoiseSchedule], float] = _configured_end
    scaled: bool = False
    stochastic: bool = False


_EULER_FLOW = diffusers.FlowMatchEulerDiscreteScheduler
_DPM = diffusers.DPMSolverMultistepScheduler
SAMPLERS: dict[SamplerName, Sampler] = {
    "ddim": Sampler(_ddim, diffusers.DDIMScheduler, _EULER_FLOW, stochastic=True),
    "dpmsolver++": Sampler(_dpmsolver, _DPM, _DPM, _end_by_final_sigmas_type),
    "dpmsolver++-sde": Sampler(
        partial(_dpmsolver, stochastic=True), _DPM, _DPM, _end_by_final_sigmas_type
    ),
    "euler": Sampler(_ddim, diffusers.EulerDiscreteScheduler, _EULER_FLOW, scaled=True),
    "euler-ancestral": Sampler(
        partial(_ddim, eta=1.0), diffusers.EulerAncestralDiscreteScheduler, scaled=True
    ),
    "lcm": Sampler(_lcm, diffusers.LCMScheduler, diffusers.FlowMatchLCMScheduler),
    "tcd": Sampler(_tcd, diffusers.TCDScheduler, None, _first_of_table, stochastic=True),
}


def levels(schedule: NoiseSchedule, method: Method) -> Levels:
    """The timesteps and noise levels of a method.

    Raises ValueError unless 1 <= num_inference_steps <= T and the sampler is one for the schedule.
    """
    steps, limit = method.num_inference_steps, schedule.num_train_timesteps
    if not 1 <= steps <= limit:
        raise ValueError(f"num_inference_steps is {steps}, must be 1 to {limit}")
    for name, given in (("timesteps", method.timesteps), ("sigmas", method.sigmas)):
        if given and len(given) != steps:
            raise ValueError(f"{name} are {len(given)}, and num_inference_steps is {steps}")
        if any(after >= before for before, after in pairwise(given)):
            raise ValueError(f"{name} must fall")
    if method.timesteps and not 0 <= method.timesteps[-1] <= method.timesteps[0] < limit:
        raise ValueError(f"timesteps must lie in 0 to {limit - 1}")
    if method.timesteps and schedule.flow:
        # diffusers shifts the sigmas of such a list and not its timesteps.
        raise ValueError("timesteps: a flow is spaced by sigmas: give sigmas instead")
    sampler = SAMPLERS[method.sampler]
    scheduler = sampler.flow if schedule.flow else sampler.scheduler
    if scheduler is None:
        others = ", ".join(name for name, one in SAMPLERS.items() if one.flow)
        raise ValueError(f"sampler {method.sampler} is none for flow matching: take {others}")
    return spaced(schedule, scheduler, method, sampler.final_alpha(schedule), sampler.scaled)
