"""A service that is watched: a real exporter, and a real Prometheus.

Rules look back for hours and weeks; here time is short, so they get seconds instead.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import yaml

from deploy.observability.files import groups
from deploy.observability.promql import Least
from tests.integration.conftest import Service, start, stop
from tests.processes import ROOT, free_port, wait_for

SOONER = {
    "5m": "10s",
    "15m": "10s",
    "30m": "15s",
    "1h": "15s",
    "2h": "15s",
    "6h": "15s",
    "1d": "20s",
    "3d": "30s",
    "1w": "60s",
}
"""How far rules look back here."""

Series = list[dict[str, Any]]


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus, and since when it scrapes."""

    client: httpx.Client
    since: float

    def ask(self, expr: str, step_s: float = 1) -> Series:
        """Series of an expression from the beginning until now, without samples that are NaN."""
        body = {"query": expr, "start": self.since, "end": time.time(), "step": step_s}
        answer = self.client.post("/api/v1/query_range", data=body).json()
        assert answer["status"] == "success", f"{expr}: {answer.get('error')}"
        return [
            one | {"values": kept}
            for one in answer["data"]["result"]
            if (kept := [(t, float(v)) for t, v in one["values"] if not math.isnan(float(v))])
        ]

    def get(self, path: str) -> Any:
        """The data of another route."""
        return self.client.get(path).json()["data"]


@dataclass(frozen=True)
class Watched:
    """A service and who watches it."""

    service: Service
    prometheus: Prometheus


def sooner() -> list[dict[str, Any]]:
    """The rules, as they look at seconds, and at few requests."""
    least = Least(requests=1, draws=1, images=1, scores=1, guard_errors=1)
    data = groups(least=least)
    for group in data:
        group.pop("interval", None)
        for rule in group["rules"]:
            rule.pop("for", None)
            rule["expr"] = re.sub(
                r"\[(\w+)\]|offset (\w+)",
                lambda m: f"[{SOONER[m[1]]}]" if m[1] else "offset 5s",
                rule["expr"],
            )
    return data


@contextmanager
def watched(folder: Path) -> Iterator[Watched]:
    """Start all three, and end them."""
    file = yaml.safe_load((ROOT / "deploy/local.yaml").read_text())
    args = file["applications"][0]["args"]
    first = min(free_port(), 65000)
    args["metrics_ports"] = [first, first + 31]
    model = args["models"]["mnist-sevens"]
    model["backbone"] |= {"speculative_draws": 1, "forward_guidance": True}
    model["judge"]["timeout_s"] = 3
    args["policies"]["no-crossbar-forward"] = {
        "model": "mnist-sevens",
        "reward": "no-crossbar",
        "guidance": "forward",
        "censor_scale": 1.0,
        "threshold": 0.5,
        "max_draws": 4,
        "num_inference_steps": [20],
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(file))
    (folder / "rules.yml").write_text(yaml.safe_dump({"groups": sooner()}))
    exporter_port, port = free_port(), free_port()
    scrape = {
        "job_name": "winnow",
        "static_configs": [{"targets": [f"127.0.0.1:{exporter_port}"]}],
    }
    (folder / "prometheus.yml").write_text(
        yaml.safe_dump(
            {
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": ["rules.yml"],
                "scrape_configs": [scrape],
            }
        )
    )
    winnow = str(Path(sys.executable).with_name("winnow"))
    exporter = [winnow, "exporter", f"--ports={first}-{first + 31}", f"--port={exporter_port}"]
    prometheus = [
        "prometheus",
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/prometheus",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    service = start(folder / "config.yaml", folder / "log")
    running = []
    try:
        with (folder / "watchers.log").open("w") as output:
            for command, url in (
                (exporter, f"http://127.0.0.1:{exporter_port}/metrics"),
                (prometheus, f"http://127.0.0.1:{port}/api/v1/query?query=winnow_reward_info"),
            ):
                running.append(
                    subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
                )
                wait_for(partial(_shows_policies, url))
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)
        yield Watched(service, Prometheus(client, time.time()))
    finally:
        for process in running:
            process.terminate()
            process.wait(20)
        stop(service)


def _shows_policies(url: str) -> bool:
    try:
        return "no-crossbar" in httpx.get(url).text
    except httpx.HTTPError:
        return False


def queries(dashboard: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Each query of a dashboard with its panel and legend, variables filled in."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["legendFormat"], fill(target["expr"])
    for note in dashboard["annotations"]["list"]:
        yield f"annotation: {note['name']}", note["titleFormat"], fill(note["expr"])


def fill(expr: str) -> str:
    """A query as Grafana would send it, with everything chosen."""
    for variable, value in (
        ("$__rate_interval", "10s"),
        ("$__range", "2m"),
        ("$policy", ".*"),
        ("$model", ".*"),
        ("offset 1m", "offset 5s"),
    ):
        expr = expr.replace(variable, value)
    return expr


def dashboards() -> dict[str, dict[str, Any]]:
    """The committed ones, by name."""
    folder = ROOT / "deploy/observability/dashboards"
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
