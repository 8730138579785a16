"""Connections that never finish: what each sends, and when the service closes them."""

from __future__ import annotations

import json
import select
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from loadtest.scenarios import PATH

PEER = "127.0.0.66"
"""The address that they come from."""

_FIRST = (
    f"POST {PATH} HTTP/1.1\r\nHost: winnow\r\nContent-Type: application/json\r\n"
    "Content-Length: 100000\r\n"
).encode()
_HEAD = _FIRST + b"\r\n"
_LARGE = b"GET /openapi.json HTTP/1.1\r\nHost: winnow\r\n\r\n"


@dataclass(frozen=True)
class Manner:
    """What a slow sender sends at once, what it sends a byte of each second, and if it reads."""

    name: str
    at_once: bytes
    slowly: bytes = b""
    reads: bool = True


MANNERS = (
    Manner("nothing at all", b""),
    Manner("half a head", _FIRST),
    Manner("half a body", _HEAD + b'{"n": 1, "po'),
    Manner("a head, a byte a second", b"", _FIRST + b"X-Slow: " + b"x" * 100_000),
    Manner("a body, a byte a second", _HEAD, b" " * 100_000),
    # Answers of a hundred kilobytes fill whatever lies between.
    Manner("never reads", _LARGE * 20, reads=False),
)


@dataclass
class Held:
    """What became of the connections of one manner; seconds since the first."""

    refused: int = 0
    closed: list[float] = field(default_factory=list)
    answers: list[bytes] = field(default_factory=list)


def hold(url: str, manner: Manner, count: int, seconds: float) -> Held:
    """Open the connections from one address, and see which the service closes meanwhile."""
    began = time.monotonic()
    address, opened = _address(url), {}
    for _ in range(count):
        connection = _connected(address, manner.at_once)
        if connection is not None:
            opened[connection.fileno()] = connection
        elif time.monotonic() > began + seconds:
            break
    held, poll, byte = Held(refused=count - len(opened)), select.poll(), 0
    read = dict.fromkeys(opened, b"")
    for number in opened if manner.reads else ():
        poll.register(number, select.POLLIN)

    def close(number: int) -> None:
        held.closed.append(time.monotonic() - began)
        held.answers.append(read[number])
        opened.pop(number).close()

    while opened and time.monotonic() < began + seconds:
        for number, _ in poll.poll(200):
            try:
                got = opened[number].recv(65536)
            except OSError:
                got = b""
            read[number] += got
            if not got:
                poll.unregister(number)
                close(number)
        if time.monotonic() < began + byte:
            continue
        if not manner.reads:
            kept = _kept(address[1])
            for number in [n for n, one in opened.items() if one.getsockname()[1] not in kept]:
                close(number)
        for connection in opened.values():
            # Where it fails, the next poll tells that the connection was closed.
            with suppress(OSError):
                connection.send(manner.slowly[byte : byte + 1])
        byte += 1
    for connection in opened.values():
        connection.close()
    return held


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def _connected(address: tuple[str, int], at_once: bytes) -> socket.socket | None:
    connection = socket.socket()
    # As little as the kernel allows lies between a sender that does not read and the service.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    connection.settimeout(1.0)
    try:
        connection.bind((PEER, 0))
        connection.connect(address)
        connection.setblocking(False)
        connection.send(at_once)
    except OSError:
        connection.close()
        return None
    return connection


def _kept(port: int) -> set[int]:
    """The ports of our address with which a server on this machine keeps a connection.

    Who does not read never learns of a close: it comes after what was not read.
    """
    kept, established = set(), "01"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, *_ = line.split()
        peer = socket.inet_ntoa(bytes.fromhex(remote[:8])[::-1])
        if (int(local[9:], 16), peer, state) == (port, PEER, established):
            kept.add(int(remote[9:], 16))
    return kept


def plain(raw: bytes) -> str:
    """How an answer that the service gave before it closed breaks the contract, if it does."""
    head, _, body = raw.partition(b"\r\n\r\n")
    if not head:
        return ""
    try:
        error = json.loads(body)["error"]
        return "" if {"message", "code"} <= set(error) else "no envelope"
    except (ValueError, KeyError, TypeError):
        return head.split(b"\r\n")[0].decode("latin-1")
