"""Conditions: what a seed draws from a mix, and that no prompt shows where it should not."""

from __future__ import annotations

from collections import Counter

from models.diffusion.condition import Condition, Mix

CATS, DOGS, BIRDS = Condition("cats"), Condition("dogs"), Condition(class_labels=(3, 5, 8))
MIX = Mix((CATS, DOGS, BIRDS), (1.0, 2.0, 5.0))
SEEDS = range(2**53 - 4000, 2**53)


def test_conditions_are_drawn_as_often_as_their_weights_say() -> None:
    found = Counter(MIX.which(seed) for seed in SEEDS)
    for which, share in enumerate((1 / 8, 2 / 8, 5 / 8)):
        noise = 4 * (share * (1 - share) / len(SEEDS)) ** 0.5
        assert abs(found[which] / len(SEEDS) - share) < noise
    assert all(MIX.of(seed) == MIX.conditions[MIX.which(seed)] for seed in SEEDS[:50])


def test_a_seed_has_one_condition_for_good() -> None:
    assert [MIX.which(seed) for seed in range(12)] == [2, 2, 2, 2, 1, 2, 2, 2, 1, 2, 1, 1]
    assert {Mix().of(seed) for seed in SEEDS[:50]} == {Condition()}


def test_which_condition_says_nothing_of_which_class() -> None:
    """Two uses of one random number would draw some classes of a condition never."""
    both = Mix((BIRDS, CATS), (1.0, 2.0))
    labels = Counter(BIRDS.label(seed) for seed in SEEDS if both.of(seed) is BIRDS)
    count = labels.total()
    assert set(labels) == {3, 5, 8}
    assert max(labels.values()) - min(labels.values()) < 5 * (count / 3) ** 0.5


def test_no_repr_shows_a_prompt() -> None:
    shown = repr(Condition("my own words", "nor these", 3, 4.0))
    assert "words" not in shown
    assert "these" not in shown
    assert "4.0" in shown
