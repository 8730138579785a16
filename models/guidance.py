"""Censored guidance: bend the sampler towards what a reward calls benign.

With the reward of x_t, r_t(x_t) = E[r(x_0) | x_t], the censored law p(x_0)·r(x_0) has the score
∇ log p_t + ∇ log r_t (Yoon et al. 2023, section 3). In terms of eps that is
eps − √(1−ᾱ)·w·∇ log r_t, with w = 1 exact and other scales a choice.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Guide(Protocol):
    """A time-dependent reward that can say which way benign lies."""

    def gradient(self, x_t: Tensor, timestep: Tensor) -> Tensor:
        """∇_{x_t} log r_t(x_t), [B, C, H, W], for timesteps [B]."""
        ...


def guided_eps(eps: Tensor, gradient: Tensor, alpha_bar: Tensor, censor_scale: Tensor) -> Tensor:
    """eps under time-dependent guidance; `alpha_bar` and `censor_scale` are per row."""
    return eps - (1 - alpha_bar).sqrt() * censor_scale * gradient
