"""A prompt that a model does not take is left out of a training's draws, and told."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from models.diffusion.condition import Condition, ConditionError, Mix
from service.labelling.accepted_conditions import AcceptedConditions


@dataclass
class Encoder:
    """Takes short prompts."""

    asked: int = 0

    def check(self, condition: Condition, seed: int) -> None:
        self.asked += 1
        if len(condition.prompt) > 4:
            raise ConditionError("is too long", "prompt")


def generator(**weights: float) -> Any:
    mixed = Mix(tuple(Condition(prompt=one) for one in weights), tuple(weights.values()))
    return SimpleNamespace(condition=mixed.of, encoder=Encoder())


def test_what_is_left_keeps_its_proportions() -> None:
    given = generator(cats=3.0, dogs=1.0, elephants=6.0)
    takeable = AcceptedConditions(given)
    found = Counter(takeable.condition(seed).prompt for seed in range(4000))
    assert set(found) == {"cats", "dogs"}
    assert abs(found["cats"] / 4000 - 0.75) < 0.04
    assert takeable.left_out == ["prompt: is too long"]
    assert given.encoder.asked == 3, "each once"
    for seed in range(100):
        taken = given.condition(seed)
        if taken.prompt != "elephants":
            assert takeable.condition(seed) == taken, "the others' seeds draw what they drew"


def test_nothing_to_draw_is_a_fault_that_says_why() -> None:
    with pytest.raises(ConditionError, match="too long"):
        AcceptedConditions(generator(elephants=1.0)).condition(0)
