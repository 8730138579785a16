"""What the parts of the service say to each other: plain frozen data, and two Protocols.

The router knows a backbone as `Drawer` and a judge as `Scorer`; whether a Ray deployment, an
in-process engine or a test stands behind them is not its business.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""One image, [H, W, C] in 0..255: the very bytes that are judged are the ones delivered."""


@dataclass(frozen=True)
class SamplingPlan:
    """How every draw of a request is made and judged. One shape for every method.

    `backbone`, `guide` and `judge` are sha256 names. Without a guide, `censor_scale` is 0; without
    a judge, the policy does not censor. `guide_interval` is [low, high) in timesteps. An image is
    benign when its score reaches `threshold`. `max_draws` is per image.
    """

    model: str
    policy: str
    policy_version: int
    backbone: str
    guide: str | None
    judge: str | None
    censor_scale: float
    guide_interval: tuple[int, int]
    threshold: float | None
    max_draws: int
    num_inference_steps: int
    eta: float
    seed: int


@dataclass(frozen=True)
class DrawKey:
    """Which draw: try number `draw` (from 0) at the image with `seed`, entry `index` of `n`.

    `fresh` until the request was admitted: what was admitted is never refused for load.
    """

    index: int
    seed: int
    draw: int
    fresh: bool = field(default=True, compare=False)


@dataclass(frozen=True)
class DrawResult:
    """A finished trajectory. `pixels` is None when the backbone made NaN or infinity."""

    key: DrawKey
    pixels: Pixels | None
    nfe: int
    queue_s: float
    denoise_s: float


class Verdict(Enum):
    """The outcome of one draw; the value is its name in metrics and records."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    ABANDONED = "abandoned"
    CANCELLED = "cancelled"
    FAILED = "failed"


class FinishReason(Enum):
    """Why an entry of the response is what it is; the value is its name on the wire."""

    SUCCESS = "success"
    CONTENT_FILTERED = "content_filtered"
    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    ERROR = "error"


class Drawer(Protocol):
    """A backbone, seen from the router."""

    def draw(
        self, plan: SamplingPlan, keys: Sequence[DrawKey], timeout_s: float
    ) -> AsyncGenerator[list[DrawResult], None]:
        """Make these draws; yields each group as it finishes, in any order.

        Raises BackendUnavailable or Overloaded. Closing the iterator frees the slots.
        """
        ...

    async def ready(self) -> None:
        """Return when the backbone can draw. Raises BackendUnavailable."""
        ...


class Scorer(Protocol):
    """A judge, seen from the router."""

    async def score(
        self, model: str, judge: str, pixels: Sequence[Pixels], timeout_s: float
    ) -> Sequence[float]:
        """The reward of each image, in [0, 1], in order. Raises CensorUnavailable."""
        ...

    async def ready(self) -> None:
        """Return when the judge has scored its canary. Raises CensorUnavailable."""
        ...
