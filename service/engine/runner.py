"""The mathematics of one tick: every running row takes one step of its own trajectory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from models.guidance import Guide, guided_eps
from models.parameterization import eps_to_x0, to_x0_eps, x0_to_eps
from models.samplers import ddim_step
from models.schedule import NoiseSchedule
from service.engine.batch import ALPHA_BAR, ALPHA_BAR_PREV, CENSOR_SCALE, SIGMA, Batch

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(x_t float32 [B, C, H, W], timestep int64 [B]) to the model's output, [B, C, H, W]."""


class Runner:
    """One denoiser, `backbone`, and its guides, all by sha256 name."""

    def __init__(
        self,
        backbone: str,
        denoiser: Denoiser,
        schedule: NoiseSchedule,
        guides: Mapping[str, Guide],
    ) -> None:
        self.backbone = backbone
        self.guides = guides
        self._denoiser = denoiser
        self._schedule = schedule

    @torch.no_grad()
    def advance(self, batch: Batch, guides: Sequence[str | None]) -> int:
        """Advance the first len(guides) rows of the batch by one step, in place.

        `guides` names the guide of each row; rows whose censor scale is 0 at this timestep pay
        for no gradient. Returns how many rows were guided.
        """
        rows = len(guides)
        timesteps, numbers = batch.lines(rows)
        timestep = torch.from_numpy(timesteps).to(batch.device)
        coefficients = torch.from_numpy(numbers).to(batch.device).view(rows, 4, 1, 1, 1)
        alpha_bar = coefficients[:, ALPHA_BAR]
        sigma = coefficients[:, SIGMA]
        x_t = batch.x_t[:rows]

        # A copy: guidance bends rows in place, and the denoiser's own tensor may be read-only.
        output = self._denoiser(x_t, timestep).to(torch.float32, copy=True)
        x_0, eps = to_x0_eps(output, x_t, alpha_bar, self._schedule.prediction_type)
        x_0 = self._clip(x_0)
        guided = self._guide(x_t, x_0, eps, timestep, coefficients, guides)
        x_prev = ddim_step(x_0, eps, coefficients[:, ALPHA_BAR_PREV], sigma)
        noisy = np.flatnonzero(numbers[:, SIGMA])
        if noisy.size:
            x_prev[noisy] += sigma[noisy] * batch.step_noise(noisy)
        batch.x_t[:rows] = x_prev
        batch.step[:rows] += 1
        return guided

    def _guide(
        self,
        x_t: Tensor,
        x_0: Tensor,
        eps: Tensor,
        timestep: Tensor,
        coefficients: Tensor,
        guides: Sequence[str | None],
    ) -> int:
        """Bend eps and x̂_0, in place, for the rows that are guided at this timestep."""
        scale = coefficients[:, CENSOR_SCALE]
        guided: list[int] = np.flatnonzero(scale.flatten().cpu().numpy()).tolist()
        by_guide: dict[str, list[int]] = {}
        for row in guided:
            name = guides[row]
            assert name is not None, "a row with a censor scale has a guide"
            by_guide.setdefault(name, []).append(row)
        for name, members in by_guide.items():
            gradient = self.guides[name].gradient(x_t[members], timestep[members])
            alpha_bar = coefficients[members, ALPHA_BAR]
            bent = guided_eps(eps[members], gradient, alpha_bar, scale[members])
            x_0[members] = self._clip(eps_to_x0(x_t[members], bent, alpha_bar))
            # eps follows the clipped x̂_0. A bent eps beside an x̂_0 that clipping has put back
            # would take the step down the gradient instead of up.
            eps[members] = x0_to_eps(x_t[members], x_0[members], alpha_bar)
        return len(guided)

    def _clip(self, x_0: Tensor) -> Tensor:
        limit = self._schedule.clip_sample_range
        return x_0 if limit is None else x_0.clamp(-limit, limit)
