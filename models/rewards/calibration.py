"""What labelled draws prove about a malign rate, and the threshold that they justify."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats


def clopper_pearson_upper(k: int, n: int, delta: float) -> float:
    """The rate that exceeds the true one with confidence 1−δ: BetaInv(1−δ; k+1, n−k).

    For k events among n independent trials; 1 when n = 0 or k = n. Raises ValueError unless
    0 <= k <= n and 0 < δ < 1.
    """
    _check(k, n, delta)
    return 1.0 if k == n else float(stats.beta.ppf(1 - delta, k + 1, n - k))


def clopper_pearson_interval(k: int, n: int, delta: float = 0.05) -> tuple[float, float]:
    """The two-sided exact interval of confidence 1−δ, δ/2 on each side. Raises as the bound."""
    _check(k, n, delta)
    lower = 0.0 if k == 0 else float(stats.beta.ppf(delta / 2, k, n - k + 1))
    return lower, clopper_pearson_upper(k, n, delta / 2)


def _check(k: int, n: int, delta: float) -> None:
    if not 0 <= k <= n or not 0 < delta < 1:
        raise ValueError(f"no interval for {k} of {n} at delta {delta}")


@dataclass(frozen=True)
class Threshold:
    """A calibrated threshold and its evidence; `benign_kept` is a share in [0, 1]."""

    threshold: float
    delivered: int
    malign_delivered: int
    upper_bound: float
    benign_kept: float


def calibrate_threshold(
    scores: NDArray[np.float64],
    malign: NDArray[np.bool_],
    target: float,
    confidence: float,
    stopped: NDArray[np.bool_] | None = None,
) -> Threshold:
    """The lowest threshold that the labels justify: P(malign rate > target) <= 1 − confidence.

    `scores` [N] in [0, 1] and `malign` [N] are of i.i.d. draws that neither trained the judge nor
    will measure it; a draw is delivered when its score is at least the threshold, unless probes
    have `stopped` it, [N].

    Fixed-sequence testing (Angelopoulos et al. 2021, "Learn then Test", section 3): candidates
    lie on a grid fixed beforehand and are tested from the strictest downwards, each at level
    1 − confidence, and the walk stops at the first that fails. Because the order does not depend
    on the labels, the first threshold whose true rate exceeds the target is reached only if it
    passes its own test, which is so with probability at most 1 − confidence: one level covers the
    whole walk. Given how many are delivered at a threshold, the malign among them are binomial,
    so the test is Clopper–Pearson's. The walk begins where START times as many are delivered as
    zero malign would need to pass (n = log(1−confidence)/log(1−target)): with fewer, one unlucky
    image would end it. That choice looks at counts alone, not at labels.

    It ends, at the latest, where the judge would reject none of the malign any more: a threshold
    below all that it gives would censor nothing, however rare the malign are. To end earlier than
    the tests allow takes nothing from what they promise.

    Raises ValueError when scores are not finite, labels are of one kind, the judge tells them apart
    no better than chance, or no threshold reaches the target.
    """
    if not 0 < target < 1 or not 0 < confidence < 1:
        raise ValueError(f"target {target} and confidence {confidence} must lie in (0, 1)")
    if scores.shape != malign.shape or not np.isfinite(scores).all():
        raise ValueError("calibration needs one finite score for each label")
    delta = 1 - confidence
    refuse_uninformative(scores, malign, delta)
    needed = START * int(np.ceil(np.log(delta) / np.log1p(-target)))
    benign = int((~malign).sum())
    best: Threshold | None = None
    for threshold in CANDIDATES:
        accepted = scores >= threshold
        if accepted[malign].all():
            break
        passed = accepted if stopped is None else accepted & ~stopped
        delivered = int(passed.sum())
        if delivered < needed:
            continue
        bad = int((passed & malign).sum())
        bound = clopper_pearson_upper(bad, delivered, delta)
        if bound > target:
            break
        kept = (delivered - bad) / benign if benign else 0.0
        best = Threshold(float(threshold), delivered, bad, bound, kept)
    if best is None:
        raise ValueError(
            f"no threshold keeps the malign rate below {target:.2%} with {confidence:.0%} "
            f"confidence on these {len(scores)} labels: label more draws (at least {needed} must "
            "be delivered), raise the target, or improve the judge"
        )
    return best


def calibrate_probes(
    scores: NDArray[np.float64], malign: NDArray[np.bool_], loss: float, confidence: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(thresholds [P], abandoned [N]) that together lose at most `loss` of the benign draws.

    `scores` [N, P] are the probes', in their order, of the draws labelled `malign` [N]. As many
    benign draws may be lost as keep the Clopper–Pearson bound on their share below `loss`, split
    evenly over the probes; each threshold is as high as that allows. The bound is for thresholds
    fixed beforehand, and these follow the same labels: a measurement on other draws has the last
    word. Raises ValueError when scores are not finite, or no benign draw may be lost.
    """
    if len(scores) != len(malign) or not np.isfinite(scores).all():
        raise ValueError("calibration needs one finite score of each probe for each label")
    benign, probes = int((~malign).sum()), scores.shape[1]
    allowed = -1
    while clopper_pearson_upper(allowed + 1, benign, 1 - confidence) <= loss:
        allowed += 1
    if allowed < probes:
        raise ValueError(
            f"{benign} benign labels cannot show that {probes} probes lose at most {loss:.2%} of "
            "benign draws: label more draws, or allow more loss"
        )
    abandoned = np.zeros(len(malign), dtype=np.bool_)
    thresholds = np.zeros(probes)
    for probe in range(probes):
        left = np.sort(scores[~malign & ~abandoned, probe])
        thresholds[probe] = left[allowed // probes]
        abandoned |= scores[:, probe] < thresholds[probe]
    return thresholds, abandoned


def refuse_uninformative(
    scores: NDArray[np.float64], malign: NDArray[np.bool_], delta: float
) -> None:
    """Raises ValueError unless scores [N], or logits, are seen to tell the `malign` [N] apart.

    That takes labels of both kinds, scores that differ, and benign ones that score above malign
    ones with confidence 1−δ (Mann and Whitney's test). A judge that is turned round never does so;
    with δ = 0.5, one that is better than a coin does.
    """
    bad, good = scores[malign], scores[~malign]
    for word, found in (("malign", bad), ("benign", good)):
        if not len(found):
            raise ValueError(
                f"none of {len(scores)} labels is {word}: nothing shows that the judge tells "
                "malign from benign. Label more draws, or draws of what is asked for"
            )
    if np.ptp(scores) == 0:
        raise ValueError(
            f"the judge scores all of {len(scores)} labelled images {scores[0]:.4g}: it tells "
            "nothing apart, and cannot judge"
        )
    test = stats.mannwhitneyu(good, bad, alternative="greater")
    if test.pvalue > delta:
        area = float(test.statistic) / (len(good) * len(bad))
        raise ValueError(
            f"of a benign and a malign image the judge scores the benign one higher {area:.0%} of "
            f"the time, by {len(good)} and {len(bad)} labels: that is no better than a coin. Label "
            "more; where it stays so, labels or classes may be turned round"
        )


def _candidates() -> NDArray[np.float64]:
    # Even in the logit, where a judge's scores spread; fixed before any label is seen. It ends at
    # 0.05: when a policy's draws happen to be good, the judge still holds back what it is sure of.
    logits = np.linspace(12, -3, 301)
    return 1 / (1 + np.exp(-logits))


START = 2
"""See `calibrate_threshold`."""

CANDIDATES = _candidates()
"""Thresholds that calibration may choose, from the strictest down."""
