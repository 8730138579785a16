"""The conditions that a model takes: a training draws those alone."""

from __future__ import annotations

from models.diffusion.condition import Condition, ConditionError
from models.diffusion.noise import MAX_SEED
from models.offline.generator import Generator

TRIES = 10_000
STRIDE = 1_000_003


class AcceptedConditions:
    """The conditions of a generator's seeds, without those that its model refuses: too long a
    prompt, say. `left_out` says why, once each."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._refused: dict[Condition, ConditionError | None] = {}

    @property
    def left_out(self) -> list[str]:
        """Of each condition that was met and is not taken, why."""
        return [f"{error.field}: {error}" for error in self._refused.values() if error]

    def condition(self, seed: int) -> Condition:
        """The condition of this seed, or of another seed where the model refuses it: so what is
        left keeps its proportions. Raises ConditionError where the model takes none of them."""
        fault: ConditionError | None = None
        for number in range(TRIES):
            condition = self._generator.condition((seed + number * STRIDE) % (MAX_SEED + 1))
            if condition not in self._refused:
                self._refused[condition] = self._why(condition, seed)
            fault = self._refused[condition]
            if fault is None:
                return condition
        assert fault is not None, "only a refusal goes on to another seed"
        raise fault

    def _why(self, condition: Condition, seed: int) -> ConditionError | None:
        try:
            self._generator.encoder.check(condition, seed)
        except ConditionError as error:
            return error
        return None
