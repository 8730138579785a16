"""Load: open-loop Poisson arrivals, and a closed loop that finds what a server can do."""

from __future__ import annotations

import time
from dataclasses import dataclass

import httpx
import numpy as np

from loadtest import callers
from loadtest.bench.servers import Server


@dataclass(frozen=True)
class Latencies:
    """What requests for one image took, in seconds, at `rate` arrivals a second."""

    server: str
    rate: float
    seconds: list[float]
    failed: int

    def quantile(self, q: float) -> float:
        """The q-quantile in seconds."""
        return float(np.quantile(self.seconds, q))

    @property
    def mean(self) -> float:
        """The mean in seconds."""
        return float(np.mean(self.seconds))

    def goodput(self, deadline_s: float) -> float:
        """The share of requests that were answered with an image within the deadline."""
        good = sum(seconds <= deadline_s for seconds in self.seconds)
        return good / (len(self.seconds) + self.failed)


def poisson(rate: float, duration_s: float, seed: int) -> list[float]:
    """Arrival times in [0, duration_s) of a Poisson process, rising."""
    rng = np.random.default_rng(seed)
    count = int(2 * rate * duration_s + 50)
    times = np.cumsum(rng.exponential(1 / rate, count))
    return [float(t) for t in times[times < duration_s]]


async def offer(server: Server, rate: float, duration_s: float, seed: int = 0) -> Latencies:
    """Send requests at Poisson times, whatever becomes of those before them."""
    async with callers.client(server.url) as client:

        async def one(number: int) -> float | None:
            begun = time.perf_counter()
            good = await _ask(client, server, seed * 1_000_000 + number)
            return time.perf_counter() - begun if good else None

        took = await callers.at_times(one, poisson(rate, duration_s, seed))
    seconds = [each for each in took if each is not None]
    return Latencies(server.name, rate, seconds, len(took) - len(seconds))


async def capacity(server: Server, at_once: int, duration_s: float) -> float:
    """Images a second when `at_once` callers ask again as soon as they have their answer."""
    async with callers.client(server.url) as client:
        started = time.perf_counter()
        good = await callers.in_turn(
            lambda number: _ask(client, server, 50_000_000 + number),
            at_once,
            lambda: time.perf_counter() - started < duration_s,
        )
        if not any(good):
            raise RuntimeError(f"{server.name} made no image")
        return sum(good) / (time.perf_counter() - started)


async def _ask(client: httpx.AsyncClient, server: Server, seed: int) -> bool:
    answer = await client.post(server.path, json=server.body | {"seed": seed})
    return answer.is_success and b'"b64_json":null' not in answer.content.replace(b" ", b"")
