"""The judge: scores finished images, and alone provides what a verdict rests on."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.bundles.bundle import Bundle
from models.onnx.batch_invariance import TrialError
from models.rewards.judge_check import try_judge
from models.rewards.onnx_judge import OnnxJudge
from service.config import JudgeSettings
from service.errors import CensorUnavailable
from service.ports import Find, Pixels

log = logging.getLogger("winnow.judge")


ROWS = 2
"""A canary has more than one row: a graph for single rows would fail a whole batch later."""


KEPT = 8
IDLE_S = 600.0
"""Beside the bundle's, so many judges stay loaded, and all that scored within this time. Any other
is loaded again once it is asked for: promotions must not fill the memory."""


class Judge(Protocol):
    """Networks that score images [B, H, W, C] uint8 with a reward in (0, 1), [B]."""

    def score(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        """The reward of each image."""
        ...


class Judges:
    """The judges of one model, by sha256 name; `shape` is [H, W, C] of what they score.

    `others` are the shapes of the model's other sizes: a judge that cannot take one is a fault of
    that call, so nothing leaves. With `find` and `open_judge`, others
    come while it runs. Any thread may call it.
    """

    def __init__(
        self,
        judges: Mapping[str, Judge],
        shape: tuple[int, int, int],
        find: Find | None = None,
        open_judge: Callable[[Path], Judge] | None = None,
        others: Collection[tuple[int, int, int]] = (),
    ) -> None:
        self._judges = dict(judges)
        self._shape = shape
        self._shapes = {shape, *others}
        self._find = find
        self._open = open_judge
        self._lock = threading.Lock()
        self._bundled = frozenset(judges)
        self._used: dict[str, float] = {}

    def has(self, judge: str) -> bool:
        """Whether this judge can score."""
        return judge in self._judges

    def load(self, judge: str) -> None:
        """Load a judge that is not there yet, once it has stood its trial. Blocks.

        Raises CensorUnavailable, and what could not be verified or tried stays out.
        """
        with self._lock:
            if judge in self._judges:
                return
            if self._find is None or self._open is None:
                raise CensorUnavailable(f"judge {judge} is not loaded on this replica")
            try:
                fresh = self._open(self._find(judge, ".onnx"))
                try_judge(fresh.score, self._shape)
            except CensorUnavailable:
                raise
            except Exception as error:  # whatever is wrong with it, it does not judge
                log.error("judge %s was refused", judge, exc_info=error)
                raise CensorUnavailable(f"judge {judge} cannot be loaded: {error}") from error
            # A new table, not a changed one: whoever is scoring has the old one.
            self._used[judge] = time.monotonic()
            self._judges = self._still_of_use({**self._judges, judge: fresh})

    def _still_of_use(self, judges: dict[str, Judge]) -> dict[str, Judge]:
        brought = sorted(judges.keys() - self._bundled, key=self._used.__getitem__, reverse=True)
        before = time.monotonic() - IDLE_S
        gone = {name for name in brought[KEPT:] if self._used[name] < before}
        return {name: judge for name, judge in judges.items() if name not in gone}

    def check(self, judge: str, pixels: Sequence[Pixels]) -> None:
        """Raises CensorUnavailable unless this judge is loaded and the images fit it."""
        if judge not in self._judges:
            raise CensorUnavailable(f"judge {judge} is not loaded on this replica")
        if any(image.shape not in self._shapes for image in pixels):
            shapes = " or ".join(map(str, sorted(self._shapes)))
            raise CensorUnavailable(f"the judge scores images of shape {shapes} alone")

    def score(self, judge: str, pixels: Sequence[Pixels]) -> list[float]:
        """The reward of each image, in order; NaN stays NaN, for the verdict to refuse.

        Raises CensorUnavailable as `check` does, and for another number of scores than of images.
        """
        self.check(judge, pixels)
        self._used[judge] = time.monotonic()
        found = [math.nan] * len(pixels)
        # Callers of several sizes may share a pass.
        for shape in {image.shape for image in pixels}:
            rows = [row for row, image in enumerate(pixels) if image.shape == shape]
            scores = self._judges[judge].score(np.stack([pixels[row] for row in rows]))
            if scores.shape != (len(rows),):
                raise CensorUnavailable(f"judge {judge} gave {scores.shape} for {len(rows)} images")
            for row, score in zip(rows, scores, strict=True):
                found[row] = float(score)
        return found

    def canary(self) -> None:
        """Score empty images with every judge. Raises CensorUnavailable if one cannot."""
        for name, judge in self._judges.items():
            scores = judge.score(np.zeros((ROWS, *self._shape), dtype=np.uint8))
            if scores.shape != (ROWS,) or not ((scores >= 0) & (scores <= 1)).all():
                raise CensorUnavailable(f"judge {name} scored its canary {scores.tolist()}")


def load_judges(bundle: Bundle, settings: JudgeSettings, find: Find | None = None) -> Judges:
    """Every judge of a bundle, tried; with `find`, others by hash when they are asked for.

    Raises CensorUnavailable for one that cannot judge, whatever the manifest says of it.
    """
    backbone = bundle.manifest.backbone
    shape = backbone.image

    others = [(*size, backbone.channels) for size in backbone.other_sizes]

    def open_judge(path: Path) -> OnnxJudge:
        return OnnxJudge(path, settings.threads, settings.device, others)

    judges = {}
    for name, reward in bundle.manifest.rewards.items():
        judge = open_judge(bundle.path(reward.parts["judge"]))
        try:
            try_judge(judge.score, shape)
        except TrialError as error:
            raise CensorUnavailable(
                f"judge {name!r} of bundle {bundle.manifest.name!r} {error}"
            ) from error
        judges[bundle.sha256(reward.parts["judge"])] = judge
    return Judges(judges, shape, find, open_judge, others)
