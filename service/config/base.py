"""Base class and shared types of the settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

NAME = "^[a-z0-9][a-z0-9._-]{0,63}$"
NAME_IN_WORDS = (
    "small letters, digits, dots, dashes and underscores alone, beginning with a letter or digit, "
    "64 at most"
)
DAY_S = 86_400
SHORTEST_S = 0.1
"""The shortest time limit, in seconds, that a setting may have."""
Name = Annotated[str, Field(pattern=NAME)]
Port = Annotated[int, Field(ge=1, le=65535)]
Variable = Annotated[str, Field(pattern="^[A-Z][A-Z0-9_]{0,127}$")]
"""The name of an environment variable."""
Threads = Annotated[int, Field(ge=1, le=1024)]
Device = Annotated[str, Field(pattern=r"^(cpu|cuda(:\d{1,2})?)$")]


class ConfigError(ValueError):
    """The configuration cannot be used; the message has a line `path: reason` for each fault."""


def refuse_control(text: str) -> None:
    """Raises ValueError for characters that no path or URL holds."""
    if not text.isprintable():
        raise ValueError("must hold no control characters")


class Faults:
    """Collects a line for each fault, so that one error reports all."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    @contextmanager
    def gather(self, path: str = "") -> Iterator[None]:
        """Keep the lines of a ValueError raised within, each behind `path`."""
        try:
            yield
        except ValueError as error:  # ConfigError and BundleError among them
            self.lines += [f"{path}{line}" for line in str(error).split("\n")]

    def refuse(self) -> None:
        """Raises ConfigError if there is a fault."""
        if self.lines:
            raise ConfigError("\n".join(self.lines))


class Part(BaseModel):
    """Frozen; an unknown key, a value of another type and a number that is not finite are refused.

    Nothing is converted: YAML has types of its own, and `"2"` or `true` for a number is a slip. A
    validator that compares fields begins its message with the path of one: `field: reason`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
