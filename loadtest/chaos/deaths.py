"""Every part is killed with `kill -9`, in turn and at random, while callers ask on.

First a calm run: what each seed comes to. Then each part dies once with one caller and once under
load, and after that one part at random after another. The next one waits until the last is
replaced.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import psutil

from loadtest.bench.servers import ADMIN, Server
from loadtest.callers import Answer, asking
from loadtest.chaos.audit import audit, outcome
from loadtest.chaos.processes import by_role
from loadtest.lines import Line, at_least, none

PARTS = ("ingress", "backbone", "judge", "labelling", "controller")
REPLICAS = {"backbone": "Backbone-", "judge": "RewardModel-"}
DEADLINE_S, LATE_S, SILENT_S = 10.0, 1.0, 60.0
LOADS = {"one caller": (1, 0.25), "under load": (4, 0.5)}
"""Callers, and the seconds between two requests of each."""
SEEDS = 64
POLL_S, SETTLE_S, BACK_S = 0.25, 4.0, 120.0
GOOD_IN_A_ROW = 3


@dataclass(frozen=True)
class Death:
    """A part that was killed: when, in which load, how many seconds until it was replaced and all
    was well again (None: never), and what was asked meanwhile."""

    part: str
    load: str
    at: float
    back_s: float | None
    answers: Sequence[Answer]

    def line(self) -> Line:
        """The row of the table of recoveries."""
        bad = [one for one in self.answers if not one.settled]
        kinds = Counter(one.code for one in bad)
        named = f" ({', '.join(f'{n} {kind}' for kind, n in kinds.most_common())})" if bad else ""
        last = max((one.done - self.at for one in bad), default=0.0)
        slowest = max((one.seconds for one in self.answers), default=0.0)
        back = "never" if self.back_s is None else f"{self.back_s:.1f} s"
        said = (
            f"{len(bad)} of {len(self.answers)} failed{named}, the last after {last:.1f} s; "
            f"slowest answer {slowest:.1f} s; replaced after {back}"
        )
        return Line("deaths", f"{self.part}, {self.load}", said, "back", self.back_s is not None)


def body(number: int, seeds: int = SEEDS) -> dict[str, Any]:
    """One image of the next seed, round and round."""
    return {"policy": "no-crossbar", "seed": number % seeds, "num_inference_steps": 50,
            "censor": {"deadline_s": DEADLINE_S}}  # fmt: skip


def run(
    server: Server, seconds: float, seeds: int = SEEDS, loads: Sequence[str] = tuple(LOADS)
) -> list[Line]:
    """Kill everything once in each load, then at random for so many seconds."""
    calm = _calm(server, seeds)
    rng = random.Random(0)
    answers: list[Answer] = []
    deaths: list[Death] = []
    for load in loads:
        with _callers(server, seeds, load) as asked:
            deaths += [_kill(server, part, load, asked, rng) for part in _present(server)]
            until = time.monotonic() + (seconds if load == loads[-1] else 0)
            while time.monotonic() < until:
                part = rng.choice(_present(server))
                deaths.append(_kill(server, part, f"at random, {load}", asked, rng))
        answers += asked
    with server.store() as store:
        audited = audit("deaths", answers, calm, store)
    return [*(death.line() for death in deaths), *promises(answers), *audited]


def promises(answers: Sequence[Answer]) -> list[Line]:
    """What must hold whatever died."""
    good = sum(one.settled for one in answers) / len(answers)
    late = [one for one in answers if one.seconds > DEADLINE_S + LATE_S and one.broken != "silent"]
    plain = [f"{one.status}" for one in answers if one.status and not one.enveloped]
    return [
        at_least("deaths", f"succeeded without a retry, of {len(answers)}", good, 0.99, "{:.2%}"),
        Line("deaths", "connections refused, reset",
             ", ".join(str(sum(one.broken == how for one in answers))
                       for how in ("refused", "reset"))),
        none("deaths", "answers that are no JSON envelope", plain),
        none("deaths", f"answers later than deadline + {LATE_S:g} s",
             [f"seed {one.seed} {one.code} after {one.seconds:.1f} s" for one in late]),
        none("deaths", f"requests without any answer in {SILENT_S:g} s",
             [f"seed {one.seed}" for one in answers if one.broken == "silent"]),
    ]  # fmt: skip


def _calm(server: Server, seeds: int) -> dict[int, str]:
    """What each seed comes to where nothing dies."""
    with _callers(server, seeds, "under load") as asked:
        while len({one.seed for one in asked if one.settled}) < seeds:
            time.sleep(0.1)
    return {one.seed: outcome(one) for one in asked if one.settled}


def _callers(server: Server, seeds: int, load: str) -> Any:
    callers, every_s = LOADS[load]
    return asking(server.url, callers, lambda number: body(number, seeds), ADMIN, SILENT_S, every_s)


def _present(server: Server) -> list[str]:
    return [part for part in PARTS if by_role(server, part)]


def _kill(server: Server, part: str, load: str, asked: list[Answer], rng: random.Random) -> Death:
    """Kill one process of a part, and wait until all is well again."""
    before, answering = by_role(server, part), _answering(server, part)
    victim = rng.choice(before)
    first, at = len(asked), time.monotonic()
    os.kill(victim.pid, signal.SIGKILL)

    def whole() -> bool:
        new = [one for one in by_role(server, part) if one != victim]
        last = [one.settled for one in asked[first:] if one.sent > at][-GOOD_IN_A_ROW:]
        if len(new) < len(before) or last.count(True) < GOOD_IN_A_ROW:
            return False
        return _answering(server, part) >= answering

    while not (back := whole()) and time.monotonic() < at + BACK_S:
        time.sleep(POLL_S)
    back_s = time.monotonic() - at if back else None
    # What was asked before may still fail, and Serve tells its routers of a death a little late.
    time.sleep(SETTLE_S)
    return Death(part, load, at, back_s, [one for one in asked[first:] if one.done > at])


def _answering(server: Server, part: str) -> int:
    """How many processes of a part are seen to work from outside; 0 where the service is not ready,
    1 where it is and more cannot be seen."""
    try:
        with httpx.Client(base_url=server.url, headers=ADMIN, timeout=5) as client:
            if client.get("/health/ready").status_code != 200:
                return 0
            page = client.get("/metrics").text if part in REPLICAS else ""
    except httpx.TransportError:
        return 0
    if part in REPLICAS:
        return len(_labels(page, REPLICAS[part]))
    if part == "ingress":
        port = int(server.url.rpartition(":")[2])
        return sum(_listens(one, port) for one in by_role(server, part))
    return 1


def _labels(page: str, begins: str) -> set[str]:
    """The values of the label `replica` on a metrics page that begin so."""
    found = (line.partition('replica="')[2].partition('"')[0] for line in page.splitlines())
    return {label for label in found if label.startswith(begins)}


def _listens(process: psutil.Process, port: int) -> bool:
    try:
        connections = process.net_connections("tcp")
    except psutil.Error:
        return False
    return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in connections)
