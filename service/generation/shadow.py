"""A shadow: another version's judge scores what was judged already, and decides nothing.

It works after the response has gone, one call at a time, and rests as long as it worked. What comes
faster than that is dropped.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from service.judge.verdict import usable
from service.policies.policy import Policy
from service.ports import JudgeClient, Pixels, SamplingPlan, Verdict

log = logging.getLogger("winnow.shadow")

KEEP = 32
"""Draws of one request that are kept for the shadow."""

WAITING = 64
"""Requests that may wait for the shadow."""

SLOW_S = 1.0
REST = 10
"""A judge that took longer than this to fail holds up the shadows of other policies: it is not
asked again for so many times as long."""

Observe = Callable[[str, str, float, Verdict, Verdict], None]
"""Told of the policy, the shadow's judge and score, its verdict, and the one that counted."""


@dataclass
class JudgedDraws:
    """Gathers what was judged in one request, as many draws as are kept; `lost` counts the rest."""

    seen: list[tuple[Pixels, Verdict]] = field(default_factory=list)
    lost: int = 0

    def __call__(self, pixels: Pixels, verdict: Verdict) -> None:
        """See `sampling_loop.JudgedCallback`."""
        if len(self.seen) < KEEP:
            self.seen.append((pixels, verdict))
        else:
            self.lost += 1


@dataclass(frozen=True)
class _QueuedDraws:
    candidate: Policy
    threshold: float
    seen: Sequence[tuple[Pixels, Verdict]]


class Shadows:
    """The shadows of all policies of one ingress. Belongs to the event loop of its first `offer`.

    `timeout_s` is for one call of a judge.
    """

    def __init__(
        self,
        judge_client: JudgeClient,
        observe: Observe,
        dropped: Callable[[str, int], None],
        timeout_s: float = 10.0,
        slow_s: float = SLOW_S,
    ) -> None:
        self._judge_client = judge_client
        self._observe = observe
        self._dropped = dropped
        self._timeout_s = timeout_s
        self._slow_s = slow_s
        self._queue: asyncio.Queue[_QueuedDraws] = asyncio.Queue(WAITING)
        self._worker: asyncio.Task[None] | None = None
        self._resting: dict[str, float] = {}

    async def offer(self, candidate: Policy, plan: SamplingPlan, judged_draws: JudgedDraws) -> None:
        """Let a version score what was judged under `plan`, when there is time."""
        if judged_draws.lost:
            self._dropped(candidate.name, judged_draws.lost)
        points = candidate.points(plan.condition.size)
        if not judged_draws.seen or candidate.judge is None or not points:
            return
        if self._is_paused(candidate.judge):
            self._dropped(candidate.name, len(judged_draws.seen))
            return
        steps = plan.method.num_inference_steps
        here = points.get(steps)
        # Of other step counts than its own it takes the strictest threshold, as moderations do.
        thresholds = [here] if here else points.values()
        threshold = max(one.threshold for one in thresholds)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.ensure_future(self._work())
        try:
            self._queue.put_nowait(_QueuedDraws(candidate, threshold, judged_draws.seen))
        except asyncio.QueueFull:
            self._dropped(candidate.name, len(judged_draws.seen))

    async def _work(self) -> None:
        while True:
            work = await self._queue.get()
            if self._is_paused(str(work.candidate.judge)):
                self._dropped(work.candidate.name, len(work.seen))
                continue
            started = time.monotonic()
            try:
                await self._score(work)
            except Exception as error:  # it decides nothing: whatever went wrong may be dropped
                log.warning("the shadow of policy %r failed: %s", work.candidate.name, error)
                self._dropped(work.candidate.name, len(work.seen))
                took = time.monotonic() - started
                if took >= self._slow_s:
                    self._resting[str(work.candidate.judge)] = time.monotonic() + REST * took
            # The judge in force shares its replica: at most half of the time is the shadow's.
            await asyncio.sleep(time.monotonic() - started)

    def _is_paused(self, judge: str) -> bool:
        return time.monotonic() < self._resting.get(judge, 0.0)

    async def _score(self, work: _QueuedDraws) -> None:
        candidate = work.candidate
        assert candidate.judge is not None, "`offer` lets no other in"
        pixels = [image for image, _ in work.seen]
        scores = await self._judge_client.score(
            candidate.settings.model, candidate.judge, pixels, self._timeout_s
        )
        verdicts = [
            Verdict.ACCEPTED if usable(score) >= work.threshold else Verdict.REJECTED
            for score in scores
        ]
        for (_, live), score, verdict in zip(work.seen, scores, verdicts, strict=True):
            self._observe(candidate.name, candidate.judge, score, verdict, live)
