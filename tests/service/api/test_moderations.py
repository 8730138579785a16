from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import openai
import pytest

from service.encode import to_png
from tests.bundles import HEIGHT, WIDTH
from tests.pictures import data_url, png_header
from tests.service.api.conftest import client
from tests.service.api.server import KEYS, Served

URL = "input.0.image_url.url"


def _item(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def _image(brightness: int, height: int = HEIGHT) -> str:
    return data_url(to_png(np.full((height, WIDTH, 1), brightness, np.uint8)))


def test_category_scores_are_the_probability_of_malign(server: Served) -> None:
    """As OpenAI's client sends and reads it."""
    key = KEYS["SCORES_KEY"]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as api:
        items: Any = [_item(_image(255)), _item(_image(51))]
        response = api.moderations.create(model="bright", input=items)
    assert response.model == "bright"
    assert [result.flagged for result in response.results] == [False, True]
    scores = [result.category_scores.model_dump()["bright"] for result in response.results]
    assert scores == pytest.approx([0.0, 0.8])


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        (_image(1, height=5), f"scores {WIDTH}x{HEIGHT}"),
        (data_url(b"no image"), "does not decode"),
        (data_url(png_header(20_000, 20_000)), "20000x20000|does not decode"),
        ("https://example.com/a.png", "data URL"),
        ("file:///etc/passwd", "data URL"),
    ],
    ids=["size", "bytes", "bomb", "https", "file"],
)
def test_what_cannot_be_scored_is_refused(http: httpx.Client, url: str, complaint: str) -> None:
    response = http.post("/v1/moderations", json={"input": [_item(url)]})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("invalid_value", URL)
    assert any(part in error["message"] for part in complaint.split("|"))


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": []}, "input"),
        ({"input": "some text"}, "input"),
        ({"input": [_item(_image(1))] * 3}, "input"),
        ({"input": [{"type": "text", "text": "x"}]}, "input.0"),
        ({}, "input"),
    ],
)
def test_a_malformed_request_is_refused(
    http: httpx.Client, body: dict[str, Any], param: str
) -> None:
    response = http.post("/v1/moderations", json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["code"] == "invalid_value"
    assert error["param"].startswith(param)


def test_only_a_policy_with_a_judge_scores(http: httpx.Client) -> None:
    for model in ("none", "omni-moderation-latest"):
        response = http.post("/v1/moderations", json={"model": model, "input": [_item(_image(1))]})
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "policy_not_found"


def test_a_score_needs_its_scope(server: Served) -> None:
    with client(server, "PLAIN_KEY") as http:
        response = http.post("/v1/moderations", json={"input": [_item(_image(1))]})
    assert response.status_code == 403


@pytest.mark.parametrize("answer", [float("nan"), 1.5])
def test_an_unusable_score_is_no_score(http: httpx.Client, server: Served, answer: float) -> None:
    server.judge.answer = answer
    response = http.post("/v1/moderations", json={"input": [_item(_image(1))]})
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "censor_unavailable"


def _refused(server: Served) -> bool:
    with client(server) as http:
        response = http.post("/v1/moderations", json={"input": [_item(_image(1))]})
    code = response.json()["error"]["code"]
    return (response.status_code, code) == (503, "censor_unavailable")


def test_a_judge_that_fails_or_hangs_is_503(server: Served, impatient_server: Served) -> None:
    server.judge.fault = RuntimeError("a bug")
    assert _refused(server)
    assert _refused(impatient_server)
