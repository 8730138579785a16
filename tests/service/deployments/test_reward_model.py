"""The judges of one batch, without a cluster: what one of them breaks is its own requests'."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from service.deployments.reward_model import RewardModel
from service.errors import CensorUnavailable
from service.metrics import JudgeMetrics
from service.reward import Judges
from tests.service.test_reward import SHAPE, Always

IMAGE = np.zeros(SHAPE, np.uint8)


class Broken:
    """A judge that passed its canary and fails now."""

    def score(self, pixels: Any) -> Any:
        raise RuntimeError("out of memory")


class Short:
    """A judge that forgets an image."""

    def score(self, pixels: Any) -> Any:
        return np.full(len(pixels) - 1, 0.5)


@pytest.mark.parametrize("bad", [Broken(), Short()])
def test_a_judge_that_fails_fails_its_own_requests_alone(bad: Any) -> None:
    model = RewardModel.__new__(RewardModel)
    model._judges = Judges({"good": Always(0.75), "bad": bad}, SHAPE)
    model._metrics = JudgeMetrics("tiny")
    waiting: list[Any] = []
    answers: list[Any] = []

    async def batched(request: Any) -> Any:
        """As Serve's decorator, which works in a replica alone: one call for all that wait."""
        place = len(waiting)
        waiting.append(request)
        await asyncio.sleep(0)
        if place == 0:
            answers.extend(await RewardModel._batched.__wrapped__(model, waiting))  # type: ignore[attr-defined]
        return answers[place]

    model._batched = batched  # type: ignore[method-assign]

    async def together() -> list[Any]:
        wanted = ["good", "bad", "good", "bad"]
        calls = [model.score(judge, [IMAGE, IMAGE]) for judge in wanted]
        return await asyncio.gather(*calls, return_exceptions=True)

    found = asyncio.run(together())
    assert [found[0], found[2]] == [[0.75, 0.75], [0.75, 0.75]]
    for fault in (found[1], found[3]):
        assert isinstance(fault, CensorUnavailable)
        assert "judge bad failed" in str(fault)
