"""The engine: schedule, run, postprocess."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models.backbones.encoders import Encoder, Unconditional
from models.bundles.parts import PARTS, Stage
from models.diffusion.codec import Codec
from models.diffusion.condition import ConditionError, Size, in_words
from models.diffusion.conditioning import Conditions, Encoded
from models.diffusion.method import Method
from models.sampling.batches import Batches
from models.sampling.program import Program
from models.sampling.runner import Tick
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


class Rows(Protocol):
    """Running draws of one size, as the engine sees them: see `models.sampling.batch.Batch`."""

    x_t: Tensor
    line: NDArray[np.int64]
    length: NDArray[np.int64]
    nfe: NDArray[np.int64]

    def put(
        self,
        row: int,
        method: Method,
        seed: int,
        draw: int,
        places: Mapping[Stage, int],
        condition: Encoded,
        guidance_scale: float = 1.0,
        probe_thresholds: Sequence[float] = (),
    ) -> None: ...
    def move(self, source: int, target: int) -> None: ...
    def program(self, method: Method) -> Program: ...
    def scores(self, row: int) -> tuple[float, ...]: ...
    def conditions(self, rows: int) -> Conditions: ...


B = TypeVar("B", bound=Rows)
Advanced = TypeVar("Advanced", bound=Rows, contravariant=True)


class Advances(Protocol[Advanced]):
    """What advances the rows of a batch by a line: see `models.sampling.runner.Runner`."""

    backbone: str
    networks: Networks

    @property
    def classifies(self) -> bool: ...
    def advance(self, batch: Advanced, count: int) -> Tick: ...


@dataclass
class Round:
    """One tick of each size that has rows, in rows and NFE of the default size."""

    rows: float = 0.0
    seconds: float = 0.0
    nfe: float = 0.0

    def add(self, rows: int, seconds: float, nfe: int, cost: float) -> None:
        """Take in a tick; `cost` is that of one of its rows."""
        self.rows += rows * cost
        self.seconds += seconds
        self.nfe += nfe * cost


class Engine:
    """Owns the slots. Not thread-safe: `loop.EngineLoop` calls it from one thread.

    Only its `loader`, which brings networks that it was not started with, may be called from any.
    """

    def __init__(
        self,
        runner: Advances[B],
        batches: Batches[B],
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
        self.scheduler = Scheduler(max_batch, batches.slots)
        self.pace = TickTimes()
        self.offered_nfe = 0.0
        self._runner: Advances[Any] = runner
        self._batches: Batches[Any] = batches
        self._meter = meter
        self._round = Round()

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        scheduler = self.scheduler
        return not (scheduler.waiting or scheduler.used or scheduler.speculative)

    def check(self, draws: Sequence[Draw]) -> None:
        """Refuse draws that this replica cannot make. Raises BackendUnavailable, and InvalidValue
        for what the model cannot take."""
        for draw in draws:
            if draw.size not in self._batches.shapes:
                raise BackendUnavailable(f"this replica makes no images of {in_words(draw.size)}")
            try:
                self._batches[draw.size].program(draw.plan.method)
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
            self.networks.require_size(draw.plan.parts, draw.size)
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

    def cost(self, plan: SamplingPlan) -> float:
        """NFE of one whole draw of a plan that `check` has passed, in those of the default size:
        all that is admitted, predicted and paid for in turns counts so."""
        size = plan.condition.size
        program = self._batches[size].program(plan.method)
        halves = 2 if self.encoder.scale(plan.condition) > 1 else 1
        nfe = sum(PARTS[part].nfe for part in plan.parts)
        cost: float = halves * (len(program) + program.guided * nfe) * self._batches.costs[size]
        return cost

    @property
    def costs(self) -> Mapping[Size, float]:
        """What a row of each size costs, in rows of the default size."""
        return self._batches.costs

    @property
    def running_nfe(self) -> float:
        """NFE that the running draws have left, expected redraws included."""
        left = 0.0
        for size, batch in list(self._batches.made.items()):
            spent = (batch.nfe * self._batches.costs[size]).tolist()
            running = enumerate(self.scheduler.rows[size])
            left += sum(max(draw.reserved - spent[row], 0.0) for row, draw in running)
        return left

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

    def warm_up(self, others: bool = True) -> None:
        """Make one short draw of every guide, and with `others` of every other size, so that the
        first request pays for no set-up.

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
        sizes = [size for size in self._batches.shapes if size is not None and others]
        plans += [replace(canary_plan(), condition=replace(known, size=size)) for size in sizes]
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
        """Advance every running draw of one size by one step; deliver what is finished.

        The sizes take turns, see `Scheduler`.
        """
        now = time.monotonic()
        self._schedule(now)
        if not self.scheduler.used:
            if self.decoder.full:
                time.sleep(IDLE_BACKOFF_S)
            return
        if self.scheduler.round_over:  # what was left of it has gone
            self._end_round()
        size = self.scheduler.turn()
        rows = len(self.scheduler.rows[size])
        tick = self._runner.advance(self._batches[size], rows)
        self._postprocess(size, tick.abandoned, time.monotonic())
        elapsed = time.monotonic() - now
        nfe = rows + tick.gradient + tick.negative
        self._round.add(rows, elapsed, nfe, self._batches.costs[size])
        if self.scheduler.round_over:
            self._end_round()
        if self._meter:
            self._meter.tick(rows, tick.guided, tick.gradient, tick.negative, elapsed)

    def fail(self, error: Exception) -> None:
        """Give every draw's caller this error and free all slots."""
        draws = self.scheduler.clear()
        self._round = Round()
        for ticket in {id(draw.ticket): draw.ticket for draw in draws}.values():
            if not ticket.cancelled:
                ticket.deliver(error)

    def _end_round(self) -> None:
        """The pace is that of rounds: each running draw has made one step, whatever its size."""
        self.scheduler.end_round()
        done, self._round = self._round, Round()
        self.pace.observe(done.rows, done.seconds, done.nfe)

    def _schedule(self, now: float) -> None:
        for size, row in self.scheduler.unwanted_rows(now):
            self._save("cancelled", size, row)
            self._release(size, row)
        self.scheduler.drop_unwanted(now)
        for size, row in self.scheduler.rows_in_the_way():
            self._reject(self.scheduler.rows[size][row])
            self._release(size, row)
        if self.decoder.full:
            # It is behind: draws that end faster than they are decoded help nobody.
            for draw in self.scheduler.speculative:
                self._reject(draw)
            self.scheduler.speculative.clear()
            return
        for row, draw in self.scheduler.admit(now):
            self._put(row, draw)
        for draw in self.scheduler.speculative:
            if unwanted(draw, now):
                continue
            if self.scheduler.fits(draw) and self._worthwhile(draw):
                self._put(self.scheduler.start(draw, now), draw)
            else:
                self._reject(draw)
        self.scheduler.speculative.clear()

    def _worthwhile(self, draw: Draw) -> bool:
        costs, running = self._batches.costs, self.scheduler.rows.items()
        rows = sum(len(rows) * costs[size] for size, rows in running)
        return self.pace.worthwhile(draw.chance, rows, costs[draw.size])

    def _put(self, row: int, draw: Draw) -> None:
        if draw.encoded_condition is None:
            self.encode([draw])
        assert isinstance(draw.encoded_condition, Encoded)
        plan, key = draw.plan, draw.key
        self._batches[draw.size].put(
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

    def _postprocess(self, size: Size, abandoned: NDArray[np.intp], now: float) -> None:
        running, batch = self.scheduler.rows[size], self._batches[size]
        rows = len(running)
        finished = batch.line[:rows] >= batch.length[:rows]
        stopped = np.zeros(rows, dtype=np.bool_)
        stopped[abandoned] = True
        done = np.flatnonzero(finished | stopped)
        if not done.size:
            return
        x_0 = batch.x_t[done]  # a copy: the rows are given away before it is decoded
        ended: list[Finished] = []
        for position, row in enumerate(done):
            draw = running[row]
            result = DrawResult(
                key=draw.key,
                pixels=None,
                nfe=int(batch.nfe[row]),
                queue_s=draw.started - draw.submitted,
                denoise_s=now - draw.started,
                abandoned=bool(stopped[row]),
                probe_scores=batch.scores(int(row)),
            )
            x_0_here = None if stopped[row] else x_0[position]
            ended.append(Finished(draw, result, x_0_here, self._batches.costs[size]))
        for row in abandoned:
            self._save("probe", size, int(row))
        for row in done[::-1]:
            self._release(size, int(row))
        self.decoder.deliver(ended)

    def _save(self, reason: Literal["probe", "cancelled"], size: Size, row: int) -> None:
        if self._meter:
            batch = self._batches[size]
            left = batch.length[row] - batch.line[row]
            self._meter.saved(reason, float(left * batch.conditions(row + 1).nfe[row]))

    def _release(self, size: Size, row: int) -> None:
        self._batches[size].move(self.scheduler.release(size, row), row)


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
