"""Jobs under a lease: of several processes one runs a job; a stale one's writes are refused."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update

from service.errors import Conflict
from service.store.certificates import DRAWING, Certificate
from service.store.datasets import Dataset, ImageToLabel
from service.store.jobs import LEASE_S, Cancelled, Job, LeaseLost
from service.store.schema import jobs
from service.store.store import Store
from tests.shown import make_dataset

TRAINING = "training"


@pytest.fixture
def queued(store: Store) -> Store:
    """A store with one training that waits."""
    make_dataset(store)
    store.rewards.queue("rwd_1", "bars", None, {}, "label/Ada")
    return store


def take(store: Store, kind: str = TRAINING, holder: str = "one") -> Job:
    found = store.jobs.take(kind, holder)
    assert found is not None
    return found


def silence(store: Store, job: Job, seconds: float = LEASE_S + 5) -> None:
    """Nothing was heard of the holder for so long."""
    when = job.heartbeat - timedelta(seconds=seconds)
    with store.database.transaction() as connection:
        connection.execute(update(jobs).where(jobs.c.id == job.id).values(heartbeat=when))


def test_of_several_at_once_one_gets_a_job(queued: Store) -> None:
    found: list[Job | None] = []
    barrier = threading.Barrier(4)

    def work() -> None:
        barrier.wait()
        found.append(queued.jobs.take(TRAINING, "one"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.subject for one in found if one] == ["rwd_1"]


def test_jobs_are_taken_in_the_order_they_came_by_whoever_runs_their_kind(queued: Store) -> None:
    queued.rewards.queue("rwd_0", "bars", None, {}, "label/Bob")
    assert queued.jobs.take(DRAWING, "one") is None
    assert [take(queued).subject for _ in range(2)] == ["rwd_1", "rwd_0"]
    assert queued.jobs.take(TRAINING, "one") is None


def test_a_job_whose_holder_is_silent_is_taken_and_the_holders_writes_are_refused(
    queued: Store,
) -> None:
    stale = take(queued)
    assert queued.jobs.take(TRAINING, "two") is None
    assert queued.rewards.read("rwd_1").stage == "runs"
    silence(queued, stale)
    waits = queued.rewards.read("rwd_1")
    assert (waits.status, waits.stage) == ("training", "waits for a worker")
    now = take(queued, holder="two")
    assert (now.id, now.lease, now.holder) == (stale.id, stale.lease + 1, "two")
    assert (stale.deaths, now.deaths) == (0, 1)
    assert queued.rewards.read("rwd_1").stage == "runs"
    assert queued.jobs.beat(stale) is None
    for write in (
        lambda: queued.jobs.report(stale, "judge", 0.5),
        lambda: queued.rewards.finish(stale, {"judge": "sha256:stale"}, {}),
        lambda: queued.jobs.end(stale, "failed", "no"),
        lambda: queued.jobs.release(stale),
    ):
        with pytest.raises(LeaseLost):
            write()
    queued.rewards.finish(now, {"judge": "sha256:now"}, {"auc": 0.9})
    ready = queued.rewards.read("rwd_1")
    assert (ready.status, ready.weights) == ("ready", {"judge": "sha256:now"})


def test_a_caller_takes_the_oldest_that_it_accepts(queued: Store) -> None:
    queued.rewards.queue("rwd_2", "bars", None, {}, "label/Bob")
    found = queued.jobs.take(TRAINING, "one", lambda job: job.subject != "rwd_1")
    assert found is not None
    assert found.subject == "rwd_2"
    assert queued.jobs.take(TRAINING, "one", lambda job: False) is None


def test_a_holder_that_is_heard_keeps_its_job(queued: Store) -> None:
    job = take(queued)
    silence(queued, job)
    assert queued.jobs.beat(job) == "running"
    assert queued.jobs.take(TRAINING, "two") is None
    queued.jobs.report(job, "judge", 0.5)
    read = queued.rewards.read("rwd_1")
    assert (read.status, read.stage, read.progress) == ("training", "judge", 0.5)


def test_what_is_given_back_is_taken_under_another_lease(queued: Store) -> None:
    first = take(queued)
    queued.jobs.release(first)
    assert queued.rewards.read("rwd_1").status == "queued"
    second = take(queued)
    assert (second.lease, second.deaths) == (2, 0)
    with pytest.raises(LeaseLost):
        queued.jobs.report(first, "judge", 0.5)


def test_one_that_waits_is_cancelled_at_once_and_one_that_runs_is_told(queued: Store) -> None:
    queued.rewards.cancel("rwd_1", "label/Ada")
    assert queued.rewards.read("rwd_1").status == "cancelled"
    queued.rewards.queue("rwd_2", "bars", None, {}, "label/Ada")
    job = take(queued)
    queued.rewards.cancel("rwd_2", "label/Ada")
    assert queued.rewards.read("rwd_2").status == "cancelling"
    assert queued.jobs.beat(job) == "cancelling"
    for write in (
        lambda: queued.jobs.report(job, "judge", 0.5),
        lambda: queued.rewards.finish(job, {}, {}),
    ):
        with pytest.raises(Cancelled):
            write()
    queued.jobs.release(job)
    assert queued.rewards.read("rwd_2").status == "cancelled"
    with pytest.raises(Conflict):
        queued.rewards.cancel("rwd_2", "label/Ada")


def test_what_has_ended_never_changes(queued: Store) -> None:
    job = take(queued)
    queued.rewards.finish(job, {"judge": "sha256:judge"}, {})
    before = queued.rewards.read("rwd_1")
    silence(queued, job)
    assert queued.jobs.take(TRAINING, "two") is None
    for write in (
        lambda: queued.jobs.report(job, "again", 0.1),
        lambda: queued.rewards.finish(job, {"judge": "other"}, {}),
        lambda: queued.jobs.end(job, "failed", "no"),
    ):
        with pytest.raises(LeaseLost):
            write()
    with pytest.raises(Conflict):
        queued.rewards.cancel("rwd_1", "label/Ada")
    after = queued.rewards.read("rwd_1")
    assert (after.status, after.weights, after.card) == ("ready", before.weights, before.card)


TERMS = {"epsilon": 0.3, "delta": 0.5, "allowed": 0, "delta_attempt": 0.25, "n": 4}
COVERED = {"inputs": {"conditions": []}}


@pytest.fixture
def attempt(store: Store) -> Certificate:
    """A certificate whose four images are to be drawn."""
    dataset = Dataset("proof", "tiny", "Is it dark?", [], "certificate", datetime.now(UTC), "a/b")

    def terms(attempt: int) -> dict[str, object]:
        return TERMS | {"attempt": attempt, "num_inference_steps": 50, "covered": COVERED}

    return store.certificates.begin(dataset, "cert_1", ("bright", 1), "sha256:f", terms)


def image(attempt: Certificate, seed: int) -> ImageToLabel:
    return ImageToLabel(
        id=f"im_{seed}",
        dataset=attempt.dataset,
        batch=attempt.id,
        position=0,
        blob=f"sha256:{seed}",
        seed=seed,
        draw=0,
        policy="bright",
        policy_version=1,
        backbone="sha256:b",
        strategy="certificate",
        inclusion=1.0,
        score=0.9,
        annotator="",
        created=datetime.now(UTC),
    )


def test_whoever_takes_a_drawing_over_asks_for_the_same_seeds(
    store: Store, attempt: Certificate
) -> None:
    stale = take(store, DRAWING)
    assert store.certificates.ask(stale, "sha256:b", [1, 2, 3]).pending == [1, 2, 3]
    store.certificates.settle(stale, [1, 2], [image(attempt, 1)])
    silence(store, stale)
    now = take(store, DRAWING)
    for write in (
        lambda: store.certificates.ask(stale, "sha256:b", [7, 8, 9]),
        lambda: store.certificates.settle(stale, [3], [image(attempt, 3)]),
        lambda: store.certificates.give_up(stale, "no"),
    ):
        with pytest.raises(LeaseLost):
            write()
    asked = store.certificates.ask(now, "sha256:b", [1, 4, 5, 6])
    assert (asked.drawn, asked.blocked, asked.pending) == (1, 1, [3, 4, 5]), "1 has its image"
    with pytest.raises(Conflict, match="does not wait"):
        store.certificates.settle(now, [1], [image(attempt, 1)])
    store.certificates.settle(now, [3, 4, 5], [image(attempt, seed) for seed in (3, 4, 5)])
    assert store.certificates.read(attempt.id).status == "labelling"
    drawn = store.certificates.images(attempt.id)
    assert [(one.seed, one.position) for one in drawn] == [(1, 0), (3, 1), (4, 2), (5, 3)]
    job = store.jobs.read(DRAWING, attempt.id)
    assert job is not None
    assert job.state == "done"


def test_an_abandoned_attempt_refuses_its_drawing(store: Store, attempt: Certificate) -> None:
    job = take(store, DRAWING)
    store.certificates.abandon(attempt.id, "a/b", "enough")
    assert store.jobs.beat(job) is None
    with pytest.raises(LeaseLost):
        store.certificates.ask(job, "sha256:b", [1])
    assert store.jobs.take(DRAWING, "two") is None


def test_drawing_that_gives_up_abandons_its_attempt(store: Store, attempt: Certificate) -> None:
    job = take(store, DRAWING)
    store.certificates.give_up(job, "nothing comes")
    ended = store.certificates.read(attempt.id)
    assert (ended.status, ended.result["reason"]) == ("abandoned", "nothing comes")
