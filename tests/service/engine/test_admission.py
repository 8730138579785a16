"""Admission by prediction: the pace against known ticks, and refusals whose wait is true."""

from __future__ import annotations

import numpy as np
import pytest

from service.engine.admission import TickTimes, reserved_nfe
from service.ports import DrawKey
from tests.engines import make_plan


def test_the_pace_finds_the_line_behind_noisy_ticks() -> None:
    rng = np.random.default_rng(0)
    pace = TickTimes()
    for _ in range(400):
        rows = int(rng.integers(1, 17))
        pace.observe(rows, 0.004 + 0.001 * rows + rng.normal(0, 0.0002))
    for rows in (1, 8, 16):
        assert pace.tick_s(rows) == pytest.approx(0.004 + 0.001 * rows, rel=0.03)


def test_a_pace_that_knows_one_occupancy_admits_rather_than_refuses() -> None:
    pace = TickTimes()
    assert pace.tick_s(16) == 0
    for _ in range(10):
        pace.observe(1, 0.02)
    assert pace.tick_s(16) == pytest.approx(0.02)


def test_the_pace_follows_a_machine_that_slows_down() -> None:
    pace = TickTimes()
    for seconds in (0.01, 0.03):
        for _ in range(300):
            pace.observe(8, seconds)
    assert pace.tick_s(8) == pytest.approx(0.03, rel=0.01)


def test_the_pace_counts_what_guides_spend_in_the_denoiser() -> None:
    """With forward guidance a row's tick is 4 NFE: a draw of 40 NFE takes 10 ticks, not 40."""
    pace = TickTimes()
    for _ in range(10):
        pace.observe(2, 0.02, nfe=8)
    assert pace.nfe_per_row == 4
    assert pace.finish_s(nfe=80, draws=2, longest=40, max_batch=2) == pytest.approx(0.2)
    assert TickTimes().nfe_per_row == 1


@pytest.mark.parametrize("max_batch", [1, 4, 16])
@pytest.mark.parametrize("draws", [1, 5, 40])
def test_the_predicted_finish_is_that_of_a_simulated_queue(max_batch: int, draws: int) -> None:
    pace, steps = TickTimes(), 50
    for rows in range(1, max_batch + 1):
        pace.observe(rows, 0.002 + 0.001 * rows)
    waiting, running, clock = draws, [], 0.0
    while waiting or running:
        while waiting and len(running) < max_batch:
            waiting, running = waiting - 1, [*running, steps]
        clock += 0.002 + 0.001 * len(running)
        running = [left - 1 for left in running if left > 1]
    predicted = pace.finish_s(draws * steps, draws, steps, max_batch)
    assert predicted == pytest.approx(clock, rel=0.25)


def test_every_draw_reserves_the_redraws_to_expect_within_what_is_left_of_the_budget() -> None:
    plan = make_plan(acceptance=0.25, max_draws=8)
    assert reserved_nfe(plan, 50, DrawKey(0, 0, 0)) == 200
    # The draws before it say nothing of those to come.
    assert reserved_nfe(plan, 50, DrawKey(0, 0, 4, fresh=False)) == 200
    assert reserved_nfe(plan, 50, DrawKey(0, 0, 6, fresh=False)) == 100
    assert reserved_nfe(plan, 50, DrawKey(0, 0, 7, fresh=False)) == 50
    assert reserved_nfe(plan, 50, DrawKey(0, 0, 1, ahead=1)) == 0
    assert reserved_nfe(make_plan(acceptance=0.01, max_draws=8), 50, DrawKey(0, 0, 0)) == 400
