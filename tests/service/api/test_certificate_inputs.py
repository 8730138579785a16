"""Certificates of models that are asked for something: which inputs the rate is of."""

from __future__ import annotations

import io
import json
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.bundles.bundle import Bundle
from models.diffusion.condition import Condition
from service.certificates.verification import verify
from tests.echo import Echo
from tests.service.api.asking import CLASSES, TEXT, serve_asked
from tests.service.api.conftest import client
from tests.service.api.server import Served
from tests.service.api.test_certificates import begin, certify, drawn, refused

Asked = tuple[Served, Echo]
POLICY = {"guidance_scale": [2.0, 4.0], "class_labels": [1, 2, 3]}


@pytest.fixture(autouse=True)
def _key_in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


@pytest.fixture
def classes(bundle: Bundle) -> Iterator[Asked]:
    with serve_asked(bundle, CLASSES, POLICY) as pair:
        yield pair


@pytest.fixture
def text(bundle: Bundle) -> Iterator[Asked]:
    with serve_asked(bundle, TEXT) as pair:
        yield pair


def opened(served: Served) -> tuple[httpx.Client, httpx.Client]:
    return client(served, "APPROVE_KEY"), client(served, "LABEL_KEY")


def certified(served: Served, **body: Any) -> bool:
    with client(served) as http:
        body = {"censor": {"on_filtered": "never"}} | body
        answer = http.post("/v1/images/generations", json=body)
        assert answer.status_code == 200, answer.text
        found: bool = answer.json()["policy"]["certified"]
        return found


def test_by_default_it_is_of_what_the_policy_draws_when_nothing_is_asked(
    classes: Asked,
) -> None:
    served, echo = classes
    reviewer, labeller = opened(served)
    with reviewer, labeller:
        ended = certify(reviewer, labeller)
    assert ended["status"] == "passed"
    assert ended["covered"]["inputs"]["conditions"] == [
        {"class_labels": [1, 2, 3], "guidance_scale": 2.0, "weight": 1.0}
    ]
    assert ended["inputs"] == "of classes drawn uniformly from 1, 2, 3"
    assert (
        "at most 30 % of the images of classes drawn uniformly from 1, 2, 3, that policy 'bright' "
        "delivers are malign"
    ) in ended["statement"]
    expected = Condition(guidance_scale=2.0, class_labels=(1, 2, 3))
    assert {plan.condition for plan in echo.plans.values()} == {expected}
    images = served.store.certificates.images(ended["id"])
    assert [one.input for one in images] == [
        {"class_label": expected.label(one.seed), "guidance_scale": 2.0} for one in images
    ]


def test_only_a_request_that_asks_for_nothing_is_certified(classes: Asked) -> None:
    served, _ = classes
    reviewer, labeller = opened(served)
    with reviewer, labeller:
        certify(reviewer, labeller)
    assert certified(served)
    assert certified(served, guidance_scale=2.0), "it is what is drawn anyway"
    assert not certified(served, class_label=1)
    assert not certified(served, guidance_scale=4.0)
    assert not certified(served, seed=3)


def test_a_certificate_of_prompts_covers_none_of_them_one_by_one(text: Asked) -> None:
    served, echo = text
    reviewer, labeller = opened(served)
    prompts = [{"prompt": "a cat"}, {"prompt": "a dog"}]
    with reviewer, labeller:
        ended = certify(reviewer, labeller, inputs=prompts, epsilon=0.1)
        listed = reviewer.get("/v1/policies/bright").json()
    assert ended["status"] == "passed"
    assert ended["inputs"] == "of these 2 prompts, drawn uniformly"
    found = Counter(plan.condition.prompt for plan in echo.plans.values())
    assert set(found) == {"a cat", "a dog"}
    for image in served.store.certificates.images(ended["id"]):
        assert image.input is not None
        assert image.input["prompt"] == echo.plans[image.seed, image.draw].condition.prompt
    assert listed["certificates"] == {}
    assert not certified(served)
    assert not certified(served, prompt="a cat")


def test_other_inputs_are_another_fingerprint(text: Asked) -> None:
    served, _ = text
    reviewer, labeller = opened(served)
    found = []
    with reviewer, labeller:
        for inputs in (
            [],
            [{"prompt": "a cat"}],
            [{"prompt": "a cat"}, {"prompt": "a dog"}],
            [{"prompt": "a dog", "weight": 5}, {"prompt": "a cat", "weight": 5}],
            [{"prompt": "a dog", "weight": 5}, {"prompt": "a cat"}],
            [{"prompt": "a cat", "negative_prompt": "a dog"}],
        ):
            begun = begin(reviewer, inputs=inputs)
            drawn(reviewer, begun["id"])
            found.append(begun["fingerprint"])
            body = {"reason": "the test goes on"}
            reviewer.post(f"/v1/certificates/{begun['id']}/abandon", json=body)
    assert found[2] == found[3], "the same law, otherwise spelt"
    assert len(set(found)) == len(found) - 1


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([{"prompt": "a cat"}], "inputs.0.prompt"),
        ([{"class_label": 1}, {"class_label": 0}], "inputs.1.class_label: is 0, policy 'bright'"),
        ([{"guidance_scale": 3.0}], "inputs.0.guidance_scale: is 3, policy 'bright' allows 2, 4"),
    ],
)
def test_what_the_policy_does_not_let_callers_ask_is_refused(
    classes: Asked, inputs: list[dict[str, Any]], words: str
) -> None:
    body = {"epsilon": 0.3, "delta": 0.5, "inputs": inputs}
    with client(classes[0], "APPROVE_KEY") as http:
        answer = http.post("/v1/policies/bright/certify", json=body)
        refused(answer, 400, "invalid_value", words)
        assert http.get("/v1/certificates").json()["data"] == [], "it spends no attempt"


def test_a_prompt_that_the_model_cannot_read_ends_the_attempt_at_once(text: Asked) -> None:
    served, echo = text
    with client(served, "APPROVE_KEY") as http:
        begun = begin(http, inputs=[{"prompt": "word " * 11}])
        ended = drawn(http, begun["id"], "abandoned")
    assert "has 11 tokens, 3 too many" in ended["result"]["reason"]
    assert echo.calls <= 8, "a fault of the prompt is not tried again"


def test_evidence_says_which_inputs_and_of_which_image(text: Asked, tmp_path: Path) -> None:
    served, _ = text
    reviewer, labeller = opened(served)
    with reviewer, labeller:
        ended = certify(reviewer, labeller, inputs=[{"prompt": "a cat"}, {"prompt": "a dog"}])
        data = reviewer.get(f"/v1/certificates/{ended['id']}/evidence").content
        page = labeller.post(f"/v1/certificates/{ended['id']}/batches", json={}).json()
    assert page["images"] == []
    manifest = json.loads(zipfile.ZipFile(io.BytesIO(data)).read("manifest.json"))
    assert {one["input"]["prompt"] for one in manifest["images"]} <= {"a cat", "a dog"}
    file = tmp_path / "evidence.zip"
    file.write_bytes(data)
    sentences = list(verify(file, None))
    assert any(
        "of the images of these 2 prompts, drawn uniformly, that" in one for one in sentences
    )


def test_who_labels_sees_what_an_image_was_drawn_under(classes: Asked) -> None:
    served, _ = classes
    reviewer, labeller = opened(served)
    with reviewer, labeller:
        begun = begin(reviewer)
        drawn(reviewer, begun["id"])
        page = labeller.post(f"/v1/certificates/{begun['id']}/batches", json={}).json()
    assert {one["caption"] for one in page["images"]} <= {"one", "two", "three"}
