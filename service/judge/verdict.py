"""The one place that decides if an image may leave."""

from __future__ import annotations

import math

from service.errors import CensorUnavailable
from service.ports import DrawResult, SamplingPlan, Verdict


def decide(plan: SamplingPlan, result: DrawResult, score: float | None) -> Verdict:
    """The verdict on a finished draw. Fails closed: no usable score, no verdict, no image.

    `score` is the judge's reward in [0, 1], or None when the plan names no judge or the draw made
    no image. Raises CensorUnavailable when a judge is named and its score is missing, NaN or out
    of range.
    """
    if result.abandoned:
        return Verdict.ABANDONED
    if result.pixels is None:
        return Verdict.FAILED
    if plan.judge is None:
        return Verdict.ACCEPTED
    if plan.threshold is None or not 0 < plan.threshold <= 1:
        raise CensorUnavailable(f"policy {plan.policy!r} has no usable threshold")
    return Verdict.ACCEPTED if usable(score) >= plan.threshold else Verdict.REJECTED


def usable(score: float | None) -> float:
    """The score, if it is a number in [0, 1]. Raises CensorUnavailable otherwise."""
    if score is None or math.isnan(score) or not 0 <= score <= 1:
        raise CensorUnavailable(f"the judge returned {score} instead of a score in [0, 1]")
    return score
