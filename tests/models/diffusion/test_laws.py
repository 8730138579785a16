"""Closed forms of recurrence, forward and backward guidance, and of DPM-Solver++'s order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.diffusion.codec import PixelShuffle
from models.diffusion.guidance import CleanReward, ForwardGuide, backward_guidance
from models.diffusion.method import Method, SamplerName
from models.diffusion.noise import Purpose, normal
from models.diffusion.parameterization import PREDICTION_TYPES, PredictionType
from models.diffusion.samplers import levels
from tests.engines import draw_all, floats, make_engine, make_plan, make_schedule
from tests.gaussian import Gaussian, discrete_law, values

MU, S, A = -0.1, 0.15, 10.0
SHAPE = (1, 16, 16)
DRAWS = 64
N = DRAWS * 256
MEAN_TOLERANCE = 5 * S / np.sqrt(N)
STD_TOLERANCE = 5 * S / np.sqrt(2 * N)


class Linear(CleanReward):
    """log r(x_0) = offset + a·Σ x_0."""

    def __init__(self, a: float, offset: float = 0.0) -> None:
        self._a = a
        self._offset = offset

    def log_reward(self, x_0: Tensor) -> Tensor:
        return self._offset + self._a * x_0.flatten(1).sum(1)


def _sample(steps: int, eta: float, recurrences: int, a: float) -> NDArray[np.float64]:
    schedule = make_schedule("v_prediction")
    world = Gaussian(schedule, MU, S)
    engine = make_engine(world, schedule, SHAPE, {"g": world.guide(a)}, DRAWS, PixelShuffle())
    plan = make_plan(
        num_inference_steps=steps, eta=eta, recurrences=recurrences, guide="g",
        censor_scale=1.0 if a else 0.0,
    )  # fmt: skip
    results = draw_all(engine, plan, range(DRAWS))
    return values([result.pixels for result in results if result.pixels is not None])


@pytest.mark.parametrize("a", [0.0, A])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_recurrence_draws_the_discrete_law(eta: float, a: float) -> None:
    world = Gaussian(make_schedule(), MU, S)
    mean, std = discrete_law(world, 25, eta, gradient=a, recurrences=3)
    sample = _sample(25, eta, 3, a)
    assert len(sample) == N
    assert abs(sample.mean() - mean) < MEAN_TOLERANCE
    assert abs(sample.std() - std) < STD_TOLERANCE


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("gradient", [0.0, A])
def test_recurrence_tends_to_the_law_as_steps_grow(eta: float, gradient: float) -> None:
    """Going there and back changes no marginal: what is left is the steps' own error."""
    world = Gaussian(make_schedule(), MU, S)
    for recurrences in (2, 4):
        mean, std = discrete_law(world, 1000, eta, gradient, recurrences)
        assert mean == pytest.approx(MU + S**2 * gradient, abs=1e-3)
        assert std == pytest.approx(S, rel=0.03)


@pytest.mark.parametrize("prediction_type", sorted(PREDICTION_TYPES))
def test_forward_guidance_is_the_gradient_through_the_denoiser(
    prediction_type: PredictionType,
) -> None:
    """∇ a·x̂_0(x_t) = a · dE[x_0|x_t]/dx_t: for a linear reward it is the exact guide."""
    schedule = make_schedule(prediction_type)
    world = Gaussian(schedule, MU, S)
    guide = ForwardGuide(lambda x_t, t, told: world(x_t, t), schedule, Linear(A))
    timestep = torch.tensor([5, 300, 700, 950])
    found = guide.gradient(torch.randn(4, *SHAPE), timestep)
    expected = A * world.gain(timestep).float().expand_as(found)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_forward_guidance_by_a_linear_reward_draws_what_the_exact_guide_does() -> None:
    schedule = make_schedule("v_prediction")
    world = Gaussian(schedule, MU, S)
    forward = ForwardGuide(lambda x_t, t, told: world(x_t, t), schedule, Linear(A))
    engine = make_engine(
        world, schedule, SHAPE, guides={"exact": world.guide(A)}, forward={"through": forward}
    )
    images = []
    for part in ({"guide": "exact"}, {"forward": "through"}):
        plan = make_plan(num_inference_steps=20, censor_scale=1.0, **part)
        images.append(draw_all(engine, plan, [4])[0])
    time, forward = images
    np.testing.assert_allclose(floats(forward), floats(time), atol=1e-4)
    # A forward and a backward pass beside each step's own.
    assert (time.nfe, forward.nfe) == (20, 80)


@pytest.mark.parametrize("steps", [1, 5])
def test_adam_climbs_a_linear_reward_by_its_rate_a_step(steps: int) -> None:
    x_0 = torch.zeros(2, 1, 2, 2)
    rate = torch.tensor([0.01, 0.03]).view(-1, 1, 1, 1)
    for sign in (1, -1):
        found = backward_guidance(x_0, Linear(sign * 2.0, -5.0), steps, rate, None)
        torch.testing.assert_close(found, x_0 + sign * steps * rate, rtol=1e-4, atol=0)


def test_backward_guidance_clamps_to_the_limit() -> None:
    x_0 = torch.full((1, 1, 2, 2), 0.9)
    rate = torch.full((1, 1, 1, 1), 0.2)
    for limit, expected in ((1.0, 1.0), (0.95, 0.95), (None, 1.5)):
        found = backward_guidance(x_0, Linear(1.0, -50.0), 3, rate, limit)
        torch.testing.assert_close(found, torch.full_like(x_0, expected))


def test_rows_that_are_benign_already_do_not_move_beside_one_that_is_not() -> None:
    """Benign from r = 1/2 on; a NaN is nothing to climb from."""
    log_r = torch.tensor([-5.0, np.log(0.5) + 1e-6, -0.1, -3.0, float("nan")])
    x_0 = log_r.view(-1, 1, 1, 1).clone()
    found = backward_guidance(x_0, Linear(1.0), 2, torch.full((5, 1, 1, 1), 0.01), 10.0)
    moved = [not torch.equal(a, b) for a, b in zip(found[:4], x_0[:4], strict=True)]
    assert moved == [True, False, False, True]
    assert found[4].isnan().all()


@pytest.mark.parametrize("steps", [1, 4, 10, 100])
def test_the_rate_grows_as_the_steps_grow_fewer(steps: int) -> None:
    """The last step ends at x̂_0 itself: 0 without guidance, B·rate·T/n with it."""
    schedule = make_schedule("sample")
    engine = make_engine(
        lambda x_t, timestep: torch.zeros_like(x_t),
        schedule,
        clean_guides={"c": Linear(1.0, -50.0)},
    )
    plan = make_plan(
        num_inference_steps=steps, backward_steps=3, backward_rate=1e-4, clean_guide="c"
    )
    np.testing.assert_allclose(floats(draw_all(engine, plan, [0])[0]), 0.3 / steps, rtol=1e-4)


def _ode_error(sampler: SamplerName, steps: int, **config: str) -> float:
    """The largest error of a draw against the exact solution of the probability-flow ODE."""
    schedule = make_schedule("v_prediction", **config)
    world = Gaussian(schedule, 0.2, 0.5)
    plan = make_plan(num_inference_steps=steps, sampler=sampler)
    found = floats(draw_all(make_engine(world, schedule, SHAPE), plan, [7])[0])
    first = levels(schedule, plan.method).alpha[0] ** 2
    x = normal(7, 0, Purpose.INITIAL, SHAPE).astype(np.float64)
    exact = 0.2 + 0.5 * (x - np.sqrt(first) * 0.2) / np.sqrt(first * 0.25 + 1 - first)
    return float(np.abs(found - exact).max())


@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("dpmsolver++", 2)])
def test_the_samplers_have_their_orders(sampler: SamplerName, order: int) -> None:
    """Over two doublings of the steps, and where every step but the first is of that order: a last
    step to no noise at all is of first order, and its error has another sign."""
    config = {"beta_schedule": "linear", "final_sigmas_type": "sigma_min"}
    errors = [_ode_error(sampler, steps, **config) for steps in (50, 100, 200)]
    found = np.log2(errors[:2]) - np.log2(errors[1:])
    np.testing.assert_allclose(found, order, atol=0.3)


def test_dpmsolver_needs_fewer_steps_than_ddim_on_the_shipped_schedule() -> None:
    assert _ode_error("dpmsolver++", 20) < 0.2 * _ode_error("ddim", 50)


def test_clipping_holds_what_eps_prediction_blows_up_at_the_noisiest_step() -> None:
    """At t = 999 √ᾱ is 5e-5, and x̂_0 takes an error of eps 20,000-fold."""

    def inexact(x_t: Tensor, timestep: Tensor) -> Tensor:
        return x_t + 0.01

    for clip, bound in ((False, np.inf), (True, 1.0)):
        schedule = make_schedule("epsilon", clip_sample=clip)
        plan = make_plan(num_inference_steps=1)
        image = floats(draw_all(make_engine(inexact, schedule), plan, [0])[0])
        assert np.abs(image).max() <= bound
        assert clip or np.abs(image).min() > 100


def test_an_interval_outside_the_steps_repeats_none_of_them() -> None:
    schedule = make_schedule("v_prediction")
    world = Gaussian(schedule, MU, S)
    plans = [
        make_plan(eta=1.0, recurrences=r, guide_interval=(0, 10)) for r in (1, 4)
    ]  # 999, 749, 499, 249
    images = [floats(draw_all(make_engine(world, schedule), plan, [2])[0]) for plan in plans]
    np.testing.assert_array_equal(*images)
    assert plans[0].method == Method(4, eta=1.0, guide_interval=(0, 10))
