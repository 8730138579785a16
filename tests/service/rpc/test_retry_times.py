"""What the refused are told: a crowd is spread over the time that it needs, and no longer."""

from __future__ import annotations

import pytest

from service.rpc import retry_times
from service.rpc.retry_times import LONGEST_S, SPARE, RetryTimes


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test sets."""
    now = [1000.0]
    monkeypatch.setattr(retry_times.time, "monotonic", lambda: now[0])
    return now


def test_each_of_a_crowd_is_told_a_time_of_its_own(clock: list[float]) -> None:
    times = RetryTimes(1)
    assert [times.wait_s(2.0, 0.5) for _ in range(4)] == [
        2.0,
        2.0 + 0.5 * SPARE,
        2.0 + SPARE,
        2.0 + 1.5 * SPARE,
    ]


def test_several_ingresses_share_a_crowd(clock: list[float]) -> None:
    times = RetryTimes(2)
    assert [times.wait_s(2.0, 0.5) for _ in range(3)] == [2.0, 2.0 + SPARE, 2.0 + 2 * SPARE]


def test_who_was_to_be_back_by_now_counts_no_more(clock: list[float]) -> None:
    times = RetryTimes(1)
    work_s = 0.5 / SPARE
    assert [times.wait_s(1.0, work_s) for _ in range(3)] == [1.0, 1.5, 2.0]
    clock[0] += 1.2
    assert times.wait_s(1.0, work_s) == 2.0
    clock[0] += 60
    assert times.wait_s(1.0, 0.5) == 1.0


def test_nobody_waits_for_ever_for_those_who_may_not_come(clock: list[float]) -> None:
    times = RetryTimes(1)
    assert max(times.wait_s(1.0, 0.5) for _ in range(1000)) == 1.0 + LONGEST_S
