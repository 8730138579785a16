from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from service.serving.autoscaling import CAPACITY, OFFERED, ByNfe, Rate, replicas


@pytest.mark.parametrize(
    ("offered", "capacities", "wanted"),
    [
        ([0.0], [1000.0], 0),
        ([700.0], [1000.0], 1),
        ([701.0], [1000.0], 2),
        ([2000.0, 2000.0], [1000.0, 1000.0], 6),
        # A slow replica is an odd one out, and one that has not worked yet knows nothing.
        ([1400.0, 0.0, 0.0], [1000.0, 1000.0, 10.0], 2),
        ([1400.0, 0.0], [1000.0, 0.0], 2),
    ],
)
def test_as_many_as_the_offered_nfe_need(
    offered: list[float], capacities: list[float], wanted: int
) -> None:
    assert replicas(offered, capacities, 0.7) == wanted


def test_before_any_has_worked_nobody_can_tell() -> None:
    assert replicas([500.0], [0.0], 0.7) is None
    assert replicas([], [], 0.7) is None


def _context(**metrics: dict[str, float]) -> Any:
    return SimpleNamespace(aggregated_metrics=metrics, target_num_replicas=3)


def test_serves_policy_sums_what_replicas_report() -> None:
    decide = ByNfe(utilization=0.5)
    busy = _context(**{OFFERED: {"a": 900.0, "b": 700.0}, CAPACITY: {"a": 1000.0, "b": 1000.0}})
    assert decide(busy) == (4, {})
    assert decide(_context()) == (3, {}), "without measurements it stays"


def test_a_rate_is_of_the_time_since_it_was_last_asked() -> None:
    total = [0.0]
    rate = Rate(lambda: total[0])
    total[0] = 50.0
    time.sleep(0.1)
    assert 200 < rate() <= 500
    time.sleep(0.05)
    assert rate() == 0
