"""Thresholds from few labels: strict where labels are few, and no stricter than allowed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit

from models.rewards.platt import folds
from service.labelling import reward_card
from service.labelling.calibration import Scored, calibrate, choose_probes

NO_PROBES = np.empty((400, 0))


def draws(n: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(logits, malign): one in seven malign; two normal laws five standard deviations apart."""
    rng = np.random.default_rng(seed)
    malign = rng.random(n) < 1 / 7
    return rng.normal(np.where(malign, -4.0, 6.0), 2.0), malign


def scored(n: int, seed: int) -> Scored:
    logits, malign = draws(n, seed)
    return Scored(logits, malign, np.ones(n))


def test_what_passes_is_within_the_target_though_labels_are_few() -> None:
    for seed in range(20):
        pool = expit(draws(400, 1000 + seed)[0])
        found = calibrate(scored(120, seed), pool, NO_PROBES, 0.01)
        logits, malign = draws(20_000, 2000 + seed)
        passed = expit(logits) >= found.threshold
        assert malign[passed].mean() <= 0.01
        assert passed[~malign].mean() >= 0.85
        assert found.reached
        assert found.acceptance == pytest.approx(passed.mean(), abs=0.08)
        assert found.upper_bound > 0.01, "so few labels prove nothing, and the bound says so"


def test_a_judge_that_knows_nothing_is_not_said_to_reach_the_target() -> None:
    rng = np.random.default_rng(0)
    malign = rng.random(100) < 0.3
    blind = Scored(rng.normal(size=100) - 0.2 * malign, malign, np.ones(100))
    found = calibrate(blind, expit(rng.normal(size=400)), NO_PROBES, 0.01)
    assert not found.reached
    assert found.expected_malign > 0.05
    assert found.threshold >= 0.5, "what the judge finds likelier malign never passes"


@pytest.mark.parametrize(
    ("logits", "wrong"),
    [
        (lambda malign: np.where(malign, 3.0, -3.0), "benign one higher 0% of the time"),
        (lambda malign: np.full(len(malign), 9.0), "scores all of 100 labelled images 9: it tells"),
        (
            lambda malign: np.where(malign, 5.0, np.where(np.arange(100) < 35, 1.0, 8.0)),
            "accepts all 25 malign labels",
        ),
        (lambda malign: np.where(malign, -9.0, -5.0), "accepts none of 75 benign labels"),
    ],
)
def test_labels_that_do_not_show_that_the_judge_tells_them_apart_give_no_threshold(
    logits: Callable[[NDArray[np.bool_]], NDArray[np.float64]], wrong: str
) -> None:
    malign = np.arange(100) % 4 == 0
    blind = Scored(logits(malign), malign, np.ones(100))
    with pytest.raises(ValueError, match=wrong):
        calibrate(blind, expit(np.linspace(-9, 9, 400)), NO_PROBES, 0.01)


def test_weights_count_the_images_that_were_not_shown() -> None:
    labels = scored(120, 0)
    # Many doubtful benign images were shown on purpose: each stands for itself alone.
    doubtful = Scored(
        np.append(labels.logits, np.full(30, -1.0)),
        np.append(labels.malign, np.zeros(30, dtype=np.bool_)),
        np.append(np.full(120, 20.0), np.ones(30)),
    )
    pool = expit(draws(400, 1)[0])
    weighed = calibrate(doubtful, pool, NO_PROBES, 0.01)
    ignored = calibrate(replace(doubtful, weights=np.ones(150)), pool, NO_PROBES, 0.01)
    assert weighed.benign_kept > 0.9 > ignored.benign_kept
    assert weighed.threshold == pytest.approx(
        calibrate(labels, pool, NO_PROBES, 0.01).threshold, abs=0.05
    )


def test_probes_stop_hopeless_draws_and_almost_none_that_would_be_accepted() -> None:
    rng = np.random.default_rng(0)
    accepted = rng.random(1000) < 0.8
    scores = rng.normal(np.where(accepted, 3.0, -3.0)[:, None], 1.0, (1000, 2))
    thresholds, stopped = choose_probes(scores, accepted)
    assert len(thresholds) == 2
    assert 0 < stopped[accepted].mean() <= 0.01
    assert stopped[~accepted].mean() > 0.95
    assert choose_probes(scores, np.zeros(1000, dtype=np.bool_))[0] == (0.0, 0.0)


def test_broken_scores_and_single_labels_are_refused() -> None:
    pool = expit(draws(400, 1)[0])
    with pytest.raises(ValueError, match="finite"):
        calibrate(scored(60, 0), np.where(np.arange(400) == 7, np.nan, pool), NO_PROBES, 0.01)
    one = Scored(np.array([1.0, 2.0, -1.0]), np.array([False, False, True]), np.ones(3))
    with pytest.raises(ValueError, match="two labels"):
        calibrate(one, pool, NO_PROBES, 0.01)


def test_every_label_is_kept_from_one_member_and_from_the_same_one_ever_after() -> None:
    keys = [f"blob-{i}" for i in range(200)]
    malign = np.arange(200) % 8 == 0
    seen = folds(keys, malign, members=5)
    assert ((~seen).sum(axis=0) == 1).all()
    assert (~seen).sum(axis=1).min() > 20
    # More labels, in another order, and all of them said to be the opposite.
    order = np.random.default_rng(0).permutation(200)
    again = folds([*(keys[i] for i in order), "new"], np.append(~malign[order], False), 5)
    assert (again[:, :200] == seen[:, order]).all()
    with pytest.raises(ValueError, match="all 1 malign labels"):
        folds(keys, np.arange(200) == 0, 5)


def test_a_card_tells_auc_curve_and_mistakes() -> None:
    logits = np.array([5.0, 4.0, 3.0, -6.0, -5.0, -4.0, -3.0, 2.0])
    malign = np.array([False, False, False, False, True, True, True, True])
    found = reward_card.cross_validated(list("abcdefgh"), Scored(logits, malign, np.ones(8)))
    assert found["auc"] == pytest.approx(12 / 16)
    assert [wrong["id"] for wrong in found["mistakes"]] == ["d", "h"]
    bins = found["calibration_curve"]
    assert len(bins) == 10
    assert sum(one["labels"] for one in bins) == 8
