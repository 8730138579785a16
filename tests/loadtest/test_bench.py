"""What benchmarks do besides timing: arrivals, quantiles, and the table of promises."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from loadtest.bench.__main__ import figures
from loadtest.bench.load import Latencies, poisson


def test_arrivals_are_poisson_and_the_same_each_time() -> None:
    times = poisson(rate=50, duration_s=100, seed=3)
    assert times == poisson(rate=50, duration_s=100, seed=3)
    assert times == sorted(times)
    assert 0 < times[0] < times[-1] < 100
    gaps = np.diff(times)
    # Of an exponential law mean and standard deviation are equal, here 20 ms.
    assert gaps.mean() == pytest.approx(0.02, rel=0.05)
    assert gaps.std() == pytest.approx(0.02, rel=0.05)


def test_goodput_counts_failures_against_the_server() -> None:
    run = Latencies("x", 1.0, [0.1, 0.2, 3.0], failed=1)
    assert run.goodput(2.0) == 0.5
    assert run.mean == pytest.approx(1.1)
    assert run.quantile(0.5) == 0.2


def _found() -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    engine = {"bare loop": 1000.0, "engine": 960.0, "engine, all guided (distilled)": 800.0}
    service = {"bare loop": 1000.0, "n = 16": 850.0, "n = 1": 500.0}
    table = [
        {"policy": policy, "question": "no-crossbar", "cpu_s": cpu_s, "malign_rate": 0.004,
         "malign_low": 0.001, "malign_high": 0.01, "frechet": 0.2, "perfect": 0.16}
        for policy, cpu_s in (("none", 0.05), ("no-crossbar", 0.055))
    ]  # fmt: skip
    found = {
        "engine": {"medians": engine},
        "service": {"medians": service, "overhead_ms": {"50": 12.0}, "left": {"slots": 0.0}},
        "peers": {},
    }
    return found, table


def test_each_promise_is_held_against_its_goal() -> None:
    met = {figure.name: figure.met for figure in figures(*_found())}
    assert met["engine NFE/s ÷ bare loop"] == "yes"
    assert met["service NFE/s ÷ bare loop, n = 16"] == "no"
    assert met["guided step ÷ unguided step"] == "no", "960 ÷ 800 is 1.2"
    assert met["no-crossbar: CPU per image ÷ uncensored"] == "yes"
    assert met["REST + router overhead, p50, ms"] == "no"
    assert met["slots in use after a disconnect"] == "yes"


def test_a_cheap_policy_that_lets_too_much_through_meets_no_goal() -> None:
    found, table = _found()
    for field, value in (("malign_rate", 0.006), ("frechet", 0.3)):
        worse = [row | {field: value} for row in table]
        met = {figure.name: figure.met for figure in figures(found, worse)}
        assert met["no-crossbar: CPU per image ÷ uncensored"] == "no"


def test_what_was_not_measured_is_not_called_met() -> None:
    met = {figure.name: figure.met for figure in figures(*_found())}
    assert met["only-crossbar: CPU per image ÷ uncensored"] == "not measured"
    assert met["load held at equal p95 ÷ FastAPI + diffusers"] == "not measured"
    nothing = figures({"engine": {}, "service": {}, "peers": {}}, [])
    assert {figure.met for figure in nothing} == {"not measured"}
