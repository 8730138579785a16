from __future__ import annotations

import pytest

from service.errors import Conflict, RewardNotFound
from service.store.store import Store
from tests.feedback import take
from tests.shown import make_dataset

WEIGHTS = {"judge": "sha256:judge"}


@pytest.fixture
def queued(store: Store) -> Store:
    """A store with one training that waits."""
    make_dataset(store)
    store.rewards.queue("rwd_1", "bars", None, {"policy": "bright"}, "label/Ada")
    return store


def test_a_training_is_queued_taken_reported_and_finished(queued: Store) -> None:
    waits = queued.rewards.read("rwd_1")
    assert (waits.recipe, waits.status, waits.stage) == (
        {"policy": "bright"}, "queued", "waits for its turn",
    )  # fmt: skip
    job = take(queued)
    queued.jobs.report(job, "judge", 0.5)
    runs = queued.rewards.read("rwd_1")
    assert (runs.status, runs.stage, runs.progress) == ("training", "judge", 0.5)
    queued.rewards.finish(job, WEIGHTS, {"auc": 0.9})
    ready = queued.rewards.read("rwd_1")
    assert (ready.status, ready.stage, ready.progress) == ("ready", "ready", 1.0)
    assert (ready.weights, ready.card) == (WEIGHTS, {"auc": 0.9})


def test_a_training_that_fails_says_why(queued: Store) -> None:
    queued.jobs.end(take(queued), "failed", "too few")
    failed = queued.rewards.read("rwd_1")
    assert (failed.status, failed.error, failed.weights) == ("failed", "too few", None)


def test_a_certificates_dataset_trains_nothing(store: Store) -> None:
    make_dataset(store, "proof", "certificate")
    with pytest.raises(Conflict, match="may train nothing"):
        store.rewards.queue("rwd_1", "proof", None, {}, "label/Ada")
    assert store.jobs.read("training", "rwd_1") is None


def test_listed_newest_first_and_unknown_is_not_found(queued: Store) -> None:
    make_dataset(queued, "other")
    queued.rewards.queue("rwd_2", "other", "rwd_1", {}, "label/Ada")
    assert [one.id for one in queued.rewards.of()] == ["rwd_2", "rwd_1"]
    assert [one.id for one in queued.rewards.of("bars")] == ["rwd_1"]
    with pytest.raises(RewardNotFound):
        queued.rewards.read("rwd_9")
    with pytest.raises(Conflict):
        queued.rewards.cancel("rwd_9", "label/Ada")
