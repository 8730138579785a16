"""Alert rules against promtool, and alerts against their runbooks."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.observability.files import HERE, files, groups

RUNBOOKS = HERE.parents[1] / "docs/runbooks"
TESTS = ("rules_test.yml", "rules_history_test.yml")
ALERTS = [rule["alert"] for group in groups() for rule in group["rules"] if "alert" in rule]

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="PROMTOOL IS MISSING, the rules are NOT tested: apt-get install prometheus",
)


def promtool(*arguments: str, folder: Path = HERE) -> subprocess.CompletedProcess[str]:
    """Run promtool and keep what it says."""
    return subprocess.run(
        ["promtool", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


def test_what_is_committed_is_what_the_data_says() -> None:
    for path, text in files("docs").items():
        assert path.read_text() == text, f"{path.name}: run python -m deploy.observability"


@needs_promtool
def test_prometheus_takes_the_rules() -> None:
    done = promtool("check", "rules", "rules.yml")
    assert done.returncode == 0, done.stderr


@needs_promtool
@pytest.mark.parametrize("name", TESTS)
def test_alerts_fire_when_they_should_and_only_then(name: str) -> None:
    done = promtool("test", "rules", name)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_is_seen_firing_and_silent(alert: str) -> None:
    found = {
        alert in str(query.get("exp_samples", ""))
        for one in _tests_of(alert)
        for query in one["promql_expr_test"]
        if query["expr"].startswith("ALERTS")
    }
    expected = {True} if "SlowBurn" in alert else {True, False}  # another policy is silent there
    assert found == expected, alert


@needs_promtool
@pytest.mark.parametrize("name", TESTS)
def test_alerts_that_never_fire_are_noticed_each(name: str, tmp_path: Path) -> None:
    data = groups()
    for rule in (rule for group in data for rule in group["rules"] if "alert" in rule):
        rule["expr"] = f"({rule['expr']}) and on () vector(1) > 1"
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": data}))
    shutil.copy(HERE / name, tmp_path)
    done = promtool("test", "rules", name, folder=tmp_path)
    missed = {
        alert
        for line in done.stderr.splitlines()
        if line.strip().startswith("exp: {")
        for alert in ALERTS
        if f'alertname="{alert}"' in line
    }
    assert missed == {alert for alert in ALERTS if alert in (HERE / name).read_text()}


def test_every_alert_has_its_page_and_every_page_its_alert() -> None:
    pages = {path.stem for path in RUNBOOKS.glob("Winnow*.md")}
    assert pages == set(ALERTS)
    listed = (RUNBOOKS / "README.md").read_text()
    assert [name for name in ALERTS if f"]({name}.md)" not in listed] == []


@pytest.mark.parametrize("alert", ALERTS)
def test_a_runbook_says_first_what_is_safe(alert: str) -> None:
    sections = [
        line for line in (RUNBOOKS / f"{alert}.md").read_text().splitlines() if line[:3] == "## "
    ]
    assert sections == ["## First", "## Look", "## Causes", "## End"]


def _tests_of(alert: str) -> list[dict[str, Any]]:
    """The promtool tests that name an alert, each with the step of its file."""
    found = []
    for name in TESTS:
        file = yaml.safe_load((HERE / name).read_text())
        found += [one for one in file["tests"] if alert in str(one)]
    return found
