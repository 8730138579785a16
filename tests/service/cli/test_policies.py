"""`winnow policies` against the real routes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from models.bundles.bundle import Bundle
from service.cli.client import ServiceError, call
from service.cli.main import app
from service.images.encode import to_png
from tests.bundles import HEIGHT, WIDTH
from tests.rewards import put_reward
from tests.service.api.server import KEYS, Served, serve
from tests.service.api.test_policies import wait_for


@pytest.fixture
def served(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    with serve(bundle) as running:
        monkeypatch.setenv("WINNOW_URL", running.url)
        monkeypatch.setenv("WINNOW_KEY", KEYS["ADMIN_KEY"])
        yield running


def _run(*arguments: str) -> Result:
    answer = CliRunner().invoke(app, ["policies", *arguments])
    assert "Traceback" not in answer.output
    assert isinstance(answer.exception, SystemExit | None), "a mistake is a sentence"
    return answer


def _said(*arguments: str) -> str:
    answer = _run(*arguments)
    assert answer.exit_code == 0, answer.output
    return answer.output


def _refused(*arguments: str) -> str:
    answer = _run(*arguments)
    assert (answer.exit_code, answer.output.count("\n")) == (1, 1), answer.output
    return answer.output


def _reward(served: Served, reward_id: str, thresholds: dict[int, float]) -> None:
    policy = served.policy_registry.seeds["bright"]
    put_reward(served.store, reward_id, policy, {"judge": b"0.9"}, thresholds)


def test_from_a_reward_to_a_live_policy_and_back(served: Served) -> None:
    _reward(served, "rw_1", {50: 0.7, 20: 0.8})
    listed = _said("list")
    assert "bright (default)  1" in listed
    assert "bright: no canary, so nobody would notice that its judge fails open\n" in listed
    listed = listed.partition("bright: ")[0]
    assert [" NONE " in line for line in listed.splitlines()] == [False, False, True]
    said = _said("add", "bright", "--reward", "rw_1")
    assert "bright version 2 is there. In force: `winnow policies promote bright 2`" in said
    assert "version 1 is in force, with version 2 as its shadow" in _said("shadow", "bright", "2")
    assert "version 1 is in force\n" in _said("shadow", "bright", "none")
    assert "bright version 2 is in force\n" in _said("promote", "bright", "2")
    shown = _said("show", "bright").splitlines()
    assert "in force" in shown[1]
    assert "rw_1" in shown[1]
    assert '"50": 0.7' in shown[1]
    assert "the bundle's" in shown[2]
    assert "bright version 1 is in force" in _said("rollback", "bright")
    assert "bright is switched off (version 1)" in _said("disable", "bright")
    listed = next(line for line in _said("list").splitlines() if "bright" in line)
    assert "switched off" in listed
    assert "Is this a dark first pixel?" in listed, "yes means malign"
    assert "switched off" in _said("show", "bright")
    assert "bright version 2 is in force" in _said("promote", "bright", "2")
    told = [line.split()[2] for line in _said("history", "bright").splitlines()[1:]]
    assert told == [
        "promote", "disable", "rollback", "promote", "shadow", "shadow", "add", "seed",
    ]  # fmt: skip


def test_what_cannot_be_promoted_is_said_at_once(served: Served) -> None:
    _reward(served, "rw_1", {50: 0.7})
    said = _said("add", "dim", "--based-on", "bright", "--reward", "rw_1")
    assert "no calibrated threshold at 20 steps" in said
    assert "no calibrated threshold at 20 steps" in _refused("promote", "dim", "1")
    assert "a threshold at 20 steps" in _said("show", "dim")


def test_mistakes_are_sentences(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no policy 'other'" in _refused("show", "other")
    assert "neither a number nor `none`" in _refused("shadow", "bright", "newest")
    monkeypatch.setenv("WINNOW_KEY", KEYS["PLAIN_KEY"])
    assert "'approve' scope (WINNOW_KEY holds another)" in _refused("disable", "bright")
    monkeypatch.delenv("WINNOW_KEY")
    assert "(set WINNOW_KEY)" in _refused("list")
    assert "no service answers at http://127.0.0.1:1" in _refused(
        "list", "--url", "http://127.0.0.1:1"
    )
    assert "begins with http" in _refused("list", "--url", "file:///etc")


def test_what_is_not_winnow_is_named(served: Served) -> None:
    with pytest.raises(ServiceError, match="is it Winnow"):
        call("GET", "/docs", url=served.url)
    with pytest.raises(ServiceError, match="no path '/nowhere'"):
        call("GET", "/nowhere")


def test_a_reward_is_named_by_how_it_begins(served: Served) -> None:
    _reward(served, f"rwd_{'a' * 32}", {50: 0.7, 20: 0.8})
    _reward(served, f"rwd_{'a' * 31}b", {50: 0.7, 20: 0.8})
    assert "2 begin so" in _refused("add", "bright", "--reward", "rwd_aaa")
    _reward(served, f"rwd_b{'a' * 31}", {50: 0.7, 20: 0.8})
    assert "bright version 2 is there" in _said("add", "bright", "--reward", "rwd_ba")


def test_a_canary_is_shown_with_its_verdict(served: Served) -> None:
    canary = to_png(np.full((HEIGHT, WIDTH, 1), 40, dtype=np.uint8))
    policy = served.policy_registry.seeds["bright"]
    files = {"judge": b"0.9", "canary": canary}
    put_reward(served.store, "rw_1", policy, files, {50: 0.7, 20: 0.8})
    _said("add", "bright", "--reward", "rw_1")
    _said("promote", "bright", "2")

    def line() -> str:
        return next(one for one in _said("list").splitlines() if "bright (" in one)

    wait_for(lambda: " rejected " in line())
    served.judge.answer = 1.0
    wait_for(lambda: " ACCEPTED " in line())
    assert "bright: its judge accepts its canary, which is malign, so nothing" in _said("list")
    versions = _said("show", "bright").splitlines()
    assert str(call("GET", "/v1/policies/bright")["canary"])[7:19] in versions[1]
    assert " none " in versions[2]
