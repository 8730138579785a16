"""From finished x_0 to pixels, and back to the caller: off the step loop where that costs.

A codec that loses nothing costs nothing, and is used at once. An autoencoder takes as long as
several steps: it has a thread of its own, which decodes what has finished since it last looked,
some rows at a time, while the others go on.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.diffusion.codec import Codec
from models.diffusion.condition import Size
from service.engine.admission import TickTimes
from service.engine.scheduler import Draw, Ticket, unwanted
from service.errors import BackendUnavailable
from service.ports import DrawResult, Pixels

log = logging.getLogger("winnow.engine")

FAULTS_BEFORE_UNHEALTHY = 3
STUCK_S = 120.0
WAITING = 8
"""Micro-batches that may wait while new draws are begun."""


@dataclass(frozen=True)
class Finished:
    """A draw that has ended. `x_0` [C, H, W] is None for one that a probe abandoned; `result` has
    no pixels yet. `cost` is what its size costs, in images of the default size."""

    draw: Draw
    result: DrawResult
    x_0: Tensor | None
    cost: float = 1.0


class Decoder:
    """Decodes and delivers; `micro_batch` rows at most at a time, fewer of a larger size.

    `pace` is that of its thread; without one, decoding takes no time beside that of the ticks.
    """

    def __init__(
        self,
        codec: Codec,
        micro_batch: int = 4,
        observe: Callable[[int, float], None] = lambda rows, seconds: None,
    ) -> None:
        """`observe(rows, seconds)` is called after each decoding."""
        self.pace = TickTimes()
        self._codec = codec
        self.micro_batch = micro_batch
        self._observe = observe
        self._faults = 0
        self._started: float | None = None
        self._queue: queue.Queue[Finished | None] = queue.Queue()
        self._thread: threading.Thread | None = None
        if not codec.exact:
            self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
            self._thread.start()

    def deliver(self, finished: Sequence[Finished]) -> None:
        """Give each draw's caller its pixels: now, or as soon as they are decoded."""
        if self._thread is None:
            try:
                self._decode(finished)
            except Exception:
                # The engine no longer holds these draws, so their callers must be told here.
                _fail(finished)
                raise
            return
        # The next draw of an image whose last was abandoned waits for no decoding.
        _deliver_all([(one, None) for one in finished if one.x_0 is None])
        for one in finished:
            if one.x_0 is not None:
                self._queue.put(one)

    @property
    def rows(self) -> int:
        """What was given and is not delivered yet."""
        return self._queue.unfinished_tasks

    @property
    def full(self) -> bool:
        """Whether it is so far behind that no more draws should be begun."""
        return self.rows >= WAITING * self.micro_batch

    def wait(self) -> None:
        """Return when all that was given has been delivered."""
        self._queue.join()

    def check_health(self) -> None:
        """Raises BackendUnavailable when the thread died, hangs, or fails again and again."""
        if self._thread is not None and not self._thread.is_alive():
            raise BackendUnavailable("the decoder's thread is not running")
        if self._faults >= FAULTS_BEFORE_UNHEALTHY:
            raise BackendUnavailable(f"the last {self._faults} decodings failed")
        started = self._started
        if started is not None and time.monotonic() - started > STUCK_S:
            raise BackendUnavailable(f"a decoding has run for more than {STUCK_S:.0f} s")

    def close(self) -> None:
        """End the thread once it has delivered what it was given."""
        if self._thread is not None and self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _run(self) -> None:
        while True:
            some = [self._queue.get()]
            while len(some) < self.micro_batch and some[-1] is not None:
                try:
                    some.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            now = time.monotonic()
            wanted = [one for one in some if one is not None and not unwanted(one.draw, now)]
            try:
                for group in self._groups(wanted):
                    self._try(group)
            finally:
                for _ in some:
                    self._queue.task_done()
            if some[-1] is None:
                return

    def _groups(self, finished: Sequence[Finished]) -> Iterator[Sequence[Finished]]:
        """Draws of one size each, as many as take no more memory than a micro-batch."""
        by_size: dict[Size, list[Finished]] = {}
        for one in finished:
            by_size.setdefault(one.draw.size, []).append(one)
        for group in by_size.values():
            most = max(int(self.micro_batch / max(group[0].cost, 1.0)), 1)
            for start in range(0, len(group), most):
                yield group[start : start + most]

    def _try(self, finished: Sequence[Finished]) -> None:
        """Decode draws of one size."""
        self._started = time.monotonic()
        try:
            self._decode(finished)
            rows = len(finished) * finished[0].cost
            self.pace.observe(rows, time.monotonic() - self._started)
            self._faults = 0
        except Exception:  # a fault in one batch must not end the service
            self._faults += 1
            log.exception("decoding failed")
            _fail(finished)
        finally:
            self._started = None

    @torch.no_grad()
    def _decode(self, finished: Sequence[Finished]) -> None:
        rows = [one.x_0 for one in finished if one.x_0 is not None]
        drawn: Iterator[Pixels | None] = iter(())
        if rows:
            started = time.monotonic()
            pixels, finite = self._codec.to_uint8(torch.stack(rows))
            self._observe(len(rows), time.monotonic() - started)
            drawn = iter(
                [image if whole else None for image, whole in zip(pixels, finite, strict=True)]
            )
        _deliver_all([(one, None if one.x_0 is None else next(drawn)) for one in finished])


def _fail(finished: Sequence[Finished]) -> None:
    """Tell each caller, once."""
    fault = BackendUnavailable("the decoder failed; the log holds its cause")
    for ticket in {id(one.draw.ticket): one.draw.ticket for one in finished}.values():
        ticket.deliver(fault)


def _deliver_all(finished: Sequence[tuple[Finished, Pixels | None]]) -> None:
    """Deliver each caller's, together."""
    groups: dict[int, tuple[Ticket, list[DrawResult]]] = {}
    for one, pixels in finished:
        group = groups.setdefault(id(one.draw.ticket), (one.draw.ticket, []))
        group[1].append(replace(one.result, pixels=pixels))
    for ticket, results in groups.values():
        ticket.deliver(results)
