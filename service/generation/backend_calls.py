"""The draw calls of one request: several run side by side, and results come as draws finish."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from service.errors import BackendUnavailable, WinnowError
from service.ports import BackboneClient, DrawKey, DrawResult, SamplingPlan

log = logging.getLogger("winnow.generation")

RETRY_S = (0.1, 0.2, 0.5, 1.0)
"""Waits before a failed backbone is asked again; the last one repeats until the deadline."""


@dataclass(frozen=True)
class LostDraws:
    """A call that ended before it had made these draws, and why."""

    keys: frozenset[DrawKey]
    error: Exception


class Calls:
    """Asks a backbone for draws and gathers what comes back.

    `in_flight` are the draws that were asked for and not lost; whoever takes a result takes its key
    out. `fault` is the backbone's last failure, None once it answers again.
    """

    def __init__(
        self, backbone_client: BackboneClient, plan: SamplingPlan, deadline: float, tenant: str
    ) -> None:
        """`deadline` is a `time.monotonic()` in seconds."""
        self.in_flight: set[DrawKey] = set()
        self.fault: BackendUnavailable | None = None
        self._backbone_client = backbone_client
        self._plan = plan
        self._deadline = deadline
        self._tenant = tenant
        self._failures = 0
        self._events: asyncio.Queue[list[DrawResult] | LostDraws] = asyncio.Queue()
        self._tasks: dict[asyncio.Task[None], set[DrawKey]] = {}

    def ask(self, keys: Sequence[DrawKey]) -> None:
        """Ask for these draws, in one call."""
        left = set(keys)
        self.in_flight |= left
        task = asyncio.ensure_future(self._read(keys, left))
        self._tasks[task] = left
        task.add_done_callback(lambda done: self._tasks.pop(done, None))

    async def results(self) -> tuple[list[DrawResult], list[DrawKey]]:
        """Wait for something to happen: the draws that finished, and those that were lost.

        What is lost may be asked for again: a draw is a function of its seed. Raises what ended a
        call if asking again cannot help.
        """
        found: list[DrawResult] = []
        lost: list[DrawKey] = []
        events = [await self._events.get()]
        while not self._events.empty():
            events.append(self._events.get_nowait())
        for event in events:
            if isinstance(event, LostDraws):
                lost += self._take_lost_draws(event)
            else:
                self.fault, self._failures = None, 0
                # What was dropped meanwhile has had its verdict.
                found += [result for result in event if result.key in self.in_flight]
        return found, lost

    def drop(self, unwanted: Iterable[DrawKey]) -> None:
        """Forget draws; a call that makes nothing else is closed, which frees its slots."""
        gone = set(unwanted)
        self.in_flight -= gone
        for task, left in list(self._tasks.items()):
            if left <= gone:
                task.cancel()

    async def close(self) -> None:
        """Close all calls, which frees their slots."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _take_lost_draws(self, event: LostDraws) -> list[DrawKey]:
        keys = [key for key in event.keys if key in self.in_flight]
        self.in_flight -= event.keys
        if speculative(event.keys):
            return []  # there was no room, and its turn may yet come
        if not isinstance(event.error, BackendUnavailable):
            raise event.error
        self.fault = event.error
        return keys

    async def _read(self, keys: Sequence[DrawKey], left: set[DrawKey]) -> None:
        timeout_s = self._deadline - time.monotonic()
        try:
            draws = self._backbone_client.draw(self._plan, keys, timeout_s, self._tenant)
            async with aclosing(draws) as groups:
                async for group in groups:
                    left -= {result.key for result in group}
                    self._events.put_nowait(group)
            if left:
                raise BackendUnavailable("the backbone ended before all draws were made")
        except Exception as error:  # the request's own loop raises it, or asks again
            if isinstance(error, BackendUnavailable) and not speculative(left):
                log.warning("asking the backbone again: %s", error)
                await asyncio.sleep(RETRY_S[min(self._failures, len(RETRY_S) - 1)])
                self._failures += 1
            elif not isinstance(error, WinnowError):
                log.warning("a draw call failed", exc_info=error)
            self._events.put_nowait(LostDraws(frozenset(left), error))


def speculative(keys: Iterable[DrawKey]) -> bool:
    """Whether these draws were asked for only in case that lower ones are not accepted."""
    return all(key.ahead for key in keys)
