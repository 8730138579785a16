"""Which of a dataset's inputs can be drawn: one that the model does not take stops no other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from models.diffusion.condition import Mix
from service.errors import InvalidValue
from service.policies.inputs import Choices, mix


class DrawableInputs:
    """The mix of those that can be drawn, and of each other one, by its place in the list, why not.

    More may turn out as they are drawn: only a backbone counts a prompt's tokens.
    """

    def __init__(self, inputs: Sequence[Mapping[str, Any]], choices: Choices) -> None:
        """`inputs` are as `service.policies.inputs.parse` gave them to the store; none means what
        is drawn where nothing is asked. Raises InvalidValue, naming the entry, where none can be
        drawn."""
        if not isinstance(inputs, list):
            raise InvalidValue("cannot be read", "inputs")
        self.left_out: dict[int, str] = {}
        self._places = list(range(max(len(inputs), 1)))
        refused: dict[int, InvalidValue] = {}
        parts: list[Mix] = []
        for which, one in enumerate([[each] for each in inputs] or [[]]):
            try:
                parts.append(_mix(one, choices))
            except InvalidValue as error:
                parts.append(Mix())
                refused[which] = error
        self.mix = Mix(
            tuple(part.conditions[0] for part in parts), tuple(part.weights[0] for part in parts)
        )
        self.leave_out(refused)

    def place(self, which: int) -> int:
        """The place in the list of a condition of the mix, by its number there."""
        return self._places[which]

    def leave_out(self, refused: Mapping[int, InvalidValue]) -> None:
        """Leave out conditions of the mix, by their numbers there. Raises InvalidValue, naming the
        first one's entry, if none is left."""
        for which, error in refused.items():
            field = (error.param or "").rpartition(".")[2]
            self.left_out[self.place(which)] = f"{field}: {error.message}"
            if len(refused) == len(self._places):
                raise InvalidValue(error.message, f"inputs.{self.place(which)}.{field}")
        kept = [which for which in range(len(self._places)) if which not in refused]
        self.mix = Mix(
            tuple(self.mix.conditions[which] for which in kept),
            tuple(self.mix.weights[which] for which in kept),
        )
        self._places = [self._places[which] for which in kept]


def _mix(one: Sequence[Mapping[str, Any]], choices: Choices) -> Mix:
    """The mix of one input, or of none. Raises InvalidValue."""
    try:
        found = mix(one, choices)
        # What the store has may be damaged: a prompt may be a number.
        asked = found.conditions[0]
        if not (isinstance(asked.prompt, str) and isinstance(asked.negative_prompt, str)):
            raise TypeError
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InvalidValue("cannot be read", "inputs.0.input") from None
    if not 0 < found.weights[0] < math.inf:
        raise InvalidValue("must be above 0", "inputs.0.weight")
    return found
