from __future__ import annotations

import base64
import io
import json
import logging
import math
import re
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from models.bundles.bundle import Bundle
from models.diffusion.noise import MAX_SEED
from service.ports import DrawResult
from tests.bundles import HEIGHT, THRESHOLD, WIDTH
from tests.service.api.conftest import client
from tests.service.api.server import KEYS, Served, serve

ROUTE = "/v1/images/generations"
PNG = base64.b64encode(b"\x89PNG\r\n\x1a").decode()[:8]


def _post(http: httpx.Client, **body: Any) -> httpx.Response:
    return http.post(ROUTE, json={"prompt": ""} | body)


def _ok(http: httpx.Client, **body: Any) -> dict[str, Any]:
    response = _post(http, **body)
    assert response.status_code == 200, response.text
    payload: dict[str, Any] = response.json()
    return payload


def _error(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The error object, after checks that hold for every error."""
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "code", "param"}
    assert error["code"] == code
    assert PNG not in response.text
    assert ("Retry-After" in response.headers) != (
        response.headers.get("x-should-retry") == "false"
    )
    return error


def _pixels(entry: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with Image.open(io.BytesIO(base64.b64decode(entry["b64_json"]))) as image:
        assert image.format == "PNG"
        assert image.size == (WIDTH, HEIGHT)
        return np.asarray(image)


@pytest.fixture(scope="module")
def first_scores(_server: Served) -> dict[int, float]:
    """The score of the first draw of some seeds."""
    with client(_server) as http:
        body = {"censor": {"max_draws": 1, "on_filtered": "never"}, "n": 5}
        data = [entry for seed in range(0, 20, 5) for entry in _ok(http, seed=seed, **body)["data"]]
    return {e["seed"]: e["content_filter_results"]["bright"]["benign_score"] for e in data}


@pytest.fixture
def pair(first_scores: dict[int, float]) -> int:
    """A seed whose first draw is benign while that of the next seed is malign."""
    limit = THRESHOLD[50]
    return next(s for s in range(19) if first_scores[s] >= limit and first_scores[s + 1] < limit)


def test_what_was_judged_is_what_is_delivered(http: httpx.Client) -> None:
    payload = _ok(http, n=5, seed=0)
    for entry in payload["data"]:
        verdict = entry["content_filter_results"]["bright"]
        assert verdict["benign_score"] == _pixels(entry)[0, 0] / 255
        assert verdict["benign_score"] >= verdict["threshold"] == THRESHOLD[50]
        assert verdict["filtered"] is False
        assert entry["finish_reason"] == "success"
    assert [entry["index"] for entry in payload["data"]] == list(range(5))
    assert [entry["seed"] for entry in payload["data"]] == list(range(5))
    draws = sum(entry["draws"] for entry in payload["data"])
    assert draws > 5
    assert payload["usage"] == {
        "images_requested": 5,
        "images_returned": 5,
        "images_censored": 0,
        "draws": draws,
        "nfe": 50 * draws,
        "input_tokens": 0,
        "input_tokens_details": {"text_tokens": 0, "image_tokens": 0},
        "output_tokens": 0,
        "total_tokens": 0,
    }
    assert set(payload["timings"]) == {"queue_s", "denoise_s", "judge_s"}


def test_the_policy_is_named_by_hash_and_the_request_by_its_id(
    http: httpx.Client, bundle: Bundle
) -> None:
    response = _post(http, seed=1)
    payload = response.json()
    assert re.fullmatch(r"img_[0-9a-f]{32}", payload["id"])
    assert payload["model"] == "tiny"
    assert payload["policy"] == {
        "id": "bright",
        "version": 1,
        "guide": None,
        "judge": bundle.reward_sha256("bright")["judge"],
        "certified": False,
    }


def test_the_seed_of_an_entry_gives_its_image_again(http: httpx.Client) -> None:
    several = _ok(http, n=5, seed=100)["data"]
    for entry in several:
        (again,) = _ok(http, n=1, seed=entry["seed"])["data"]
        assert (again["b64_json"], again["draws"]) == (entry["b64_json"], entry["draws"])


def test_without_a_seed_requests_differ(http: httpx.Client) -> None:
    censor = {"on_filtered": "never"}
    seeds = [_ok(http, censor=censor)["data"][0]["seed"] for _ in range(2)]
    assert seeds[0] != seeds[1]
    assert all(0 <= seed <= MAX_SEED for seed in seeds)


def test_fields_that_openais_client_sends_as_null_are_fine(http: httpx.Client) -> None:
    body = dict.fromkeys(["model", "n", "size", "response_format", "output_format", "user"])
    assert len(_ok(http, **body, seed=0)["data"]) == 1


ASKING_NOTHING: list[tuple[str, list[Any]]] = [
    ("user", ["somebody", ""]),
    ("quality", ["auto", "standard", "high", "hd"]),
    ("style", ["auto", "vivid", "natural"]),
    ("background", ["auto", "opaque"]),
    ("moderation", ["auto"]),
    ("output_compression", [0, 80, 100]),
    ("partial_images", [0]),
]


@pytest.mark.parametrize(("field", "values"), ASKING_NOTHING)
def test_a_value_that_asks_for_nothing_special_is_taken_and_listed(
    http: httpx.Client, field: str, values: list[Any]
) -> None:
    plain = _ok(http, seed=1)
    assert plain["ignored"] == []
    for value in values:
        payload = _ok(http, seed=1, **{field: value})
        assert payload["ignored"] == [field]
        assert payload["data"][0]["b64_json"] == plain["data"][0]["b64_json"]


def test_what_is_done_as_asked_is_not_ignored(http: httpx.Client) -> None:
    asked = {"n": 1, "size": "auto", "response_format": "b64_json", "output_format": "png"}
    assert _ok(http, seed=1, stream=False, **asked)["ignored"] == []


def test_a_block_lists_what_was_ignored_too(http: httpx.Client, pair: int) -> None:
    response = _post(http, seed=pair + 1, quality="auto", style="vivid", **BLOCKING)
    assert response.json()["ignored"] == ["quality", "style"]


INVALID: list[tuple[dict[str, Any], str, str]] = [
    ({"colour": "red"}, "colour", "no such field"),
    ({"censor": {"colour": 1}}, "censor.colour", "no such field"),
    ({"guidance_scale": 7.5}, "guidance_scale", "cannot be guided"),
    ({"guidance_scale": -0.5}, "guidance_scale", "greater than or equal to 0"),
    ({"negative_prompt": "x"}, "negative_prompt", "it takes no input, and draws by the seed alone"),
    ({"class_label": 3}, "class_label", "takes none"),
    ({"class_label": 1.5}, "class_label", "number or its name"),
    ({"n": "2"}, "n", "integer"),
    ({"n": 1.0}, "n", "integer"),
    ({"n": True}, "n", "integer"),
    ({"n": 0}, "n", "greater than or equal to 1"),
    ({"n": 6}, "n", "1 to 5"),
    ({"seed": -1}, "seed", "greater than or equal to 0"),
    ({"seed": MAX_SEED + 1}, "seed", "less than or equal to"),
    ({"seed": MAX_SEED, "n": 2}, "seed", str(MAX_SEED)),
    ({"size": "1024x1024"}, "size", f"{WIDTH}x{HEIGHT}"),
    ({"prompt": "a seven"}, "prompt", "takes none"),
    ({"prompt": " " * 21}, "prompt", "limit is 20"),
    ({"prompt": 3}, "prompt", "string"),
    ({"response_format": "url"}, "response_format", "must be 'b64_json': no image is kept"),
    ({"output_format": "jpeg"}, "output_format", "must be 'png'"),
    ({"output_format": "webp"}, "output_format", "must be 'png'"),
    ({"quality": "low"}, "quality", "num_inference_steps asks for less"),
    ({"quality": "medium"}, "quality", "'auto', 'standard', 'high' or 'hd'"),
    ({"style": "anime"}, "style", "'natural'"),
    ({"background": "transparent"}, "background", "no image here is transparent"),
    ({"moderation": "low"}, "moderation", "the policy says"),
    ({"output_compression": 101}, "output_compression", "0 to 100"),
    ({"partial_images": 2}, "partial_images", "must be 0"),
    ({"stream": True}, "stream", "must be false"),
    ({"user": "u" * 257}, "user", "256"),
    ({"num_inference_steps": 49}, "num_inference_steps", "50, 20"),
    ({"num_inference_steps": 0}, "num_inference_steps", "greater than"),
    ({"censor": {"threshold": 0.1}}, "censor.threshold", "'bright', 0.5: callers may raise it"),
    ({"censor": {"threshold": 0}}, "censor.threshold", "greater than 0"),
    ({"censor": {"threshold": 1.01}}, "censor.threshold", "less than or equal to 1"),
    ({"censor": {"max_draws": 9}}, "censor.max_draws", "at most 8"),
    ({"censor": {"max_draws": 0}}, "censor.max_draws", "greater than"),
    ({"censor": {"deadline_s": 601}}, "censor.deadline_s", "600"),
    ({"censor": {"deadline_s": 0}}, "censor.deadline_s", "greater than 0"),
    ({"censor": {"on_filtered": "ignore"}}, "censor.on_filtered", "error_if_all"),
]


@pytest.mark.parametrize(("body", "param", "limit"), INVALID, ids=lambda v: str(v)[:40])
def test_an_invalid_value_names_its_field_and_its_limit(
    http: httpx.Client, server: Served, body: dict[str, Any], param: str, limit: str
) -> None:
    error = _error(_post(http, **body), 400, "invalid_value")
    assert error["param"] == param
    assert limit in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("field", ["threshold", "deadline_s"])
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_does_not_have_are_refused(
    http: httpx.Client, field: str, number: str
) -> None:
    body = f'{{"prompt": "", "censor": {{"{field}": {number}}}}}'
    response = http.post(ROUTE, content=body, headers={"Content-Type": "application/json"})
    assert _error(response, 400, "invalid_value")["param"] == f"censor.{field}"


@pytest.mark.parametrize(
    "content",
    [b"{", b"", b"[]", b"3", b'"prompt"', b"\xff\xfe", b"[" * 5000],
    ids=["cut", "empty", "list", "number", "string", "not-utf8", "deep"],
)
def test_a_body_that_is_no_json_object_is_refused(http: httpx.Client, content: bytes) -> None:
    response = http.post(ROUTE, content=content, headers={"Content-Type": "application/json"})
    _error(response, 400, "invalid_value")


def test_what_does_not_exist_is_never_replaced(http: httpx.Client) -> None:
    assert _error(_post(http, model="dall-e-3"), 404, "model_not_found")["param"] == "model"
    assert _error(_post(http, policy="bland"), 404, "policy_not_found")["param"] == "policy"
    _error(http.get("/v1/nowhere"), 404, "not_found")
    _error(http.get("/nowhere"), 404, "not_found")
    assert http.get("/").headers["location"] == "/feedback"
    _error(http.get(ROUTE), 405, "method_not_allowed")


BLOCKING = {"censor": {"max_draws": 1}}


def test_when_every_image_is_blocked_the_answer_is_moderation_blocked(
    http: httpx.Client, pair: int
) -> None:
    response = _post(http, seed=pair + 1, **BLOCKING)
    error = _error(response, 400, "moderation_blocked")
    assert error["type"] == "image_generation_user_error"
    (entry,) = response.json()["data"]
    assert (entry["b64_json"], entry["finish_reason"]) == (None, "content_filtered")
    assert entry["content_filter_results"]["bright"]["filtered"] is True
    assert response.json()["usage"]["images_censored"] == 1


def test_one_blocked_image_of_two_is_a_null_beside_the_other(http: httpx.Client, pair: int) -> None:
    payload = _ok(http, n=2, seed=pair, **BLOCKING)
    delivered, blocked = payload["data"]
    _pixels(delivered)
    assert (blocked["b64_json"], blocked["finish_reason"]) == (None, "content_filtered")
    assert payload["usage"]["images_returned"] == 1


def test_error_if_any_holds_back_everything(http: httpx.Client, pair: int) -> None:
    def delivered() -> float:
        lines = http.get("/metrics").text.splitlines()
        name = "winnow_images_delivered_total{"
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    censor = {"max_draws": 1, "on_filtered": "error_if_any"}
    before = delivered()
    response = _post(http, n=2, seed=pair, censor=censor)
    assert delivered() == before
    reasons = [entry["finish_reason"] for entry in response.json()["data"]]
    assert reasons == ["cancelled", "content_filtered"]
    _error(response, 400, "moderation_blocked")
    assert [entry["b64_json"] for entry in response.json()["data"]] == [None, None]
    assert response.json()["usage"]["images_returned"] == 0
    assert len(_ok(http, n=1, seed=pair, censor=censor)["data"]) == 1


def test_never_answers_200_with_nulls(http: httpx.Client, pair: int) -> None:
    payload = _ok(http, seed=pair + 1, censor={"max_draws": 1, "on_filtered": "never"})
    assert payload["data"][0]["b64_json"] is None
    assert payload["usage"]["images_returned"] == 0


def test_a_caller_may_raise_the_threshold(http: httpx.Client, pair: int) -> None:
    blocked = _post(http, seed=pair, censor={"threshold": 1.0, "max_draws": 1})
    _error(blocked, 400, "moderation_blocked")
    verdict = blocked.json()["data"][0]["content_filter_results"]["bright"]
    assert verdict["threshold"] == 1.0


def test_scores_are_hidden_without_their_scope(server: Served, pair: int) -> None:
    with client(server, "PLAIN_KEY") as plain:
        for response in (_post(plain, seed=pair), _post(plain, seed=pair + 1, **BLOCKING)):
            assert "benign_score" not in response.text
            assert "threshold" not in response.text
            (entry,) = response.json()["data"]
            assert set(entry["content_filter_results"]["bright"]) == {"filtered"}


def test_the_policy_that_censors_nothing_needs_admin(server: Served) -> None:
    for key in ("PLAIN_KEY", "SCORES_KEY"):
        with client(server, key) as http:
            _error(_post(http, policy="none"), 403, "policy_not_allowed")
    with client(server, "ADMIN_KEY") as http:
        payload = _ok(http, policy="none", seed=3)
        assert payload["data"][0]["content_filter_results"] == {}
        assert payload["policy"]["judge"] is None
        assert len(_ok(http, seed=3, censor={"threshold": 0.01, "max_draws": 20})["data"]) == 1


@pytest.mark.parametrize("key", [None, "wn-unknown-0123456789", "wn-plain-012345678"])
def test_without_a_known_key_nothing_is_served(server: Served, key: str | None) -> None:
    with client(server, key) as http:
        assert _error(_post(http), 401, "invalid_api_key")["type"] == "authentication_error"
        for path in ("/v1/models", "/v1/policies"):
            _error(http.get(path), 401, "invalid_api_key")
        _error(http.post("/v1/moderations", json={"input": []}), 401, "invalid_api_key")


def test_a_key_needs_the_generate_scope(server: Served) -> None:
    with client(server, "LABEL_KEY") as http:
        _error(_post(http), 403, "policy_not_allowed")
        _error(http.get("/v1/models"), 403, "policy_not_allowed")


@pytest.fixture(scope="module")
def open_server(bundle: Bundle) -> Iterator[Served]:
    """Anonymous callers may generate; a key still counts for what it is."""
    from tests.service.api.server import AUTH

    auth = AUTH | {"anonymous": True, "anonymous_scopes": ["generate"]}
    with serve(bundle, auth=auth) as served:
        yield served


@pytest.mark.parametrize("key", [None, "sk-whatever-openai-sends"])
def test_an_unknown_bearer_counts_as_anonymous_where_that_is_on(
    open_server: Served, key: str | None
) -> None:
    with client(open_server, key) as http:
        (entry,) = _ok(http, seed=0)["data"]
        assert set(entry["content_filter_results"]["bright"]) == {"filtered"}
        _error(_post(http, policy="none"), 403, "policy_not_allowed")
    with client(open_server, "ADMIN_KEY") as http:
        _ok(http, policy="none")


@pytest.mark.parametrize("answer", [math.nan, 1.5, -0.5, math.inf])
def test_an_unusable_score_is_503_without_pixels(server: Served, answer: float) -> None:
    server.judge.answer = answer
    with client(server) as http:
        error = _error(_post(http, n=2), 503, "censor_unavailable")
    assert error["type"] == "server_error"


def test_a_judge_that_fails_is_503_without_pixels(server: Served) -> None:
    server.judge.fault = RuntimeError("no memory left at 0x7f")
    with client(server) as http:
        error = _error(_post(http), 503, "censor_unavailable")
    assert "0x7f" not in error["message"]


def test_a_judge_that_hangs_is_503_without_pixels(impatient_server: Served) -> None:
    with client(impatient_server) as http:
        _error(_post(http), 503, "censor_unavailable")


def test_a_judge_of_another_hash_is_503(bundle: Bundle) -> None:
    with serve(bundle) as served:
        served.backends.judges = type(served.backends.judges)(
            {"sha256:other": served.judge}, (HEIGHT, WIDTH, 1)
        )
        with client(served) as http:
            _error(_post(http), 503, "censor_unavailable")


def test_a_dead_backbone_is_503_after_the_deadline(bundle: Bundle) -> None:
    with serve(bundle) as served, client(served) as http:
        served.backends.loop.close()
        response = _post(http, censor={"deadline_s": 0.5})
        _error(response, 503, "backend_unavailable")


def test_the_deadline_is_504_and_frees_the_slots(server: Served) -> None:
    server.backbone.delay_s = 0.02
    with client(server) as http:
        _error(_post(http, n=5, censor={"deadline_s": 0.2}), 504, "deadline_exceeded")
    server.backbone.delay_s = 0.0
    with client(server) as http:
        _ok(http, seed=0)
    assert server.backends.loop.running == 0


def test_a_full_queue_is_429_with_a_time_to_come_back(bundle: Bundle) -> None:
    with serve(bundle, max_batch=1, max_waiting=1) as served, client(served) as http:
        served.backbone.delay_s = 0.05
        first = threading.Thread(target=_post, args=(http,), kwargs={"n": 3})
        first.start()
        while not served.backends.loop.running:
            pass
        response = _post(http)
        assert _error(response, 429, "overloaded")["type"] == "rate_limit_error"
        assert int(response.headers["Retry-After"]) >= 1
        served.backbone.delay_s = 0.0
        first.join()


def test_an_unexpected_fault_is_a_500_that_can_be_traced(server: Served) -> None:
    def bug(results: list[DrawResult]) -> None:
        raise RuntimeError("a bug with a secret in it")

    server.backends.on_results = bug
    with client(server) as http:
        response = http.post(ROUTE, json={"prompt": ""}, headers={"X-Request-ID": "trace-me"})
    error = _error(response, 500, "internal_error")
    assert "secret" not in error["message"]
    assert response.headers["X-Request-ID"] == "trace-me"


def test_a_request_is_one_line_in_the_log_without_keys(
    server: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="winnow.requests"), client(server) as http:
        response = _post(http, n=2, seed=0)
    (record,) = [record for record in caplog.records if record.name == "winnow.requests"]
    line = vars(record)["fields"]
    assert line["request_id"] == response.headers["X-Request-ID"]
    assert (line["key"], line["code"], line["policy"], line["n"]) == ("scores", "ok", "bright", 2)
    assert line["judge"].startswith("sha256:")
    assert line["finish_reasons"] == ["success", "success"]
    assert KEYS["SCORES_KEY"] not in json.dumps(line)


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Idempotency-Key", "1"),
        ("Prefer", "respond-async, wait=1"),
        ("Prefer", "Respond-Async"),
        ("x-request-disconnect-disabled", "?1"),
        *(("x-request-timeout-seconds", value) for value in ("0", "-1", "nan", "inf", "soon")),
    ],
)
def test_headers_that_promise_more_are_refused(http: httpx.Client, header: str, value: str) -> None:
    response = http.post("/v1/images/generations", json={}, headers={header: value})
    _error(response, 400, "invalid_value")
    assert response.json()["error"]["param"] == header
