"""The rows: one slot of state per running draw, as arrays that a tick reads by slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.bundles.parts import Stage
from models.diffusion.conditioning import NOTHING, Conditions, Encoded
from models.diffusion.method import Method
from models.diffusion.noise import Purpose, normal
from models.diffusion.noise_schedule import NoiseSchedule
from models.sampling.program import COLUMNS, Program, compile_method

NONE = -1


class Batch:
    """State of up to `max_batch` draws whose x_t has `shape` (C, H, W).

    `x_t` and `history`, the x̂_0 of the line before, are float32 [S, C, H, W] on `device`. `line`
    int64 [S] counts finished lines of `length`; `nfe` int64 [S] what they cost. `timesteps`
    float32 [S, N] and `lines` float32 [S, N, 12] hold each draw's program. `places` int64 [S]
    by stage are those of its networks in the runner's list, or NONE. `probe_scores` and
    `probe_thresholds` are float64 [S, P], a score NaN until its probe has looked. What the
    denoiser is told of a row lies beside: its condition, encoded, and `guidance_scale` [S].
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        shape: tuple[int, int, int],
        max_batch: int,
        device: str,
    ) -> None:
        self.shape = shape
        self.device = torch.device(device)
        self._schedule = schedule.of_size(*shape[1:])
        self._programs: dict[Method, Program] = {}
        self.x_t = torch.zeros(max_batch, *shape, device=self.device)
        self.history = torch.zeros_like(self.x_t)
        self.remembers = np.zeros(max_batch, dtype=np.bool_)
        self.line = np.zeros(max_batch, dtype=np.int64)
        self.length = np.zeros(max_batch, dtype=np.int64)
        self.nfe = np.zeros(max_batch, dtype=np.int64)
        self.places = {stage: np.full(max_batch, NONE, dtype=np.int64) for stage in Stage}
        self.timesteps = np.zeros((max_batch, 0), dtype=np.float32)
        self.lines = np.zeros((max_batch, 0, COLUMNS), dtype=np.float32)
        self.probe_thresholds = np.zeros((max_batch, 0))
        self.probe_scores = np.zeros((max_batch, 0))
        self._noise = torch.zeros(max_batch, 0, *shape, device=self.device)
        self.guidance_scale = np.ones(max_batch, dtype=np.float32)
        # References: what an encoder keeps is not copied for each draw.
        self._encoded = [NOTHING] * max_batch

    def put(
        self,
        row: int,
        method: Method,
        seed: int,
        draw: int,
        places: Mapping[Stage, int],
        condition: Encoded = NOTHING,
        guidance_scale: float = 1.0,
        probe_thresholds: Sequence[float] = (),
    ) -> None:
        """Start draw number `draw` of a seed in a row. `places` are those of its networks."""
        program = self.program(method)
        length, probes = len(program), len(probe_thresholds)
        self._widen(length, probes, length if program.noisy else 0)
        self.line[row], self.length[row], self.nfe[row] = 0, length, 0
        for stage, rows in self.places.items():
            rows[row] = places.get(stage, NONE)
        self.timesteps[row, :length] = program.timesteps
        self.lines[row, :length] = program.lines
        self.probe_thresholds[row] = np.nan
        self.probe_thresholds[row, :probes] = probe_thresholds
        self.probe_scores[row] = np.nan
        self.guidance_scale[row] = guidance_scale
        self._encoded[row] = condition.to(self.device)
        initial = normal(seed, draw, Purpose.INITIAL, self.shape)
        self.x_t[row] = torch.from_numpy(initial * np.float32(program.initial))
        # Not left as it was: 0 × NaN of the draw before would be NaN.
        self.history[row] = 0
        self.remembers[row] = program.remembers
        if program.noisy:
            noise = normal(seed, draw, Purpose.STEP, (length, *self.shape))
            self._noise[row, :length] = torch.from_numpy(noise)

    def move(self, source: int, target: int) -> None:
        """Copy a row's state, so that running rows stay contiguous."""
        if source == target:
            return
        for array in (
            self.remembers, self.line, self.length, self.nfe, *self.places.values(),
            self.timesteps, self.lines, self.probe_thresholds, self.probe_scores,
            self.guidance_scale,
        ):  # fmt: skip
            array[target] = array[source]
        for tensor in (self.x_t, self.history, self._noise):
            tensor[target] = tensor[source]
        self._encoded[target] = self._encoded[source]

    def now(self, rows: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(timestep [rows], line [rows, 12]) of the step that each row takes next."""
        here = np.arange(rows), self.line[:rows]
        return self.timesteps[here], self.lines[here]

    def conditions(self, rows: int) -> Conditions:
        """What the first rows are conditioned on: references, nothing is copied."""
        return Conditions(self._encoded[:rows], self.guidance_scale[:rows])

    def step_noise(self, rows: NDArray[np.intp]) -> Tensor:
        """The noise of the next step for these rows, all of which add some."""
        return self._noise[rows, self.line[rows]]

    def scores(self, row: int) -> tuple[float, ...]:
        """What the probes that have looked at a row said."""
        scores = self.probe_scores[row]
        return tuple(scores[~np.isnan(scores)].tolist())

    def program(self, method: Method) -> Program:
        """The program of a method. Raises ValueError when there is none."""
        if method not in self._programs:
            self._programs[method] = compile_method(self._schedule, method)
        return self._programs[method]

    def _widen(self, lines: int, probes: int, noise: int) -> None:
        if (more := lines - self.timesteps.shape[1]) > 0:
            self.timesteps = np.pad(self.timesteps, ((0, 0), (0, more)))
            self.lines = np.pad(self.lines, ((0, 0), (0, more), (0, 0)))
        if (more := probes - self.probe_scores.shape[1]) > 0:
            self.probe_scores = np.pad(
                self.probe_scores, ((0, 0), (0, more)), constant_values=np.nan
            )
            self.probe_thresholds = np.pad(self.probe_thresholds, ((0, 0), (0, more)))
        if (more := noise - self._noise.shape[1]) > 0:
            extra = torch.zeros(len(self._noise), more, *self.shape, device=self.device)
            self._noise = torch.cat([self._noise, extra], dim=1)
