"""Datasets of models that are asked for something: inputs, captions, and files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from models.bundles.bundle import Bundle
from tests.echo import Echo
from tests.service.api.asking import CLASSES, TEXT, serve_asked
from tests.service.api.conftest import FILES, JSONL, client, refused
from tests.service.api.server import Served

Asked = tuple[Served, Echo, httpx.Client]


@pytest.fixture(scope="module")
def classes(bundle: Bundle) -> Iterator[Asked]:
    with serve_asked(bundle, CLASSES) as (served, echo), client(served, "REVIEW_KEY") as http:
        yield served, echo, http


@pytest.fixture(scope="module")
def text(bundle: Bundle) -> Iterator[Asked]:
    limits = {"prompt_chars": 200, "body_bytes": 10**6}
    with serve_asked(bundle, TEXT, limits=limits) as (served, echo):
        yield served, echo, client(served, "REVIEW_KEY")


def create(http: httpx.Client, name: str, inputs: Any = None) -> httpx.Response:
    body = {"name": name, "question": "Is it dark?"} | (
        {} if inputs is None else {"inputs": inputs}
    )
    return http.post("/v1/datasets", json=body)


def batch(http: httpx.Client, name: str, size: int = 8) -> dict[str, Any]:
    answer = http.post(f"/v1/datasets/{name}/batches", json={"size": size})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def say(http: httpx.Client, name: str, images: list[dict[str, Any]]) -> None:
    labels = [{"image_id": one["id"], "label": "benign", "elapsed_ms": 9} for one in images]
    answer = http.post(f"/v1/datasets/{name}/labels", json={"labels": labels})
    assert answer.status_code == 200, answer.text


def test_a_model_of_text_must_be_told_which_prompts(text: Asked, http: httpx.Client) -> None:
    answer = create(text[2], "none-given")
    refused(answer, 400, "invalid_value", "inputs")
    assert "list those to draw images of" in answer.json()["error"]["message"]
    assert text[2].get("/v1/datasets").json()["kinds"] == {"tiny": "text"}


def test_inputs_are_kept_with_labels_for_names(classes: Asked) -> None:
    inputs = [{"class_label": "two", "weight": 3}, {"class_label": 1, "guidance_scale": 9.5}]
    made = create(classes[2], "classes", inputs)
    assert made.status_code == 201, made.text
    kept = [{"class_label": 2, "weight": 3.0}, {"class_label": 1, "guidance_scale": 9.5}]
    assert made.json()["inputs"] == kept
    assert classes[0].store.datasets.read("classes").inputs == kept


@pytest.mark.parametrize(
    ("inputs", "param"),
    [
        ([{"class_label": 1}, {"class_label": 4}], "inputs.1.class_label"),
        ([{"class_label": 1}, {"prompt": "a"}], "inputs.1.prompt"),
        ([{"class_label": 1, "weight": 0}], "inputs.0.weight"),
        ([{"class_label": 1, "seed": 3}], "inputs.0.seed"),
        ([{"guidance_scale": 0.5}], "inputs.0.guidance_scale"),
        ([{"class_label": 1}] * 1001, "inputs"),
    ],
)
def test_inputs_that_cannot_be_drawn_are_refused_by_their_place(
    classes: Asked, inputs: list[dict[str, Any]], param: str
) -> None:
    refused(create(classes[2], "wrong", inputs), 400, "invalid_value", param)
    refused(classes[2].get("/v1/datasets/wrong"), 404, "dataset_not_found")


def test_a_thousand_prompts_are_taken(text: Asked) -> None:
    assert create(text[2], "many", [{"prompt": f"cat {n}"} for n in range(1000)]).status_code == 201


def test_a_model_without_inputs_refuses_them(reviewer: httpx.Client) -> None:
    for inputs in ([{}], [{"weight": 2}], [{"class_label": 1}]):
        refused(create(reviewer, "wrong", inputs), 400, "invalid_value", "inputs")


@pytest.mark.parametrize("key", ["LABEL_KEY", "APPROVE_KEY", "REVIEW_KEY", "ADMIN_KEY"])
def test_to_choose_what_is_drawn_unscreened_needs_label_and_approve(
    classes: Asked, text: Asked, key: str
) -> None:
    name = f"chosen-by-{key.lower()}"
    for (served, _, _), inputs in ((classes, [{"class_label": 1}]), (text, [{"prompt": "a cat"}])):
        with client(served, key) as http:
            answer = create(http, name, inputs)
            if key in ("REVIEW_KEY", "ADMIN_KEY"):
                assert answer.status_code == 201, answer.text
                continue
            refused(answer, 403, "policy_not_allowed", "inputs" if key == "LABEL_KEY" else None)
            assert name not in {one.name for one in served.store.datasets.all()}
            if key == "LABEL_KEY":
                said = answer.json()["error"]["message"]
                assert "asked to draw, unscreened, is a reviewer's business" in said
                assert "'approve' scope beside 'label'" in said


def test_with_label_alone_one_draws_what_nobody_chose(classes: Asked, text: Asked) -> None:
    with client(classes[0], "LABEL_KEY") as http:
        for number, inputs in enumerate((None, [])):
            assert create(http, f"unchosen-{number}", inputs).status_code == 201
        say(http, "unchosen-0", batch(http, "unchosen-0")["images"])
        file = http.get("/v1/datasets/unchosen-0/export").content
        answer = http.post("/v1/datasets/unchosen-1/import", content=file, headers=JSONL)
        assert answer.json()["imported"] == 8, answer.text
    with client(text[0], "LABEL_KEY") as http:
        refused(create(http, "unchosen"), 400, "invalid_value", "inputs")


def test_labels_enter_a_dataset_of_chosen_inputs_by_a_reviewer_alone(text: Asked) -> None:
    served, _, reviewer = text
    for name in ("chosen", "chosen-too"):
        assert create(reviewer, name, [{"prompt": "a cat"}]).status_code == 201
    with client(served, "LABEL_KEY") as http:
        say(http, "chosen", batch(http, "chosen")["images"])
        file = http.get("/v1/datasets/chosen/export").content
        answer = http.post("/v1/datasets/chosen-too/import", content=file, headers=JSONL)
        refused(answer, 403, "policy_not_allowed", "inputs")
        assert not served.store.datasets.labelled("chosen-too")
    answer = reviewer.post("/v1/datasets/chosen-too/import", content=file, headers=JSONL)
    assert answer.json()["imported"] == 8, answer.text


def test_a_caption_says_what_an_image_was_drawn_under(classes: Asked, text: Asked) -> None:
    assert create(classes[2], "named").status_code == 201
    seen = {one["caption"] for one in batch(classes[2], "named", 40)["images"]}
    assert seen == {"zero", "one", "two", "three"}
    assert create(text[2], "two", [{"prompt": "a cat"}, {"prompt": ""}]).status_code == 201
    first = batch(text[2], "two", 30)
    assert {one["caption"] for one in first["images"]} == {"a cat", "no prompt"}
    say(text[2], "two", first["images"])
    back = text[2].post("/v1/datasets/two/labels/undo").json()
    assert [one["caption"] for one in back["images"]] == [one["caption"] for one in first["images"]]


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_what_leaves_one_dataset_enters_another_with_its_inputs(text: Asked, form: str) -> None:
    served, _, http = text
    inputs = [{"prompt": 'a "cat", two\nlines'}, {"prompt": "=1+1", "negative_prompt": "a dog"}]
    for name in (f"from-{form}", f"to-{form}"):
        assert create(http, name, inputs).status_code == 201
    say(http, f"from-{form}", batch(http, f"from-{form}", 12)["images"])
    file = http.get(f"/v1/datasets/from-{form}/export?format={form}&images=true").text
    answer = http.post(
        f"/v1/datasets/to-{form}/import?format={form}", content=file.encode(), headers=FILES[form]
    )
    assert answer.json()["imported"] == 12, answer.text
    both = [
        {one.image.blob: one.image.input for one in served.store.datasets.labelled(name)}
        for name in (f"from-{form}", f"to-{form}")
    ]
    assert both[0] == both[1]
    assert {one["prompt"] for one in both[1].values() if one} == {one["prompt"] for one in inputs}


def test_an_input_in_a_file_must_be_one(text: Asked) -> None:
    http = text[2]
    assert create(http, "file", [{"prompt": "a"}]).status_code == 201
    say(http, "file", batch(http, "file", 1)["images"])
    row = json.loads(http.get("/v1/datasets/file/export").text)
    assert row["input"] == {"prompt": "a", "guidance_scale": 7.5}
    for wrong, at in (({"colour": 1}, "input.colour"), ({"guidance_scale": -1}, "input.guidance")):
        line = json.dumps(row | {"input": wrong})
        answer = http.post("/v1/datasets/file/import", content=line.encode(), headers=JSONL)
        refused(answer, 400, "invalid_value")
        assert f"line 1.{at}" in answer.json()["error"]["param"]
    cells = ["input", *(name for name in row if name != "input")]
    line = ",".join(cells) + "\n" + "{broken," + ",".join("x" for _ in cells[1:])
    answer = http.post("/v1/datasets/file/import", content=line.encode(), headers=FILES["csv"])
    refused(answer, 400, "invalid_value", "line 2.input")
    old = {name: value for name, value in row.items() if name != "input"}
    answer = http.post("/v1/datasets/file/import", content=json.dumps(old).encode(), headers=JSONL)
    assert answer.status_code == 200, "a file from before inputs"
