"""The judge: scores finished images, and alone provides what a verdict rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.rewards.judge import OnnxJudge
from service.config import JudgeSettings
from service.errors import CensorUnavailable
from service.ports import Pixels


class Judge(Protocol):
    """Networks that score images [B, H, W, C] uint8 with a reward in (0, 1), [B]."""

    def score(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        """The reward of each image."""
        ...


class Judges:
    """The judges of one model, by sha256 name; `shape` is [H, W, C] of what they score."""

    def __init__(self, judges: Mapping[str, Judge], shape: tuple[int, int, int]) -> None:
        self._judges = judges
        self._shape = shape

    def check(self, judge: str, pixels: Sequence[Pixels]) -> None:
        """Raises CensorUnavailable unless this judge is loaded and the images fit it."""
        if judge not in self._judges:
            raise CensorUnavailable(f"judge {judge} is not loaded on this replica")
        if any(image.shape != self._shape for image in pixels):
            raise CensorUnavailable(f"the judge scores images of shape {self._shape} alone")

    def score(self, judge: str, pixels: Sequence[Pixels]) -> list[float]:
        """The reward of each image, in order; NaN stays NaN, for the verdict to refuse."""
        self.check(judge, pixels)
        scores = self._judges[judge].score(np.stack(pixels))
        return [float(score) for score in scores]

    def canary(self) -> None:
        """Score an empty image with every judge. Raises CensorUnavailable if one cannot."""
        empty = np.zeros(self._shape, dtype=np.uint8)
        for judge in self._judges:
            score = self.score(judge, [empty])[0]
            if not 0 <= score <= 1:
                raise CensorUnavailable(f"judge {judge} scored its canary {score}")


def load_judges(bundle: Bundle, settings: JudgeSettings) -> Judges:
    """Every judge of a bundle."""
    backbone = bundle.manifest.backbone
    return Judges(
        {
            bundle.sha256(reward.judge): OnnxJudge(
                bundle.path(reward.judge), settings.threads, settings.device
            )
            for reward in bundle.manifest.rewards.values()
        },
        (backbone.height, backbone.width, backbone.channels),
    )
