"""`size` of a request: one of the policy's, judged by its own threshold, on its record."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from PIL import Image

from models.bundles.bundle import Bundle
from service.config import Settings
from service.policies.policy import Policy
from service.policies.seeding import configured_policies
from tests.bundles import HEIGHT, WIDTH, calibrated, settings, sized
from tests.service.api.conftest import client, refused
from tests.service.api.server import Served, serve

OWN, TALL, WIDE = f"{WIDTH}x{HEIGHT}", "6x8", "12x4"
POLICY = {"model": "tiny", "num_inference_steps": [4]}
POLICIES = {
    "none": POLICY | {"sizes": [TALL, WIDE]},
    "bright": POLICY | {"reward": "bright", "max_draws": 20, "sizes": [TALL]},
}


@pytest.fixture(scope="module")
def several(bundle: Bundle) -> Iterator[Served]:
    bundle = sized(bundle, (8, 6), (4, 12))
    models = {"tiny": {"bundle": str(bundle.folder), "backbone": {"runtime": "torch"}}}
    config = Settings.model_validate(settings(str(bundle.folder), models=models, policies=POLICIES))
    bright: Policy = configured_policies(config, {"tiny": bundle}, calibrated=False)["bright"]
    keys = [(bright.sampling(4), 0.5), (bright.sampling(4, (8, 6)), 0.55)]
    with serve(calibrated(bundle, keys), models=models, policies=POLICIES) as served:
        yield served


@pytest.fixture
def http(several: Served) -> Iterator[httpx.Client]:
    with client(several) as opened:
        yield opened


def _shape(image: dict[str, str]) -> tuple[int, int]:
    return Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))).size


def _record(reviewer: httpx.Client, decision_id: str) -> dict[str, Any]:
    """The record, which may still be on its way when nothing was delivered."""
    deadline = time.monotonic() + 10
    while (answer := reviewer.get(f"/v1/decisions/{decision_id}")).status_code == 404:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    found: dict[str, Any] = answer.json()
    return found


def test_a_request_chooses_one_of_the_sizes(several: Served, http: httpx.Client) -> None:
    for size, shape in ((None, (6, 4)), ("auto", (6, 4)), (OWN, (6, 4)), (TALL, (6, 8))):
        body = {"n": 2, "seed": 5, "policy": "bright"} | ({"size": size} if size else {})
        answer = http.post("/v1/images/generations", json=body)
        assert answer.status_code == 200, answer.text
        assert [_shape(image) for image in answer.json()["data"]] == [shape] * 2
        # And `n=1` with its seed gives it again.
        again = http.post("/v1/images/generations", json=body | {"n": 1, "seed": 6})
        assert again.json()["data"][0]["b64_json"] == answer.json()["data"][1]["b64_json"]


def test_it_is_judged_by_the_threshold_of_its_size_and_the_record_says_so(
    several: Served, http: httpx.Client
) -> None:
    several.judge.answer = 0.52
    try:
        own = http.post("/v1/images/generations", json={"policy": "bright"})
        tall = http.post("/v1/images/generations", json={"policy": "bright", "size": TALL})
    finally:
        several.judge.answer = None
    assert own.status_code == 200
    refused(tall, 400, "moderation_blocked")
    with client(several, "REVIEW_KEY") as reviewer:
        sent, blocked = (_record(reviewer, one.json()["id"]) for one in (own, tall))
        told = [
            reviewer.get(f"/v1/decisions/{one['id']}/explanation").json()["size"]
            for one in (sent, blocked)
        ]
    assert told == [None, TALL]
    assert blocked["plan"]["condition"]["size"] == [8, 6]
    assert (blocked["plan"]["threshold"], sent["plan"]["threshold"]) == (0.55, 0.5)
    assert blocked["versions"]["sampling"]["size"] == [8, 6]
    assert sent["versions"]["sampling"]["size"] is None


def test_other_sizes_are_refused_with_those_that_there_are(http: httpx.Client) -> None:
    unknown = http.post("/v1/images/generations", json={"policy": "bright", "size": "640x480"})
    refused(unknown, 400, "invalid_value", "size")
    for size in ("auto", OWN, TALL, WIDE):
        assert size in unknown.json()["error"]["message"]
    unserved = http.post("/v1/images/generations", json={"policy": "bright", "size": WIDE})
    refused(unserved, 400, "invalid_value", "size")
    assert "policy 'bright' serves: auto, 6x4, 6x8" in unserved.json()["error"]["message"]


def test_the_admin_draws_a_size_that_only_an_unscreened_policy_lists(several: Served) -> None:
    with client(several, "ADMIN_KEY") as admin:
        body = {"policy": "none", "size": WIDE}
        answer = admin.post("/v1/images/generations", json=body)
        refused(
            admin.post("/v1/images/generations", json=body | {"policy": "bright"}),
            400,
            "invalid_value",
        )
    assert _shape(answer.json()["data"][0]) == (12, 4)


def test_models_and_policies_list_their_sizes(http: httpx.Client) -> None:
    assert http.get("/v1/models/tiny").json()["sizes"] == [OWN, TALL, WIDE]
    assert http.get("/v1/policies/bright").json()["sizes"] == [OWN, TALL]


def test_a_judge_that_cannot_take_a_size_lets_nothing_out(
    several: Served, http: httpx.Client
) -> None:
    several.judge.fault = ValueError("the judge wants pixels uint8 [B, 4, 6, 1]")
    try:
        answer = http.post("/v1/images/generations", json={"policy": "bright", "size": TALL})
    finally:
        several.judge.fault = None
    refused(answer, 503, "censor_unavailable")
