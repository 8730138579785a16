"""Readiness of each part, every one with a time limit."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future

from service.api.context import Context
from service.errors import (
    BackendUnavailable,
    CensorUnavailable,
    PolicyDisabled,
    StoreUnavailable,
    WinnowError,
)

log = logging.getLogger("winnow.api")

FRESH_S = 1.0
"""An answer stands for so long, so that polling costs the parts next to nothing."""

BLOBS_FRESH_S = 30.0
"""The same of the blobs, which may lie in a bucket that counts what is written."""

PART_S = 4.0
STORE_S = 2.0
"""What hangs for so long is not ready; who polls waits five seconds at most, as a rule."""

Faults = Mapping[str, WinnowError | None]
"""Each part's fault, None where there is none."""

TOLD = frozenset({"blobs"})
"""Parts that are reported and do not count: labelling needs them, generation does not."""


class Readiness:
    """Asks all parts at once, for all who want to know at that moment. Of one event loop."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._blobs = Probe(context.store.blobs.probe, BLOBS_FRESH_S)
        self._looking: asyncio.Task[Faults] | None = None
        self._looked = 0.0

    async def look(self) -> Faults:
        """The fault of each part. Takes no longer than `PART_S`, whatever hangs."""
        looking = self._looking
        if looking is None or (looking.done() and time.monotonic() - self._looked > FRESH_S):
            self._looking = looking = asyncio.create_task(self._look())
        # A caller that disconnects must not cancel the check for the others.
        return await asyncio.shield(looking)

    async def _look(self) -> Faults:
        context = self._context
        parts = {
            "backbone": _fault(context.backbone_client.ready(), PART_S, BackendUnavailable),
            "judge": _fault(context.judge_client.ready(), PART_S, CensorUnavailable),
            "policies": _fault(_policies(context), PART_S, StoreUnavailable),
            "decisions": _fault(context.recorder.check(), STORE_S, StoreUnavailable),
            "blobs": _fault(self._blobs.check(), STORE_S, StoreUnavailable),
        }
        found = dict(zip(parts, await asyncio.gather(*parts.values()), strict=True))
        self._looked = time.monotonic()
        return found


async def _fault(
    work: Awaitable[None], within_s: float, kind: type[WinnowError]
) -> WinnowError | None:
    try:
        async with asyncio.timeout(within_s):
            await work
    except WinnowError as error:
        return error
    except TimeoutError:
        return kind(f"no answer within {within_s:g} s")
    except Exception as error:  # a part that cannot say what is wrong is not ready either
        log.error("not ready", exc_info=error)
        return kind(f"{type(error).__name__}; the log holds its cause")
    return None


async def _policies(context: Context) -> None:
    """Raises why no policy in force can be used; those that somebody switched off are no fault, and
    one without a judge is no sign that the others can be used."""
    policy_registry = context.policy_registry
    policy_registry.require_fresh()
    fault: WinnowError | None = None
    for name in policy_registry.pointers:
        try:
            policy = policy_registry.get(name)
            await context.canaries.admit(policy)
        except PolicyDisabled:
            continue
        except WinnowError as error:
            fault = fault or error
        else:
            if policy.judge:
                return
    if fault is not None:
        raise fault


class Probe:
    """Work that may hang, done in a thread: one at a time, and not again while it is fresh."""

    def __init__(self, work: Callable[[], None], fresh_s: float) -> None:
        self._work = work
        self._fresh_s = fresh_s
        self._done: Future[None] | None = None
        self._at = 0.0

    async def check(self) -> None:
        """Return if it went well, now or a moment ago. Raises what it raised."""
        done = self._done
        stale = time.monotonic() - self._at > self._fresh_s
        if done is None or (done.done() and (stale or done.exception() is not None)):
            self._done = done = Future()
            self._at = time.monotonic()
            threading.Thread(target=self._run, args=(done,), name="probe", daemon=True).start()
        await asyncio.shield(asyncio.wrap_future(done))

    def _run(self, done: Future[None]) -> None:
        try:
            self._work()
        except Exception as error:  # told to whoever asks
            done.set_exception(error)
        else:
            done.set_result(None)
