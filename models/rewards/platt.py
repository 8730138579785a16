"""From a reward's logit to the chance that an image is malign, learned from few labels.

Logits that a network gives the images it learned from say nothing, so the labels here are scored by
members that never saw them (cross-validation; `folds`). Through them goes a logistic curve (Platt
1999), and the curve turns the logits of any number of unlabelled draws into the malign rate that a
threshold would let through.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize
from scipy.special import expit, log_expit

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Platt:
    """P(malign) = σ(intercept − slope·logit); the slope is never negative."""

    slope: float
    intercept: float

    def chance(self, logits: Numbers) -> Numbers:
        """P(malign) of logits [N], float64 [N] in [0, 1]."""
        chances: Numbers = expit(self.intercept - self.slope * logits)
        return chances


def fold(key: str, members: int) -> int:
    """Which of the members a label is kept from: its key's hash says so, for ever."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()) % members


def folds(keys: Sequence[str], malign: NDArray[np.bool_], members: int) -> NDArray[np.bool_]:
    """Which of the labels [N] each of the members may learn from, bool [members, N].

    Each label is kept from one member, which `fold` names: the same one in every training,
    whatever other labels there are, so that member never learns from it. Raises ValueError when
    a member is left without labels of a class.
    """
    kept = np.array([fold(key, members) for key in keys])
    seen: NDArray[np.bool_] = np.arange(members)[:, None] != kept[None, :]
    for word, rows in (("malign", malign), ("benign", ~malign)):
        if not (seen & rows).any(axis=1).all():
            raise ValueError(
                f"all {int(rows.sum())} {word} labels of the judge are in one fold of "
                "cross-validation: label more images"
            )
    return seen


def fit_platt(logits: Numbers, malign: NDArray[np.bool_], weights: Numbers) -> Platt:
    """The curve through out-of-fold logits [N] of labels, each with its weight [N] above 0.

    The labels are smoothed as Platt has it, to (N₊ + 1)/(N₊ + 2) and 1/(N₋ + 2): without that, a
    handful of labels that the reward separates would prove that it is never wrong.
    """
    bad, good = int(malign.sum()), int((~malign).sum())
    target = np.where(malign, (bad + 1) / (bad + 2), 1 / (good + 2))
    share = weights / weights.sum()

    def loss(parameters: Numbers) -> tuple[float, Numbers]:
        slope, intercept = parameters
        z = intercept - slope * logits
        value = -(share * (target * log_expit(z) + (1 - target) * log_expit(-z))).sum()
        error = share * (expit(z) - target)
        return float(value), np.array([-(error * logits).sum(), error.sum()])

    prior = np.log((bad + 1) / (good + 1))
    found = optimize.minimize(
        loss, np.array([1.0, prior]), jac=True, method="L-BFGS-B", bounds=[(0, None), (None, None)]
    )
    return Platt(float(found.x[0]), float(found.x[1]))
