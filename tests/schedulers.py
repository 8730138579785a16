"""The same draw by diffusers' own stateful scheduler, alone in its batch, from our noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from models.diffusion.method import Method
from models.diffusion.noise import Purpose, normal
from models.diffusion.noise_schedule import NoiseSchedule
from models.diffusion.samplers import SAMPLERS
from models.diffusion.spacing import SHAPES

ANCESTRAL = "euler_ancestral_discrete"
MODULES = ("ddim", "dpmsolver_multistep", ANCESTRAL, "flow_match_lcm", "lcm", "tcd")
"""Where diffusers' schedulers draw the noise of their steps."""


def scheduler_of(schedule: NoiseSchedule, method: Method) -> Any:
    """diffusers' scheduler for a method, before `set_timesteps`."""
    row = SAMPLERS[method.sampler]
    config = dict(schedule.config)
    if method.timestep_spacing:
        config["timestep_spacing"] = method.timestep_spacing
    if method.sigma_spacing:
        config[SHAPES[method.sigma_spacing]] = True
    if method.sampler == "dpmsolver++-sde":
        config["algorithm_type"] = "sde-dpmsolver++"
    if schedule.flow and "dpm" in method.sampler:
        config |= {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
        config["flow_shift"] = config.get("shift", 1.0)
    return (row.flow if schedule.flow else row.scheduler).from_config(config)


def diffusers_draw(
    schedule: NoiseSchedule,
    method: Method,
    denoise: Callable[[Tensor, Tensor], Tensor],
    seed: int,
    shape: tuple[int, ...],
) -> Tensor:
    """x_0 of `shape`."""
    scheduler = scheduler_of(schedule, method)
    if method.timesteps:
        scheduler.set_timesteps(timesteps=list(method.timesteps))
    elif method.sigmas:
        scheduler.set_timesteps(sigmas=[*method.sigmas, *([] if schedule.flow else [0.0])])
    else:
        scheduler.set_timesteps(method.num_inference_steps)
    x_t = torch.from_numpy(normal(seed, 0, Purpose.INITIAL, shape))[None]
    x_t = x_t * float(getattr(scheduler, "init_noise_sigma", 1.0))
    takes_eta = {}
    if SAMPLERS[method.sampler].stochastic and not schedule.flow:
        takes_eta = {"eta": method.eta}
    with our_noise(seed, method.num_inference_steps, shape) as line:
        for i, t in enumerate(scheduler.timesteps):
            line[0] = i
            scaled = scheduler.scale_model_input(x_t, t) if not schedule.flow else x_t
            output = denoise(scaled, t[None])
            x_t = scheduler.step(output, t, x_t, **takes_eta, return_dict=False)[0]
    return x_t[0]


@contextmanager
def our_noise(seed: int, steps: int, shape: tuple[int, ...]) -> Iterator[list[int]]:
    """diffusers' schedulers draw the noise of a seed; the caller says at which line they are."""
    noise = torch.from_numpy(normal(seed, 0, Purpose.STEP, (steps, *shape)))
    line = [0]

    def drawn(*_: Any, **__: Any) -> Tensor:
        return noise[line[0]][None]

    with ExitStack() as stack:
        for name in MODULES:
            target = f"diffusers.schedulers.scheduling_{name}.randn_tensor"
            stack.enter_context(patch(target, drawn))
        yield line
