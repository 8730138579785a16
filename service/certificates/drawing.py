"""A certificate's images: drawn under the frozen plan until n have been delivered.

The store holds how far it is, so that another process can go on at any moment: a seed is noted
before it is drawn, and stays until its image was delivered or blocked.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from uuid import uuid4

from models.bundles.manifest import Inputs
from models.diffusion.condition import Mix
from models.diffusion.noise import MAX_SEED
from service.errors import InvalidValue, StoreUnavailable, WinnowError
from service.generation.sampling_loop import ImageOutcome, SamplingLoop
from service.images.encode import to_png
from service.policies.inputs import drawn as shown_under
from service.ports import FinishReason, SamplingPlan
from service.store.certificates import Certificate, Progress
from service.store.datasets import ImageToLabel
from service.store.jobs import Job
from service.store.store import Store

CHUNK = 8
"""Images that are asked for together: few, since callers wait for the same slots."""

DEADLINE_S = 60.0
PAUSE_S = 1.0
NO_PROGRESS_TIMEOUT_S = 600.0
"""After so long without a single image the attempt is abandoned."""

BLOCKED_LIMIT = 50
"""Blocked entries for each image wanted, after which it is abandoned: it would hardly end."""

TENANT = "certificate"
"""Whose turn the draws use up."""


@dataclass(frozen=True)
class Drawing:
    """One attempt's images in the making, by the holder of its job.

    Each seed draws its condition from `mix`; `inputs` are the model's.
    """

    job: Job
    certificate: Certificate
    plan: SamplingPlan
    mix: Mix
    inputs: Inputs
    sampling_loop: SamplingLoop
    store: Store

    async def run(self) -> None:
        """Draw all that are missing. Raises LeaseLost, and a WinnowError where it cannot go on."""
        certificates, backbone = self.store.certificates, self.plan.backbone
        n, last, progressed = self.certificate.terms["n"], None, time.monotonic()
        while True:
            fault: WinnowError | None = None
            try:
                seeds = [secrets.randbelow(MAX_SEED + 1) for _ in range(CHUNK)]
                now = await asyncio.to_thread(certificates.ask, self.job, backbone, seeds)
                settled, fault = await self._chunk(now.pending)
                if settled:
                    now = await asyncio.to_thread(self._settle, settled)
            except StoreUnavailable as error:
                fault = error  # the same seeds make the same images again
            else:
                if now.drawn == n:
                    return
                if now.blocked > BLOCKED_LIMIT * n:
                    raise WinnowError(
                        f"the policy blocked {now.blocked} entries and delivered {now.drawn}"
                    )
                if (now.drawn, now.blocked) != last:
                    last, progressed = (now.drawn, now.blocked), time.monotonic()
                    continue
            if time.monotonic() - progressed > NO_PROGRESS_TIMEOUT_S:
                raise fault or WinnowError("no image was ready in time")
            await asyncio.sleep(PAUSE_S)

    async def _chunk(self, seeds: Sequence[int]) -> tuple[list[ImageOutcome], WinnowError | None]:
        """Those of these seeds that were delivered or blocked, and a fault of another."""
        answers = await asyncio.gather(*map(self._one, seeds), return_exceptions=True)
        settled: list[ImageOutcome] = []
        fault: WinnowError | None = None
        for answer in answers:
            if isinstance(answer, InvalidValue):
                raise answer  # a prompt that the model cannot take, however often it is asked
            if isinstance(answer, WinnowError):
                fault = answer
            elif isinstance(answer, BaseException):
                raise answer
            elif answer.finish_reason in (FinishReason.SUCCESS, FinishReason.CONTENT_FILTERED):
                settled.append(answer)
        return settled, fault

    async def _one(self, seed: int) -> ImageOutcome:
        plan = replace(self.plan, seed=seed, condition=self.mix.of(seed))
        outcome = await self.sampling_loop.generate(plan, 1, DEADLINE_S, TENANT)
        return outcome.images[0]

    def _settle(self, settled: Sequence[ImageOutcome]) -> Progress:
        """Keep what was delivered, and note what was blocked."""
        now = datetime.now(UTC)
        made = [
            ImageToLabel(
                id=f"im_{uuid4().hex}",
                dataset=self.certificate.dataset,
                batch=self.certificate.id,
                position=0,  # the store counts them
                blob=self.store.blobs.put(to_png(image.pixels)),
                seed=image.seed,
                draw=image.draws - 1,
                policy=self.plan.policy,
                policy_version=self.plan.policy_version,
                backbone=self.plan.backbone,
                strategy="certificate",
                inclusion=1.0,
                score=image.score,
                annotator="",
                created=now,
                input=shown_under(self.mix.of(image.seed), image.seed, self.inputs),
            )
            for image in settled
            if image.pixels is not None
        ]
        return self.store.certificates.settle(self.job, [one.seed for one in settled], made)
