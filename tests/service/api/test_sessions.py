"""Cookies and where requests come from: no foreign page may act for whoever is here."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from models.bundles.bundle import Bundle
from service.api import sessions
from service.api.web.pages import FOLDER
from tests.service.api.conftest import client, refused
from tests.service.api.server import AUTH, KEYS, Served, serve

FOREIGN = {"Origin": "http://evil.example"}


@pytest.fixture
def browser(server: Served) -> Iterator[httpx.Client]:
    """A browser: it keeps cookies, and sends no key."""
    with client(server, None) as opened:
        yield opened


def _enter(http: httpx.Client, name: str = "Ada", key: str | None = "LABEL_KEY") -> dict[str, str]:
    """The header that a page sends with what changes something."""
    body = {"name": name} | ({"key": KEYS[key]} if key else {})
    answer = http.post("/v1/session", json=body)
    assert answer.status_code == 200, answer.text
    return {"X-CSRF-Token": answer.json()["csrf"]}


def _make(http: httpx.Client, name: str, **headers: str) -> httpx.Response:
    body = {"name": name, "question": "Is it dark?"}
    return http.post("/v1/datasets", json=body, headers=headers)


def test_a_session_does_what_its_key_may(server: Served, browser: httpx.Client) -> None:
    refused(browser.get("/v1/datasets"), 401, "invalid_api_key")
    csrf = _enter(browser)
    assert browser.get("/v1/datasets").status_code == 200
    made = _make(browser, "by-cookie", **csrf)
    assert made.json()["created_by"] == "label/Ada"
    refused(
        browser.post("/v1/images/generations", json={}, headers=csrf), 403, "policy_not_allowed"
    )
    who = browser.get("/v1/session").json()
    assert (who["name"], who["scopes"]) == ("Ada", ["label"])
    assert who["csrf"] == csrf["X-CSRF-Token"]


def test_the_cookie_is_out_of_reach_and_holds_no_key(browser: httpx.Client) -> None:
    answer = browser.post("/v1/session", json={"name": "Ada", "key": KEYS["LABEL_KEY"]})
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Secure" not in cookie, "plain http here"
    assert KEYS["LABEL_KEY"] not in cookie
    tls = browser.post(
        "/v1/session",
        json={"name": "Ada", "key": KEYS["LABEL_KEY"]},
        headers={"X-Forwarded-Proto": "https"},
    )
    assert "Secure" in tls.headers["set-cookie"]


@pytest.mark.parametrize("token", [None, "", "wrong", "x" * 43, "é"])
def test_what_changes_something_needs_the_token(browser: httpx.Client, token: str | None) -> None:
    _enter(browser)
    headers = {} if token is None else {"X-CSRF-Token": token.encode()}
    body = {"name": "no-token", "question": "Is it dark?"}
    answer = browser.post("/v1/datasets", json=body, headers=headers)  # type: ignore[arg-type]
    refused(answer, 403, "origin_refused")
    refused(browser.delete("/v1/session", headers=headers), 403, "origin_refused")  # type: ignore[arg-type]


def test_another_sessions_token_is_no_good(server: Served, browser: httpx.Client) -> None:
    _enter(browser)
    with client(server, None) as other:
        theirs = _enter(other, "Bob")
    refused(_make(browser, "stolen", **theirs), 403, "origin_refused")


@pytest.mark.parametrize("headers", [FOREIGN, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}])
def test_a_foreign_page_cannot_use_a_session_or_open_one(
    browser: httpx.Client, headers: dict[str, str]
) -> None:
    csrf = _enter(browser)
    refused(_make(browser, "foreign", **csrf, **headers), 403, "origin_refused")
    body = {"name": "Eve", "key": KEYS["LABEL_KEY"]}
    answer = browser.post("/v1/session", json=body, headers=headers)
    refused(answer, 403, "origin_refused")


def test_our_own_page_may(server: Served, browser: httpx.Client) -> None:
    csrf = _enter(browser)
    own = {"Origin": server.url, "Sec-Fetch-Site": "same-origin"}
    assert _make(browser, "own-page", **csrf, **own).status_code == 201


def test_a_key_needs_no_origin(server: Served) -> None:
    with client(server, "LABEL_KEY") as http:
        assert _make(http, "with-a-key", **FOREIGN).status_code == 201


def _cookie(http: httpx.Client) -> str:
    found = http.cookies.get(sessions.COOKIE)
    assert found
    return found


@pytest.mark.parametrize("change", ["cut", "payload", "signature", "empty"])
def test_a_forged_cookie_is_nobody(browser: httpx.Client, change: str) -> None:
    _enter(browser)
    payload, signature = _cookie(browser).split(".")
    forged = {
        "cut": payload,
        "payload": f"{payload[:-2]}AA.{signature}",
        "signature": f"{payload}.{signature[::-1]}",
        "empty": ".",
    }[change]
    answer = browser.get("/v1/datasets", headers={"Cookie": f"{sessions.COOKIE}={forged}"})
    refused(answer, 401, "invalid_api_key")


def test_a_session_ends(browser: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    _enter(browser)
    headers = {"Cookie": f"{sessions.COOKIE}={_cookie(browser)}"}
    assert browser.get("/v1/datasets", headers=headers).status_code == 200
    later = time.time() + 13 * 3600
    monkeypatch.setattr("service.api.sessions.time.time", lambda: later)
    refused(browser.get("/v1/datasets", headers=headers), 401, "invalid_api_key")


def test_leaving_forgets_the_cookie(browser: httpx.Client) -> None:
    csrf = _enter(browser)
    assert browser.delete("/v1/session", headers=csrf).status_code == 200
    refused(browser.get("/v1/datasets"), 401, "invalid_api_key")


@pytest.mark.parametrize("name", ["", " ", "a/b", "<b>", "a" * 41, "a\nb\x00", "-x"])
def test_a_name_that_is_none_is_refused(browser: httpx.Client, name: str) -> None:
    body = {"name": name, "key": KEYS["LABEL_KEY"]}
    refused(browser.post("/v1/session", json=body), 400, "invalid_value", "name")


def test_a_wrong_key_opens_nothing(browser: httpx.Client) -> None:
    refused(
        browser.post("/v1/session", json={"name": "Ada", "key": "wn-wrong-0123456789"}),
        401,
        "invalid_api_key",
    )
    refused(browser.post("/v1/session", json={"name": "Ada"}), 401, "invalid_api_key")


def test_two_names_on_one_key_are_two_people(server: Served, browser: httpx.Client) -> None:
    ada = _enter(browser)
    _make(browser, "for-two", **ada)
    url = "/v1/datasets/for-two/batches"
    with client(server, None) as other:
        bob = _enter(other, "Bob")
        first = browser.post(url, json={"size": 2}, headers=ada).json()
        second = other.post(url, json={"size": 2}, headers=bob).json()
    assert first["id"] != second["id"]


@pytest.fixture(scope="module")
def open_server(bundle: Bundle) -> Iterator[Served]:
    """A server on loopback that asks nobody for a key."""
    auth: dict[str, Any] = AUTH | {"anonymous": True, "anonymous_scopes": ["generate", "label"]}
    with serve(bundle, auth=auth) as served:
        yield served


@pytest.fixture
def visitor(open_server: Served) -> Iterator[httpx.Client]:
    with client(open_server, None) as opened:
        yield opened


def test_a_visitor_needs_a_name_and_no_key(visitor: httpx.Client) -> None:
    assert visitor.get("/v1/session").json() == {
        "name": None, "scopes": ["generate", "label"], "csrf": None
    }  # fmt: skip
    csrf = _enter(visitor, key=None)
    assert _make(visitor, "visited", **csrf).json()["created_by"] == "anonymous/Ada"
    refused(_make(visitor, "visited-2"), 403, "origin_refused")
    refused(
        visitor.post("/v1/session", json={"name": "Ada", "key": "wn-mistyped-0123"}),
        401,
        "invalid_api_key",
    )


def test_a_session_that_has_ended_is_not_taken_for_a_visitor(visitor: httpx.Client) -> None:
    """Or labels of Ada's would be those of anonymous/api."""
    ended = {"Cookie": f"{sessions.COOKIE}=ended.signature"}
    refused(_make(visitor, "ended", **ended), 401, "invalid_api_key")
    refused(visitor.get("/v1/datasets", headers=ended), 401, "invalid_api_key")
    bearer = {"Authorization": "Bearer any-at-all"}
    assert _make(visitor, "with-a-bearer", **ended, **bearer).status_code == 201


def test_a_visitor_from_a_foreign_page_is_refused(visitor: httpx.Client) -> None:
    assert _make(visitor, "curl").status_code == 201
    refused(_make(visitor, "foreign-2", **FOREIGN), 403, "origin_refused")
    answer = visitor.post("/v1/images/generations", json={}, headers=FOREIGN)
    refused(answer, 403, "origin_refused")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "10.0.0.1", ""])
def test_a_rebound_name_is_not_this_machine(
    open_server: Served, visitor: httpx.Client, host: str
) -> None:
    rebound = {"Host": host, "Origin": f"http://{host}"}
    for method, path in (("GET", "/v1/datasets"), ("POST", "/v1/images/generations")):
        answer = visitor.request(method, path, headers=rebound, json={})
        refused(answer, 401, "invalid_api_key")
    refused(
        visitor.post("/v1/session", json={"name": "Eve"}, headers=rebound), 401, "invalid_api_key"
    )
    with client(open_server, "LABEL_KEY") as keyed:
        assert keyed.get("/v1/datasets", headers={"Host": host}).status_code in (200, 400)


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1", "[::1]:8000"])
def test_names_of_this_machine(visitor: httpx.Client, host: str) -> None:
    assert visitor.get("/v1/datasets", headers={"Host": host}).status_code == 200


def test_pages_are_whole_and_speak_to_nobody_else(browser: httpx.Client) -> None:
    for path in ("/feedback", "/feedback/rewards", "/policies", "/certificates", "/decisions"):
        answer = browser.get(path)
        assert answer.headers["content-type"].startswith("text/html")
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
    for file in FOLDER.iterdir():
        text = file.read_text()
        if file.suffix in (".css", ".js"):
            assert browser.get(f"/pages/{file.name}").text == text
        bare = text.replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in bare, file.name
        assert "https://" not in bare, file.name
        assert "innerHTML" not in text, file.name
        assert " style=" not in text, file.name
        assert "onclick=" not in text.replace("onclick: ", ""), file.name


@pytest.mark.parametrize("name", ["none.css", "feedback.html", "..%2fapp.py", "%2e%2e%2fapp.py"])
def test_other_files_are_not_served(browser: httpx.Client, name: str) -> None:
    refused(browser.get(f"/pages/{name}"), 404, "not_found")
