"""How a draw is made: every number of it, and no weights.

A policy fixes a method, a calibration holds for one method, and the engine turns one into a table
of lines. Every way of sampling and censoring is a point in this one space.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from typing import Literal

from pydantic import ConfigDict

SamplerName = Literal[
    "ddim", "dpmsolver++", "dpmsolver++-sde", "euler", "euler-ancestral", "lcm", "tcd"
]
Spacing = Literal["leading", "linspace", "trailing"]
SigmaSpacing = Literal["karras", "exponential", "beta"]


@dataclass(frozen=True)
class Method:
    """The sampler and what bends it.

    `eta` belongs to ddim and tcd. `timestep_spacing` and `sigma_spacing` None mean as the
    backbone's scheduler says; `timesteps` or `sigmas`, falling, stand in for both, one for each
    step, as a pipeline of diffusers' takes them.
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
    sigma_spacing: SigmaSpacing | None = None
    timesteps: tuple[float, ...] = ()
    sigmas: tuple[float, ...] = ()

    @property
    def uncensored(self) -> Method:
        """The same sampling, which no reward bends or stops."""
        plain = Method()
        censoring = ("guidance", "censor_scale", "guide_interval", "recurrences", "backward_steps",
                     "backward_rate", "probes")  # fmt: skip
        return replace(self, **{name: getattr(plain, name) for name in censoring})

    @property
    def probe_steps(self) -> tuple[int, ...]:
        """The steps, counted from 0, whose x̂_0 is probed."""
        return tuple(ceil(share * self.num_inference_steps) - 1 for share in self.probes)
