"""Serve handles as the router's two Protocols: Ray's faults become Winnow's."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from service.errors import BackendUnavailable, CensorUnavailable, Overloaded, WinnowError
from service.ports import DrawKey, DrawResult, Pixels, SamplingPlan

log = logging.getLogger("winnow.handles")

READY_S = 5.0
LOAD_S = 60.0


class HandleDrawer:
    """The backbones behind their Serve handles, by model."""

    def __init__(self, handles: Mapping[str, DeploymentHandle[Any]]) -> None:
        self._handles = handles
        self._streams = {name: handle.options(stream=True) for name, handle in handles.items()}

    async def draw(
        self, plan: SamplingPlan, keys: Sequence[DrawKey], timeout_s: float, tenant: str = ""
    ) -> AsyncGenerator[list[DrawResult], None]:
        """See `ports.Drawer`. What one replica refuses, another may try once.

        Of two refusals the shorter wait counts.
        """
        first: Overloaded | None = None
        try:
            async with aclosing(self._draw(plan, keys, timeout_s, tenant, None)) as groups:
                async for group in groups:
                    yield group
        except Overloaded as error:
            if all(key.ahead for key in keys):
                raise
            first = error
        if first is None:
            return
        try:
            again = self._draw(plan, keys, timeout_s, tenant, first.refused_by)
            async with aclosing(again) as groups:
                async for group in groups:
                    yield group
        except Overloaded as second:
            raise min(first, second, key=lambda error: error.retry_after_s or 0.0) from None

    async def _draw(
        self,
        plan: SamplingPlan,
        keys: Sequence[DrawKey],
        timeout_s: float,
        tenant: str,
        avoid: str | None,
    ) -> AsyncGenerator[list[DrawResult], None]:
        response: Any
        ended = False
        if len(keys) == 1:
            # One draw is one answer, and Serve is milliseconds faster without a stream.
            one = self._handles[plan.model].draw_one
            response = one.remote(plan, keys[0], timeout_s, tenant, avoid=avoid)
        else:
            several = self._streams[plan.model].draw
            response = several.remote(plan, keys, timeout_s, tenant, avoid=avoid)
        try:
            if len(keys) == 1:
                group = await response
                ended = True
                yield group
                return
            async for group in response:
                yield group
            ended = True
        except (RayError, RayServeException) as error:
            raise cause(error) or BackendUnavailable(say("the backbone", error)) from error
        finally:
            if not ended:
                response.cancel()

    async def load(self, model: str, weights: Mapping[str, str]) -> None:
        """Bring networks into every replica of a model, by part and sha256 name.

        Each verifies and tries them first. Raises BackendUnavailable if one of them cannot.
        """
        try:
            await _everywhere(self._handles[model], weights)
        except (RayError, RayServeException, TimeoutError) as error:
            raise cause(error) or BackendUnavailable(say("the backbone", error)) from error

    async def ready(self) -> None:
        """See `ports.Drawer`."""
        for handle in self._handles.values():
            try:
                await _within(handle.ready.remote(), READY_S)
            except (RayError, RayServeException, TimeoutError) as error:
                raise cause(error) or BackendUnavailable(say("the backbone", error)) from error


class HandleScorer:
    """The judges behind their Serve handles, by model. Every failure is CensorUnavailable."""

    def __init__(self, handles: Mapping[str, DeploymentHandle[Any]]) -> None:
        self._handles = handles

    async def score(
        self, model: str, judge: str, pixels: Sequence[Pixels], timeout_s: float
    ) -> Sequence[float]:
        """See `ports.Scorer`. A replica that dies meanwhile is replaced by another, once."""
        try:
            response = self._handles[model].score.remote(judge, pixels)
            scores: Sequence[float] = await self._call(response, timeout_s)
        except CensorUnavailable as error:
            if not isinstance(error.__cause__, RayActorError):
                raise
            response = self._handles[model].score.remote(judge, pixels)
            scores = await self._call(response, timeout_s)
        return scores

    async def score_everywhere(self, model: str, judge: str, pixels: Pixels) -> list[float | None]:
        """The score of each of a model's judges, None of one that failed.

        Raises CensorUnavailable when they did not all answer in time.
        """
        try:
            call = self._handles[model].broadcast("score", judge, [pixels])
            answers = await call.results_async(timeout_s=READY_S, return_exceptions=True)
            return [None if isinstance(one, BaseException) else one[0] for one in answers]
        except (RayError, RayServeException, TimeoutError) as error:
            raise cause(error) or CensorUnavailable(say("a judge", error)) from error

    async def load(self, model: str, weights: Mapping[str, str]) -> None:
        """See `HandleDrawer.load`; of these, the judge. Raises CensorUnavailable."""
        try:
            await _everywhere(self._handles[model], weights)
        except (RayError, RayServeException, TimeoutError) as error:
            raise cause(error) or CensorUnavailable(say("the judge", error)) from error

    async def ready(self) -> None:
        """See `ports.Scorer`."""
        for handle in self._handles.values():
            await self._call(handle.ready.remote(), READY_S)

    async def _call(self, response: Any, timeout_s: float) -> Any:
        try:
            return await _within(response, timeout_s)
        except (RayError, RayServeException, TimeoutError) as error:
            raise cause(error) or CensorUnavailable(say("the judge", error)) from error


async def _everywhere(handle: DeploymentHandle[Any], weights: Mapping[str, str]) -> None:
    # Serve refuses the call when no replica runs: nothing would have been tried.
    await handle.broadcast("load", dict(weights)).results_async(timeout_s=LOAD_S)


async def _within(response: Any, timeout_s: float) -> Any:
    """Await a Serve response; give up after `timeout_s`, and then cancel the work as well."""
    try:
        async with asyncio.timeout(timeout_s):
            return await response
    except BaseException:
        response.cancel()
        raise


def cause(error: Exception) -> WinnowError | None:
    """The WinnowError that a replica raised, taken out of Ray's wrapping."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return cause if isinstance(cause, WinnowError) else None


def say(who: str, error: Exception) -> str:
    log.warning("%s did not answer", who, exc_info=error)
    return f"{who} did not answer ({type(error).__name__}); it is restarted by itself"
