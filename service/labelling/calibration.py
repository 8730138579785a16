"""Choose thresholds from few labels and many unlabelled draws.

With a hundred labels, ten of them malign, no count proves a malign rate of 1 %. What they do tell
is where malign scores end and where benign ones begin, and a threshold is the stricter of two:

- where a smooth tail through the malign scores (a Gaussian kernel estimate, Silverman 1986) lets
  through half of the target, given how many of the policy's own draws pass and are malign;
- where a share SPENT of benign images is lost. A lost benign image costs a draw, and a malign one
  that few labels did not show costs trust.

Scores of labels are out of fold. A certificate, from fresh labels, has the last word.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import expit, logit

from models.rewards.calibration import clopper_pearson_upper, refuse_uninformative
from models.rewards.platt import Numbers, Platt, fit_platt

SAFETY = 0.5
"""Share of the target that the estimate may use: it is one of many that the labels allow."""
SPENT = 0.05
"""Share of benign images given up for safety."""
MOST_SPENT = 0.2
"""Where the labels cannot reach the target, no more benign images than this are given up."""
PROBE_LOSS = 0.01
"""Share of the draws that would be accepted which all probes together may stop."""
CONFIDENCE = 0.95
COIN = 0.5
"""Few labels cannot prove more of a judge than that it is better than a coin."""
LIMIT = 30.0
"""Logits beyond it are no different in float64's scores."""


@dataclass(frozen=True)
class Scored:
    """The judge's labels: out-of-fold logits [N], which are malign [N], and weights [N].

    A weight is 1/inclusion: how many images like it were not shown.
    """

    logits: Numbers
    malign: NDArray[np.bool_]
    weights: Numbers


@dataclass(frozen=True)
class CalibratedThreshold:
    """Thresholds for one way of sampling, and what they rest on; shares are in [0, 1].

    `expected_malign` estimates the malign rate of what is delivered, and `reached` says if it
    is within the target. `malign_delivered` of `delivered` labels of the judge's would pass out of
    fold, and `upper_bound` is Clopper–Pearson's for them at CONFIDENCE: no certificate, since the
    labels chose the threshold, and where they were not random there are too many malign. `pool`
    fresh draws gave `acceptance`, with what probes stop. `probes_lost` is their share of the draws
    that the judge accepts, on the pool that chose their thresholds.
    """

    threshold: float
    probe_thresholds: tuple[float, ...]
    acceptance: float
    expected_malign: float
    reached: bool
    benign_kept: float
    labelled: int
    delivered: int
    malign_delivered: int
    upper_bound: float
    confidence: float
    pool: int
    probes_lost: float


def curve(scored: Scored) -> Platt:
    """The chance that an image is malign, by its logit."""
    return fit_platt(scored.logits, scored.malign, scored.weights)


def calibrate(
    scored: Scored, scores: Numbers, probe_scores: Numbers, target: float
) -> CalibratedThreshold:
    """Thresholds for draws of which a fresh pool has these scores [M] and probe scores [M, P].

    Raises ValueError when a score is not finite, a class has fewer than two labels, or the labels
    do not show that the judge tells them apart: it is no better than a coin, or at the threshold
    it accepts all that are malign, or none that is benign.
    """
    if not all(np.isfinite(x).all() for x in (scored.logits, scores, probe_scores)):
        raise ValueError("calibration needs finite scores")
    bad, good = scored.logits[scored.malign], scored.logits[~scored.malign]
    if min(len(bad), len(good)) < 2:
        raise ValueError("calibration needs two labels of each class")
    refuse_uninformative(scored.logits, scored.malign, COIN)
    pool = logit(scores).clip(-LIMIT, LIMIT)
    rate = float(curve(scored).chance(pool).mean())

    grid = np.linspace(-LIMIT, LIMIT, 1201)
    passing = np.maximum(1 - np.searchsorted(np.sort(pool), grid) / len(pool), 1 / len(pool))
    expected = rate * tail(bad, grid) / passing
    within = np.flatnonzero(expected <= SAFETY * target)
    wanted = float(grid[within[0]]) if len(within) else LIMIT
    weights = scored.weights[~scored.malign]
    floor = max(0.0, quantile(good, weights, SPENT))
    ceiling = max(floor, quantile(good, weights, MOST_SPENT))
    cut = min(max(wanted, floor), ceiling)
    here = float(np.interp(cut, grid, expected))

    threshold = float(expit(cut))
    accepted = scores >= threshold
    probes, stopped = choose_probes(probe_scores, accepted)
    passed = scored.logits >= cut
    wrong = int((passed & scored.malign).sum())
    if wrong == len(bad) or not (passed & ~scored.malign).any():
        what = f"all {wrong} malign" if wrong == len(bad) else f"none of {len(good)} benign"
        raise ValueError(
            f"at its threshold, {threshold:.4g}, the judge accepts {what} labels that it had not "
            "seen: it cannot tell them apart. Label more images, or look if labels are turned round"
        )
    return CalibratedThreshold(
        threshold=threshold,
        probe_thresholds=probes,
        acceptance=float((accepted & ~stopped).mean()),
        expected_malign=here,
        reached=here <= target,
        benign_kept=float(((good >= cut) * weights).sum() / weights.sum()),
        labelled=len(passed),
        delivered=int(passed.sum()),
        malign_delivered=wrong,
        upper_bound=clopper_pearson_upper(wrong, int(passed.sum()), 1 - CONFIDENCE),
        confidence=CONFIDENCE,
        pool=len(pool),
        probes_lost=float((accepted & stopped).sum() / max(accepted.sum(), 1)),
    )


def tail(logits: Numbers, at: Numbers) -> Numbers:
    """The share of an image's class above each of `at`, from few logits [n] of that class."""
    # Equal logits would give a kernel of no width.
    width = max(1.06 * float(logits.std(ddof=1)) * len(logits) ** -0.2, 0.1)
    above: Numbers = stats.norm.sf((at[:, None] - logits[None, :]) / width).mean(axis=1)
    return above


def quantile(values: Numbers, weights: Numbers, share: float) -> float:
    """The value below which `share` of the weight lies."""
    order = np.argsort(values)
    below = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][min(int(np.searchsorted(below, share)), len(values) - 1)])


def choose_probes(
    probe_scores: Numbers, accepted: NDArray[np.bool_]
) -> tuple[tuple[float, ...], NDArray[np.bool_]]:
    """(thresholds [P], stopped [M]): as high as keeps PROBE_LOSS, shared out evenly.

    `probe_scores` [M, P] are of draws, some of which the judge accepts in the end. When it accepts
    none, the probes stop none.
    """
    probes = probe_scores.shape[1]
    stopped = np.zeros(len(accepted), dtype=np.bool_)
    thresholds = []
    for probe in range(probes):
        left = np.sort(probe_scores[accepted & ~stopped, probe])
        allowed = int(PROBE_LOSS * accepted.sum()) // probes
        thresholds.append(float(left[allowed]) if len(left) else 0.0)
        stopped |= probe_scores[:, probe] < thresholds[-1]
    return tuple(thresholds), stopped
