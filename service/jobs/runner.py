"""Takes jobs from the store and runs them, each in a thread of its own."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial

from service.errors import StoreUnavailable, WinnowError
from service.jobs.kind import Kind
from service.jobs.lease import Lease, Stopped
from service.store import jobs as job_store
from service.store.jobs import Cancelled, Job, Jobs, LeaseLost

log = logging.getLogger("winnow.jobs")

POLL_S = 0.25
NICE = 10
BEAT_S = 2.0


class JobRunner:
    """The jobs of some kinds in this process. The store is the queue: whoever comes first runs one.

    A thread takes jobs and keeps their leases alive. A job whose process died is taken like one
    that waits, once its lease is over; it goes on, or fails if too many have died with it.
    """

    def __init__(self, jobs: Jobs, kinds: Iterable[Kind]) -> None:
        self._jobs = jobs
        self._kinds = list(kinds)
        self._holder = f"{socket.gethostname()}:{os.getpid()}"[:128]
        self._running: dict[threading.Thread, tuple[Kind, Lease]] = {}
        self._refused: set[int] = set()
        self._may_succeed = 0.0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises RuntimeError when the runner has died."""
        if not self._thread.is_alive():
            raise RuntimeError("the thread that takes jobs has died")

    def close(self, patience_s: float = 5.0) -> None:
        """Take nothing more, stop what runs, and wait for it. What does not end in time is cut off
        with the process, and another finds out when its lease is over."""
        self._closing.set()
        until = time.monotonic() + patience_s
        self._stop_all()
        self._thread.join(patience_s)
        self._stop_all()  # one may have been taken meanwhile
        for thread in list(self._running):
            thread.join(max(0.0, until - time.monotonic()))

    def _stop_all(self) -> None:
        for _, lease in list(self._running.values()):
            lease.stop(Stopped())

    def _work(self) -> None:
        beat_due, failing = time.monotonic() + BEAT_S, False
        while not self._closing.wait(POLL_S):
            try:
                if time.monotonic() >= beat_due:
                    self._beat()
                    beat_due = time.monotonic() + BEAT_S
                for kind in self._kinds:
                    self._take(kind)
            except Exception as error:  # without this thread nothing would be taken any more
                # Before anything is taken, what runs here is heard; and other processes get the
                # time to be heard too.
                beat_due = 0.0
                self._may_succeed = time.monotonic() + job_store.LEASE_S
                if not failing:
                    log.warning("jobs cannot be looked after: %s", error)
                failing = True
            else:
                if failing:
                    log.info("jobs can be looked after again")
                failing = False

    def _beat(self) -> None:
        """Each lease is spoken for, whatever becomes of the others. Raises the last fault."""
        fault: Exception | None = None
        for _, lease in list(self._running.values()):
            try:
                state = self._jobs.beat(lease.job)
            except Exception as error:
                fault = error
                continue
            if state is None:
                lease.stop(LeaseLost(f"{lease.job.kind} {lease.job.subject} is another's"))
            elif state == "cancelling":
                lease.stop(Cancelled())
        if fault is not None:
            raise fault

    def _take(self, kind: Kind) -> None:
        self._running = {one: it for one, it in self._running.items() if one.is_alive()}
        while sum(kind is other for other, _ in self._running.values()) < kind.at_once:
            job = self._jobs.take(kind.name, self._holder, partial(self._accepts, kind))
            if job is None:
                return
            lease = Lease(self._jobs, job, self._closing)
            name = f"{kind.name}-{job.id}"
            thread = threading.Thread(target=self._run, args=(kind, lease), name=name, daemon=True)
            self._running[thread] = kind, lease
            thread.start()

    def _accepts(self, kind: Kind, job: Job) -> bool:
        """Whether this process may take a job, and can run it. Raises StoreUnavailable."""
        if any(lease.job.id == job.id for _, lease in self._running.values()):
            return False  # it lost it, and has not stopped yet
        if job.state != "queued" and time.monotonic() < self._may_succeed:
            return False
        if job.state == "cancelling":
            return True  # there is nothing to run
        if job.id not in self._refused:
            try:
                why = kind.refuses(job.subject)
            except StoreUnavailable:
                raise
            except Exception as error:
                log.error("%s %s", job.kind, job.subject, exc_info=error)
                why = _sentence(error)
            if why is None:
                return True
            log.warning("%s %s waits for another process: %s", job.kind, job.subject, why)
            self._refused.add(job.id)
        return False

    def _run(self, kind: Kind, lease: Lease) -> None:
        if kind.gives_way:
            _lower_priority()
        try:
            run_job(self._jobs, kind, lease)
        except Exception as error:  # another process takes it up when its lease is over
            job = lease.job
            log.error("%s %s could not be ended", job.kind, job.subject, exc_info=error)


def run_job(jobs: Jobs, kind: Kind, lease: Lease) -> None:
    """Run a job in this thread until its end is in the store. Raises Stopped where the process
    closes while the store fails."""
    try:
        end = _run_job(jobs, kind, lease)
    except LeaseLost as error:
        log.info("%s", error)
        return
    with suppress(LeaseLost):  # it has ended
        lease.retry(end, ending=True)


def _run_job(jobs: Jobs, kind: Kind, lease: Lease) -> Callable[[], None]:
    """Run it, and return what ends it. Raises LeaseLost."""
    job = lease.job
    try:
        if job.state == "cancelling":
            raise Cancelled
        if job.deaths >= kind.runs:
            return partial(_fail, jobs, kind, lease, kind.cut_off)
        log.info("%s %s begins, lease %d", job.kind, job.subject, job.lease)
        lease.retry(partial(kind.run, lease))
    except LeaseLost:
        raise
    except Cancelled:
        return partial(jobs.end, job, "cancelled")
    except Stopped:
        return partial(jobs.release, job)
    except Exception as error:
        log.warning("%s %s failed", job.kind, job.subject, exc_info=error)
        return partial(_fail, jobs, kind, lease, _sentence(error))
    return partial(jobs.end, job, "failed", "ended without a result")


def _fail(jobs: Jobs, kind: Kind, lease: Lease, why: str) -> None:
    """End it, even where its subject cannot be told. Raises LeaseLost and StoreUnavailable."""
    try:
        kind.fail(lease, why)
    except (LeaseLost, StoreUnavailable):
        raise
    except Exception as error:  # the subject's row is gone, say: it would begin again for ever
        log.error("%s %s", lease.job.kind, lease.job.subject, exc_info=error)
        jobs.end(lease.job, "failed", why)


def _lower_priority() -> None:
    """Run this thread, and those that it starts, on a core that nobody else wants."""
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except (AttributeError, OSError) as error:  # not Linux, or a sandbox that forbids it
        os.nice(NICE)
        log.info("such jobs run at nice %d: no idle scheduling here (%s)", NICE, error)


def _sentence(error: Exception) -> str:
    if isinstance(error, WinnowError | ValueError) and str(error):
        return str(error)
    return f"{type(error).__name__}; the log holds its cause"
