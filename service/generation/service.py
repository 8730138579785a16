"""The use case: from a caller's order to an answer that may leave."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

from models.bundles.manifest import Manifest
from service.config import Caller, Settings
from service.errors import (
    BackendUnavailable,
    DeadlineExceeded,
    ModerationBlocked,
    Overloaded,
    StoreUnavailable,
    WinnowError,
)
from service.generation.order import Order, Wanted, read
from service.generation.record import Decision, Request, redacted_plan, row, versions
from service.generation.sampling_loop import Outcome, SamplingLoop
from service.generation.shadow import JudgedDraws, Shadows
from service.policies.canary import Canaries
from service.policies.policy import Policy, sampling_of
from service.policies.registry import PolicyRegistry
from service.ports import BackboneClient, DrawKey, FinishReason, SamplingPlan
from service.store.recorder import Recorder
from service.store.schema import Row

log = logging.getLogger("winnow.requests")

RECORDING_S = 0.5
"""How long after the deadline an answer may still be encoded and recorded."""

INLINE_BYTES = 64 * 1024
"""Pixels up to this are encoded at once: a thread would cost more than it saves."""

ENCODERS = 2
"""Threads that encode: more would hold up the event loop, which needs Python's lock too."""


@dataclass(frozen=True)
class Answer:
    """What an order came to; `error` says why no image leaves, where none does.

    `body` is what leaves, as the service's `encode` made it. `shadow` is the version that is to
    score what was judged, once the answer has gone.
    """

    decision_id: str
    order: Order
    outcome: Outcome
    error: WinnowError | None = None
    certified: bool = False
    shadow: Policy | None = None
    body: bytes | memoryview = b""

    @property
    def code(self) -> str:
        """`ok` or the error's code, as log, record and metrics have it."""
        return "ok" if self.error is None else self.error.code


class Metrics(Protocol):
    """What counts requests and what they came to."""

    def outcome(self, outcome: Outcome) -> None:
        """Count what an answered request came to."""
        ...

    def request(
        self, model: str, policy: str, code: str, seconds: float, short_deadline: bool = False
    ) -> None:
        """Count a request that ended with `code`."""
        ...


@dataclass(frozen=True)
class GenerationService:
    """Takes orders and answers them. All of it belongs to one event loop.

    `covers` says whether a passed certificate covers a plan under a policy, whose seed is ours or
    the caller's. `encode` makes the body of an answer piece by piece, in a thread where its images
    are large; a piece holds Python's lock for a few milliseconds at most.
    """

    settings: Settings
    manifests: Mapping[str, Manifest]
    policy_registry: PolicyRegistry
    canaries: Canaries
    backbone_client: BackboneClient
    sampling_loops: Mapping[str, SamplingLoop]
    shadows: Shadows
    recorder: Recorder
    metrics: Metrics
    covers: Callable[[Policy, SamplingPlan, bool], bool]
    encode: Callable[[Answer], Iterable[bytes]]
    _encoders: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(ENCODERS, "encode"), init=False
    )

    def order(self, wanted: Wanted, caller: Caller, request_id: str, received: float) -> Order:
        """What is wanted, checked; see `order.read`. An outage of the store is counted and logged.

        Raises a WinnowError that names the field.
        """
        try:
            return read(
                self.settings,
                self.manifests,
                self.policy_registry,
                wanted,
                caller,
                request_id,
                received,
            )
        except (BackendUnavailable, StoreUnavailable) as error:
            name = wanted.policy or self.settings.default_policy
            if name in self.policy_registry.pointers:
                policy = self.policy_registry.policies.get(name)
                model = policy.settings.model if policy else "unknown"
                self.metrics.request(model, name, error.code, 0.0)
                line = {"event": "generation", "policy": name, "code": error.code}
                log.warning("generation", extra={"fields": line | {"why": str(error)}})
            raise

    async def generate(self, order: Order) -> Answer:
        """Draw, judge, record, and answer: a fault is an answer too, of which no image leaves.

        Raises Overloaded where nothing was drawn.
        """
        self._refuse_early(order)
        begun = self.policy_registry.pointers[order.policy.name]
        shadow = self.policy_registry.shadow(order.policy.name)
        judged_draws = None if shadow is None else JudgedDraws()
        outcome = Outcome.begin(order.plan, order.n, judged_draws)
        decision = self._decision(order)
        code, answered = "cancelled", False
        try:
            # From the first byte on: nobody waits longer because the request came slowly.
            async with _until(order.deadline, order):
                await self.canaries.admit(order.policy)
            left_s = order.deadline - time.monotonic()
            work = self.sampling_loops[order.plan.model].fill(outcome, left_s, order.caller.name)
            # What is switched off meanwhile leaves nothing, whatever was accepted already.
            await self.policy_registry.guard(begun, work)
            certified = self.covers(order.policy, order.plan, order.seed_is_ours)
            error = _blocked(order, outcome) or _undelivered(order, outcome)
            answer = Answer(decision.id, order, outcome, error, certified, shadow)
            async with _until(order.deadline + RECORDING_S, order):
                answer, record = await self._finish(answer, decision)
                await self.recorder.write(record)
            # To encode and to record take a while, and nothing is awaited after this last look.
            self.policy_registry.check(begun)
            self.canaries.check(order.policy)
            self.metrics.outcome(outcome)
            code, answered = answer.code, True
            return answer
        except Overloaded as error:
            code = error.code
            raise
        except WinnowError as error:
            code = error.code
            outcome.withhold()
            failed = Answer(decision.id, order, outcome, error)
            return replace(failed, body=self._body(failed))
        except Exception:
            code = "internal_error"
            raise
        finally:
            if not answered:
                outcome.withhold()
            seconds = time.monotonic() - order.received
            self._count(order, code, seconds)
            _log(decision, order, code, seconds, outcome)
            # After a refusal nothing was drawn or decided, and to refuse must stay cheap.
            if not answered and code != Overloaded.code:
                # No image leaves, and whoever was cancelled cannot wait.
                self.recorder.note(row(decision.record(code, seconds, outcome)))

    async def shadow(self, answer: Answer) -> None:
        """Let a shadow score what was judged: to be called once the answer has gone."""
        judged_draws = answer.outcome.on_judged
        if answer.shadow is not None and isinstance(judged_draws, JudgedDraws):
            await self.shadows.offer(answer.shadow, answer.order.plan, judged_draws)

    def close(self) -> None:
        """End the threads that encode."""
        self._encoders.shutdown(wait=False, cancel_futures=True)

    async def _finish(self, answer: Answer, decision: Decision) -> tuple[Answer, Row]:
        """The answer with its body, and its record: a PNG or a hash of many pixels takes long.

        When this is cancelled, the thread stops before its next piece.
        """
        unwanted = threading.Event()
        images = answer.outcome.images
        # Whoever is cancelled withholds the images while the thread still reads them.
        seen = replace(answer.outcome, images=[replace(image) for image in images])

        def finish() -> tuple[memoryview, Row]:
            body = self._body(replace(answer, outcome=seen), unwanted)
            seconds = time.monotonic() - answer.order.received
            return body, row(decision.record(answer.code, seconds, seen))

        size = sum(image.pixels.nbytes for image in images if image.pixels is not None)
        try:
            if size <= INLINE_BYTES:
                body, record = finish()
            else:
                loop = asyncio.get_running_loop()
                body, record = await loop.run_in_executor(self._encoders, finish)
        finally:
            unwanted.set()
        return replace(answer, body=body), record

    def _body(self, answer: Answer, unwanted: threading.Event | None = None) -> memoryview:
        """What `encode` makes. Raises CancelledError once it is `unwanted`."""
        body = bytearray()
        for piece in self.encode(answer):
            if unwanted is not None and unwanted.is_set():
                raise CancelledError
            # Not `join`: it would hold Python's lock while it copies all of them.
            body += piece
        return memoryview(body)

    def _refuse_early(self, order: Order) -> None:
        """Refuse what no backbone would take, before it costs anything. Raises Overloaded."""
        left_s = order.deadline - time.monotonic()
        keys = [DrawKey(index, order.plan.seed + index, 0) for index in range(order.n)]
        try:
            self.backbone_client.check(order.plan, keys, left_s, order.caller.name)
        except Overloaded as error:
            self._count(order, error.code, time.monotonic() - order.received)
            raise

    def _count(self, order: Order, code: str, seconds: float) -> None:
        short_deadline = order.deadline_s < self.settings.limits.deadline_s
        self.metrics.request(
            order.plan.model, order.policy.name, code, seconds, short_deadline=short_deadline
        )

    def _decision(self, order: Order) -> Decision:
        model = order.plan.model
        plan, prompt = redacted_plan(order.plan, self.settings.store.keep_prompts)
        return Decision(
            request_id=order.request_id,
            key=order.caller.name,
            request=Request(
                n=order.n,
                deadline_s=order.deadline_s,
                on_filtered=order.on_filtered,
                prompt=prompt,
            ),
            plan=plan,
            versions=versions(
                self.settings.models[model],
                self.manifests[model],
                sampling_of(plan, order.policy.backbone),
            ),
        )


@asynccontextmanager
async def _until(end: float, order: Order) -> AsyncIterator[None]:
    """Raises DeadlineExceeded where what is within lasts until `end`, of `time.monotonic()`."""
    try:
        async with asyncio.timeout(max(end - time.monotonic(), 0.0)):
            yield
    except TimeoutError:
        raise _late(order) from None


def _late(order: Order) -> DeadlineExceeded:
    return DeadlineExceeded(f"no image was ready within {order.deadline_s:g} s")


def _blocked(order: Order, outcome: Outcome) -> ModerationBlocked | None:
    """Whether the whole request counts as blocked; then images that were accepted stay here."""
    blocked = outcome.count(FinishReason.CONTENT_FILTERED)
    limit = {"error_if_any": 1, "error_if_all": order.n}.get(order.on_filtered)
    if limit is None or blocked < limit:
        return None
    outcome.withhold()
    return ModerationBlocked(
        f"policy {order.policy.name!r} held back {blocked} of {order.n} images"
    )


def _undelivered(order: Order, outcome: Outcome) -> WinnowError | None:
    """Why nothing was delivered, where a fault is why."""
    if not outcome.delivered and outcome.count(FinishReason.DEADLINE):
        return _late(order)
    if not outcome.delivered and outcome.count(FinishReason.ERROR):
        return BackendUnavailable("the backbone made no valid image")
    return None


def _log(decision: Decision, order: Order, code: str, seconds: float, outcome: Outcome) -> None:
    line = {
        "event": "generation",
        "id": decision.id,
        "request_id": decision.request_id,
        "key": decision.key,
        "model": order.plan.model,
        "policy": order.policy.name,
        "policy_version": order.plan.policy_version,
        "judge": order.plan.judge,
        "n": order.n,
        "code": code,
        "seconds": round(seconds, 4),
        "draws": outcome.draws,
        "nfe": outcome.nfe,
        "finish_reasons": [
            image.finish_reason.value if image.finish_reason else None for image in outcome.images
        ],
    }
    log.info("generation", extra={"fields": line})
