"""The mathematics of one tick: every running row takes one line of its own program."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.bundles.parts import Stage
from models.diffusion.conditioning import Conditions, Denoise, predict
from models.diffusion.guidance import CleanReward, Guide, backward_guidance, guided_x0
from models.diffusion.noise_schedule import NoiseSchedule
from models.diffusion.parameterization import to_x0_eps, x0_to_eps
from models.diffusion.trajectory import linear_step
from models.sampling.batch import NONE, Batch
from models.sampling.networks import NetworkTable
from models.sampling.program import (
    ALPHA,
    BACKWARD,
    CENSOR_SCALE,
    CLASSIFIER,
    EPS,
    HISTORY,
    NOISE,
    PROBE,
    RATE,
    SIGMA,
    X_0,
    X_T,
)

Table = TypeVar("Table", bound=NetworkTable)


class Probe(Protocol):
    """A clean reward that looks at x̂_0 halfway."""

    def score(self, x_0: Tensor) -> NDArray[np.float64]:
        """The reward of x̂_0 [B, C, H, W] in the backbone's space, [B] in (0, 1)."""
        ...


class Classifier(Protocol):
    """A time-dependent classifier of x_t (Dhariwal & Nichol 2021)."""

    def gradient(self, x_t: Tensor, timestep: Tensor, labels: Tensor) -> Tensor:
        """∇_{x_t} log p_t(label | x_t), [B, C, H, W], for timesteps [B] and labels [B]."""
        ...


@dataclass(frozen=True)
class Tick:
    """What one tick did: rows steered, the NFE that gradients through the denoiser added, those
    that classifier-free guidance did, and rows that probes ended."""

    guided: int
    gradient: int
    negative: int
    abandoned: NDArray[np.intp]


class Runner(Generic[Table]):
    """One denoiser, `backbone` by its sha256 name, and the networks of its rewards."""

    def __init__(
        self,
        backbone: str,
        denoiser: Denoise,
        schedule: NoiseSchedule,
        networks: Table,
        classifier: Classifier | None = None,
    ) -> None:
        """`classifier` gives the gradient towards a row's class."""
        self.backbone = backbone
        self.networks = networks
        self._classifier = classifier
        self._denoiser = denoiser
        self._schedule = schedule

    @torch.no_grad()
    def advance(self, batch: Batch, count: int) -> Tick:
        """Advance the first `count` rows of the batch by one line, in place.

        One denoiser call for all of them. Rows that ask for no gradient and no probe at this line
        pay for none: the others are gathered, computed and scattered back.
        """
        timesteps, lines = batch.now(count)
        timestep = torch.from_numpy(timesteps).to(batch.device)
        line = torch.from_numpy(lines).to(batch.device).T.reshape(-1, count, 1, 1, 1)
        x_t, history = batch.x_t[:count], batch.history[:count]

        conditions = batch.conditions(count)
        # A copy: guidance bends rows in place, and the denoiser's own tensor may be read-only.
        output = predict(self._denoiser, x_t, timestep, conditions).to(torch.float32, copy=True)
        x_0, eps = to_x0_eps(output, x_t, line[ALPHA], line[SIGMA], self._schedule.prediction_type)
        step = _Step(batch, lines, line, timestep, conditions, x_t, x_0, self._clip(x_0), eps)
        if self._schedule.clip_sample_range is not None and conditions.guided.size:
            # What a reward's gradient does to x̂_0, this does too: see `_replace`.
            self._replace(step, conditions.guided, step.unclipped[conditions.guided])
        self._apply_classifier_guidance(step)
        guided, gradient = self._apply_guidance(step)
        self._apply_backward_guidance(step)
        abandoned = self._apply_probes(step)

        coefficients = (line[X_T], line[X_0], line[EPS], line[HISTORY])
        x_next = linear_step(coefficients, x_t, step.x_0, step.eps, history)
        noisy = np.flatnonzero(lines[:, NOISE])
        if noisy.size:
            x_next[noisy] += line[NOISE][noisy] * batch.step_noise(noisy)
        if batch.remembers[:count].any():
            batch.history[:count] = step.x_0
        batch.x_t[:count] = x_next
        batch.line[:count] += 1
        batch.nfe[:count] += conditions.nfe
        return Tick(guided, gradient, int(conditions.nfe.sum()) - count, abandoned)

    @property
    def classifies(self) -> bool:
        """Whether there is a classifier to steer by."""
        return self._classifier is not None

    def _apply_classifier_guidance(self, step: _Step) -> None:
        """Bend rows towards the class that they are asked for, where their method says so."""
        rows = np.flatnonzero(step.lines[:, CLASSIFIER])
        if not rows.size:
            return
        assert self._classifier is not None, "the engine has refused such plans"
        labels = step.conditions[rows].inputs["class_labels"]
        gradient = self._classifier.gradient(step.x_t[rows], step.timestep[rows], labels)
        step.unclipped[rows] = step.bent(rows, gradient, CLASSIFIER)
        self._replace(step, rows, step.unclipped[rows])

    def _apply_guidance(self, step: _Step) -> tuple[int, int]:
        """Bend the rows that are guided here; returns how many, and what NFE that cost."""
        rows, extra_nfe = np.flatnonzero(step.lines[:, CENSOR_SCALE]), 0
        if not rows.size:
            return 0, 0
        for place, members in _groups(step.batch.places[Stage.STEERS], rows):
            guide: Guide = self.networks[place]
            gradient = guide.gradient(
                step.x_t[members], step.timestep[members], step.conditions[members]
            )
            self._replace(step, members, step.bent(members, gradient, CENSOR_SCALE))
            nfe = self.networks.nfe(place) * step.conditions.nfe[members]
            step.batch.nfe[members] += nfe
            extra_nfe += int(nfe.sum())
        return len(rows), extra_nfe

    def _apply_backward_guidance(self, step: _Step) -> None:
        """Backward guidance for the rows that have Adam steps here."""
        wanted = step.lines[:, BACKWARD].astype(np.int64)
        if not wanted.any():
            return
        for steps in np.unique(wanted[wanted > 0]):
            here = np.flatnonzero(wanted == steps)
            for place, members in _groups(step.batch.places[Stage.BACKWARD], here):
                reward: CleanReward = self.networks[place]
                before, rate = step.x_0[members], step.line[RATE][members]
                limit = self._schedule.clip_sample_range
                after = backward_guidance(before, reward, int(steps), rate, limit)
                moved = (after != before).flatten(1).any(1).cpu().numpy()
                self._replace(step, members[moved], after[moved])

    def _replace(self, step: _Step, rows: NDArray[np.intp], x_0: Tensor) -> None:
        """Put a new x̂_0 into rows. eps follows the clipped x̂_0: a bent eps beside an x̂_0 that
        clipping has put back would take the step down the gradient instead of up."""
        step.x_0[rows] = self._clip(x_0)
        alpha, sigma = step.line[ALPHA][rows], step.line[SIGMA][rows]
        step.eps[rows] = x0_to_eps(step.x_t[rows], step.x_0[rows], alpha, sigma)

    def _apply_probes(self, step: _Step) -> NDArray[np.intp]:
        """Let the probes of this line score x̂_0; the rows that one of them abandons, rising.

        NaN abandons nothing: then the judge decides, or the draw fails.
        """
        rows = np.flatnonzero(step.lines[:, PROBE])
        if not rows.size:
            return rows
        batch, number = step.batch, step.lines[:, PROBE].astype(np.int64) - 1
        for place, members in _groups(batch.places[Stage.PROBES], rows):
            probe: Probe = self.networks[place]
            scores = probe.score(step.x_0[members])
            batch.probe_scores[members, number[members]] = scores
        here = rows, number[rows]
        return rows[batch.probe_scores[here] < batch.probe_thresholds[here]]

    def _clip(self, x_0: Tensor) -> Tensor:
        limit = self._schedule.clip_sample_range
        return x_0 if limit is None else x_0.clamp(-limit, limit)


@dataclass(frozen=True)
class _Step:
    """The rows of one tick, halfway: `x_0` and `eps` are bent in place; `unclipped` is x̂_0 as the
    denoiser has it.

    `lines` [B, 12] on the CPU says who needs what; `line` is the same as [12, B, 1, 1, 1] on the
    device.
    """

    batch: Batch
    lines: NDArray[np.float32]
    line: Tensor
    timestep: Tensor
    conditions: Conditions
    x_t: Tensor
    unclipped: Tensor
    x_0: Tensor
    eps: Tensor

    def bent(self, rows: NDArray[np.intp], gradient: Tensor, scale: int) -> Tensor:
        """x̂_0 of some rows along a gradient, as much as their column `scale` says."""
        alpha, sigma, by = (self.line[column][rows] for column in (ALPHA, SIGMA, scale))
        return guided_x0(self.unclipped[rows], gradient, alpha, sigma, by)


def _groups(
    places: NDArray[np.int64], rows: NDArray[np.intp]
) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """The rows that share a network, with its place."""
    for place in np.unique(places[rows]):
        assert place != NONE, "a row that needs a network names it"
        yield int(place), rows[places[rows] == place]
