"""A day's traffic against the autoscaling policy: `python -m loadtest.bench.autoscaling`.

The decisions are those of the running service: Winnow's policy, and Serve's own delays. What is
simulated is the rest: traffic, a capacity, and the time that a replica takes to start. A quiet
night, a slow rise, a spike at noon to thrice the load within a minute.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from ray.serve._private.common import DeploymentID
from ray.serve.autoscaling_policy import _apply_delay_logic
from ray.serve.config import AutoscalingContext

from loadtest.bench.report import OUT, save, show
from service.app import by_nfe
from service.autoscaling import CAPACITY, OFFERED, ByNfe
from service.config import Autoscaling

STEP_S = 2.0
DAY_S = 86_400.0
CAPACITY_NFE = 1100.0
"""NFE/s of one replica on one core, as `loadtest.bench.engine` finds."""
START_S = 20.0
"""From the decision to a replica that draws, where a node and the image are there."""
NOON_S, SPIKE_S = 12 * 3600.0, 900.0


@dataclass(frozen=True)
class Day:
    """By step: time in hours, offered NFE/s, and replicas that run."""

    hours: NDArray[np.float64]
    offered: NDArray[np.float64]
    running: NDArray[np.int64]

    @property
    def served(self) -> NDArray[np.float64]:
        """NFE/s that there was room for."""
        return np.minimum(self.offered, self.running * CAPACITY_NFE)


def traffic(seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Seconds of the day and offered NFE/s: between a third of a replica and three, and a spike."""
    rng = np.random.default_rng(seed)
    seconds = np.arange(0, DAY_S, STEP_S)
    slow = 1 + np.cos(2 * math.pi * (seconds / DAY_S - 0.62))
    offered = CAPACITY_NFE * (0.3 + 1.3 * slow)
    after = seconds - NOON_S
    spike = np.clip(after / 60, 0, 1) * (after < SPIKE_S)
    offered *= 1 + 2 * np.clip(spike, 0, 1)
    return seconds, offered * rng.gamma(50, 1 / 50, len(seconds))


def simulate(
    settings: Autoscaling, seconds: NDArray[np.float64], offered: NDArray[np.float64]
) -> Day:
    """Let the policy decide at each step, on what the replicas reported in its look-back."""
    config = by_nfe(settings)
    policy = ByNfe(settings.utilization)
    window = max(1, round(settings.look_back_s / STEP_S))
    running = target = settings.min_replicas
    state: dict[str, Any] = {}
    starting: list[float] = []
    counts = []
    for i, now in enumerate(seconds):
        running += sum(ready <= now for ready in starting)
        starting = [ready for ready in starting if ready > now]
        load = float(offered[max(0, i + 1 - window) : i + 1].mean())
        replicas = [str(number) for number in range(running)]
        context = AutoscalingContext(
            deployment_id=DeploymentID("Backbone"),
            deployment_name="Backbone",
            app_name="winnow",
            current_num_replicas=running,
            target_num_replicas=target,
            running_replicas=[],
            total_num_requests=0,
            total_queued_requests=0,
            aggregated_metrics={
                OFFERED: dict.fromkeys(replicas, load / running),
                CAPACITY: dict.fromkeys(replicas, CAPACITY_NFE),
            },
            raw_metrics=None,
            capacity_adjusted_min_replicas=settings.min_replicas,
            capacity_adjusted_max_replicas=settings.max_replicas,
            policy_state={},
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=float(now),
            config=config,
        )
        desired = min(max(policy(context)[0], settings.min_replicas), settings.max_replicas)
        wanted, state = _apply_delay_logic(desired, target, config, state, _now=float(now))
        if wanted > target:
            starting += [now + START_S] * (wanted - running - len(starting))
        elif wanted < target:
            kept = max(0, wanted - running)
            starting, running = starting[:kept], min(running, wanted)
        target = wanted
        counts.append(running)
    return Day(seconds / 3600, offered, np.array(counts))


def main() -> None:
    """Simulate three ways to run a day, print a table, write JSON and a plot."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    seconds, offered = traffic()
    scaled = simulate(Autoscaling(max_replicas=16), seconds, offered)
    peak = int(scaled.running.max())
    ways = {
        "autoscaling": scaled,
        "as many as the peak takes": Day(scaled.hours, offered, np.full(len(seconds), peak)),
        "two, always": Day(scaled.hours, offered, np.full(len(seconds), 2)),
    }
    rows = [
        [
            name,
            f"{day.running.sum() * STEP_S / 3600:.0f}",
            f"{100 * (1 - day.served.sum() / day.offered.sum()):.2f}",
            f"{100 * day.served.sum() / (day.running.sum() * CAPACITY_NFE):.0f}",
            str(int((np.diff(day.running) != 0).sum())),
        ]
        for name, day in ways.items()
    ]
    columns = ["replicas", "replica hours", "NFE without room, %", "utilization, %", "changes"]
    show("A day's traffic", columns, rows)
    save("autoscaling", {"columns": columns, "rows": rows})
    OUT.mkdir(parents=True, exist_ok=True)
    plot(scaled, OUT / "autoscaling.png")


def plot(day: Day, path: Path) -> None:
    """Offered NFE/s against the room for it, over the day."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (whole, noon) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained", sharey=True)
    for axes, (first, last) in ((whole, (0.0, 24.0)), (noon, (11.9, 12.5))):
        part = (day.hours >= first) & (day.hours <= last)
        axes.plot(day.hours[part], day.offered[part], linewidth=0.4, color="tab:grey",
                  label="offered")  # fmt: skip
        axes.step(day.hours[part], day.running[part] * CAPACITY_NFE, where="post",
                  color="tab:blue", label="capacity of what runs")  # fmt: skip
        axes.set(xlabel="hour of the day", ylim=(0, None), xlim=(first, last))
    whole.set(ylabel="NFE/s")
    whole.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
