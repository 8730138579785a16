"""A service is told to stop while it works, or dies: what runs, what comes, and what is left."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil

from loadtest import callers
from loadtest.bench.servers import Server
from loadtest.callers import Answer
from loadtest.chaos.processes import by_role, disk, named, session_folder
from loadtest.lines import Line, at_most, none
from loadtest.slots import in_use

RUNNING, IMAGES = 6, 8
"""Requests that run when the signal comes, and the images that each wants."""
DEADLINE_S, BUSY_S = 60.0, 5.0
GRACE_S, GONE_S = 60.0, 30.0
NEWCOMERS, EVERY_S = 3, 0.25


def run(server: Server, signum: signal.Signals, part: str = "winnow") -> list[Line]:
    """Send a part the signal while requests run. The service is gone afterwards.

    SIGTERM and SIGINT of `winnow serve` are a stop; Ray's own processes take the node with them.
    """
    who, process, session = f"stop: {signum.name} {part}", server.process, session_folder(server)
    assert process is not None
    # Of `winnow serve` the process that its user started, which watches the server.
    victim = psutil.Process(process.pid) if part == "winnow" else by_role(server, part)[0]
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(asyncio.run, _run(server))
        began = time.monotonic()
        # Only when all have arrived are there so many draws.
        while (in_use(server.url) or 0) <= (RUNNING - 1) * IMAGES:
            if time.monotonic() > began + BUSY_S:
                break
            time.sleep(0.05)
        at = time.monotonic()
        victim.send_signal(signum)
        with callers.asking(
            server.url, NEWCOMERS, _asked, timeout_s=DEADLINE_S, every_s=EVERY_S
        ) as newcomers:
            try:
                code = str(process.wait(GRACE_S))
            except subprocess.TimeoutExpired:
                code = "none"
            took = time.monotonic() - at
        if code == "none":
            # Or those who wait would do so until their own end.
            process.kill()
        answers = running.result()
    lines = [
        Line(who, "requests that ran", _counted(answers)),
        Line(who, "newcomers", _counted(newcomers)),
    ]
    if part != "winnow":
        lines.append(at_most(who, "until `winnow serve` ends", took, GRACE_S, "{:.1f} s"))
    elif signum != signal.SIGKILL:
        cut = [one.code for one in answers if one.image is None]
        lines += [
            none(who, f"of {RUNNING} that ran, without their images", cut),
            none(who, "newcomers without image, 503 and Retry-After, or refused connection",
                 [one.code for one in newcomers if not told(one)]),
            Line(who, "exit code", code, "0", code == "0"),
            at_most(who, "until its end", took, GRACE_S, "{:.1f} s"),
        ]  # fmt: skip
    return [
        *lines,
        none(who, f"processes left after {GONE_S:g} s", _left(server)),
        Line(who, "left in Ray's session folder", f"{disk(session) / 2**20:.1f} MiB"),
    ]


def told(answer: Answer) -> bool:
    """Whether a newcomer was served, or told what to do."""
    if answer.status == 503:
        return answer.enveloped and answer.headers.get("retry-after", "").isdecimal()
    return answer.settled or answer.broken == "refused"


def _left(server: Server) -> list[str]:
    """Command lines of what still runs of its session, once it had time to go."""
    until = time.monotonic() + GONE_S
    while (left := server.processes()) and time.monotonic() < until:
        time.sleep(0.5)
    return [named(one) for one in left]


def _counted(answers: list[Answer]) -> str:
    counts = Counter(one.code for one in answers)
    return ", ".join(f"{number} {code}" for code, number in counts.most_common())


def _asked(number: int, n: int = 1) -> dict[str, Any]:
    return {"policy": "no-crossbar", "n": n, "seed": 1000 * number, "num_inference_steps": 50,
            "censor": {"deadline_s": DEADLINE_S}}  # fmt: skip


async def _run(server: Server) -> list[Answer]:
    async with callers.client(server.url, 2 * DEADLINE_S) as client:
        return await callers.at_times(
            lambda number: callers.ask(client, _asked(number, IMAGES)), [0.0] * RUNNING
        )
