"""The end of a listener: whoever has come is answered, and none is reset."""

from __future__ import annotations

import asyncio
import resource
import socket

import pytest

from service.config import Limits
from service.http.listener import Listener
from tests.processes import free_port
from tests.service.http.listening import Talk, echo, parsed

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def _begun() -> tuple[Listener, int]:
    port = free_port()
    listener = Listener(echo, "127.0.0.1", port, Limits(), 60.0)
    await listener.start()
    return listener, port


def test_those_that_nobody_has_accepted_yet_are_answered() -> None:
    async def scenario() -> None:
        listener, port = await _begun()
        # Nothing is awaited before the end: the kernel alone has taken these.
        waiting = [socket.create_connection(("127.0.0.1", port)) for _ in range(5)]
        for one in waiting:
            one.sendall(GET)
        await listener.close()
        for one in waiting:
            one.settimeout(60)
            assert parsed(one.recv(4096))[0] == 200
            assert one.recv(1) == b"", "closed, not reset"
            one.close()

    asyncio.run(scenario())


def test_a_request_that_is_on_its_way_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.http.connection.LAST_S", 60.0)

    async def scenario() -> None:
        listener, port = await _begun()
        silent = await Talk.to(("127.0.0.1", port))
        half = await Talk.to(("127.0.0.1", port), GET[:9])
        closing = asyncio.ensure_future(listener.close())
        # Long enough for uvicorn to have ended what it takes to be idle.
        await asyncio.sleep(0.5)
        silent.writer.write(GET)
        half.writer.write(GET[9:])
        for talk in (silent, half):
            status, headers, _ = parsed(await talk.all())
            assert (status, headers["connection"]) == (200, "close")
        await closing

    asyncio.run(scenario())


def test_a_kept_connection_that_asks_again_meanwhile_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.http.connection.LAST_S", 60.0)

    async def scenario() -> None:
        listener, port = await _begun()
        kept = await Talk.to(("127.0.0.1", port), GET)
        await kept.reader.readuntil(b"\r\n\r\n0")
        closing = asyncio.ensure_future(listener.close())
        await asyncio.sleep(0.5)
        kept.writer.write(GET)
        status, headers, _ = parsed(await kept.all())
        assert (status, headers["connection"]) == (200, "close")
        await closing

    asyncio.run(scenario())


def test_a_listener_without_descriptors_ends_all_the_same() -> None:
    async def scenario() -> None:
        listener, port = await _begun()
        waiting = socket.create_connection(("127.0.0.1", port))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (waiting.fileno() + 1, hard))
        try:
            await asyncio.wait_for(listener.close(), 60)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        waiting.close()

    asyncio.run(scenario())


def test_who_asks_nothing_keeps_nobody_up() -> None:
    async def scenario() -> None:
        listener, port = await _begun()
        talk = await Talk.to(("127.0.0.1", port))
        await asyncio.wait_for(listener.close(), 60)
        assert await talk.all() == b""
        await listener.close()

    asyncio.run(scenario())
