"""How a model wants to be sampled: what its folder says, and what its name does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.backbones.families.family import Family
from models.backbones.importing.flow import is_flow
from models.diffusion.method import SamplerName

SAMPLERS: Mapping[str, SamplerName] = {
    "LCMScheduler": "lcm",
    "FlowMatchLCMScheduler": "lcm",
    "TCDScheduler": "tcd",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler-ancestral",
    "DPMSolverMultistepScheduler": "dpmsolver++",
}
"""By the scheduler that its folder names; the others are stepped by DDIM, or Euler on a flow."""

DISTILLED = re.compile(
    r"turbo|lightning|schnell|distill|(?<![a-z])(?:hyper|flash|lcm|tcd|sprint)(?![a-z])", re.I
)
COUNTED = re.compile(r"(\d{1,2})[-_ ]?steps?", re.I)
FEW = 4
STEPS = 50


@dataclass(frozen=True)
class Sampling:
    """What policies of a model start from; `why` is a sentence for people.

    `guided` False says that the model was distilled to need no guidance.
    """

    sampler: SamplerName
    num_inference_steps: int
    guided: bool
    why: str

    @property
    def policy(self) -> dict[str, Any]:
        """The keys of a policy's settings that differ from their defaults."""
        return {"sampler": self.sampler} if self.sampler != "ddim" else {}


def suggest(name: str, scheduler: Mapping[str, Any], family: Family | None) -> Sampling:
    """From the name that a model goes by, its scheduler's file and its family."""
    said = str(scheduler.get("_class_name", "DDIMScheduler"))
    sampler: SamplerName = SAMPLERS.get(said, "euler" if is_flow(scheduler) else "ddim")
    if str(scheduler.get("algorithm_type", "")).startswith("sde"):
        sampler = "dpmsolver++-sde"
    reasons = [f"its scheduler is {said}"]
    steps, guided = family.steps if family else STEPS, True
    distilled = DISTILLED.search(name)
    if sampler in ("lcm", "tcd"):
        steps, guided = FEW, False
        reasons.append("which steps through distilled models alone")
    elif distilled:
        steps, guided = FEW, False
        reasons.append(f"its name says {distilled[0].lower()!r}")
    elif (
        family is None
        and "euler" in sampler
        and scheduler.get("timestep_spacing") == "trailing"
        and scheduler.get("prediction_type", "epsilon") == "epsilon"
    ):
        steps, guided = FEW, False
        reasons.append("spaced from the end (trailing), as distilled models are")
    if not guided and (counted := COUNTED.search(name)):
        steps = max(int(counted[1]), 1)
        reasons.append(f"and {counted[0]!r}")
    most = scheduler.get("num_train_timesteps", steps)
    steps = min(steps, most) if isinstance(most, int) and most > 0 else steps
    return Sampling(sampler, steps, guided, ", ".join(reasons))
