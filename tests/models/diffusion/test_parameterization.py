from __future__ import annotations

import pytest
import torch

from models.diffusion.parameterization import (
    PREDICTION_TYPES,
    PredictionType,
    add_noise,
    to_x0_eps,
    training_target,
    x0_to_eps,
)
from tests.engines import make_schedule

ALL = sorted(PREDICTION_TYPES)


def _level(alpha_bar: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


def _pair(alpha_bar: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (len(alpha_bar), 2, 3, 3)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


@pytest.mark.parametrize("prediction_type", ALL)
def test_a_perfect_output_gives_back_x0_and_eps(prediction_type: PredictionType) -> None:
    alpha_bar = torch.tensor([0.99, 0.5, 0.01]).view(-1, 1, 1, 1)
    x_0, eps = _pair(alpha_bar)
    x_t = add_noise(x_0, eps, *_level(alpha_bar))
    target = training_target(x_0, eps, *_level(alpha_bar), prediction_type)
    found = to_x0_eps(target, x_t, *_level(alpha_bar), prediction_type)
    torch.testing.assert_close(found, (x_0, eps), rtol=0, atol=2e-5)
    torch.testing.assert_close(x0_to_eps(x_t, x_0, *_level(alpha_bar)), eps, rtol=0, atol=2e-5)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample", "flow_prediction"])
@pytest.mark.parametrize("t", [999, 0])
def test_v_and_sample_stay_exact_at_both_ends(prediction_type: PredictionType, t: int) -> None:
    alpha_bar = torch.tensor([make_schedule().alpha[t] ** 2]).float().view(-1, 1, 1, 1)
    x_0, eps = _pair(alpha_bar)
    x_t = add_noise(x_0, eps, *_level(alpha_bar))
    target = training_target(x_0, eps, *_level(alpha_bar), prediction_type)
    found_x0, found_eps = to_x0_eps(target, x_t, *_level(alpha_bar), prediction_type)
    torch.testing.assert_close(found_x0, x_0, rtol=0, atol=1e-5)
    # At t = 0 a sample prediction divides by √(1−ᾱ) = 0.006 to find eps.
    torch.testing.assert_close(found_eps, eps, rtol=0, atol=1e-4)


def test_coefficients_are_per_row() -> None:
    alpha_bar = torch.tensor([0.9, 0.2]).view(-1, 1, 1, 1)
    output, x_t = _pair(alpha_bar)
    both = to_x0_eps(output, x_t, *_level(alpha_bar), "v_prediction")
    for row in range(2):
        alone = to_x0_eps(
            output[row : row + 1],
            x_t[row : row + 1],
            *_level(alpha_bar[row : row + 1]),
            "v_prediction",
        )
        assert torch.equal(alone[0][0], both[0][row])
        assert torch.equal(alone[1][0], both[1][row])
