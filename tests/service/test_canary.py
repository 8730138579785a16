"""A canary is judged as a draw would be, by the verdict that counts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models import bundle as bundles
from service.canary import Canaries
from service.config import Settings
from service.errors import CensorUnavailable, StoreUnavailable
from service.pinning import pin
from service.policy import Policy
from service.ports import Pixels, Verdict
from tests.bundles import THRESHOLD, settings, write_bundle

PIXELS = np.zeros((4, 6, 1), np.uint8)


class Judge:
    """Answers what it is told to, one score for each replica."""

    def __init__(self, *answers: float | Exception | None) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def __call__(self, model: str, judge: str, pixels: Pixels) -> Sequence[float | None]:
        self.asked.append(judge)
        for answer in self.answers:
            if isinstance(answer, Exception):
                raise answer
        return [answer for answer in self.answers if not isinstance(answer, Exception)]


@pytest.fixture
def policies(tmp_path: Path) -> dict[str, Policy]:
    folder = str(write_bundle(tmp_path / "tiny"))
    found = pin(Settings.model_validate(settings(folder)), {"tiny": bundles.load(folder)})
    return {name: replace(policy, canary="sha256:c") for name, policy in found.items()}


def _look(
    policies: dict[str, Policy], judge: Judge, find: object = None
) -> dict[tuple[str, str], Verdict | None]:
    seen: dict[tuple[str, str], Verdict | None] = {}

    def pixels(model: str, name: str) -> Pixels:
        assert (model, name) == ("tiny", "sha256:c")
        if isinstance(find, Exception):
            raise find
        return PIXELS

    asyncio.run(Canaries(judge, lambda: policies, pixels, seen.update).look())
    return seen


@pytest.mark.parametrize(
    ("score", "verdict"),
    [
        (0.0, Verdict.REJECTED),
        (THRESHOLD[50] - 0.01, Verdict.REJECTED),
        (THRESHOLD[50], Verdict.ACCEPTED),
        (float("nan"), None),
        (CensorUnavailable("down"), None),
    ],
)
def test_a_canary_gets_the_verdict_that_a_draw_would(
    policies: dict[str, Policy], score: float | Exception, verdict: Verdict | None
) -> None:
    judge = Judge(score)
    assert _look(policies, judge) == {("bright", policies["bright"].judge): verdict}
    assert judge.asked == [policies["bright"].judge], "a policy without a judge has no canary"


def test_one_judge_of_two_that_accepts_it_is_enough(policies: dict[str, Policy]) -> None:
    for scores in ((0.0, 1.0), (1.0, 0.0)):
        assert list(_look(policies, Judge(*scores)).values()) == [Verdict.ACCEPTED]


@pytest.mark.parametrize("silent", [None, float("nan")])
def test_a_judge_that_says_nothing_hides_no_other(
    policies: dict[str, Policy], silent: float | None
) -> None:
    assert list(_look(policies, Judge(silent, 1.0)).values()) == [Verdict.ACCEPTED]
    assert list(_look(policies, Judge(0.0, silent)).values()) == [None]
    assert list(_look(policies, Judge()).values()) == [None]


def test_a_canary_that_is_gone_has_no_verdict(policies: dict[str, Policy]) -> None:
    seen = _look(policies, Judge(0.0), StoreUnavailable("gone"))
    assert list(seen.values()) == [None]


def test_a_reward_that_brought_none_has_none(policies: dict[str, Policy]) -> None:
    without = {name: replace(policy, canary=None) for name, policy in policies.items()}
    assert _look(without, Judge(0.0)) == {}


def test_every_shipped_reward_rejects_its_canary() -> None:
    """Through the shipped judges, at the shipped thresholds."""
    from models.rewards.judge import OnnxJudge
    from service.encode import from_png

    bundle = bundles.load("mnist-sevens")
    for name, reward in bundle.manifest.rewards.items():
        assert reward.canary is not None
        pixels = from_png(bundle.path(reward.canary).read_bytes())
        score = OnnxJudge(bundle.path(reward.judge)).score(pixels[None])[0]
        thresholds = [
            entry.threshold
            for entries in bundle.manifest.calibrations.values()
            for entry in entries
            if entry.sampling.judge == bundle.sha256(reward.judge)
        ]
        assert thresholds, name
        assert score < min(thresholds) / 2, name
