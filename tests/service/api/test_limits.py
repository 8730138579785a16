from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

ROUTE = "/v1/images/generations"
LIMIT = 8192


def _padded(size: int) -> bytes:
    body = b'{"prompt": "", "seed": 0}'
    return body + b" " * (size - len(body))


def _chunks(body: bytes) -> Iterator[bytes]:
    """A body that does not announce its length."""
    for start in range(0, len(body), 1000):
        yield body[start : start + 1000]


@pytest.mark.parametrize("announced", [True, False], ids=["content-length", "chunked"])
def test_a_body_above_the_limit_is_refused(http: httpx.Client, announced: bool) -> None:
    for size, status in [(LIMIT, 200), (LIMIT + 1, 413), (20 * LIMIT, 413)]:
        body = _padded(size)
        response = http.post(
            ROUTE,
            content=body if announced else _chunks(body),
            headers={"Content-Type": "application/json"},
        )
        assert response.status_code == status, response.text
        assert ("content-length" in response.request.headers) == announced
    error = response.json()["error"]
    assert (error["code"], str(LIMIT) in error["message"]) == ("body_too_large", True)
    assert response.headers["x-should-retry"] == "false"
    assert response.headers["X-Request-ID"]


@pytest.mark.parametrize("request_id", ["a", "Trace_1-2", "x" * 64])
def test_a_request_id_is_echoed_on_answers_and_errors(http: httpx.Client, request_id: str) -> None:
    headers = {"X-Request-ID": request_id}
    good = http.post(ROUTE, json={"prompt": "", "seed": 0}, headers=headers)
    bad = http.post(ROUTE, json={"n": "x"}, headers=headers)
    missing = http.get("/nowhere", headers=headers)
    assert [r.headers["X-Request-ID"] for r in (good, bad, missing)] == [request_id] * 3


@pytest.mark.parametrize("request_id", ["x" * 65, "a b", "a/b", "<script>", 'a"b', "é"])
def test_a_bad_request_id_is_refused_and_not_repeated(http: httpx.Client, request_id: str) -> None:
    response = http.get("/v1/models", headers=[(b"X-Request-ID", request_id.encode())])
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "X-Request-ID"
    assert response.headers["X-Request-ID"].isalnum()


def test_a_request_without_an_id_gets_one(http: httpx.Client) -> None:
    first, second = (http.get("/health/live").headers["X-Request-ID"] for _ in range(2))
    assert len(first) == 32
    assert first != second
