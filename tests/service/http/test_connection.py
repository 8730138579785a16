"""Slow, greedy and broken clients, on real sockets: each is refused in JSON, and stops nobody."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from service.http.connection import HEAD_BYTES
from tests.service.http.listening import Talk, echo, listening, parsed

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
SLICE, LARGE = 2**18, 2**25
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"


@pytest.mark.parametrize(
    ("said", "what"),
    [
        (b"G", "head"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n", "head"),
        (POST, "body"),
        (POST + b"12345", "body"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n123", "body"),
    ],
)
def test_what_comes_too_slowly_is_a_408_in_json(said: bytes, what: str) -> None:
    async def scenario() -> None:
        async with listening() as place:
            talk = await Talk.to(place, said)
            status, headers, body = parsed(await talk.all())
            assert (status, headers["x-should-retry"]) == (408, "false")
            assert headers["connection"] == "close"
            assert headers["x-request-id"]
            assert body["error"]["code"] == "request_timeout"
            assert what in body["error"]["message"]

    asyncio.run(scenario())


def test_a_large_body_may_take_longer() -> None:
    size = 16 * 2**20

    async def scenario() -> None:
        async with listening() as place:
            head = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
            talk = await Talk.to(place, head % size, bytes(size - 1))
            await asyncio.sleep(1.0)
            talk.writer.write(b"x")
            assert parsed(await talk.all())[::2] == (200, size)

    asyncio.run(scenario())


def test_who_has_an_answer_may_not_go_on_sending_for_ever() -> None:
    """However fast: the answer to a body that nobody wants is there before its end."""

    async def refuses(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await echo(scope, receive, send)
            return
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": b"{}"})

    async def scenario() -> None:
        async with listening(refuses) as place:
            head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n"
            talk = await Talk.to(place, head)
            answer = asyncio.ensure_future(talk.all())
            async with asyncio.timeout(60):
                while not answer.done():
                    talk.writer.write(bytes(2**20))
                    await asyncio.sleep(0.1)
            with suppress(ConnectionResetError):
                assert (await answer).startswith(b"HTTP/1.1 401")

    asyncio.run(scenario())


@pytest.mark.parametrize("fields", [1, 400])
@pytest.mark.parametrize("end", [b"\r\n", b"Content-Length: 2\r\n\r\n{}"])
def test_a_head_is_too_large_however_it_comes(fields: int, end: bytes) -> None:
    async def scenario() -> None:
        async with listening() as place:
            value = b"a" * (HEAD_BYTES // fields)
            lines = b"".join(b"X-%d: %b\r\n" % (number, value) for number in range(fields))
            talk = await Talk.to(place, b"POST / HTTP/1.1\r\nHost: x\r\n" + lines + end)
            status, _, body = parsed(await talk.all())
            assert (status, body["error"]["code"]) == (431, "head_too_large")

    asyncio.run(scenario())


def test_a_byte_now_and_then_buys_no_more_time() -> None:
    async def scenario() -> None:
        async with listening() as place:
            talk = await Talk.to(place, b"GET / HTTP/1.1\r\nX-Slow: ")
            answer = asyncio.ensure_future(talk.all())
            while not answer.done():
                talk.writer.write(b"a")
                await asyncio.sleep(0.02)
            assert parsed(await answer)[0] == 408

    asyncio.run(scenario())


def test_who_says_nothing_is_closed_without_an_answer() -> None:
    async def scenario() -> None:
        async with listening() as place:
            assert await (await Talk.to(place)).all() == b""

    asyncio.run(scenario())


def test_an_answer_may_take_longer_than_the_request_did() -> None:
    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await asyncio.sleep(1.0)
        await echo(scope, receive, send)

    async def scenario() -> None:
        async with listening(slow) as place:
            talk = await Talk.to(place, GET.replace(b"Host", b"Connection: close\r\nHost"))
            assert (await talk.all()).startswith(b"HTTP/1.1 200")

    asyncio.run(scenario())


def test_who_never_reads_the_answer_is_let_go() -> None:
    async def large(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await echo(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            for _ in range(1000):
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        finally:
            ended.set()

    ended = asyncio.Event()

    async def scenario() -> None:
        async with listening(large) as place:
            talk = await Talk.to(place, GET)
            await asyncio.wait_for(ended.wait(), 60)
            talk.writer.close()

    asyncio.run(scenario())


def _answers(size: int, ended: asyncio.Event) -> ASGIApp:
    """An app whose answers have `size` bytes, sent in slices."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await echo(scope, receive, send)
            return
        headers = [(b"content-length", str(size).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for begin in range(0, size, SLICE):
            part = {"body": bytes(SLICE), "more_body": begin + SLICE < size}
            await send({"type": "http.response.body", **part})
        ended.set()

    return app


def test_a_whole_answer_has_one_time_however_steadily_its_client_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Else a second for each MiB: this answer would have half a minute.
    monkeypatch.setattr("service.http.connection.BODY_RATE", 2**27)
    ended = asyncio.Event()

    async def scenario() -> None:
        async with listening(_answers(LARGE, ended), body_s=0.5) as place:
            talk, size = await Talk.to(place, GET), 0
            with suppress(ConnectionError):
                while piece := await talk.reader.read(SLICE):
                    size += len(piece)
                    await asyncio.sleep(0.02)
            assert 0 < size < LARGE, "it was read to its end"
            await asyncio.wait_for(ended.wait(), 60)
            talk.writer.close()

    asyncio.run(scenario())


def test_who_has_read_a_large_answer_in_time_may_ask_again_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.http.connection.BODY_RATE", 2**27)

    async def scenario() -> None:
        async with listening(_answers(LARGE, asyncio.Event()), body_s=2, head_s=60) as place:
            talk = await Talk.to(place)
            for _ in range(2):
                talk.writer.write(GET)
                await talk.reader.readuntil(b"\r\n\r\n")
                await talk.reader.readexactly(LARGE)
                await asyncio.sleep(2.5)
            talk.writer.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "said",
    [
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nBad Header: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: ten\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_is_no_http_is_a_400_in_json(said: bytes) -> None:
    async def scenario() -> None:
        async with listening() as place:
            status, _, body = parsed(await (await Talk.to(place, said)).all())
            assert (status, body["error"]["code"]) == (400, "invalid_http")

    asyncio.run(scenario())


def test_a_head_without_end_is_refused() -> None:
    async def scenario() -> None:
        async with listening(head_s=60) as place:
            talk = await Talk.to(place, b"GET / HTTP/1.1\r\n")
            answer = asyncio.ensure_future(talk.all())
            while not answer.done():
                talk.writer.write(b"X-More: " + b"a" * 8000 + b"\r\n")
                await asyncio.sleep(0.001)
            assert parsed(await answer)[2]["error"]["code"] == "head_too_large"

    asyncio.run(scenario())


def test_one_address_has_so_many_connections_and_others_have_theirs() -> None:
    async def scenario() -> None:
        async with listening(connections_per_peer=3, head_s=60) as (host, port):
            held = [await Talk.to((host, port), b"G") for _ in range(3)]
            status, headers, body = parsed(await (await Talk.to((host, port), GET)).all())
            assert (status, body["error"]["code"]) == (429, "overloaded")
            assert int(headers["retry-after"]) >= 1
            other = Talk(*await asyncio.open_connection(host, port, local_addr=("127.0.0.2", 0)))
            other.writer.write(GET)
            assert (await other.reader.readline()).startswith(b"HTTP/1.1 200")
            held[0].writer.close()
            async with asyncio.timeout(60):
                while True:
                    again = await Talk.to((host, port), GET)
                    if (await again.reader.readline()).startswith(b"HTTP/1.1 200"):
                        break
            for talk in (other, again, *held):
                talk.writer.close()

    asyncio.run(scenario())


def test_three_hundred_half_bodies_hold_up_nobody() -> None:
    async def scenario() -> None:
        async with listening(body_s=60) as place:
            held = [await Talk.to(place, POST + b"1") for _ in range(300)]
            talk = await Talk.to(place, GET)
            assert (await talk.reader.readline()).startswith(b"HTTP/1.1 200")
            for one in (talk, *held):
                one.writer.close()

    asyncio.run(scenario())


def test_a_request_knows_when_its_first_byte_came() -> None:
    seen: list[float] = []

    async def noted(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            seen.append(time.monotonic() - scope["state"]["received"])
        await echo(scope, receive, send)

    async def scenario() -> None:
        async with listening(noted, head_s=60) as place:
            talk = await Talk.to(place, GET[:5])
            await asyncio.sleep(0.5)
            talk.writer.write(GET[5:])
            await talk.reader.readline()
            # A second one on the same connection counts from its own first byte.
            await asyncio.sleep(0.5)
            talk.writer.write(GET)
            await talk.reader.readuntil(b"HTTP/1.1 200")
            talk.writer.close()

    asyncio.run(scenario())
    assert seen[0] >= 0.5
    assert seen[1] < seen[0]


def test_an_empty_line_buys_no_time() -> None:
    async def scenario() -> None:
        async with listening() as place:
            talk = await Talk.to(place, GET)
            await talk.reader.readuntil(b"\r\n\r\n")
            talk.writer.write(b"\r\n")
            assert b"HTTP" not in await talk.all()

    asyncio.run(scenario())


def test_a_request_before_the_answer_to_the_last_ends_the_connection_and_hides_no_leaving() -> None:
    left = asyncio.Event()

    async def held(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await echo(scope, receive, send)
            return
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()

    async def scenario() -> None:
        async with listening(held, head_s=60) as place:
            talk = await Talk.to(place, GET + GET)
            talk.writer.write(GET)
            await talk.writer.drain()
            talk.writer.close()
            await asyncio.wait_for(left.wait(), 60)
        async with listening() as place:
            answers = await (await Talk.to(place, GET + GET + GET)).all()
            assert answers.count(b"HTTP/1.1") == 1

    asyncio.run(scenario())


def test_a_request_that_has_its_answer_gets_no_other() -> None:
    async def early(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await echo(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 413, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def scenario() -> None:
        async with listening(early) as place:
            answers = await (await Talk.to(place, POST + b"1")).all()
            assert answers.count(b"HTTP/1.1") == 1

    asyncio.run(scenario())
