"""One runner for all jobs: a process that dies, one that closes, a lease that is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from service.errors import CertificateNotFound, StoreUnavailable
from service.jobs.kind import Kind
from service.jobs.lease import Lease
from service.jobs.runner import JobRunner
from service.store import jobs, schema
from service.store.jobs import Job
from service.store.store import Store
from tests.stores import open_store

WAIT_S = 60


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr("service.store.jobs.LEASE_S", 1.0)
    monkeypatch.setattr("service.jobs.runner.BEAT_S", 0.1)
    monkeypatch.setattr("service.jobs.runner.POLL_S", 0.05)
    monkeypatch.setattr("service.jobs.lease.RETRY_S", 0.01)
    opened = open_store(f"sqlite:///{tmp_path}/store.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def run(store: Store) -> Iterator[Callable[[Kind], JobRunner]]:
    """Starts runners, and closes them in the end."""
    runners: list[JobRunner] = []

    def started(kind: Kind) -> JobRunner:
        runners.append(JobRunner(store.jobs, [kind]))
        return runners[-1]

    yield started
    for runner in runners:
        runner.close()


def queue(store: Store, *subjects: str) -> None:
    with store.database.transaction() as connection:
        for subject in subjects:
            jobs.queue(connection, "toy", subject)


def kind(store: Store, work: Callable[[Lease], None], runs: int = 1, at_once: int = 1) -> Kind:
    def done(lease: Lease) -> None:
        work(lease)
        with store.database.transaction() as connection:
            jobs.done(connection, lease.job)

    def fail(lease: Lease, why: str) -> None:
        store.jobs.end(lease.job, "failed", why)

    return Kind("toy", done, fail, "was cut off", runs, at_once)


def ended(store: Store, subject: str) -> Job:
    deadline = time.monotonic() + WAIT_S
    while True:
        job = store.jobs.read("toy", subject)
        assert job is not None
        if job.state in ("done", "failed", "cancelled"):
            return job
        assert time.monotonic() < deadline, job
        time.sleep(0.02)


def works(lease: Lease) -> None:
    """Until it is to stop."""
    while True:
        lease.report("works", 0.5)
        time.sleep(0.01)


def test_jobs_are_run_one_after_another_or_at_once(
    store: Store, run: Callable[[Kind], JobRunner]
) -> None:
    barrier = threading.Barrier(2)
    queue(store, "a", "b")
    runner = run(kind(store, lambda _: barrier.wait(WAIT_S) and None, at_once=2))
    assert {ended(store, one).state for one in "ab"} == {"done"}
    runner.check()


def test_one_of_a_process_that_died_goes_on_in_another(
    store: Store, run: Callable[[Kind], JobRunner]
) -> None:
    queue(store, "a")
    died = store.jobs.take("toy", "a process that died")
    run(kind(store, lambda _: None, runs=2))
    job = ended(store, "a")
    assert died is not None
    assert (job.state, job.lease) == ("done", died.lease + 1)


def test_one_that_may_begin_no_more_fails_and_says_so(
    store: Store, run: Callable[[Kind], JobRunner]
) -> None:
    queue(store, "a", "b")
    store.jobs.take("toy", "a process that died")
    begun: list[str] = []
    run(kind(store, lambda lease: begun.append(lease.job.subject)))
    assert ended(store, "b").state == "done"
    job = ended(store, "a")
    assert (job.state, job.error, begun) == ("failed", "was cut off", ["b"])


def test_a_long_stage_that_reports_nothing_keeps_its_lease(
    store: Store, run: Callable[[Kind], JobRunner]
) -> None:
    queue(store, "a")
    go = threading.Event()
    run(kind(store, lambda _: go.wait(WAIT_S) and None))
    seen: set[datetime] = set()
    deadline = time.monotonic() + WAIT_S
    while len(seen) < 4:
        job = store.jobs.read("toy", "a")
        assert job is not None
        seen.add(job.heartbeat)
        assert time.monotonic() < deadline, "nobody speaks for it"
        time.sleep(0.05)
    go.set()
    assert ended(store, "a").state == "done"


def test_one_that_is_cancelled_ends_though_it_reports_nothing(
    store: Store, run: Callable[[Kind], JobRunner]
) -> None:
    queue(store, "a")
    begun = threading.Event()

    def waits(lease: Lease) -> None:
        stopped = threading.Event()
        lease.on_stop(stopped.set)
        begun.set()
        assert stopped.wait(WAIT_S)
        lease.check()

    run(kind(store, waits))
    assert begun.wait(WAIT_S)
    with store.database.transaction() as connection:
        jobs.cancel(connection, "toy", "a")
    assert ended(store, "a").state == "cancelled"


def test_one_that_lost_its_lease_stops_and_writes_nothing(
    store: Store, run: Callable[[Kind], JobRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue(store, "a")
    begun, stopped = threading.Event(), threading.Event()

    def waits(lease: Lease) -> None:
        lease.on_stop(stopped.set)
        begun.set()
        stopped.wait(WAIT_S)  # and then it ends as if nothing were

    with monkeypatch.context() as patch:
        patch.setattr(store.jobs, "beat", lambda job: "running")  # the store hears nothing
        run(kind(store, waits, runs=9))
        assert begun.wait(WAIT_S)
        deadline = time.monotonic() + WAIT_S
        while (taken := store.jobs.take("toy", "another")) is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert not stopped.is_set()
    assert stopped.wait(WAIT_S)
    job = store.jobs.read("toy", "a")
    assert job is not None
    assert (job.state, job.holder) == ("running", "another")
    store.jobs.end(taken, "failed", "the test is over")


def test_a_process_that_closes_gives_back_what_it_runs_and_that_is_no_death(
    store: Store, run: Callable[[Kind], JobRunner]
) -> None:
    queue(store, "a")
    begun = threading.Event()

    def work(lease: Lease) -> None:
        begun.set()
        works(lease)

    runner = run(kind(store, work))
    assert begun.wait(WAIT_S)
    runner.close()
    job = store.jobs.read("toy", "a")
    assert job is not None
    assert (job.state, job.error, job.deaths) == ("queued", None, 0)
    run(kind(store, lambda _: None))
    assert ended(store, "a").state == "done"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (ValueError("too few"), "too few"),
        (RuntimeError("at 0x7f00"), "RuntimeError; the log holds its cause"),
    ],
)
def test_a_fault_ends_one_job_and_no_other(
    store: Store, run: Callable[[Kind], JobRunner], fault: Exception, said: str
) -> None:
    queue(store, "a", "b")

    def work(lease: Lease) -> None:
        if lease.job.subject == "a":
            raise fault

    runner = run(kind(store, work))
    job = ended(store, "a")
    assert (job.state, job.error) == ("failed", said)
    assert ended(store, "b").state == "done"
    runner.check()


def test_one_that_ends_without_a_result_has_failed(
    store: Store, run: Callable[[Kind], JobRunner]
) -> None:
    queue(store, "a")
    run(Kind("toy", lambda _: None, lambda _, __: None, "was cut off"))
    assert ended(store, "a").error == "ended without a result"


def test_one_that_cannot_be_run_here_waits_for_a_process_that_can(
    store: Store, run: Callable[[Kind], JobRunner]
) -> None:
    queue(store, "a", "b")
    able = kind(store, lambda _: None)
    run(replace(able, refuses=lambda subject: "another model" if subject == "a" else None))
    assert ended(store, "b").state == "done"
    job = store.jobs.read("toy", "a")
    assert job is not None
    assert (job.state, job.lease) == ("queued", 0)
    run(able)
    assert ended(store, "a").state == "done"


def test_one_that_is_to_stop_ends_though_nobody_can_run_it(
    store: Store, run: Callable[[Kind], JobRunner]
) -> None:
    queue(store, "a")
    store.jobs.take("toy", "a process that died")
    with store.database.transaction() as connection:
        jobs.cancel(connection, "toy", "a")
    run(replace(kind(store, lambda _: None), refuses=lambda _: "another model"))
    assert ended(store, "a").state == "cancelled"


def test_a_store_that_is_away_for_longer_than_a_lease_costs_no_job(
    store: Store, run: Callable[[Kind], JobRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reports all the while, tries to end, and is not taken from itself afterwards."""
    queue(store, "a")
    begun, over, asked = threading.Event(), threading.Event(), threading.Event()
    monkeypatch.setattr("service.store.jobs.LEASE_S", 0.3)
    for name in ("beat", "report"):
        real = getattr(store.jobs, name)
        monkeypatch.setattr(store.jobs, name, _away(real, begun, over))

    def work(lease: Lease) -> None:
        begun.set()
        since = time.monotonic()
        while time.monotonic() < since + 1:
            lease.report("works", 1.0)
            time.sleep(0.05)
        asked.set()
        lease.retry(_away(lambda: None, begun, over))

    run(kind(store, work, at_once=2))
    assert asked.wait(WAIT_S)
    time.sleep(0.5)
    over.set()
    job = ended(store, "a")
    assert (job.state, job.lease, job.error) == ("done", 1, None)


def _away(
    real: Callable[..., Any], begun: threading.Event, over: threading.Event
) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        if begun.is_set() and not over.is_set():
            raise StoreUnavailable("the store is away")
        return real(*arguments)

    return call


def test_after_an_outage_holders_may_be_heard_before_their_jobs_are_taken(
    store: Store, run: Callable[[Kind], JobRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue(store, "a")
    theirs = store.jobs.take("toy", "another")
    assert theirs is not None
    monkeypatch.setattr("service.store.jobs.LEASE_S", 60)
    long_ago = theirs.heartbeat - timedelta(seconds=120)
    with store.database.transaction() as connection:
        connection.execute(update(schema.jobs).values(heartbeat=long_ago))
    real, calls = store.jobs.take, count()
    polled = threading.Event()

    def take(*arguments: Any) -> Job | None:
        call = next(calls)
        if call == 0:
            raise StoreUnavailable("the store is away")
        if call == 3:
            polled.set()
        return real(*arguments)

    monkeypatch.setattr(store.jobs, "take", take)
    run(kind(store, lambda _: None, runs=9))
    assert polled.wait(WAIT_S)
    assert store.jobs.beat(theirs) == "running"
    store.jobs.end(theirs, "failed", "the test is over")


def test_a_heartbeat_that_fails_keeps_none_of_the_others_back(
    store: Store, run: Callable[[Kind], JobRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue(store, "a", "b")
    real, begun = store.jobs.beat, threading.Barrier(3)
    heard = threading.Event()

    def beat(job: Job) -> Any:
        if job.subject == "a":
            raise StoreUnavailable("locked")
        heard.set()
        return real(job)

    monkeypatch.setattr(store.jobs, "beat", beat)

    def work(lease: Lease) -> None:
        begun.wait(WAIT_S)
        works(lease)

    run(kind(store, work, at_once=2))
    begun.wait(WAIT_S)
    assert heard.wait(WAIT_S)


def test_a_process_that_closes_stops_all_of_them_at_once(
    store: Store, run: Callable[[Kind], JobRunner]
) -> None:
    queue(store, "a", "b")
    begun, together = threading.Barrier(3), threading.Barrier(2)

    def work(lease: Lease) -> None:
        stopped = threading.Event()
        lease.on_stop(stopped.set)
        begun.wait(WAIT_S)
        assert stopped.wait(WAIT_S)
        together.wait(2)  # which takes both
        lease.check()

    runner = run(kind(store, work, at_once=2))
    begun.wait(WAIT_S)
    runner.close()
    found = [store.jobs.read("toy", one) for one in "ab"]
    assert [job.state for job in found if job] == ["queued", "queued"]


def test_one_whose_subject_is_gone_ends(store: Store, run: Callable[[Kind], JobRunner]) -> None:
    queue(store, "a")

    def gone(*_: object) -> None:
        raise CertificateNotFound("no certificate 'a'", "certificate")

    run(Kind("toy", gone, gone, "was cut off"))
    job = ended(store, "a")
    assert (job.state, job.error) == ("failed", "no certificate 'a'")


def test_a_store_that_fails_in_a_run_is_asked_again_and_that_is_no_death(
    store: Store, run: Callable[[Kind], JobRunner]
) -> None:
    queue(store, "a")
    stages: list[str] = []

    def work(lease: Lease) -> None:
        job = store.jobs.read("toy", "a")
        assert job is not None
        stages.append(job.stage)
        if len(stages) < 4:
            raise StoreUnavailable("the volume is not mounted")

    run(kind(store, work))
    job = ended(store, "a")
    assert (job.state, job.lease, job.deaths) == ("done", 1, 0)
    assert stages[-1] == "waits for the store: the volume is not mounted"
