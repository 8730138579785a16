"""The sampling loop against two fakes of its Protocols: no torch, no Ray, no engine."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import BackendUnavailable, CensorUnavailable, Overloaded
from service.generation.sampling_loop import Outcome, SamplingLoop
from service.ports import DrawKey, DrawResult, FinishReason, Pixels, SamplingPlan, Verdict
from tests.plans import FREE, JUDGED


def _image(key: DrawKey) -> Pixels:
    """An image that says which draw made it."""
    return np.array([[[key.seed], [key.draw]]], dtype=np.uint8)


def _result(key: DrawKey, pixels: Pixels | None) -> DrawResult:
    return DrawResult(key, pixels, nfe=10, queue_s=0.1, denoise_s=0.2)


@dataclass
class Backbone:
    """Makes each draw at once, one group a draw. `before(key)` may wait or raise."""

    before: Callable[[DrawKey], Coroutine[Any, Any, None]] | None = None
    broken: frozenset[tuple[int, int]] = frozenset()
    asked: list[list[DrawKey]] = field(default_factory=list)
    closed: int = 0

    async def draw(
        self, plan: SamplingPlan, keys: Sequence[DrawKey], timeout_s: float, tenant: str = ""
    ) -> AsyncGenerator[list[DrawResult], None]:
        self.asked.append(list(keys))
        try:
            for key in keys:
                await asyncio.sleep(0)
                if self.before:
                    await self.before(key)
                pixels = None if (key.seed, key.draw) in self.broken else _image(key)
                yield [_result(key, pixels)]
        finally:
            self.closed += 1

    async def ready(self) -> None: ...


@dataclass
class Judge:
    """Scores a draw as `score(seed, draw)` says; the answer may be of any kind."""

    score_of: Callable[[int, int], Any]
    calls: int = 0

    async def score(
        self, model: str, judge: str, pixels: Sequence[Pixels], timeout_s: float
    ) -> Sequence[float]:
        self.calls += 1
        assert (model, judge) == ("tiny", "sha256:judge")
        return [self.score_of(int(image[0, 0, 0]), int(image[0, 1, 0])) for image in pixels]

    async def ready(self) -> None: ...


@dataclass
class Observed:
    """What the sampling loop told its observer."""

    seen: list[tuple[Verdict, float | None]] = field(default_factory=list)

    def __call__(self, plan: SamplingPlan, verdict: Verdict, score: float | None) -> None:
        self.seen.append((verdict, score))

    def count(self, verdict: Verdict) -> int:
        return sum(found is verdict for found, _ in self.seen)


def _generate(
    backbone: Backbone,
    judge: Any,
    n: int = 1,
    plan: SamplingPlan = JUDGED,
    deadline_s: float = 10.0,
    observe: Observed | None = None,
) -> Outcome:
    sampling_loop = SamplingLoop(backbone, judge, 5.0, observe or Observed())
    return asyncio.run(sampling_loop.generate(plan, n, deadline_s))


def _accept(first: dict[int, int]) -> Judge:
    """A judge that calls draw `first[seed]` of a seed benign, and those after it as well."""
    return Judge(lambda seed, draw: 0.9 if draw >= first.get(seed, 0) else 0.1)


def test_sampling_loop_policy_and_verdict_load_neither_torch_nor_ray() -> None:
    program = (
        "import sys, service.generation.sampling_loop, service.policies.policy; "
        "import service.judge.verdict; "
        "print([name for name in ('torch', 'ray', 'service.engine') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_the_lowest_accepted_draw_wins() -> None:
    backbone = Backbone()
    outcome = _generate(backbone, _accept({40: 2, 41: 0, 42: 1}), n=3)
    assert [image.finish_reason for image in outcome.images] == [FinishReason.SUCCESS] * 3
    assert [image.draws for image in outcome.images] == [3, 1, 2]
    for image in outcome.images:
        key = DrawKey(image.index, image.seed, image.draws - 1)
        np.testing.assert_array_equal(image.pixels, _image(key))
    # First all images' first draws; then an image without an accepted one asks for its next at
    # once, whatever the others do.
    first, *redraws = [[(key.seed, key.draw) for key in keys] for keys in backbone.asked]
    assert first == [(40, 0), (41, 0), (42, 0)]
    assert sorted(key for keys in redraws for key in keys) == [(40, 1), (40, 2), (42, 1)]
    assert (outcome.draws, outcome.nfe, outcome.delivered) == (6, 60, 3)


def test_the_answer_does_not_depend_on_the_order_in_which_draws_finish() -> None:
    class Backwards(Backbone):
        async def draw(
            self, plan: SamplingPlan, keys: Sequence[DrawKey], timeout_s: float, tenant: str = ""
        ) -> AsyncGenerator[list[DrawResult], None]:
            yield [_result(key, _image(key)) for key in reversed(keys)]

    first = {40: 2, 41: 0, 42: 1}
    forwards, backwards = (
        _generate(backbone, _accept(first), n=3) for backbone in (Backbone(), Backwards())
    )
    for one, other in zip(forwards.images, backwards.images, strict=True):
        assert (one.index, one.seed, one.draws) == (other.index, other.seed, other.draws)
        np.testing.assert_array_equal(one.pixels, other.pixels)


def test_image_i_has_seed_plus_i_and_its_seed_alone_gives_it_again() -> None:
    judge = _accept({40: 2, 41: 1, 42: 3})
    several = _generate(Backbone(), judge, n=3)
    assert [image.seed for image in several.images] == [40, 41, 42]
    for image in several.images:
        plan = replace(JUDGED, seed=image.seed)
        (again,) = _generate(Backbone(), judge, plan=plan).images
        assert (again.index, again.seed, again.draws) == (0, image.seed, image.draws)
        np.testing.assert_array_equal(again.pixels, image.pixels)


def test_a_spent_budget_is_filtered_and_keeps_no_pixels() -> None:
    observed = Observed()
    outcome = _generate(Backbone(), _accept({40: 99}), n=2, observe=observed)
    blocked, delivered = outcome.images
    assert blocked.finish_reason is FinishReason.CONTENT_FILTERED
    assert (blocked.pixels, blocked.draws, blocked.score) == (None, 4, 0.1)
    assert delivered.finish_reason is FinishReason.SUCCESS
    assert (observed.count(Verdict.REJECTED), observed.count(Verdict.ACCEPTED)) == (4, 1)


def test_a_score_equal_to_the_threshold_is_benign() -> None:
    just_below = math.nextafter(0.5, 0)
    assert _generate(Backbone(), Judge(lambda seed, draw: 0.5)).delivered == 1
    assert _generate(Backbone(), Judge(lambda seed, draw: just_below)).delivered == 0


UNUSABLE: list[Any] = [math.nan, None, -0.01, 1.01, math.inf, -math.inf]


@pytest.mark.parametrize("score", UNUSABLE, ids=str)
def test_an_unusable_score_ends_the_request_although_others_were_accepted(score: Any) -> None:
    judge = Judge(lambda seed, draw: score if seed == 42 else 0.9)
    backbone, observed = Backbone(), Observed()
    with pytest.raises(CensorUnavailable):
        _generate(backbone, judge, n=3, observe=observed)
    assert observed.count(Verdict.ACCEPTED) == 2
    assert backbone.closed == len(backbone.asked) == 1


@pytest.mark.parametrize("count", [0, 2])
def test_a_wrong_number_of_scores_ends_the_request(count: int) -> None:
    class Confused(Judge):
        async def score(
            self, model: str, judge: str, pixels: Sequence[Pixels], timeout_s: float
        ) -> Sequence[float]:
            return [0.9] * count

    with pytest.raises(CensorUnavailable, match=f"{count} scores for 1 images"):
        _generate(Backbone(), Confused(lambda seed, draw: 0.9))


@pytest.mark.parametrize(
    "fault", [CensorUnavailable("down"), RuntimeError("a bug"), TimeoutError()], ids=repr
)
def test_a_judge_that_raises_ends_the_request(fault: Exception) -> None:
    def fails(seed: int, draw: int) -> float:
        if seed == 41:
            raise fault
        return 0.9

    with pytest.raises(CensorUnavailable):
        _generate(Backbone(), Judge(fails), n=2)


@pytest.mark.parametrize("threshold", [None, math.nan, 0.0, -1.0, 1.5])
def test_a_judge_without_a_usable_threshold_lets_nothing_leave(threshold: float | None) -> None:
    plan = replace(JUDGED, threshold=threshold)
    with pytest.raises(CensorUnavailable, match="threshold"):
        _generate(Backbone(), Judge(lambda seed, draw: 1.0), plan=plan)


def test_without_a_judge_nobody_is_asked() -> None:
    judge = Judge(lambda seed, draw: 0.0)
    outcome = _generate(Backbone(), judge, n=2, plan=FREE)
    assert outcome.delivered == 2
    assert [image.score for image in outcome.images] == [None, None]
    assert judge.calls == 0


def test_a_draw_that_made_no_image_is_tried_again() -> None:
    observed = Observed()
    backbone = Backbone(broken=frozenset({(40, 0), (40, 1)}))
    outcome = _generate(backbone, Judge(lambda seed, draw: 0.9), observe=observed)
    assert outcome.images[0].draws == 3
    assert outcome.delivered == 1
    assert [verdict for verdict, _ in observed.seen] == [
        Verdict.FAILED,
        Verdict.FAILED,
        Verdict.ACCEPTED,
    ]


@pytest.mark.parametrize("plan", [JUDGED, FREE], ids=["judged", "free"])
def test_draws_that_never_make_an_image_are_an_error_not_a_block(plan: SamplingPlan) -> None:
    backbone = Backbone(broken=frozenset((40, draw) for draw in range(4)))
    judge = Judge(lambda seed, draw: 0.9)
    outcome = _generate(backbone, judge, plan=plan)
    assert outcome.images[0].finish_reason is FinishReason.ERROR
    assert outcome.images[0].pixels is None
    assert judge.calls == 0


def test_the_deadline_keeps_what_was_accepted() -> None:
    async def slow(key: DrawKey) -> None:
        await asyncio.sleep(0 if key.seed == 40 else 60)

    backbone, observed = Backbone(before=slow), Observed()
    outcome = _generate(
        backbone, Judge(lambda seed, draw: 0.9), n=3, deadline_s=0.1, observe=observed
    )
    reasons = [image.finish_reason for image in outcome.images]
    assert reasons == [FinishReason.SUCCESS, FinishReason.DEADLINE, FinishReason.DEADLINE]
    assert [image.pixels is None for image in outcome.images] == [False, True, True]
    assert (observed.count(Verdict.ACCEPTED), observed.count(Verdict.CANCELLED)) == (1, 2)
    assert backbone.closed == 1


@dataclass
class Hangs(Judge):
    """Answers its first `answers` calls, and never the next one."""

    answers: int = 0

    async def score(
        self, model: str, judge: str, pixels: Sequence[Pixels], timeout_s: float
    ) -> Sequence[float]:
        if self.calls == self.answers:
            await asyncio.sleep(60)
        return await super().score(model, judge, pixels, timeout_s)


def test_a_judge_that_is_still_busy_at_the_deadline_takes_back_nothing() -> None:
    """What it accepted leaves; what it owes a score for does not, and counts as unfinished."""
    observed = Observed()
    judge = Hangs(lambda seed, draw: 0.9, answers=1)
    outcome = _generate(Backbone(), judge, n=2, deadline_s=0.2, observe=observed)
    reasons = [image.finish_reason for image in outcome.images]
    assert reasons == [FinishReason.SUCCESS, FinishReason.DEADLINE]
    assert [image.pixels is None for image in outcome.images] == [False, True]
    assert [one.verdict for one in outcome.judged] == [Verdict.ACCEPTED]
    assert [verdict for verdict, _ in observed.seen] == [Verdict.ACCEPTED, Verdict.CANCELLED]


@pytest.mark.parametrize("answers", [0, 1])
def test_a_judge_that_is_still_busy_at_the_deadline_is_a_fault_if_nothing_leaves(
    answers: int,
) -> None:
    judge = Hangs(lambda seed, draw: 0.1, answers=answers)
    with pytest.raises(CensorUnavailable, match="deadline"):
        _generate(Backbone(), judge, n=2, deadline_s=0.2)


def test_a_backbone_that_dies_in_a_round_is_asked_again_for_the_same_draws() -> None:
    lives = iter([False])

    async def dies_once(key: DrawKey) -> None:
        if key.seed == 41 and not next(lives, True):
            raise BackendUnavailable("killed")

    backbone, observed = Backbone(before=dies_once), Observed()
    judge = Judge(lambda seed, draw: 0.9)
    outcome = _generate(backbone, judge, n=3, observe=observed)
    rounds = [[(key.seed, key.draw) for key in keys] for keys in backbone.asked]
    # Seed 40 was judged before the fault; the others are asked for again, as the same draws.
    assert rounds == [[(40, 0), (41, 0), (42, 0)], [(41, 0), (42, 0)]]
    assert [image.draws for image in outcome.images] == [1, 1, 1]
    assert outcome.delivered == 3
    assert observed.count(Verdict.CANCELLED) == 2


def test_a_backbone_that_ends_early_is_asked_again() -> None:
    class Forgetful(Backbone):
        async def draw(
            self, plan: SamplingPlan, keys: Sequence[DrawKey], timeout_s: float, tenant: str = ""
        ) -> AsyncGenerator[list[DrawResult], None]:
            self.asked.append(list(keys))
            yield [_result(keys[0], _image(keys[0]))]

    backbone = Forgetful()
    outcome = _generate(backbone, Judge(lambda seed, draw: 0.9), n=2)
    assert outcome.delivered == 2
    assert [[key.seed for key in keys] for keys in backbone.asked] == [[40, 41], [41]]


def test_a_backbone_that_never_makes_anything_is_a_fault_and_not_a_busy_loop() -> None:
    class Empty(Backbone):
        async def draw(
            self, plan: SamplingPlan, keys: Sequence[DrawKey], timeout_s: float, tenant: str = ""
        ) -> AsyncGenerator[list[DrawResult], None]:
            self.asked.append(list(keys))
            await asyncio.sleep(0)
            nothing: list[list[DrawResult]] = []
            for group in nothing:
                yield group

    backbone = Empty()
    with pytest.raises(BackendUnavailable, match="ended before"):
        _generate(backbone, Judge(lambda seed, draw: 0.9), deadline_s=0.4)
    assert len(backbone.asked) < 5


def test_a_backbone_dead_until_the_deadline_is_a_fault() -> None:
    async def dead(key: DrawKey) -> None:
        raise BackendUnavailable("no replica")

    backbone = Backbone(before=dead)
    with pytest.raises(BackendUnavailable, match="no replica"):
        _generate(backbone, Judge(lambda seed, draw: 0.9), deadline_s=0.4)
    assert len(backbone.asked) > 1


def test_a_backbone_dead_after_the_first_image_delivers_that_one() -> None:
    async def dies(key: DrawKey) -> None:
        if key.seed == 41:
            raise BackendUnavailable("no replica")

    outcome = _generate(Backbone(before=dies), Judge(lambda seed, draw: 0.9), n=2, deadline_s=0.4)
    reasons = [image.finish_reason for image in outcome.images]
    assert reasons == [FinishReason.SUCCESS, FinishReason.DEADLINE]


def test_cancelling_a_request_closes_its_draws() -> None:
    async def scenario() -> None:
        drawing = asyncio.Event()

        async def waits(key: DrawKey) -> None:
            if key.seed == 41:
                drawing.set()
                await asyncio.sleep(60)

        backbone, observed = Backbone(before=waits), Observed()
        sampling_loop = SamplingLoop(backbone, Judge(lambda seed, draw: 0.9), 5.0, observed)
        request = asyncio.ensure_future(sampling_loop.generate(JUDGED, 3, 30.0))
        await drawing.wait()
        request.cancel()
        with suppress(asyncio.CancelledError):
            await request
        assert request.cancelled()
        assert backbone.closed == 1
        assert (observed.count(Verdict.ACCEPTED), observed.count(Verdict.CANCELLED)) == (1, 2)

    asyncio.run(scenario())


def test_the_judge_may_be_cancelled_too() -> None:
    """A disconnect while the judge works closes the draws as well."""

    async def scenario() -> None:
        judging = asyncio.Event()

        class Slow(Judge):
            async def score(
                self, model: str, judge: str, pixels: Sequence[Pixels], timeout_s: float
            ) -> Sequence[float]:
                judging.set()
                await asyncio.sleep(60)
                return [1.0]

        backbone = Backbone()
        sampling_loop = SamplingLoop(backbone, Slow(lambda seed, draw: 1.0), 5.0)
        request = asyncio.ensure_future(sampling_loop.generate(JUDGED, 1, 30.0))
        await judging.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        assert backbone.closed == 1

    asyncio.run(scenario())


def test_times_are_the_longest_of_each_round() -> None:
    outcome = _generate(Backbone(), _accept({40: 1}), n=2)
    assert outcome.queue_s == pytest.approx(0.2)  # two rounds of 0.1 s
    assert outcome.denoise_s == pytest.approx(0.4)


@dataclass
class Speculative(Backbone):
    """Each draw of seed s takes `ticks[s, j]` turns of the event loop; `room` says which
    speculative draws are made at all."""

    ticks: dict[tuple[int, int], int] = field(default_factory=dict)
    room: Callable[[DrawKey], bool] = lambda key: True
    made: list[tuple[int, int]] = field(default_factory=list)

    async def draw(
        self, plan: SamplingPlan, keys: Sequence[DrawKey], timeout_s: float, tenant: str = ""
    ) -> AsyncGenerator[list[DrawResult], None]:
        self.asked.append(list(keys))
        try:
            if any(key.ahead and not self.room(key) for key in keys):
                raise Overloaded("no room")
            for key in keys:
                for _ in range(self.ticks.get((key.seed, key.draw), 1)):
                    await asyncio.sleep(0)
                self.made.append((key.seed, key.draw))
                yield [_result(key, _image(key))]
        finally:
            self.closed += 1


def _speculate(
    backbone: Backbone, judge: Any, depth: int, n: int = 1, observe: Observed | None = None
) -> Outcome:
    sampling_loop = SamplingLoop(backbone, judge, 5.0, observe or Observed(), depth)
    return asyncio.run(sampling_loop.generate(JUDGED, n, 10.0))


@settings(deadline=None, max_examples=60)
@given(
    first=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    depth=st.integers(0, 4),
    ticks=st.lists(st.integers(0, 9), min_size=12, max_size=12),
    room=st.integers(0, 15),
)
def test_speculation_never_changes_the_answer(
    first: list[int], depth: int, ticks: list[int], room: int
) -> None:
    """Draws take as long as they like, and the engine makes or refuses what it likes."""
    n, seeds = len(first), range(40, 40 + len(first))
    judge = _accept(dict(zip(seeds, first, strict=True)))
    plain = _generate(Backbone(), judge, n=n)
    backbone = Speculative(
        ticks={(seed, draw): ticks[4 * (seed - 40) + draw] for seed in seeds for draw in range(4)},
        room=lambda key: bool(room >> key.draw & 1),
    )
    observed = Observed()
    outcome = _speculate(backbone, judge, depth, n, observed)
    for one, other in zip(outcome.images, plain.images, strict=True):
        assert (one.draws, one.finish_reason) == (other.draws, other.finish_reason)
        assert one.score == other.score
        if other.pixels is not None:
            np.testing.assert_array_equal(one.pixels, other.pixels)
    assert observed.count(Verdict.ACCEPTED) == plain.delivered
    assert observed.count(Verdict.REJECTED) == plain.draws - plain.delivered
    assert backbone.closed == len(backbone.asked)
    assert max(key.draw for keys in backbone.asked for key in keys) < JUDGED.max_draws


def test_losers_are_cancelled_and_their_calls_closed() -> None:
    backbone = Speculative(ticks={(40, 1): 10_000})
    observed = Observed()
    outcome = _speculate(backbone, _accept({}), depth=1, observe=observed)
    assert (outcome.images[0].draws, outcome.delivered) == (1, 1)
    assert [verdict for verdict, _ in observed.seen] == [Verdict.ACCEPTED, Verdict.CANCELLED]
    assert backbone.made == [(40, 0)]
    assert backbone.closed == 2


def test_a_speculative_draw_that_had_no_room_has_no_verdict() -> None:
    observed = Observed()
    backbone = Speculative(ticks={(40, 0): 30}, room=lambda key: False)
    outcome = _speculate(backbone, _accept({}), depth=2, observe=observed)
    assert outcome.delivered == 1
    assert [verdict for verdict, _ in observed.seen] == [Verdict.ACCEPTED]


def test_a_loser_that_has_finished_is_cancelled_too_and_its_nfe_is_counted() -> None:
    backbone = Speculative(ticks={(40, 0): 30})
    observed = Observed()
    outcome = _speculate(backbone, _accept({}), depth=1, observe=observed)
    assert outcome.images[0].draws == 1
    assert (outcome.draws, outcome.nfe) == (2, 20)
    assert [verdict for verdict, _ in observed.seen] == [Verdict.ACCEPTED, Verdict.CANCELLED]
    assert [one.verdict for one in outcome.judged] == [Verdict.ACCEPTED, Verdict.CANCELLED]


def test_a_speculative_draw_saves_the_wait_for_a_redraw() -> None:
    backbone = Speculative(ticks={(40, 0): 30, (40, 1): 30})
    outcome = _speculate(backbone, _accept({40: 1}), depth=1)
    assert outcome.images[0].draws == 2
    asked = [(key.seed, key.draw, key.ahead) for keys in backbone.asked for key in keys]
    assert asked[:2] == [(40, 0, 0), (40, 1, 1)]
    assert (40, 1, 0) not in asked


def test_at_the_deadline_the_lowest_accepted_draw_that_has_finished_wins() -> None:
    async def slow(key: DrawKey) -> None:
        await asyncio.sleep(60 if key.draw == 0 else 0)

    sampling_loop = SamplingLoop(
        Backbone(before=slow), Judge(lambda seed, draw: 0.9), 5.0, Observed(), 2
    )
    outcome = asyncio.run(sampling_loop.generate(JUDGED, 1, 0.2))
    (image,) = outcome.images
    assert (image.finish_reason, image.draws) == (FinishReason.SUCCESS, 2)
    np.testing.assert_array_equal(image.pixels, _image(DrawKey(0, 40, 1)))


def test_an_unusable_score_of_an_early_draw_lets_nothing_out_at_the_deadline() -> None:
    async def slow(key: DrawKey) -> None:
        await asyncio.sleep(60 if key.draw == 0 else 0)

    sampling_loop = SamplingLoop(
        Backbone(before=slow), Judge(lambda seed, draw: math.nan), 5.0, Observed(), 1
    )
    with pytest.raises(CensorUnavailable):
        asyncio.run(sampling_loop.generate(JUDGED, 1, 0.2))


def test_a_fault_leaves_what_was_settled_until_then() -> None:
    """Draw 1 of image 0 was made early; the judge dies at image 1."""
    judge = Judge(lambda seed, draw: 0.9 if seed == 40 else math.nan)
    backbone = Speculative(ticks={(40, 0): 20, (41, 0): 90, (41, 1): 60})
    observed, outcome = Observed(), Outcome.begin(JUDGED, 2)
    with pytest.raises(CensorUnavailable):
        asyncio.run(SamplingLoop(backbone, judge, 5.0, observed, 1).fill(outcome, 10.0))
    accepted, faulty = outcome.images
    assert (accepted.finish_reason, accepted.score) == (FinishReason.SUCCESS, 0.9)
    assert (faulty.finish_reason, faulty.pixels) == (None, None)
    settled = {(one.key.seed, one.key.draw): one.verdict for one in outcome.judged}
    assert settled == {
        (40, 0): Verdict.ACCEPTED,
        (40, 1): Verdict.CANCELLED,
        (41, 0): Verdict.CANCELLED,
        (41, 1): Verdict.CANCELLED,
    }
    assert (outcome.draws, outcome.nfe) == (4, 40)
    assert len(observed.seen) == 4
    outcome.withhold()
    assert (accepted.finish_reason, accepted.pixels) == (FinishReason.CANCELLED, None)


def test_a_cancelled_request_leaves_what_was_settled_until_then() -> None:
    async def scenario() -> Outcome:
        judging, outcome = asyncio.Event(), Outcome.begin(JUDGED, 2)

        class Slow(Judge):
            async def score(
                self, model: str, judge: str, pixels: Sequence[Pixels], timeout_s: float
            ) -> Sequence[float]:
                if self.calls:
                    judging.set()
                    await asyncio.sleep(60)
                return await super().score(model, judge, pixels, timeout_s)

        sampling_loop = SamplingLoop(Backbone(), Slow(lambda seed, draw: 0.9), 5.0)
        request = asyncio.ensure_future(sampling_loop.fill(outcome, 30.0))
        await judging.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        return outcome

    outcome = asyncio.run(scenario())
    assert [one.verdict for one in outcome.judged] == [Verdict.ACCEPTED]
    reasons = [image.finish_reason for image in outcome.images]
    assert reasons == [FinishReason.SUCCESS, None]
    assert (outcome.draws, outcome.nfe) == (1, 10)
