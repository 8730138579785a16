"""The plot of a load test, from Locust's history: latency, outcomes and users over time."""

from __future__ import annotations

import csv
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import matplotlib

from loadtest.outcomes import Outcome

COLOURS = {
    Outcome.IMAGE: "tab:blue",
    Outcome.BLOCKED: "tab:orange",
    Outcome.OVERLOADED: "tab:purple",
    Outcome.REFUSED: "tab:olive",
    Outcome.READ_SLOWLY: "tab:cyan",
    Outcome.HUNG_UP: "tab:grey",
    Outcome.LATE: "tab:pink",
    Outcome.FAILED: "tab:red",
    Outcome.WRONG: "black",
}
Point = tuple[float, float]


def draw(history: Path, path: Path, title: str) -> None:
    """Draw `path` from Locust's full history."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with history.open() as file:
        rows = list(csv.DictReader(file))
    begin = min(float(row["Timestamp"]) for row in rows)
    p50, p95 = defaultdict[str, list[Point]](list), defaultdict[str, list[Point]](list)
    totals: dict[str, dict[float, int]] = defaultdict(lambda: defaultdict(int))
    users: dict[float, int] = {}
    for row in rows:
        at, outcome = float(row["Timestamp"]) - begin, row["Type"]
        users[at] = int(row["User Count"])
        if outcome:
            totals[outcome][at] += int(row["Total Request Count"])
        if outcome == Outcome.IMAGE and row["95%"] != "N/A":
            p50[row["Name"]].append((at, float(row["50%"]) / 1000))
            p95[row["Name"]].append((at, float(row["95%"]) / 1000))
    figure, (latency, outcomes) = plt.subplots(
        2, 1, figsize=(9, 6), sharex=True, layout="constrained"
    )
    figure.suptitle(title)
    for index, policy in enumerate(p50):
        colour = f"C{index}"
        latency.plot(*zip(*p50[policy], strict=True), color=colour, label=f"{policy}, p50")
        latency.plot(
            *zip(*p95[policy], strict=True), color=colour, linestyle=":", label=f"{policy}, p95"
        )
    latency.set(ylabel="seconds to an image\n(last ten seconds)")
    # A minute at most shows each second; the longer the run, the wider the steps.
    times = sorted(users)
    wide = max(1, len(times) // 60)
    edges = times[::wide]
    seen = [outcome for outcome in COLOURS if outcome in totals]
    outcomes.stackplot(
        edges,
        [_rates(totals[outcome], edges) for outcome in seen],
        labels=[outcome.value for outcome in seen],
        colors=[COLOURS[outcome] for outcome in seen],
        step="pre",
    )
    outcomes.set(xlabel="seconds", ylabel="requests ended a second", ylim=(0, None))
    crowd = outcomes.twinx()
    crowd.plot(times, [users[at] for at in times], color="black", linewidth=0.8, label="users")
    crowd.set(ylabel="users (line)", ylim=(0, 1.35 * max(users.values())))
    for axes in (latency, outcomes):
        axes.set_ylim(0, 1.25 * axes.get_ylim()[1])  # room for the legend
        axes.legend(frameon=False, fontsize=7, loc="upper left", ncols=4)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _rates(total: dict[float, int], times: list[float]) -> list[float]:
    """Requests a second up to each time, from running totals; the first is as the second."""
    running, last = [], 0
    for at in times:
        last = max([last, *(number for then, number in total.items() if then <= at)])
        running.append(last)
    rates = [
        (after - before) / max(end - start, 1e-9)
        for (before, after), (start, end) in zip(pairwise(running), pairwise(times), strict=True)
    ]
    return [*rates[:1], *rates]
