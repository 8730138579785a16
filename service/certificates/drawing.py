"""A certificate's images: drawn under the frozen plan until n have been delivered."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from uuid import uuid4

from models.condition import Mix
from models.manifest import Inputs
from models.noise import MAX_SEED
from service.encode import to_png
from service.errors import Conflict, InvalidValue, StoreUnavailable, WinnowError
from service.inputs import drawn as shown_under
from service.ports import FinishReason, SamplingPlan
from service.router import ImageOutcome, Router
from service.store.certificates import Certificate
from service.store.datasets import Shown
from service.store.store import Store

log = logging.getLogger("winnow.certificates")

CHUNK = 8
"""Images that are asked for together: few, since callers wait for the same slots."""

DEADLINE_S = 60.0
PAUSE_S = 1.0
PATIENCE_S = 600.0
"""After so long without a single image the attempt is abandoned."""

BLOCKED_LIMIT = 50
"""Blocked entries for each image wanted, after which it is abandoned: it would hardly end."""

TENANT = "certificate"
"""Whose turn the draws use up."""


@dataclass(frozen=True)
class Drawing:
    """One attempt's images in the making. `n` is how many must be delivered.

    Each seed draws its condition from `mix`; `inputs` are the model's.
    """

    router: Router
    store: Store
    certificate: Certificate
    plan: SamplingPlan
    n: int
    mix: Mix
    inputs: Inputs

    async def run(self) -> None:
        """Draw all of them, or abandon the attempt and say why. Raises nothing."""
        name = self.certificate.id
        try:
            await self._run()
        except Conflict as error:
            log.info("drawing for %s ends: %s", name, error)
        except Exception as error:  # whatever it was, the attempt is over and must say so
            log.error("drawing for %s failed", name, exc_info=error)
            reason = str(error) if isinstance(error, WinnowError) else "drawing failed"
            try:
                await asyncio.to_thread(
                    self.store.certificates.abandon, name, "winnow", f"drawing stopped: {reason}"
                )
            except WinnowError as fault:
                # It reads as abandoned all the same, once it has been silent for a while.
                log.error("%s could not be abandoned: %s", name, fault)

    async def _run(self) -> None:
        """A seed stays until it was delivered or blocked: a fault never picks among images."""
        pending: list[int] = []
        drawn = blocked = 0
        progress = time.monotonic()
        while drawn < self.n:
            before = drawn + blocked
            fault: WinnowError | None = None
            try:
                wanted = min(CHUNK, self.n - drawn) - len(pending)
                pending += await asyncio.to_thread(self._fresh, wanted)
                settled, fault = await self._chunk(pending)
                held = [one for one in settled if one.pixels is None]
                made = [one for one in settled if one.pixels is not None]
                drawn = await asyncio.to_thread(self._keep, made, drawn, blocked + len(held))
                blocked += len(held)
                done = {one.seed for one in settled}
                pending = [seed for seed in pending if seed not in done]
            except StoreUnavailable as error:
                fault = error  # the same seeds make the same images again
            if blocked > BLOCKED_LIMIT * self.n:
                raise WinnowError(f"the policy blocked {blocked} entries and delivered {drawn}")
            if drawn + blocked > before:
                progress = time.monotonic()
            elif time.monotonic() - progress > PATIENCE_S:
                raise fault or WinnowError("no image was ready in time")
            else:
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
        outcome = await self.router.generate(plan, 1, DEADLINE_S, TENANT)
        return outcome.images[0]

    def _fresh(self, n: int) -> list[int]:
        """Seeds whose images nobody has been shown: a label may have trained or tuned with them."""
        seeds = [secrets.randbelow(MAX_SEED + 1) for _ in range(n)]
        used = self.store.certificates.used(self.plan.backbone, seeds)
        return [seed for seed in seeds if seed not in used]

    def _keep(self, made: Sequence[ImageOutcome], drawn: int, blocked: int) -> int:
        """Write images down; also tells that drawing is alive. Returns how many there are."""
        now = datetime.now(UTC)
        batch = []
        for position, image in enumerate(made, drawn):
            assert image.pixels is not None, "a delivered entry has pixels"
            batch.append(
                Shown(
                    id=f"im_{uuid4().hex}",
                    dataset=self.certificate.dataset,
                    batch=self.certificate.id,
                    position=position,
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
            )
        return self.store.certificates.add(self.certificate.id, batch, drawn, blocked, self.n)
