"""What a shadow may do: fall behind, be dropped, fail; and never more than half of the time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from models.bundles.bundle import Bundle
from service.config import Settings
from service.errors import CensorUnavailable
from service.generation.shadow import KEEP, WAITING, JudgedDraws, Shadows
from service.policies.policy import OperatingPoint, Policy
from service.policies.seeding import configured_policies
from service.ports import Pixels, Verdict
from tests.bundles import settings
from tests.plans import JUDGED, vary

IMAGE = np.zeros((2, 2, 1), np.uint8)
PLAN = vary(JUDGED, num_inference_steps=50)


@pytest.fixture
def candidate(bundle: Bundle) -> Policy:
    policy = configured_policies(
        Settings.model_validate(settings(str(bundle.folder))), {"tiny": bundle}
    )["bright"]
    operating_points = {50: OperatingPoint(0.5), 20: OperatingPoint(0.8)}
    return replace(policy, version=2, operating_points=operating_points)


@dataclass
class Judge:
    """Scores as it is told, and takes its time."""

    answer: float = 0.6
    delay_s: float = 0.0
    busy: float = 0.0
    calls: int = 0

    async def score(
        self, model: str, judge: str, pixels: Sequence[Pixels], timeout_s: float
    ) -> list[float]:
        self.calls += 1
        started = time.monotonic()
        await asyncio.sleep(self.delay_s)
        self.busy += time.monotonic() - started
        return [self.answer] * len(pixels)

    async def ready(self) -> None:
        pass


@dataclass
class Seen:
    """What was counted."""

    scored: list[tuple[Any, ...]] = field(default_factory=list)
    dropped: int = 0

    def observe(self, *told: Any) -> None:
        self.scored.append(told)

    def drop(self, policy: str, draws: int) -> None:
        self.dropped += draws


def _run(judge: Judge, use: Callable[[Shadows, Seen], Awaitable[None]]) -> Seen:
    async def main() -> Seen:
        seen = Seen()
        await use(Shadows(judge, seen.observe, seen.drop), seen)
        return seen

    return asyncio.run(asyncio.wait_for(main(), 10))


def _judged_draws(*verdicts: Verdict) -> JudgedDraws:
    judged_draws = JudgedDraws()
    for verdict in verdicts:
        judged_draws(IMAGE, verdict)
    return judged_draws


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


def test_it_tells_its_verdict_beside_the_one_that_counted(candidate: Policy) -> None:
    async def use(shadows: Shadows, seen: Seen) -> None:
        judged_draws = _judged_draws(Verdict.ACCEPTED, Verdict.REJECTED)
        await shadows.offer(candidate, PLAN, judged_draws)
        await _until(lambda: len(seen.scored) == 2)
        # A threshold belongs to a step count; of one that it does not know, the strictest.
        for steps in (20, 30):
            plan = vary(PLAN, num_inference_steps=steps)
            await shadows.offer(candidate, plan, _judged_draws(Verdict.ACCEPTED))
        await _until(lambda: len(seen.scored) == 4)

    told = _run(Judge(0.6), use).scored
    assert [(one[3], one[4]) for one in told] == [
        (Verdict.ACCEPTED, Verdict.ACCEPTED),
        (Verdict.ACCEPTED, Verdict.REJECTED),
        (Verdict.REJECTED, Verdict.ACCEPTED),
        (Verdict.REJECTED, Verdict.ACCEPTED),
    ]
    assert told[0][:3] == ("bright", candidate.judge, 0.6)


def test_what_comes_too_fast_is_dropped_and_nobody_waits(candidate: Policy) -> None:
    async def use(shadows: Shadows, seen: Seen) -> None:
        started = time.monotonic()
        for _ in range(WAITING + 10):
            await shadows.offer(candidate, PLAN, _judged_draws(Verdict.ACCEPTED))
        assert time.monotonic() - started < 1
        assert seen.dropped == 10

    _run(Judge(delay_s=3600), use)


def test_of_one_request_only_so_many_are_kept(candidate: Policy) -> None:
    async def use(shadows: Shadows, seen: Seen) -> None:
        judged_draws = _judged_draws(*[Verdict.REJECTED] * (KEEP + 5))
        assert len(judged_draws.seen) == KEEP
        await shadows.offer(candidate, PLAN, judged_draws)
        await _until(lambda: len(seen.scored) == KEEP)
        assert seen.dropped == 5

    _run(Judge(), use)


@pytest.mark.parametrize("answer", [float("nan"), 1.5])
def test_a_score_that_is_none_is_dropped_and_the_next_is_scored(
    candidate: Policy, answer: float
) -> None:
    judge = Judge(answer)

    async def use(shadows: Shadows, seen: Seen) -> None:
        await shadows.offer(candidate, PLAN, _judged_draws(Verdict.ACCEPTED))
        await _until(lambda: seen.dropped == 1)
        judge.answer = 0.5
        await shadows.offer(candidate, PLAN, _judged_draws(Verdict.ACCEPTED))
        await _until(lambda: len(seen.scored) == 1)

    _run(judge, use)


def test_a_judge_that_is_gone_is_no_fault(candidate: Policy) -> None:
    class Gone(Judge):
        async def score(self, *_: Any, **__: Any) -> list[float]:
            raise CensorUnavailable("gone")

    async def use(shadows: Shadows, seen: Seen) -> None:
        for number in range(1, 4):
            await shadows.offer(candidate, PLAN, _judged_draws(Verdict.ACCEPTED))
            await _until(lambda number=number: seen.dropped == number)  # type: ignore[misc]

    _run(Gone(), use)


def test_a_judge_that_hangs_keeps_no_other_shadow_waiting(candidate: Policy) -> None:
    class Hung(Judge):
        async def score(self, model: str, judge: str, *_: Any, **__: Any) -> list[float]:  # type: ignore[override]
            self.calls += judge == candidate.judge
            if judge == candidate.judge:
                await asyncio.sleep(0.05)
                raise CensorUnavailable("it took too long")
            return [0.6]

    other = replace(candidate, name="other", parts={"judge": "sha256:other"})
    judge = Hung()

    async def use() -> None:
        seen = Seen()
        shadows = Shadows(judge, seen.observe, seen.drop, slow_s=0.01)
        for _ in range(20):
            await shadows.offer(candidate, PLAN, _judged_draws(Verdict.ACCEPTED))
        await shadows.offer(other, PLAN, _judged_draws(Verdict.ACCEPTED))
        await _until(lambda: len(seen.scored) == 1)
        assert seen.dropped == 20
        assert judge.calls == 1

    asyncio.run(asyncio.wait_for(use(), 10))


def test_it_rests_as_long_as_it_worked(candidate: Policy) -> None:
    judge = Judge(delay_s=0.02)

    async def use(shadows: Shadows, seen: Seen) -> None:
        started = time.monotonic()
        for _ in range(20):
            await shadows.offer(candidate, PLAN, _judged_draws(Verdict.ACCEPTED))
        await _until(lambda: len(seen.scored) == 20)
        assert judge.busy < 0.6 * (time.monotonic() - started)

    _run(judge, use)


def test_without_anything_to_see_it_does_nothing(candidate: Policy) -> None:
    judge = Judge()

    async def use(shadows: Shadows, seen: Seen) -> None:
        await shadows.offer(candidate, PLAN, JudgedDraws())
        await shadows.offer(replace(candidate, parts={}), PLAN, _judged_draws(Verdict.ACCEPTED))
        await asyncio.sleep(0.05)

    assert _run(judge, use).scored == []
    assert judge.calls == 0
