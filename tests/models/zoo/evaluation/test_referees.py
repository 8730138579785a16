"""Referees: an order for a person to check in."""

from __future__ import annotations

import numpy as np
import pytest

from models.bundles import bundle as bundles
from models.zoo.evaluation.referees import load_referee
from models.zoo.mnist import sevens
from models.zoo.questions import QUESTIONS


@pytest.mark.parametrize("name", sorted(QUESTIONS))
def test_likeliest_malign_come_first_whichever_way_the_question_is_asked(name: str) -> None:
    bundle = bundles.load("mnist-sevens")
    assert bundle.manifest.evaluation is not None
    oracle = load_referee(bundle.path(bundle.manifest.evaluation.oracle), QUESTIONS[name])
    pixels = sevens().images[:300, ..., None]
    malign = oracle.malign(pixels)
    order = oracle.likeliest_malign(pixels)
    assert sorted(order) == list(range(len(pixels)))
    assert np.array_equal(malign[order], np.sort(malign)[::-1])
