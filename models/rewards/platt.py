"""From a reward's logit to the chance that an image is malign, learned from few labels.

Logits that a network gives the images it learned from say nothing, so the labels here are scored by
members that never saw them (cross-validation; `folds`). Through them goes a logistic curve (Platt
1999), and the curve turns the logits of any number of unlabelled draws into the malign rate that a
threshold would let through.
"""

from __future__ import annotations

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


def folds(malign: NDArray[np.bool_], members: int, count: int) -> NDArray[np.bool_]:
    """Which of the labels [N] each of the members may learn from, bool [members, N].

    Each label is kept from the members of one of `count` folds, and each fold has its share of
    both classes. Raises ValueError when a class has fewer than two labels.
    """
    fewest = min(int(malign.sum()), int((~malign).sum()))
    if fewest < 2:
        raise ValueError(f"a class has {fewest} labels, and cross-validation needs 2 of each")
    count = min(count, fewest, members)
    fold = np.empty(len(malign), dtype=np.int64)
    for wanted in (False, True):
        rows = np.flatnonzero(malign == wanted)
        fold[rows] = np.arange(len(rows)) % count
    kept_from: NDArray[np.bool_] = np.arange(members)[:, None] % count == fold[None, :]
    return ~kept_from


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
