"""A dashboard as data: rows that each answer a question, and their panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

WINDOW = "$__rate_interval"
POLICY = 'policy=~"$policy"'
MODEL = 'model=~"$model"'
"""What the variables at the top of a dashboard choose."""


@dataclass(frozen=True)
class Panel:
    """One panel. `queries` maps a legend to its PromQL; `alert` names the runbook that it serves.

    `thresholds` maps a colour to the value that it begins at, `texts` a value to what is shown.
    """

    title: str
    description: str
    queries: Mapping[str, str]
    unit: str = "short"
    kind: Literal["timeseries", "stat", "heatmap", "state-timeline", "table"] = "timeseries"
    width: int = 8
    thresholds: Mapping[str, float | None] = field(default_factory=dict)
    texts: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    alert: str | None = None
    stacked: bool = False
    top: float | None = None


@dataclass(frozen=True)
class Row:
    """Panels that answer one question, which is the row's title."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Dashboard:
    """One dashboard; `uid` is its address in Grafana."""

    uid: str
    title: str
    description: str
    rows: Sequence[Row]

    @property
    def panels(self) -> list[Panel]:
        """All of its panels."""
        return [panel for row in self.rows for panel in row.panels]
