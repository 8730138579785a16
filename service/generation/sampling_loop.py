"""One loop for every plan: ask for draws, get verdicts, until n images are accepted.

The sampling loop decides how many draws an image gets; the engine decides when they run. Image i
has seed `plan.seed + i`. Verdicts fall in the order of its draws, in whatever order these finish,
so the lowest accepted draw wins.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from service.errors import CensorUnavailable, WinnowError
from service.generation.backend_calls import Calls
from service.judge.verdict import decide
from service.ports import (
    BackboneClient,
    DrawKey,
    DrawResult,
    FinishReason,
    JudgeClient,
    Judged,
    Pixels,
    SamplingPlan,
    Verdict,
)

log = logging.getLogger("winnow.generation")

Observer = Callable[[SamplingPlan, Verdict, float | None], None]
JudgedCallback = Callable[[Pixels, Verdict], None]
"""Called with each image that the judge accepted or rejected, malign ones too."""


@dataclass(frozen=True)
class Scored:
    """A finished draw that still waits for the verdict on a lower one."""

    result: DrawResult
    score: float | None


@dataclass
class ImageOutcome:
    """One entry of the response. `draws` have a verdict; the next one is number `draws`.

    `asked` counts draws that were asked for, speculative ones too; `early` holds those that
    finished before a lower one, by number. `pixels` is set if and only if `finish_reason` is
    SUCCESS.
    """

    index: int
    seed: int
    finish_reason: FinishReason | None = None
    draws: int = 0
    pixels: Pixels | None = None
    score: float | None = None
    asked: int = 0
    queue_s: float = 0.0
    denoise_s: float = 0.0
    early: dict[int, Scored] = field(default_factory=dict)


@dataclass
class Outcome:
    """What a request came to. Times in seconds; `nfe` includes draws that were rejected.

    `judged` has every finished draw, in the order of the verdicts; one whose score is owed counts
    as unfinished. `admitted` is true once a draw came back, `judging` while a judge owes scores.
    """

    plan: SamplingPlan
    images: list[ImageOutcome]
    draws: int = 0
    nfe: int = 0
    judge_s: float = 0.0
    admitted: bool = False
    judging: bool = False
    on_judged: JudgedCallback | None = None
    judged: list[Judged] = field(default_factory=list)

    @classmethod
    def begin(cls, plan: SamplingPlan, n: int, on_judged: JudgedCallback | None = None) -> Outcome:
        """Of a request for `n` images, before anything is drawn.

        `on_judged` is shown what is judged, and changes nothing.
        """
        return cls(plan, [ImageOutcome(i, plan.seed + i) for i in range(n)], on_judged=on_judged)

    def withhold(self) -> None:
        """No image leaves after all: those that were accepted are held back."""
        for image in self.images:
            if image.pixels is not None:
                image.pixels, image.finish_reason = None, FinishReason.CANCELLED

    @property
    def delivered(self) -> int:
        """How many images leave."""
        return sum(image.pixels is not None for image in self.images)

    @property
    def unfinished(self) -> list[ImageOutcome]:
        """The entries that still need draws."""
        return [image for image in self.images if image.finish_reason is None]

    @property
    def queue_s(self) -> float:
        """How long the draws of one image waited for slots; the longest image's."""
        return max(image.queue_s for image in self.images)

    @property
    def denoise_s(self) -> float:
        """How long the draws of one image ran; the longest image's."""
        return max(image.denoise_s for image in self.images)

    def count(self, reason: FinishReason) -> int:
        """How many entries ended for this reason."""
        return sum(image.finish_reason is reason for image in self.images)


class SamplingLoop:
    """Runs plans against a backbone and a judge."""

    def __init__(
        self,
        backbone_client: BackboneClient,
        judge_client: JudgeClient,
        judge_timeout_s: float,
        observe: Observer = lambda plan, verdict, score: None,
        speculative_draws: int = 0,
    ) -> None:
        """`speculative_draws` are asked for beside each image's own; the engine makes them where
        it has room."""
        self._backbone_client = backbone_client
        self._judge_client = judge_client
        self._judge_timeout_s = judge_timeout_s
        self._observe = observe
        self._speculative_draws = speculative_draws

    async def generate(
        self, plan: SamplingPlan, n: int, deadline_s: float, tenant: str = ""
    ) -> Outcome:
        """The outcome of a request for `n` images; see `fill`."""
        outcome = Outcome.begin(plan, n)
        await self.fill(outcome, deadline_s, tenant)
        return outcome

    async def fill(self, outcome: Outcome, deadline_s: float, tenant: str = "") -> None:
        """Draw until every image is accepted or out of budget, or time is up.

        When this raises or is cancelled, `outcome` has what was settled until then; none of its
        images may leave.

        Raises CensorUnavailable as soon as a judge fails. At the deadline a draw without a score
        counts as unfinished; if nothing was delivered by then, raises CensorUnavailable where a
        judge owes scores, and BackendUnavailable where no backbone answered. A dead backbone is
        otherwise asked again: a draw is a function of its seed, so asking twice gives the same
        image.
        """
        calls = Calls(self._backbone_client, outcome.plan, time.monotonic() + deadline_s, tenant)
        try:
            async with asyncio.timeout(deadline_s) as timer:
                while outcome.unfinished:
                    self._ask(outcome, calls)
                    await self._take(outcome, calls)
        except TimeoutError:
            if not timer.expired():
                raise
            for image in outcome.unfinished:
                self._expire(outcome, image)
            if outcome.judging and not outcome.delivered:
                raise CensorUnavailable("the judge did not answer before the deadline") from None
            if calls.fault and not outcome.delivered:
                raise calls.fault from None
        finally:
            for image in outcome.images:
                self._discard(outcome, image, 0)
            for _ in calls.in_flight:
                self._observe(outcome.plan, Verdict.CANCELLED, None)
            await calls.close()

    def _ask(self, outcome: Outcome, calls: Calls) -> None:
        """Ask for the draws that images need now, and for some that they may need next."""
        wanted = [
            DrawKey(image.index, image.seed, image.draws, fresh=not outcome.admitted)
            for image in outcome.unfinished
        ]
        if needed := [key for key in wanted if key not in calls.in_flight]:
            calls.ask(needed)
        for image in outcome.unfinished:
            image.asked = max(image.asked, image.draws + 1)
            last = min(image.draws + self._speculative_draws, outcome.plan.max_draws - 1)
            for draw in range(image.asked, last + 1):
                # A call of its own, so that it can be closed alone.
                calls.ask([DrawKey(image.index, image.seed, draw, ahead=draw - image.draws)])
                image.asked = draw + 1

    async def _take(self, outcome: Outcome, calls: Calls) -> None:
        """Wait for draws to finish, and give their images a verdict."""
        results, lost = await calls.results()
        for _ in lost:
            self._observe(outcome.plan, Verdict.CANCELLED, None)
        outcome.admitted |= bool(results)
        scores = await self._score(outcome, results)
        calls.in_flight -= {result.key for result in results}
        for result, score in zip(results, scores, strict=True):
            image = outcome.images[result.key.index]
            image.queue_s += 0 if result.key.ahead else result.queue_s
            image.denoise_s += 0 if result.key.ahead else result.denoise_s
            outcome.draws += 1
            outcome.nfe += result.nfe
            image.early[result.key.draw] = Scored(result, score)
        for index in sorted({result.key.index for result in results}):
            self._settle(outcome, outcome.images[index], calls)

    def _settle(self, outcome: Outcome, image: ImageOutcome, calls: Calls) -> None:
        """Verdicts in the order of the draws: the lowest accepted one wins, whenever it came."""
        while image.finish_reason is None and image.draws in image.early:
            verdict = self._decide(outcome, image, image.draws)
            if verdict is not Verdict.ACCEPTED and image.draws >= outcome.plan.max_draws:
                image.finish_reason = (
                    FinishReason.ERROR
                    if verdict is Verdict.FAILED
                    else FinishReason.CONTENT_FILTERED
                )
        if image.finish_reason is not None:
            unwanted = [key for key in calls.in_flight if key.index == image.index]
            calls.drop(unwanted)
            self._discard(outcome, image, len(unwanted))

    def _expire(self, outcome: Outcome, image: ImageOutcome) -> None:
        """Time is up: of what has a score, the lowest accepted draw wins."""
        for draw in sorted(image.early):
            if image.finish_reason is None:
                self._decide(outcome, image, draw)
        image.finish_reason = image.finish_reason or FinishReason.DEADLINE
        self._discard(outcome, image, 0)

    def _decide(self, outcome: Outcome, image: ImageOutcome, draw: int) -> Verdict:
        """The verdict on a finished draw; an accepted one becomes the image."""
        scored = image.early[draw]
        verdict = decide(outcome.plan, scored.result, scored.score)
        del image.early[draw]
        self._note(outcome, scored, verdict)
        image.draws, image.score = draw + 1, scored.score
        if verdict is Verdict.ACCEPTED:
            image.pixels, image.finish_reason = scored.result.pixels, FinishReason.SUCCESS
        return verdict

    def _discard(self, outcome: Outcome, image: ImageOutcome, running: int) -> None:
        """Draws without a verdict of their own: those finished, and so many that run."""
        for draw in sorted(image.early):
            self._note(outcome, image.early.pop(draw), Verdict.CANCELLED)
        for _ in range(running):
            self._observe(outcome.plan, Verdict.CANCELLED, None)

    def _note(self, outcome: Outcome, scored: Scored, verdict: Verdict) -> None:
        result = scored.result
        self._observe(outcome.plan, verdict, scored.score)
        settled = verdict in (Verdict.ACCEPTED, Verdict.REJECTED) and scored.score is not None
        if outcome.on_judged is not None and settled and result.pixels is not None:
            outcome.on_judged(result.pixels, verdict)
        outcome.judged.append(
            Judged(result.key, verdict, scored.score, result.probe_scores, result.nfe)
        )

    async def _score(
        self, outcome: Outcome, results: Sequence[DrawResult]
    ) -> Sequence[float | None]:
        """The judge's score of each draw; None where the plan has no judge or no image exists."""
        plan = outcome.plan
        pixels = [result.pixels for result in results if result.pixels is not None]
        if plan.judge is None or not pixels:
            return [None] * len(results)
        started = time.monotonic()
        outcome.judging = True
        try:
            scores = list(
                await self._judge_client.score(
                    plan.model, plan.judge, pixels, self._judge_timeout_s
                )
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
        return [None if result.pixels is None else next(remaining) for result in results]
