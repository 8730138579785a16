"""What is looked at beside the requests: progress while a test runs, free slots when it is over."""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import Any

import gevent
from locust import events
from locust.env import Environment

from loadtest.outcomes import Outcome
from loadtest.slots import wait_until_free


@events.test_start.add_listener
def _report_progress(environment: Environment, **_: Any) -> None:
    def lines() -> None:
        started = time.monotonic()
        while True:
            gevent.sleep(5)
            counts = Counter[str]()
            for (_, outcome), row in environment.stats.entries.items():
                counts[outcome] += row.num_requests
            said = "  ".join(f"{outcome} {number}" for outcome, number in counts.items())
            passed, total = time.monotonic() - started, environment.parsed_options.seconds
            users = environment.runner.user_count
            print(f"{passed:5.0f} of {total:.0f} s  {users:3} users  {said}", file=sys.stderr)  # noqa: T201

    environment.progress = gevent.spawn(lines)


@events.test_stop.add_listener
def _look_at_slots(environment: Environment, **_: Any) -> None:
    environment.progress.kill()
    seconds, why = wait_until_free(environment.host)
    if seconds is not None:
        outcome = Outcome.WRONG if why else Outcome.SLOTS_FREE
        fire(environment, "after the last has left", outcome, why, seconds)


def fire(
    environment: Environment, name: str, outcome: Outcome, why: str | None, seconds: float
) -> None:
    """Count one act in the row that its outcome and name say."""
    environment.events.request.fire(
        request_type=outcome.value, name=name, response_time=1000 * seconds, response_length=0,
        exception=RuntimeError(why) if why else None, context={},
    )  # fmt: skip
