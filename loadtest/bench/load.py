"""Load: open-loop Poisson arrivals, and a closed loop that finds what a server can do."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import httpx
import numpy as np

from loadtest.bench.servers import Server

TIMEOUT_S = 120.0


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
    seconds: list[float] = []
    failed = 0
    async with _client(server) as client:
        started = time.perf_counter()

        async def one(number: int, at: float) -> None:
            nonlocal failed
            await asyncio.sleep(max(0.0, started + at - time.perf_counter()))
            begun = time.perf_counter()
            if await _ask(client, server, seed * 1_000_000 + number):
                seconds.append(time.perf_counter() - begun)
            else:
                failed += 1

        arrivals = poisson(rate, duration_s, seed)
        await asyncio.gather(*(one(number, at) for number, at in enumerate(arrivals)))
    return Latencies(server.name, rate, seconds, failed)


async def capacity(server: Server, callers: int, duration_s: float) -> float:
    """Images a second when `callers` ask again as soon as they have their answer."""
    async with _client(server) as client:
        started = time.perf_counter()
        done = 0

        async def caller(number: int) -> None:
            nonlocal done
            seed = 50_000_000 + number * 10_000
            while time.perf_counter() - started < duration_s:
                # Not `done += await …`: that reads `done` before it waits.
                made = await _ask(client, server, seed)
                done += made
                seed += 1

        await asyncio.gather(*(caller(number) for number in range(callers)))
        if not done:
            raise RuntimeError(f"{server.name} made no image")
        return done / (time.perf_counter() - started)


def _client(server: Server) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
    return httpx.AsyncClient(base_url=server.url, timeout=TIMEOUT_S, limits=limits)


async def _ask(client: httpx.AsyncClient, server: Server, seed: int) -> bool:
    answer = await client.post(server.path, json=server.body | {"seed": seed})
    return answer.is_success and b'"b64_json":null' not in answer.content.replace(b" ", b"")
