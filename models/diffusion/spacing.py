"""Where the steps of a draw begin and end: timesteps and noise levels, as diffusers spaces them.

diffusers' schedulers space the timesteps; this module reads them off once, so that the samplers can
be pure functions of per-row coefficients.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.diffusion.method import Method
from models.diffusion.noise_schedule import PIPELINE, NoiseSchedule, construct

Numbers = NDArray[np.float64]
SHAPES = {
    "karras": "use_karras_sigmas",
    "exponential": "use_exponential_sigmas",
    "beta": "use_beta_sigmas",
}
"""Ways to space sigmas, and what switches each of them on in a configuration of diffusers'."""


@dataclass(frozen=True)
class Levels:
    """`timesteps` float64 [N], falling; `alpha` and `sigma` float64 [N + 1], those of x_t before
    the first step and after each. `initial` is the standard deviation of x_T."""

    timesteps: Numbers
    alpha: Numbers
    sigma: Numbers
    initial: float = 1.0


def levels(
    schedule: NoiseSchedule, scheduler: Any, method: Method, final_alpha: float, scaled: bool
) -> Levels:
    """The levels of a method, spaced by this class of diffusers.

    `final_alpha` is alpha after the last step, where the class reads its levels off a table;
    `scaled` says that it keeps x_t/alpha. [num_inference_steps], or one fewer where its rounding
    makes two timesteps equal. Raises ValueError where hardly any would be left, or the class cannot
    space them so.
    """
    reference = construct(scheduler, _config(schedule, method))
    if method.sigma_spacing and SHAPES[method.sigma_spacing] not in reference.config:
        raise ValueError(f"sigma_spacing: {scheduler.__name__} has no such spacing: leave it out")
    shaped = any(reference.config.get(flag) for flag in SHAPES.values())
    if not (schedule.flow or scaled or shaped):
        timesteps = _timesteps(schedule, reference, method)
        table = timesteps.astype(np.int64)
        alpha = np.append(schedule.alpha[table], final_alpha)
        # Not from alpha: near 1 that would lose what is left of the noise.
        last = math.sqrt(1 - final_alpha**2)
        return Levels(timesteps, alpha, np.append(schedule.sigma[table], last))
    _space(reference, _arguments(schedule, method, reference))
    timesteps = reference.timesteps.double().numpy()
    sigmas = reference.sigmas.double().numpy()
    if not (np.diff(sigmas) < 0).all() or (schedule.flow and sigmas[0] > 1):
        raise ValueError(
            f"{scheduler.__name__} finds no falling noise levels for num_inference_steps "
            f"{method.num_inference_steps} with this schedule: ask for others, or another sampler"
        )
    if schedule.flow:
        return Levels(timesteps, 1 - sigmas, sigmas)
    # In x_t/alpha, whose noise is sigma/alpha.
    alpha = 1 / np.sqrt(1 + sigmas**2)
    initial = float(reference.init_noise_sigma) * float(alpha[0]) if scaled else 1.0
    return Levels(timesteps, alpha, sigmas * alpha, initial)


def _config(schedule: NoiseSchedule, method: Method) -> dict[str, Any]:
    """The schedule's configuration with what the method says instead."""
    config = {key: value for key, value in schedule.config.items() if key != PIPELINE}
    if method.timestep_spacing is not None:
        config["timestep_spacing"] = method.timestep_spacing
    if method.sigma_spacing is not None:
        config |= {flag: name == method.sigma_spacing for name, flag in SHAPES.items()}
    if schedule.flow:
        config |= {"use_flow_sigmas": True, "flow_shift": config.get("shift", 1.0)}
    return config


def _timesteps(schedule: NoiseSchedule, reference: Any, method: Method) -> Numbers:
    """Strictly falling timesteps inside the table."""
    if method.timesteps:
        given = np.array(method.timesteps, dtype=np.float64)
        if (given % 1).any():
            raise ValueError("timesteps: this sampler takes whole ones alone, or sampler: euler")
        return given
    if method.sigmas:
        raise ValueError("sigmas: this sampler takes timesteps: give timesteps, or sampler: euler")
    steps = method.num_inference_steps
    _space(reference, {"num_inference_steps": steps})
    found = np.unique(reference.timesteps.numpy().astype(np.int64))[::-1]
    # Trailing steps of 1000/61, and 61 others, round to one step too many, at timestep -1.
    found = found[found >= 0]
    if len(found) < steps - 1:
        raise ValueError(
            f"num_inference_steps is {steps}, and the sampler's timestep spacing leaves only "
            f"{len(found)}: ask for fewer"
        )
    return found.astype(np.float64)


def _arguments(schedule: NoiseSchedule, method: Method, reference: Any) -> dict[str, Any]:
    """What the model's pipeline would call `set_timesteps` with, if the scheduler takes it: another
    than its own spaces a flow by itself."""
    steps = method.num_inference_steps
    takes = inspect.signature(reference.set_timesteps).parameters
    pipeline = schedule.config.get(PIPELINE, {})
    given: dict[str, Any] = {"num_inference_steps": steps}
    if method.timesteps:
        given = {"timesteps": list(method.timesteps)}
    elif method.sigmas:
        # On a flow diffusers appends the end itself.
        given = {"sigmas": [*method.sigmas, *(() if schedule.flow else (0.0,))]}
    elif pipeline.get("sigmas") == "linspace" and "sigmas" in takes:
        given = {"sigmas": np.linspace(1.0, 1 / steps, steps).tolist()}
    if schedule.config.get("use_dynamic_shifting"):
        given["mu"] = _mu(schedule, pipeline.get("mu", "linear"), steps)
    return given


def _mu(schedule: NoiseSchedule, rule: str, steps: int) -> float:
    """The shift of a schedule that depends on the image's size (Esser et al. 2024, section 5.3.2).

    "linear" in the number of positions, as FLUX.1's pipeline has it; "flux2" as FLUX.2's.
    """
    if schedule.positions is None:
        raise ValueError("scheduler_config.json: use_dynamic_shifting needs the size of x_t")
    if rule == "flux2":
        from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

        return float(compute_empirical_mu(schedule.positions, steps))
    config = schedule.config
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return float(low + (schedule.positions - few) * (high - low) / (many - few))


def _space(reference: Any, given: Mapping[str, Any]) -> None:
    """Call `set_timesteps`. Raises ValueError where the class cannot space them so."""
    try:
        reference.set_timesteps(**given)
    except (TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        name, asked = type(reference).__name__, ", ".join(given)
        raise ValueError(f"{name} cannot space steps by {asked}: {error}") from None
