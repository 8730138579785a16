"""`make chaos`: a service killed, flooded, held up, stopped and used for long, in one table.

`python -m loadtest.chaos --scenario overload --seconds 30`. Each scenario starts services of its
own, with two replicas of each part; one, where that is easier to block. The exit code is 1 where a
goal was missed.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console

from loadtest import __main__ as loadtest
from loadtest import slo
from loadtest.bench.servers import Server, replicated, winnow
from loadtest.chaos import deaths, overload, slow_senders, soak, stop
from loadtest.lines import Line, table

OUT = Path("build/chaos")
STOPS = (
    (signal.SIGTERM, "winnow"),
    (signal.SIGINT, "winnow"),
    (signal.SIGKILL, "winnow"),
    (signal.SIGKILL, "raylet"),
    (signal.SIGKILL, "gcs"),
)


@dataclass(frozen=True)
class Scenario:
    """What is done to a running service; each of `runs` gets a new one and the seconds."""

    says: str
    seconds: float
    runs: tuple[Callable[[Server, float], list[Line]], ...]
    replicas: int = 2


def _spike(server: Server, seconds: float) -> list[Line]:
    folder = OUT / "spike"
    folder.mkdir(parents=True, exist_ok=True)
    loadtest.run("spike", seconds, server.url, folder)
    return [replace(line, what=f"spike: {line.what}") for line in slo.held(folder, "spike")]


def _stop(signum: signal.Signals, part: str, server: Server, _: float) -> list[Line]:
    return stop.run(server, signum, part)


SCENARIOS = {
    "deaths": Scenario(
        "kill -9 of each part in turn, calm and under load, then at random for the seconds",
        120.0, (deaths.run,)),
    "overload": Scenario(
        "two, four and ten times the peak, each for the seconds, with deadlines of 3 s",
        20.0, (overload.run,)),
    "spike": Scenario(
        "the load test of that name, held against its targets in loadtest/slo.toml",
        60.0, (_spike,)),
    "slow-senders": Scenario(
        "300 connections that never finish, in six manners, each for the seconds",
        90.0, (slow_senders.run,), replicas=1),
    "stop": Scenario(
        "SIGTERM, SIGINT and SIGKILL while six requests run, and the end of Ray's own processes",
        0.0, tuple(partial(_stop, *one) for one in STOPS)),
    "soak": Scenario(
        "a steady load for the seconds: slopes of memory, descriptors, disk, and series",
        600.0, (soak.run,)),
}  # fmt: skip


def main() -> None:
    """Run what is asked for, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", choices=list(SCENARIOS), help="else all of them")
    parser.add_argument("--seconds", type=float, help="of load; else each scenario's own")
    given = parser.parse_args()
    out, lines = Console(stderr=True, highlight=False), list[Line]()
    # So that the service is stopped with the test.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))
    for name in [given.scenario] if given.scenario else SCENARIOS:
        scenario = SCENARIOS[name]
        seconds = scenario.seconds if given.seconds is None else given.seconds
        out.print(f"{name}: {scenario.says}")
        for one in scenario.runs:
            try:
                with winnow(replicated(scenario.replicas)) as server:
                    found = one(server, seconds)
            except Exception as error:  # what others have measured must not be lost with it
                out.print_exception()
                found = [Line(name, "ran to its end", f"no: {str(error)[:80]}", "yes", False)]
            for line in found:
                out.print(f"  {line.what}: {line.figure}: {line.measured}", markup=False)
            lines += found
    load = " ".join(f"{one:.1f}" for one in os.getloadavg())
    missed = table("Chaos", lines, OUT / "table.md")
    out.print(f"Load average of this machine: {load}, on {os.cpu_count()} cores")
    out.print("\n".join(missed) or "Every goal is met.", markup=False)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
