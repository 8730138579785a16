"""The real listener around an app that a test writes, and raw sockets to talk to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from service.config import Limits
from service.http.listener import Listener
from tests.processes import free_port


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the size of the body, once it is whole."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    body = str(size).encode()
    await send({"type": "http.response.start", "status": 200, "headers": _plain(body)})
    await send({"type": "http.response.body", "body": body})


def _plain(body: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"content-length", str(len(body)).encode())]


@asynccontextmanager
async def listening(app: ASGIApp = echo, **limits: Any) -> AsyncGenerator[tuple[str, int], None]:
    """Host and port of a listener; the limits are short ones unless a test says otherwise."""
    port = free_port()
    short: dict[str, Any] = {"head_s": 0.3, "body_s": 0.3} | limits
    listener = Listener(app, "127.0.0.1", port, Limits(**short), 60.0)
    await listener.start()
    try:
        yield "127.0.0.1", port
    finally:
        await asyncio.wait_for(listener.close(), 60)


class Talk:
    """A raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, place: tuple[str, int], *said: bytes) -> Talk:
        """Connect, and say something."""
        talk = cls(*await asyncio.open_connection(*place))
        for one in said:
            talk.writer.write(one)
            await talk.writer.drain()
        return talk

    async def all(self) -> bytes:
        """What the server says until it closes the connection."""
        async with asyncio.timeout(60):
            found = await self.reader.read()
        self.writer.close()
        return found


def parsed(answer: bytes) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON of a whole answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    assert int(headers["content-length"]) == len(body)
    return int(first.split()[1]), headers, json.loads(body)
