"""A thread for the engine, and an asyncio face: callers submit draws and iterate over results."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from models.diffusion.condition import size_text
from service.engine.admission import Backlog, PredictionError, Workload, reserved_nfe
from service.engine.engine import Engine
from service.engine.scheduler import Draw, Ticket, unwanted
from service.errors import BackendUnavailable, DeadlineExceeded
from service.ports import DrawKey, DrawResult, SamplingPlan

log = logging.getLogger("winnow.engine")

FAULTS_BEFORE_UNHEALTHY = 3
STUCK_S = 60.0
GRACE_S = 1.0
"""How long after the deadline a caller is still waited for: the sampling loop's own timer goes
first, and this one only frees the request when the sampling loop itself is gone."""


class EngineLoop:
    """Runs an engine until `close`. Implements the drawing half of `ports.BackboneClient`."""

    def __init__(self, engine: Engine, max_waiting: int) -> None:
        self._engine = engine
        self._max_waiting = max_waiting
        self._inbox: queue.SimpleQueue[list[Draw] | None] = queue.SimpleQueue()
        # Draws that a caller waits for, wherever they are: only callers add and remove them.
        self._open: set[Draw] = set()
        self._prediction_error = PredictionError()
        self.draining = False
        """Set by who is about to end it: then it takes redraws alone."""
        self._faults = 0
        self._tick_started: float | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def load(self, parts: Mapping[str, str]) -> None:
        """Bring networks into the running engine, by part and sha256 name.

        Raises BackendUnavailable when one cannot be had, verified or tried.
        """
        loader = self._engine.loader
        if loader is None:
            raise BackendUnavailable("this engine has the networks that it was started with alone")
        await asyncio.to_thread(loader.load, parts)

    @property
    def waiting(self) -> int:
        """Draws that have no slot yet."""
        return sum(len(draws) for draws in self._waiting().values())

    @property
    def running(self) -> int:
        """Slots in use."""
        return len(self._engine.scheduler.running)

    @property
    def idle(self) -> bool:
        """Whether no caller waits for a draw."""
        return not self._open

    @property
    def capacity(self) -> float:
        """NFE a second with all slots in use, as the last ticks went; 0 before any."""
        return self._engine.capacity

    @property
    def workload(self) -> Workload:
        """What there is to do, and how fast it goes."""
        engine = self._engine
        return Workload(
            slots=engine.scheduler.max_batch,
            max_waiting=self._max_waiting,
            running=self.running,
            running_nfe=engine.running_nfe,
            waiting={
                tenant: Backlog(len(draws), sum(draw.reserved for draw in draws))
                for tenant, draws in self._waiting().items()
            },
            pace=replace(engine.pace),
            decoding=engine.decoder.rows,
            decode_batch=engine.decoder.micro_batch,
            decode_pace=replace(engine.decoder.pace),
            slip=round(self._prediction_error.mean, 2),
            draining=self.draining,
            costs={size_text(size): cost for size, cost in engine.costs.items() if size},
        )

    def offer(self, nfe: float) -> None:
        """Note NFE that were asked for and refused before they came here."""
        self._engine.offer(nfe)

    @property
    def offered_nfe(self) -> float:
        """NFE that calls have asked for since the start, admitted or refused."""
        return self._engine.offered_nfe

    async def draw(
        self,
        plan: SamplingPlan,
        keys: Sequence[DrawKey],
        timeout_s: float,
        tenant: str = "",
        again: bool = False,
    ) -> AsyncGenerator[list[DrawResult], None]:
        """Make these draws; yields groups as they finish. Closing it frees their slots.

        With `again`, another replica has refused them, and counted them as asked for.

        Raises Overloaded when they would be late, or too many of this tenant wait already, and
        BackendUnavailable when the engine cannot make them, InvalidValue when the model cannot take
        what they ask of it.
        """
        loop = asyncio.get_running_loop()
        results: asyncio.Queue[list[DrawResult] | Exception] = asyncio.Queue()

        def deliver(item: list[DrawResult] | Exception) -> None:
            # The caller's event loop is closed only when its process is going away.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(results.put_nowait, item)

        ticket = Ticket(deliver, deadline=time.monotonic() + timeout_s, tenant=tenant)
        if self._engine.loader is not None and self._engine.networks.missing(plan.parts):
            await self.load(plan.parts)
        draws = [Draw(plan, key, ticket) for key in keys]
        await self._encoding(self._engine.check, draws)
        nfe = self._engine.cost(plan)
        for draw in draws:
            draw.reserved, draw.cost = reserved_nfe(plan, nfe, draw.key), nfe
        if not self._thread.is_alive():
            raise BackendUnavailable("the engine has stopped")
        if not again:
            self._engine.offer(sum(draw.reserved for draw in draws if draw.key.fresh))
        predicted_s = 0.0
        # Redraws of what was admitted are never refused, and the engine decides on speculation.
        if any(key.fresh and not key.ahead for key in keys):
            workload, reserved = self.workload, [draw.reserved for draw in draws]
            cost = workload.cost(plan.condition.size)
            workload.check(tenant, reserved, timeout_s, cost)
            predicted_s = workload.ready_s(tenant, reserved, cost) / workload.slip
        self._open.update(draws)
        remaining, began = len(draws), time.monotonic()
        try:
            # Once, and only what was admitted: a prompt costs as much as some steps.
            await self._encoding(self._engine.encode, draws)
            self._inbox.put(draws)
            if not self._thread.is_alive():
                # It ended in between, and `close` may have looked into the inbox before.
                raise BackendUnavailable("the engine has stopped")
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
            self._open.difference_update(draws)
            taken_s = time.monotonic() - began
            # Of a call that was given up early nobody knows how long it would have taken.
            if not remaining or taken_s > predicted_s:
                self._prediction_error.observe(predicted_s, taken_s)

    async def _encoding(
        self, work: Callable[[Sequence[Draw]], None], draws: Sequence[Draw]
    ) -> None:
        """Do it, in another thread where the encoder is slow."""
        if self._engine.encoder.slow:
            await asyncio.to_thread(work, draws)
        else:
            work(draws)

    def _waiting(self) -> dict[str, list[Draw]]:
        """The draws that have no slot yet, by tenant, those in the inbox too."""
        now = time.monotonic()
        waiting = defaultdict(list)
        for draw in list(self._open):
            if not (draw.started or draw.speculative or unwanted(draw, now)):
                waiting[draw.tenant].append(draw)
        return waiting

    def check_health(self) -> None:
        """Raises BackendUnavailable when the thread died, hangs, or fails again and again."""
        if not self._thread.is_alive():
            raise BackendUnavailable("the engine thread is not running")
        self._engine.decoder.check_health()
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
        self._engine.decoder.close()

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
            block = False
