from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from models.diffusion.method import Method, SamplerName
from models.diffusion.noise import Purpose, normal
from models.diffusion.parameterization import PredictionType
from models.diffusion.trajectory import trajectory
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
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
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
    lines, _ = trajectory(schedule, Method(1000, 1.0))
    here, there = lines.alpha**2, lines.alpha_next**2
    posterior = (1 - there) / (1 - here) * (1 - here / there)
    np.testing.assert_allclose(lines.noise**2, posterior, rtol=1e-9)
    assert (trajectory(schedule, Method(1000))[0].noise == 0).all()


@pytest.mark.parametrize(("steps", "eta"), [(0, 0.0), (1001, 0.0), (10, -0.1), (10, 1.1)])
def test_steps_and_eta_outside_their_range_are_refused(steps: int, eta: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        trajectory(make_schedule(), Method(steps, eta))


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [7, 60, 300])
def test_each_step_ends_where_the_next_begins(spacing: str, steps: int) -> None:
    """Also where the number of steps does not divide T, unlike diffusers' own DDIM."""
    lines, _ = trajectory(make_schedule(timestep_spacing=spacing), Method(steps, 0.0))
    assert (lines.alpha_next[:-1] == lines.alpha[1:]).all()
    assert (lines.sigma_next[:-1] == lines.sigma[1:]).all()
    assert (lines.alpha_next[-1], lines.sigma_next[-1]) == (1.0, 0.0)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_dpmsolver_agrees_with_diffusers(prediction_type: PredictionType, spacing: str) -> None:
    """In one batch of several lengths; below 15 steps the last one is of first order."""
    schedule = make_schedule(
        prediction_type, beta_schedule="scaled_linear", timestep_spacing=spacing
    )
    engine = make_engine(_denoiser, schedule, SHAPE, max_batch=3)
    lengths = [1, 2, 5, 10, 20, 50]
    callers = [
        submit(
            engine,
            make_plan(num_inference_steps=steps, sampler="dpmsolver++"),
            [DrawKey(0, seed, 0)],
        )
        for seed, steps in enumerate(lengths)
    ]
    run_to_end(engine)
    for seed, (steps, caller) in enumerate(zip(lengths, callers, strict=True)):
        scheduler = DPMSolverMultistepScheduler.from_config(dict(schedule.config))
        scheduler.set_timesteps(steps)
        x_t = torch.from_numpy(normal(seed, 0, Purpose.INITIAL, SHAPE))[None]
        for t in scheduler.timesteps:
            x_t = scheduler.step(_denoiser(x_t, t[None]), t, x_t).prev_sample
        (result,) = caller.results.values()
        found = torch.from_numpy(floats(result).copy())
        torch.testing.assert_close(found, x_t[0], rtol=1e-4, atol=1e-4)


def test_eta_one_agrees_with_diffusers_ancestral_scheduler() -> None:
    schedule = make_schedule(beta_schedule="linear", timestep_spacing="leading")
    engine = make_engine(_denoiser, schedule, SHAPE)
    caller = submit(engine, make_plan(num_inference_steps=20, eta=1.0), [DrawKey(0, 4, 0)])
    run_to_end(engine)
    scheduler = DDPMScheduler.from_config(dict(schedule.config) | {"variance_type": "fixed_small"})
    scheduler.set_timesteps(20)
    x_t = torch.from_numpy(normal(4, 0, Purpose.INITIAL, SHAPE))[None]
    noise = torch.from_numpy(normal(4, 0, Purpose.STEP, (20, *SHAPE)))
    for i, t in enumerate(scheduler.timesteps):
        # DDPM's scheduler draws its own noise: take its mean, and add ours.
        output = _denoiser(x_t, t[None])
        generator = torch.Generator().manual_seed(i)
        drawn = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(i))
        x_next = scheduler.step(output, t, x_t, generator=generator).prev_sample
        deviation = scheduler._get_variance(t).sqrt() if t > 0 else torch.zeros(())
        x_t = x_next + deviation * (noise[i][None] - drawn)
    (result,) = caller.results.values()
    found = torch.from_numpy(floats(result).copy())
    torch.testing.assert_close(found, x_t[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", ["ddim", "dpmsolver++"])
def test_recurrence_resets_the_history_and_keeps_the_level_of_noise(sampler: SamplerName) -> None:
    plain, _ = trajectory(make_schedule(), Method(20, sampler=sampler))
    lines, _ = trajectory(
        make_schedule(), Method(20, sampler=sampler, recurrences=3, guide_interval=(300, 600))
    )
    inside = [t for t in plain.timesteps if 300 <= t < 600]
    assert len(lines) == 20 + 2 * len(inside)
    again = np.append(False, lines.step[1:] == lines.step[:-1])
    assert (lines.history[again] == 0).all()
    back = np.append(again[1:], False)
    # With x_t at noise level 1 − ᾱ and exact x̂_0 = 0, going back leads to the same level.
    level = lines.sigma**2
    after = (lines.x_t * lines.sigma + lines.eps) ** 2 + lines.noise**2
    np.testing.assert_allclose(after[back], level[back], rtol=1e-9)
    np.testing.assert_allclose(after[~back], lines.sigma_next[~back] ** 2, atol=1e-9)
