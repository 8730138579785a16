from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from models.method import Method
from models.noise import Purpose, normal
from models.parameterization import PREDICTION_TYPES, PredictionType
from models.samplers import trajectory
from service.ports import DrawKey
from tests.engines import floats, make_engine, make_plan, make_schedule, run_to_end, submit

SHAPE = (2, 3, 3)
SPACINGS = ("leading", "trailing")


def _denoiser(x_t: Tensor, timestep: Tensor) -> Tensor:
    """Smooth, bounded, and different at every timestep."""
    return torch.tanh(0.7 * x_t + (timestep.view(-1, 1, 1, 1) / 500 - 1))


def _diffusers(config: dict[str, Any], seed: int, steps: int, eta: float) -> Tensor:
    """The same draw by diffusers' stateful scheduler, alone in its batch."""
    scheduler = DDIMScheduler.from_config(config)
    scheduler.set_timesteps(steps)
    x_t = torch.from_numpy(normal(seed, 0, Purpose.INITIAL, SHAPE))[None]
    noise = torch.from_numpy(normal(seed, 0, Purpose.STEP, (steps, *SHAPE)))
    for i, t in enumerate(scheduler.timesteps):
        output = _denoiser(x_t, t[None])
        variance_noise = noise[i][None] if eta > 0 else None
        x_t = scheduler.step(output, t, x_t, eta=eta, variance_noise=variance_noise).prev_sample
    return x_t[0]


@pytest.mark.parametrize("clip", [True, False], ids=["clip", "no-clip"])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction_type", sorted(PREDICTION_TYPES))
def test_the_engine_agrees_with_diffusers_whatever_shares_the_batch(
    prediction_type: PredictionType, spacing: str, clip: bool
) -> None:
    schedule = make_schedule(
        prediction_type,
        beta_schedule="scaled_linear",
        timestep_spacing=spacing,
        clip_sample=clip,
        clip_sample_range=1.5,
    )
    engine = make_engine(_denoiser, schedule, SHAPE, max_batch=5)
    # More rows than slots, of 3 lengths and 3 etas: neighbours are never at the same timestep.
    cases = list(product([1, 8, 20], [0.0, 0.4, 1.0]))
    callers = [
        submit(engine, make_plan(num_inference_steps=steps, eta=eta), [DrawKey(0, seed, 0)])
        for seed, (steps, eta) in enumerate(cases)
    ]
    run_to_end(engine)
    for seed, ((steps, eta), caller) in enumerate(zip(cases, callers, strict=True)):
        (result,) = caller.results.values()
        expected = _diffusers(dict(schedule.config), seed, steps, eta)
        found = torch.from_numpy(floats(result).copy())
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps_offset", [0, 1])
@pytest.mark.parametrize("set_alpha_to_one", [True, False])
def test_the_last_step_agrees_with_diffusers(set_alpha_to_one: bool, steps_offset: int) -> None:
    schedule = make_schedule(
        timestep_spacing="leading", set_alpha_to_one=set_alpha_to_one, steps_offset=steps_offset
    )
    engine = make_engine(_denoiser, schedule, SHAPE)
    caller = submit(engine, make_plan(num_inference_steps=10), [DrawKey(0, 3, 0)])
    run_to_end(engine)
    (result,) = caller.results.values()
    expected = _diffusers(dict(schedule.config), 3, 10, 0.0)
    torch.testing.assert_close(torch.from_numpy(floats(result).copy()), expected, rtol=1e-4, atol=0)


def test_eta_one_is_the_ancestral_sampler() -> None:
    schedule = make_schedule()
    lines = trajectory(schedule, Method(1000, 1.0))
    beta = 1 - lines.alpha_bar / lines.alpha_bar_prev
    posterior = (1 - lines.alpha_bar_prev) / (1 - lines.alpha_bar) * beta
    np.testing.assert_allclose(lines.sigma**2, posterior, rtol=1e-9)
    assert (trajectory(schedule, Method(1000)).sigma == 0).all()


@pytest.mark.parametrize(("steps", "eta"), [(0, 0.0), (1001, 0.0), (10, -0.1), (10, 1.1)])
def test_steps_and_eta_outside_their_range_are_refused(steps: int, eta: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        trajectory(make_schedule(), Method(steps, eta))


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [7, 60, 300])
def test_each_step_ends_where_the_next_begins(spacing: str, steps: int) -> None:
    """Also where the number of steps does not divide T, unlike diffusers' own DDIM."""
    lines = trajectory(make_schedule(timestep_spacing=spacing), Method(steps, 0.0))
    assert (lines.alpha_bar_prev[:-1] == lines.alpha_bar[1:]).all()
    assert lines.alpha_bar_prev[-1] == 1.0
