"""HTTP around the routes: ids, methods, paths, parameters, and under which name one asks."""

from __future__ import annotations

import gzip
import json
import re
import socket
from collections.abc import Iterator
from http.client import HTTPResponse
from typing import Any

import httpx
import pytest

from models.bundles.bundle import Bundle
from service.api.routing import OpenRoute, PageRoute, Route
from service.api.sessions import COOKIE
from service.config import NAME
from service.errors import RequestTimeout, WinnowError
from tests.service.api.conftest import client, refused
from tests.service.api.server import AUTH, Served, serve

PLAIN = ("/health/live", "/health/ready", "/metrics", "/docs", "/feedback", "/openapi.json", "/")
KEYED = ("/v1/models", "/v1/models/tiny", "/v1/policies", "/v1/decisions", "/v1/datasets")
ITEM = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
FOREIGN = ("evil.example", "evil.example:8000", "10.0.0.1", "localhost.evil.example", "")


@pytest.fixture(scope="module")
def open_server(bundle: Bundle) -> Iterator[Served]:
    auth: dict[str, Any] = AUTH | {"anonymous": True, "anonymous_scopes": ["generate", "label"]}
    with serve(bundle, auth=auth) as served:
        yield served


@pytest.fixture
def admin(server: Served) -> Iterator[httpx.Client]:
    with client(server, "ADMIN_KEY") as opened:
        yield opened


@pytest.mark.parametrize(
    "given", [b"", b"\xe9", b"\xff\xfe", b"a b", b"x" * 65, b"a\tb", b"<script>", b"a;b"]
)
@pytest.mark.parametrize("path", ["/health/live", "/v1/models", "/docs", "/nowhere", "/metrics"])
def test_an_id_that_is_none_is_refused_and_a_fresh_one_returned(
    admin: httpx.Client, path: str, given: bytes
) -> None:
    answer = admin.get(path, headers=[(b"X-Request-ID", given)])
    refused(answer, 400, "invalid_value", "X-Request-ID")
    assert len(answer.headers["X-Request-ID"]) == 32
    assert answer.headers["X-Request-ID"].isalnum()


def test_an_id_stands_once(admin: httpx.Client) -> None:
    answer = admin.get("/health/live", headers=[("X-Request-ID", "a"), ("X-Request-ID", "b")])
    refused(answer, 400, "invalid_value", "X-Request-ID")
    assert answer.headers.get_list("X-Request-ID")[0] not in ("a", "b")


@pytest.mark.parametrize("path", [*PLAIN, *KEYED, "/v1/session", "/pages/style.css"])
def test_head_is_get_without_its_body(admin: httpx.Client, path: str) -> None:
    get, head = admin.get(path), admin.head(path)
    assert (head.status_code, head.content) == (get.status_code, b"")
    volatile = {"x-request-id", "date", "content-length"}
    names = {name for name in get.headers if name not in volatile}
    assert names == {name for name in head.headers if name not in volatile}
    if path != "/metrics":
        assert head.headers.get("content-length") == get.headers.get("content-length")


def test_head_of_what_is_refused_is_refused(server: Served) -> None:
    with client(server, None) as http:
        for path, status in (("/v1/models", 401), ("/nowhere", 404)):
            assert http.head(path).status_code == status
        answer = http.head("/v1/images/generations")
        assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/session", "DELETE, GET, HEAD, POST"),
        ("/v1/policies", "GET, HEAD, POST"),
        ("/v1/datasets", "GET, HEAD, POST"),
        ("/v1/rewards", "GET, HEAD, POST"),
        ("/v1/models", "GET, HEAD"),
        ("/v1/models/tiny", "GET, HEAD"),
        ("/v1/images/generations", "POST"),
        ("/v1/policies/bright/promote", "POST"),
        ("/health/live", "GET, HEAD"),
        ("/docs", "GET, HEAD"),
        ("/", "GET, HEAD"),
    ],
)
@pytest.mark.parametrize("method", ["PUT", "PATCH", "OPTIONS", "TRACE", "PROPFIND"])
def test_405_names_every_method_of_the_path(
    admin: httpx.Client, method: str, path: str, allowed: str
) -> None:
    answer = admin.request(method, path)
    refused(answer, 405, "method_not_allowed")
    assert answer.headers["Allow"] == allowed
    assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    "path",
    ["/v1/models/", "/v1/images/generations/", "/docs/", "/health/live/", "//v1/models", "/v1/"],
)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
def test_a_slash_too_many_is_404_and_sends_nobody_anywhere(
    admin: httpx.Client, method: str, path: str
) -> None:
    answer = admin.request(method, path, headers={"Host": "evil.example"})
    assert answer.status_code == 404
    assert "location" not in answer.headers
    assert answer.headers["content-type"] == "application/json"
    if method != "HEAD":
        refused(answer, 404, "not_found")


def test_the_root_leads_to_the_pages_whatever_the_host(admin: httpx.Client) -> None:
    answer = admin.get("/", headers={"Host": "evil.example"})
    assert answer.headers["location"] == "/feedback"


@pytest.mark.parametrize(
    "path",
    [
        f"/v1/models/{'a' * 5000}",
        f"/v1/policies/{'a' * 5000}",
        f"/v1/policies/{'a' * 5000}/history",
        f"/v1/decisions/{'a' * 5000}",
        f"/v1/datasets/{'a' * 5000}",
        f"/v1/rewards/{'a' * 5000}",
        f"/v1/certificates/{'a' * 5000}",
        f"/pages/{'a' * 5000}",
        f"/{'a' * 5000}",
        f"/v1/models/{'%00' * 300}",
    ],
)
def test_a_name_that_nothing_has_is_404_and_not_repeated_whole(
    admin: httpx.Client, path: str
) -> None:
    answer = admin.get(path)
    assert answer.status_code == 404, answer.text
    assert len(answer.content) < 1000
    assert answer.json()["error"]["code"].endswith("not_found")


LONG = ("z" * 65, "z" * 200, "%00" * 60, "%F3%A0%80%81" * 60, "%22%27%5C" * 20)


@pytest.mark.parametrize("part", LONG)
def test_no_route_repeats_more_than_a_name_of_its_path(
    server: Served, admin: httpx.Client, part: str
) -> None:
    for route in server.app.state.routes:
        if not route.param_convertors or isinstance(route, PageRoute):
            continue
        (method,) = route.methods
        path = re.sub(r"{\w+}", part, route.path)
        answer = admin.request(method, path)
        refused(answer, 404, "not_found")
        assert len(answer.json()["error"]["message"]) < 130


BODIES: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/images/generations", {}, "model"),
    ("/v1/images/generations", {}, "policy"),
    ("/v1/images/generations", {}, "size"),
    ("/v1/moderations", {"input": []}, "model"),
    ("/v1/moderations", {"input": [ITEM]}, "model"),
    ("/v1/policies", {"name": "x", "based_on": "bright"}, "reward"),
    ("/v1/policies", {"name": "x", "reward": "rwd_x"}, "based_on"),
    ("/v1/policies", {"based_on": "bright"}, "name"),
    ("/v1/datasets", {"name": "x", "question": "Is it dark?"}, "model"),
    ("/v1/datasets", {}, "name"),
    ("/v1/rewards", {}, "dataset"),
    ("/v1/rewards", {"dataset": "x"}, "policy"),
    ("/v1/session", {"name": "Ann"}, "key"),
    (f"/v1/decisions/img_{'0' * 32}/report", {"index": 0, "label": "malign"}, "dataset"),
    ("/v1/images/generations", {}, "zzz"),
]
WORDS = ("z" * 5000, "z" * 64, "\x00" * 64, "\U000e0001" * 64, "\u200b" * 32, "\\'\"" * 21)


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize(("path", "rest", "field"), BODIES)
def test_no_error_repeats_much_of_a_body(
    admin: httpx.Client, path: str, rest: dict[str, Any], field: str, words: str
) -> None:
    answer = admin.post(path, json=rest | {field: words})
    assert 400 <= answer.status_code < 500
    told = answer.json()["error"]
    for known in (words, repr(words)[1:-1]):
        assert known[:101] not in told["message"] or len(known) < 100
    assert len(told["message"]) < 400
    assert len(told["param"] or "") < 100


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/images/generations", {}, "n"),
        ("/v1/images/generations", {}, "num_inference_steps"),
        ("/v1/images/generations", {}, "class_label"),
        (f"/v1/decisions/img_{'0' * 32}/draw", {}, "index"),
        ("/v1/policies/bright/certify", {"epsilon": 0.1, "delta": 0.1}, "allowed"),
    ],
)
def test_no_error_repeats_a_number_of_thousands_of_digits(
    admin: httpx.Client, path: str, body: dict[str, Any], field: str
) -> None:
    for number in (int("9" * 4000), -int("9" * 4000), 2**63):
        answer = admin.post(path, json=body | {field: number})
        refused(answer, 400, "invalid_value", field)
        assert len(answer.text) < 400


ELSEWHERE = ("prompt", "ImageUrl.url")
"""Their lengths follow from `limits.prompt_chars`, and from an image's size."""


def test_every_string_that_is_sent_has_a_most_length(server: Served) -> None:
    document = server.app.state.description

    def free(schema: dict[str, Any], at: str) -> Iterator[str]:
        """Where a schema takes a string of any length."""
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            yield from free(document["components"]["schemas"][name], f"{at}:{name}")
        for one in (*schema.get("anyOf", ()), *schema.get("allOf", ())):
            yield from free(one, at)
        for name, one in schema.get("properties", {}).items():
            yield from free(one, f"{at}.{name}")
        if "items" in schema:
            yield from free(schema["items"], f"{at}[]")
        bounded = {"maxLength", "enum", "const"} & set(schema)
        if schema.get("type") == "string" and not bounded and schema.get("pattern") != NAME:
            yield at

    found = [
        where
        for path, operations in document["paths"].items()
        for operation in operations.values()
        for kind, content in operation.get("requestBody", {}).get("content", {}).items()
        if kind == "application/json"
        for where in free(content["schema"], path)
        if not where.endswith(ELSEWHERE)
    ]
    assert found == []


@pytest.mark.parametrize("part", ["%00", "%0a", "%ff", "%ed%a0%80", "a%2Fb", "..%2f..", "%25", "'"])
@pytest.mark.parametrize(
    "route", ["models", "policies", "decisions", "datasets", "rewards", "certificates"]
)
def test_odd_characters_in_a_path_find_nothing(admin: httpx.Client, route: str, part: str) -> None:
    answer = admin.get(f"/v1/{route}/{part}")
    assert answer.status_code == 404, answer.text
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("colour=red", None),
        ("limit=1&limit=2", "limit"),
        ("policy=bright&policy=none", "policy"),
        ("policy=", "policy"),
        ("limit", "limit"),
        ("limit=0", "limit"),
        ("limit=x", "limit"),
        ("policy=%00", "policy"),
        ("policy=%ff", None),
        (f"policy={'a' * 5000}", "policy"),
        ("Limit=1", None),
        ("=1", None),
    ],
)
def test_a_parameter_is_known_stands_once_and_says_something(
    admin: httpx.Client, query: str, param: str | None
) -> None:
    answer = admin.get(f"/v1/decisions?{query}")
    refused(answer, 400, "invalid_value", param)
    assert len(answer.content) < 1000


def test_every_route_refuses_a_parameter_that_it_does_not_have(
    server: Served, admin: httpx.Client
) -> None:
    for route in server.app.state.routes:
        (method,) = route.methods
        path = route.path.replace("{", "").replace("}", "")
        answer = admin.request(method, f"{path}?zzz=1")
        if isinstance(route, PageRoute):
            assert answer.status_code in (200, 307, 404), "a page's script reads its parameters"
        else:
            refused(answer, 400, "invalid_value")
            assert "zzz" in answer.json()["error"]["message"]


@pytest.mark.parametrize("host", FOREIGN)
def test_the_metrics_answer_to_no_foreign_host(server: Served, host: str) -> None:
    """A page of another name, rebound to this machine, would read them."""
    for key in (None, "ADMIN_KEY"):
        with client(server, key) as http:
            refused(http.get("/metrics", headers={"Host": host}), 401, "invalid_api_key")
            assert http.get("/metrics").status_code == 200


@pytest.mark.parametrize("host", FOREIGN)
@pytest.mark.parametrize("path", [*PLAIN, *KEYED, "/v1/session", "/pages/style.css"])
def test_without_a_key_nothing_answers_to_a_foreign_host(
    open_server: Served, path: str, host: str
) -> None:
    with client(open_server, None) as http:
        refused(http.get(path, headers={"Host": host}), 401, "invalid_api_key")
        assert http.head(path, headers={"Host": host}).status_code == 401


def test_with_keys_alone_a_monitor_may_use_any_name(server: Served) -> None:
    with client(server, None) as http:
        for path in ("/health/live", "/docs"):
            assert http.get(path, headers={"Host": "winnow.example"}).status_code == 200


def ask(server: Served, head: bytes, body: bytes = b"") -> tuple[int, dict[str, Any]]:
    """The answer to a request of these very bytes: its status, and its error or all of it."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as peer:
        peer.sendall(head + b"\r\n\r\n" + body)
        answer = HTTPResponse(peer)
        answer.begin()
        found = json.loads(answer.read())
        return answer.status, found.get("error", found)


KEY = b"Authorization: Bearer wn-admin-0123456789\r\nConnection: close"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (b"Host: localhost\r\nHost: evil.example", "Host"),
        (b"Host: localhost\r\nHost: localhost", "Host"),
        (b"X: y", "Host"),
        (b"Host: [::", "Host"),
        (b"Host: a b", "Host"),
        (b"Host: key@localhost", "Host"),
        (b"Host: localhost/v1", "Host"),
        (b"Host: localhost:http", "Host"),
        (b"Host: a\xe9", "Host"),
        (b"Host: x\r\nCookie: a=b\r\nCookie: winnow_session=c", "Cookie"),
        (b"Host: x\r\nOrigin: http://x\r\nOrigin: http://evil.example", "Origin"),
        (b"Host: x\r\nSec-Fetch-Site: none\r\nSec-Fetch-Site: cross-site", "Sec-Fetch-Site"),
        (b"Host: x\r\nX-CSRF-Token: a\r\nX-CSRF-Token: b", "X-CSRF-Token"),
    ],
)
@pytest.mark.parametrize("path", [b"/v1/models", b"/health/live", b"/nowhere"])
def test_a_head_says_each_thing_once_and_names_a_host(
    server: Served, path: bytes, fields: bytes, param: str
) -> None:
    head = b"GET %s HTTP/1.1\r\n%s\r\n%s" % (path, fields, KEY)
    status, error = ask(server, head)
    assert (status, error["code"], error["param"]) == (400, "invalid_value", param)


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v1/models HTTP/1.0",
        b"GET /v1/models HTTP/1.0\r\nHost: winnow.example:8000",
        b"GET /v1/models HTTP/1.1\r\nHost:",
        b"GET /v1/models HTTP/1.1\r\nHost: [::1]:8000",
        b"GET /v1/models HTTP/1.1\r\nHost: my_winnow.example.",
    ],
)
def test_http_1_0_needs_no_host_and_any_host_will_do(server: Served, head: bytes) -> None:
    status, found = ask(server, head + b"\r\n" + KEY)
    assert (status, found["object"]) == (200, "list")


@pytest.mark.parametrize("first", [b"application/json", b"text/plain"])
def test_a_body_has_one_media_type(server: Served, first: bytes) -> None:
    head = b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n"
    kinds = b"Content-Type: %s\r\nContent-Type: application/json\r\n" % first
    status, error = ask(server, head + kinds + KEY, b'{"seed": 1}')
    assert (status, error["code"], error["param"]) == (400, "invalid_value", "Content-Type")


@pytest.mark.parametrize("coding", [b"gzip, chunked", b"gzip,chunked", b"deflate, chunked"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("path", [b"/v1/images/generations", b"/v1/datasets/some/import"])
def test_a_transfer_coding_that_is_not_read_is_415(
    server: Served, path: bytes, packed: bool, coding: bytes
) -> None:
    body = gzip.compress(b'{"seed": 1}') if packed else b'{"seed": 1}'
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" % path
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    status, error = ask(server, head + b"Transfer-Encoding: " + coding + b"\r\n" + KEY, chunks)
    assert (status, error["code"]) == (415, "unsupported_media_type")
    assert error["param"] == "Transfer-Encoding"
    assert coding.decode() in error["message"]


def test_two_keys_are_none(server: Served) -> None:
    keys = [("Authorization", "Bearer wn-plain-0123456789"), ("Authorization", "Bearer x")]
    with client(server, None) as http:
        answer = http.get("/v1/models", headers=keys)
    refused(answer, 401, "invalid_api_key")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("cookie", ["", "x", "a.b", "W10.", '"', "\xe9.\xe9"])
@pytest.mark.parametrize("path", [*KEYED, "/v1/session"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_cookie_that_is_not_ours_is_refused_on_get_too(
    open_server: Served, method: str, path: str, cookie: str
) -> None:
    headers = [(b"Cookie", f"{COOKIE}={cookie}".encode("latin-1"))]
    with client(open_server, None) as http:
        answer = http.request(method, path, headers=headers)
    assert answer.status_code == 401
    # Where a page asks who it is, the browser forgets the cookie, so that it may enter anew.
    forgotten = "Max-Age=0" in answer.headers.get("set-cookie", "")
    assert forgotten == (path == "/v1/session")


def test_a_page_whose_session_is_gone_does_not_go_on_as_nobody(open_server: Served) -> None:
    with client(open_server, None) as http:
        body = {"name": "gone", "question": "Is it dark?"}
        assert http.post("/v1/datasets", json=body).status_code == 201
        answer = http.post("/v1/datasets", json=body, headers={"X-CSRF-Token": "of-before"})
        refused(answer, 401, "invalid_api_key")


@pytest.mark.parametrize("header", ["Range", "If-None-Match", "If-Modified-Since", "Accept", "TE"])
def test_headers_that_ask_for_another_form_get_the_whole(admin: httpx.Client, header: str) -> None:
    for path in ("/v1/models", "/docs", "/pages/style.css", "/openapi.json"):
        for value in ("bytes=0-1", "*", "nonsense", "application/xml"):
            answer = admin.get(path, headers={header: value})
            assert (answer.status_code, answer.content) == (200, admin.get(path).content)


def test_every_route_knows_its_caller_or_says_that_it_is_open(server: Served) -> None:
    routes = server.app.state.routes
    assert all(isinstance(route, Route) for route in routes)
    public = {route.path for route in routes if isinstance(route, OpenRoute)}
    assert not {path for path in public if path.startswith("/v1/")} - {"/v1/session"}


def test_too_slow_is_408_and_not_to_be_tried_again() -> None:
    from service.http.error_envelope import response

    answer = response(RequestTimeout("the body took longer than 10 s"))
    assert (answer.status_code, answer.headers["x-should-retry"]) == (408, "false")
    assert b'"code":"request_timeout"' in answer.body
    assert issubclass(RequestTimeout, WinnowError)
