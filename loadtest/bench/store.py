"""What a decision record costs a request: `python -m loadtest.bench.store`.

A record of four draws, written to SQLite on this disk by 1, 8 and 64 requests at a time.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from rich.console import Console

from service.decisions import row
from service.store.database import Database
from service.store.decisions import Decisions
from service.store.recorder import Recorder
from tests.records import make_decision, make_outcome

WRITES = 2000


async def _measure(recorder: Recorder, at_once: int) -> list[float]:
    """Milliseconds from an outcome to its committed record, as a request waits for it."""
    took: list[float] = []

    async def requests() -> None:
        for _ in range(WRITES // at_once):
            outcome = make_outcome()
            started = time.perf_counter()
            await recorder.write(row(make_decision().record("ok", 1.0, outcome)))
            took.append(1000 * (time.perf_counter() - started))

    await asyncio.gather(*(requests() for _ in range(at_once)))
    return took


def main() -> None:
    """Print one line for each number of requests at once."""
    console = Console(highlight=False)
    # On this disk: a temporary folder may be memory.
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        recorder = Recorder(Decisions(Database(f"sqlite:///{folder}/decisions.sqlite")), 30)
        for at_once in (1, 8, 64):
            started = time.perf_counter()
            took = sorted(asyncio.run(_measure(recorder, at_once)))
            rate = len(took) / (time.perf_counter() - started)
            console.print(
                f"{at_once:3} at once: median {statistics.median(took):.2f} ms, "
                f"99th percentile {took[int(0.99 * len(took))]:.2f} ms, {rate:.0f} records/s"
            )
        recorder.close()


if __name__ == "__main__":
    main()
