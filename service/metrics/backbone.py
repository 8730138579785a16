"""Metrics of a backbone's replica."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from service.metrics.series import Series

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
EIGHTHS = tuple(step / 8 for step in range(1, 9))
GAUGES = {
    "slots_running": "Slots in use.",
    "draws_waiting": "Draws without a slot.",
    "nfe_capacity": "NFE a second with all slots in use, as measured; 0 before.",
}


class BackboneMetrics:
    """The engine's ticks; implements `engine.Meter`."""

    def __init__(self, model: str, max_batch: int) -> None:
        series = self.registry = Series()
        nfe = series.counter(
            "nfe", "Denoiser evaluations: a row at a timestep is one.", "model", "kind"
        )
        self._plain, self._guided = nfe.labels(model, "plain"), nfe.labels(model, "guided")
        self._gradient = nfe.labels(model, "gradient")
        self._negative = nfe.labels(model, "negative")
        self._occupancy = series.histogram(
            "batch_occupancy", "Share of the slots in use at each tick.", EIGHTHS, "model"
        ).labels(model)
        self._step = series.histogram(
            "step_duration_seconds", "Duration of one tick of the engine.", SECONDS, "model"
        ).labels(model)
        self._decode = series.histogram(
            "decode_duration_seconds",
            "Duration of one decoding of finished draws to pixels.",
            SECONDS,
            "model",
        ).labels(model)
        self._offered = series.counter(
            "nfe_offered",
            "NFE asked for, expected redraws included, whether admitted or refused.",
            "model",
        ).labels(model)
        saved = series.counter(
            "nfe_saved",
            "NFE that draws had left when a probe, or nobody wanting them, ended them.",
            "model",
            "reason",
        )
        self._saved = {reason: saved.labels(model, reason) for reason in ("probe", "cancelled")}
        self._gauges = [
            series.gauge(name, text, "model").labels(model) for name, text in GAUGES.items()
        ]
        self._max_batch = max_batch

    def tick(self, rows: int, guided: int, gradient: int, negative: int, seconds: float) -> None:
        """Count one tick."""
        self._plain.inc(rows - guided)
        self._guided.inc(guided)
        self._gradient.inc(gradient)
        self._negative.inc(negative)
        self._occupancy.observe(rows / self._max_batch)
        self._step.observe(seconds)

    def offered(self, nfe: float) -> None:
        """Count what a call asks for."""
        self._offered.inc(nfe)

    def saved(self, reason: Literal["probe", "cancelled"], nfe: float) -> None:
        """Count what a draw had left when it ended early."""
        self._saved[reason].inc(nfe)

    def decoded(self, rows: int, seconds: float) -> None:
        """Count one decoding."""
        self._decode.observe(seconds)

    def watch(
        self, running: Callable[[], int], waiting: Callable[[], int], capacity: Callable[[], float]
    ) -> None:
        """Set the functions that each scrape reads the gauges from."""
        for gauge, value in zip(self._gauges, (running, waiting, capacity), strict=True):
            gauge.set_function(value)
