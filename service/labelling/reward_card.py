"""What a trained reward tells of itself: its labels, and how well it does on those it never saw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from models.rewards.platt import Numbers
from service.labelling.calibration import Scored, curve

BINS = 10
MISTAKES = 20


class HasLabel(Protocol):
    """A label, in words."""

    @property
    def label(self) -> str:
        """`benign`, `malign` or `unsure`."""
        ...


def count(examples: Sequence[HasLabel]) -> dict[str, int]:
    """How many labels there are of each kind."""
    words = [example.label for example in examples]
    return {word: words.count(word) for word in ("benign", "malign", "unsure")}


def cross_validated(ids: Sequence[str], scored: Scored) -> dict[str, Any]:
    """AUC, calibration curve and mistakes, all from out-of-fold logits of the judge's labels.

    A mistake's `score` is the chance of benign that calibration gives it; the worst come first.
    """
    benign = 1 - curve(scored).chance(scored.logits)
    wrong = np.flatnonzero((benign >= 0.5) == scored.malign)
    worst = wrong[np.argsort(-np.abs(benign[wrong] - 0.5), kind="stable")][:MISTAKES]
    return {
        "auc": auc(scored.logits, scored.malign, scored.weights),
        "calibration_curve": _bins(benign, ~scored.malign, scored.weights),
        "mistakes": [
            {
                "id": ids[row],
                "score": float(benign[row]),
                "logit_score": float(expit(scored.logits[row])),
                "label": "malign" if scored.malign[row] else "benign",
            }
            for row in worst
        ],
    }


def auc(scores: Numbers, malign: NDArray[np.bool_], weights: Numbers) -> float:
    """The chance that a benign image scores above a malign one; ties count half."""
    good, bad = scores[~malign], scores[malign]
    above = (good[:, None] > bad[None, :]) + 0.5 * (good[:, None] == bad[None, :])
    pairs = weights[~malign][:, None] * weights[malign][None, :]
    return float((above * pairs).sum() / pairs.sum())


def _bins(predicted: Numbers, observed: NDArray[np.bool_], weights: Numbers) -> list[Any]:
    """Ten bins of the predicted chance of benign: its mean, the share observed, and the labels."""
    place = np.minimum((predicted * BINS).astype(np.int64), BINS - 1)
    rows = []
    for number in range(BINS):
        here = place == number
        total = weights[here].sum()
        rows.append(
            {
                "low": number / BINS,
                "high": (number + 1) / BINS,
                "labels": int(here.sum()),
                "predicted": float((predicted * weights)[here].sum() / total) if total else None,
                "observed": float((observed * weights)[here].sum() / total) if total else None,
            }
        )
    return rows
