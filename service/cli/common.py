"""What the commands share: where to print, progress bars, and mistakes as sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from models.manifest import Evaluation
from models.questions import QUESTIONS, Question
from service.config import ConfigError, Settings
from service.errors import WinnowError

if TYPE_CHECKING:  # torch takes seconds to import, and most commands need none
    from models.backbones.loop import Progress as Step

console = Console(stderr=True, highlight=False)
DEFAULT_CONFIG = Path("deploy/local.yaml")
ConfigFile = Annotated[Path, typer.Option("--config", help="The service's configuration file.")]


Advance = Callable[..., None]
"""Call it with how many more are done, and a note if there is one."""


@contextmanager
def faults() -> Iterator[None]:
    """A user's mistake becomes a sentence and exit code 1."""
    try:
        yield
    except BrokenPipeError:  # of `| head`, which typer knows
        raise
    except (OSError, ValueError) as error:  # ConfigError and BundleError among them
        text = str(error)
        if isinstance(error, OSError) and error.filename is not None:
            text = f"{error.filename}: {error.strerror}"
        console.print(text, style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from None
    except WinnowError as error:
        # The store's driver knows the cause, which callers of the API are not told.
        cause = getattr(error.__cause__, "orig", None)
        text = f"{error} ({cause})" if cause else str(error)
        console.print(text, style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from None


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


def read_settings(config: Path) -> Settings:
    """The settings of a configuration file. Raises ConfigError."""
    from service.serve_file import read

    if not config.is_file():
        raise ConfigError(
            f"{config}: no such file: say where the service's configuration is with --config"
        )
    return read(config).settings


def needed_evaluation(evaluation: Evaluation | None) -> Evaluation:
    """What a bundle is judged with. Raises ConfigError if it has none."""
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
