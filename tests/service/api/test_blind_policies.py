"""A policy whose judge has not shown that it can say no: told apart, and nothing leaves."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from models.bundles.bundle import Bundle
from service.images.encode import to_png
from tests.bundles import HEIGHT, WIDTH
from tests.metrics import parse, value
from tests.rewards import put_reward
from tests.service.api.conftest import client, refused
from tests.service.api.server import Served, serve
from tests.service.api.test_policies import HIGHER, ITEM, add, generate, promote, wait_for


@pytest.fixture
def served(bundle: Bundle) -> Iterator[Served]:
    with serve(bundle) as running:
        yield running


@pytest.fixture
def approve(served: Served) -> Iterator[httpx.Client]:
    with client(served, "APPROVE_KEY") as opened:
        yield opened


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    with client(served) as opened:
        yield opened


def grey(level: int) -> bytes:
    return to_png(np.full((HEIGHT, WIDTH, 1), level, dtype=np.uint8))


def reward(
    served: Served, name: str, canary: int | None, control: int | None = None, factor: float = 0.95
) -> int:
    """A version of `bright`, by a reward with these examples; returns its number."""
    files = {"judge": str(factor).encode()}
    files |= {} if canary is None else {"canary": grey(canary)}
    files |= {} if control is None else {"control": grey(control)}
    put_reward(served.store, name, served.policy_registry.seeds["bright"], files, HIGHER)
    answer = add(served, reward=name)
    assert answer.status_code == 201, answer.text
    return int(answer.json()["version"])


def told(http: httpx.Client) -> dict[str, object]:
    found: dict[str, object] = http.get("/v1/policies/bright").json()
    return found


def info(http: httpx.Client) -> set[str]:
    page = parse(http.get("/metrics").text)
    found = [dict(labels) for name, labels in page if name == "winnow_reward_info"]
    return {labels["canary"] for labels in found if labels["policy"] == "bright"}


def test_a_judge_without_a_canary_is_told_apart(
    served: Served, http: httpx.Client, approve: httpx.Client
) -> None:
    assert (told(http)["canary"], told(http)["canary_verdict"]) == (None, None)
    assert info(http) == {"none"}
    number = reward(served, "with", 10)
    assert promote(approve, number).status_code == 200
    wait_for(lambda: told(http)["canary_verdict"] == "rejected")
    name = str(told(http)["canary"])
    assert info(http) == {name.removeprefix("sha256:")[:12]}
    page = parse(http.get("/metrics").text)
    assert value(page, "winnow_canary_verdict", policy="bright") == 0
    versions = approve.get("/v1/policies/bright/versions").json()["data"]
    assert [one["canary"] for one in versions] == [name, None]


@pytest.mark.parametrize(
    ("canary", "control", "wrong"),
    [
        (
            250,
            None,
            "it scores its canary, an image that is surely malign, 0.9314, so it would not",
        ),
        (10, 100, "it scores its control, an image that is surely benign, 0.3725, so it would be"),
        (250, 10, "benign and malign may be turned round"),
    ],
)
def test_what_its_own_examples_contradict_is_not_promoted(
    served: Served,
    http: httpx.Client,
    approve: httpx.Client,
    canary: int,
    control: int | None,
    wrong: str,
) -> None:
    number = reward(served, "turned", canary, control)
    with client(served, "ADMIN_KEY") as admin:
        for key in (approve, admin):
            answer = promote(key, number)
            refused(answer, 409, "conflict")
            assert wrong in answer.json()["error"]["message"]
    assert generate(http, seed=1).json()["policy"]["version"] == 1


def test_a_judge_that_tells_nothing_apart_is_not_promoted(
    served: Served, approve: httpx.Client
) -> None:
    answer = promote(approve, reward(served, "constant", None, factor=0.0))
    refused(answer, 503, "censor_unavailable")
    assert "scores every image of its trial 0" in answer.json()["error"]["message"]


def test_a_new_judge_is_shown_the_canary_of_the_one_in_force(
    served: Served, http: httpx.Client, approve: httpx.Client
) -> None:
    """Its labels may be turned round, and its own canary with them."""
    first = reward(served, "first", 150, factor=0.9)
    assert promote(approve, first).status_code == 200
    second = reward(served, "second", 10, factor=1.0)
    assert promote(approve, second).status_code == 409
    third = reward(served, "third", 150, factor=0.7)
    assert promote(approve, third).status_code == 200
    answer = promote(approve, first)
    assert answer.status_code == 200, "what was in force before may come back whatever came between"
    with client(served, "ADMIN_KEY") as admin:
        assert promote(admin, second).status_code == 200
    wait_for(lambda: told(http)["canary_verdict"] == "rejected")


def test_nothing_leaves_under_a_version_that_an_older_winnow_put_in_force(
    served: Served, http: httpx.Client
) -> None:
    store = served.store
    document = dict(store.policies.read("bright", 1).document)
    document["canary"] = store.blobs.put(grey(250))
    number = store.policies.add("bright", document, None, "somebody")
    store.policies.point("bright", store.policies.pointers()["bright"], number, "somebody",
                         "policy.promote")  # fmt: skip
    served.policy_registry.refresh()
    answer = generate(http, seed=1)
    refused(answer, 503, "censor_unavailable")
    assert "has not shown that it can say no" in answer.json()["error"]["message"]
    assert "0.98" not in answer.text, "scores are for those who may see them"
    refused(http.post("/v1/moderations", json={"input": [_image()]}), 503, "censor_unavailable")


def test_while_the_canary_is_accepted_nothing_leaves(
    served: Served, http: httpx.Client, approve: httpx.Client
) -> None:
    assert promote(approve, reward(served, "good", 10)).status_code == 200
    wait_for(lambda: told(http)["canary_verdict"] == "rejected")
    assert generate(http, seed=1).status_code == 200
    served.judge.answer = 1.0
    wait_for(lambda: told(http)["canary_verdict"] == "accepted")
    refused(generate(http, seed=1), 503, "censor_unavailable")
    refused(http.post("/v1/moderations", json={"input": [_image()]}), 503, "censor_unavailable")
    wait_for(lambda: http.get("/health/ready").status_code == 503)
    assert http.get("/health/ready").json()["parts"]["policies"] != "ready"
    served.judge.answer = None
    wait_for(lambda: generate(http, seed=1).status_code == 200)
    wait_for(lambda: http.get("/health/ready").status_code == 200)


def test_a_canary_that_is_accepted_meanwhile_keeps_what_was_made(
    served: Served, http: httpx.Client, approve: httpx.Client
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    assert promote(approve, reward(served, "good", 10)).status_code == 200
    served.backbone.delay_s = 0.02
    with ThreadPoolExecutor() as pool:
        running = pool.submit(generate, http, seed=1)
        wait_for(lambda: served.backends.loop.running > 0)
        served.judge.answer = 1.0
        wait_for(lambda: told(http)["canary_verdict"] == "accepted")
        assert not running.done()
        refused(running.result(), 503, "censor_unavailable")
    assert "b64_json" not in running.result().text


def _image() -> dict[str, object]:
    from base64 import b64encode

    url = ITEM["image_url"]["url"] + b64encode(grey(200)).decode()  # type: ignore[index]
    return {"type": "image_url", "image_url": {"url": url}}
