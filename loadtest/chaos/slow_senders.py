"""Hundreds of connections from one address that never finish, while others are served.

Each manner in turn, held for the scenario's time or until the service has closed them all.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import httpx
import numpy as np

from loadtest.bench.servers import ADMIN, Server
from loadtest.callers import asking
from loadtest.chaos.senders import MANNERS, Manner, hold, plain
from loadtest.lines import Line, at_least, at_most, none

CONNECTIONS = 300
HEALTH_EVERY_S, HEALTH_TIMEOUT_S = 0.25, 10.0
READY_S, GOOD = 1.0, 0.99
"""The goals: p95 of /health/live and /health/ready, and the share of an ordinary caller's requests
that succeed in time."""
DEADLINE_S, LATE_S = 10.0, 1.0


def run(
    server: Server, seconds: float, manners: Sequence[Manner] = MANNERS, count: int = CONNECTIONS
) -> list[Line]:
    """Hold each manner's connections for so many seconds, with a caller and a probe beside."""
    lines = []
    for manner in manners:
        who = f"slow: {manner.name}"
        with (
            asking(server.url, 1, _asked, ADMIN, timeout_s=60, every_s=0.5) as answers,
            _probed(server.url) as health,
        ):
            held = hold(server.url, manner, count, seconds)
        timely = [one.settled and one.seconds <= DEADLINE_S + LATE_S for one in answers]
        good = sum(timely) / max(len(timely), 1)
        bad = [said for said in map(plain, held.answers) if said]
        last = max(held.closed, default=0.0)
        lines += [
            at_most(who, "health, p95", float(np.quantile(health, 0.95)), READY_S, "{:.2f} s"),
            at_least(who, f"an ordinary caller's success, of {len(answers)}", good, GOOD, "{:.0%}"),
            Line(who, f"closed by the service, of {count}",
                 f"{len(held.closed) + held.refused} (the last after {last:.0f} s; "
                 f"{held.refused} never opened)",
                 f"{count} in {seconds:g} s", len(held.closed) + held.refused == count),
            none(who, "answers to them that are no JSON envelope", bad),
        ]  # fmt: skip
    return lines


def _asked(number: int) -> dict[str, Any]:
    return {"policy": "no-crossbar", "num_inference_steps": 50, "seed": number,
            "censor": {"deadline_s": DEADLINE_S}}  # fmt: skip


@contextmanager
def _probed(url: str) -> Iterator[list[float]]:
    """Ask for health meanwhile, on a connection of its own each time; yields the seconds."""
    seconds: list[float] = []
    stop = threading.Event()

    def probe() -> None:
        for path in cycle(("/health/live", "/health/ready")):
            began = time.monotonic()
            try:
                good = httpx.get(url + path, timeout=HEALTH_TIMEOUT_S).is_success
            except httpx.TransportError:
                good = False
            seconds.append(time.monotonic() - began if good else HEALTH_TIMEOUT_S)
            if stop.wait(HEALTH_EVERY_S):
                return

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield seconds
    finally:
        stop.set()
        thread.join()
