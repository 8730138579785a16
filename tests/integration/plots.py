"""Plots of panels for the documents: `python -m tests.integration.plots FOLDER`."""

from __future__ import annotations

import math
import re
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

from tests.integration.traffic import Traffic
from tests.integration.watched import Watched, dashboards, fill, watched

matplotlib.use("agg")
from matplotlib import pyplot
from matplotlib.colors import PowerNorm

PLOTS = {
    "overview": (
        "Censor rate",
        "Block rate",
        "Requests by outcome",
        "Failures by code",
        "Time to an answer",
        "NFE per second",
    ),
    "trust-and-safety": (
        "Censor rate by policy and judge",
        "Draws by verdict",
        "Scores of the judge in force",
        "Live against shadow",
        "Canary",
        "Guard errors",
    ),
    "capacity": (
        "Offered share of capacity",
        "Mean occupancy",
        "Draws",
        "Step time",
        "NFE saved",
        "Requests cancelled",
    ),
}


def plot(watch: Watched, name: str, titles: Sequence[str], path: Path) -> None:
    """Draw what Prometheus answers to the queries of some panels. It is no picture of Grafana."""
    panels = {panel["title"]: panel for panel in dashboards()[name]["panels"]}
    figure, axes = pyplot.subplots(2, 3, figsize=(15, 7.5), layout="constrained")
    for axis, title in zip(axes.flat, titles, strict=True):
        panel = panels[title]
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_xlabel("seconds", fontsize=8)
        if panel["type"] == "heatmap":
            _heatmap(axis, watch, fill(panel["targets"][0]["expr"]))
            continue
        for target in panel["targets"]:
            for one in watch.prometheus.ask(fill(target["expr"])):
                times, values = _with_gaps(one["values"], watch.prometheus.since)
                legend = re.sub(
                    r"\{\{(\w+)\}\}", partial(_label, one["metric"]), target["legendFormat"]
                )
                axis.plot(times, values, label=legend, linewidth=1.2)
        axis.set_ylim(bottom=0)
        if panel["type"] == "state-timeline":
            axis.set_ylim(-0.1, 1.1)
            axis.set_yticks([0, 1], ["rejected", "ACCEPTED"])
        axis.legend(fontsize=7, frameon=False)
    figure.suptitle(
        f'Panels of "Winnow: {name.replace("-and-", " and ")}": answers of Prometheus to their '
        "queries, plotted; not a picture of Grafana",
        fontsize=11,
    )
    figure.savefig(path, dpi=75)
    pyplot.close(figure)


def _with_gaps(samples: list[tuple[float, float]], since: float) -> tuple[list[float], ...]:
    """Times and values, with a hole where there was nothing."""
    times, values = [samples[0][0] - since], [samples[0][1]]
    for (before, _), (time, value) in pairwise(samples):
        if time - before > 2:
            times.append(before - since + 1)
            values.append(math.nan)
        times.append(time - since)
        values.append(value)
    return times, values


def _label(metric: dict[str, str], match: re.Match[str]) -> str:
    return metric.get(match[1], "")


def _heatmap(axis: Any, watch: Watched, expr: str) -> None:
    series = sorted(watch.prometheus.ask(expr), key=lambda one: float(one["metric"]["le"]))
    edges = [float(one["metric"]["le"]) for one in series if one["metric"]["le"] != "+Inf"]
    times = sorted({t for one in series for t, _ in one["values"]})
    rows = [[dict(one["values"]).get(t, 0.0) for t in times] for one in series[: len(edges)]]
    cells = [
        [high - low for low, high in zip(below, row, strict=True)]
        for below, row in pairwise([[0.0] * len(times), *rows])
    ]
    since = watch.prometheus.since
    axis.pcolormesh(
        [t - since for t in times],
        [e - edges[0] / 2 for e in edges],
        cells,
        cmap="Oranges",
        norm=PowerNorm(0.3),
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch, watched(Path(scratch)) as run:
        Traffic(run.service).everything(steady_s=60)
        for board, shown in PLOTS.items():
            plot(run, board, shown, Path(sys.argv[1]) / f"observability-{board}.png")
