"""Timesteps of every number of steps, and samplers whose schedules end in different places."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from models.diffusion.conditioning import Conditions
from models.diffusion.method import Method, SamplerName
from models.diffusion.noise import Purpose, normal
from models.diffusion.samplers import SAMPLERS, levels
from models.diffusion.trajectory import trajectory
from models.sampling.program import CENSOR_SCALE, compile_method
from tests.engines import (
    draw_all,
    floats,
    make_engine,
    make_plan,
    make_schedule,
)
from tests.gaussian import Gaussian

SHAPE = (2, 3, 3)
SPACINGS = ("leading", "linspace", "trailing")
ROUNDED = [61, 103, 121, 122, 201, 998]
"""Steps for which diffusers' trailing spacing rounds to one timestep too many, −1."""


def _denoiser(x_t: Tensor, timestep: Tensor) -> Tensor:
    return torch.tanh(0.7 * x_t + (timestep.view(-1, 1, 1, 1) / 500 - 1))


def _diffusers(scheduler: Any, seed: int, steps: int, **step: Any) -> Tensor:
    """The same draw by diffusers, alone in its batch."""
    scheduler.set_timesteps(steps)
    x_t = torch.from_numpy(normal(seed, 0, Purpose.INITIAL, SHAPE))[None]
    for t in scheduler.timesteps:
        x_t = scheduler.step(_denoiser(x_t, t[None]), t, x_t, **step).prev_sample
    return x_t[0]


def test_every_sampler_that_a_policy_may_name_has_its_row() -> None:
    assert set(SAMPLERS) == set(get_args(SamplerName))


@pytest.mark.parametrize("sampler", ["ddim", "dpmsolver++"])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_timesteps_fall_and_stay_inside_the_schedule(sampler: SamplerName, spacing: str) -> None:
    schedule = make_schedule(timestep_spacing=spacing)
    for steps in sorted({*range(1, 1000, 13), *ROUNDED, 999}):
        found = levels(schedule, Method(steps, sampler=sampler)).timesteps
        assert len(found) == steps, steps
        assert found[0] <= 999, steps
        assert found[-1] >= 0, steps
        assert (np.diff(found) < 0).all(), steps


@pytest.mark.parametrize("sampler", ["ddim", "dpmsolver++"])
@pytest.mark.parametrize("steps", ROUNDED)
def test_a_timestep_before_the_first_is_dropped_and_nothing_else(
    sampler: SamplerName, steps: int
) -> None:
    scheduler = SAMPLERS[sampler].scheduler.from_config(dict(make_schedule().config))
    scheduler.set_timesteps(steps)
    theirs = scheduler.timesteps.tolist()
    assert theirs[-1] == -1, "diffusers has mended this: drop the work-around"
    found = levels(make_schedule(), Method(steps, sampler=sampler)).timesteps
    assert found.tolist() == theirs[:-1]


@pytest.mark.parametrize("sampler", ["ddim", "dpmsolver++"])
def test_an_image_of_61_steps_is_as_good_as_one_of_60(sampler: SamplerName) -> None:
    """Timestep −1 would be the noisiest one, as Python counts: the last step undoes the image."""
    schedule = make_schedule("v_prediction")
    world = Gaussian(schedule, -0.1, 0.15)
    images = [
        floats(
            draw_all(
                make_engine(world, schedule, (1, 8, 8)),
                make_plan(num_inference_steps=steps, sampler=sampler),
                [1],
            )[0]
        )
        for steps in (60, 61)
    ]
    np.testing.assert_allclose(images[1], images[0], atol=0.01)


def test_two_timesteps_that_round_to_one_make_one_step() -> None:
    schedule = make_schedule("v_prediction", timestep_spacing="linspace")
    method = Method(1000, sampler="dpmsolver++", probes=(0.5, 0.9999))
    lines, _ = trajectory(schedule, method)
    assert len(lines) == 999
    assert all(np.isfinite(column).all() for column in vars(lines).values())
    # A probe after the last of 1000 steps looks after the last of 999.
    assert compile_method(schedule, method).lines[-1, -1] == 2


def test_a_spacing_that_collapses_is_refused() -> None:
    """diffusers spaces 1000 leading steps of DPM-Solver++ by 1000 // 1001 = 0 timesteps."""
    with pytest.raises(ValueError, match="leaves only 1"):
        trajectory(make_schedule(timestep_spacing="leading"), Method(1000, sampler="dpmsolver++"))


@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_dpmsolver_ends_where_diffusers_does(spacing: str, final: str) -> None:
    """Whatever `set_alpha_to_one` says; below 15 steps the last is of first order."""
    schedule = make_schedule(
        "v_prediction",
        beta_schedule="scaled_linear",
        timestep_spacing=spacing,
        set_alpha_to_one=False,
        steps_offset=1,
        final_sigmas_type=final,
    )
    for steps in (2, 14, 15, 50, 333):
        plan = make_plan(num_inference_steps=steps, sampler="dpmsolver++")
        found = floats(draw_all(make_engine(_denoiser, schedule, SHAPE), plan, [3])[0])
        scheduler = DPMSolverMultistepScheduler.from_config(dict(schedule.config))
        expected = _diffusers(scheduler, 3, steps)
        torch.testing.assert_close(torch.from_numpy(found.copy()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("clip", [True, False])
def test_where_x_t_is_noise_alone_nothing_is_guided(clip: bool) -> None:
    """A schedule of zero terminal SNR (Lin et al. 2024): ᾱ is 0 at t = 999, and r_t constant."""

    class Outward:
        def gradient(
            self, x_t: Tensor, timestep: Tensor, conditions: Conditions | None = None
        ) -> Tensor:
            return 0.1 * x_t

    schedule = make_schedule(
        "v_prediction", beta_schedule="scaled_linear", rescale_betas_zero_snr=True, clip_sample=clip
    )
    assert schedule.alpha[-1] == 0
    plan = make_plan(num_inference_steps=5, guide="g", censor_scale=1.0)
    scales = compile_method(schedule, plan.method).lines[:, CENSOR_SCALE].tolist()
    assert scales == [0, 1, 1, 1, 1]
    result = draw_all(make_engine(_denoiser, schedule, SHAPE, {"g": Outward()}), plan, [3])[0]
    assert np.isfinite(floats(result)).all()
