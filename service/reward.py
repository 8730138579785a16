"""The judge: scores finished images, and alone provides what a verdict rests on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.rewards.judge import OnnxJudge
from service.config import JudgeSettings
from service.errors import CensorUnavailable
from service.ports import Find, Pixels

log = logging.getLogger("winnow.reward")


ROWS = 2
"""A canary has more than one row: a graph for single rows would fail a whole batch later."""


class Judge(Protocol):
    """Networks that score images [B, H, W, C] uint8 with a reward in (0, 1), [B]."""

    def score(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        """The reward of each image."""
        ...


class Judges:
    """The judges of one model, by sha256 name; `shape` is [H, W, C] of what they score.

    With `find` and `open_judge`, others come while it runs. Any thread may call it.
    """

    def __init__(
        self,
        judges: Mapping[str, Judge],
        shape: tuple[int, int, int],
        find: Find | None = None,
        open_judge: Callable[[Path], Judge] | None = None,
    ) -> None:
        self._judges = dict(judges)
        self._shape = shape
        self._find = find
        self._open = open_judge
        self._lock = threading.Lock()

    def has(self, judge: str) -> bool:
        """Whether this judge can score."""
        return judge in self._judges

    def load(self, judge: str) -> None:
        """Load a judge that is not there yet, once it has scored its canary. Blocks.

        Raises CensorUnavailable, and what could not be verified or tried stays out.
        """
        with self._lock:
            if judge in self._judges:
                return
            if self._find is None or self._open is None:
                raise CensorUnavailable(f"judge {judge} is not loaded on this replica")
            try:
                fresh = self._open(self._find(judge, ".onnx"))
                self._try(judge, fresh)
            except CensorUnavailable:
                raise
            except Exception as error:  # whatever is wrong with it, it does not judge
                log.error("judge %s was refused", judge, exc_info=error)
                raise CensorUnavailable(f"judge {judge} cannot be loaded: {error}") from error
            # A new table, not a changed one: whoever is scoring has the old one.
            self._judges = {**self._judges, judge: fresh}

    def check(self, judge: str, pixels: Sequence[Pixels]) -> None:
        """Raises CensorUnavailable unless this judge is loaded and the images fit it."""
        if judge not in self._judges:
            raise CensorUnavailable(f"judge {judge} is not loaded on this replica")
        if any(image.shape != self._shape for image in pixels):
            raise CensorUnavailable(f"the judge scores images of shape {self._shape} alone")

    def score(self, judge: str, pixels: Sequence[Pixels]) -> list[float]:
        """The reward of each image, in order; NaN stays NaN, for the verdict to refuse.

        Raises CensorUnavailable as `check` does, and for another number of scores than of images.
        """
        self.check(judge, pixels)
        scores = self._judges[judge].score(np.stack(pixels))
        if scores.shape != (len(pixels),):
            raise CensorUnavailable(f"judge {judge} gave {scores.shape} for {len(pixels)} images")
        return [float(score) for score in scores]

    def canary(self) -> None:
        """Score empty images with every judge. Raises CensorUnavailable if one cannot."""
        for name, judge in self._judges.items():
            self._try(name, judge)

    def _try(self, name: str, judge: Judge) -> None:
        scores = judge.score(np.zeros((ROWS, *self._shape), dtype=np.uint8))
        if scores.shape != (ROWS,) or not ((scores >= 0) & (scores <= 1)).all():
            raise CensorUnavailable(f"judge {name} scored its canary {scores.tolist()}")


def load_judges(bundle: Bundle, settings: JudgeSettings, find: Find | None = None) -> Judges:
    """Every judge of a bundle; with `find`, others by hash when they are asked for."""
    backbone = bundle.manifest.backbone

    def open_judge(path: Path) -> OnnxJudge:
        return OnnxJudge(path, settings.threads, settings.device)

    return Judges(
        {
            bundle.sha256(reward.judge): open_judge(bundle.path(reward.judge))
            for reward in bundle.manifest.rewards.values()
        },
        (backbone.height, backbone.width, backbone.channels),
        find,
        open_judge,
    )
