"""Settings of a policy."""

from __future__ import annotations

from dataclasses import fields
from itertools import pairwise
from typing import Annotated, Any

from pydantic import Field, model_validator

from models.bundles.parts import guidances
from models.diffusion.method import Method, SamplerName, SigmaSpacing, Spacing
from service.config.base import Name, Part


class PolicySettings(Part):
    """How requests under this policy are censored.

    `reward` names a reward of the model's bundle; without one the policy censors nothing and only
    the admin scope may use it. With `trained` its reward comes from labels: until a version with
    one is promoted, it refuses every request. `censor_scale` above 0 steers, by the gradient that
    `guidance` names, where the timestep lies in `guide_interval`; there `recurrences` and
    `backward_steps` apply too. `probes` are the shares of the steps after which hopeless draws are
    stopped. `num_inference_steps` lists what callers may ask for, the default first. `threshold`
    overrides the bundle's calibration, in words that an auditor will see.

    `timesteps` or `sigmas`, falling, fix where each step begins, as distilled models want; with
    them there is one step count, theirs.

    `guidance_scale` lists what callers may ask for, the default first; empty means the bundle's
    own, and 0 or 1 no guidance. `class_labels` are the classes that may be asked for, and of which
    one is drawn where none is; empty means all. `sizes` are those beside the model's own that
    callers may ask for, as `WIDTHxHEIGHT`: each needs a calibration of its own, so a threshold by
    hand goes with none.
    """

    model: Name
    version: int = Field(1, ge=1, le=2**31 - 1)
    reward: Name | None = None
    trained: bool = False
    censor_scale: float = Field(0.0, ge=0, le=20)
    guide_interval: Annotated[tuple[int, int], Field(strict=False)] = (0, 1000)
    threshold: float | None = Field(None, gt=0, lt=1)
    max_draws: int = Field(1, ge=1, le=1000)
    num_inference_steps: list[Annotated[int, Field(ge=1, le=1000)]] = Field([50], min_length=1)
    eta: float = Field(0.0, ge=0, le=1)
    sampler: SamplerName = "ddim"
    timestep_spacing: Spacing | None = None
    sigma_spacing: SigmaSpacing | None = None
    timesteps: list[Annotated[float, Field(ge=0, le=1000)]] = Field([])
    sigmas: list[Annotated[float, Field(gt=0, le=1000)]] = Field([])
    guidance: str = "time"
    recurrences: int = Field(1, ge=1, le=16)
    backward_steps: int = Field(0, ge=0, le=100)
    backward_rate: float = Field(0.001, gt=0, le=1)
    probes: list[Annotated[float, Field(gt=0, lt=1)]] = Field([])
    classifier_scale: float = Field(0.0, ge=0, le=50)
    guidance_scale: list[Annotated[float, Field(ge=0, le=50)]] = Field([])
    class_labels: list[Annotated[int, Field(ge=0, le=1_000_000)]] = Field([])
    sizes: list[Annotated[str, Field(pattern=r"^[1-9]\d{0,4}x[1-9]\d{0,4}$")]] = Field([])

    @property
    def judged(self) -> bool:
        """Whether nothing may leave without a verdict."""
        return self.reward is not None or self.trained

    def method(self, num_inference_steps: int) -> Method:
        """How draws of this policy are made with so many steps."""
        shared: dict[str, Any] = {
            field.name: getattr(self, field.name)
            for field in fields(Method)
            if field.name != "num_inference_steps"
        }
        for name, value in shared.items():
            shared[name] = tuple(value) if isinstance(value, list) else value
        return Method(num_inference_steps=num_inference_steps, **shared)

    @model_validator(mode="after")
    def _consistent(self) -> PolicySettings:
        low, high = self.guide_interval
        if not 0 <= low < high <= 1000:
            raise ValueError("guide_interval: must be [low, high) with 0 <= low < high <= 1000")
        if self.guidance not in guidances():
            raise ValueError(f"guidance: is {self.guidance!r}, must be {' or '.join(guidances())}")
        if self.trained and self.reward is not None:
            raise ValueError("reward: stands beside trained: give one of them")
        if self.trained and self.threshold is not None:
            raise ValueError("threshold: comes with the reward that is trained: leave it out")
        for name in ("censor_scale", "threshold", "backward_steps", "probes"):
            if not self.judged and getattr(self, name):
                raise ValueError(f"{name}: needs a reward")
        if self.recurrences > 1 and not self.censor_scale and not self.backward_steps:
            raise ValueError("recurrences: above 1 they need censor_scale or backward_steps")
        if self.eta and self.sampler not in ("ddim", "tcd"):
            raise ValueError("eta: belongs to sampler: ddim and tcd")
        if self.timesteps and self.sigmas:
            raise ValueError("sigmas: stand beside timesteps: give one of them")
        for name, given in (("timesteps", self.timesteps), ("sigmas", self.sigmas)):
            if given and self.num_inference_steps != [len(given)]:
                raise ValueError(f"num_inference_steps: must be [{len(given)}], as {name} has it")
            if any(after >= before for before, after in pairwise(given)):
                raise ValueError(f"{name}: must fall")
        if sorted(set(self.probes)) != self.probes:
            raise ValueError("probes: must rise")
        if len(set(self.sizes)) < len(self.sizes):
            raise ValueError("sizes: one stands there twice")
        if self.sizes and self.threshold is not None:
            raise ValueError(
                "threshold: set by hand it holds for the model's own size alone: leave out sizes, "
                "or calibrate"
            )
        if self.probes and self.threshold is not None:
            raise ValueError("threshold: stands in for a calibration, which probes need")
        if not self.judged and self.max_draws > 1:
            raise ValueError("max_draws: above 1 it needs a reward, as nothing is ever rejected")
        return self
