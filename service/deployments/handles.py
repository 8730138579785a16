"""Serve handles as the router's two Protocols: Ray's faults become Winnow's."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from service.errors import BackendUnavailable, CensorUnavailable, WinnowError
from service.ports import DrawKey, DrawResult, Pixels, SamplingPlan

log = logging.getLogger("winnow.handles")

READY_S = 5.0


class HandleDrawer:
    """The backbones behind their Serve handles, by model."""

    def __init__(self, handles: Mapping[str, DeploymentHandle[Any]]) -> None:
        self._handles = handles

    async def draw(
        self, plan: SamplingPlan, keys: Sequence[DrawKey], timeout_s: float, tenant: str = ""
    ) -> AsyncGenerator[list[DrawResult], None]:
        """See `ports.Drawer`."""
        handle = self._handles[plan.model].options(stream=True)
        response: Any = handle.draw.remote(plan, keys, timeout_s, tenant)
        try:
            async for group in response:
                yield group
        except (RayError, RayServeException) as error:
            raise _cause(error) or BackendUnavailable(_say("the backbone", error)) from error
        finally:
            response.cancel()

    async def ready(self) -> None:
        """See `ports.Drawer`."""
        for handle in self._handles.values():
            try:
                await _within(handle.ready.remote(), READY_S)
            except (RayError, RayServeException, TimeoutError) as error:
                raise _cause(error) or BackendUnavailable(_say("the backbone", error)) from error


class HandleScorer:
    """The judges behind their Serve handles, by model. Every failure is CensorUnavailable."""

    def __init__(self, handles: Mapping[str, DeploymentHandle[Any]]) -> None:
        self._handles = handles

    async def score(
        self, model: str, judge: str, pixels: Sequence[Pixels], timeout_s: float
    ) -> Sequence[float]:
        """See `ports.Scorer`."""
        response = self._handles[model].score.remote(judge, pixels)
        scores: Sequence[float] = await self._call(response, timeout_s)
        return scores

    async def ready(self) -> None:
        """See `ports.Scorer`."""
        for handle in self._handles.values():
            await self._call(handle.ready.remote(), READY_S)

    async def _call(self, response: Any, timeout_s: float) -> Any:
        try:
            return await _within(response, timeout_s)
        except (RayError, RayServeException, TimeoutError) as error:
            raise _cause(error) or CensorUnavailable(_say("the judge", error)) from error


async def _within(response: Any, timeout_s: float) -> Any:
    """Await a Serve response; give up after `timeout_s`, and then cancel the work as well."""
    try:
        async with asyncio.timeout(timeout_s):
            return await response
    except BaseException:
        response.cancel()
        raise


def _cause(error: Exception) -> WinnowError | None:
    """The WinnowError that a replica raised, taken out of Ray's wrapping."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return cause if isinstance(cause, WinnowError) else None


def _say(who: str, error: Exception) -> str:
    log.warning("%s did not answer", who, exc_info=error)
    return f"{who} did not answer ({type(error).__name__}); it is restarted by itself"
