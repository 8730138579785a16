"""Latency under load, beside what a user would build instead: Poisson arrivals, n = 1, 50 steps.

All three servers judge with the same judge and threshold, and have the same two cores and the same
int8 denoiser, but the plain one, which is torch on two threads as diffusers has it. They run one
after the other at each load, so that the machine's moods fall on all.
`python -m loadtest.bench.peers [--seconds 20]`.
"""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import asdict
from typing import Any

import matplotlib

from loadtest.bench.load import Latencies, capacity, offer
from loadtest.bench.report import OUT, save, show
from loadtest.bench.servers import Server, peer, winnow

BATCHED, PLAIN, DEADLINE_S = "@serve.batch", "FastAPI + diffusers", 2.0


def main() -> None:
    """Measure, print one table, write JSON and a plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20, help="of arrivals at each load")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.4, 0.7, 0.9])
    parser.add_argument("--multiples", type=float, nargs="+", default=[3, 6, 8, 10])
    arguments = parser.parse_args()
    with (
        winnow() as ours,
        peer(BATCHED, "loadtest.peers.batched") as batched,
        peer(PLAIN, "loadtest.peers.plain") as plain,
    ):
        found = asyncio.run(_measure(ours, batched, plain, arguments))
    runs: list[Latencies] = found.pop("runs")
    rows = [
        [
            run.server,
            f"{run.rate:.1f}",
            *(f"{1000 * value:.0f}" for value in (run.mean, *map(run.quantile, (0.5, 0.95, 0.99)))),
            f"{100 * run.goodput(DEADLINE_S):.0f} %",
            str(run.failed),
        ]
        for run in runs
    ]
    columns = ["server", "arrivals/s", "mean ms", "p50", "p95", "p99", "in time", "failed"]
    show(f"One image, Poisson arrivals; in time is {DEADLINE_S:g} s", columns, rows)
    show("Beside the peers", ["figure", "value"], [[k, f"{v:.2f}"] for k, v in found.items()])
    save("peers", found | {"runs": [asdict(run) for run in runs]})
    _plot(runs)


async def _measure(
    ours: Server, batched: Server, plain: Server, arguments: argparse.Namespace
) -> dict[str, Any]:
    capacities = {
        server.name: await capacity(server, callers, 8)
        for server, callers in ((plain, 2), (batched, 32), (ours, 32))
    }
    runs: list[Latencies] = []
    ratios: dict[str, float] = {}
    for place, server in enumerate((plain, batched)):
        for load in arguments.loads:
            rate, seed = load * capacities[server.name], 10 * place + int(10 * load)
            # A slow server needs longer for as many requests.
            seconds = max(arguments.seconds, min(40 / rate, 3 * arguments.seconds))
            theirs = await offer(server, rate, seconds, seed)
            same = await offer(ours, rate, seconds, seed)
            runs += [theirs, same]
            if load == 0.7:
                ratios[f"mean latency ÷ {server.name} at 70 % of its capacity"] = (
                    same.mean / theirs.mean
                )
                if server is plain:
                    limit, plain_rate = theirs.quantile(0.95), rate
    held = 0.0
    for multiple in arguments.multiples:
        run = await offer(ours, multiple * plain_rate, arguments.seconds, int(multiple) + 100)
        runs.append(run)
        if run.quantile(0.95) > limit or run.failed:
            break
        held = multiple
    ratios[f"load held at the p95 of {PLAIN} ÷ its load"] = held
    ratios |= {f"capacity of {name}, images/s": value for name, value in capacities.items()}
    return ratios | {"runs": runs}


def _plot(runs: list[Latencies]) -> None:
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    colours = {"Winnow": "#1b7f5c", BATCHED: "#b3701a", PLAIN: "#8a8a8a"}
    for name, colour in colours.items():
        own = [run for run in runs if run.server == name]
        points = sorted((run.rate, run.mean, run.quantile(0.95)) for run in own)
        rates, means, tails = zip(*points, strict=True)
        axes.plot(rates, means, "o-", color=colour, label=f"{name}, mean")
        axes.plot(rates, tails, "o:", color=colour, alpha=0.6, label=f"{name}, p95")
    axes.set(xscale="log", yscale="log", xlabel="arrivals per second", ylabel="seconds")
    axes.set_title("One judged image, Poisson arrivals, two cores")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False, fontsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(OUT / "peers.png", dpi=150)


if __name__ == "__main__":
    main()
