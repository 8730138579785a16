"""The right to run a job, for as long as the store says so."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from service.errors import StoreUnavailable
from service.store.jobs import Job, Jobs

log = logging.getLogger("winnow.jobs")

REPORT_S = 0.2
"""Progress is written at most so often."""

RETRY_S = 1.0
RETRY_LIMIT_S = 10.0
"""How long a job waits before it asks a store again that failed: twice as long each time."""

Result = TypeVar("Result")


class Stopped(Exception):
    """The process is to end: the job stops here, and may go on in another."""


class Lease:
    """What a job's function gets: its row, and whether it is to stop. Any thread may use it."""

    def __init__(self, jobs: Jobs, job: Job, closing: threading.Event | None = None) -> None:
        """`closing` is set once the process is to end."""
        self.job = job
        self._jobs = jobs
        self._closing = closing or threading.Event()
        self._stopped = threading.Event()
        self._reported = time.monotonic()
        self._progress = job.progress
        self._why: Exception | None = None
        self._callbacks: list[Callable[[], object]] = []
        self._lock = threading.Lock()

    def stop(self, why: Exception) -> None:
        """The job is to stop; the first reason counts."""
        with self._lock:
            if self._why is None:
                self._why = why
                self._stopped.set()
                callbacks, self._callbacks = self._callbacks, []
            else:
                callbacks = []
        for call in callbacks:
            call()

    def on_stop(self, call: Callable[[], object]) -> None:
        """Have this called once the job is to stop; at once if it is already."""
        with self._lock:
            if self._why is None:
                self._callbacks.append(call)
                return
        call()

    def check(self) -> None:
        """Raises Cancelled, LeaseLost or Stopped once the job is to stop."""
        if self._why is not None:
            raise self._why

    def report(self, stage: str, progress: float) -> None:
        """Say how far the job is, in [0, 1], as often as one likes. Raises as `check`.

        A store that fails costs no job: the number of the lease keeps a late write out.
        """
        self.check()
        now = time.monotonic()
        if now - self._reported < REPORT_S and 0 < progress < 1:
            return
        self._reported, self._progress = now, progress
        self._write(stage)

    def retry(self, work: Callable[[], Result], ending: bool = False) -> Result:
        """What `work` returns. A store that fails is asked again, until the job is to stop: then
        raises as `check`. An `ending` is tried until the process closes, and then raises Stopped.
        """
        pause = RETRY_S
        while True:
            try:
                return work()
            except StoreUnavailable as error:
                log.warning("%s %s waits: %s", self.job.kind, self.job.subject, error)
                if ending:
                    if self._closing.wait(pause):
                        raise Stopped from error
                else:
                    self._write(f"waits for the store: {error}")
                    self._stopped.wait(pause)
                    self.check()
                pause = min(2 * pause, RETRY_LIMIT_S)

    def _write(self, stage: str) -> None:
        try:
            self._jobs.report(self.job, stage, self._progress)
        except StoreUnavailable as error:
            log.warning("%s %s could not report: %s", self.job.kind, self.job.subject, error)
