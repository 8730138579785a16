"""A thread for the engine, and an asyncio face: callers submit draws and iterate over results."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncGenerator, Mapping, Sequence

from service.engine.admission import reserved_nfe
from service.engine.engine import Engine
from service.engine.scheduler import Draw, Ticket
from service.errors import BackendUnavailable, DeadlineExceeded, Overloaded
from service.ports import DrawKey, DrawResult, SamplingPlan

log = logging.getLogger("winnow.engine")

FAULTS_BEFORE_UNHEALTHY = 3
STUCK_S = 60.0
GRACE_S = 1.0
"""How long after the deadline a caller is still waited for: the router's own timer goes first, and
this one only frees the request when the router itself is gone."""


class EngineLoop:
    """Runs an engine until `close`. Implements the drawing half of `ports.Drawer`."""

    def __init__(self, engine: Engine, max_waiting: int) -> None:
        self._engine = engine
        self._max_waiting = max_waiting
        self._inbox: queue.SimpleQueue[list[Draw] | None] = queue.SimpleQueue()
        # Draws put into the inbox, by callers, and taken out of it, by the engine's thread.
        self._submitted = self._received = 0
        self._submitted_nfe = self._received_nfe = 0.0
        self._faults = 0
        self._tick_started: float | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def load(self, weights: Mapping[str, str]) -> None:
        """Bring networks into the running engine, by part and sha256 name.

        Raises BackendUnavailable when one cannot be had, verified or tried.
        """
        loader = self._engine.loader
        if loader is None:
            raise BackendUnavailable("this engine has the networks that it was started with alone")
        await asyncio.to_thread(loader.load, weights)

    @property
    def waiting(self) -> int:
        """Draws that have no slot yet."""
        return len(self._engine.scheduler.waiting) + self._submitted - self._received

    @property
    def running(self) -> int:
        """Slots in use."""
        return len(self._engine.scheduler.running)

    async def draw(
        self, plan: SamplingPlan, keys: Sequence[DrawKey], timeout_s: float, tenant: str = ""
    ) -> AsyncGenerator[list[DrawResult], None]:
        """Make these draws; yields groups as they finish. Closing it frees their slots.

        Raises Overloaded when too many draws wait already, BackendUnavailable when the engine
        cannot make them.
        """
        loop = asyncio.get_running_loop()
        results: asyncio.Queue[list[DrawResult] | Exception] = asyncio.Queue()

        def deliver(item: list[DrawResult] | Exception) -> None:
            # The caller's event loop is closed only when its process is going away.
            if not loop.is_closed():
                loop.call_soon_threadsafe(results.put_nowait, item)

        ticket = Ticket(deliver, deadline=time.monotonic() + timeout_s, tenant=tenant)
        loader = self._engine.loader
        if loader is not None and (missing := loader.missing(plan)):
            await self.load(missing)
        self._engine.check([Draw(plan, key, ticket) for key in keys])
        nfe = self._engine.cost(plan)
        draws = [Draw(plan, key, ticket, reserved_nfe(plan, nfe, key)) for key in keys]
        if not self._thread.is_alive():
            raise BackendUnavailable("the engine has stopped")
        # Redraws of what was admitted are never refused, and the engine decides on speculation.
        if any(key.fresh and not key.ahead for key in keys):
            self._admit(draws, timeout_s)
        self._submitted += len(draws)
        self._submitted_nfe += sum(draw.reserved for draw in draws)
        self._inbox.put(draws)
        remaining = len(draws)
        try:
            while remaining:
                left = ticket.deadline - time.monotonic() + GRACE_S
                item = await asyncio.wait_for(results.get(), left)
                if isinstance(item, Exception):
                    raise item
                remaining -= len(item)
                yield item
        except TimeoutError:
            raise DeadlineExceeded("the draws were not finished in time") from None
        finally:
            ticket.cancelled = True

    def _admit(self, draws: Sequence[Draw], timeout_s: float) -> None:
        """Refuse draws that would not be done in time. Raises Overloaded with a true wait."""
        engine, slots = self._engine, self._engine.scheduler.max_batch
        queued = self.waiting - (slots - self.running)
        waiting_nfe = engine.scheduler.waiting.nfe + self._submitted_nfe - self._received_nfe
        ahead = engine.running_nfe + waiting_nfe
        longest = max(draw.reserved for draw in draws)
        own = sum(draw.reserved for draw in draws)
        count = self.waiting + self.running + len(draws)
        finish_s = engine.pace.finish_s(ahead + own, count, longest, slots)
        # What could not be done in time by an idle engine either is let in when it is idle: some
        # of its draws may be.
        if finish_s > timeout_s and ahead > 0:
            drained_s = engine.pace.finish_s(ahead, count - len(draws), 0, slots)
            raise Overloaded(
                f"these draws would take {finish_s:.1f} s, and have {timeout_s:.1f} s",
                retry_after_s=min(finish_s - timeout_s, drained_s),
            )
        if queued > 0 and queued + len(draws) > self._max_waiting:
            excess = (queued + len(draws) - self._max_waiting) / max(1, self.waiting)
            raise Overloaded(
                f"{queued} draws are waiting, the limit is {self._max_waiting}",
                retry_after_s=engine.pace.finish_s(excess * waiting_nfe, count, 0, slots),
            )

    def check_health(self) -> None:
        """Raises BackendUnavailable when the thread died, hangs, or fails again and again."""
        if not self._thread.is_alive():
            raise BackendUnavailable("the engine thread is not running")
        if self._faults >= FAULTS_BEFORE_UNHEALTHY:
            raise BackendUnavailable(f"the last {self._faults} engine ticks failed")
        started = self._tick_started
        if started is not None and time.monotonic() - started > STUCK_S:
            raise BackendUnavailable(f"an engine tick has run for more than {STUCK_S:.0f} s")

    def close(self) -> None:
        """Stop the thread; draws that are still running get BackendUnavailable."""
        self._inbox.put(None)
        self._thread.join()
        # What arrived while the thread was ending.
        self._receive(block=False)
        self._engine.fail(BackendUnavailable("the backbone is shutting down"))

    def _run(self) -> None:
        while True:
            if not self._receive(block=self._engine.idle):
                self._engine.fail(BackendUnavailable("the backbone is shutting down"))
                return
            self._tick_started = time.monotonic()
            try:
                self._engine.tick()
                self._faults = 0
            except Exception:  # a fault in one batch must not end the service
                self._faults += 1
                log.exception("engine tick failed")
                self._engine.fail(
                    BackendUnavailable("the denoiser failed; the log holds its cause")
                )
            self._tick_started = None

    def _receive(self, block: bool) -> bool:
        """Take in all that has arrived, waiting for it with `block`; False once closed."""
        while True:
            try:
                draws = self._inbox.get(block=block)
            except queue.Empty:
                return True
            if draws is None:
                return False
            self._engine.scheduler.add(draws)
            self._received += len(draws)
            self._received_nfe += sum(draw.reserved for draw in draws)
            block = False
