"""Clients that no HTTP library would be: slow ones, and those that hang up."""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from loadtest.scenarios import PATH

TIMEOUT_S = 60.0
Answer = tuple[int, dict[str, str], bytes]


def read_slowly(
    host: str, body: Mapping[str, Any], headers: Mapping[str, str], pause_s: float = 0.003
) -> Answer:
    """Send a request a few bytes at a time and read its answer a byte at a time."""
    with _connected(host) as connection:
        request = _request(host, body, headers)
        for start in range(0, len(request), 16):
            connection.sendall(request[start : start + 16])
            time.sleep(pause_s)
        read = bytearray()
        while byte := connection.recv(1):
            read += byte
            time.sleep(pause_s)
    head, _, rest = bytes(read).partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    status = int(first.split()[1]) if first else 0
    return status, dict(line.split(": ", 1) for line in lines), rest


def hang_up(host: str, body: Mapping[str, Any], headers: Mapping[str, str], after_s: float) -> None:
    """Send a request, and close the connection so many seconds later."""
    with _connected(host) as connection:
        connection.sendall(_request(host, body, headers))
        time.sleep(after_s)


def _request(host: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> bytes:
    content = json.dumps(body).encode()
    lines = {
        "Host": urlsplit(host).netloc,
        "Content-Type": "application/json",
        "Content-Length": str(len(content)),
        "Connection": "close",
    } | dict(headers)
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {PATH} HTTP/1.1\r\n{head}\r\n".encode() + content


@contextmanager
def _connected(host: str) -> Iterator[socket.socket]:
    url = urlsplit(host)
    secure = url.scheme == "https"
    address = (url.hostname or "127.0.0.1", url.port or (443 if secure else 80))
    with socket.create_connection(address, TIMEOUT_S) as connection:
        # As little as the kernel allows stands between the reader and the service.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        if not secure:
            yield connection
            return
        with ssl.create_default_context().wrap_socket(
            connection, server_hostname=url.hostname
        ) as wrapped:
            yield wrapped
