from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update

from service.errors import Conflict, RewardNotFound
from service.store.rewards import RewardVersion
from service.store.schema import rewards
from service.store.store import Store
from tests.shown import make_dataset

WEIGHTS = {"judge": "sha256:judge"}


@pytest.fixture
def queued(store: Store) -> Store:
    """A store with one training that waits."""
    make_dataset(store)
    store.rewards.queue("rwd_1", "bars", None, {"policy": "bright"}, "label/Ada")
    return store


def _age(store: Store, reward_id: str, seconds: float) -> None:
    when = datetime.now(UTC) - timedelta(seconds=seconds)
    with store.database.transaction() as connection:
        connection.execute(update(rewards).where(rewards.c.id == reward_id).values(heartbeat=when))


def test_a_training_is_queued_taken_reported_and_finished(queued: Store) -> None:
    assert queued.rewards.read("rwd_1").status == "queued"
    taken = queued.rewards.take()
    assert taken is not None
    assert (taken.id, taken.recipe, taken.status) == ("rwd_1", {"policy": "bright"}, "training")
    assert queued.rewards.take() is None
    assert queued.rewards.report("rwd_1", "judge", 0.5)
    assert queued.rewards.read("rwd_1").progress == 0.5
    queued.rewards.finish("rwd_1", WEIGHTS, {"auc": 0.9})
    ready = queued.rewards.read("rwd_1")
    assert (ready.status, ready.weights, ready.card) == ("ready", WEIGHTS, {"auc": 0.9})


def test_a_ready_reward_never_changes(queued: Store) -> None:
    queued.rewards.finish("rwd_1", WEIGHTS, {})
    before = queued.rewards.read("rwd_1")
    assert not queued.rewards.report("rwd_1", "again", 0.1)
    for change in (
        lambda: queued.rewards.finish("rwd_1", {"judge": "other"}, {}),
        lambda: queued.rewards.fail("rwd_1", "no"),
        lambda: queued.rewards.cancelled("rwd_1"),
        lambda: queued.rewards.cancel("rwd_1", "label/Ada"),
    ):
        with pytest.raises(Conflict):
            change()
    queued.rewards.tend(silent_s=0)
    assert queued.rewards.read("rwd_1") == before


def test_one_that_waits_is_cancelled_at_once_and_one_that_runs_when_it_reports(
    queued: Store,
) -> None:
    queued.rewards.cancel("rwd_1", "label/Ada")
    assert queued.rewards.read("rwd_1").status == "cancelled"
    assert queued.rewards.take() is None
    queued.rewards.queue("rwd_2", "bars", None, {}, "label/Ada")
    queued.rewards.take()
    queued.rewards.cancel("rwd_2", "label/Ada")
    assert queued.rewards.read("rwd_2").status == "cancelling"
    assert not queued.rewards.report("rwd_2", "judge", 0.5)
    with pytest.raises(Conflict):
        queued.rewards.finish("rwd_2", WEIGHTS, {})
    queued.rewards.cancelled("rwd_2")
    assert queued.rewards.read("rwd_2").status == "cancelled"


def test_of_two_workers_one_gets_a_training(queued: Store) -> None:
    found: list[RewardVersion | None] = []
    barrier = threading.Barrier(4)

    def work() -> None:
        barrier.wait()
        found.append(queued.rewards.take())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.id for one in found if one] == ["rwd_1"]


def test_trainings_are_taken_in_the_order_they_came(queued: Store) -> None:
    queued.rewards.queue("rwd_0", "bars", None, {}, "label/Bob")
    first, second = queued.rewards.take(), queued.rewards.take()
    assert first is not None
    assert second is not None
    assert (first.id, second.id) == ("rwd_1", "rwd_0")


def test_what_waits_stays_alive_and_what_its_process_left_fails(queued: Store) -> None:
    _age(queued, "rwd_1", 100)
    assert queued.rewards.read("rwd_1").status == "failed"
    queued.rewards.tend()
    assert queued.rewards.read("rwd_1").status == "queued"
    queued.rewards.take()
    queued.rewards.tend()
    assert queued.rewards.read("rwd_1").status == "training"
    _age(queued, "rwd_1", 100)
    queued.rewards.tend()
    assert not queued.rewards.report("rwd_1", "judge", 0.5), "a ghost came back"
    failed = queued.rewards.read("rwd_1")
    assert failed.status == "failed"
    assert failed.error == "was cut off by a restart: train again"


def test_a_restart_is_noticed_within_seconds_and_a_long_stage_is_none(queued: Store) -> None:
    queued.rewards.queue("rwd_2", "bars", None, {}, "label/Ada")
    queued.rewards.take()
    queued.rewards.take()
    for reward_id in ("rwd_1", "rwd_2"):
        _age(queued, reward_id, 20)
    queued.rewards.tend(running="rwd_1")
    assert queued.rewards.read("rwd_1").status == "training"
    assert queued.rewards.read("rwd_2").status == "failed"


def test_a_cancelled_training_whose_process_died_is_cancelled(queued: Store) -> None:
    queued.rewards.take()
    queued.rewards.cancel("rwd_1", "label/Ada")
    _age(queued, "rwd_1", 100)
    queued.rewards.tend()
    assert queued.rewards.read("rwd_1").status == "cancelled"


def test_listed_newest_first_and_unknown_is_not_found(queued: Store) -> None:
    make_dataset(queued, "other")
    queued.rewards.queue("rwd_2", "other", "rwd_1", {}, "label/Ada")
    assert [one.id for one in queued.rewards.of()] == ["rwd_2", "rwd_1"]
    assert [one.id for one in queued.rewards.of("bars")] == ["rwd_1"]
    with pytest.raises(RewardNotFound):
        queued.rewards.read("rwd_9")
