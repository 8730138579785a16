"""Classes and prompts over REST: what is asked is drawn, refused by its field, and not kept."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from models.backbones.encoders import Unconditional
from models.bundles.bundle import Bundle
from models.diffusion.condition import Condition, ConditionError
from models.diffusion.conditioning import Encoded
from tests.bundles import asking, settings
from tests.echo import Echo
from tests.service.api.asking import CLASSES, TEXT, serve_asked
from tests.service.api.conftest import client, refused
from tests.service.api.server import Served, serve

ROUTE = "/v1/images/generations"
SECRET = "purple walrus"
KEEP = {"store": {"keep_prompts": True}}


@pytest.fixture(scope="module")
def classes(bundle: Bundle) -> Iterator[tuple[Served, Echo]]:
    with serve_asked(bundle, CLASSES, {"guidance_scale": [2.0, 4.0], "class_labels": [3, 1]}) as it:
        yield it


@pytest.fixture(scope="module")
def text(bundle: Bundle) -> Iterator[tuple[Served, Echo]]:
    with serve_asked(bundle, TEXT) as it:
        yield it


def post(served: Served, key: str = "SCORES_KEY", **body: Any) -> httpx.Response:
    with client(served, key) as http:
        return http.post(ROUTE, json={"censor": {"on_filtered": "never"}} | body)


def ok(served: Served, key: str = "SCORES_KEY", **body: Any) -> dict[str, Any]:
    answer = post(served, key, **body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_class_is_asked_for_by_number_or_by_name(classes: tuple[Served, Echo]) -> None:
    served, echo = classes
    for asked in (3, "three"):
        entry = ok(served, seed=7, class_label=asked)["data"][0]
        assert (entry["class_label"], entry["class_name"]) == (3, "three")
        assert echo.plans[7, 0].condition == Condition(class_label=3, guidance_scale=2.0)


def test_where_no_class_is_asked_each_seed_draws_one_of_the_policys(
    classes: tuple[Served, Echo],
) -> None:
    served, echo = classes
    data = ok(served, seed=100, n=12)["data"]
    expected = Condition(guidance_scale=2.0, class_labels=(3, 1))
    assert echo.plans[100, 0].condition == expected
    assert [entry["class_label"] for entry in data] == [expected.label(100 + i) for i in range(12)]
    assert {(one["class_label"], one["class_name"]) for one in data} == {(1, "one"), (3, "three")}
    again = ok(served, seed=data[5]["seed"])["data"][0]
    assert again["b64_json"] == data[5]["b64_json"], "a seed owns its class too"


def test_a_prompt_is_drawn_and_a_negative_one(text: tuple[Served, Echo]) -> None:
    served, echo = text
    entry = ok(served, seed=5, prompt="a cat", negative_prompt="a dog")["data"][0]
    assert echo.plans[5, 0].condition == Condition("a cat", "a dog", guidance_scale=7.5)
    assert "class_label" not in entry
    ok(served, seed=6, prompt="a cat", negative_prompt=None)
    assert echo.plans[6, 0].condition == Condition("a cat", guidance_scale=7.5)


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"prompt": "a cat"}, "prompt", "takes a class_label"),
        ({"class_label": 0}, "class_label", "is 0, policy 'bright' has 3 (three), 1 (one)"),
        ({"class_label": "four"}, "class_label", "'four'"),
        ({"guidance_scale": 3}, "guidance_scale", "is 3, policy 'bright' allows 2, 4"),
        ({"guidance_scale": 0.99}, "guidance_scale", "is 0.99, policy 'bright' allows 2, 4"),
        ({"guidance_scale": -1}, "guidance_scale", "greater than or equal to 0"),
    ],
)
def test_what_the_policy_does_not_list_is_refused(
    classes: tuple[Served, Echo], body: dict[str, Any], param: str, words: str
) -> None:
    answer = post(classes[0], **body)
    refused(answer, 400, "invalid_value", param)
    assert words in answer.json()["error"]["message"]


def test_guidance_that_json_does_not_have_is_refused(classes: tuple[Served, Echo]) -> None:
    with client(classes[0], "ADMIN_KEY") as http:
        head = {"Content-Type": "application/json"}
        answer = http.post(ROUTE, content='{"guidance_scale": Infinity}', headers=head)
    refused(answer, 400, "invalid_value", "guidance_scale")


def test_an_admin_may_ask_for_any_guidance(classes: tuple[Served, Echo]) -> None:
    served, echo = classes
    ok(served, "ADMIN_KEY", seed=11, guidance_scale=17.5)
    assert echo.plans[11, 0].condition.guidance_scale == 17.5


def test_a_negative_prompt_without_guidance_is_refused(text: tuple[Served, Echo]) -> None:
    answer = post(text[0], "ADMIN_KEY", prompt="a", negative_prompt="b", guidance_scale=1)
    refused(answer, 400, "invalid_value", "negative_prompt")
    refused(post(text[0], prompt="a" * 201), 400, "invalid_value", "prompt")
    refused(post(text[0], prompt="a", negative_prompt="b" * 201), 400, "invalid_value")
    refused(post(text[0], prompt="a\x00b"), 400, "invalid_value", "prompt")


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_a_prompt_of_too_many_tokens_is_the_callers_mistake_and_asked_for_once(
    text: tuple[Served, Echo], field: str
) -> None:
    served, echo = text
    before = echo.calls
    answer = post(served, **{"prompt": "a cat", field: "a " * 11})
    refused(answer, 400, "invalid_value", field)
    assert "3 too many" in answer.json()["error"]["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert echo.calls == before + 1, "the same prompt has as many tokens the next time"
    record = stored(served, answer.json()["id"])
    assert record["outcome"] == "invalid_value"
    assert record["usage"]["delivered"] == 0
    with client(served) as http:
        page = http.get("/metrics").text
    counted = [line for line in page.splitlines() if 'code="invalid_value"' in line]
    counted = [line for line in counted if line.startswith("winnow_requests_total")]
    assert all('outcome="invalid"' in line for line in counted), "an outage is another thing"
    assert any(float(line.rsplit(" ", 1)[1]) >= 1 for line in counted)


class Reader(Unconditional):
    """An encoder that reads two words."""

    def encode(self, condition: Condition, seed: int) -> Encoded:
        count = len(condition.prompt.split())
        if count > 2:
            raise ConditionError(f"has {count} tokens, {count - 2} too many", "prompt")
        return super().encode(condition, seed)


def test_what_the_engines_encoder_refuses_is_the_callers_mistake(bundle: Bundle) -> None:
    policies = settings(str(bundle.folder))["policies"]
    policies["bright"] |= {"threshold": 0.5}
    with serve(asking(bundle, **TEXT), policies=policies) as served:
        served.backends.loop._engine.encoder = Reader()
        refused(post(served, prompt="one two three"), 400, "invalid_value", "prompt")
        assert ok(served, prompt="one two")["usage"]["draws"] >= 1, "it draws on"


def stored(served: Served, decision_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + 10
    while (found := served.store.decisions.read(decision_id)) is None:
        assert time.monotonic() < deadline, "nothing was recorded"
        time.sleep(0.02)
    return found


BODIES: list[dict[str, Any]] = [
    {"prompt": SECRET},
    {"prompt": "", "negative_prompt": SECRET},
    {"prompt": SECRET, "negative_prompt": SECRET},
    {"prompt": SECRET + " word" * 12},
]


@pytest.mark.parametrize("body", BODIES)
def test_a_prompt_stands_in_no_record_no_log_and_no_explanation(
    text: tuple[Served, Echo], body: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    served, _ = text
    with caplog.at_level(logging.DEBUG):
        answer = post(served, seed=21, **body)
        record = stored(served, answer.json()["id"])
    assert "walrus" not in json.dumps(record)
    assert record["request"]["prompt"] is None, "an empty one would say that there was none"
    said = [f"{line.getMessage()} {vars(line)}" for line in caplog.records]
    assert any("generation" in line for line in said)
    assert not [line for line in said if "walrus" in line]
    with client(served, "ADMIN_KEY") as http:
        explained = http.get(f"/v1/decisions/{record['id']}/explanation")
        assert "walrus" not in explained.text
        assert explained.json()["prompt"] is None
        assert explained.json()["guidance_scale"] == 7.5
        again = http.post(f"/v1/decisions/{record['id']}/draw", json={"index": 0})
    refused(again, 409, "conflict")
    assert "prompt was not kept" in again.json()["error"]["message"]


def test_a_kept_prompt_is_explained_and_drawn_again(bundle: Bundle) -> None:
    with serve_asked(bundle, TEXT, **KEEP) as (served, echo), client(served, "ADMIN_KEY") as http:
        made = ok(served, seed=21, prompt=SECRET, negative_prompt="a dog")
        record = stored(served, made["id"])
        assert record["plan"]["condition"]["prompt"] == record["request"]["prompt"] == SECRET
        explained = http.get(f"/v1/decisions/{made['id']}/explanation").json()
        assert (explained["prompt"], explained["negative_prompt"]) == (SECRET, "a dog")
        echo.plans.clear()
        again = http.post(f"/v1/decisions/{made['id']}/draw", json={"index": 0}).json()
        assert again["identical"]
        assert {plan.condition.prompt for plan in echo.plans.values()} == {SECRET}
        body = {"name": "seen", "question": "Is it dark?", "inputs": [{"prompt": "a cat"}]}
        assert http.post("/v1/datasets", json=body).status_code == 201
        delivered = made["data"][0]["finish_reason"] == "success"
        wrong = {"index": 0, "dataset": "seen", "label": "malign" if delivered else "benign"}
        reported = http.post(f"/v1/decisions/{made['id']}/report", json=wrong)
        assert reported.status_code == 201, reported.text
        image = served.store.datasets.image("seen", reported.json()["image_id"])
        assert image.input == {
            "prompt": SECRET, "negative_prompt": "a dog", "guidance_scale": 7.5
        }  # fmt: skip


def test_a_class_needs_no_keeping(classes: tuple[Served, Echo]) -> None:
    served, echo = classes
    made = ok(served, seed=31, n=2)
    record = stored(served, made["id"])
    assert record["request"]["prompt"] == ""
    assert record["plan"]["condition"]["class_labels"] == [3, 1]
    with client(served, "ADMIN_KEY") as http:
        explained = http.get(f"/v1/decisions/{made['id']}/explanation").json()
        for image, entry in zip(explained["images"], made["data"], strict=True):
            assert image["class_label"] == entry["class_label"]
            assert image["class_name"] == entry["class_name"]
        echo.plans.clear()
        assert http.post(f"/v1/decisions/{made['id']}/draw", json={"index": 1}).json()["identical"]
        assert [plan.condition.class_labels for plan in echo.plans.values()] == [(3, 1)]


def test_models_and_policies_say_what_they_take(
    classes: tuple[Served, Echo], text: tuple[Served, Echo], http: httpx.Client
) -> None:
    with client(classes[0]) as asked:
        model = asked.get("/v1/models/tiny").json()
        policy = asked.get("/v1/policies/bright").json()
    assert model["inputs"]["kind"] == "class"
    assert [one["class_name"] for one in model["inputs"]["classes"]] == [
        "zero", "one", "two", "three"
    ]  # fmt: skip
    assert model["inputs"]["guidance_scale"] == 3.0
    assert model["sizes"] == ["6x4"]
    assert model["num_inference_steps"]["bright"] == [50, 20]
    assert (policy["guidance_scale"], policy["class_labels"]) == ([2.0, 4.0], [3, 1])
    with client(text[0]) as asked:
        model = asked.get("/v1/models/tiny").json()
        policy = asked.get("/v1/policies/bright").json()
    assert model["inputs"] == {"kind": "text", "max_tokens": 50, "guidance_scale": 7.5}
    assert (policy["guidance_scale"], policy["class_labels"]) == ([7.5], [])
    assert http.get("/v1/models/tiny").json()["inputs"] == {"kind": "none"}
    plain = http.get("/v1/policies/bright").json()
    assert (plain["guidance_scale"], plain["class_labels"]) == ([], [])


def test_the_openapi_page_tells_the_fields(classes: tuple[Served, Echo]) -> None:
    with client(classes[0]) as http:
        parts = http.get("/openapi.json").json()["components"]["schemas"]
    request = parts["GenerationRequest"]["properties"]
    for name in ("negative_prompt", "class_label", "guidance_scale"):
        assert request[name]["description"]
    kinds = {one.get("type") for one in json_leaves(request["class_label"])}
    assert {"integer", "string"} <= kinds


def json_leaves(node: Any) -> list[dict[str, Any]]:
    if isinstance(node, list):
        return [leaf for one in node for leaf in json_leaves(one)]
    if not isinstance(node, dict):
        return []
    return [node, *(leaf for one in node.values() for leaf in json_leaves(one))]
