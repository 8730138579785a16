"""The engine: schedule, run, postprocess."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from models.backbones.encoders import Encoder, Unconditional
from models.bundles.parts import PARTS, Stage
from models.diffusion.codec import Codec
from models.diffusion.condition import ConditionError
from models.diffusion.conditioning import Encoded
from models.diffusion.method import Method
from models.sampling.batch import Batch
from models.sampling.runner import Runner
from service.engine.admission import TickTimes
from service.engine.decoder import Decoder, Finished
from service.engine.networks import Loader, Networks
from service.engine.scheduler import Draw, Scheduler, Ticket, unwanted
from service.errors import BackendUnavailable, InvalidValue, Overloaded
from service.ports import DrawKey, DrawResult, SamplingPlan

WARM_UP_S = 300.0
IDLE_BACKOFF_S = 0.01
"""How long a tick with nothing to do waits for a decoder that is behind."""


class Meter(Protocol):
    """What the engine reports about itself."""

    def tick(self, rows: int, guided: int, gradient: int, negative: int, seconds: float) -> None:
        """One tick: rows denoised, rows steered, NFE that gradients through the denoiser and
        classifier-free guidance added, and its duration."""
        ...

    def offered(self, nfe: float) -> None:
        """NFE that a call asks for, whether it is admitted or not."""
        ...

    def saved(self, reason: Literal["probe", "cancelled"], nfe: float) -> None:
        """NFE that a running draw had left when it was ended."""
        ...

    def decoded(self, rows: int, seconds: float) -> None:
        """One decoding of finished rows, and its duration."""
        ...


class Engine:
    """Owns the slots. Not thread-safe: `loop.EngineLoop` calls it from one thread.

    Only its `loader`, which brings networks that it was not started with, may be called from any.
    """

    def __init__(
        self,
        runner: Runner[Networks],
        batch: Batch,
        codec: Codec,
        max_batch: int,
        meter: Meter | None = None,
        loader: Loader | None = None,
        encoder: Encoder | None = None,
        micro_batch: int = 4,
    ) -> None:
        """`encoder` tells the denoiser what is asked of it; a codec that costs decodes
        `micro_batch` finished rows at a time, in a thread of its own."""
        self.loader = loader
        self.encoder = encoder or Unconditional()
        self.decoder = Decoder(codec, micro_batch, meter.decoded if meter else _no_op)
        self.networks = runner.networks
        self.scheduler = Scheduler(max_batch)
        self.pace = TickTimes()
        self.offered_nfe = 0.0
        self._runner = runner
        self._batch = batch
        self._meter = meter

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        scheduler = self.scheduler
        return not (scheduler.waiting or scheduler.running or scheduler.speculative)

    def check(self, draws: Sequence[Draw]) -> None:
        """Refuse draws that this replica cannot make. Raises BackendUnavailable, and InvalidValue
        for what the model cannot take."""
        for draw in draws:
            try:
                self._batch.program(draw.plan.method)
            except ValueError as error:
                raise BackendUnavailable(str(error)) from None
            if draw.plan.backbone != self._runner.backbone:
                raise BackendUnavailable(
                    f"backbone {draw.plan.backbone} is not loaded on this replica"
                )
            if len(draw.plan.probe_thresholds) != len(draw.plan.method.probes):
                raise BackendUnavailable(
                    f"{len(draw.plan.method.probes)} probes have "
                    f"{len(draw.plan.probe_thresholds)} thresholds"
                )
            places = self.networks.places(draw.plan.parts)
            for stage in (Stage.STEERS, Stage.BACKWARD, Stage.PROBES):
                if stage.asked_by(draw.plan.method) and stage not in places:
                    raise BackendUnavailable(f"the plan names no network that {stage.value}")
            if draw.plan.method.classifier_scale and not self._runner.classifies:
                raise BackendUnavailable("this replica has no classifier to steer by")
            with _as_invalid():
                self.encoder.check(draw.plan.condition, draw.key.seed)

    def encode(self, draws: Sequence[Draw]) -> None:
        """Encode each draw's condition. Any thread may call it."""
        for draw in draws:
            with _as_invalid():
                draw.encoded_condition = self.encoder.encode(draw.plan.condition, draw.key.seed)

    def cost(self, plan: SamplingPlan) -> int:
        """NFE of one whole draw of a plan that `check` has passed."""
        program = self._batch.program(plan.method)
        halves = 2 if self.encoder.scale(plan.condition) > 1 else 1
        nfe = sum(PARTS[part].nfe for part in plan.parts)
        return halves * (len(program) + program.guided * nfe)

    @property
    def running_nfe(self) -> float:
        """NFE that the running draws have left, expected redraws included."""
        spent = self._batch.nfe.tolist()
        running = enumerate(self.scheduler.running)
        return sum(max(draw.reserved - spent[row], 0.0) for row, draw in running)

    @property
    def capacity(self) -> float:
        """NFE a second with all slots in use, as the last ticks went; 0 before any."""
        slots = self.scheduler.max_batch
        tick_s = self.pace.tick_s(slots)
        return slots * self.pace.nfe_per_row / tick_s if tick_s else 0.0

    def offer(self, nfe: float) -> None:
        """Note NFE that a call asks for, whether it is admitted or not."""
        self.offered_nfe += nfe
        if self._meter:
            self._meter.offered(nfe)

    def warm_up(self) -> None:
        """Make one short draw of every guide, so that the first request pays for no set-up.

        Raises BackendUnavailable when the backbone cannot draw.
        """
        results: list[DrawResult] = []
        faults: list[Exception] = []

        def deliver(item: list[DrawResult] | Exception) -> None:
            # Not raised here: it may be the decoder's thread that says so.
            if isinstance(item, Exception):
                faults.append(item)
            else:
                results.extend(item)

        ticket = Ticket(deliver, deadline=time.monotonic() + WARM_UP_S)
        known = self.encoder.example
        plans = [canary_plan(), *(canary_plan(dict([named])) for named in self.networks.names)]
        plans += [canary_plan(classifier_scale=1.0)] if self._runner.classifies else []
        plans = [replace(plan, condition=known) for plan in plans]
        self.scheduler.add([Draw(plan, DrawKey(0, 0, 0), ticket) for plan in plans])
        self.run_to_end()
        for fault in faults:
            raise fault
        if len(results) < len(plans) or any(result.pixels is None for result in results):
            raise BackendUnavailable("the backbone's canary draw made no valid image")
        # These did the set-up: they say nothing of those to come.
        self.pace, self.decoder.pace = TickTimes(), TickTimes()

    def run_to_end(self, on_tick: Callable[[], None] = lambda: None) -> None:
        """Tick until nothing waits or runs, and all of it is delivered."""
        while not self.idle:
            self.tick()
            on_tick()
        self.decoder.wait()

    def tick(self) -> None:
        """Advance every running draw by one step; deliver what is finished."""
        now = time.monotonic()
        self._schedule(now)
        running = self.scheduler.running
        if not running:
            if self.decoder.full:
                time.sleep(IDLE_BACKOFF_S)
            return
        rows = len(running)
        tick = self._runner.advance(self._batch, rows)
        self._postprocess(tick.abandoned, time.monotonic())
        elapsed = time.monotonic() - now
        self.pace.observe(rows, elapsed, rows + tick.gradient + tick.negative)
        if self._meter:
            self._meter.tick(rows, tick.guided, tick.gradient, tick.negative, elapsed)

    def fail(self, error: Exception) -> None:
        """Give every draw's caller this error and free all slots."""
        scheduler = self.scheduler
        draws = [*scheduler.running, *scheduler.waiting, *scheduler.speculative]
        for place in (scheduler.running, scheduler.waiting, scheduler.speculative):
            place.clear()
        for ticket in {id(draw.ticket): draw.ticket for draw in draws}.values():
            if not ticket.cancelled:
                ticket.deliver(error)

    def _schedule(self, now: float) -> None:
        for row in self.scheduler.unwanted_rows(now):
            self._save("cancelled", row)
            self._release(row)
        self.scheduler.drop_unwanted(now)
        for row in self.scheduler.rows_in_the_way():
            self._reject(self.scheduler.running[row])
            self._release(row)
        if self.decoder.full:
            # It is behind: draws that end faster than they are decoded help nobody.
            for draw in self.scheduler.speculative:
                self._reject(draw)
            self.scheduler.speculative.clear()
            return
        first = len(self.scheduler.running)
        for offset, draw in enumerate(self.scheduler.admit(now)):
            self._put(first + offset, draw)
        for draw in self.scheduler.speculative:
            if unwanted(draw, now):
                continue
            row = len(self.scheduler.running)
            if row < self.scheduler.max_batch and self.pace.worthwhile(draw.chance, row):
                self.scheduler.start(draw, now)
                self._put(row, draw)
            else:
                self._reject(draw)
        self.scheduler.speculative.clear()

    def _put(self, row: int, draw: Draw) -> None:
        if draw.encoded_condition is None:
            self.encode([draw])
        assert isinstance(draw.encoded_condition, Encoded)
        plan, key = draw.plan, draw.key
        self._batch.put(
            row,
            plan.method,
            key.seed,
            key.draw,
            self.networks.places(plan.parts),
            draw.encoded_condition,
            self.encoder.scale(plan.condition),
            plan.probe_thresholds,
        )

    def _reject(self, draw: Draw) -> None:
        draw.ticket.deliver(Overloaded("there is no room for a speculative draw"))

    def _postprocess(self, abandoned: NDArray[np.intp], now: float) -> None:
        rows = len(self.scheduler.running)
        finished = self._batch.line[:rows] >= self._batch.length[:rows]
        stopped = np.zeros(rows, dtype=np.bool_)
        stopped[abandoned] = True
        done = np.flatnonzero(finished | stopped)
        if not done.size:
            return
        x_0 = self._batch.x_t[done]  # a copy: the rows are given away before it is decoded
        ended: list[Finished] = []
        for position, row in enumerate(done):
            draw = self.scheduler.running[row]
            result = DrawResult(
                key=draw.key,
                pixels=None,
                nfe=int(self._batch.nfe[row]),
                queue_s=draw.started - draw.submitted,
                denoise_s=now - draw.started,
                abandoned=bool(stopped[row]),
                probe_scores=self._batch.scores(int(row)),
            )
            ended.append(Finished(draw, result, None if stopped[row] else x_0[position]))
        for row in abandoned:
            self._save("probe", int(row))
        for row in done[::-1]:
            self._release(int(row))
        self.decoder.deliver(ended)

    def _save(self, reason: Literal["probe", "cancelled"], row: int) -> None:
        if self._meter:
            left = self._batch.length[row] - self._batch.line[row]
            self._meter.saved(reason, float(left * self._batch.conditions(row + 1).nfe[row]))

    def _release(self, row: int) -> None:
        self._batch.move(self.scheduler.release(row), row)


@contextmanager
def _as_invalid() -> Iterator[None]:
    """What the model cannot take is the caller's mistake."""
    try:
        yield
    except ConditionError as error:
        raise InvalidValue(str(error), error.field) from None


def _no_op(rows: int, seconds: float) -> None:
    pass


def canary_plan(
    parts: Mapping[str, str] | None = None, classifier_scale: float = 0.0
) -> SamplingPlan:
    """A plan of a few steps that exercises the denoiser, and these networks."""
    parts = parts or {}
    stages = {PARTS[part].stage for part in parts}
    return SamplingPlan(
        model="",
        policy="canary",
        policy_version=0,
        backbone="",
        parts=parts,
        method=Method(
            num_inference_steps=2,
            censor_scale=1.0 if Stage.STEERS in stages else 0.0,
            backward_steps=1 if Stage.BACKWARD in stages else 0,
            probes=(0.5,) if Stage.PROBES in stages else (),
            classifier_scale=classifier_scale,
        ),
        probe_thresholds=(0.0,) if Stage.PROBES in stages else (),
        threshold=None,
        max_draws=1,
        acceptance=1.0,
        seed=0,
    )
