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

from service.policy import Policy
from service.ports import Pixels, SamplingPlan, Scorer, Verdict
from service.verdict import usable

log = logging.getLogger("winnow.shadow")

KEEP = 32
"""Draws of one request that are kept for the shadow."""

WAITING = 64
"""Requests that may wait for the shadow."""

Observe = Callable[[str, str, float, Verdict, Verdict], None]
"""Told of the policy, the shadow's judge and score, its verdict, and the one that counted."""


@dataclass
class Witness:
    """Gathers what was judged in one request, as many draws as are kept; `lost` counts the rest."""

    seen: list[tuple[Pixels, Verdict]] = field(default_factory=list)
    lost: int = 0

    def __call__(self, pixels: Pixels, verdict: Verdict) -> None:
        """See `router.Witness`."""
        if len(self.seen) < KEEP:
            self.seen.append((pixels, verdict))
        else:
            self.lost += 1


@dataclass(frozen=True)
class _Work:
    candidate: Policy
    threshold: float
    seen: Sequence[tuple[Pixels, Verdict]]


class Shadows:
    """The shadows of all policies of one ingress. Belongs to the event loop of its first `offer`.

    `timeout_s` is for one call of a judge.
    """

    def __init__(
        self,
        scorer: Scorer,
        observe: Observe,
        dropped: Callable[[str, int], None],
        timeout_s: float = 10.0,
    ) -> None:
        self._scorer = scorer
        self._observe = observe
        self._dropped = dropped
        self._timeout_s = timeout_s
        self._queue: asyncio.Queue[_Work] = asyncio.Queue(WAITING)
        self._worker: asyncio.Task[None] | None = None

    async def offer(self, candidate: Policy, plan: SamplingPlan, witness: Witness) -> None:
        """Let a version score what was judged under `plan`, when there is time."""
        if witness.lost:
            self._dropped(candidate.name, witness.lost)
        if not witness.seen or candidate.judge is None:
            return
        steps = plan.method.num_inference_steps
        here = candidate.operating.get(steps)
        # Of other step counts than its own it takes the strictest threshold, as moderations do.
        thresholds = [here] if here else candidate.operating.values()
        threshold = max(one.threshold for one in thresholds)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.ensure_future(self._work())
        try:
            self._queue.put_nowait(_Work(candidate, threshold, witness.seen))
        except asyncio.QueueFull:
            self._dropped(candidate.name, len(witness.seen))

    async def _work(self) -> None:
        while True:
            work = await self._queue.get()
            started = time.monotonic()
            try:
                await self._score(work)
            except Exception as error:  # it decides nothing: whatever went wrong may be dropped
                log.warning("the shadow of policy %r failed: %s", work.candidate.name, error)
                self._dropped(work.candidate.name, len(work.seen))
            # The judge in force shares its replica: at most half of the time is the shadow's.
            await asyncio.sleep(time.monotonic() - started)

    async def _score(self, work: _Work) -> None:
        candidate = work.candidate
        assert candidate.judge is not None, "`offer` lets no other in"
        pixels = [image for image, _ in work.seen]
        scores = await self._scorer.score(
            candidate.settings.model, candidate.judge, pixels, self._timeout_s
        )
        verdicts = [
            Verdict.ACCEPTED if usable(score) >= work.threshold else Verdict.REJECTED
            for score in scores
        ]
        for (_, live), score, verdict in zip(work.seen, scores, verdicts, strict=True):
            self._observe(candidate.name, candidate.judge, score, verdict, live)
