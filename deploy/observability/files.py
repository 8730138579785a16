"""The files that are written, from the data."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from deploy.observability import alerts, rules
from deploy.observability.capacity import CAPACITY
from deploy.observability.grafana import render
from deploy.observability.overview import OVERVIEW
from deploy.observability.panels import Dashboard
from deploy.observability.promql import Least
from deploy.observability.trust_and_safety import TRUST_AND_SAFETY

HERE = Path(__file__).parent
PROMETHEUS_RULE = HERE.parent / "k8s/components/prometheus/prometheusrule.yaml"
DASHBOARDS: dict[str, Dashboard] = {
    "overview": OVERVIEW,
    "trust-and-safety": TRUST_AND_SAFETY,
    "capacity": CAPACITY,
}
RUNBOOKS = "docs/runbooks"
"""Where links to runbooks begin, unless somebody names a URL."""
HEAD = "# Written by `make k8s` from deploy/observability: change that, not this.\n"
RELEASE = {"release": "kube-prometheus-stack"}
"""The label by which kube-prometheus selects its rules."""


def groups(runbooks: str = RUNBOOKS, least: Least | None = None) -> list[dict[str, Any]]:
    """The groups of rules, as rules.yml has them."""
    least = least or Least()
    recorded = {
        "winnow-budgets": (rules.budgets(), "30s"),
        "winnow-history": (rules.history(least), "1m"),
        "winnow-drift": (rules.drift(least), "2m"),
    }
    alarming = {
        "winnow-censoring": alerts.censoring(least),
        "winnow-serving": alerts.serving(least),
        "winnow-capacity": alerts.capacity(),
    }
    return [
        {"name": name, "interval": every, "rules": [_record(one) for one in records]}
        for name, (records, every) in recorded.items()
    ] + [
        {"name": name, "rules": [_alert(one, runbooks) for one in some]}
        for name, some in alarming.items()
    ]


def files(runbooks: str) -> dict[Path, str]:
    """Everything that is written, by path."""
    runbooks = runbooks.rstrip("/")
    rules = groups(runbooks)
    return {
        HERE / "rules.yml": HEAD + dump({"groups": rules}),
        PROMETHEUS_RULE: HEAD + dump(prometheus_rule(rules)),
    } | {
        HERE / "dashboards" / f"{name}.json": _json(render(dashboard, runbooks))
        for name, dashboard in DASHBOARDS.items()
    }


def prometheus_rule(groups: list[dict[str, Any]]) -> dict[str, Any]:
    """Groups of rules as the object that prometheus-operator reads."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "winnow", "labels": RELEASE},
        "spec": {"groups": groups},
    }


def dump(data: Any) -> str:
    """YAML in the order given, with PromQL of several lines as it stands."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=True)


def _json(dashboard: dict[str, Any]) -> str:
    """JSON with a line for each panel and each other part of a dashboard."""
    panels = ",\n".join(_line(panel) for panel in dashboard["panels"])
    lines = [f"{_line(key)}: {_line(value)}" for key, value in dashboard.items() if key != "panels"]
    return "{\n" + ",\n".join(lines) + f',\n"panels": [\n{panels}\n]\n}}\n'


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)


def _record(rule: rules.Record) -> dict[str, Any]:
    known = asdict(rule)
    return {"record": known.pop("name")} | {key: value for key, value in known.items() if value}


def _alert(alert: alerts.Alert, runbooks: str) -> dict[str, Any]:
    held = {} if alert.hold == "0s" else {"for": alert.hold}
    return {
        "alert": alert.name,
        "expr": alert.expr,
        **held,
        "labels": {"severity": alert.severity},
        "annotations": {
            "summary": alert.summary,
            "description": alert.description,
            "runbook_url": f"{runbooks}/{alert.name}.md",
        },
    }
