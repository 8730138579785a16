"""A pipeline's folder: what stands in it, and what is never taken from it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.backbones.importing.weights import Weights

PICKLES = frozenset({".bin", ".ckpt", ".pt", ".pth", ".pkl"})
NEVER = PICKLES | {".py", ".msgpack", ".h5"}
"""Endings of files that can run code, or that nothing here reads: they are never copied."""

INDEX = "model_index.json"
HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")

MOST = 100_000
"""No count in a configuration is larger: not of classes, timesteps, channels or positions."""
COUNTS = frozenset({
    "addition_time_embed_dim", "hidden_size", "in_channels", "latent_channels",
    "max_position_embeddings", "num_class_embeds", "num_embeds_ada_norm", "num_train_timesteps",
    "out_channels", "patch_size", "projection_class_embeddings_input_dim", "projection_dim",
})  # fmt: skip
LISTS = frozenset({"block_out_channels", "patch_size", "sample_size"})
"""Counts, as many as there are blocks, or sides of an image that is no square."""


class CannotImport(ValueError):
    """The pipeline cannot become a bundle; the message names the file and what to do."""


@contextmanager
def reading(where: str) -> Iterator[None]:
    """What `where` says and nothing here can make sense of becomes a CannotImport that names it."""
    try:
        yield
    except CannotImport:
        raise
    except (
        LookupError, TypeError, ValueError, AttributeError, ArithmeticError, AssertionError
    ) as error:  # fmt: skip
        raise CannotImport(f"{where}: cannot be made sense of: {short(error)}") from error


def short(error: Exception) -> str:
    """A library's words on a fault, in a line: some add all that they would have taken."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


class Config(dict[str, Any]):
    """A configuration file; what it does not say is a CannotImport that names it."""

    def __init__(self, where: str, said: dict[str, Any]) -> None:
        super().__init__(said)
        self._where = where
        for key, value in said.items():
            if key in LISTS and isinstance(value, list):
                good, words = bool(value) and all(map(_counts, value)), "whole numbers"
            elif key == "block_out_channels":
                good, words = False, "a list of whole numbers"
            elif key in COUNTS | LISTS:
                good, words = value is None or _counts(value), "a whole number"
            else:
                continue
            if not good:
                raise CannotImport(f"{where}: {key} is {value!r}, must be {words} of 1 to {MOST}")

    def __missing__(self, key: str) -> Any:
        raise CannotImport(f"{self._where}: does not say {key!r}")


def _counts(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MOST


@dataclass(frozen=True)
class Source:
    """`name` is how the manifest calls it, `folder` where it lies, `index` its model_index.json.

    `changes` of its scheduler's configuration go before what the file there says; `converted` are
    weights that are not files of the folder, by component; `said` are sentences on how it was read.
    """

    name: str
    folder: Path
    index: dict[str, Any]
    variant: str | None = None
    revision: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    converted: Mapping[str, Weights] = field(default_factory=dict)
    said: tuple[str, ...] = ()

    @property
    def components(self) -> dict[str, tuple[str, str]]:
        """The library and class of each component that there is, by name."""
        return {
            name: (str(value[0]), str(value[1]))
            for name, value in self.index.items()
            if isinstance(value, list) and len(value) == 2 and all(value)
        }

    def config(self, component: str, file: str = "config.json") -> dict[str, Any]:
        """A component's configuration. Raises CannotImport."""
        changes = dict(self.changes) if component == "scheduler" else {}
        return Config(f"{component}/{file}", read_json(self.folder / component / file) | changes)

    @property
    def left_out(self) -> list[str]:
        """The files that are never taken, by their names in the folder."""
        return sorted(
            str(path.relative_to(self.folder))
            for path in self.folder.rglob("*")
            if path.suffix in NEVER and ".git" not in path.parts
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file. Raises CannotImport."""
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise CannotImport(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise CannotImport(f"{path}: is not JSON: fetch it again") from None
    except RecursionError:
        raise CannotImport(f"{path}: is nested too deeply: fetch it again") from None
    if not isinstance(found, dict):
        raise CannotImport(f"{path}: must hold a JSON object")
    return found
