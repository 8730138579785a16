"""A page of metrics as Prometheus text: of one process, or of many put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def render(registry: Collector) -> str:
    """One process's metrics as Prometheus text."""
    return generate_latest(registry).decode()


def labelled(families: Iterable[Metric], replica: str) -> Iterator[Metric]:
    """The same families, with a `replica` label on each sample."""
    for family in families:
        into = Metric(family.name, family.documentation, family.type)
        into.samples = [
            sample._replace(labels={**sample.labels, "replica": replica})
            for sample in family.samples
        ]
        yield into


def united(families: Iterable[Metric]) -> list[Metric]:
    """Families of many pages, with all samples of a name in one: Prometheus wants each once."""
    found: dict[str, Metric] = {}
    for family in families:
        into = found.setdefault(family.name, Metric(family.name, family.documentation, family.type))
        into.samples.extend(family.samples)
    return list(found.values())


def merge(texts: Iterable[tuple[str, str]]) -> str:
    """Pages of many replicas as one: (replica, text) pairs, told apart by a `replica` label."""
    return render(
        Families(
            lambda: united(
                family
                for replica, text in texts
                for family in labelled(text_string_to_metric_families(text), replica)
            )
        )
    )


class Families(Collector):
    """Families that a function returns at each scrape."""

    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        """As a registry does."""
        return self._collect()

    def restricted_registry(self, names: Iterable[str]) -> Families:
        """What `?name[]=` asks for: these families alone."""
        wanted = set(names)
        return Families(
            lambda: [
                family
                for family in self._collect()
                if wanted & {family.name, *(sample.name for sample in family.samples)}
            ]
        )
