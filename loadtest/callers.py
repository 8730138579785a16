"""Callers over HTTP: those who ask again as soon as they are answered, those who come at set times.

One answer is one value, with what became of the connection where there was none.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

import httpx

from loadtest.scenarios import PATH

T = TypeVar("T")
PAUSE_S = 0.1
"""Between a connection that failed and the next try."""


@dataclass(frozen=True)
class Answer:
    """What one request came to, at which moments of `time.monotonic`.

    Status 0 is no answer: `broken` says whether the connection was refused, reset, or nothing came
    in time (`silent`). `said` is the body as JSON; None where it is none.
    """

    seed: int
    sent: float
    done: float
    status: int
    headers: Mapping[str, str]
    said: dict[str, Any] | None
    broken: str = ""

    @property
    def seconds(self) -> float:
        """From the request to the end of its answer."""
        return self.done - self.sent

    @property
    def code(self) -> str:
        """How it ended, in a word: image, blocked, an error's code, or what broke."""
        if self.image is not None:
            return "image"
        if not self.enveloped:
            return self.broken or f"plain {self.status}"
        return str(((self.said or {}).get("error") or {}).get("code") or self.status)

    @property
    def image(self) -> str | None:
        """The first image, in base64."""
        data = (self.said or {}).get("data") or [{}]
        return data[0].get("b64_json") if self.status == 200 else None

    @property
    def enveloped(self) -> bool:
        """Whether it is JSON and, if it tells of an error, in the documented form."""
        if self.said is None:
            return False
        error = self.said.get("error")
        return self.status < 400 or (isinstance(error, dict) and {"message", "code"} <= set(error))

    @property
    def settled(self) -> bool:
        """Whether the service did its work: an image, or a policy's no."""
        return self.image is not None or (self.status, self.code) == (400, "moderation_blocked")


def client(url: str, timeout_s: float = 120.0, peer: str | None = None) -> httpx.AsyncClient:
    """A client with as many connections as are wanted, from the loopback address `peer`."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
    transport = httpx.AsyncHTTPTransport(limits=limits, local_address=peer)
    return httpx.AsyncClient(base_url=url, timeout=timeout_s, transport=transport)


async def ask(
    asking: httpx.AsyncClient,
    body: Mapping[str, Any],
    headers: Mapping[str, str] | None = None,
    path: str = PATH,
) -> Answer:
    """Send one request. Whatever becomes of it is an answer."""
    sent, seed = time.monotonic(), int(body.get("seed", 0))
    try:
        answer = await asking.post(path, json=body, headers=dict(headers or {}))
    except (httpx.ConnectError, httpx.ConnectTimeout):
        return Answer(seed, sent, time.monotonic(), 0, {}, None, "refused")
    except httpx.TimeoutException:
        return Answer(seed, sent, time.monotonic(), 0, {}, None, "silent")
    except httpx.TransportError:
        return Answer(seed, sent, time.monotonic(), 0, {}, None, "reset")
    try:
        said = json.loads(answer.content)
    except ValueError:
        said = None
    said = said if isinstance(said, dict) else None
    return Answer(seed, sent, time.monotonic(), answer.status_code, answer.headers, said)


async def in_turn(
    one: Callable[[int], Awaitable[T]], callers: int, going: Callable[[], bool]
) -> list[T]:
    """So many callers, who ask again as soon as they have their answer; numbers rise from 0."""
    numbers, answers = count(), []

    async def caller() -> None:
        while going():
            answers.append(await one(next(numbers)))

    await asyncio.gather(*(caller() for _ in range(callers)))
    return answers


async def at_times(one: Callable[[int], Awaitable[T]], times: Iterable[float]) -> list[T]:
    """A request at each of these seconds from now, whatever becomes of those before it."""
    started = time.monotonic()

    async def later(number: int, at: float) -> T:
        await asyncio.sleep(max(0.0, started + at - time.monotonic()))
        return await one(number)

    return await asyncio.gather(*(later(number, at) for number, at in enumerate(times)))


@contextmanager
def asking(
    url: str,
    callers: int,
    body: Callable[[int], Mapping[str, Any]],
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 60.0,
    every_s: float = 0.0,
) -> Iterator[list[Answer]]:
    """Callers in a thread of their own meanwhile; yields the growing list of their answers.

    Each asks once in `every_s` seconds, or as soon as it has its answer if that takes longer.
    """
    answers: list[Answer] = []
    stop = threading.Event()

    async def run() -> None:
        async with client(url, timeout_s) as own:

            async def one(number: int) -> None:
                answer = await ask(own, body(number), headers)
                answers.append(answer)
                await asyncio.sleep(max(every_s - answer.seconds, 0.0))
                if not answer.status:
                    await asyncio.sleep(PAUSE_S)

            await in_turn(one, callers, lambda: not stop.is_set())

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        yield answers
    finally:
        stop.set()
        thread.join()
