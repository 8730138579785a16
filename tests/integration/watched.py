"""A service that is watched: a real exporter and Prometheus, and traffic that moves every series.

Rules look back for hours and weeks; here time is short, so they get seconds instead.
`python -m tests.integration.watched FOLDER` draws the panels of the documents.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import yaml

from deploy.observability.files import groups
from deploy.observability.promql import Least
from tests.integration.conftest import (
    ADMIN_KEY,
    ROOT,
    Service,
    free_port,
    start,
    stop,
    wait_for,
)

ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
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


class Traffic:
    """What callers, reviewers and misfortune do to a service."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def post(self, path: str, **body: Any) -> httpx.Response:
        """As the admin."""
        return self.service.client.post(path, json=body, headers=ADMIN)

    def ask(self, policy: str, n: int = 2, steps: int = 20, **body: Any) -> httpx.Response:
        """For images."""
        body |= {"policy": policy, "n": n, "num_inference_steps": steps}
        return self.post("/v1/images/generations", **body)

    def steady(self, stopping: threading.Event) -> None:
        """All policies in turn, until told to stop."""
        turns = (
            ("no-crossbar", 4, 20),
            ("only-crossbar", 2, 20),
            ("no-crossbar", 2, 50),
            ("no-crossbar-guided", 2, 50),
            ("no-crossbar-forward", 1, 20),
            ("none", 1, 20),
        )
        while not stopping.is_set():
            for policy, n, steps in turns:
                self.ask(policy, n, steps)

    def blocked(self) -> None:
        """No draw is good enough; and there are more than a shadow keeps."""
        censor = {"threshold": 0.99999, "max_draws": 4}
        answer = self.ask("no-crossbar", 16, censor=censor)
        assert answer.json()["error"]["code"] == "moderation_blocked", answer.text

    def late(self) -> None:
        """The backbone rests while a request waits for it."""
        [backbone] = self.service.replicas("Backbone")
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(self.ask, "no-crossbar", 16, 50, censor={"deadline_s": 3})
            wait_for(lambda: self.service.metric("winnow_slots_running") > 0)
            os.kill(backbone, signal.SIGSTOP)
            try:
                code = asked.result().json()["error"]["code"]
            finally:
                os.kill(backbone, signal.SIGCONT)
        assert code == "deadline_exceeded", code

    def gone(self) -> None:
        """A caller hangs up."""
        body = {"policy": "none", "n": 16, "num_inference_steps": 50}
        try:
            httpx.post(
                f"{self.service.url}/v1/images/generations", json=body, headers=ADMIN, timeout=0.1
            )
        except httpx.TimeoutException:
            return
        raise AssertionError("the answer came before the caller left")

    def refused(self) -> None:
        """No replica could make so much in so little time."""
        wait_for(
            lambda: self.ask("no-crossbar", 16, 50, censor={"deadline_s": 0.5}).status_code == 429
        )

    def switched_off(self) -> None:
        """While a request runs."""
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(self.ask, "none", 16, 50)
            wait_for(lambda: self.service.metric("winnow_slots_running") > 0)
            self.post("/v1/policies/none/disable").raise_for_status()
            assert asked.result().json()["error"]["code"] == "policy_disabled"
        self.post("/v1/policies/none/promote", version=1).raise_for_status()

    def shadow(self) -> None:
        """Another version of the same."""
        made = self.post("/v1/policies", name="no-crossbar", based_on="no-crossbar")
        made.raise_for_status()
        version = made.json()["version"]
        self.post("/v1/policies/no-crossbar/shadow", version=version).raise_for_status()

    def labels(self) -> None:
        """One of each."""
        self.post(
            "/v1/datasets", name="bars", question="Does the seven carry a crossbar?"
        ).raise_for_status()
        batch = self.post("/v1/datasets/bars/batches", size=3)
        batch.raise_for_status()
        self._label("/v1/datasets/bars/labels", batch.json(), ("benign", "malign", "unsure"))

    def certificate(self) -> None:
        """Of six images, none of them malign."""
        begun = self.post(
            "/v1/policies/no-crossbar/certify",
            epsilon=0.5,
            delta=0.05,
            num_inference_steps=50,
        )
        begun.raise_for_status()
        path = f"/v1/certificates/{begun.json()['id']}"

        def status() -> str:
            answer = self.service.client.get(path, headers=ADMIN).json()
            return str(answer["status"])

        wait_for(lambda: status() == "labelling", 60)
        batch = self.post(f"{path}/batches").json()
        self._label(f"{path}/labels", batch, ["benign"] * len(batch["images"]))
        assert status() == "passed"

    def _label(self, path: str, batch: dict[str, Any], labels: Any) -> None:
        given = [
            {"image_id": image["id"], "label": label, "elapsed_ms": 500}
            for image, label in zip(batch["images"], labels, strict=True)
        ]
        self.post(path, labels=given).raise_for_status()

    def no_judge(self) -> None:
        """The judge hangs, is ended, and comes back."""
        [judge] = self.service.replicas("RewardModel")
        os.kill(judge, signal.SIGSTOP)
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: self.ask("no-crossbar"), range(4)))
        os.kill(judge, signal.SIGKILL)
        codes = {answer.json()["error"]["code"] for answer in answers}
        assert codes == {"censor_unavailable"}, codes
        wait_for(lambda: set(self.service.replicas("RewardModel")) - {judge} != set(), 60)
        self.service.wait_ready()

    def everything(self, steady_s: float) -> None:
        """So that each series moves, and long enough for rules that compare with before."""
        for once in (self.shadow, self.late, self.gone, self.switched_off, self.labels):
            once()
        stopping = threading.Event()
        with ThreadPoolExecutor(3) as pool:
            callers = [pool.submit(self.steady, stopping) for _ in range(3)]
            try:
                self.certificate()
                self.blocked()
                self.refused()
                time.sleep(steady_s)
                self.no_judge()
                time.sleep(5)
            finally:
                stopping.set()
            for one in callers:
                one.result()


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


def plot(watch: Watched, name: str, titles: Sequence[str], path: Path) -> None:
    """Draw what Prometheus answers to the queries of some panels. It is no picture of Grafana."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

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
                times = [t - watch.prometheus.since for t, _ in one["values"]]
                legend = re.sub(
                    r"\{\{(\w+)\}\}", partial(_label, one["metric"]), target["legendFormat"]
                )
                axis.plot(times, [v for _, v in one["values"]], label=legend, linewidth=1.2)
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=7, frameon=False)
    figure.suptitle(
        f'Panels of "Winnow: {name.replace("-and-", " and ")}": answers of Prometheus to their '
        "queries, plotted; not a picture of Grafana",
        fontsize=11,
    )
    figure.savefig(path, dpi=75)
    pyplot.close(figure)


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
        [t - since for t in times], [e - edges[0] / 2 for e in edges], cells, cmap="Oranges"
    )


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


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch, watched(Path(scratch)) as run:
        Traffic(run.service).everything(steady_s=60)
        for board, shown in PLOTS.items():
            plot(run, board, shown, Path(sys.argv[1]) / f"observability-{board}.png")
