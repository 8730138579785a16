"""What is shown next, and with what probability."""

from __future__ import annotations

import numpy as np
import pytest

from service.labelling.selection import choose


def test_without_scores_the_first_are_shown_as_they_come() -> None:
    found = choose(None, 3, "mixed", np.random.default_rng(0))
    assert [(choice.index, choice.strategy, choice.inclusion) for choice in found] == [
        (0, "random", 1.0), (1, "random", 1.0), (2, "random", 1.0),
    ]  # fmt: skip


def test_a_mixed_page_holds_doubtful_malign_and_random_ones_once_each() -> None:
    scores = np.linspace(0, 1, 201)
    found = choose(scores, 25, "mixed", np.random.default_rng(0))
    assert len({choice.index for choice in found}) == 25
    of = {why: {c.index for c in found if c.strategy == why} for why in ("uncertain", "malign")}
    assert of["uncertain"] == set(range(94, 106)), "the twelve nearest to 1/2"
    assert of["malign"] == {0, 1, 2, 3, 4}
    assert sum(choice.strategy == "random" for choice in found) == 8


def test_inclusion_weighs_the_page_back_to_the_candidates() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random(120)
    value = scores**3  # strongly tied to what chooses
    estimates = [
        sum(value[c.index] / c.inclusion for c in choose(scores, 20, "mixed", rng)) / 120
        for _ in range(400)
    ]
    error = np.std(estimates) / np.sqrt(len(estimates))
    assert abs(np.mean(estimates) - value.mean()) < 4 * error
    unweighted = [
        np.mean([value[c.index] for c in choose(scores, 20, "mixed", rng)]) for _ in range(400)
    ]
    assert abs(np.mean(unweighted) - value.mean()) > 20 * error, "or the test could not fail"


def test_random_gives_all_the_same_chance() -> None:
    found = choose(np.linspace(0, 1, 50), 10, "random", np.random.default_rng(0))
    assert {(choice.strategy, choice.inclusion) for choice in found} == {("random", 0.2)}


def test_too_few_candidates_and_broken_scores_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="3 candidates, and 5"):
        choose(np.zeros(3), 5, "mixed", rng)
    with pytest.raises(ValueError, match="not finite"):
        choose(np.array([0.1, np.nan]), 1, "mixed", rng)
