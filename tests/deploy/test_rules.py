"""Alert rules against promtool, and alerts against their runbooks."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.observability.files import DASHBOARDS, HERE, PROMETHEUS_RULE, files, groups
from deploy.observability.files import RUNBOOKS as LINKS

RUNBOOKS = HERE.parents[1] / "docs/runbooks"
TESTS = ("rules_test.yml", "rules_history_test.yml")
SAFE = re.compile(
    r"winnow policies (disable|history|list)|winnow decisions (list|show)"
    r"|GET /|kubectl get |ray status"
)
"""What a first step may say: what stops a policy, and what only looks."""
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
    for path, text in files(LINKS).items():
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
    page = (RUNBOOKS / f"{alert}.md").read_text()
    assert re.findall("^## .+$", page, re.MULTILINE) == [
        "## First",
        "## Look",
        "## Causes",
        "## End",
    ]
    assert _unsafe(page) == []


@pytest.mark.parametrize(
    ("first", "unsafe"),
    [
        ("See `GET /health/ready`, then `winnow policies\ndisable POLICY`; `max_replicas`.", []),
        ("Take it out: `kubectl drain NODE`.", ["kubectl drain NODE"]),
        ("Go back:\n\n    winnow policies rollback POLICY", ["winnow policies rollback POLICY"]),
        ("`winnow policies disable A && reboot`", ["winnow policies disable A && reboot"]),
        ("```\nray stop\n```", ["ray stop"]),
    ],
)
def test_a_first_step_that_is_not_known_to_be_safe_is_noticed(
    first: str, unsafe: list[str]
) -> None:
    assert _unsafe(f"## First\n\n{first}\n\n## Look\n\n`kubectl delete pod`\n") == unsafe


@pytest.mark.parametrize("where", ["https://example.org/r", "https://example.org/r/"])
def test_links_to_runbooks_begin_where_they_are_told(where: str) -> None:
    wanted = files(where)
    linked = yaml.safe_load(wanted[PROMETHEUS_RULE])["spec"]["groups"]
    assert linked == yaml.safe_load(wanted[HERE / "rules.yml"])["groups"]
    links = {
        rule["alert"]: rule["annotations"]["runbook_url"]
        for group in linked
        for rule in group["rules"]
        if "alert" in rule
    }
    assert links == {alert: f"https://example.org/r/{alert}.md" for alert in ALERTS}
    for name in DASHBOARDS:
        dashboard = json.loads(wanted[HERE / "dashboards" / f"{name}.json"])
        [link] = [one for one in dashboard["templating"]["list"] if one["name"] == "runbooks"]
        assert link["query"] == "https://example.org/r"


def test_make_tells_where_runbooks_are() -> None:
    for target in ("k8s", "check"):
        told = subprocess.run(
            ["make", "-n", target, "RUNBOOKS=https://example.org/r"],
            cwd=HERE.parents[1],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "--runbooks 'https://example.org/r'" in told.stdout


def _unsafe(page: str) -> list[str]:
    """The commands of a page's first step that are not on the list; a lone word is no command."""
    [first] = re.findall(r"^## First\n(.*?)^## ", page, re.MULTILINE | re.DOTALL)
    fenced = re.findall(r"^```.*\n([^`]*)^```", first, re.MULTILINE)
    inline = re.findall(r"(?<!`)`([^`]+)`(?!`)", first)
    indented = re.findall(r"^ {4}(.+)$", first, re.MULTILINE)
    lines = [line for block in fenced for line in block.splitlines()]
    commands = [" ".join(one.split()) for one in (*inline, *indented, *lines)]
    return [
        one for one in commands if " " in one and (not SAFE.match(one) or re.search("[;&|>]", one))
    ]


def _tests_of(alert: str) -> list[dict[str, Any]]:
    """The promtool tests that name an alert, each with the step of its file."""
    found = []
    for name in TESTS:
        file = yaml.safe_load((HERE / name).read_text())
        found += [one for one in file["tests"] if alert in str(one)]
    return found
