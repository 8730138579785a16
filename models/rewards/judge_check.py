"""What a judge has been seen to say, and whether a threshold among that can decide.

A judge that has never been seen to reject may accept everything. So it is tried on images: those
of every trial, a *canary*, which is surely malign, and a *control*, which is surely benign, where
its reward has them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.onnx.batch_invariance import FLAT, TRIAL, TrialError, run_rows, trial

SPREAD = 0.01
"""The scores of a judge that is imported lie at least so far apart: a network that saturates for
whatever it is shown says nothing of it."""

NEAR = 1e-3
"""And those of its pictures, which are not of one colour, are not all so near to each other, to 0,
or to 1, unless it is tried on an image of known class."""

ALIKE = 1e-3
"""Logits of a trial that are no further apart are those of a constant."""

SURE = 30.0
"""Logits beyond it are no different in a score."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class KnownImages:
    """Images [H, W, C] of known class; None where there is none."""

    canary: Pixels | None = None
    control: Pixels | None = None

    def shown(self, image: tuple[int, int, int]) -> Pixels:
        """All that a judge of images [H, W, C] is tried on, [N, H, W, C]: the trial's come first,
        then the canary and the control."""
        given = [one[None] for one in (self.canary, self.control) if one is not None]
        return np.concatenate([trial(image), *given])


@dataclass(frozen=True)
class TrialScores:
    """Scores in [0, 1]: of the trial's images, of the canary, and of the control."""

    trial: tuple[float, ...]
    canary: float | None = None
    control: float | None = None

    @staticmethod
    def of(scores: NDArray[np.float64], known: KnownImages) -> TrialScores:
        """From the scores of `known.shown`, in that order."""
        rest = [float(score) for score in scores[TRIAL:]]
        canary = rest.pop(0) if known.canary is not None else None
        control = rest.pop(0) if known.control is not None else None
        return TrialScores(tuple(float(score) for score in scores[:TRIAL]), canary, control)

    @property
    def scores(self) -> tuple[float, ...]:
        """All of them."""
        return (*self.trial, *(one for one in (self.canary, self.control) if one is not None))

    def fault(self, thresholds: Collection[float], by_hand: bool = True) -> str | None:
        """Why such a judge cannot decide at one of these thresholds, or None.

        An image at or above the threshold is accepted. Without a canary, that it rejects an image
        of one colour says nothing. One that was calibrated has been seen to
        accept some draws; of one that was set `by_hand` it takes a trial to know.
        """
        for score in self.scores:
            if not 0 <= score <= 1:
                return f"it gave {score:.4g} where a score in [0, 1] was due"
        if not thresholds:
            return None
        low, high = min(thresholds), max(thresholds)
        if self.canary is not None and not self.canary < low:
            return (
                f"it scores its canary, an image that is surely malign, {self.canary:.4g}, so it "
                f"would not be blocked at the threshold of {low:.4g}: benign and malign may be "
                "turned round, or the threshold too low"
            )
        if self.control is not None and not self.control >= high:
            return (
                f"it scores its control, an image that is surely benign, {self.control:.4g}, so it "
                f"would be blocked at the threshold of {high:.4g}: benign and malign may be turned "
                "round, or the threshold too high"
            )
        pictures = self.scores if self.canary is not None else self.scores[FLAT:]
        if not min(pictures) < low:
            return (
                f"nothing shows that it can say no: what it was tried on scores "
                f"{_range(pictures)}, and the threshold is {low:.4g}. Show it an image that it "
                "rejects (a canary), or raise the threshold"
            )
        if by_hand and not max(self.scores) >= high:
            return (
                f"nothing shows that it can say yes: what it was tried on scores "
                f"{_range(self.scores)}, and the threshold is {high:.4g}. Show it an image that it "
                "accepts (a control), or lower the threshold"
            )
        return None


def try_judge(score: Callable[[Pixels], NDArray[np.float64]], image: tuple[int, int, int]) -> None:
    """Have a judge score the trial's images. Raises TrialError unless it gives each a score in
    [0, 1], whatever else is in the batch, and tells some of them apart; and what `score` raises.
    """
    scores = run_rows(score, trial(image))
    if scores.ndim != 1 or not ((scores >= 0) & (scores <= 1)).all():
        raise TrialError(f"gives {scores.tolist()} where one score in [0, 1] an image is due")
    with np.errstate(divide="ignore"):
        logits = (np.log(scores) - np.log1p(-scores)).clip(-SURE, SURE)
    if np.ptp(logits) < ALIKE:
        raise TrialError(
            f"scores every image of its trial {scores[0]:.4g}: it tells nothing apart, and cannot "
            "judge"
        )


def _range(scores: Collection[float]) -> str:
    return f"{min(scores):.4g} to {max(scores):.4g}"
