"""How far a training is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

REPORT_S = 0.25
Report = Callable[[str, float], None]
"""Told the stage and the fraction done, in [0, 1]; raises what stops the training."""


class Progress:
    """Turns stages into one fraction, and reports at most every REPORT_S seconds."""

    def __init__(self, report: Report, weights: Mapping[str, float]) -> None:
        self.seconds: dict[str, float] = {}
        self._report = report
        self._weights = weights
        self._before = 0.0
        self._last = -REPORT_S

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """A stage of `total` units; yields a function to be called with the number done."""
        began = time.monotonic()
        weight = self._weights[name] / sum(self._weights.values())
        self._publish(name, self._before, force=True)
        yield lambda done: self._publish(name, self._before + weight * min(done / total, 1))
        self._before = min(self._before + weight, 1.0)
        self.seconds[name] = round(time.monotonic() - began, 2)
        self._publish(name, self._before, force=True)

    def _publish(self, name: str, fraction: float, force: bool = False) -> None:
        now = time.monotonic()
        if force or now - self._last >= REPORT_S:
            self._last = now
            self._report(name, fraction)
