"""Canaries: a known malign image, judged again and again under each policy in force.

That it is rejected is the one sign from outside that censoring works. One that is accepted is the
sign of failing open: a judge was swapped, a threshold fell, a comparison was turned round.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

from service.errors import CensorUnavailable
from service.policy import Overrides, Policy, resolve
from service.ports import DrawKey, DrawResult, Pixels, SamplingPlan, Verdict
from service.verdict import decide

log = logging.getLogger("winnow.canary")

EVERY_S = 15.0
TIMEOUT_S = 10.0
SEED = 0
WORST_FIRST = (Verdict.ACCEPTED, None, Verdict.REJECTED)

Score = Callable[[str, str, Pixels], Awaitable[Sequence[float | None]]]
"""Scores pixels with a model's judge, by sha256 name: the score of every replica of it, None of one
that gave none."""

Observe = Callable[[Mapping[tuple[str, str], Verdict | None]], None]
"""Told the verdict by policy and judge; None where there was none."""


class Canaries:
    """The canaries of one ingress. `run` belongs to the event loop of its routes."""

    def __init__(
        self,
        score: Score,
        policies: Callable[[], Mapping[str, Policy]],
        find: Callable[[str, str], Pixels],
        observe: Observe,
        every_s: float = EVERY_S,
    ) -> None:
        """`policies` gives those in force, `find` the pixels of a model's canary by sha256 name."""
        self._score = score
        self._policies = policies
        self._find = find
        self._observe = observe
        self._every_s = every_s
        self._pixels: dict[str, Pixels] = {}

    async def run(self) -> None:
        """Look, and look again, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._every_s)

    async def look(self) -> None:
        """Judge every canary once, by every judge. A policy whose reward brought none has none."""
        found = [policy for policy in self._policies().values() if policy.judge and policy.canary]
        verdicts = await asyncio.gather(*(self._look(policy) for policy in found))
        self._observe(
            {
                (policy.name, str(policy.judge)): verdict
                for policy, verdict in zip(found, verdicts, strict=True)
            }
        )

    async def _look(self, policy: Policy) -> Verdict | None:
        verdict = None
        try:
            async with asyncio.timeout(TIMEOUT_S):
                verdict = await self._judge(policy)
        except Exception as error:  # no verdict is what there is to report
            log.warning("the canary of policy %r has no verdict: %r", policy.name, error)
        if verdict is Verdict.ACCEPTED:
            log.error("policy %r accepts its known malign canary: it fails open", policy.name)
        return verdict

    async def _judge(self, policy: Policy) -> Verdict | None:
        """The verdict that a draw of these pixels would get; the worst of what the judges say.

        One that accepts is worse than one that says nothing. Raises CensorUnavailable without any.
        """
        model, plan = policy.settings.model, resolve(policy, Overrides(), SEED, admin=False)
        name, judge = str(policy.canary), str(plan.judge)
        if name not in self._pixels:
            self._pixels[name] = await asyncio.to_thread(self._find, model, name)
        pixels = self._pixels[name]
        result = DrawResult(DrawKey(0, SEED, 0), pixels, 0, 0.0, 0.0)
        scores = await self._score(model, judge, pixels)
        verdicts = {_verdict(plan, result, score) for score in scores}
        if not verdicts:
            raise CensorUnavailable("no judge runs")
        return next(one for one in WORST_FIRST if one in verdicts)


def _verdict(plan: SamplingPlan, result: DrawResult, score: float | None) -> Verdict | None:
    try:
        return decide(plan, result, score)
    except CensorUnavailable:
        return None
