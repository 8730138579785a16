from __future__ import annotations

import asyncio
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from models.bundles.bundle import Bundle
from service.images import decode
from service.images.encode import to_png
from tests.bundles import HEIGHT, WIDTH
from tests.foreign import bad_files, good_files, with_chunk
from tests.pictures import data_url, png_header
from tests.service.api.conftest import client, refused
from tests.service.api.server import KEYS, Served, serve

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
        (_image(1, height=5), f"must be {WIDTH}x{HEIGHT}"),
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


BAD = bad_files(HEIGHT, WIDTH)
GOOD = good_files(HEIGHT, WIDTH)


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_one_image_that_everybody_sees_is_refused_by_name(
    http: httpx.Client, name: str
) -> None:
    kind, data, why = BAD[name]
    items = [_item(_image(1)), _item(data_url(data, kind))]
    response = http.post("/v1/moderations", json={"input": items})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("invalid_value", "input.1.image_url.url")
    assert why in error["message"]


def test_the_same_pixels_score_alike_in_every_format(http: httpx.Client) -> None:
    for name, (kind, data) in GOOD.items():
        response = http.post("/v1/moderations", json={"input": [_item(data_url(data, kind))]})
        assert response.status_code == 200, (name, response.text)
        score = response.json()["results"][0]["category_scores"]["bright"]
        assert score == pytest.approx(1 - 90 / 255, abs=0.01), name


def test_a_body_may_be_as_large_as_the_images_that_it_may_hold(http: httpx.Client) -> None:
    """A route without images keeps the limit of the configuration."""
    kind, png = GOOD["PNG"]
    item = _item(data_url(with_chunk(png, b"tEXt", b"Comment\0" + bytes(80_000)), kind))
    for count, status, code in ((2, 200, None), (3, 400, "invalid_value")):
        response = http.post("/v1/moderations", json={"input": [item] * count})
        assert response.status_code == status, response.text
        assert response.json().get("error", {}).get("code") == code
    for path, count in (("/v1/moderations", 5), ("/v1/images/generations", 1)):
        response = http.post(path, json={"input": [item] * count})
        assert response.status_code == 413, response.text


def test_images_are_decoded_beside_the_event_loop(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    loops: list[Any] = []

    def look(*arguments: Any, **options: Any) -> Any:
        try:
            loops.append(asyncio.get_running_loop())
        except RuntimeError:
            loops.append(None)
        return decode(*arguments, **options)

    monkeypatch.setattr("service.images.decode", look)
    assert http.post("/v1/moderations", json={"input": [_item(_image(1))]}).status_code == 200
    assert loops == [None]


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
        error = response.json()["error"]
        assert (error["code"], error["param"]) == ("policy_not_found", "model")
        assert error["message"].startswith(f"model: no model '{model}' scores images")
        assert error["message"].endswith("one of bright")


def test_a_policy_that_is_switched_off_is_the_field_model(bundle: Bundle) -> None:
    with serve(bundle) as served:
        with client(served, "APPROVE_KEY") as http:
            assert http.post("/v1/policies/bright/disable").status_code == 200
        with client(served, "SCORES_KEY") as http:
            answer = http.post("/v1/moderations", json={"input": [_item(_image(1))]})
    refused(answer, 403, "policy_disabled", "model")


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


def test_a_url_of_a_long_media_type_is_not_repeated(http: httpx.Client) -> None:
    url = _image(1).replace("image/png", "image/" + "z" * 5000)
    answer = http.post("/v1/moderations", json={"input": [_item(url)]})
    refused(answer, 400, "invalid_value", "input.0.image_url.url")
    assert len(answer.text) < 300
