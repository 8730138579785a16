"""What the parts of the service say to each other: plain frozen data, and two Protocols.

The sampling loop knows a backbone as `BackboneClient` and a judge as `JudgeClient`; whether a Ray
deployment, an in-process engine or a test stands behind them is not its business.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from models.diffusion.condition import UNCONDITIONAL, Condition
from models.diffusion.method import Method

Pixels = NDArray[np.uint8]
"""One image, [H, W, C] in 0..255: the very bytes that are judged are the ones delivered."""

Find = Callable[[str, str], Path]
"""The file of a sha256 name, verified, with a suffix that says its format. Raises WinnowError."""


@dataclass(frozen=True)
class SamplingPlan:
    """How every draw of a request is made and judged. One shape for every method.

    `backbone` is the sha256 name of what draws, and `parts` those of its reward's networks by part
    (`models.bundles.parts`). Without a judge, the policy does not censor. An image is benign when
    its score reaches `threshold`; a draw is abandoned when a probe's score falls below its
    threshold. `max_draws` is per image. `acceptance` is the share of draws that were accepted when
    the policy was calibrated. `condition` is what all images of the request are to show.
    """

    model: str
    policy: str
    policy_version: int
    backbone: str
    parts: Mapping[str, str]
    method: Method
    probe_thresholds: tuple[float, ...]
    threshold: float | None
    max_draws: int
    acceptance: float
    seed: int
    condition: Condition = UNCONDITIONAL

    @property
    def judge(self) -> str | None:
        """What decides; None where the policy does not censor."""
        return self.parts.get("judge")


@dataclass(frozen=True)
class DrawKey:
    """Which draw: try number `draw` (from 0) at the image with `seed`, entry `index` of `n`.

    `fresh` until the request was admitted: what was admitted is never refused for load. A draw
    `ahead` of the one that is needed now is speculative: it is made only where there is room, and
    ends with Overloaded where there is none.
    """

    index: int
    seed: int
    draw: int
    fresh: bool = field(default=True, compare=False)
    ahead: int = field(default=0, compare=False)


@dataclass(frozen=True)
class DrawResult:
    """A trajectory that has ended.

    `pixels` is None when a probe abandoned the draw, or the backbone made NaN or infinity.
    `probe_scores` are the scores of the probes that looked, in [0, 1].
    """

    # Between processes pixels travel beside the rest.
    __pydantic_config__ = ConfigDict(arbitrary_types_allowed=True, ser_json_inf_nan="constants")

    key: DrawKey
    pixels: Pixels | None
    nfe: int
    queue_s: float
    denoise_s: float
    abandoned: bool = False
    probe_scores: tuple[float, ...] = ()


class Verdict(Enum):
    """The outcome of one draw; the value is its name in metrics and records."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    ABANDONED = "abandoned"
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass(frozen=True)
class Judged:
    """One settled draw, as a decision record keeps it; `score` is the judge's, where it looked."""

    key: DrawKey
    verdict: Verdict
    score: float | None
    probe_scores: tuple[float, ...]
    nfe: int


class FinishReason(Enum):
    """Why an entry of the response is what it is; the value is its name on the wire."""

    SUCCESS = "success"
    CONTENT_FILTERED = "content_filtered"
    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    ERROR = "error"


class BackboneClient(Protocol):
    """A backbone, seen from the sampling loop."""

    def draw(
        self, plan: SamplingPlan, keys: Sequence[DrawKey], timeout_s: float, tenant: str = ""
    ) -> AsyncGenerator[list[DrawResult], None]:
        """Make these draws; yields each group as it finishes, in any order.

        `tenant` is whose turn they use up. Raises BackendUnavailable or Overloaded. Closing the
        iterator frees the slots.
        """
        ...

    def check(
        self, plan: SamplingPlan, keys: Sequence[DrawKey], timeout_s: float, tenant: str = ""
    ) -> None:
        """Refuse what `draw` would refuse, as far as is known here and now; costs next to nothing.

        Raises Overloaded.
        """
        ...

    async def ready(self) -> None:
        """Return when the backbone can draw. Raises BackendUnavailable."""
        ...


class JudgeClient(Protocol):
    """A judge, seen from the sampling loop."""

    async def score(
        self, model: str, judge: str, pixels: Sequence[Pixels], timeout_s: float
    ) -> Sequence[float]:
        """The reward of each image, in [0, 1], in order. Raises CensorUnavailable."""
        ...

    async def ready(self) -> None:
        """Return when the judge has scored its canary. Raises CensorUnavailable."""
        ...
