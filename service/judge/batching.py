"""An asyncio face for the judges: calls that arrive while others are scored share the next pass."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.errors import CensorUnavailable
from service.judge.judges import Judges
from service.ports import Pixels

log = logging.getLogger("winnow.judge")


@dataclass(eq=False)
class Call:
    """Images that a caller waits for, until `deadline` in `time.monotonic()` seconds."""

    judge: str
    pixels: Sequence[Pixels]
    deadline: float
    scores: asyncio.Future[list[float]]


class JudgeBatcher:
    """Scores in a thread, one pass at a time; each judge sees its calls of a pass as one batch."""

    def __init__(self, judges: Judges, max_batch: int, observe: Callable[[float], None]) -> None:
        """A pass takes calls until it has `max_batch` images; `observe` gets its seconds."""
        self._judges = judges
        self._max_batch = max_batch
        self._observe = observe
        self._waiting: list[Call] = []
        self._running: asyncio.Task[None] | None = None

    async def wait(self) -> None:
        """Return when no call waits for a score."""
        if self._running is not None:
            await self._running

    async def score(self, judge: str, pixels: Sequence[Pixels], timeout_s: float) -> list[float]:
        """The reward of each image, in order. What cannot be scored is refused before it joins a
        pass, and what nobody waits for any more is left out of it.

        Raises CensorUnavailable.
        """
        self._judges.check(judge, pixels)
        future: asyncio.Future[list[float]] = asyncio.get_running_loop().create_future()
        self._waiting.append(Call(judge, pixels, time.monotonic() + timeout_s, future))
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        try:
            while self._waiting:
                calls = self._take()
                started = time.monotonic()
                for judge in {call.judge for call in calls}:
                    await self._judge(judge, [call for call in calls if call.judge == judge])
                self._observe(time.monotonic() - started)
        finally:
            self._running = None

    def _take(self) -> list[Call]:
        """The next calls; those that were given up, or are late, are forgotten unscored."""
        now, images = time.monotonic(), 0
        taken: list[Call] = []
        while self._waiting and images < self._max_batch:
            call = self._waiting.pop(0)
            if call.scores.done():
                continue
            if now >= call.deadline:
                call.scores.set_exception(CensorUnavailable("the judge had no time left"))
                continue
            taken.append(call)
            images += len(call.pixels)
        return taken

    async def _judge(self, judge: str, calls: Sequence[Call]) -> None:
        """One pass of one judge. A judge that fails is the answer to its own calls alone."""
        images = [image for call in calls for image in call.pixels]
        try:
            scores = iter(await asyncio.to_thread(self._judges.score, judge, images))
            found = [[next(scores) for _ in call.pixels] for call in calls]
        except Exception as error:  # whatever went wrong, nothing was judged
            log.error("judge %s failed", judge, exc_info=error)
            fault = CensorUnavailable(f"judge {judge} failed: {error}")
            for call in calls:
                if not call.scores.done():
                    call.scores.set_exception(fault)
            return
        for call, own in zip(calls, found, strict=True):
            if not call.scores.done():
                call.scores.set_result(own)
