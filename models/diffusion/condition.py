"""The condition of a draw, as plain data: a class or a prompt, and the guidance scale."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate

from pydantic import ConfigDict

from models.diffusion.noise import Purpose, choice, share

Size = tuple[int, int] | None
"""[H, W] of an image; None is the model's default size."""


def size_text(size: tuple[int, int]) -> str:
    """A size as people and clients write it: `WIDTHxHEIGHT`."""
    return f"{size[1]}x{size[0]}"


def size_of(text: str) -> tuple[int, int]:
    """[H, W] of `WIDTHxHEIGHT`. Raises ValueError."""
    width, height = text.split("x")
    return int(height), int(width)


def in_words(size: Size) -> str:
    """The same, in a sentence."""
    return "the model's own size" if size is None else size_text(size)


PROMPT_CHUNKS = 8
"""How often, unless told otherwise, a text encoder may be asked to read a part of one prompt."""


class ConditionError(ValueError):
    """A condition that the model cannot take; `field` is the request's field that says so."""

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True)
class Condition:
    """What one request asks of the model.

    `class_label` None on a class-conditional model means that each image's seed draws its class,
    uniformly from `class_labels`. `guidance_scale` is classifier-free guidance's; at 1 there is
    none, and the row does not pay for it. `size` is [H, W] of the image, None the model's default,
    which is never named here: equal conditions are equal. Prompts are personal, so no `repr` shows
    one.
    """

    # Read back from a store, a misspelt key must not pass for a default.
    __pydantic_config__ = ConfigDict(extra="forbid")

    prompt: str = field(default="", repr=False)
    negative_prompt: str = field(default="", repr=False)
    class_label: int | None = None
    guidance_scale: float = 1.0
    class_labels: tuple[int, ...] = ()
    size: Size = None

    def label(self, seed: int) -> int | None:
        """The class of the image with this seed; None on a model without classes."""
        if self.class_label is not None or not self.class_labels:
            return self.class_label
        return self.class_labels[choice(seed, Purpose.CLASS, len(self.class_labels))]


UNCONDITIONAL = Condition()
"""The empty condition."""


@dataclass(frozen=True)
class Mix:
    """Conditions with weights above 0: each seed draws one of them, as often as its weight says."""

    conditions: tuple[Condition, ...] = (UNCONDITIONAL,)
    weights: tuple[float, ...] = (1.0,)

    def which(self, seed: int) -> int:
        """The place of the condition of this seed."""
        if len(self.conditions) == 1:
            return 0
        bounds = list(accumulate(self.weights))
        return min(
            bisect_right(bounds, share(seed, Purpose.CONDITION) * bounds[-1]), len(bounds) - 1
        )

    def of(self, seed: int) -> Condition:
        """The condition of the image with this seed."""
        return self.conditions[self.which(seed)]
