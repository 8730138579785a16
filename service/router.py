"""One loop for every plan: ask for draws, get verdicts, until n images are accepted.

The router decides how many draws an image gets; the engine decides when they run. Image i has seed
`plan.seed + i`, and its draws are tried in order, so the lowest accepted draw wins.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field

from service.errors import BackendUnavailable, CensorUnavailable, WinnowError
from service.ports import (
    Drawer,
    DrawKey,
    DrawResult,
    FinishReason,
    Judged,
    Pixels,
    SamplingPlan,
    Scorer,
    Verdict,
)
from service.verdict import decide

log = logging.getLogger("winnow.router")

RETRY_S = (0.1, 0.2, 0.5, 1.0)
"""Waits before asking a failed backbone again; the last one repeats until the deadline."""

Observer = Callable[[SamplingPlan, Verdict, float | None], None]


@dataclass
class ImageOutcome:
    """One entry of the response. `draws` were judged; the next one is number `draws`.

    `pixels` is set if and only if `finish_reason` is SUCCESS.
    """

    index: int
    seed: int
    finish_reason: FinishReason | None = None
    draws: int = 0
    pixels: Pixels | None = None
    score: float | None = None


@dataclass
class Outcome:
    """What a request came to. Times in seconds; `nfe` includes draws that were rejected.

    `judged` has every settled draw, in order. `admitted` is true once a draw came back, `judging`
    while a judge owes scores.
    """

    plan: SamplingPlan
    images: list[ImageOutcome]
    draws: int = 0
    nfe: int = 0
    queue_s: float = 0.0
    denoise_s: float = 0.0
    judge_s: float = 0.0
    admitted: bool = False
    judging: bool = False
    judged: list[Judged] = field(default_factory=list)

    @property
    def delivered(self) -> int:
        """How many images leave."""
        return sum(image.pixels is not None for image in self.images)

    def count(self, reason: FinishReason) -> int:
        """How many entries ended for this reason."""
        return sum(image.finish_reason is reason for image in self.images)


class Router:
    """Runs plans against a backbone and a judge."""

    def __init__(
        self,
        drawer: Drawer,
        scorer: Scorer,
        judge_timeout_s: float,
        observe: Observer = lambda plan, verdict, score: None,
    ) -> None:
        self._drawer = drawer
        self._scorer = scorer
        self._judge_timeout_s = judge_timeout_s
        self._observe = observe

    async def generate(
        self, plan: SamplingPlan, n: int, deadline_s: float, tenant: str = ""
    ) -> Outcome:
        """Draw until every one of `n` images is accepted or out of budget, or time is up.

        Raises CensorUnavailable as soon as a judge fails, and BackendUnavailable when nothing was
        delivered by the deadline because no backbone answered. A dead backbone is otherwise asked
        again: a draw is a function of its seed, so asking twice gives the same image.
        """
        outcome = Outcome(plan, [ImageOutcome(i, plan.seed + i) for i in range(n)])
        deadline = time.monotonic() + deadline_s
        failures = 0
        fault: BackendUnavailable | None = None
        try:
            async with asyncio.timeout(deadline_s) as timer:
                while todo := [image for image in outcome.images if image.finish_reason is None]:
                    try:
                        await self._round(outcome, todo, deadline, tenant)
                        failures, fault = 0, None
                    except BackendUnavailable as error:
                        log.warning("asking the backbone again: %s", error)
                        fault = error
                        await asyncio.sleep(RETRY_S[min(failures, len(RETRY_S) - 1)])
                        failures += 1
        except TimeoutError:
            if not timer.expired():
                raise
            if outcome.judging:
                raise CensorUnavailable("the judge did not answer before the deadline") from None
            for image in outcome.images:
                image.finish_reason = image.finish_reason or FinishReason.DEADLINE
            if fault and not outcome.delivered:
                raise fault from None
        return outcome

    async def _round(
        self, outcome: Outcome, todo: list[ImageOutcome], deadline: float, tenant: str
    ) -> None:
        plan = outcome.plan
        keys = [
            DrawKey(image.index, image.seed, image.draws, fresh=not outcome.admitted)
            for image in todo
        ]
        waiting = set(keys)
        queue_s = denoise_s = 0.0
        timeout_s = deadline - time.monotonic()
        try:
            async with aclosing(self._drawer.draw(plan, keys, timeout_s, tenant)) as groups:
                async for group in groups:
                    outcome.admitted = True
                    for result, score in zip(group, await self._score(outcome, group), strict=True):
                        waiting.remove(result.key)
                        queue_s = max(queue_s, result.queue_s)
                        denoise_s = max(denoise_s, result.denoise_s)
                        self._settle(outcome, result, score)
            if waiting:
                raise BackendUnavailable("the backbone ended before all draws were made")
        finally:
            outcome.queue_s += queue_s
            outcome.denoise_s += denoise_s
            for _ in waiting:
                self._observe(plan, Verdict.CANCELLED, None)

    async def _score(self, outcome: Outcome, group: list[DrawResult]) -> list[float | None]:
        """The judge's score of each draw; None where the plan has no judge or no image exists."""
        plan = outcome.plan
        pixels = [result.pixels for result in group if result.pixels is not None]
        if plan.judge is None or not pixels:
            return [None] * len(group)
        started = time.monotonic()
        outcome.judging = True
        try:
            scores = list(
                await self._scorer.score(plan.model, plan.judge, pixels, self._judge_timeout_s)
            )
        except WinnowError:
            raise
        except Exception as error:  # whatever went wrong, nothing was judged
            log.warning("the judge failed", exc_info=error)
            raise CensorUnavailable("the judge failed; the log holds its cause") from error
        outcome.judging = False
        outcome.judge_s += time.monotonic() - started
        if len(scores) != len(pixels):
            raise CensorUnavailable(
                f"the judge returned {len(scores)} scores for {len(pixels)} images"
            )
        remaining = iter(scores)
        return [None if result.pixels is None else next(remaining) for result in group]

    def _settle(self, outcome: Outcome, result: DrawResult, score: float | None) -> None:
        image = outcome.images[result.key.index]
        verdict = decide(outcome.plan, result, score)
        self._observe(outcome.plan, verdict, score)
        outcome.judged.append(Judged(result.key, verdict, score, result.probe_scores, result.nfe))
        outcome.draws += 1
        outcome.nfe += result.nfe
        image.draws = result.key.draw + 1
        image.score = score
        if verdict is Verdict.ACCEPTED:
            image.pixels, image.finish_reason = result.pixels, FinishReason.SUCCESS
        elif image.draws >= outcome.plan.max_draws:
            image.finish_reason = (
                FinishReason.ERROR if verdict is Verdict.FAILED else FinishReason.CONTENT_FILTERED
            )
