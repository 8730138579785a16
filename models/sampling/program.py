"""A method as numbers: what the runner reads at each line of a draw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.diffusion.method import Method
from models.diffusion.noise_schedule import NoiseSchedule
from models.diffusion.trajectory import guided, trajectory

ALPHA, SIGMA, X_T, X_0, EPS, HISTORY, NOISE = range(7)
CENSOR_SCALE, CLASSIFIER, BACKWARD, RATE, PROBE = range(7, 12)
"""Columns of a line. BACKWARD counts Adam steps; PROBE numbers the probe from 1, 0 is none."""
COLUMNS = PROBE + 1


@dataclass(frozen=True)
class Program:
    """`timesteps` float32 [N] and `lines` float32 [N, 12]: one denoiser call each.

    `noisy` and `remembers` say whether any line adds noise or looks at the x̂_0 before it;
    `guided` counts the lines that ask for a gradient at x_t; `initial` is the standard deviation of
    x_T.
    """

    timesteps: NDArray[np.float32]
    lines: NDArray[np.float32]
    noisy: bool
    remembers: bool
    guided: int
    initial: float = 1.0

    def __len__(self) -> int:
        return len(self.timesteps)


def compile_method(schedule: NoiseSchedule, method: Method) -> Program:
    """The program of a method. Raises ValueError when there is none."""
    steps, initial = trajectory(schedule, method)
    lines = np.zeros((len(steps), COLUMNS), dtype=np.float32)
    columns = {
        ALPHA: steps.alpha,
        SIGMA: steps.sigma,
        X_T: steps.x_t,
        X_0: steps.x_0,
        EPS: steps.eps,
        HISTORY: steps.history,
        NOISE: steps.noise,
    }
    for column, values in columns.items():
        lines[:, column] = values
    if not np.isfinite(lines).all() or (
        schedule.prediction_type == "epsilon" and not steps.alpha.all()
    ):
        raise ValueError(
            f"sampler {method.sampler} makes no step where x_t is noise alone, as it is in this "
            "noise schedule: take another spacing"
        )
    # Where x_t is noise alone it says nothing of x_0, so r_t is constant, and x̂_0 from eps
    # would divide by zero.
    here = guided(steps, method) & (steps.alpha > 0)
    lines[here, CENSOR_SCALE] = method.censor_scale
    lines[steps.alpha > 0, CLASSIFIER] = method.classifier_scale
    lines[here, BACKWARD] = method.backward_steps
    # A rate that suits 1000 small steps moves too little in 50 large ones.
    lines[:, RATE] = (
        method.backward_rate * schedule.num_train_timesteps / method.num_inference_steps
    )
    # Rounding may have made two timesteps one: then there is a step less.
    probe_steps = [min(step, int(steps.step[-1])) for step in method.probe_steps]
    if len(set(probe_steps)) < len(probe_steps):
        raise ValueError(
            f"probes {method.probes} fall on the same step of {method.num_inference_steps}"
        )
    for number, step in enumerate(probe_steps, start=1):
        # The last of a step's lines: what recurrence has made of it by then.
        lines[np.flatnonzero(steps.step == step)[-1], PROBE] = number
    return Program(
        timesteps=steps.timesteps.astype(np.float32),
        lines=lines,
        noisy=bool((steps.noise > 0).any()),
        remembers=bool(steps.history.any()),
        guided=int((lines[:, CENSOR_SCALE] > 0).sum()),
        initial=initial,
    )
