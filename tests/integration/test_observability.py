"""Dashboards and rules against a real Prometheus that scrapes a real service."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator

import pytest

from tests.integration import endings
from tests.integration.traffic import Traffic
from tests.integration.watched import Watched, dashboards, queries, sooner, watched

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("prometheus") is None,
        reason="PROMETHEUS IS MISSING, no dashboard is tested: apt-get install prometheus",
    ),
]

MOVED = {
    "winnow_requests_total": ("outcome", {"success", "blocked", "cancelled", "error"}),
    "winnow_draws_total": ("verdict", {"accepted", "rejected", "abandoned", "cancelled"}),
    "winnow_images_delivered_total": ("checked", {"true", "no_judge"}),
    "winnow_images_censored_total": ("reason", {"judge"}),
    "winnow_cancelled_total": ("source", {"disconnect", "deadline", "switched_off"}),
    "winnow_labels_total": ("label", {"benign", "malign", "unsure"}),
    "winnow_shadow_draws_total": ("live_verdict", {"accepted", "rejected"}),
    "winnow_shadow_dropped_total": ("policy", {"no-crossbar"}),
    "winnow_shadow_score_count": ("policy", {"no-crossbar"}),
    "winnow_guard_errors_total": ("policy", {"no-crossbar"}),
    "winnow_nfe_total": ("kind", {"plain", "guided", "gradient"}),
    "winnow_nfe_saved_total": ("reason", {"probe", "cancelled"}),
    "winnow_nfe_offered_total": ("model", {"mnist-sevens"}),
    "winnow_nfe_capacity": ("model", {"mnist-sevens"}),
    "winnow_slots_running": ("model", {"mnist-sevens"}),
    "winnow_draws_waiting": ("model", {"mnist-sevens"}),
    "winnow_certificate_bound": ("policy", {"no-crossbar"}),
}
"""Series that traffic moved away from 0, by a label and its values."""


@pytest.fixture(scope="module")
def watching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with watched(tmp_path_factory.mktemp("watched")) as running:
        Traffic(running.service).everything(steady_s=15)
        yield running


def test_traffic_moved_every_series(watching: Watched) -> None:
    for name, (label, wanted) in MOVED.items():
        moved = {one["metric"][label] for one in watching.prometheus.ask(f"{name} > 0")}
        assert moved >= wanted, f"{name}: {wanted - moved} stayed at 0"


def test_every_panel_shows_something(watching: Watched, capsys: pytest.CaptureFixture[str]) -> None:
    counts, empty = {}, []
    for name, dashboard in dashboards().items():
        asked = list(queries(dashboard))
        counts[name] = len(asked)
        empty += [
            f"{name}: {title} ({legend}): {expr}"
            for title, legend, expr in asked
            if not watching.prometheus.ask(expr)
        ]
    with capsys.disabled():
        print(f"\n{sum(counts.values())} queries of dashboards, {len(empty)} empty: {counts}")  # noqa: T201
    assert not empty, "\n".join(empty)


def test_every_choice_at_the_top_of_a_dashboard_has_values(watching: Watched) -> None:
    for dashboard in dashboards().values():
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                metric, label = re.findall(r"\w+", variable["definition"])[1:]
                assert watching.prometheus.ask(f"group by ({label}) ({metric})")


def test_every_rule_sees_something(watching: Watched, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = watching.prometheus.get("/api/v1/rules")["groups"]
    broken = [rule for group in loaded for rule in group["rules"] if rule["health"] != "ok"]
    assert not broken
    rules = [rule for group in sooner() for rule in group["rules"]]
    asked = {one for rule in rules for one in _seen_by(rule)}
    # Of those without a canary, and every policy here has one.
    asked = {expr.replace(',canary="none"', "") for expr in asked}
    empty = [expr for expr in sorted(asked) if not watching.prometheus.ask(expr)]
    with capsys.disabled():
        print(f"\n{len(rules)} rules, {len(asked)} series that they see, {len(empty)} empty")  # noqa: T201
    assert not empty, "\n".join(empty)


def test_a_dead_judge_has_paged(watching: Watched) -> None:
    fired = watching.prometheus.ask('ALERTS{alertstate="firing"}')
    names = {one["metric"]["alertname"] for one in fired}
    assert "WinnowGuardErrors" in names
    # Those that watch the watching may fire too: a page waits 2 s for a replica that hangs, a
    # scrape here 1 s, and nothing is held for minutes.
    assert not names & {"WinnowUncheckedImage", "WinnowCanaryAccepted"}


def test_a_killed_server_leaves_no_process_and_is_told(watching: Watched) -> None:
    endings.killed(watching.service, "server")


def _seen_by(rule: dict[str, str]) -> list[str]:
    """What a rule makes, or for an alert, the series that it looks at."""
    if "record" in rule:
        labels = ",".join(f'{name}="{value}"' for name, value in rule.get("labels", {}).items())
        return [f"{rule['record']}{{{labels}}}"]
    return re.findall(r"(?:winnow_\w+|policy\w*:\w+:\w+|\bup\b)(?:\{[^}]*\})?", rule["expr"])
