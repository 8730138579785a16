"""Load from outside: `hey` where it is installed, else our own callers; each table says which.

hey is written in Go, so that it takes little of the machine that it shares with the service. Its
workers fire all at once, so a flood comes from several of them that start one after another.
"""

from __future__ import annotations

import asyncio
import csv
import json
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from loadtest import callers
from loadtest.bench.servers import Server
from loadtest.callers import Answer

HEY = shutil.which("hey")
NAME = "hey" if HEY else "our own asyncio callers (hey is not installed)"
TIMEOUT_S = 30
PERIOD_S, BURSTS = 2.0, 8
"""Each worker of a flood sends once in a period, and so many bursts of them lie in one."""


@dataclass(frozen=True)
class Sent:
    """One request: seconds from the beginning until it was sent, and until its answer; its status,
    0 for none."""

    at: float
    seconds: float
    status: int

    @property
    def done(self) -> float:
        """When it was answered, in seconds from the beginning."""
        return self.at + self.seconds


def in_turn(server: Server, at_once: int, seconds: float, body: Mapping[str, Any]) -> list[Sent]:
    """So many callers who ask again as soon as they have their answer."""
    if HEY:
        return _hey(server, [(0.0, ["-c", str(at_once)])], seconds, body)
    until = time.monotonic() + seconds

    async def run() -> list[Answer]:
        async with callers.client(server.url, TIMEOUT_S) as client:
            return await callers.in_turn(
                lambda _: callers.ask(client, body), at_once, lambda: time.monotonic() < until
            )

    return _own(time.monotonic(), asyncio.run(run()))


def flood(server: Server, rate: float, seconds: float, body: Mapping[str, Any]) -> list[Sent]:
    """So many requests a second, whatever becomes of those before them.

    A worker of hey that waits for its answer longer than two periods sends less.
    """
    if HEY:
        workers = [
            round(rate * PERIOD_S * (one + 1) / BURSTS) - round(rate * PERIOD_S * one / BURSTS)
            for one in range(BURSTS)
        ]
        told = [
            (one * PERIOD_S / BURSTS, ["-c", str(number), "-q", str(1 / PERIOD_S)])
            for one, number in enumerate(workers)
            if number
        ]
        return _hey(server, told, seconds, body)
    times = [number / rate for number in range(round(rate * seconds))]

    async def run() -> list[Answer]:
        async with callers.client(server.url, TIMEOUT_S) as client:
            return await callers.at_times(lambda _: callers.ask(client, body), times)

    return _own(time.monotonic(), asyncio.run(run()))


def _own(began: float, answers: list[Answer]) -> list[Sent]:
    return [Sent(one.sent - began, one.seconds, one.status) for one in answers]


def _hey(
    server: Server, told: list[tuple[float, list[str]]], seconds: float, body: Mapping[str, Any]
) -> list[Sent]:
    """What several of them saw, each started so many seconds after the first.

    Its list lacks requests without an answer: they are in none of the counts.
    """
    with TemporaryDirectory() as folder:
        content = Path(folder, "body.json")
        content.write_text(json.dumps(dict(body)))
        began = time.monotonic()
        running: list[tuple[float, Path, subprocess.Popen[bytes]]] = []
        for after, arguments in told:
            time.sleep(max(0.0, began + after - time.monotonic()))
            command = [str(HEY), "-z", f"{round(1000 * seconds)}ms", *arguments, "-o", "csv",
                       "-t", str(TIMEOUT_S), "-m", "POST", "-T", "application/json",
                       "-D", str(content), server.url + server.path]  # fmt: skip
            output = Path(folder, f"{len(running)}.csv")
            with output.open("w") as file:
                started = time.monotonic() - began
                running.append((started, output, subprocess.Popen(command, stdout=file)))
        sent = []
        for started, output, process in running:
            process.wait()
            with output.open() as file:
                sent += [
                    Sent(
                        started + float(row["offset"]),
                        float(row["response-time"]),
                        int(row["status-code"]),
                    )
                    for row in csv.DictReader(file)
                ]
    return sent
