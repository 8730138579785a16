"""OpenAI's own client, unchanged, against the real API on a real socket."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from PIL import Image

from models.bundles.bundle import Bundle
from tests.bundles import HEIGHT, WIDTH
from tests.service.api.server import KEYS, Served, serve

GENERATIONS = "/v1/images/generations"


@pytest.fixture
def api(server: Served) -> Iterator[openai.OpenAI]:
    """A client with one retry: two attempts where a retry may help."""
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key=KEYS["SCORES_KEY"], max_retries=1
    ) as client:
        yield client


def _attempts(server: Served) -> int:
    return server.paths.count(GENERATIONS)


def test_generate_returns_images(api: openai.OpenAI) -> None:
    response = api.images.generate(
        model="tiny",
        prompt="",
        n=2,
        size="auto",
        response_format="b64_json",
        user="somebody",
        extra_body={"seed": 0},
    )
    assert response.data is not None
    assert len(response.data) == 2
    for entry in response.data:
        assert entry.b64_json is not None
        with Image.open(io.BytesIO(base64.b64decode(entry.b64_json))) as image:
            assert (image.format, image.size) == ("PNG", (WIDTH, HEIGHT))


@pytest.fixture(scope="module")
def aliased(bundle: Bundle) -> Iterator[Served]:
    """A service whose model also goes by the names that clients say by default."""
    models = {"tiny": {"bundle": str(bundle.folder), "aliases": ["gpt-image-1", "dall-e-3"]}}
    with serve(bundle, models=models) as served:
        yield served


@pytest.mark.parametrize(
    "defaults",
    [
        {"model": "gpt-image-1"},
        {"model": "gpt-image-1", "n": 1, "size": "auto", "quality": "high"},
        {
            "model": "gpt-image-1",
            "background": "auto",
            "moderation": "auto",
            "output_format": "png",
            "output_compression": 100,
            "partial_images": 0,
            "stream": False,
            "quality": "auto",
            "user": "somebody",
        },
        {
            "model": "dall-e-3",
            "quality": "standard",
            "style": "vivid",
            "response_format": "b64_json",
        },
        {"model": "dall-e-3", "quality": "hd", "style": "natural", "response_format": "b64_json"},
    ],
)
def test_what_clients_send_by_default_is_served(aliased: Served, defaults: dict[str, Any]) -> None:
    with openai.OpenAI(base_url=f"{aliased.url}/v1", api_key=KEYS["SCORES_KEY"]) as client:
        response = client.images.generate(prompt="", extra_body={"seed": 0}, **defaults)
    assert response.data is not None
    assert response.data[0].b64_json is not None
    assert response.usage is not None
    usage = response.usage
    assert usage.input_tokens + usage.output_tokens == usage.total_tokens == 0
    assert usage.input_tokens_details.image_tokens + usage.input_tokens_details.text_tokens == 0
    assert response.model_dump()["model"] == "tiny"


def test_an_alias_is_a_model_of_its_own_to_clients(aliased: Served, api: openai.OpenAI) -> None:
    with openai.OpenAI(base_url=f"{aliased.url}/v1", api_key=KEYS["SCORES_KEY"]) as client:
        listed = list(client.models.list())
        one = client.models.retrieve("gpt-image-1")
    assert [model.id for model in listed] == ["tiny", "gpt-image-1", "dall-e-3"]
    assert one == listed[1]
    assert one.model_dump()["alias_of"] == "tiny"
    with pytest.raises(openai.NotFoundError):
        api.images.generate(prompt="", model="gpt-image-1")


def test_our_fields_travel_in_extra_body_and_come_back(api: openai.OpenAI) -> None:
    body = {"seed": 5, "policy": "bright", "num_inference_steps": 20, "censor": {"threshold": 0.7}}
    response = api.images.generate(prompt="", extra_body=body)
    extra: dict[str, Any] = response.model_dump()
    assert extra["policy"]["id"] == "bright"
    entry = extra["data"][0]
    assert entry["seed"] == 5
    verdict = entry["content_filter_results"]["bright"]
    assert verdict["benign_score"] >= verdict["threshold"] == 0.7
    assert extra["usage"]["nfe"] == 20 * entry["draws"]


def test_models_are_listed(api: openai.OpenAI) -> None:
    assert [model.id for model in api.models.list()] == ["tiny"]
    assert api.models.retrieve("tiny").owned_by == "winnow"
    with pytest.raises(openai.NotFoundError) as refusal:
        api.models.retrieve("gpt-image-1")
    assert refusal.value.code == "model_not_found"


def test_a_block_is_a_bad_request_and_is_not_tried_again(
    api: openai.OpenAI, server: Served
) -> None:
    server.judge.answer = 0.0
    with pytest.raises(openai.BadRequestError) as refusal:
        api.images.generate(prompt="", n=2)
    assert refusal.value.code == "moderation_blocked"
    assert refusal.value.type == "image_generation_user_error"
    assert refusal.value.response.json()["usage"]["images_censored"] == 2
    assert _attempts(server) == 1


def test_an_invalid_value_names_its_param(api: openai.OpenAI, server: Served) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        api.images.generate(prompt="", n=99)
    assert (refusal.value.code, refusal.value.param) == ("invalid_value", "n")
    assert _attempts(server) == 1


@pytest.mark.parametrize(
    ("key", "policy", "kind"),
    [
        ("wn-unknown-0123456789", "bright", openai.AuthenticationError),
        (KEYS["SCORES_KEY"], "none", openai.PermissionDeniedError),
        (KEYS["SCORES_KEY"], "bland", openai.NotFoundError),
    ],
)
def test_refusals_are_openais_own_exceptions(
    server: Served, key: str, policy: str, kind: type[openai.APIStatusError]
) -> None:
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=1) as client,
        pytest.raises(kind),
    ):
        client.images.generate(prompt="", extra_body={"policy": policy})
    assert _attempts(server) == 1


def test_a_missing_censor_is_tried_again_after_the_time_we_say(
    api: openai.OpenAI, server: Served
) -> None:
    server.judge.answer = float("nan")
    started = time.monotonic()
    with pytest.raises(openai.InternalServerError) as refusal:
        api.images.generate(prompt="")
    assert refusal.value.status_code == 503
    assert refusal.value.code == "censor_unavailable"
    assert refusal.value.response.headers["Retry-After"] == "1"
    assert time.monotonic() - started >= 1.0
    assert _attempts(server) == 2


def test_a_retry_that_finds_the_censor_well_again_succeeds(
    api: openai.OpenAI, server: Served
) -> None:
    server.judge.answer = float("nan")
    recovery = threading.Timer(0.5, setattr, (server.judge, "answer", None))
    recovery.start()
    response = api.images.generate(prompt="", extra_body={"seed": 0})
    recovery.join()
    assert response.data is not None
    assert response.data[0].b64_json is not None
    assert _attempts(server) == 2


def test_a_missed_deadline_is_not_tried_again(api: openai.OpenAI, server: Served) -> None:
    """OpenAI's client retries every 5xx by itself, unless told that it cannot help."""
    server.backbone.delay_s = 0.02
    with pytest.raises(openai.InternalServerError) as refusal:
        api.images.generate(prompt="", extra_body={"censor": {"deadline_s": 0.1}})
    assert (refusal.value.status_code, refusal.value.code) == (504, "deadline_exceeded")
    assert _attempts(server) == 1
