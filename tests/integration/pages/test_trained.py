"""The pages of a service whose default policy waits for its first reward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from models.bundles.bundle import Bundle
from service.jobs.runner import JobRunner
from tests.bundles import settings
from tests.integration.pages.browser import begin, enter, press, turn
from tests.service.api.server import AUTH, Served, serve


@pytest.fixture(scope="module")
def served(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    scopes = ["generate", "scores", "label", "approve"]
    auth: dict[str, Any] = AUTH | {"anonymous": True, "anonymous_scopes": scopes}
    waiting = {"model": "tiny", "trained": True, "num_inference_steps": [50, 20]}
    policies = settings("")["policies"] | {"screened": waiting}
    with (
        pytest.MonkeyPatch.context() as patch,
        serve(bundle, auth=auth, policies=policies, default_policy="screened") as server,
    ):
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        runner = JobRunner(server.store.jobs, [server.trainings.kind])
        yield server
        runner.close()


def test_a_policy_that_waits_says_so(open_page: Callable[..., Any]) -> None:
    page = open_page("/policies")
    enter(page)
    page.wait_for_selector("#policies:not([hidden])")
    texts = page.locator("article.policy").all_text_contents()
    waits = next(text for text in texts if "screened" in text)
    assert "Has no reward yet, and refuses every request" in waits
    assert "Censors nothing" in next(text for text in texts if text.startswith("none"))


def test_a_reward_is_trained_for_it_and_becomes_a_version(
    open_page: Callable[..., Any], served: Served
) -> None:
    page = open_page()
    dataset = begin(page)
    press(page, *["Space", "ArrowRight"] * 4, "Space")
    turn(page)
    page.goto(f"/feedback/rewards?dataset={dataset}")
    page.wait_for_selector("#rewards:not([hidden])")
    assert page.input_value("#train select[name=policy]") == "screened"
    page.click("#train button.act")
    page.wait_for_selector(".reward .pill.ready")
    assert "Calibrated for screened" in page.text_content(".reward")
    assert page.input_value(".force select") == "screened"
    page.click(".force >> text=Make a version")
    page.wait_for_selector("text=Promote screened version 2")
    made = served.store.policies.read("screened", 2)
    assert made.reward == served.store.rewards.of(dataset)[0].id
    assert made.document["parts"]["judge"]
