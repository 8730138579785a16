"""What the judge counts."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Histogram


class JudgeMetrics:
    """The judge's forward passes."""

    def __init__(self, model: str) -> None:
        self.registry = CollectorRegistry()
        self.duration = Histogram(
            "winnow_judge_duration_seconds",
            "Duration of one batch of scores.",
            ["model"],
            buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1),
            registry=self.registry,
        ).labels(model)
