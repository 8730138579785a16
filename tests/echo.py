"""A backbone that draws at once, and notes what it was asked for."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Sequence

import numpy as np

from models.diffusion import noise
from service.errors import InvalidValue
from service.ports import DrawKey, DrawResult, SamplingPlan
from tests.bundles import HEIGHT, WIDTH

WORDS = 8
"""What its text encoder reads."""


class Echo:
    """An image's pixels follow from its seed, its draw and its condition; half of them are dark.

    `plans` has the plan of each draw, by (seed, draw).
    """

    def __init__(self) -> None:
        self.plans: dict[tuple[int, int], SamplingPlan] = {}
        self.calls = 0

    def check(
        self, plan: SamplingPlan, keys: Sequence[DrawKey], timeout_s: float, tenant: str = ""
    ) -> None:
        """See `ports.BackboneClient`."""

    async def draw(
        self, plan: SamplingPlan, keys: Sequence[DrawKey], timeout_s: float, tenant: str = ""
    ) -> AsyncGenerator[list[DrawResult], None]:
        """See `ports.BackboneClient`."""
        self.calls += 1
        for name in ("prompt", "negative_prompt"):
            count = len(getattr(plan.condition, name).split())
            if count > WORDS:
                raise InvalidValue(f"has {count} tokens, {count - WORDS} too many", name)
        for key in keys:
            self.plans[key.seed, key.draw] = plan
            bright = noise.choice(key.seed + key.draw, noise.Purpose.INITIAL, 2)
            pixels = np.full((HEIGHT, WIDTH, 1), 255 * bright, dtype=np.uint8)
            told = f"{key.seed} {key.draw} {plan.condition.label(key.seed)} {plan.condition.prompt}"
            pixels[1, :, 0] = list(hashlib.sha256(told.encode()).digest()[:WIDTH])
            yield [DrawResult(key, pixels, 10, 0.0, 0.0)]

    async def ready(self) -> None:
        """See `ports.BackboneClient`."""
