"""Canaries: a known malign image, judged again and again under each policy in force.

That it is rejected is the one sign from outside that censoring works. One that is accepted is the
sign of failing open: a judge was swapped, a threshold fell, a comparison was turned round.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from service.policy import Overrides, Policy, resolve
from service.ports import DrawKey, DrawResult, Pixels, Scorer, Verdict
from service.verdict import decide

log = logging.getLogger("winnow.canary")

EVERY_S = 15.0
TIMEOUT_S = 10.0
SEED = 0

Observe = Callable[[Mapping[tuple[str, str], Verdict | None]], None]
"""Told the verdict by policy and judge; None where there was none."""


class Canaries:
    """The canaries of one ingress. `run` belongs to the event loop of its routes."""

    def __init__(
        self,
        scorer: Scorer,
        policies: Callable[[], Mapping[str, Policy]],
        find: Callable[[str, str], Pixels],
        observe: Observe,
        every_s: float = EVERY_S,
    ) -> None:
        """`policies` gives those in force, `find` the pixels of a model's canary by sha256 name."""
        self._scorer = scorer
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
        """Judge every canary once. A policy whose reward brought none has no canary."""
        verdicts: dict[tuple[str, str], Verdict | None] = {}
        for name, policy in self._policies().items():
            if policy.judge is None or policy.canary is None:
                continue
            verdict = None
            try:
                verdict = await self._judge(policy, policy.canary)
            except Exception as error:  # no verdict is what there is to report
                log.warning("the canary of policy %r has no verdict: %s", name, error)
            if verdict is Verdict.ACCEPTED:
                log.error("policy %r accepts its known malign canary: it fails open", name)
            verdicts[name, policy.judge] = verdict
        self._observe(verdicts)

    async def _judge(self, policy: Policy, canary: str) -> Verdict:
        """The verdict that a draw of these pixels would get from a request."""
        model = policy.settings.model
        if canary not in self._pixels:
            self._pixels[canary] = await asyncio.to_thread(self._find, model, canary)
        pixels = self._pixels[canary]
        plan = resolve(policy, Overrides(), SEED, admin=False)
        assert plan.judge is not None, "`look` passes over the others"
        scores = await self._scorer.score(model, plan.judge, [pixels], TIMEOUT_S)
        result = DrawResult(DrawKey(0, SEED, 0), pixels, 0, 0.0, 0.0)
        return decide(plan, result, scores[0])
