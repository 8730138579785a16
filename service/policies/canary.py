"""Canaries: a known malign image, judged again and again under each policy in force.

That it is rejected is the one sign from outside that censoring works. One that is accepted is the
sign of failing open: a judge was swapped, a threshold fell, a comparison was turned round. Then
nothing leaves under the policy until it is rejected again.

Before its first use a policy stands a trial, canary or none: what its judge has been seen to score
must lie on both sides of its threshold. So what cannot say no never decides, whether it came by a
bundle, a promotion, or from the store.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

import numpy as np

from models.rewards.judge_check import KnownImages, TrialScores
from service.errors import BlobMissing, CensorUnavailable
from service.judge.verdict import decide
from service.policies.policy import Overrides, Policy, resolve
from service.ports import DrawKey, DrawResult, Pixels, SamplingPlan, Verdict

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

Networks = tuple[str, str | None, str | None, str | None]
"""What a trial depends on: the model, and the sha256 names of judge, canary and control."""


class Canaries:
    """The canaries of one ingress. All of it belongs to the event loop of its routes."""

    def __init__(
        self,
        score: Score,
        policies: Callable[[], Mapping[str, Policy]],
        find: Callable[[str, str], Pixels],
        shape: Callable[[str], tuple[int, int, int]],
        observe: Observe,
        every_s: float = EVERY_S,
    ) -> None:
        """`policies` gives those in force, `find` the pixels of a model's canary or control by
        sha256 name, and `shape` is [H, W, C] of a model's images."""
        self._score = score
        self._policies = policies
        self._find = find
        self._shape = shape
        self._observe = observe
        self._every_s = every_s
        self._pixels: dict[str, Pixels] = {}
        self._seen: dict[Networks, TrialScores] = {}
        self._trials: dict[Networks, asyncio.Task[TrialScores]] = {}
        self._verdicts: dict[tuple[str, int], Verdict | None] = {}
        self._warned: set[tuple[str, int]] = set()

    async def run(self) -> None:
        """Look, and look again, until cancelled."""
        while True:
            try:
                await self.look()
            except Exception as error:  # a look that fails must not be the last one
                log.error("the canaries were not looked at", exc_info=error)
            await asyncio.sleep(self._every_s)

    async def look(self) -> None:
        """Try what is not tried yet, and judge every canary once, by every judge. A policy whose
        reward brought no canary has none."""
        judged = [policy for policy in self._policies().values() if policy.judge]
        self._forget(judged)
        await asyncio.gather(*(self._try(policy) for policy in judged))
        found = [policy for policy in judged if policy.canary]
        verdicts = await asyncio.gather(*(self._look(policy) for policy in found))
        pairs = list(zip(found, verdicts, strict=True))
        self._verdicts = {(policy.name, policy.version): verdict for policy, verdict in pairs}
        self._observe({(policy.name, str(policy.judge)): verdict for policy, verdict in pairs})

    async def admit(self, policy: Policy) -> None:
        """Return if the policy's judge may decide, after its trial where it has had none.

        Raises CensorUnavailable as `check` does, and where it cannot be tried.
        """
        await self.fault(policy)
        self.check(policy)

    def check(self, policy: Policy) -> None:
        """Look again, right before images leave. Raises CensorUnavailable where the trial of an
        admitted policy's judge found a fault, or its canary was accepted when last asked."""
        seen = self._seen.get(_networks(policy))
        fault = None if seen is None else policy.fault(seen)
        if fault or self.verdict(policy) is Verdict.ACCEPTED:
            # The log has the scores, which not every caller may see.
            raise CensorUnavailable(
                f"the judge of policy {policy.name!r} has not shown that it can say no, so nothing "
                "leaves; the log holds the cause"
            )

    def verdict(self, policy: Policy) -> Verdict | None:
        """The last verdict on the canary of a policy in force; None where there is none."""
        return self._verdicts.get((policy.name, policy.version))

    async def fault(self, policy: Policy) -> str | None:
        """Why the policy's judge cannot decide, by a trial here and now; None where it can.

        Raises CensorUnavailable where it cannot be tried.
        """
        if policy.judge is None:
            return None
        networks = _networks(policy)
        if networks not in self._seen:
            # Many requests may wait for one trial; one that leaves takes it from no other.
            trial = self._trials.get(networks)
            if trial is None:
                trial = self._trials[networks] = asyncio.create_task(self._trial(policy))
                trial.add_done_callback(lambda _: self._trials.pop(networks, None))
            self._seen[networks] = await asyncio.shield(trial)
        return policy.fault(self._seen[networks])

    async def _trial(self, policy: Policy) -> TrialScores:
        """What its judge scores; of several replicas the most lenient."""
        model, judge = policy.settings.model, str(policy.judge)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                known = KnownImages(
                    *[await self._image(model, name) for name in (policy.canary, policy.control)]
                )
                scores = []
                for pixels in known.shown(self._shape(model)):
                    answers = await self._score(model, judge, pixels)
                    scores.append(_highest([one for one in answers if one is not None]))
            return TrialScores.of(np.array(scores), known)
        except CensorUnavailable:
            raise
        except Exception as error:  # whatever went wrong, it has shown nothing
            raise CensorUnavailable(
                f"the judge of policy {policy.name!r} cannot be tried: {error!r}"
            ) from error

    async def _image(self, model: str, name: str | None) -> Pixels | None:
        """An image of which it is known what it is. One that was purged is as none."""
        if name is None:
            return None
        if name not in self._pixels:
            try:
                self._pixels[name] = await asyncio.to_thread(self._find, model, name)
            except BlobMissing as error:
                log.warning("%s", error)
                return None
        return self._pixels[name]

    async def _try(self, policy: Policy) -> None:
        named = policy.name, policy.version
        try:
            fault = await self.fault(policy)
        except CensorUnavailable as error:
            log.warning("policy %r was not tried: %s", policy.name, error)
            return
        if named in self._warned:
            return
        self._warned.add(named)
        if fault:
            log.error("policy %r lets nothing leave: of its judge, %s", policy.name, fault)
        if policy.canary is None:
            log.warning(
                "policy %r has no canary: nobody would notice that its judge fails open",
                policy.name,
            )

    def _forget(self, judged: Sequence[Policy]) -> None:
        """What belongs to no policy in force; and what failed its trial, so that it gets another:
        what was wrong may have been one replica's machine.
        """
        networks = {_networks(policy) for policy in judged}
        failed = {
            _networks(policy)
            for policy in judged
            if (seen := self._seen.get(_networks(policy))) is not None and policy.fault(seen)
        }
        images = {name for _, _, *names in networks for name in names}
        kept = networks - failed
        self._seen = {key: seen for key, seen in self._seen.items() if key in kept}
        self._pixels = {name: one for name, one in self._pixels.items() if name in images}
        self._warned &= {(policy.name, policy.version) for policy in judged}

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
        """The verdict that a draw of these pixels would get, at the lowest threshold; the worst of
        what the judges say.

        One that accepts is worse than one that says nothing. Raises CensorUnavailable without any.
        """
        steps = min(
            policy.operating_points,
            key=lambda n: policy.operating_points[n].threshold,
            default=None,
        )
        plan = resolve(policy, Overrides(num_inference_steps=steps), SEED, admin=False)
        model, judge = policy.settings.model, str(plan.judge)
        pixels = await self._image(model, policy.canary)
        if pixels is None:
            raise CensorUnavailable("its image is gone")
        result = DrawResult(DrawKey(0, SEED, 0), pixels, 0, 0.0, 0.0)
        scores = await self._score(model, judge, pixels)
        verdicts = {_verdict(plan, result, score) for score in scores}
        if not verdicts:
            raise CensorUnavailable("no judge runs")
        return next(one for one in WORST_FIRST if one in verdicts)


def _networks(policy: Policy) -> Networks:
    return policy.settings.model, str(policy.judge), policy.canary, policy.control


def _highest(scores: Sequence[float]) -> float:
    """The highest; NaN where one is. Raises CensorUnavailable without any."""
    if not scores:
        raise CensorUnavailable("no judge runs")
    return float(np.max(scores))


def _verdict(plan: SamplingPlan, result: DrawResult, score: float | None) -> Verdict | None:
    try:
        return decide(plan, result, score)
    except CensorUnavailable:
        return None
