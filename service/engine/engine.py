"""The engine: schedule, run, postprocess."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from models.codec import Codec
from service.engine.batch import Batch
from service.engine.runner import Runner
from service.engine.scheduler import Draw, Scheduler, Ticket
from service.errors import BackendUnavailable
from service.ports import DrawKey, DrawResult, SamplingPlan

WARM_UP_S = 300.0


class Meter(Protocol):
    """What the engine reports about itself."""

    def tick(self, rows: int, guided: int, waiting: int, seconds: float) -> None:
        """One tick: rows denoised, rows guided, draws left waiting, and its duration."""
        ...


class Engine:
    """Owns the slots. Not thread-safe: `loop.EngineLoop` calls it from one thread."""

    def __init__(
        self, runner: Runner, batch: Batch, codec: Codec, max_batch: int, meter: Meter | None = None
    ) -> None:
        self.scheduler = Scheduler(max_batch)
        self._runner = runner
        self._batch = batch
        self._codec = codec
        self._meter = meter

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self.scheduler.waiting and not self.scheduler.running

    def check(self, draws: Sequence[Draw]) -> None:
        """Refuse draws that this replica cannot make. Raises BackendUnavailable."""
        for draw in draws:
            try:
                self._batch.trajectory(draw.plan.num_inference_steps, draw.plan.eta)
            except ValueError as error:
                raise BackendUnavailable(str(error)) from None
            if draw.plan.backbone != self._runner.backbone:
                raise BackendUnavailable(
                    f"backbone {draw.plan.backbone} is not loaded on this replica"
                )
            if draw.plan.guide is not None and draw.plan.guide not in self._runner.guides:
                raise BackendUnavailable(f"guide {draw.plan.guide} is not loaded on this replica")

    def warm_up(self) -> None:
        """Make one short draw of every guide, so that the first request pays for no set-up.

        Raises BackendUnavailable when the backbone cannot draw.
        """
        results: list[DrawResult] = []

        def deliver(item: list[DrawResult] | Exception) -> None:
            if isinstance(item, Exception):
                raise item
            results.extend(item)

        ticket = Ticket(deliver, deadline=time.monotonic() + WARM_UP_S)
        plans = [canary_plan(guide) for guide in (None, *self._runner.guides)]
        self.scheduler.add([Draw(plan, DrawKey(0, 0, 0), ticket) for plan in plans])
        while not self.idle:
            self.tick()
        if len(results) < len(plans) or any(result.pixels is None for result in results):
            raise BackendUnavailable("the backbone's canary draw made no valid image")

    def tick(self) -> None:
        """Advance every running draw by one step; deliver what is finished."""
        now = time.monotonic()
        self._schedule(now)
        running = self.scheduler.running
        if not running:
            return
        rows = len(running)
        guided = self._runner.advance(self._batch, [draw.plan.guide for draw in running])
        self._postprocess(time.monotonic())
        if self._meter:
            elapsed = time.monotonic() - now
            self._meter.tick(rows, guided, len(self.scheduler.waiting), elapsed)

    def fail(self, error: Exception) -> None:
        """Give every draw's caller this error and free all slots."""
        draws = [*self.scheduler.running, *self.scheduler.waiting]
        self.scheduler.running.clear()
        self.scheduler.waiting.clear()
        for ticket in {id(draw.ticket): draw.ticket for draw in draws}.values():
            if not ticket.cancelled:
                ticket.deliver(error)

    def _schedule(self, now: float) -> None:
        for row in self.scheduler.unwanted_rows(now):
            self._release(row)
        self.scheduler.drop_unwanted(now)
        first = len(self.scheduler.running)
        for offset, draw in enumerate(self.scheduler.admit(now)):
            self._batch.put(first + offset, draw)

    def _postprocess(self, now: float) -> None:
        rows = len(self.scheduler.running)
        done = np.flatnonzero(self._batch.step[:rows] >= self._batch.length[:rows])
        if not done.size:
            return
        pixels, finite = self._codec.to_uint8(self._batch.x_t[done])
        results: dict[int, tuple[Ticket, list[DrawResult]]] = {}
        for position, row in enumerate(done):
            draw = self.scheduler.running[row]
            result = DrawResult(
                key=draw.key,
                pixels=pixels[position] if finite[position] else None,
                nfe=int(self._batch.length[row]),
                queue_s=draw.started - draw.submitted,
                denoise_s=now - draw.started,
            )
            results.setdefault(id(draw.ticket), (draw.ticket, []))[1].append(result)
        for row in done[::-1]:
            self._release(int(row))
        for ticket, group in results.values():
            ticket.deliver(group)

    def _release(self, row: int) -> None:
        self._batch.move(self.scheduler.release(row), row)


def canary_plan(guide: str | None) -> SamplingPlan:
    """A plan of a few steps that exercises the denoiser, and a guide if one is named."""
    return SamplingPlan(
        model="",
        policy="canary",
        policy_version=0,
        backbone="",
        guide=guide,
        judge=None,
        censor_scale=0.0 if guide is None else 1.0,
        guide_interval=(0, 1000),
        threshold=None,
        max_draws=1,
        num_inference_steps=2,
        eta=0.0,
        seed=0,
    )
