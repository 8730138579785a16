"""`make bench`: every figure that we promise, measured in one go, beside its goal.

`python -m loadtest.bench` runs the benchmarks and then prints the summary; with `--summary` it
prints what the last runs have left. Each benchmark is a process of its own, since one pins itself
to a core.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from loadtest.bench.peers import BATCHED, PLAIN
from loadtest.bench.report import OUT, save, saved, show

EVALUATION = Path("build/evaluation/table.json")


@dataclass(frozen=True)
class Figure:
    """One promise. `value` is None where it was not measured; at most or at least `goal`.

    `under` says whether the conditions hold under which the goal is to be reached.
    """

    name: str
    value: float | None
    goal: float
    at_most: bool
    beside: str = ""
    under: bool = True

    @property
    def met(self) -> str:
        """Whether the goal is met, as a word."""
        if self.value is None:
            return "not measured"
        good = self.value <= self.goal if self.at_most else self.value >= self.goal
        return "yes" if good and self.under else "no"


def figures(found: dict[str, dict[str, Any]], table: list[dict[str, Any]]) -> list[Figure]:
    """The promises, from what benchmarks and `winnow evaluate` have written."""

    def rate(bench: str, name: str, over: str) -> float | None:
        medians = found[bench].get("medians", {})
        return medians[name] / medians[over] if name in medians and over in medians else None

    rows = {(row["question"], row["policy"]): row for row in table}

    def cost(policy: str, malign: float, fidelity: float) -> tuple[float | None, str, bool]:
        """CPU against uncensored; and whether malign rate and Fréchet distance are as promised."""
        row, free = rows.get((policy, policy)), rows.get((policy, "none"))
        if row is None or free is None:
            return None, "", True
        said = (
            f"{100 * row['malign_rate']:.2f} % malign "
            f"[{100 * row['malign_low']:.2f}, {100 * row['malign_high']:.2f}], "
            f"Fréchet {row['frechet']:.2f}, perfect filter {row['perfect']:.2f}"
        )
        under = row["malign_rate"] <= malign and row["frechet"] <= fidelity * row["perfect"]
        return row["cpu_s"] / free["cpu_s"], said, under

    service, peers = found["service"], found["peers"]
    rejection = cost("no-crossbar", 0.005, 1.3)
    guided = cost("only-crossbar", 0.01, float("inf"))
    distilled = "engine, all guided (distilled)"
    return [
        Figure("engine NFE/s ÷ bare loop", rate("engine", "engine", "bare loop"), 0.95, False),
        Figure("service NFE/s ÷ bare loop, n = 16", rate("service", "n = 16", "bare loop"),
               0.90, False, _said(rate("service", "n = 1", "bare loop"), "n = 1: {:.2f}")),
        Figure(f"mean latency ÷ {BATCHED} at 70 %",
               peers.get(f"mean latency ÷ {BATCHED} at 70 % of its capacity"), 0.6, True),
        Figure(f"mean latency ÷ {PLAIN} at 70 %",
               peers.get(f"mean latency ÷ {PLAIN} at 70 % of its capacity"), 0.2, True),
        Figure(f"load held at equal p95 ÷ {PLAIN}",
               peers.get(f"load held at the p95 of {PLAIN} ÷ its load"), 3.0, False),
        Figure("no-crossbar: CPU per image ÷ uncensored", rejection[0], 1.12, True, *rejection[1:]),
        Figure("only-crossbar: CPU per image ÷ uncensored", guided[0], 2.5, True, *guided[1:]),
        Figure("guided step ÷ unguided step", rate("engine", "engine", distilled), 1.15, True),
        Figure("REST + router overhead, p50, ms", service.get("overhead_ms", {}).get("50"),
               10.0, True),
        Figure("slots in use after a disconnect", service.get("left", {}).get("slots"), 0.0, True),
    ]  # fmt: skip


def _said(value: float | None, text: str) -> str:
    return "" if value is None else text.format(value)


def main() -> None:
    """Run what is asked for, then print the summary and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--summary", action="store_true", help="only print what is there")
    parser.add_argument("--seconds", type=int, default=12, help="of arrivals at each load")
    parser.add_argument("--images", type=int, default=600, help="of each policy, to evaluate")
    arguments = parser.parse_args()
    if not arguments.summary:
        python = [sys.executable, "-m"]
        winnow = str(Path(sys.executable).with_name("winnow"))
        for command in (
            [*python, "loadtest.bench.engine"],
            [*python, "loadtest.bench.service"],
            [*python, "loadtest.bench.peers", "--seconds", str(arguments.seconds)],
            [winnow, "evaluate", "--n", str(arguments.images), "--policy", "none",
             "--policy", "no-crossbar", "--policy", "only-crossbar"],
        ):  # fmt: skip
            subprocess.run(command, check=True)
    table = json.loads(EVALUATION.read_text()) if EVALUATION.exists() else []
    found = figures({name: saved(name) for name in ("engine", "service", "peers")}, table)
    show(
        "What we promise",
        ["figure", "measured", "goal", "met", ""],
        [
            [
                figure.name,
                "" if figure.value is None else f"{figure.value:.3g}",
                f"{'≤' if figure.at_most else '≥'} {figure.goal:g}",
                figure.met,
                figure.beside,
            ]
            for figure in found
        ],
    )
    save("summary", {figure.name: {"value": figure.value, "met": figure.met} for figure in found})
    Console().print(f"Also: {OUT}/*.json, {OUT}/peers.png, {EVALUATION.parent}/table.md")


if __name__ == "__main__":
    main()
