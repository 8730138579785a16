"""The SLO: what Locust counted becomes a table, and every target can be missed."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loadtest import slo
from loadtest.scenarios import SCENARIOS, policies
from loadtest.slo import Target, evaluate

GOAL = {"bright": Target(0.5, 1.0, availability=0.99, overloaded=0.1, goodput_s=1.0, goodput=0.8)}


def _row(method: str, name: str = "bright", **times: int) -> dict[str, Any]:
    milliseconds = {key.removeprefix("ms"): number for key, number in times.items()}
    number = sum(milliseconds.values())
    return {
        "method": method, "name": name, "num_requests": number, "response_times": milliseconds
    }  # fmt: skip


GOOD = [_row("image", ms200=80, ms900=10), _row("blocked", ms950=5), _row("overloaded", ms5=5)]


def _missed(rows: list[dict[str, Any]], goal: dict[str, Target] = GOAL) -> set[str]:
    return {line.figure for line in evaluate(rows, goal) if not line.met}


def test_blocks_and_refusals_are_answers() -> None:
    lines = {line.figure: line.measured for line in evaluate(GOOD, GOAL)}
    assert _missed(GOOD) == set()
    assert (lines["requests"], lines["blocked"], lines["429"]) == ("100", "5.00%", "5.00%")
    assert (lines["p50"], lines["p95"]) == ("0.20 s", "0.90 s"), "of images alone"
    assert (lines["availability"], lines["goodput (1 s)"]) == ("100.00%", "95.00%")


@pytest.mark.parametrize(
    ("rows", "missed"),
    [
        ([_row("image", ms600=100)], {"p50"}),
        ([_row("image", ms200=90, ms1500=10)], {"p95"}),
        ([*GOOD, _row("overloaded", ms5=10)], {"429"}),
        ([*GOOD, _row("failed", ms5=2)], {"availability"}),
        ([*GOOD, _row("late", ms5000=2)], {"availability"}),
        ([*GOOD, _row("wrong", ms5=1)], {"answers against the contract"}),
        ([*GOOD, _row("wrong", "a million images", ms5=1)], {"answers against the contract"}),
        ([*GOOD, _row("failed", "slow reader", ms5=1)], {"failed"}),
        ([*GOOD, _row("refused", "a million images", ms5=1)], set()),
        ([_row("image", ms200=3)], {"requests"}),
        ([_row("refused", "a million images", ms5=100)], {"requests"}),
        ([], {"requests"}),
    ],
)
def test_each_target_can_be_missed(rows: list[dict[str, Any]], missed: set[str]) -> None:
    assert _missed(rows) == missed


def test_goodput_counts_against_all_requests() -> None:
    goal = {"bright": replace(GOAL["bright"], goodput=0.96)}
    assert _missed(GOOD, goal) == {"goodput (1 s)"}


def test_a_p95_without_images_is_missed() -> None:
    assert {"p50", "p95"} <= _missed([_row("overloaded", ms5=100)])


def test_quantiles_are_those_of_the_counts() -> None:
    seconds = Counter({0.1: 50, 0.2: 45, 9.0: 5})
    assert [slo.quantile(seconds, q) for q in (0.5, 0.51, 0.95, 0.96)] == [0.1, 0.2, 0.2, 9.0]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_policy_asked_for_has_targets(scenario: str) -> None:
    goals = slo.targets(scenario)
    assert set(policies()) <= set(goals)
    for ask in SCENARIOS[scenario].asks:
        assert 0 < goals[ask.policy].p50_s <= goals[ask.policy].p95_s


def test_a_scenario_changes_only_what_it_names() -> None:
    usual, spike = slo.targets("steady")["no-crossbar"], slo.targets("spike")["no-crossbar"]
    assert usual.overloaded < spike.overloaded
    assert slo.targets("mixed")["no-crossbar"] == usual


def test_a_report_says_what_was_missed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [_row("image", "no-crossbar", ms200=99), _row("failed", "no-crossbar", ms5=1)]
    (tmp_path / slo.STATS).write_text(json.dumps(rows))
    assert not slo.report(tmp_path, "steady")
    assert "no-crossbar: availability 99.00%, not ≥ 99.90%" in capsys.readouterr().out
    assert "| no-crossbar | availability | 99.00% |" in (tmp_path / "slo.md").read_text()
    (tmp_path / slo.STATS).write_text(json.dumps(rows[:1]))
    assert slo.report(tmp_path, "steady")
