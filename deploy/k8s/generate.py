"""Writes what Kubernetes needs of deploy/observability.

The rules become a PrometheusRule, the dashboards ConfigMaps for Grafana's sidecar. `make k8s` runs
it, after `deploy.observability` has written both; `python -m deploy.k8s.check` says if it is due.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
OBSERVABILITY = HERE.parent / "observability"
HEAD = "# Written by `make k8s` from deploy/observability: change that, not this.\n"
RELEASE = {"release": "kube-prometheus-stack"}


def main() -> None:
    """Write every file."""
    for path, text in files(OBSERVABILITY).items():
        path.write_text(text)
        sys.stdout.write(f"{path.relative_to(HERE.parents[1])}\n")


def stale() -> list[str]:
    """The files that are not what `main` would write."""
    return [
        str(path.relative_to(HERE.parents[1]))
        for path, text in files(OBSERVABILITY).items()
        if not path.is_file() or path.read_text() != text
    ]


def files(observability: Path) -> dict[Path, str]:
    """What is to be written, by path; nothing without deploy/observability."""
    written: dict[Path, str] = {}
    rules = observability / "rules.yml"
    if rules.is_file():
        made = prometheus_rule(yaml.safe_load(rules.read_text()))
        written[HERE / "components/prometheus/prometheusrule.yaml"] = HEAD + _yaml(made)
    dashboards = sorted(path.name for path in observability.glob("dashboards/*.json"))
    if dashboards:
        made = kustomization(dashboards)
        written[observability / "kustomization.yaml"] = HEAD + _yaml(made)
    return written


def prometheus_rule(rules: dict[str, Any]) -> dict[str, Any]:
    """A file of Prometheus' rules as the object that prometheus-operator reads."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "winnow", "labels": RELEASE},
        "spec": {"groups": rules["groups"]},
    }


def kustomization(dashboards: list[str]) -> dict[str, Any]:
    """A ConfigMap for each dashboard, with the label that Grafana's sidecar looks for.

    It lies beside the dashboards: kustomize reads no files outside a kustomization's own folder.
    """
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "generatorOptions": {
            "disableNameSuffixHash": True,
            "labels": {"grafana_dashboard": "1"},
            "annotations": {"grafana_folder": "Winnow"},
        },
        "configMapGenerator": [
            {"name": f"winnow-{name.removesuffix('.json')}", "files": [f"dashboards/{name}"]}
            for name in dashboards
        ],
    }


def _yaml(document: dict[str, Any]) -> str:
    return yaml.safe_dump(document, sort_keys=False, width=100, allow_unicode=True)


if __name__ == "__main__":
    main()
