"""Sampling and censored guidance in a world with closed forms, through the real engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.diffusion.codec import PixelShuffle
from models.diffusion.conditioning import Conditions
from models.diffusion.guidance import guided_x0
from models.diffusion.parameterization import PREDICTION_TYPES, PredictionType
from tests.engines import draw_all, floats, make_engine, make_plan, make_schedule
from tests.gaussian import Gaussian, discrete_law, values

MU, S, A = -0.1, 0.15, 10.0
SHIFT = S**2 * A  # 0.225: from mean −0.1 to 0.125
STEPS = 100
SHAPE = (1, 16, 16)
DRAWS = 64
N = DRAWS * 256

# Five standard errors over N independent pixels; grey levels add a variance of (2/255)²/12, 0.02 %.
MEAN_TOLERANCE = 5 * S / np.sqrt(N)
STD_TOLERANCE = 5 * S / np.sqrt(2 * N)


def _sample(
    prediction_type: PredictionType = "v_prediction", a: float = A, **plan: Any
) -> NDArray[np.float64]:
    schedule = make_schedule(prediction_type)
    world = Gaussian(schedule, MU, S)
    engine = make_engine(world, schedule, SHAPE, {"guide": world.guide(a)}, DRAWS, PixelShuffle())
    full = make_plan(**{"num_inference_steps": STEPS, "guide": "guide"} | plan)
    results = draw_all(engine, full, range(DRAWS))
    return values([result.pixels for result in results if result.pixels is not None])


def _assert_law(sample: NDArray[np.float64], mean: float, eta: float = 0.0) -> None:
    """The mean of the true law, and the deviation that this many steps leave of the true one.

    That the latter tends to S is `test_the_steps_tend_to_the_law`.
    """
    _, std = discrete_law(Gaussian(make_schedule(), MU, S), STEPS, eta)
    assert len(sample) == N
    assert abs(sample.mean() - mean) < MEAN_TOLERANCE
    assert abs(sample.std() - std) < STD_TOLERANCE


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("prediction_type", sorted(PREDICTION_TYPES))
def test_the_exact_score_samples_the_data(prediction_type: PredictionType, eta: float) -> None:
    _assert_law(_sample(prediction_type, eta=eta), MU, eta)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("prediction_type", sorted(PREDICTION_TYPES))
def test_censor_scale_one_samples_the_censored_law(
    prediction_type: PredictionType, eta: float
) -> None:
    _assert_law(_sample(prediction_type, censor_scale=1.0, eta=eta), MU + SHIFT, eta)


def test_the_shift_is_linear_in_censor_scale_and_follows_the_sign_of_the_reward() -> None:
    _assert_law(_sample(censor_scale=2.0), MU + 2 * SHIFT)
    _assert_law(_sample(censor_scale=1.0, a=-A), MU - SHIFT)


def test_scale_zero_and_an_interval_without_timesteps_move_nothing() -> None:
    free = _sample(guide=None)
    np.testing.assert_array_equal(_sample(censor_scale=0.0), free)
    # With 100 trailing steps the timesteps are 999, 989, …, 9.
    np.testing.assert_array_equal(_sample(censor_scale=1.0, guide_interval=(0, 9)), free)
    assert (_sample(censor_scale=1.0, guide_interval=(0, 10)) != free).any()


def test_the_interval_holds_low_and_not_high() -> None:
    schedule = make_schedule("v_prediction")
    seen: list[int] = []

    class Recorder:
        def gradient(
            self,
            x_t: torch.Tensor,
            timestep: torch.Tensor,
            conditions: Conditions | None = None,
        ) -> torch.Tensor:
            seen.extend(timestep.tolist())
            return torch.zeros_like(x_t)

    engine = make_engine(Gaussian(schedule, MU, S), schedule, guides={"guide": Recorder()})
    interval = make_plan(guide="guide", censor_scale=1.0, guide_interval=(249, 749))
    draw_all(engine, interval, [0])  # timesteps 999, 749, 499, 249
    assert seen == [499, 249]


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_steps_tend_to_the_law(eta: float) -> None:
    """DDIM is of first order: the error of its deviation falls as 1/steps. The mean is exact."""
    world = Gaussian(make_schedule(), MU, S)
    laws = {n: discrete_law(world, n, eta, gradient=A) for n in (100, 500, 1000)}
    for steps, (mean, std) in laws.items():
        assert mean == pytest.approx(MU + SHIFT, abs=1e-5)
        assert std == pytest.approx(S, rel=15 / steps)
    assert abs(laws[1000][1] - S) < 0.6 * abs(laws[500][1] - S)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_engine_takes_the_steps_of_the_discrete_law(eta: float) -> None:
    """Few steps, so that the discretisation is far from small: 25 leave 0.83 (0.76) of S."""
    mean, std = discrete_law(Gaussian(make_schedule(), MU, S), 25, eta, gradient=A)
    sample = _sample(censor_scale=1.0, eta=eta, num_inference_steps=25)
    assert abs(sample.mean() - mean) < MEAN_TOLERANCE
    assert abs(sample.std() - std) < STD_TOLERANCE


def test_a_gradient_of_zero_leaves_x0_where_it_was_even_at_the_noisiest_step() -> None:
    schedule = make_schedule("v_prediction")
    world = Gaussian(schedule, MU, S)
    engine = make_engine(world, schedule, SHAPE, {"guide": world.guide(0.0)}, max_batch=2)
    free, guided = (
        floats(draw_all(engine, make_plan(guide="guide", censor_scale=scale), [5])[0])
        for scale in (0.0, 1.0)
    )
    # At t = 999, √ᾱ is 5e-5: by way of eps, x̂_0 would lose three digits of float32.
    np.testing.assert_allclose(guided, free, rtol=0, atol=1e-6)


@pytest.mark.parametrize("alpha_bar", [0.9999, 0.75, 0.19, 1e-4, 2.4e-9])
def test_guided_x0_is_that_of_the_papers_eps_down_to_the_noisiest_step(alpha_bar: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x_0, noise, gradient = torch.randn(3, 4, 1, 8, 8, generator=generator).double()
    bar, scale = torch.tensor(alpha_bar).double(), torch.tensor([1.0, 0.5, 3.0, 0.0]).double()
    scale = scale.view(-1, 1, 1, 1)
    x_t = bar.sqrt() * x_0 + (1 - bar).sqrt() * noise
    eps = noise - (1 - bar).sqrt() * scale * gradient
    wanted = (x_t - (1 - bar).sqrt() * eps) / bar.sqrt()
    found = guided_x0(
        x_0.float(), gradient.float(), bar.sqrt().float(), (1 - bar).sqrt().float(), scale.float()
    )
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-6)
