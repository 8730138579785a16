"""Shared by the commands: output, progress bars, errors as sentences, the configuration file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from models.bundles.manifest import Evaluation
from models.zoo.questions import QUESTIONS, Question
from service.config import ConfigError, Settings
from service.errors import WinnowError

if TYPE_CHECKING:  # torch takes seconds to import, and most commands need none
    from models.backbones.training_loop import Progress as Step

console = Console(stderr=True, highlight=False)
DEFAULT_CONFIG = Path("deploy/local.yaml")
ConfigFile = Annotated[Path, typer.Option("--config", help="The service's configuration file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Everything, as JSON.")]
BundleArgument = Annotated[
    str, typer.Argument(help="A bundle's folder, or the name of a shipped one.")
]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads.")]

Advance = Callable[..., None]
"""`advance(count, note="")`: `count` more are done."""


@contextmanager
def faults() -> Iterator[None]:
    """Print a user's mistake as a sentence and exit with code 1."""
    try:
        yield
    except BrokenPipeError:  # of `| head`, which typer knows
        raise
    except (OSError, ValueError, WinnowError) as error:  # ConfigError and BundleError among them
        text = str(error)
        if isinstance(error, OSError) and error.filename is not None:
            text = f"{error.filename}: {error.strerror}"
        # The store's driver knows the cause; the API keeps it from its callers.
        if cause := getattr(error.__cause__, "orig", None):
            text = f"{text} ({cause})"
        say(text, style="red")
        raise typer.Exit(1) from None


def say(text: str, style: str | None = None) -> None:
    """Print a message on stderr, as it is."""
    console.print(text, style=style, markup=False, soft_wrap=True)


def print_table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Print a table on stdout; None becomes an empty cell."""
    table = Table(*columns, box=None)
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    # An id that was cut short cannot be pasted.
    Console(highlight=False, width=max(140, Console().width)).print(table)


def print_facts(rows: Iterable[tuple[str, object]]) -> None:
    """Print names and values on stdout, without those that have no value."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        if value:
            table.add_row(name, str(value))
    Console(highlight=False).print(table)


@contextmanager
def bars() -> Iterator[Callable[[str, int], Advance]]:
    """Progress bars, one for each call of what this yields."""
    columns = (TextColumn("{task.description:44}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:

        def start(what: str, total: int) -> Advance:
            task = progress.add_task(what, total=total)

            def advance(count: int, note: str = "") -> None:
                progress.update(task, advance=count, description=f"{what} {note}")

            return advance

        yield start


def losses(bar: Advance) -> Callable[[Step], None]:
    """Advance `bar` as a training loop goes on, from wherever it resumes, and show its loss."""
    done = 0

    def advance(now: Step) -> None:
        nonlocal done
        bar(now.step - done, f"loss {now.loss:.4f}")
        done = now.step

    return advance


PARTS_OF_ONE = 1000
"""The total of a bar of `fractions`."""


def fractions(bar: Advance) -> Callable[[str, float], None]:
    """Advance `bar`, of PARTS_OF_ONE, as a training reports its stage and the fraction done."""
    shown = 0

    def advance(stage: str, fraction: float) -> None:
        nonlocal shown
        now = round(fraction * PARTS_OF_ONE)
        bar(now - shown, stage)
        shown = now

    return advance


def read_text(file: Path) -> str:
    """The text of a file. Raises OSError, and ValueError where it is not UTF-8."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{file}: is not text in UTF-8") from None


def read_settings(config: Path) -> Settings:
    """The settings of a configuration file. Raises ConfigError."""
    from service.config.serve_file import read

    if not config.is_file():
        raise ConfigError(
            f"{config}: no such file: say where the service's configuration is with --config"
        )
    return read(config).settings


def needed_evaluation(evaluation: Evaluation | None) -> Evaluation:
    """The evaluation networks of a bundle. Raises ConfigError without any."""
    if evaluation is None:
        raise ConfigError("the bundle has no `evaluation`: it cannot label or judge draws")
    return evaluation


def question(reward: str) -> Question:
    """The question that the bundle's referees can answer for a reward. Raises ConfigError."""
    if reward not in QUESTIONS:
        raise ConfigError(
            f"reward {reward!r}: no referee knows its question (they know {', '.join(QUESTIONS)})"
        )
    return QUESTIONS[reward]
