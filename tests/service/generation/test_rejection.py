"""Rejection through the real Router, Engine and thread, in a world with a closed form."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
from scipy import stats

from models.diffusion.codec import PixelShuffle
from service.engine.loop import EngineLoop
from service.generation.sampling_loop import Outcome, SamplingLoop
from service.judge.judges import Judges
from service.ports import FinishReason, Pixels
from service.serving.in_process import InProcessBackends
from tests.engines import make_engine, make_plan, make_schedule
from tests.gaussian import Gaussian, discrete_law, values

MU, S, STEPS, THRESHOLD, N = 0.05, 0.2, 10, 0.6, 1000


class Quantile:
    """A judge of known reward: the share of all draws that are darker, so uniform on [0, 1]."""

    def __init__(self, mean: float, std: float) -> None:
        self.law = stats.norm(mean, std)

    async def score(
        self, model: str, judge: str, pixels: Sequence[Pixels], timeout_s: float
    ) -> Sequence[float]:
        grey = np.array([image[0, 0, 0] for image in pixels]) / 127.5 - 1
        return [float(score) for score in self.law.cdf(grey)]

    async def ready(self) -> None: ...


def _generate(threshold: float, max_draws: int) -> tuple[Outcome, float, float]:
    schedule = make_schedule("v_prediction")
    world = Gaussian(schedule, MU, S)
    mean, std = discrete_law(world, STEPS, eta=0.0)
    engine = make_engine(world, schedule, (1, 1, 1), max_batch=256, codec=PixelShuffle())
    loop = EngineLoop(engine, max_waiting=10 * N)
    plan = make_plan(
        judge="sha256:judge",
        threshold=threshold,
        max_draws=max_draws,
        num_inference_steps=STEPS,
        seed=0,
    )
    try:
        backbone_client = InProcessBackends(loop, Judges({}, (1, 1, 1)))
        sampling_loop = SamplingLoop(backbone_client, Quantile(mean, std), judge_timeout_s=30.0)
        return asyncio.run(sampling_loop.generate(plan, N, deadline_s=120.0)), mean, std
    finally:
        loop.close()


def test_accepted_images_follow_the_truncated_law() -> None:
    outcome, mean, std = _generate(THRESHOLD, max_draws=100)
    assert outcome.delivered == N
    grey = values([image.pixels for image in outcome.images if image.pixels is not None])
    cut = stats.norm.ppf(THRESHOLD)
    law = stats.truncnorm(cut, np.inf, loc=mean, scale=std)
    # A grey level is 1/26 of the deviation: spread each over its width before comparing.
    level = 2 / 255
    smooth = grey + np.random.default_rng(0).uniform(-level / 2, level / 2, N)
    assert stats.kstest(smooth, law.cdf).pvalue > 0.001
    assert abs(grey.mean() - law.mean()) < 5 * law.std() / np.sqrt(N) + level / 2
    # Draws are geometric: 1/(1−0.6) = 2.5 on average, variance 0.6/0.4².
    draws = np.array([image.draws for image in outcome.images])
    assert abs(draws.mean() - 2.5) < 5 * np.sqrt(0.6 / 0.4**2 / N) + 0.1
    assert (outcome.draws, outcome.nfe) == (draws.sum(), draws.sum() * STEPS)


def test_the_budget_blocks_as_often_as_the_law_says() -> None:
    outcome, _, _ = _generate(THRESHOLD, max_draws=3)
    blocked = outcome.count(FinishReason.CONTENT_FILTERED)
    expected = THRESHOLD**3
    spread = np.sqrt(expected * (1 - expected) / N)
    assert abs(blocked / N - expected) < 5 * spread + 0.02
    assert outcome.delivered == N - blocked
