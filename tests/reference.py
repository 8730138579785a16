"""Censored sampling written straight down, one image at a time, in float64: slow and plain.

The equations are those of the papers, in the order of a step, with none of the engine's tables:
recurrence goes back in noise by a line of its own, and DPM-Solver++ keeps its history in a local.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.diffusion.method import Method
from models.diffusion.noise import Purpose, normal
from models.diffusion.noise_schedule import NoiseSchedule
from models.diffusion.samplers import levels

LogReward = Callable[[Tensor], Tensor]
"""log r of one image [1, C, H, W], differentiable."""


@dataclass(frozen=True)
class Reference:
    """`denoiser` predicts v from (x [1, C, H, W], t), differentiably, in float64."""

    schedule: NoiseSchedule
    denoiser: Callable[[Tensor, int], Tensor]
    time_reward: Callable[[Tensor, int], Tensor]
    clean_reward: LogReward
    limit: float

    def draw(self, method: Method, seed: int, shape: tuple[int, ...]) -> Tensor:
        """The finished x_0, [1, C, H, W]."""
        timesteps = levels(self.schedule, method).timesteps.astype(int)
        alphas = torch.from_numpy(self.schedule.alpha**2)
        x = torch.from_numpy(normal(seed, 0, Purpose.INITIAL, shape))[None].double()
        noise = torch.from_numpy(normal(seed, 0, Purpose.STEP, (500, *shape))).double()
        line, before = 0, None
        for i, t in enumerate(timesteps):
            a = alphas[t]
            last = i + 1 == len(timesteps)
            b = torch.tensor(1.0).double() if last else alphas[timesteps[i + 1]]
            guided = method.guide_interval[0] <= t < method.guide_interval[1]
            for again in reversed(range(method.recurrences if guided else 1)):
                x_0, eps = self._estimate(x, int(t), a, method, guided)
                if method.sampler == "ddim":
                    sigma = method.eta * ((1 - b) / (1 - a) * (1 - a / b)).sqrt()
                    mean = b.sqrt() * x_0 + (1 - b - sigma**2).clamp(min=0).sqrt() * eps
                else:
                    sigma = torch.tensor(0.0).double()
                    few = last  # this world ends without noise: its last step is of first order
                    mean = _dpm(x, x_0, None if few else before, a, b)
                keep = a / b if again else torch.tensor(1.0).double()
                # Both noises of a line come from one number of its stream.
                spread = (keep * sigma**2 + 1 - keep).sqrt()
                x = keep.sqrt() * mean + spread * noise[line]
                line += 1
                before = (x_0, a) if not again else None
        return x

    def _estimate(
        self, x: Tensor, t: int, a: Tensor, method: Method, guided: bool
    ) -> tuple[Tensor, Tensor]:
        v = self.denoiser(x, t)
        x_0 = self._clip(a.sqrt() * x - (1 - a).sqrt() * v)
        eps = a.sqrt() * v + (1 - a).sqrt() * x
        if guided and method.censor_scale:
            y = x.clone().requires_grad_()
            if method.guidance == "time":
                log_r = self.time_reward(y, t)
            else:
                log_r = self.clean_reward(a.sqrt() * y - (1 - a).sqrt() * self.denoiser(y, t))
            (gradient,) = torch.autograd.grad(log_r.sum(), y)
            eps = eps - (1 - a).sqrt() * method.censor_scale * gradient
            x_0 = self._clip((x - (1 - a).sqrt() * eps) / a.sqrt())
            eps = (x - a.sqrt() * x_0) / (1 - a).sqrt()
        if guided and method.backward_steps and self.clean_reward(x_0).item() < np.log(0.5):
            x_0 = self._clip(self._adam(x_0, method))
            eps = (x - a.sqrt() * x_0) / (1 - a).sqrt()
        return x_0, eps

    def _adam(self, x_0: Tensor, method: Method) -> Tensor:
        """torch's own Adam."""
        rate = method.backward_rate * self.schedule.num_train_timesteps / method.num_inference_steps
        y = x_0.detach().clone().requires_grad_()
        optimizer = torch.optim.Adam([y], lr=rate)
        for _ in range(method.backward_steps):
            optimizer.zero_grad()
            (-self.clean_reward(y).sum()).backward()
            optimizer.step()
        return y.detach()

    def _clip(self, x_0: Tensor) -> Tensor:
        return x_0.clamp(-self.limit, self.limit)


def _dpm(
    x: Tensor, x_0: Tensor, before: tuple[Tensor, Tensor] | None, a: Tensor, b: Tensor
) -> Tensor:
    """One step of DPM-Solver++(2M) from ᾱ = a to b."""
    if b == 1:
        return x_0
    h = _half_log_snr(b) - _half_log_snr(a)
    estimate = x_0
    if before is not None:
        r = (_half_log_snr(a) - _half_log_snr(before[1])) / h
        estimate = (1 + 1 / (2 * r)) * x_0 - 1 / (2 * r) * before[0]
    return ((1 - b) / (1 - a)).sqrt() * x - b.sqrt() * torch.expm1(-h) * estimate


def _half_log_snr(a: Tensor) -> Tensor:
    return (a.sqrt() / (1 - a).sqrt()).log()
