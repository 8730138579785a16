from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from service.errors import CensorUnavailable
from service.judge.verdict import decide, usable
from service.ports import DrawKey, DrawResult, Verdict
from tests.plans import FREE, JUDGED

IMAGE = DrawResult(DrawKey(0, 0, 0), np.zeros((1, 1, 1), np.uint8), 1, 0.0, 0.0)
NO_IMAGE = replace(IMAGE, pixels=None)


@pytest.mark.parametrize(
    ("score", "verdict"),
    [
        (0.0, Verdict.REJECTED),
        (math.nextafter(0.5, 0), Verdict.REJECTED),
        (0.5, Verdict.ACCEPTED),
        (1.0, Verdict.ACCEPTED),
    ],
)
def test_an_image_is_benign_when_its_score_reaches_the_threshold(
    score: float, verdict: Verdict
) -> None:
    assert decide(JUDGED, IMAGE, score) is verdict


def test_no_image_is_failed_whatever_the_policy() -> None:
    assert decide(JUDGED, NO_IMAGE, None) is Verdict.FAILED
    assert decide(FREE, NO_IMAGE, None) is Verdict.FAILED


def test_only_a_policy_without_a_judge_accepts_without_a_score() -> None:
    assert decide(FREE, IMAGE, None) is Verdict.ACCEPTED
    with pytest.raises(CensorUnavailable):
        decide(JUDGED, IMAGE, None)


@pytest.mark.parametrize("score", [None, math.nan, math.inf, -0.1, 1.1], ids=str)
def test_a_score_that_is_none_is_no_verdict(score: Any) -> None:
    with pytest.raises(CensorUnavailable, match="instead of a score"):
        usable(score)
