"""Every scenario against a server without Ray: it is known, and sends what it says."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from loadtest import plot, sockets
from loadtest.__main__ import run
from loadtest.hostile import CASES, Case
from loadtest.outcomes import Outcome, of_ask, of_hostile
from loadtest.scenarios import SCENARIOS, Ask, policies
from loadtest.slots import in_use, wait_until_free
from models.bundles.bundle import Bundle
from tests.bundles import settings
from tests.service.api.server import Served, serve

ASK = Ask("no-crossbar", n=2)


@pytest.fixture(scope="module")
def server(bundle: Bundle) -> Iterator[Served]:
    """A server whose policies are named as those that the scenarios ask for."""
    file = settings(str(bundle.folder))
    bright = file["policies"]["bright"] | {"threshold": 0.5}
    names = dict.fromkeys(policies(), bright)
    auth = {"anonymous": True, "anonymous_scopes": ["generate", "scores"]}
    with serve(
        bundle, max_batch=16, auth=auth, default_policy="no-crossbar",
        policies=file["policies"] | names,
    ) as served:  # fmt: skip
        yield served


def _run(
    server: Served, scenario: str, folder: Path, seconds: float = 3.0
) -> Counter[tuple[str, str]]:
    """Requests by outcome and name, as Locust counted them."""
    run(scenario, seconds, server.url, folder)
    rows = json.loads((folder / "stats.json").read_text())
    return Counter({(row["method"], row["name"]): row["num_requests"] for row in rows})


def test_mixed_traffic_is_counted_by_what_became_of_it(server: Served, tmp_path: Path) -> None:
    counts = _run(server, "mixed", tmp_path)
    kinds = {kind for kind, _ in counts}
    assert {"image", "refused", "hung up", "slots free"} <= kinds
    assert not kinds & {"failed", "wrong", "late"}, counts
    assert {name for kind, name in counts if kind == "image"} <= set(policies())
    plot.draw(tmp_path / "locust_stats_history.csv", tmp_path / "plot.png", "mixed")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    assert "no-crossbar" in (tmp_path / "report.html").read_text()


def test_a_spike_comes_and_goes(server: Served, tmp_path: Path) -> None:
    counts = _run(server, "spike", tmp_path, seconds=8.0)
    reasons = (tmp_path / "locust_failures.csv").read_text()
    by_kind = Counter({kind: counts[kind, "no-crossbar"] for kind, _ in counts})
    assert not by_kind["wrong"], reasons
    # A hundred callers on a busy machine may lose a connection: that is counted, as it should be.
    assert by_kind["failed"] < 0.05 * by_kind.total(), reasons
    history = (tmp_path / "locust_stats_history.csv").read_text().splitlines()[1:]
    users = [int(line.split(",")[1]) for line in history]
    assert max(users) > 30
    assert users[-1] < 30


def test_a_broken_judge_is_counted_against_the_service(server: Served, tmp_path: Path) -> None:
    server.judge.fault = RuntimeError("the judge is broken")
    try:
        counts = _run(server, "steady", tmp_path)
    finally:
        server.judge.fault = None
    assert counts["failed", "no-crossbar"] > 0
    assert counts["image", "no-crossbar"] == 0


def test_locust_knows_every_scenario_and_refuses_others() -> None:
    command = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--headless",
               "--host", "http://127.0.0.1:9", "--scenario", "calm"]  # fmt: skip
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert said.returncode == 2
    assert all(name in said.stderr for name in SCENARIOS), said.stderr


@pytest.mark.parametrize("name", SCENARIOS)
def test_stages_last_for_the_whole_time(name: str) -> None:
    scenario = SCENARIOS[name]
    assert sum(length for length, _ in scenario.stages) == pytest.approx(1)
    assert all(scenario.users_at(share / 20) > 0 for share in range(20))
    assert scenario.users_at(1.01) == 0


def test_only_the_spike_and_the_ramp_change_over_time() -> None:
    changing = {name for name, one in SCENARIOS.items() if len(one.stages) > 1}
    assert changing == {"ramp", "spike"}
    users = [SCENARIOS["spike"].users_at(share) for share in (0.1, 0.5, 0.9)]
    assert users[0] == users[2] < users[1]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_every_hostile_request_is_refused_as_documented(server: Served, case: Case) -> None:
    answer = httpx.request(
        case.method, server.url + case.path, content=case.body, headers=list(case.headers),
        timeout=30, trust_env=False,
    )  # fmt: skip
    assert of_hostile(case, answer.status_code, answer.content) == (Outcome.REFUSED, None)


def test_a_slow_reader_gets_its_whole_answer(server: Served) -> None:
    said = sockets.read_slowly(server.url, ASK.body, {}, pause_s=0.0001)
    assert of_ask(*said, ASK.policy, ASK.n, Outcome.READ_SLOWLY) == (Outcome.READ_SLOWLY, None)
    assert int(said[1]["content-length"]) == len(said[2])


def test_the_work_of_who_hangs_up_ends(server: Served) -> None:
    many = Ask("no-crossbar", n=16)
    before = _nfe(server)
    server.backbone.delay_s = 0.5  # a step; 25 s for all of them
    try:
        with ThreadPoolExecutor(1) as pool:
            left = pool.submit(sockets.hang_up, server.url, many.body, {}, 3.0)
            while not left.done() and not in_use(server.url):
                time.sleep(0.05)
            assert not left.done(), "it was at work"
        seconds, why = wait_until_free(server.url)
        assert (why, seconds is not None) == (None, True)
        assert 0 < _nfe(server) - before < 16 * 50
    finally:
        server.backbone.delay_s = 0.0


def _nfe(server: Served) -> float:
    lines = httpx.get(f"{server.url}/metrics", trust_env=False).text.splitlines()
    return sum(
        float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("winnow_nfe_total")
    )


def test_slots_that_stay_in_use_are_a_broken_promise(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loadtest.slots.FREE_S", 0.1)
    monkeypatch.setattr("loadtest.slots.in_use", lambda host: 3.0)
    _, why = wait_until_free(server.url)
    assert why is not None
    assert why.startswith("3 slots in use")
