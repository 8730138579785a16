"""The console against services that are wrongly addressed, broken, or not Winnow at all."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli import client
from service.cli.main import app

KEY = "a-key-that-must-not-be-repeated"


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name in ("WINNOW_URL", "WINNOW_KEY"):
        monkeypatch.delenv(name, raising=False)


@contextmanager
def _answering(data: bytes) -> Iterator[str]:
    """A server that sends these bytes to whoever connects and asks, and closes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    peer, _ = server.accept()
                except OSError:
                    return
                with peer:
                    try:
                        peer.recv(65536)
                        peer.sendall(data)
                    except OSError:
                        pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


def _refused(*arguments: str) -> str:
    answer = CliRunner().invoke(app, arguments)
    assert isinstance(answer.exception, SystemExit), answer.exception
    assert (answer.exit_code, answer.output.count("\n")) == (1, 1), answer.output
    assert KEY not in answer.output
    return answer.output


def _http(body: bytes, head: str = "200 OK", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return f"HTTP/1.1 {head}\r\nContent-Length: {size}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (
            "http://127.0.0.1:8000/v1",
            "without /v1, which the commands put in themselves: http://127",
        ),
        ("http://127.0.0.1:8000/v1/", "without /v1"),
        ("http://h/V1", "themselves: http://h\n"),
        ("http://h/w/V1/Models", "themselves: http://h/w\n"),
        ("https://h/winnow/v1", "themselves: https://h/winnow\n"),
        ("http://h/v1/images/generations", "themselves: http://h\n"),
        ("127.0.0.1:8000", "begins with http:// or https://"),
        ("localhost:8000", "begins with http:// or https://"),
        ("localhost", "begins with http:// or https://"),
        ("//h", "begins with http:// or https://"),
        ("http://", "begins with http:// or https://"),
        ("http:///v", "and a host"),
        ("ftp://h", "begins with http:// or https://"),
        ("http://h:http", "is no URL"),
        ("http://h:99999", "is no URL"),
        ("http://h:0", "is no URL"),
        ("http://[::1", "is no URL"),
        (f"http://user:{KEY}@h", "leave the user and password out"),
        ("http://h?x=1", "before its ?"),
        ("http://h#x", "before its ?"),
        ("http://h a", "visible ASCII"),
        ("http://h\n", "visible ASCII"),
        ("http://хост", "visible ASCII"),
        (" ", "visible ASCII"),
    ],
)
def test_a_url_that_is_none_of_a_service_is_a_line(
    url: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert says in _refused("policies", "list", "--url", url)
    monkeypatch.setenv("WINNOW_URL", url)
    said = _refused("policies", "list")
    assert says in said
    assert said.startswith("WINNOW_URL: ")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("http://h:8000///", "http://h:8000"),
        ("HTTP://H", "HTTP://H"),
        ("https://h/winnow/", "https://h/winnow"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_slashes_at_the_end_and_a_prefix_are_fine(given: str, found: str) -> None:
    assert client.base(given) == found


@pytest.mark.parametrize(
    "key", ["ключ", "schlüssel", f"{KEY}\n", f" {KEY}", f"{KEY}\x7f", "\u2028"]
)
def test_a_key_that_no_header_carries_is_a_line(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINNOW_KEY", key)
    assert "WINNOW_KEY must be visible ASCII" in _refused("policies", "list")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (_http(b"<html>hello</html>"), "did not answer with JSON"),
        (_http(b"\xff\xfe"), "did not answer with JSON"),
        (_http(b"[" * 100_000), "did not answer with JSON"),
        (_http(b"[1]"), "did not answer with a JSON object"),
        (_http(b"{}"), "has no 'data'"),
        (_http(b'{"data": [{}]}'), "has no 'default'"),
        (_http(b"{", length=1000), "broke off"),
        (b"", "broke off"),
        (b"SSH-2.0-OpenSSH_9\r\n", "broke off"),
        (_http(b"no", "502 Bad Gateway"), "answered 502"),
        (_http(b"no", "502 Bad Gateway", length=1000), "broke off"),
        (_http(b'{"error": "no"}', "404 Not Found"), "answered 404"),
        (_http(b"[]", "500 Oh"), "answered 500"),
        (_http(b"", "302 Found\r\nLocation: https://h/x"), "points to 'https://h/x'"),
    ],
)
def test_what_is_not_winnow_is_a_line(data: bytes, says: str) -> None:
    with _answering(data) as url:
        assert says in _refused("policies", "list", "--url", url)


def test_nobody_there_is_a_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert "Connection refused" in _refused("policies", "list", "--url", f"http://127.0.0.1:{port}")


def test_tls_that_is_none_is_a_line() -> None:
    with _answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as url:
        said = _refused("policies", "list", "--url", url.replace("http:", "https:"))
    assert "TLS failed" in said


def test_an_answer_that_never_comes_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert "did not answer within" in _refused("policies", "list", "--url", url)


@pytest.mark.parametrize(
    ("proxy", "says"),
    [
        ("http://127.0.0.1:1", "through the proxy of http_proxy"),
        (f"http://user:{KEY}@127.0.0.1:1", "through the proxy of http_proxy"),
        ("nonsense://127.0.0.1", "through the proxy of http_proxy"),
        (f"http://user:{KEY}@h:port", "through the proxy of http_proxy"),
        ("http:", "through the proxy of http_proxy"),
    ],
)
def test_a_proxy_that_does_not_answer_is_named(
    proxy: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    assert says in _refused("policies", "list", "--url", "http://winnow.invalid")


def test_no_proxy_stands_between_a_machine_and_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with _answering(_http(b'{"data": []}')) as url:
        answer = CliRunner().invoke(app, ["policies", "list", "--url", url])
    assert answer.exit_code == 0, answer.output


@pytest.mark.parametrize(
    "arguments",
    [
        ("datasets", "import", "x", "FOLDER", "--format", "jsonl"),
        ("datasets", "import", "x", "BINARY", "--format", "jsonl"),
        ("datasets", "export", "x", "--to", "FOLDER/none/x.csv"),
        ("certify", "verify", "BINARY"),
        ("certify", "p", "--epsilon", "0.1", "--delta", "0.1", "--inputs", "BINARY"),
        ("decisions", "list", "--config", "BINARY"),
        ("decisions", "list", "--url", "nonsense"),
        ("config", "check", "BINARY"),
        ("config", "check", "FOLDER"),
        ("serve", "FOLDER/none.yaml"),
        ("bundle", "show", "FOLDER"),
    ],
    ids=" ".join,
)
def test_a_file_that_cannot_be_read_is_a_line(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(bytes(range(256)))
    with _answering(_http(b"{}")) as url:
        monkeypatch.setenv("WINNOW_URL", url)
        given = [
            one.replace("BINARY", str(binary)).replace("FOLDER", str(tmp_path)) for one in arguments
        ]
        answer = CliRunner().invoke(app, given)
    assert isinstance(answer.exception, SystemExit), answer.exception
    assert answer.exit_code in (1, 2)


def test_the_version_is_said() -> None:
    answer = CliRunner().invoke(app, ["--version"])
    assert (answer.exit_code, answer.output) == (0, f"winnow {version('winnow-serve')}\n")


@pytest.mark.parametrize("where", [">/dev/full", "| true", ">&-"])
def test_an_output_that_takes_nothing_is_no_traceback(where: str) -> None:
    command = f"{sys.executable} -c 'from service.cli.main import app; app()' --version {where}"
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in found.stderr
