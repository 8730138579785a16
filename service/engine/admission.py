"""Admission: how long the work ahead will take, from what the last ticks took.

A request that could not meet its deadline is refused at once, with the time after which the same
request would be admitted, instead of being let in and timing out.
"""

from __future__ import annotations

from collections.abc import Iterable

from service.engine.fair_queue import QUANTUM
from service.ports import DrawKey, SamplingPlan

DECAY = 0.98
"""Weight of a tick against the next one: the estimate follows the last fifty or so."""


class Pace:
    """A tick's duration as a line a + b·rows, fitted to recent ticks by weighted least squares.

    On a CPU b is nearly all of it, on a GPU a is.
    """

    def __init__(self) -> None:
        self._weight = self._rows = self._seconds = self._rows_rows = self._rows_seconds = 0.0
        self._nfe = 0.0

    def observe(self, rows: int, seconds: float, nfe: float | None = None) -> None:
        """Take in one tick of so many rows; `nfe` is more where guides go through the denoiser."""
        for name, value in (
            ("_weight", 1.0),
            ("_rows", rows),
            ("_seconds", seconds),
            ("_rows_rows", rows * rows),
            ("_rows_seconds", rows * seconds),
            ("_nfe", rows if nfe is None else nfe),
        ):
            setattr(self, name, DECAY * getattr(self, name) + value)

    def tick_s(self, rows: int) -> float:
        """The expected duration of a tick with so many rows, in seconds; 0 before any tick.

        Ticks that all had the same number of rows tell nothing of others: then a tick is taken
        to last as long whatever its rows, which admits rather than refuses.
        """
        if not self._weight:
            return 0.0
        mean_rows, mean_s = self._rows / self._weight, self._seconds / self._weight
        variance = self._rows_rows / self._weight - mean_rows**2
        slope = 0.0
        if variance > 1e-6 * mean_rows**2:
            covariance = self._rows_seconds / self._weight - mean_rows * mean_s
            slope = min(max(covariance / variance, 0.0), mean_s / mean_rows)
        return mean_s + slope * (rows - mean_rows)

    @property
    def nfe_per_row(self) -> float:
        """NFE of one row in one tick, as the last ticks went; 1 before any."""
        return self._nfe / self._rows if self._rows else 1.0

    def finish_s(self, nfe: float, draws: int, longest: float, max_batch: int) -> float:
        """Seconds until `nfe` of work in `draws` draws is done, the longest `longest` NFE alone."""
        rows = max(1, min(draws, max_batch))
        return max(nfe / rows, longest) / self.nfe_per_row * self.tick_s(rows)

    def worthwhile(self, chance: float, rows: int) -> bool:
        """Whether to make a speculative draw beside `rows` others.

        It saves the time of a draw when it is needed, which has this chance, and it holds up every
        row by what one more costs at each tick. On a GPU that is next to nothing.
        """
        alone, beside = self.tick_s(rows), self.tick_s(rows + 1)
        return chance * beside >= (beside - alone) * max(rows, 1)


def reserved_nfe(plan: SamplingPlan, nfe: int, key: DrawKey) -> float:
    """What a draw of `nfe` is counted as: itself and the redraws that are to be expected, as many
    after the fifth draw as after the first. A speculative one is nothing, since it makes room."""
    if key.ahead:
        return 0.0
    left = max(plan.max_draws - key.draw, 1)
    return nfe * min(1 / max(plan.acceptance, 1e-3), left)


def turns_nfe(nfe: float, others: Iterable[float]) -> float:
    """The NFE that fair turns make until a tenant's `nfe` are made: its own, and of each other
    tenant as much and a quantum, or what that one has waiting if it is less."""
    return nfe + sum(min(other, nfe + QUANTUM) for other in others)
