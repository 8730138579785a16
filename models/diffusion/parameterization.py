"""What a denoiser's output means: the only place that converts eps, v, x_0 and flow velocity.

Notation: x_t = alpha·x_0 + sigma·eps, with alpha and sigma per row, broadcastable to x_t. v is
alpha·eps − sigma·x_0 (Salimans & Ho 2022), and needs alpha² + sigma² = 1; the flow's velocity is
eps − x_0 (Lipman et al. 2023; Liu et al. 2023).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction", "sample", "flow_prediction"]
PREDICTION_TYPES = frozenset({"epsilon", "v_prediction", "sample", "flow_prediction"})


def to_x0_eps(
    model_output: Tensor,
    x_t: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    prediction_type: PredictionType,
) -> tuple[Tensor, Tensor]:
    """The pair (x̂_0, eps) that a denoiser's output stands for; all [B, C, H, W].

    All but eps stay finite as alpha → 0; from eps, x̂_0 divides by alpha.
    """
    if prediction_type == "epsilon":
        return (x_t - sigma * model_output) / alpha, model_output
    if prediction_type == "v_prediction":
        return alpha * x_t - sigma * model_output, alpha * model_output + sigma * x_t
    if prediction_type == "flow_prediction":
        total = alpha + sigma
        return (x_t - sigma * model_output) / total, (x_t + alpha * model_output) / total
    return model_output, (x_t - alpha * model_output) / sigma


def training_target(
    x_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor, prediction_type: PredictionType
) -> Tensor:
    """What the denoiser should output at x_t, [B, C, H, W]."""
    if prediction_type == "epsilon":
        return eps
    if prediction_type == "v_prediction":
        return alpha * eps - sigma * x_0
    if prediction_type == "flow_prediction":
        return eps - x_0
    return x_0


def add_noise(x_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x_t = alpha·x_0 + sigma·eps (Ho et al. 2020, eq. 4)."""
    return alpha * x_0 + sigma * eps


def x0_to_eps(x_t: Tensor, x_0: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The eps that goes with x̂_0 at x_t."""
    return (x_t - alpha * x_0) / sigma
