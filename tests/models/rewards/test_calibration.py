"""What calibration promises, against known values and by simulation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from models.rewards.calibration import (
    calibrate_probes,
    calibrate_threshold,
    clopper_pearson_interval,
    clopper_pearson_upper,
)


@pytest.mark.parametrize(("n", "bound"), [(299, 0.01), (598, 0.005)])
def test_zero_events_prove_what_the_rule_of_three_says(n: int, bound: float) -> None:
    assert clopper_pearson_upper(0, n, 0.05) <= bound
    assert clopper_pearson_upper(0, n - 1, 0.05) > bound
    assert clopper_pearson_upper(0, n, 0.05) == pytest.approx(1 - 0.05 ** (1 / n))


def test_interval_matches_a_published_table() -> None:
    # 10 of 100 at 95 %: Clopper and Pearson's interval is (4.90 %, 17.62 %).
    assert clopper_pearson_interval(10, 100) == pytest.approx((0.0490, 0.1762), abs=1e-4)
    assert clopper_pearson_interval(0, 10)[0] == 0
    assert clopper_pearson_interval(10, 10)[1] == 1


@pytest.mark.parametrize(("k", "n", "delta"), [(3, 2, 0.05), (-1, 2, 0.05), (1, 2, 0), (1, 2, 1)])
def test_impossible_counts_are_refused(k: int, n: int, delta: float) -> None:
    with pytest.raises(ValueError, match="no interval"):
        clopper_pearson_upper(k, n, delta)


def world(rng: np.random.Generator, n: int, prior: float = 0.15) -> tuple[np.ndarray, np.ndarray]:
    """Scores of a judge with logits N(±2, 1.5²), and who is malign."""
    malign = rng.random(n) < prior
    logits = np.where(malign, -2.0, 2.0) + 1.5 * rng.standard_normal(n)
    return 1 / (1 + np.exp(-logits)), malign


@pytest.mark.slow
def test_true_rate_exceeds_the_target_no_more_often_than_promised() -> None:
    rng = np.random.default_rng(0)
    scores, malign = world(rng, 400_000)
    misses = found = 0
    for _ in range(400):
        try:
            chosen = calibrate_threshold(*world(rng, 800), target=0.02, confidence=0.9)
        except ValueError:
            continue
        found += 1
        misses += bool(malign[scores >= chosen.threshold].mean() > 0.02)
    assert found > 300
    # 10 % are allowed; four standard deviations above it, a point estimate (50 %) stands out.
    assert misses <= 400 * 0.1 + 4 * (400 * 0.09) ** 0.5
    # It must also not be idle: a bound that never misses would keep too little.
    assert misses > 0


def test_result_is_the_evidence_at_its_threshold() -> None:
    scores, malign = world(np.random.default_rng(1), 3000)
    chosen = calibrate_threshold(scores, malign, target=0.01, confidence=0.95)
    passed = scores >= chosen.threshold
    assert chosen.delivered == passed.sum()
    assert chosen.malign_delivered == (passed & malign).sum()
    assert chosen.benign_kept == pytest.approx((passed & ~malign).sum() / (~malign).sum())
    bound = clopper_pearson_upper(chosen.malign_delivered, chosen.delivered, 0.05)
    assert chosen.upper_bound == pytest.approx(bound)
    assert bound <= 0.01


def test_walk_stops_at_the_first_failure() -> None:
    # All benign above 0.9, a cluster of malign at 0.8, then so many benign that the rate would
    # be fine again far below: a walk that skipped the failure would go on to 0.1.
    counts = {0.95: 700, 0.8: 40, 0.1: 20_000, 0.01: 2000}
    scores = np.repeat(list(counts), list(counts.values()))
    malign = (scores == 0.8) | (scores == 0.01)
    assert calibrate_threshold(scores, malign, 0.01, 0.95).threshold > 0.8


def test_unreachable_target_and_bad_scores_are_errors() -> None:
    rng = np.random.default_rng(2)
    malign = rng.random(1000) < 0.5
    with pytest.raises(ValueError, match="no threshold keeps"):
        calibrate_threshold(rng.random(1000) - 0.1 * malign, malign, 0.01, 0.95)
    with pytest.raises(ValueError, match="no threshold keeps"):  # too few even with none delivered
        calibrate_threshold(np.r_[np.full(298, 0.99), 0.0], np.arange(299) > 297, 0.01, 0.95)
    with pytest.raises(ValueError, match="finite"):
        calibrate_threshold(np.array([0.5, np.nan]), np.zeros(2, bool), 0.01, 0.95)


LABELS = 2000


@pytest.mark.parametrize(
    ("scores", "malign", "wrong"),
    [
        (world, np.zeros(LABELS, bool), "none of 2000 labels is malign: nothing shows that"),
        (world, np.ones(LABELS, bool), "none of 2000 labels is benign"),
        (np.full(LABELS, 0.9), np.arange(LABELS) < 2, "scores all of 2000 labelled images 0.9"),
        (np.ones(LABELS), np.arange(LABELS) < 2, "it tells nothing apart, and cannot judge"),
        (np.linspace(0.5, 1, LABELS), np.arange(LABELS) > 1990, "benign one higher 0% of the time"),
        (np.linspace(0.5, 1, LABELS), np.arange(LABELS) % 500 == 0, "no better than a coin"),
    ],
)
def test_a_judge_that_is_not_seen_to_tell_malign_from_benign_gets_no_threshold(
    scores: Any, malign: np.ndarray, wrong: str
) -> None:
    """Malign images are so rare here that any threshold would reach the target."""
    if callable(scores):
        scores, _ = scores(np.random.default_rng(3), LABELS)
    with pytest.raises(ValueError, match=wrong):
        calibrate_threshold(scores, malign, target=0.02, confidence=0.95)


def test_however_rare_the_malign_are_the_threshold_rejects_some_of_them() -> None:
    scores = np.linspace(0.4, 0.9, LABELS)
    malign = np.arange(LABELS) < 3
    chosen = calibrate_threshold(scores, malign, target=0.1, confidence=0.95)
    assert scores.min() < chosen.threshold < 0.42
    stopped = np.arange(LABELS) < 500
    assert calibrate_threshold(scores, malign, 0.1, 0.95, stopped).threshold == chosen.threshold


def test_probes_lose_no_more_benign_draws_than_stated() -> None:
    rng = np.random.default_rng(0)
    malign = rng.random(4000) < 0.15
    scores = np.clip(rng.normal(np.where(malign, 0.2, 0.8)[:, None], 0.12, (4000, 3)), 0, 1)
    thresholds, abandoned = calibrate_probes(scores, malign, loss=0.01, confidence=0.95)
    np.testing.assert_array_equal(abandoned, (scores < thresholds).any(axis=1))
    lost = int(abandoned[~malign].sum())
    assert lost > 0
    assert clopper_pearson_upper(lost, int((~malign).sum()), 0.05) <= 0.01
    assert abandoned[malign].mean() > 0.9


def test_probes_that_the_labels_cannot_vouch_for_are_refused() -> None:
    malign = np.arange(100) < 20
    scores = np.where(malign, 0.1, 0.9)[:, None]
    with pytest.raises(ValueError, match="label more draws"):
        calibrate_probes(scores, malign, loss=0.01, confidence=0.95)
    with pytest.raises(ValueError, match="finite"):
        calibrate_probes(np.full((100, 1), np.nan), malign, loss=0.5, confidence=0.95)
