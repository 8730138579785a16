"""What a denoiser's output means: the only place that converts eps, v and x_0.

Notation: x_t = √ᾱ x_0 + √(1−ᾱ) eps, and v = √ᾱ eps − √(1−ᾱ) x_0 (Salimans & Ho 2022).
Every `alpha_bar` here is ᾱ = alphas_cumprod[t] per row, broadcastable to x_t.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction", "sample"]
PREDICTION_TYPES = frozenset({"epsilon", "v_prediction", "sample"})


def to_x0_eps(
    model_output: Tensor, x_t: Tensor, alpha_bar: Tensor, prediction_type: PredictionType
) -> tuple[Tensor, Tensor]:
    """The pair (x̂_0, eps) that a denoiser's output stands for; all [B, C, H, W].

    v and sample predictions stay finite as ᾱ → 0; from eps, x̂_0 divides by √ᾱ.
    """
    signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    if prediction_type == "epsilon":
        return (x_t - noise * model_output) / signal, model_output
    if prediction_type == "v_prediction":
        return signal * x_t - noise * model_output, signal * model_output + noise * x_t
    return model_output, (x_t - signal * model_output) / noise


def training_target(
    x_0: Tensor, eps: Tensor, alpha_bar: Tensor, prediction_type: PredictionType
) -> Tensor:
    """What the denoiser should output at x_t, [B, C, H, W]."""
    if prediction_type == "epsilon":
        return eps
    if prediction_type == "v_prediction":
        return alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x_0
    return x_0


def add_noise(x_0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """x_t = √ᾱ x_0 + √(1−ᾱ) eps (Ho et al. 2020, eq. 4)."""
    return alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps


def x0_to_eps(x_t: Tensor, x_0: Tensor, alpha_bar: Tensor) -> Tensor:
    """The eps that goes with x̂_0 at x_t."""
    return (x_t - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()
