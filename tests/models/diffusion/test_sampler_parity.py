"""Every sampler, on every noise schedule, spaced in every way, against diffusers' own scheduler."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from models.diffusion.method import Method, SamplerName
from models.diffusion.noise_schedule import PIPELINE, NoiseSchedule
from models.diffusion.parameterization import PredictionType
from models.diffusion.samplers import SAMPLERS, levels
from models.diffusion.spacing import SHAPES
from models.sampling.program import compile_method
from service.ports import DrawKey
from tests.engines import draw_all, floats, make_engine, make_plan, run_to_end, submit
from tests.gaussian import Gaussian
from tests.schedulers import diffusers_draw

SHAPE = (2, 3, 3)
SPACINGS = ("leading", "linspace", "trailing")
DISCRETE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "trailing",
}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
FLOWING = [name for name, row in SAMPLERS.items() if row.flow]
ETA = {"ddim": 0.5, "tcd": 0.3}


def _discrete(prediction: PredictionType = "v_prediction", **config: Any) -> NoiseSchedule:
    return NoiseSchedule.from_diffusers(DISCRETE | {"prediction_type": prediction} | config)


def _denoise(x_t: Tensor, timestep: Tensor) -> Tensor:
    """Smooth, bounded, and different at every timestep."""
    return torch.tanh(0.7 * x_t + (timestep.view(-1, 1, 1, 1) / 500 - 1))


def _both(schedule: NoiseSchedule, methods: list[Method]) -> None:
    """Several methods in one batch of three rows, each as diffusers draws it alone."""
    engine = make_engine(_denoise, schedule, SHAPE, max_batch=3)
    callers = [
        submit(engine, make_plan(**_fields(method)), [DrawKey(0, seed, 0)])
        for seed, method in enumerate(methods)
    ]
    run_to_end(engine)
    for seed, (method, caller) in enumerate(zip(methods, callers, strict=True)):
        (result,) = caller.results.values()
        expected = diffusers_draw(schedule, method, _denoise, seed, SHAPE)
        found = torch.from_numpy(floats(result).copy())
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4, msg=str(method))


def _fields(method: Method) -> dict[str, Any]:
    names = ("num_inference_steps", "sampler", "eta", "timestep_spacing", "sigma_spacing",
             "timesteps", "sigmas")  # fmt: skip
    return {name: getattr(method, name) for name in names}


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_rows_of_every_sampler_share_a_batch_and_agree_with_diffusers(
    spacing: Any, prediction: PredictionType
) -> None:
    # Lengths that divide T, where diffusers' DDIM ends each step where the next begins; with
    # linspace it never does.
    _both(
        _discrete(prediction, timestep_spacing=spacing),
        [
            Method(steps, eta=eta, sampler=sampler)
            for steps in (1, 4, 8, 20)
            for sampler in SAMPLERS
            for eta in {0.0, ETA.get(sampler, 0.0)}
            if not (sampler == "ddim" and spacing == "linspace")
            and not ("euler" in sampler and prediction == "sample")  # not written in diffusers
            # diffusers' spacing of it has no linspace, and counts over the 50 of its distillation.
            and not (sampler in ("lcm", "tcd") and spacing != "leading")
        ],
    )


@pytest.mark.parametrize("sampler", ["lcm", "tcd"])
def test_distilled_models_are_spaced_over_their_original_steps(sampler: SamplerName) -> None:
    found = levels(_discrete(), Method(4, sampler=sampler)).timesteps
    scheduler = SAMPLERS[sampler].scheduler.from_config(DISCRETE)
    scheduler.set_timesteps(4)
    assert found.tolist() == scheduler.timesteps.tolist() == [999, 759, 499, 259]
    _both(_discrete(), [Method(steps, sampler=sampler) for steps in (1, 2, 4, 8)])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sampler", ["euler", "dpmsolver++", "dpmsolver++-sde"])
def test_sigmas_are_spaced_as_diffusers_does(sampler: SamplerName, shape: Any) -> None:
    methods = [Method(steps, sampler=sampler, sigma_spacing=shape) for steps in (4, 12, 20)]
    _both(_discrete("epsilon"), methods)
    # Where the model's own file says so.
    config = _discrete("epsilon", **{SHAPES[shape]: True})
    own, asked = levels(config, Method(12, sampler=sampler)), levels(_discrete(), methods[1])
    np.testing.assert_array_equal(own.sigma, asked.sigma)
    plain = levels(_discrete(), Method(12, sampler=sampler))
    assert not np.allclose(own.sigma, plain.sigma)


def test_lists_of_timesteps_and_sigmas_are_taken_as_pipelines_take_them() -> None:
    """As Hyper, Lightning and Turbo models want; DDIM of diffusers takes no list: see below."""
    hyper, turbo = (800.0, 600.0, 400.0, 200.0), (999.0, 749.0, 499.0, 249.0)
    _both(
        _discrete("epsilon"),
        [
            Method(4, sampler="tcd", timesteps=hyper),
            Method(4, sampler="lcm", timesteps=turbo),
            Method(4, sampler="dpmsolver++", timesteps=turbo),
            Method(4, sampler="euler", timesteps=turbo),
            Method(3, sampler="euler", sigmas=(14.0, 3.0, 0.7)),
        ],
    )
    _both(
        NoiseSchedule.from_diffusers(FLOW),
        [Method(3, sampler="euler", sigmas=(1.0, 0.6, 0.2)), Method(2, sigmas=(1.0, 0.5))],
    )
    trailing = levels(_discrete(), Method(4))
    given = levels(_discrete(timestep_spacing="leading"), Method(4, timesteps=turbo))
    np.testing.assert_array_equal(trailing.alpha, given.alpha)


@pytest.mark.parametrize(
    ("method", "complaint"),
    [
        (Method(4, timesteps=(999.0, 500.0)), "timesteps are 2, and num_inference_steps is 4"),
        (Method(2, timesteps=(500.0, 999.0)), "timesteps must fall"),
        (Method(2, timesteps=(1000.0, 500.0)), "timesteps must lie in 0 to 999"),
        (Method(2, sigmas=(14.0, 3.0)), "sigmas: this sampler takes timesteps"),
        (Method(2, timesteps=(999.0, 500.5)), "this sampler takes whole ones alone"),
        (Method(2, sampler="tcd", sigma_spacing="karras"), "TCDScheduler has no such spacing"),
    ],
)
def test_lists_that_are_no_schedule_are_refused(method: Method, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        levels(_discrete(), method)


@pytest.mark.parametrize(
    "config", [{}, {"shift": 1.0}, {"use_karras_sigmas": True}, {"shift_terminal": 0.02}]
)
def test_flows_agree_with_diffusers_in_one_batch(config: dict[str, Any]) -> None:
    schedule = NoiseSchedule.from_diffusers(FLOW | config)
    plain = config.keys() <= {"shift"}
    _both(
        schedule,
        [
            Method(steps, sampler=sampler)
            for steps in (1, 4, 9, 20)
            for sampler in FLOWING
            # diffusers' DPM-Solver++ knows no such flow, and one step has no such end.
            if plain or ("dpm" not in sampler and steps > 1)
        ],
    )


def test_a_spacing_without_falling_noise_levels_is_refused() -> None:
    """What diffusers makes of it is NaN, or noise of a sigma above 1."""
    ends = NoiseSchedule.from_diffusers(FLOW | {"shift_terminal": 0.02})
    karras = NoiseSchedule.from_diffusers(FLOW | {"use_karras_sigmas": True})
    for schedule, method in ((ends, Method(1)), (karras, Method(8, sampler="dpmsolver++"))):
        with pytest.raises(ValueError, match="finds no falling noise levels"):
            levels(schedule, method)


def test_the_shift_follows_the_size_of_the_image() -> None:
    config = FLOW | {"use_dynamic_shifting": True, PIPELINE: {"sigmas": "linspace", "patch": 2}}
    shifted = []
    for positions in (256, 4096):
        schedule = NoiseSchedule.from_diffusers(config).of_size(4, positions)
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(config)
        mu = {256: 0.5, 4096: 1.15}[positions]
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / 8, 8), mu=mu)
        found = levels(schedule, Method(8))
        np.testing.assert_allclose(found.sigma, scheduler.sigmas, atol=1e-6)
        np.testing.assert_allclose(found.timesteps, scheduler.timesteps, atol=1e-3)
        shifted.append(found.sigma)
    assert (shifted[1][1:-1] > shifted[0][1:-1]).all()
    with pytest.raises(ValueError, match="use_dynamic_shifting needs the size"):
        levels(NoiseSchedule.from_diffusers(config), Method(8))


def test_a_list_of_timesteps_is_refused_on_a_flow() -> None:
    """diffusers shifts its sigmas and not its timesteps, so a line would be at two levels."""
    method = Method(2, timesteps=(900.0, 500.0), sampler="euler")
    with pytest.raises(ValueError, match="a flow is spaced by sigmas"):
        levels(NoiseSchedule.from_diffusers(FLOW), method)


def test_a_solver_that_its_pipeline_does_not_call_spaces_a_flow_by_itself() -> None:
    config = FLOW | {PIPELINE: {"sigmas": "linspace"}}
    found = levels(NoiseSchedule.from_diffusers(config), Method(8, sampler="dpmsolver++"))
    plain = levels(NoiseSchedule.from_diffusers(FLOW), Method(8, sampler="dpmsolver++"))
    np.testing.assert_array_equal(found.sigma, plain.sigma)


@pytest.mark.parametrize(
    "method", [Method(4), Method(4, sampler="lcm"), Method(2, timesteps=(999.0, 500.0))]
)
def test_noise_alone_says_nothing_to_a_model_of_eps(method: Method) -> None:
    """A step from there would be NaN, in every draw."""
    schedule = _discrete("epsilon", rescale_betas_zero_snr=True)
    if method.sampler == "lcm":
        method = replace(method, timesteps=(999.0, 749.0, 499.0, 249.0))
    with pytest.raises(ValueError, match="makes no step where x_t is noise alone"):
        compile_method(schedule, method)
    compile_method(_discrete("v_prediction", rescale_betas_zero_snr=True), method)


@pytest.mark.parametrize("sampler", ["euler-ancestral", "tcd"])
def test_a_sampler_that_is_none_for_flows_says_which_are(sampler: SamplerName) -> None:
    with pytest.raises(ValueError, match=f"sampler {sampler} is none for flow matching: take ddim"):
        levels(NoiseSchedule.from_diffusers(FLOW), Method(4, sampler=sampler))


@pytest.mark.parametrize("steps", [200, 400])
@pytest.mark.parametrize("sampler", ["ddim", "dpmsolver++", "dpmsolver++-sde"])
def test_a_flow_samples_the_data_and_is_censored_like_any_other_process(
    sampler: SamplerName, steps: int
) -> None:
    """With the exact velocity, to the law of x_0; with log r = a·x_0, to that of p·r/Z."""
    schedule = NoiseSchedule.from_diffusers(FLOW)
    world, shape = Gaussian(schedule, 0.2, 0.4), (1, 40, 40)
    engine = make_engine(world, schedule, shape, {"guide": world.guide(1.5)}, max_batch=2)
    for scale, mean in ((0.0, 0.2), (1.0, 0.2 + 1.5 * 0.16)):
        plan = make_plan(
            num_inference_steps=steps, sampler=sampler, guide="guide", censor_scale=scale,
            guide_interval=(0, 1000), eta=1.0 if sampler == "ddim" else 0.0,
        )  # fmt: skip
        found = floats(draw_all(engine, plan, [3])[0])
        assert abs(found.mean() - mean) < 0.03
        assert abs(found.std() - 0.4) < 0.03


def test_recurrence_on_a_flow_keeps_the_law() -> None:
    schedule = NoiseSchedule.from_diffusers(FLOW)
    world = Gaussian(schedule, -0.3, 0.3)
    engine = make_engine(world, schedule, (1, 40, 40), {"guide": world.guide(0.0)}, max_batch=1)
    plan = make_plan(num_inference_steps=100, guide="guide", censor_scale=1.0, recurrences=3)
    found = floats(draw_all(engine, plan, [5])[0])
    assert abs(found.mean() + 0.3) < 0.03
    assert abs(found.std() - 0.3) < 0.03
