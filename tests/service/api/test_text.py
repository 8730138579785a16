"""What callers send is whole Unicode: JSON may hold half of a character, and nothing else may."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from models.bundles.bundle import Bundle
from tests.service.api.asking import TEXT, serve_asked
from tests.service.api.conftest import FILES, client, refused
from tests.service.api.server import Served

IMAGES, DATASETS = "/v1/images/generations", "/v1/datasets"
CERTIFICATE = f"/v1/certificates/crt_{'0' * 32}"
DECISION = f"/v1/decisions/img_{'0' * 32}"
HALF = "a\ud83d"
ASKED: dict[str, Any] = {"name": "half", "question": "Is it dark?"}
LABEL: dict[str, Any] = {"image_id": HALF, "label": "benign", "elapsed_ms": 9}
PICTURE: dict[str, Any] = {"type": "image_url", "image_url": {"url": "data:"}}
FIELDS: list[tuple[str, dict[str, Any], str]] = [
    *((IMAGES, {name: HALF}, name) for name in ("prompt", "negative_prompt", "class_label")),
    *((IMAGES, {name: HALF}, name) for name in ("user", "policy", "model", "size", "stream")),
    (IMAGES, {"censor": {"on_filtered": HALF}}, "censor.on_filtered"),
    (DATASETS, ASKED | {"inputs": [{"prompt": HALF}]}, "inputs.0.prompt"),
    (DATASETS, ASKED | {"inputs": [{}, {"negative_prompt": HALF}]}, "inputs.1.negative_prompt"),
    (DATASETS, ASKED | {"inputs": [{"class_label": HALF}]}, "inputs.0.class_label"),
    *((DATASETS, ASKED | {name: HALF}, name) for name in ("name", "question", "model")),
    (f"{DATASETS}/whole/batches", {"exclude_batches": ["b", HALF]}, "exclude_batches"),
    (f"{DATASETS}/whole/batches", {"policy": HALF}, "policy"),
    (f"{DATASETS}/whole/labels", {"labels": [LABEL]}, "labels.0.image_id"),
    *(("/v1/rewards", {"dataset": "whole", name: HALF}, name) for name in ("dataset", "features")),
    ("/v1/policies", {"name": "x", "based_on": HALF}, "based_on"),
    ("/v1/policies", {"name": "x", "based_on": "bright", "reward": HALF}, "reward"),
    (f"{CERTIFICATE}/batches", {"exclude_images": [HALF]}, "exclude_images"),
    (f"{CERTIFICATE}/labels", {"labels": [LABEL]}, "labels.0.image_id"),
    (f"{CERTIFICATE}/abandon", {"reason": HALF}, "reason"),
    (f"{DECISION}/report", {"index": 0, "label": "malign", "dataset": HALF}, "dataset"),
    ("/v1/moderations", {"model": HALF, "input": [PICTURE]}, "model"),
    (
        "/v1/moderations",
        {"input": [PICTURE | {"image_url": {"url": HALF}}]},
        "input.0.image_url.url",
    ),
    ("/v1/session", {"name": "Ada", "key": HALF}, "key"),
    ("/v1/session", {"name": HALF}, "name"),
]


@pytest.fixture(scope="module")
def served(bundle: Bundle) -> Iterator[Served]:
    limits = {"prompt_chars": 200, "body_bytes": 10**6}
    with serve_asked(bundle, TEXT, limits=limits) as (found, _):
        yield found


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    with client(served, "ADMIN_KEY") as opened:
        yield opened


def send(
    http: httpx.Client,
    path: str,
    body: Any,
    escaped: bool = True,
    kind: str = "application/json",
) -> httpx.Response:
    """Half a character as JSON's escape, or as the bytes that Python reads as such."""
    text = json.dumps(body, ensure_ascii=escaped)
    headers = {"Content-Type": kind}
    return http.post(path, content=text.encode(errors="surrogatepass"), headers=headers)


def make(http: httpx.Client, name: str) -> None:
    body = {"name": name, "question": "Is it dark?", "inputs": [{"prompt": "a cat"}]}
    assert http.post(DATASETS, json=body).status_code in (201, 409)


@pytest.mark.parametrize(("path", "body", "param"), FIELDS)
def test_half_a_character_is_refused_by_its_field(
    http: httpx.Client, path: str, body: dict[str, Any], param: str
) -> None:
    make(http, "whole")
    answer = send(http, path, body)
    refused(answer, 400, "invalid_value", param)
    assert "must hold no surrogates" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", [IMAGES, DATASETS, "/v1/session"])
def test_half_a_character_as_bytes_is_not_utf8(http: httpx.Client, path: str) -> None:
    answer = send(http, path, {"name": HALF}, escaped=False)
    refused(answer, 400, "invalid_value")
    assert "is not UTF-8" in answer.json()["error"]["message"]


def test_a_refused_dataset_breaks_nothing(served: Served, http: httpx.Client) -> None:
    body = ASKED | {"inputs": [{"prompt": HALF}]}
    refused(send(http, DATASETS, body), 400, "invalid_value", "inputs.0.prompt")
    assert "half" not in {one.name for one in served.store.datasets.all()}
    assert http.get(DATASETS).status_code == 200
    refused(http.get(f"{DATASETS}/half"), 404, "dataset_not_found")


@pytest.mark.parametrize("path", [IMAGES, DATASETS, "/v1/session"])
def test_half_a_character_in_a_fields_name_is_refused(http: httpx.Client, path: str) -> None:
    for body in ({HALF: 1}, ASKED | {HALF: 1}, ASKED | {"inputs": [{HALF: 1}]}):
        refused(send(http, path, body), 400, "invalid_value")


def test_a_file_of_labels_holds_whole_text(served: Served, http: httpx.Client) -> None:
    for name in ("from", "to"):
        make(http, name)
    images = http.post(f"{DATASETS}/from/batches", json={"size": 1}).json()["images"]
    said = [{"image_id": images[0]["id"], "label": "benign", "elapsed_ms": 9}]
    assert http.post(f"{DATASETS}/from/labels", json={"labels": said}).status_code == 200
    row = json.loads(http.get(f"{DATASETS}/from/export").text)
    for change, at in (
        ({"annotator": HALF}, "annotator"),
        ({"input": {"prompt": HALF}}, "input.prompt"),
        ({"png": HALF}, "png"),
        ({"label": HALF}, "label"),
        ({HALF: 1}, ""),
    ):
        answer = send(http, f"{DATASETS}/to/import", row | change, kind="application/jsonl")
        refused(answer, 400, "invalid_value", f"line 1.{at}".rstrip("."))
    cells = row | {"input": json.dumps({"prompt": HALF}).replace('"', '""'), "score": ""}
    file = ",".join(cells) + "\n" + ",".join(f'"{one}"' for one in cells.values()) + "\n"
    answer = http.post(f"{DATASETS}/to/import", content=file.encode(), headers=FILES["csv"])
    refused(answer, 400, "invalid_value", "line 2.input.prompt")
    assert not served.store.datasets.labelled("to")


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        (f"{DATASETS}/%ED%A0%80", (404, "dataset_not_found")),
        ("/v1/rewards?dataset=%ED%A0%80", (400, "invalid_value")),
    ],
)
def test_a_url_cannot_hold_half_a_character(
    http: httpx.Client, path: str, answer: tuple[int, str]
) -> None:
    refused(http.get(path), *answer)


@pytest.mark.parametrize("sent", ["\U0001f600 a cat", "日本", "two\nlines"])
def test_whole_characters_are_drawn(http: httpx.Client, sent: str) -> None:
    body = {"prompt": sent, "censor": {"on_filtered": "never"}}
    assert send(http, IMAGES, body).status_code == 200
