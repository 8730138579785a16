"""A whole pipeline in the place of a batch and its runner: a line of a draw is one of its steps.

So all that schedules, admits, meters and stops rows needs to know nothing of pipelines.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Generic

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.backbones.pipeline import Asked, OnStep, Pipeline
from models.bundles.manifest import WHOLE
from models.bundles.parts import Stage
from models.diffusion.conditioning import Conditions, Encoded
from models.diffusion.method import Method
from models.sampling.program import COLUMNS, Program
from models.sampling.runner import Table, Tick

ABANDONED: NDArray[np.intp] = np.zeros(0, dtype=np.intp)
"""No probe ends a row."""


class PipelineBatch:
    """One row, which a pipeline draws at `size` [H, W]; see `Batch` for its arrays.

    `x_t` [1, C, H, W] is the image once the row is finished. A pipeline may make more steps than it
    was asked for, or fewer: `line` is short of `length` until its image is there.
    """

    def __init__(self, pipeline: Pipeline, shape: tuple[int, int, int]) -> None:
        """`shape` is the image's, [C, H, W]."""
        self._pipeline = pipeline
        self._size = shape[1], shape[2]
        self.x_t = torch.zeros(1, *shape)
        self.line = np.zeros(1, dtype=np.int64)
        self.length = np.zeros(1, dtype=np.int64)
        self.nfe = np.zeros(1, dtype=np.int64)
        self._guidance_scale = np.ones(1, dtype=np.float32)
        self._encoded: list[Encoded] = [Asked({}, {})]
        self._run: _Run | None = None

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
    ) -> None:
        """Begin draw number `draw` of a seed."""
        assert isinstance(condition, Asked), "its encoder is a PipelineEncoder"
        self.move(row, row)
        self.line[row], self.length[row], self.nfe[row] = 0, len(self.program(method)), 0
        self._guidance_scale[row], self._encoded[row] = guidance_scale, condition
        asked = condition.condition
        self._run = _Run(
            lambda wait: self._pipeline.draw(method, asked, seed, draw, self._size, wait)
        )

    def move(self, source: int, target: int) -> None:
        """End what runs in a row: there is no other that could move into its place."""
        if self._run is not None:
            self._run.stop()
            self._run = None

    def advance(self) -> None:
        """Let the pipeline make its next step; at the end its image is in `x_t`."""
        assert self._run is not None, "rows are advanced after they were put"
        image = self._run.step()
        self.nfe += self.conditions(1).nfe
        if image is None:
            self.line[0] = min(self.line[0] + 1, self.length[0] - 1)
        else:
            self.x_t[0], self.line[0] = image, self.length[0]

    def conditions(self, rows: int) -> Conditions:
        """See `Batch`."""
        return Conditions(self._encoded[:rows], self._guidance_scale[:rows])

    def scores(self, row: int) -> tuple[float, ...]:
        """No probe looks."""
        return ()

    def program(self, method: Method) -> Program:
        """As many lines as steps. Raises ValueError for a method that a pipeline cannot follow."""
        if method.beside_steps:
            raise ValueError(f"{method.beside_steps[0]}: {WHOLE}")
        steps = method.num_inference_steps
        lines = np.zeros((steps, COLUMNS), dtype=np.float32)
        return Program(np.zeros(steps, dtype=np.float32), lines, False, False, guided=0)


class PipelineRunner(Generic[Table]):
    """In the place of a `Runner`: see there."""

    classifies = False

    def __init__(self, backbone: str, networks: Table) -> None:
        self.backbone = backbone
        self.networks = networks

    def advance(self, batch: PipelineBatch, count: int) -> Tick:
        """Let the row make a step."""
        batch.advance()
        return Tick(0, 0, int(batch.conditions(count).nfe.sum()) - count, ABANDONED)


class _Stopped(Exception):
    """Goes through the pipeline when nobody wants its image any more."""


class _Run:
    """One call of a pipeline, in a thread of its own that runs only while `step` waits for it."""

    def __init__(self, call: Callable[[OnStep], Tensor]) -> None:
        self._call = call
        self._go, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        self._stopped = False
        self._image: Tensor | None = None
        self._fault: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="pipeline", daemon=True)

    def step(self) -> Tensor | None:
        """Let it go on until after its next step; its image at the end. Raises what it raises."""
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._go.release()
        self._paused.acquire()
        if self._fault is not None:
            raise self._fault
        return self._image

    def stop(self) -> None:
        """End it where it waits."""
        if self._thread.is_alive():
            self._stopped = True
            self._go.release()
            self._thread.join()

    def _pause(self) -> None:
        self._paused.release()
        self._go.acquire()
        if self._stopped:
            raise _Stopped

    def _work(self) -> None:
        try:
            self._image = self._call(self._pause)
        except _Stopped:
            pass
        except Exception as error:  # raised again where the step was asked for
            self._fault = error
        finally:
            self._paused.release()
