"""One line of a table, a figure beside its goal, and the table that load tests print."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from loadtest.bench.report import show

COLUMNS = ["who", "figure", "measured", "target", "met"]


@dataclass(frozen=True)
class Line:
    """What was measured, what it must be, and whether it is; without a target it only tells."""

    what: str
    figure: str
    measured: str
    target: str = ""
    met: bool = True


def at_most(what: str, figure: str, value: float, goal: float, form: str = "{:g}") -> Line:
    """A line whose value must not exceed the goal; `form` says both, with their unit."""
    return Line(what, figure, form.format(value), f"≤ {form.format(goal)}", value <= goal)


def at_least(what: str, figure: str, value: float, goal: float, form: str = "{:g}") -> Line:
    """A line whose value must reach the goal."""
    return Line(what, figure, form.format(value), f"≥ {form.format(goal)}", value >= goal)


def none(what: str, figure: str, found: Iterable[str]) -> Line:
    """A line for what must never happen; the first of what did are named."""
    found = list(found)
    named = f": {'; '.join(found[:3])}" if found else ""
    return Line(what, figure, f"{len(found)}{named}", "0", not found)


def table(title: str, lines: list[Line], path: Path) -> list[str]:
    """Print the lines and leave them as Markdown; returns a sentence for each missed target."""
    rows = [[one.what, one.figure, one.measured, one.target, _word(one)] for one in lines]
    show(title, COLUMNS, _grouped(rows))
    path.parent.mkdir(parents=True, exist_ok=True)
    markdown = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    path.write_text("".join(f"| {' | '.join(row)} |\n" for row in markdown))
    return [f"{one.what}: {one.figure} {one.measured}, not {one.target}"
            for one in lines if not one.met]  # fmt: skip


def _grouped(rows: list[list[str]]) -> list[list[str]]:
    """The rows with each name once, where its lines begin."""
    before = ["", *(row[0] for row in rows)]
    return [
        ["" if row[0] == last else row[0], *row[1:]]
        for last, row in zip(before, rows, strict=False)
    ]


def _word(line: Line) -> str:
    return ("yes" if line.met else "NO") if line.target else ""
