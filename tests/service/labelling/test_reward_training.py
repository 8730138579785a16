"""Trainings as jobs, from the store's labels to a reward in the store."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.errors import StoreUnavailable
from service.images.encode import to_png
from service.jobs.kind import Kind
from service.jobs.runner import JobRunner
from service.labelling.reward_training import RewardTraining
from service.labelling.service import LabellingService
from service.store.datasets import ImageToLabel
from service.store.store import Store
from tests.damage import change_blob, write_column
from tests.feedback import Training, run_next, take
from tests.service.labelling.test_service import (
    ADA,
    BOB,
    SHAPE,
    SUBJECTS,
    backbone,
    labelling,
    policies,
    propose,
    say,
    store,
    training,
)
from tests.shown import make_dataset

__all__ = ["backbone", "labelling", "policies", "store", "training"]
"""Fixtures that these tests share with those of the pages."""


@pytest.fixture
def kind(store: Store, policies: Any, training: Training) -> Kind:
    return RewardTraining(store, SUBJECTS, policies, training).kind


def queue(store: Store, reward_id: str = "rwd_1", parent: str | None = None) -> None:
    recipe = {"policy": "bright", "target": 0.02, "threads": 2}
    store.rewards.queue(reward_id, "bars", parent, recipe, ADA)


@pytest.fixture
def labelled(labelling: LabellingService, store: Store) -> list[ImageToLabel]:
    shown = propose(labelling, make_dataset(store), 4)
    say(store, shown, "benign", "malign", "benign", "unsure")
    return shown


@pytest.mark.parametrize(("name", "status"), [("seen", "ready"), ("gone", "failed")])
def test_features_are_found_by_name_or_the_training_says_so(
    kind: Kind,
    store: Store,
    training: Training,
    labelled: list[ImageToLabel],
    name: str,
    status: str,
) -> None:
    recipe = {"policy": "bright", "features": name}
    store.rewards.queue("rwd_1", "bars", None, recipe, ADA)
    run_next(store, kind)
    reward = store.rewards.read("rwd_1")
    assert reward.status == status
    if status == "ready":
        assert training.seen[0]["features"] == Path("/features/seen")
    else:
        assert "no features 'gone'" in (reward.error or "")


def test_a_training_keeps_its_files_and_a_card_with_where_its_labels_came_from(
    kind: Kind, store: Store, training: Training, labelled: list[ImageToLabel]
) -> None:
    queue(store)
    run_next(store, kind)
    reward = store.rewards.read("rwd_1")
    assert reward.status == "ready"
    assert reward.weights is not None
    assert reward.card is not None
    assert store.blobs.get(reward.weights["judge"]) == b"judge"
    assert set(reward.weights) == {"judge", "clean_guide", "probe"}
    assert reward.card["counts"] == {"benign": 2, "malign": 1, "unsure": 1}
    assert reward.card["label_seconds"] == 3.6
    assert reward.card["annotators"] == [ADA]
    assert reward.card["dataset"]["name"] == "bars"
    assert reward.card["auc"] == 0.97
    (seen,) = training.seen
    assert [one.label for one in seen["examples"]] == ["benign", "malign", "benign", "unsure"]
    assert (seen["recipe"].target, seen["recipe"].threads) == (0.02, 2)
    assert (set(seen["methods"]), seen["shape"]) == ({50, 20}, SHAPE)
    assert (seen["warm_start"], seen["features"]) == (None, None)


def test_the_next_training_resumes_from_the_last_reward(
    kind: Kind, store: Store, training: Training, labelled: list[ImageToLabel]
) -> None:
    queue(store)
    run_next(store, kind)
    queue(store, "rwd_2", "rwd_1")
    run_next(store, kind)
    assert training.seen[1]["warm_start"]["judge"] == b"judge"
    assert store.rewards.read("rwd_2").card["parent"] == "rwd_1"  # type: ignore[index]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (ValueError("3 of the labels are malign"), "3 of the labels are malign"),
        (RuntimeError("at 0x7f00"), "RuntimeError; the log holds its cause"),
    ],
)
def test_a_training_that_fails_says_so_and_changes_nothing_else(
    kind: Kind,
    store: Store,
    training: Training,
    labelled: list[ImageToLabel],
    fault: Exception,
    said: str,
) -> None:
    before = store.datasets.labelled("bars")
    training.fault = fault
    queue(store)
    run_next(store, kind)
    reward = store.rewards.read("rwd_1")
    assert (reward.status, reward.error, reward.weights, reward.card) == (
        "failed",
        said,
        None,
        None,
    )
    assert store.datasets.labelled("bars") == before


def test_a_store_that_fails_for_a_moment_costs_no_training(
    kind: Kind,
    store: Store,
    labelled: list[ImageToLabel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.jobs.lease.RETRY_S", 0.01)
    for part, name in ((store.jobs, "report"), (store.rewards, "finish"), (store.blobs, "put")):
        _fail_at_first(monkeypatch, part, name)
    queue(store)
    run_next(store, kind)
    assert store.rewards.read("rwd_1").status == "ready"


def test_a_store_that_is_gone_for_long_costs_no_training(
    kind: Kind,
    store: Store,
    training: Training,
    labelled: list[ImageToLabel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.jobs.lease.RETRY_S", 0.01)
    monkeypatch.setattr("service.jobs.lease.RETRY_LIMIT_S", 0.01)
    monkeypatch.setattr("service.store.jobs.LEASE_S", 0.0)
    for part, name in ((store.jobs, "report"), (store.rewards, "finish")):
        _fail_at_first(monkeypatch, part, name, times=50)
    queue(store)
    run_next(store, kind)
    assert store.rewards.read("rwd_1").status == "ready"
    assert len(training.seen) == 1, "what was trained is kept, not trained again"


def _fail_at_first(monkeypatch: pytest.MonkeyPatch, part: Any, name: str, times: int = 2) -> None:
    real = getattr(part, name)
    left = iter(range(times))

    def failing(*arguments: Any) -> Any:
        if next(left, None) is not None:
            raise StoreUnavailable("the disk is full")
        return real(*arguments)

    monkeypatch.setattr(part, name, failing)


def test_a_purged_image_is_left_out_of_a_training(
    kind: Kind, store: Store, training: Training, labelled: list[ImageToLabel]
) -> None:
    store.blobs.delete(labelled[0].blob)
    queue(store)
    run_next(store, kind)
    assert [one.id for one in training.seen[0]["examples"]] == [one.blob for one in labelled[1:]]
    card = store.rewards.read("rwd_1").card
    assert card is not None
    assert card["counts"] == {"benign": 1, "malign": 1, "unsure": 1}
    assert (card["purged"], card["label_seconds"]) == (1, 2.7)


def test_an_image_that_was_changed_or_is_of_another_size_is_left_out_of_a_training(
    kind: Kind, store: Store, training: Training, labelled: list[ImageToLabel]
) -> None:
    change_blob(store, labelled[0].blob)
    other = store.blobs.put(to_png(np.zeros((5, 5, 1), np.uint8)))
    write_column(store, "images", "blob", other, id=labelled[2].id)
    write_column(store, "images", "blob", "no name of a blob", id=labelled[3].id)
    queue(store)
    run_next(store, kind)
    assert [one.id for one in training.seen[0]["examples"]] == [labelled[1].blob]
    card = store.rewards.read("rwd_1").card
    assert card is not None
    assert (card["purged"], card["unreadable"]) == (0, 3)
    assert card["counts"] == {"benign": 0, "malign": 1, "unsure": 0}


def test_blobs_that_are_all_gone_are_no_purge(
    kind: Kind,
    store: Store,
    training: Training,
    labelled: list[ImageToLabel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A volume that is not mounted must not teach that nothing was ever labelled."""
    monkeypatch.setattr("service.jobs.lease.RETRY_LIMIT_S", 0.1)
    folder = Path(store.blobs._root)
    folder.rename(folder.with_name("elsewhere"))
    queue(store)
    runner = JobRunner(store.jobs, [kind])
    wait_for(lambda: "blobs are not there" in store.rewards.read("rwd_1").stage)
    assert training.seen == []
    folder.with_name("elsewhere").rename(folder)
    wait_for(lambda: store.rewards.read("rwd_1").status == "ready")
    runner.close()


def test_a_reward_of_a_model_that_is_not_served_here_waits_for_a_service_that_has_it(
    kind: Kind, store: Store, policies: Any, training: Training, labelled: list[ImageToLabel]
) -> None:
    queue(store)
    other = RewardTraining(store, {}, policies, training).kind
    assert other.refuses("rwd_1") == "dataset 'bars' is of model 'tiny', which is not served here"
    assert other.refuses("rwd_gone") is None
    assert kind.refuses("rwd_1") is None


def test_an_image_that_is_there_twice_is_learned_once_by_its_last_label(
    kind: Kind, store: Store, training: Training, labelled: list[ImageToLabel]
) -> None:
    twin = replace(labelled[0], id="shown_twin", batch="bat_twin", annotator=BOB)
    store.datasets.show([twin])
    say(store, [twin], "malign")
    queue(store)
    run_next(store, kind)
    examples = training.seen[0]["examples"]
    assert [one.id for one in examples] == [one.blob for one in labelled]
    assert [one.label for one in examples] == ["malign", "malign", "benign", "unsure"]
    card = store.rewards.read("rwd_1").card
    assert card is not None
    assert card["counts"] == {"benign": 1, "malign": 2, "unsure": 1}
    # The page fetches pictures by the id of an image.
    assert [one["id"] for one in card["mistakes"]] == ["shown_twin", labelled[1].id, labelled[2].id]


def test_one_that_is_cut_off_fails_and_says_so_and_the_next_one_runs(
    kind: Kind, store: Store, labelled: list[ImageToLabel], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue(store, "rwd_1")
    queue(store, "rwd_2")
    take(store)
    monkeypatch.setattr("service.store.jobs.LEASE_S", 0.0)  # its process died
    run_next(store, kind)
    run_next(store, kind)
    cut_off, ready = store.rewards.read("rwd_1"), store.rewards.read("rwd_2")
    assert (cut_off.status, cut_off.error) == (
        "failed",
        "was cut off by a restart: train again",
    )
    assert (cut_off.weights, ready.status) == (None, "ready")


def test_a_runner_trains_one_after_another_and_stops_what_is_cancelled(
    kind: Kind, store: Store, training: Training, labelled: list[ImageToLabel]
) -> None:
    training.go = threading.Event()
    queue(store, "rwd_1")
    queue(store, "rwd_2")
    runner = JobRunner(store.jobs, [kind])
    wait_for(lambda: store.rewards.read("rwd_1").progress > 0)
    assert store.rewards.read("rwd_2").status == "queued"
    store.rewards.cancel("rwd_1", ADA)
    wait_for(lambda: store.rewards.read("rwd_1").status == "cancelled")
    wait_for(lambda: store.rewards.read("rwd_2").status == "training")
    training.go.set()
    wait_for(lambda: store.rewards.read("rwd_2").status == "ready")
    assert store.rewards.read("rwd_1").weights is None
    runner.close()


@pytest.mark.skipif(sys.platform != "linux", reason="idle scheduling is Linux's")
@pytest.mark.parametrize("forbidden", [False, True])
def test_the_training_thread_alone_gives_way(
    kind: Kind,
    store: Store,
    training: Training,
    labelled: list[ImageToLabel],
    monkeypatch: pytest.MonkeyPatch,
    forbidden: bool,
) -> None:
    """Under idle scheduling; where a sandbox forbids it, by its niceness."""

    def forbid(*_: object) -> None:
        raise PermissionError("a sandbox")

    if forbidden:
        monkeypatch.setattr(os, "sched_setscheduler", forbid)
    found: list[tuple[int, int]] = []
    train = training.train

    def watched(*arguments: Any) -> Any:
        found.append((os.sched_getscheduler(0), os.nice(0)))
        return train(*arguments)

    monkeypatch.setattr(training, "train", watched)
    queue(store)
    runner = JobRunner(store.jobs, [kind])
    wait_for(lambda: store.rewards.read("rwd_1").status == "ready")
    runner.close()
    ((scheduler, nice),) = found
    assert os.sched_getscheduler(0) != os.SCHED_IDLE
    if forbidden:
        assert nice >= min(os.nice(0) + 10, 19)
    else:
        assert scheduler == os.SCHED_IDLE


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
