"""The rows: one slot of state per running draw, as arrays that a tick reads by slices."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.noise import Purpose, normal
from models.samplers import Trajectory, ddim
from models.schedule import NoiseSchedule
from service.engine.scheduler import Draw

ALPHA_BAR, ALPHA_BAR_PREV, SIGMA, CENSOR_SCALE = range(4)


class Batch:
    """State of up to `max_batch` draws whose x_t has `shape` (C, H, W).

    `x_t` float32 [S, C, H, W] on `device`; `step` int64 [S] counts finished steps; `timesteps`
    int64 [S, T] and `coefficients` float32 [S, T, 4] hold each draw's whole trajectory.
    """

    def __init__(
        self, schedule: NoiseSchedule, shape: tuple[int, int, int], max_batch: int, device: str
    ) -> None:
        self.shape = shape
        self.device = torch.device(device)
        self._schedule = schedule
        self._trajectories: dict[tuple[int, float], Trajectory] = {}
        self.x_t = torch.zeros(max_batch, *shape, device=self.device)
        self.step = np.zeros(max_batch, dtype=np.int64)
        self.length = np.zeros(max_batch, dtype=np.int64)
        self._columns = 0
        self.timesteps = np.zeros((max_batch, 0), dtype=np.int64)
        self.coefficients = np.zeros((max_batch, 0, 4), dtype=np.float32)
        self._noise: list[Tensor | None] = [None] * max_batch

    def put(self, row: int, draw: Draw) -> None:
        """Start a draw in a row: its noise from its seed, its trajectory from its plan."""
        plan, key = draw.plan, draw.key
        trajectory = self.trajectory(plan.num_inference_steps, plan.eta)
        length = len(trajectory)
        self._widen(length)
        self.step[row], self.length[row] = 0, length
        self.timesteps[row, :length] = trajectory.timesteps
        lines = self.coefficients[row, :length]
        lines[:, ALPHA_BAR] = trajectory.alpha_bar
        lines[:, ALPHA_BAR_PREV] = trajectory.alpha_bar_prev
        lines[:, SIGMA] = trajectory.sigma
        low, high = plan.guide_interval
        guided = (trajectory.timesteps >= low) & (trajectory.timesteps < high)
        lines[:, CENSOR_SCALE] = np.where(guided, plan.censor_scale, 0.0)
        initial = normal(key.seed, key.draw, Purpose.INITIAL, self.shape)
        self.x_t[row] = torch.from_numpy(initial).to(self.device)
        self._noise[row] = None
        if plan.eta > 0:
            noise = normal(key.seed, key.draw, Purpose.STEP, (length, *self.shape))
            self._noise[row] = torch.from_numpy(noise).to(self.device)

    def move(self, source: int, target: int) -> None:
        """Copy a row's state, so that running rows stay contiguous."""
        if source == target:
            return
        self.x_t[target] = self.x_t[source]
        for array in (self.step, self.length, self.timesteps, self.coefficients):
            array[target] = array[source]
        self._noise[target] = self._noise[source]

    def lines(self, rows: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(timestep [rows], coefficients [rows, 4]) of the step that each row takes next."""
        here = np.arange(rows), self.step[:rows]
        return self.timesteps[here], self.coefficients[here]

    def step_noise(self, rows: NDArray[np.intp]) -> Tensor:
        """The noise of the next step for these rows, all of which have sigma > 0."""
        drawn = []
        for row in rows:
            noise = self._noise[row]
            assert noise is not None, "a row with sigma > 0 has noise"
            drawn.append(noise[self.step[row]])
        return torch.stack(drawn)

    def trajectory(self, num_inference_steps: int, eta: float) -> Trajectory:
        """The coefficients of a plan's steps. Raises ValueError when there are no such steps."""
        key = (num_inference_steps, eta)
        if key not in self._trajectories:
            self._trajectories[key] = ddim(self._schedule, num_inference_steps, eta)
        return self._trajectories[key]

    def _widen(self, columns: int) -> None:
        if columns <= self._columns:
            return
        extra = columns - self._columns
        self.timesteps = np.pad(self.timesteps, ((0, 0), (0, extra)))
        self.coefficients = np.pad(self.coefficients, ((0, 0), (0, extra), (0, 0)))
        self._columns = columns
