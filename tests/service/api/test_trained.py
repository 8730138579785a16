"""A policy whose reward has still to be trained: shut until then, a censor afterwards."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from models.bundles.bundle import Bundle
from service.policies.registry import PolicyRegistry
from tests.bundles import settings
from tests.feedback import run_next
from tests.rewards import put_reward
from tests.service.api.conftest import client, refused
from tests.service.api.server import Served, serve

IMAGES = "/v1/images/generations"


@pytest.fixture
def served(bundle: Bundle) -> Iterator[Served]:
    """A service whose default policy waits for its reward."""
    spec = {"model": "tiny", "trained": True, "max_draws": 4, "num_inference_steps": [50, 20]}
    policies = settings("")["policies"] | {"screened": spec}
    with serve(bundle, policies=policies, default_policy="screened") as running:
        yield running


def _reward(served: Served, reward_id: str = "rw_1", **thresholds: float) -> str:
    policy = served.policy_registry.seeds["screened"]
    wanted = {int(key[1:]): value for key, value in thresholds.items()} or {50: 0.5, 20: 0.6}
    put_reward(served.store, reward_id, policy, {"judge": b"1.0"}, wanted)
    return reward_id


def _post(served: Served, key: str, path: str, **body: Any) -> httpx.Response:
    with client(served, key) as http:
        return http.post(path, json=body)


@pytest.mark.parametrize("key", ["SCORES_KEY", "ADMIN_KEY"])
@pytest.mark.parametrize("named", [{}, {"policy": "screened"}])
def test_nothing_leaves_before_there_is_a_reward(
    served: Served, key: str, named: dict[str, Any]
) -> None:
    answer = _post(served, key, IMAGES, **named)
    refused(answer, 409, "policy_not_ready", "policy")
    assert "data" not in answer.json()
    assert answer.headers["x-should-retry"] == "false"
    assert "label images at /feedback" in answer.json()["error"]["message"]


def test_an_unscreened_policy_is_still_for_admins(served: Served) -> None:
    refused(_post(served, "SCORES_KEY", IMAGES, policy="none"), 403, "policy_not_allowed")
    assert _post(served, "ADMIN_KEY", IMAGES, policy="none").status_code == 200


def test_nothing_else_works_as_if_there_were_a_judge(served: Served) -> None:
    pixel = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    answer = _post(served, "SCORES_KEY", "/v1/moderations", input=[pixel])
    refused(answer, 409, "policy_not_ready")
    body = {"epsilon": 0.05, "delta": 0.05}
    certified = _post(served, "ADMIN_KEY", "/v1/policies/screened/certify", **body)
    refused(certified, 409, "policy_not_ready")
    refused(
        _post(served, "APPROVE_KEY", "/v1/policies/screened/promote", version=1), 409, "conflict"
    )
    with client(served) as http:
        listed = {one["id"]: one for one in http.get("/v1/policies").json()["data"]}
    assert {name: one["ready"] for name, one in listed.items()} == {
        "none": True, "bright": True, "screened": False
    }  # fmt: skip
    assert listed["screened"]["scope"] == "generate"


def test_a_reward_is_trained_for_it_and_makes_it_a_censor(served: Served) -> None:
    with client(served, "LABEL_KEY") as http:
        http.post("/v1/datasets", json={"name": "bars", "question": "Is it dark?"})
        images = http.post("/v1/datasets/bars/batches", json={"size": 10}).json()["images"]
        said = [
            {"image_id": one["id"], "label": label, "elapsed_ms": 300}
            for one, label in zip(images, [*["benign"] * 5, *["malign"] * 5], strict=True)
        ]
        assert http.post("/v1/datasets/bars/labels", json={"labels": said}).status_code == 200
        queued = http.post("/v1/rewards", json={"dataset": "bars"}).json()
    assert queued["recipe"]["policy"] == "screened", "the default policy is what it is for"
    run_next(served.store, served.trainings.kind)
    assert set(served.training.seen[-1]["methods"]) == {50, 20}
    with client(served, "LABEL_KEY") as http:
        card = http.get(f"/v1/rewards/{queued['id']}").json()
    assert card["status"] == "ready", card


def test_with_a_reward_promoted_it_delivers_what_the_judge_accepts(served: Served) -> None:
    body = {"name": "screened", "based_on": "screened", "reward": _reward(served)}
    made = _post(served, "LABEL_KEY", "/v1/policies", **body)
    assert made.status_code == 201, made.text
    judge = made.json()["networks"]["judge"]
    refused(_post(served, "SCORES_KEY", IMAGES), 409, "policy_not_ready")
    promoted = _post(served, "APPROVE_KEY", "/v1/policies/screened/promote", version=2)
    assert promoted.status_code == 200, promoted.text
    # The first request has the judge tried, which must not say the same of everything then.
    _post(served, "SCORES_KEY", IMAGES)
    served.judge.answer = 0.9
    answer = _post(served, "SCORES_KEY", IMAGES, n=2, seed=7).json()
    assert [image["finish_reason"] for image in answer["data"]] == ["success"] * 2
    assert (answer["policy"]["judge"], answer["policy"]["version"]) == (judge, 2)
    served.judge.answer = 0.4
    refused(_post(served, "SCORES_KEY", IMAGES, seed=7), 400, "moderation_blocked")
    # There is no way back to a version that lets nothing through: that is what `disable` is for.
    refused(_post(served, "ADMIN_KEY", "/v1/policies/screened/rollback"), 409, "conflict")


def test_a_reward_without_a_threshold_for_each_step_count_is_not_promoted(served: Served) -> None:
    body = {"name": "screened", "based_on": "screened", "reward": _reward(served, _50=0.5)}
    assert _post(served, "LABEL_KEY", "/v1/policies", **body).json()["uncalibrated"] == [20]
    refused(
        _post(served, "APPROVE_KEY", "/v1/policies/screened/promote", version=2), 409, "conflict"
    )


def test_a_restart_keeps_the_reward_and_says_nothing_of_it(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    body = {"name": "screened", "based_on": "screened", "reward": _reward(served)}
    _post(served, "LABEL_KEY", "/v1/policies", **body)
    assert _post(
        served, "APPROVE_KEY", "/v1/policies/screened/promote", version=2
    ).status_code == 200  # fmt: skip
    with caplog.at_level(logging.WARNING, "winnow.policies"):
        again = PolicyRegistry(served.store, served.policy_registry.seeds)
    again.close()
    assert again.get("screened").judge is not None
    assert "the configuration says otherwise" not in caplog.text
