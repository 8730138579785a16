from __future__ import annotations

from itertools import product

import numpy as np
from scipy import stats

from models.diffusion.noise import MAX_SEED, Purpose, normal


def test_the_same_key_gives_the_same_noise() -> None:
    first = normal(7, 3, Purpose.STEP, (5, 2, 2))
    np.testing.assert_array_equal(first, normal(7, 3, Purpose.STEP, (5, 2, 2)))


def test_every_key_has_noise_of_its_own() -> None:
    keys = list(product([0, 1, 255, 256, MAX_SEED], [0, 1, 255, 256, 2**32 - 1], Purpose))
    samples = np.stack([normal(*key, (512,)) for key in keys])
    assert len(np.unique(samples[:, 0])) == len(keys)
    # Independent streams: no pair of 50 correlates beyond what 512 samples allow.
    correlation = np.corrcoef(samples) - np.eye(len(keys))
    assert np.abs(correlation).max() < 5 / np.sqrt(512)


def test_noise_is_standard_normal() -> None:
    for seed, purpose in product([0, 42, MAX_SEED], Purpose):
        sample = normal(seed, 0, purpose, (20_000,))
        assert stats.kstest(sample, "norm").pvalue > 0.001
    # Across seeds as well: the first number of each stream is one sample of N(0, 1).
    firsts = [normal(seed, 0, Purpose.INITIAL, (1,))[0] for seed in range(4000)]
    assert stats.kstest(firsts, "norm").pvalue > 0.001


def test_more_steps_keep_the_noise_of_the_first_ones() -> None:
    long, short = (normal(1, 0, Purpose.STEP, (steps, 3)) for steps in (9, 4))
    np.testing.assert_array_equal(long[:4], short)
