"""What changes under load cost: promotions, killed replicas, a redeploy, replicas added and taken.

A cluster with two replicas of everything, told what to serve as KubeRay tells it; four callers ask
again as soon as they have their answer. For each change: requests, those that failed, and the
versions that responses named, with the seconds between the change and the last response of the
version before. The version that is promoted is a reward trained from labels before the load begins.
`python -m loadtest.bench.changes`.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import matplotlib
import numpy as np
import yaml

from loadtest.bench.cluster import cluster
from loadtest.bench.report import OUT, save, show
from loadtest.bench.servers import ADMIN, Server
from loadtest.bench.three_minutes import pixels_of
from models import bundle as bundles
from models.evaluation.referees import load_referee
from models.questions import NO_CROSSBAR

MODEL, POLICY, DATASET = "mnist-sevens", "no-crossbar", "crossbars"
CALLERS = 4
LABELS, PAGE = 100, 25
SETTLE_S = 8.0
READY_S = 60.0


@dataclass(frozen=True)
class Asked:
    """One request: when it was sent and answered (seconds), its status, 0 for a cut connection,
    and the policy version that its response names."""

    sent: float
    done: float
    status: int
    version: int | None


@dataclass(frozen=True)
class Change:
    """One change and what was asked from just before it until it had settled."""

    name: str
    at: float
    took_s: float
    asked: list[Asked]

    @property
    def failed(self) -> list[Asked]:
        """Requests without an image, other than a policy's own no."""
        return [one for one in self.asked if one.status not in (200, 400)]

    def row(self) -> list[str]:
        """As a line of the table."""
        codes = Counter(one.status or "cut off" for one in self.failed)
        versions = Counter(one.version for one in self.asked if one.version)
        last = max(
            (one.done - self.at for one in self.asked if one.version != self._settled), default=0.0
        )
        return [
            self.name,
            f"{self.took_s:.2f}",
            str(len(self.asked)),
            ", ".join(f"{count} × {code}" for code, count in sorted(codes.items(), key=str)) or "0",
            " ".join(f"v{version}: {versions[version]}" for version in sorted(versions)),
            f"{max(last, 0.0):.2f}" if len(versions) > 1 else "–",
        ]

    @property
    def _settled(self) -> int | None:
        return next((one.version for one in reversed(self.asked) if one.version), None)


def main() -> None:
    """Make every change once, print one table, write JSON and a plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    with (
        cluster() as ray,
        httpx.Client(base_url=ray.server.url, headers=ADMIN, timeout=120) as client,
    ):
        server, port = ray.server, int(ray.server.url.rpartition(":")[2])
        ray.apply(document(port))
        version = taught(client)
        to_do: list[tuple[str, Callable[[], object]]] = [
            ("nothing", lambda: None),
            (f"promote version {version}", lambda: _post(client, "promote", version=version)),
            ("roll back", lambda: _post(client, "rollback")),
            *((f"kill -9 a {name}", lambda name=name: _kill(server, name))
              for name in ("RewardModel", "Backbone", "Ingress")),
            ("redeploy every replica", lambda: ray.apply(document(port, changed=True))),
            ("three backbones", lambda: ray.apply(document(port, True, backbones=3))),
            ("one backbone", lambda: ray.apply(document(port, True, backbones=1))),
        ]  # fmt: skip
        changes: list[Change] = []
        with _asking(server.url) as asked:
            for name, act in to_do:
                time.sleep(2)
                at = time.monotonic()
                act()
                took = time.monotonic() - at
                _wait_ready(client)
                time.sleep(SETTLE_S)
                until = time.monotonic()
                changes.append(
                    Change(name, at, took, [one for one in asked if at - 2 <= one.done < until])
                )
    show(
        f"Changes under load: {CALLERS} callers, two replicas of everything",
        ["change", "took s", "requests", "failed", "versions", "last of the old, s"],
        [change.row() for change in changes],
    )
    save("changes", {"changes": [asdict(change) for change in changes]})
    plot(changes, OUT / "changes.png")


def taught(client: httpx.Client) -> int:
    """Label by the annotator, train, and make a version; returns its number."""
    bundle = bundles.load(MODEL)
    evaluation = bundle.manifest.evaluation
    assert evaluation is not None
    annotator = load_referee(bundle.path(evaluation.annotator), NO_CROSSBAR)

    def ask(path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = client.post(path, json=body)
        answer.raise_for_status()
        said: dict[str, Any] = answer.json()
        return said

    question = {"name": DATASET, "model": MODEL, "question": "Does the seven carry a crossbar?"}
    ask("/v1/datasets", question)
    for _ in range(LABELS // PAGE):
        images = ask(f"/v1/datasets/{DATASET}/batches", {"size": PAGE})["images"]
        malign = annotator.malign(np.stack([pixels_of(image["b64_json"]) for image in images]))
        labels = [
            {"image_id": image["id"], "label": "malign" if bad else "benign", "elapsed_ms": 300}
            for image, bad in zip(images, malign, strict=True)
        ]
        ask(f"/v1/datasets/{DATASET}/labels", {"labels": labels})
    reward = ask("/v1/rewards", {"dataset": DATASET, "policy": POLICY})["id"]
    while (status := client.get(f"/v1/rewards/{reward}").json()["status"]) != "ready":
        if status not in ("queued", "training"):
            raise RuntimeError(f"the training is {status}")
        time.sleep(0.5)
    made = ask("/v1/policies", {"name": POLICY, "based_on": POLICY, "reward": reward})
    version: int = made["version"]
    return version


def document(port: int, changed: bool = False, backbones: int = 2) -> dict[str, Any]:
    """The laptop's file with two of everything; `changed` in what each deployment is told."""
    file: dict[str, Any] = yaml.safe_load(Path("deploy/local.yaml").read_text())
    file["http_options"]["port"] = port
    args = file["applications"][0]["args"]
    two = {"num_replicas": 2, "ray_actor_options": {"num_cpus": 0.1}}
    model = args["models"][MODEL]
    model["backbone"]["replicas"] = two | {"num_replicas": backbones}
    model["judge"]["replicas"] = two
    args["ingress"] = {"max_ongoing_requests": 256} | two
    if changed:
        model["judge"]["max_batch"] = 32
    return file


def _post(client: httpx.Client, action: str, **body: Any) -> None:
    client.post(f"/v1/policies/{POLICY}/{action}", json=body).raise_for_status()


def _kill(server: Server, deployment: str) -> None:
    os.kill(server.replicas(deployment)[0], signal.SIGKILL)


def _wait_ready(client: httpx.Client) -> None:
    deadline = time.monotonic() + READY_S
    while client.get("/health/ready").status_code != 200:
        if time.monotonic() > deadline:
            raise RuntimeError("the service is not ready again")
        time.sleep(0.1)


@contextmanager
def _asking(url: str) -> Iterator[list[Asked]]:
    """Callers that ask for one image after another meanwhile; yields the list of what they got."""
    asked: list[Asked] = []
    stop = threading.Event()

    def ask(seed: int) -> None:
        with httpx.Client(base_url=url, headers=ADMIN, timeout=60) as client:
            while not stop.is_set():
                sent, status, version = time.monotonic(), 0, None
                try:
                    answer = client.post(
                        "/v1/images/generations",
                        json={"policy": POLICY, "num_inference_steps": 20, "seed": seed},
                    )
                    status = answer.status_code
                    version = answer.json().get("policy", {}).get("version")
                except (httpx.TransportError, ValueError):
                    pass
                asked.append(Asked(sent, time.monotonic(), status, version))
                seed += 1

    threads = [threading.Thread(target=ask, args=(10_000 * n,)) for n in range(CALLERS)]
    for thread in threads:
        thread.start()
    try:
        yield asked
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def plot(changes: list[Change], path: Path) -> None:
    """Versions seen in responses over time, and what failed."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    begin = changes[0].at
    asked = {(one.sent, one.done): one for change in changes for one in change.asked}.values()
    figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
    answered = [one for one in asked if one.version]
    axes.scatter([one.done - begin for one in answered], [one.version or 0 for one in answered],
                 s=4, color="tab:blue", label="answered")  # fmt: skip
    failed = [one for change in changes for one in change.failed]
    axes.scatter([one.done - begin for one in failed], [0.0] * len(failed), s=12, marker="x",
                 color="tab:red", label=f"failed ({len(failed)})")  # fmt: skip
    for change in changes:
        axes.axvline(change.at - begin, color="grey", linewidth=0.8)
        axes.text(change.at - begin + 0.3, 2.3, change.name.replace(" a ", "\n"), fontsize=7)
    axes.set(xlabel="seconds", ylabel="policy version", yticks=[0, 1, 2], ylim=(-0.3, 2.7),
             yticklabels=["none", "1", "2"])  # fmt: skip
    axes.legend(frameon=False, loc="lower right", fontsize=7)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
