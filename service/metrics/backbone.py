"""What the engine counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class BackboneMetrics:
    """The engine's ticks; implements `engine.Meter`."""

    def __init__(self, model: str, max_batch: int) -> None:
        self.registry = CollectorRegistry()
        nfe = Counter(
            "winnow_nfe",
            "Denoiser evaluations: a row at a timestep is one.",
            ["model", "kind"],
            registry=self.registry,
        )
        self._plain, self._guided = nfe.labels(model, "plain"), nfe.labels(model, "guided")
        self._gradient = nfe.labels(model, "gradient")
        self._negative = nfe.labels(model, "negative")
        self._occupancy = Histogram(
            "winnow_batch_occupancy",
            "Share of the slots in use at each tick.",
            ["model"],
            buckets=[step / 8 for step in range(1, 9)],
            registry=self.registry,
        ).labels(model)
        self._step = Histogram(
            "winnow_step_duration_seconds",
            "Duration of one tick of the engine.",
            ["model"],
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
            registry=self.registry,
        ).labels(model)
        self._decode = Histogram(
            "winnow_decode_duration_seconds",
            "Duration of one decoding of finished draws to pixels.",
            ["model"],
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
            registry=self.registry,
        ).labels(model)
        self._offered = Counter(
            "winnow_nfe_offered",
            "NFE asked for, expected redraws included, whether admitted or refused.",
            ["model"],
            registry=self.registry,
        ).labels(model)
        saved = Counter(
            "winnow_nfe_saved",
            "NFE that draws had left when a probe, or nobody wanting them, ended them.",
            ["model", "reason"],
            registry=self.registry,
        )
        self._saved = {reason: saved.labels(model, reason) for reason in ("probe", "cancelled")}
        self._gauges = {
            name: Gauge(f"winnow_{name}", said, ["model"], registry=self.registry).labels(model)
            for name, said in (
                ("slots_running", "Slots in use."),
                ("draws_waiting", "Draws without a slot."),
                ("nfe_capacity", "NFE a second with all slots in use, as measured; 0 before."),
            )
        }
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
        """Whom to ask, at each scrape, for what is so at that moment."""
        for gauge, value in zip(self._gauges.values(), (running, waiting, capacity), strict=True):
            gauge.set_function(value)
