"""Censored guidance: bend the sampler towards what a reward calls benign.

With the reward of x_t, r_t(x_t) = E[r(x_0) | x_t], the censored law p(x_0)·r(x_0) has the score
∇ log p_t + ∇ log r_t (Yoon et al. 2023, section 3). In terms of eps that is
eps − sigma·w·∇ log r_t, with w = 1 exact and other scales a choice; in terms of x̂_0, in which the
engine works, x̂_0 + (sigma²/alpha)·w·∇ log r_t.

Who gives the gradient: a time-dependent reward at x_t, or a clean one at x̂_0 (forward guidance,
below). Backward guidance moves x̂_0 itself (Bansal et al. 2023, "Universal guidance").
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from models.diffusion.codec import Codec
from models.diffusion.conditioning import Conditions, Denoise, predict
from models.diffusion.noise_schedule import NoiseSchedule
from models.diffusion.parameterization import to_x0_eps

LOG_HALF = math.log(0.5)


class Guide(Protocol):
    """A reward of x_t that can say which way benign lies."""

    def gradient(
        self, x_t: Tensor, timestep: Tensor, conditions: Conditions | None = None
    ) -> Tensor:
        """∇_{x_t} log r_t(x_t), [B, C, H, W], for timesteps [B]; the rows are drawn under
        `conditions`."""
        ...


class LogReward(Protocol):
    """A clean reward network, or a product of several."""

    def log_reward(self, x: Tensor, /) -> Tensor:
        """log r(x), [B], at most 0, for images x [B, C, H, W]; differentiable in x."""
        ...


def guided_x0(
    x_0: Tensor, gradient: Tensor, alpha: Tensor, sigma: Tensor, censor_scale: Tensor
) -> Tensor:
    """x̂_0 under guidance, from x̂_0 before clipping; alpha, sigma and `censor_scale` are per row.

    Not by way of eps: there x̂_0 would be the difference of two large numbers, divided by alpha, and
    at the noisiest steps lose three digits of float32.
    """
    return x_0 + sigma**2 / alpha * censor_scale * gradient


class CleanReward:
    """A clean reward on x̂_0 in the backbone's space."""

    def __init__(self, ensemble: LogReward, codec: Codec) -> None:
        self._ensemble = ensemble
        self._codec = codec

    def log_reward(self, x_0: Tensor) -> Tensor:
        """log r(x̂_0), [B], at most 0; differentiable in x_0 [B, C, H, W]."""
        return self._ensemble.log_reward(self._codec.decode(x_0))

    def gradient(self, x_0: Tensor) -> Tensor:
        """∇ log r(x̂_0), [B, C, H, W]."""
        with torch.inference_mode(False), torch.enable_grad():
            x = x_0.detach().clone().float().requires_grad_()
            return torch.autograd.grad(self.log_reward(x).sum(), x)[0]


class ForwardGuide:
    """Forward guidance: ∇_{x_t} log r(x̂_0(x_t)), through the denoiser in torch.

    It costs a forward and a backward pass of the denoiser for each row, 3 NFE beside the step's
    own, and twice that under classifier-free guidance; with an autoencoder, a pass of its decoder
    both ways as well. x̂_0 is not clipped here: a clipped pixel would have no gradient.
    """

    def __init__(self, denoise: Denoise, schedule: NoiseSchedule, reward: CleanReward) -> None:
        """`denoise` keeps gradients in x_t."""
        self._denoise = denoise
        self._schedule = schedule
        self._reward = reward

    def gradient(
        self, x_t: Tensor, timestep: Tensor, conditions: Conditions | None = None
    ) -> Tensor:
        """See `Guide`; x̂_0 is under classifier-free guidance, as the step's own is."""
        conditions = conditions or Conditions.none(len(x_t))
        alpha, sigma = self._schedule.at(timestep)
        with torch.inference_mode(False), torch.enable_grad():
            x = x_t.detach().clone().float().requires_grad_()
            output = predict(self._denoise, x, timestep.clone(), conditions)
            x_0, _ = to_x0_eps(output, x, alpha, sigma, self._schedule.prediction_type)
            return torch.autograd.grad(self._reward.log_reward(x_0).sum(), x)[0]


def backward_guidance(
    x_0: Tensor, reward: CleanReward, steps: int, rate: Tensor, limit: float | None
) -> Tensor:
    """x̂_0 after `steps` Adam steps up log r (Bansal et al. 2023; Kingma & Ba 2015, algorithm 1).

    `rate` is per row, broadcastable to x_0 [B, C, H, W]; `limit` clamps to [−limit, limit]. Rows
    that are benign already, r >= 1/2, stay as they are: Adam's first step has the same length
    however small the gradient.
    """
    found = x_0.clone()
    rows = (reward.log_reward(x_0) < LOG_HALF).nonzero().flatten()
    if not len(rows):
        return found
    x, eta = x_0[rows], rate.expand(len(x_0), 1, 1, 1)[rows]
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    for i in range(1, steps + 1):
        gradient = reward.gradient(x)
        first = BETA_1 * first + (1 - BETA_1) * gradient
        second = BETA_2 * second + (1 - BETA_2) * gradient**2
        mean, spread = first / (1 - BETA_1**i), second / (1 - BETA_2**i)
        x = x + eta * mean / (spread.sqrt() + 1e-8)
    found[rows] = x if limit is None else x.clamp(-limit, limit)
    return found


BETA_1, BETA_2 = 0.9, 0.999
"""Adam's decay rates, as its authors and torch have them."""
