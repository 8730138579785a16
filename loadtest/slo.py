"""Holds what Locust counted against targets by policy: a table, and whether all were met.

`python -m loadtest.slo build/loadtest/mixed` evaluates a run again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.lines import Line, table
from loadtest.outcomes import FAILURES, Outcome

FILE = Path("loadtest/slo.toml")
STATS = "stats.json"
MIN_REQUESTS = 10
"""A p95 of fewer means nothing."""

Row = Mapping[str, Any]
"""One row of Locust's JSON; `method` is the outcome, `name` the policy or what else was sent."""


@dataclass(frozen=True)
class Target:
    """What one policy must hold; the fields are explained in slo.toml."""

    p50_s: float
    p95_s: float
    availability: float
    overloaded: float
    goodput_s: float
    goodput: float


def targets(scenario: str, path: Path = FILE) -> dict[str, Target]:
    """The targets of each policy, with what the scenario changes in them."""
    read = tomllib.loads(path.read_text())
    changes = read.get("scenarios", {}).get(scenario, {})
    return {
        policy: Target(**(target | changes.get(policy, {})))
        for policy, target in read["policies"].items()
    }


def evaluate(rows: Iterable[Row], goals: Mapping[str, Target]) -> list[Line]:
    """Each target of each policy that was asked, and that nothing else failed."""
    rows = list(rows)
    lines = []
    for policy, target in goals.items():
        own = [row for row in rows if row["name"] == policy]
        if own:
            lines += _lines(policy, own, target)
    if not lines:
        lines.append(Line("ordinary callers", "requests", "0", "> 0", False))
    return lines + _promises(rows, goals)


def _lines(policy: str, rows: list[Row], target: Target) -> list[Line]:
    counts = Counter[str]()
    for row in rows:
        counts[row["method"]] += row["num_requests"]
    total = counts.total()
    images = _seconds(rows, (Outcome.IMAGE,))
    answered = _seconds(rows, (Outcome.IMAGE, Outcome.BLOCKED))
    good = sum(number for seconds, number in answered.items() if seconds <= target.goodput_s)
    availability = 1 - sum(counts[kind] for kind in FAILURES) / total
    overloaded, goodput = counts[Outcome.OVERLOADED] / total, good / total
    p50, p95 = quantile(images, 0.50), quantile(images, 0.95)
    return [
        Line(policy, "requests", str(total), f"≥ {MIN_REQUESTS}", total >= MIN_REQUESTS),
        Line(policy, "blocked", f"{counts[Outcome.BLOCKED] / total:.2%}", "", True),
        Line(policy, "p50", f"{p50:.2f} s", f"≤ {target.p50_s:g} s", p50 <= target.p50_s),
        Line(policy, "p95", f"{p95:.2f} s", f"≤ {target.p95_s:g} s", p95 <= target.p95_s),
        Line(policy, "availability", f"{availability:.2%}", f"≥ {target.availability:.2%}",
             availability >= target.availability),
        Line(policy, "429", f"{overloaded:.2%}", f"≤ {target.overloaded:.2%}",
             overloaded <= target.overloaded),
        Line(policy, f"goodput ({target.goodput_s:g} s)", f"{goodput:.2%}",
             f"≥ {target.goodput:.2%}", goodput >= target.goodput),
    ]  # fmt: skip


def _promises(rows: list[Row], goals: Mapping[str, Target]) -> list[Line]:
    """What holds whatever the load: no answer breaks the contract, no other client fails."""
    wrong = sum(row["num_requests"] for row in rows if row["method"] == Outcome.WRONG)
    lines = [Line("all", "answers against the contract", str(wrong), "0", wrong == 0)]
    others = [row for row in rows if row["name"] not in goals]
    for kind in (Outcome.REFUSED, Outcome.READ_SLOWLY, Outcome.HUNG_UP, Outcome.SLOTS_FREE):
        done = [row for row in others if row["method"] == kind]
        if done:
            number = sum(row["num_requests"] for row in done)
            lines.append(Line("others", kind.value, str(number), "", True))
    failed = sum(row["num_requests"] for row in others if row["method"] == Outcome.FAILED)
    return [*lines, Line("others", "failed", str(failed), "0", failed == 0)]


def _seconds(rows: list[Row], kinds: tuple[Outcome, ...]) -> Counter[float]:
    """How many requests of these outcomes took how long. Locust keeps two digits."""
    found = Counter[float]()
    for row in rows:
        if row["method"] in kinds:
            for milliseconds, number in row["response_times"].items():
                found[float(milliseconds) / 1000] += number
    return found


def quantile(seconds: Counter[float], q: float) -> float:
    """The q-quantile; infinite without any."""
    wanted, passed = q * seconds.total(), 0
    for value in sorted(seconds):
        passed += seconds[value]
        if passed >= wanted:
            return value
    return float("inf")


def held(folder: Path, scenario: str) -> list[Line]:
    """What a run left in a folder, against the targets of its scenario."""
    return evaluate(json.loads((folder / STATS).read_text()), targets(scenario))


def report(folder: Path, scenario: str) -> bool:
    """Print a run's table, leave it beside the run as slo.md, and say whether all was met."""
    missed = table(f"Load test: {scenario}", held(folder, scenario), folder / "slo.md")
    print("The SLO is met." if not missed else "The SLO is missed.\n" + "\n".join(missed))  # noqa: T201
    return not missed


def main() -> None:
    """Evaluate a run that lies in a folder named after its scenario."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    sys.exit(0 if report(folder, folder.name) else 1)


if __name__ == "__main__":
    main()
