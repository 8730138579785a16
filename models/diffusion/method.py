"""How a draw is made: every number of it, and no weights.

A policy fixes a method, a calibration holds for one method, and the engine turns one into a table
of lines. Every way of sampling and censoring is a point in this one space.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal

from pydantic import ConfigDict

SamplerName = Literal["ddim", "dpmsolver++"]
Spacing = Literal["leading", "linspace", "trailing"]


@dataclass(frozen=True)
class Method:
    """The sampler and what bends it.

    `eta` belongs to ddim. `timestep_spacing` None means as the backbone's scheduler says.
    `guidance` says whose gradient steers (a row of `bundles.parts`): `time`, the time-dependent
    ensemble's at x_t; `distilled`, its student's; `forward`, the clean ensemble's at x̂_0 through
    the denoiser (universal guidance). `censor_scale` steers where the timestep lies in
    `guide_interval`, [low, high); there each step is also made `recurrences` times, and followed by
    `backward_steps` Adam steps on x̂_0 at `backward_rate` (for 1000 steps; fewer steps move
    proportionally more). `probes` are the shares of the steps, in (0, 1), after which a clean guide
    looks at x̂_0. `classifier_scale` steers
    towards the asked class by the bundle's classifier (Dhariwal & Nichol 2021), at every step.
    """

    # Read back from a manifest, a misspelt key must not pass for a default.
    __pydantic_config__ = ConfigDict(extra="forbid")

    num_inference_steps: int = 50
    eta: float = 0.0
    sampler: SamplerName = "ddim"
    timestep_spacing: Spacing | None = None
    guidance: str = "time"
    censor_scale: float = 0.0
    guide_interval: tuple[int, int] = (0, 1000)
    recurrences: int = 1
    backward_steps: int = 0
    backward_rate: float = 0.001
    probes: tuple[float, ...] = ()
    classifier_scale: float = 0.0

    @property
    def probe_steps(self) -> tuple[int, ...]:
        """The steps, counted from 0, whose x̂_0 is probed."""
        return tuple(ceil(share * self.num_inference_steps) - 1 for share in self.probes)
