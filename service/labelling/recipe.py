"""What to train."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pydantic import ConfigDict, TypeAdapter


@dataclass(frozen=True)
class Recipe:
    """What to train. `policy` is whose sampling it is calibrated for, `target` the malign rate
    to aim at; `guide` asks for the time-dependent guide as well, `distil` for its student too.
    `features` names what the judge learns on, of the bundle's; None trains it from scratch."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    policy: str
    target: float = 0.01
    guide: bool = False
    distil: bool = False
    seed: int = 0
    threads: int = 1
    features: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @staticmethod
    def from_json(document: Any) -> Recipe:
        """Read what `to_json` wrote. Raises pydantic's ValidationError, a ValueError."""
        return TypeAdapter(Recipe).validate_python(document)
