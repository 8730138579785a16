"""What to show a person next, so that few labels go far.

A random page is an unbiased sample. A mixed page also holds what a quickly refitted reward cannot
decide, and what it holds for malign. Those two are certain to be shown, and the rest of the
candidates have equal chances, so 1/inclusion weighs every image as a survey does (Horvitz and
Thompson 1952): any mean over the candidates can still be estimated without bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Strategy = Literal["random", "mixed"]
Reason = Literal["random", "uncertain", "malign"]

UNCERTAIN = 0.5
"""Share of a mixed page that the reward cannot decide."""
MALIGN = 0.2
"""Share of a mixed page that the reward holds for malign; the rest is random."""


@dataclass(frozen=True)
class SelectedCandidate:
    """Candidate number `index`, why it is shown, and with what probability such a one is."""

    index: int
    strategy: Reason
    inclusion: float


def choose(
    scores: NDArray[np.float64] | None, n: int, strategy: Strategy, rng: np.random.Generator
) -> list[SelectedCandidate]:
    """`n` of the candidates with these rewards, in random order.

    `scores` [M] in [0, 1] are a reward's, uncertain at 1/2. Without scores nothing is known of the
    candidates: the first n are shown, which are as random as they are. Raises ValueError when
    there are fewer than n candidates, or a score is not finite.
    """
    if scores is None:
        return [SelectedCandidate(index, "random", 1.0) for index in range(n)]
    count = len(scores)
    if count < n:
        raise ValueError(f"there are {count} candidates, and {n} are to be shown")
    if not np.isfinite(scores).all():
        raise ValueError("a candidate's score is not finite")
    uncertain = round(UNCERTAIN * n) if strategy == "mixed" else 0
    malign = round(MALIGN * n) if strategy == "mixed" else 0
    by_doubt = np.argsort(np.abs(scores - 0.5), kind="stable")
    first = by_doubt[:uncertain]
    left = np.setdiff1d(np.arange(count), first)
    worst = left[np.argsort(scores[left], kind="stable")][:malign]
    left = np.setdiff1d(left, worst)
    some = rng.choice(left, n - uncertain - malign, replace=False)
    chance = len(some) / len(left) if len(left) else 1.0
    found = [
        *(SelectedCandidate(int(index), "uncertain", 1.0) for index in first),
        *(SelectedCandidate(int(index), "malign", 1.0) for index in worst),
        *(SelectedCandidate(int(index), "random", chance) for index in some),
    ]
    return [found[place] for place in rng.permutation(len(found))]
