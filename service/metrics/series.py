"""One process's metrics, each declared in a line."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Series(CollectorRegistry):
    """A registry whose metrics begin with `winnow_`."""

    def counter(self, name: str, documentation: str, *labels: str) -> Counter:
        """A counter; Prometheus appends `_total` to its name."""
        return Counter(f"winnow_{name}", documentation, labels, registry=self)

    def gauge(self, name: str, documentation: str, *labels: str) -> Gauge:
        """A gauge."""
        return Gauge(f"winnow_{name}", documentation, labels, registry=self)

    def histogram(
        self, name: str, documentation: str, buckets: Sequence[float], *labels: str
    ) -> Histogram:
        """A histogram with these upper bounds, and infinity."""
        return Histogram(f"winnow_{name}", documentation, labels, buckets=buckets, registry=self)
