"""Metrics of a judge's replica."""

from __future__ import annotations

from service.metrics.series import Series

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)


class JudgeMetrics:
    """The judge's forward passes."""

    def __init__(self, model: str) -> None:
        self.registry = Series()
        self.duration = self.registry.histogram(
            "judge_duration_seconds", "Duration of one batch of scores.", SECONDS, "model"
        ).labels(model)
