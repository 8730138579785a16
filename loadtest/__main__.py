"""One load test: a service, Locust without its page, a table against the SLO, and a plot.

`python -m loadtest --scenario mixed --seconds 300`, or `make loadtest`. The exit code is 1 where a
target was missed, 2 where the test itself did not run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from loadtest import plot, slo
from loadtest.bench.servers import winnow
from loadtest.scenarios import SCENARIOS

OUT = Path("build/loadtest")
STOP_S = 10


def main() -> None:
    """Run a scenario and say whether the service held its targets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", choices=list(SCENARIOS), default="steady")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--host", help="a running service; else one is started for the test")
    given = parser.parse_args()
    out = Console(stderr=True)
    folder = OUT / given.scenario
    folder.mkdir(parents=True, exist_ok=True)
    out.print(f"{given.scenario}: {SCENARIOS[given.scenario].says}")
    if not given.host:
        out.print("Starting a service (half a minute) ...")
    with _service(given.host) as url:
        run(given.scenario, given.seconds, url, folder)
    load = " ".join(f"{one:.1f}" for one in os.getloadavg())
    out.print(f"Load average of this machine: {load}, on {os.cpu_count()} cores")
    plot.draw(
        folder / "locust_stats_history.csv", folder / "plot.png", f"Load test: {given.scenario}"
    )
    met = slo.report(folder, given.scenario)
    out.print(f"Report, figures and plot: {folder}/report.html, locust_*.csv, plot.png")
    sys.exit(0 if met else 1)


def run(scenario: str, seconds: float, url: str, folder: Path) -> None:
    """Run Locust in a process of its own: it replaces blocking calls everywhere in it."""
    stats = folder / slo.STATS
    stats.unlink(missing_ok=True)
    subprocess.run(
        [
            *(sys.executable, "-m", "locust", "--locustfile", "loadtest/locustfile.py"),
            *("--headless", "--only-summary", "--loglevel", "WARNING"),
            *("--host", url, "--scenario", scenario, "--seconds", str(seconds)),
            *("--stop-timeout", str(STOP_S), "--exit-code-on-error", "0"),
            *("--csv", str(folder / "locust"), "--csv-full-history"),
            *("--html", str(folder / "report.html"), "--json-file", str(stats.with_suffix(""))),
        ],
        stdout=subprocess.DEVNULL,
        check=False,
    )
    if not stats.exists():
        raise SystemExit(2)


@contextmanager
def _service(host: str | None) -> Iterator[str]:
    """The address of the service that was named, or of one as `make serve` starts it."""
    if host:
        yield host.rstrip("/")
        return
    with winnow() as server:
        yield server.url


if __name__ == "__main__":
    main()
