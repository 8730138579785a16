"""What a body may be: JSON that means one thing, of the types that are described, and no more."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.service.api.conftest import FILES, client, refused
from tests.service.api.server import Served

IMAGES = "/v1/images/generations"
JSON = "application/json"
READING = (
    IMAGES,
    "/v1/moderations",
    "/v1/policies",
    "/v1/policies/bright/promote",
    "/v1/policies/bright/shadow",
    "/v1/policies/bright/certify",
    "/v1/datasets",
    "/v1/rewards",
    "/v1/session",
    f"/v1/decisions/img_{'0' * 32}/report",
    f"/v1/certificates/cert_{'0' * 32}/abandon",
)
EMPTY = (
    "/v1/policies/bright/rollback",
    "/v1/policies/bright/disable",
    "/v1/rewards/rwd_0/cancel",
)


@pytest.fixture(scope="module")
def admin(_server: Served) -> Iterator[httpx.Client]:
    with client(_server, "ADMIN_KEY") as opened:
        yield opened


def send(
    http: httpx.Client, path: str, content: bytes, kind: str | None = JSON, **headers: str
) -> httpx.Response:
    said = {} if kind is None else {"Content-Type": kind}
    return http.post(path, content=content, headers=said | headers)


def message(answer: httpx.Response) -> str:
    found: str = answer.json()["error"]["message"]
    return found


@pytest.mark.parametrize("path", READING)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"{", "not JSON"),
        (b"{'a': 1}", "not JSON"),
        (b'{"a": 1,}', "not JSON"),
        (b'{"a": 1} {}', "not JSON"),
        (b"null", "must be a JSON object"),
        (b"[]", "must be a JSON object"),
        (b'"{}"', "must be a JSON object"),
        (b'{"a": "\xff"}', "not UTF-8"),
        ('{"prompt": "é"}'.encode("latin-1"), "not UTF-8"),
        ("{}".encode("utf-16"), "not UTF-8"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b'{"a":' * 1200 + b"1" + b"}" * 1200, "nested too deeply"),
        (b'{"a":' + b"[" * 8000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "too many digits"),
        (b'{"n": 1, "n": 1}', "'n' stands twice"),
        (b'{"a": {"b": 1, "c": 2, "b": 3}}', "'b' stands twice"),
        (b'{"a": [{"\\u0062": 1, "b": 3}]}', "'b' stands twice"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_a_body_that_is_no_json_object_is_refused_for_what_it_is(
    admin: httpx.Client, path: str, content: bytes, words: str
) -> None:
    answer = send(admin, path, content)
    refused(answer, 400, "invalid_value")
    assert words in message(answer)


@pytest.mark.parametrize("path", READING)
@pytest.mark.parametrize(
    "kind",
    [
        None,
        "",
        "text/plain",
        "text/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonp",
        "application/json; charset=latin-1",
        "application/json; charset=utf-16",
    ],
)
def test_what_does_not_say_that_it_is_json_in_utf8_is_415(
    admin: httpx.Client, path: str, kind: str | None
) -> None:
    answer = send(admin, path, b"{}", kind)
    refused(answer, 415, "unsupported_media_type", "Content-Type")


@pytest.mark.parametrize(
    "kind",
    [JSON, "Application/JSON", 'application/json; charset="UTF-8"', "application/problem+json"],
)
def test_json_in_utf8_is_read_however_it_is_spelt(admin: httpx.Client, kind: str) -> None:
    assert send(admin, IMAGES, b'{"seed": 1}', kind).status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "deflate", "br", "zstd", "identity, gzip"])
@pytest.mark.parametrize("path", [*READING, "/v1/datasets/nowhere/import"])
def test_a_compressed_body_is_415_and_says_so(
    admin: httpx.Client, path: str, encoding: str
) -> None:
    answer = send(admin, path, gzip.compress(b"{}"), **{"Content-Encoding": encoding})
    refused(answer, 415, "unsupported_media_type", "Content-Encoding")
    assert "without compression" in message(answer)


def test_an_encoding_that_changes_nothing_is_none(admin: httpx.Client) -> None:
    answer = send(admin, IMAGES, b'{"seed": 1}', **{"Content-Encoding": "identity"})
    assert answer.status_code == 200


@pytest.mark.parametrize("path", EMPTY)
def test_a_route_that_takes_nothing_refuses_a_body(admin: httpx.Client, path: str) -> None:
    """Or a rollback "to version 3" would be one to whatever came before."""
    answer = send(admin, path, b'{"version": 3}')
    refused(answer, 400, "invalid_value")
    assert "takes nothing" in message(answer)
    refused(send(admin, path, b"version=3", "text/plain"), 415, "unsupported_media_type")


@pytest.mark.parametrize("path", EMPTY[2:])
def test_an_empty_object_is_nothing(admin: httpx.Client, path: str) -> None:
    for content in (b"", b"{}"):
        assert send(admin, path, content).status_code == 404


def test_who_has_no_key_is_told_so_whatever_the_body(server: Served) -> None:
    with client(server, None) as http:
        for path in (*READING[:-3], *EMPTY):
            for kind in (JSON, "text/plain"):
                answer = http.post(path, content=b"{", headers={"Content-Type": kind})
                refused(answer, 401, "invalid_api_key")


STRICT: list[tuple[str, dict[str, Any], str]] = [
    (IMAGES, {"stream": 0}, "stream"),
    (IMAGES, {"stream": 0.0}, "stream"),
    (IMAGES, {"stream": "false"}, "stream"),
    (IMAGES, {"n": True}, "n"),
    (IMAGES, {"n": 1.0}, "n"),
    (IMAGES, {"n": "1"}, "n"),
    (IMAGES, {"seed": False}, "seed"),
    (IMAGES, {"prompt": 1}, "prompt"),
    (IMAGES, {"partial_images": False}, "partial_images"),
    (IMAGES, {"partial_images": 0.0}, "partial_images"),
    (IMAGES, {"output_compression": True}, "output_compression"),
    (IMAGES, {"censor": []}, "censor"),
    (IMAGES, {"censor": {"threshold": True}}, "censor.threshold"),
    (IMAGES, {"censor": {"threshold": "0.9"}}, "censor.threshold"),
    (IMAGES, {"censor": {"max_draws": 2.0}}, "censor.max_draws"),
    (IMAGES, {"policy": ""}, "policy"),
    (IMAGES, {"model": ""}, "model"),
    (IMAGES, {"size": ""}, "size"),
    ("/v1/moderations", {"input": [], "model": ""}, "input"),
    (
        "/v1/moderations",
        {"model": "", "input": [{"type": "image_url", "image_url": {"url": "data:"}}]},
        "model",
    ),
    ("/v1/datasets", {"name": "a", "question": "Is it?", "model": ""}, "model"),
    ("/v1/datasets", {"name": "a", "question": "Is it?", "inputs": {}}, "inputs"),
    ("/v1/policies", {"name": "", "based_on": "bright"}, "name"),
    ("/v1/policies/bright/promote", {"version": 1.0}, "version"),
    ("/v1/policies/bright/promote", {"version": True}, "version"),
    ("/v1/policies/bright/promote", {"version": None}, "version"),
    ("/v1/policies/bright/promote", {}, "version"),
    ("/v1/policies/bright/shadow", {}, "version"),
    ("/v1/policies/bright/certify", {"epsilon": True, "delta": 0.05}, "epsilon"),
    ("/v1/rewards", {"dataset": "a", "guide": 1}, "guide"),
    ("/v1/rewards", {"dataset": "a", "target": "0.01"}, "target"),
    ("/v1/rewards", {"dataset": "a", "policy": ""}, "policy"),
    ("/v1/session", {"name": 3}, "name"),
    ("/v1/session", {"name": "Ada", "key": ""}, "key"),
]


@pytest.mark.parametrize(("path", "body", "param"), STRICT, ids=lambda value: str(value)[:40])
def test_a_value_of_another_type_is_no_value(
    admin: httpx.Client, path: str, body: dict[str, Any], param: str
) -> None:
    answer = send(admin, path, json.dumps(body).encode())
    refused(answer, 400, "invalid_value", param)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (IMAGES, '{"censor": {"threshold": %s}}', "censor.threshold"),
        (IMAGES, '{"censor": {"deadline_s": %s}}', "censor.deadline_s"),
        (IMAGES, '{"guidance_scale": %s}', "guidance_scale"),
        (IMAGES, '{"seed": %s}', "seed"),
        ("/v1/policies/bright/certify", '{"epsilon": %s, "delta": 0.5}', "epsilon"),
        ("/v1/policies/bright/certify", '{"epsilon": 0.5, "delta": %s}', "delta"),
        ("/v1/rewards", '{"dataset": "a", "target": %s}', "target"),
    ],
)
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_a_number_that_json_does_not_have_is_refused_by_its_field(
    admin: httpx.Client, path: str, body: str, field: str, number: str
) -> None:
    refused(send(admin, path, (body % number).encode()), 400, "invalid_value", field)


def test_null_is_nothing_in_every_field_that_may_be_left_out(
    server: Served, admin: httpx.Client
) -> None:
    described = server.app.state.description
    fields = described["components"]["schemas"]["GenerationRequest"]["properties"]
    body = dict.fromkeys(fields) | {"seed": 1}
    whole = send(admin, IMAGES, json.dumps(body).encode())
    assert whole.status_code == 200, whole.text
    assert whole.json()["ignored"] == []
    body["censor"] = dict.fromkeys(described["components"]["schemas"]["Censor"]["properties"])
    assert send(admin, IMAGES, json.dumps(body).encode()).status_code == 200
    asked = {"name": "nulls", "question": "Is it dark?", "model": None, "inputs": None}
    assert send(admin, "/v1/datasets", json.dumps(asked).encode()).status_code == 201
    refused(send(admin, IMAGES, b'{"colour": null}'), 400, "invalid_value", "colour")
    refused(send(admin, "/v1/datasets", b'{"name": null}'), 400, "invalid_value", "name")


@pytest.mark.parametrize("name", ["x" * 3000, "\x00", "é" * 300, "\u202e" * 100, "a\nb" * 60])
def test_what_was_sent_is_never_repeated_whole(admin: httpx.Client, name: str) -> None:
    for body in (
        {name: 1},
        {"censor": {name: 1}},
        {"model": name},
        {"policy": name},
        {"size": name},
        {"class_label": name},
        {"quality": name},
        {"censor": {"on_filtered": name}},
    ):
        answer = send(admin, IMAGES, json.dumps(body).encode())
        assert answer.status_code in (400, 404), answer.text
        assert len(answer.content) < 1000
        assert name not in answer.text
        assert len(answer.json()["error"]["param"]) < 100
    twice = json.dumps(name)
    answer = send(admin, IMAGES, f"{{{twice}: 1, {twice}: 2}}".encode())
    refused(answer, 400, "invalid_value")
    assert len(answer.content) < 1000


def test_a_callers_mistake_leaves_no_traceback(
    server: Served, admin: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        for content in (b"", b"{", b"\xff", b"[" * 8000, b'{"n": 0}', b'{"a": 1, "a": 2}'):
            assert send(admin, IMAGES, content).status_code == 400
        assert send(admin, IMAGES, b"{}", "text/plain").status_code == 415
        with client(server, None) as http:
            for path in ("/v1/models", "/nowhere", "/pages/none.css", "/v1/models/"):
                assert http.get(path).status_code in (401, 404)
            given = [(b"X-Request-ID", b"\xe9")]
            assert http.get("/health/live", headers=given).status_code == 400
    ours = [one for one in caplog.records if one.name.startswith(("winnow", "uvicorn", "asyncio"))]
    assert not [one for one in ours if one.exc_info or one.levelno >= logging.ERROR]


def test_a_file_of_labels_says_nothing_twice(admin: httpx.Client) -> None:
    asked = {"name": "twice", "question": "Is it dark?"}
    assert send(admin, "/v1/datasets", json.dumps(asked).encode()).status_code in (201, 409)
    for form, content, at in (
        ("jsonl", b'{"label": "benign", "label": "malign"}', "line 1"),
        ("jsonl", b'{"label": ' + b"[" * 5000, "line 1"),
        ("csv", b"label,label\nbenign,malign\n", "body"),
        ("csv", b'label,input\nbenign,"{""seed"": 1, ""seed"": 2}"\n', "line 2.input"),
    ):
        kind = FILES[form]["Content-Type"]
        answer = send(admin, "/v1/datasets/twice/import", content, kind)
        refused(answer, 400, "invalid_value", at)
