"""The desk over a router whose backbone makes grey images, in no time."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from models.method import Method
from service.encode import from_png
from service.errors import (
    BackendUnavailable,
    CensorUnavailable,
    Conflict,
    PolicyNotFound,
    StoreUnavailable,
)
from service.feedback.desk import Desk, Subject, uncensored
from service.feedback.example import LEAST
from service.feedback.worker import Worker
from service.ports import DrawKey, DrawResult, Pixels, SamplingPlan
from service.router import Router
from service.store.datasets import Answer, Dataset, Label, Shown
from service.store.store import Store
from tests.feedback import Selection, Training
from tests.shown import make_dataset
from tests.stores import open_store

ADA, BOB = "label/Ada", "label/Bob"
SHAPE = (4, 6, 1)


class Backbone:
    """Draws grey images, light and dark in turn; keeps the plans that it was asked for."""

    def __init__(self) -> None:
        self.plans: list[SamplingPlan] = []
        self.tenants: set[str] = set()
        self.seeds: list[int] = []
        self.fault: Exception | None = None
        self.broken = False

    async def draw(
        self, plan: SamplingPlan, keys: Sequence[DrawKey], timeout_s: float, tenant: str = ""
    ) -> AsyncGenerator[list[DrawResult], None]:
        if self.fault:
            raise self.fault
        self.plans.append(plan)
        self.tenants.add(tenant)
        for key in keys:
            self.seeds.append(key.seed)
            grey = (key.index * 37 + key.draw * 90) % 256
            pixels = None if self.broken else np.full(SHAPE, grey, dtype=np.uint8)
            yield [DrawResult(key, pixels, 10, 0.0, 0.0)]

    async def score(
        self, model: str, judge: str, pixels: Sequence[Pixels], timeout_s: float
    ) -> Sequence[float]:
        return [float(image[0, 0, 0]) / 255 for image in pixels]

    async def ready(self) -> None:
        return


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(f"sqlite:///{tmp_path}/store.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def backbone() -> Backbone:
    return Backbone()


@pytest.fixture
def training() -> Training:
    return Training()


def features(name: str) -> Path:
    if name != "seen":
        raise ValueError(f"no features {name!r}")
    return Path("/features") / name


@pytest.fixture
def desk(store: Store, backbone: Backbone, training: Training, policies: Any) -> Desk:
    return Desk(
        store=store,
        routers={"tiny": Router(backbone, backbone, 1.0)},
        subjects={
            "tiny": Subject(
                uncensored("tiny", "sha256:b", Method(10)), SHAPE, lambda condition: None, features
            )
        },
        policy=policies,
        candidates=3,
        within=timedelta(hours=1),
        deadline_s=5,
        training=training,
        selection=Selection(),
    )


@pytest.fixture
def policies(bundle: Any) -> Any:
    from service.config import Settings
    from service.pinning import pin
    from tests.bundles import settings

    found = pin(Settings.model_validate(settings(str(bundle.folder))), {"tiny": bundle})

    def find(name: str) -> Any:
        if name not in found:
            raise PolicyNotFound(f"no policy {name!r}", "policy")
        return found[name]

    return find


def propose(desk: Desk, dataset: Dataset, size: int = 4, **changes: Any) -> list[Shown]:
    values: dict[str, Any] = {"strategy": None, "annotator": ADA, "besides": []} | changes
    return asyncio.run(desk.propose(dataset, size, **values))


def say(store: Store, shown: list[Shown], *labels: Label) -> None:
    answers = [Answer(one.id, label, 900) for one, label in zip(shown, labels, strict=True)]
    store.datasets.label("bars", answers, shown[0].annotator)


def test_page_one_is_random_and_every_image_is_traced(
    desk: Desk, store: Store, backbone: Backbone
) -> None:
    shown = propose(desk, make_dataset(store))
    assert len(shown) == 4
    for position, one in enumerate(shown):
        assert (one.strategy, one.inclusion, one.score) == ("random", 1.0, None)
        assert (one.policy, one.policy_version, one.backbone) == ("none", 0, "sha256:b")
        assert (one.seed, one.draw, one.position) == (backbone.seeds[position], 0, position)
        assert from_png(store.blobs.get(one.blob)).shape == SHAPE
    (plan,) = set(backbone.plans)
    assert (plan.judge, plan.threshold, plan.max_draws) == (None, None, 1)
    assert backbone.tenants == {"feedback"}, "labelling must not spend another key's turns"


def test_seeds_are_nobodys_choice(desk: Desk, store: Store, backbone: Backbone) -> None:
    dataset = make_dataset(store)
    firsts = {propose(desk, dataset, besides=[], annotator=f"a/{n}")[0].seed for n in range(5)}
    assert len(firsts) == 5
    assert max(firsts) > 2**40, "a seed that could be guessed"


def test_an_open_batch_comes_first_unless_the_page_holds_it(desk: Desk, store: Store) -> None:
    dataset = make_dataset(store)
    first = propose(desk, dataset)
    assert [one.id for one in propose(desk, dataset)] == [one.id for one in first]
    second = propose(desk, dataset, besides=[first[0].batch])
    assert second[0].batch != first[0].batch
    other = propose(desk, dataset, annotator=BOB)
    assert not {one.id for one in other} & {one.id for one in first + second}


def test_two_calls_of_one_person_at_once_get_one_batch(desk: Desk, store: Store) -> None:
    dataset = make_dataset(store)

    async def both() -> list[list[Shown]]:
        call = desk.propose(dataset, 4, None, ADA, [])
        return list(await asyncio.gather(call, desk.propose(dataset, 4, None, ADA, [])))

    one, two = asyncio.run(both())
    assert [image.id for image in one] == [image.id for image in two]


def test_later_pages_are_chosen_among_candidates_by_what_was_said(
    desk: Desk, store: Store, backbone: Backbone, training: Training
) -> None:
    dataset = make_dataset(store)
    shown = propose(desk, dataset, 10)
    say(store, shown, *["benign"] * 5, *["malign"] * 4, "unsure")
    drawn = len(backbone.seeds)
    chosen = propose(desk, dataset)
    assert len(backbone.seeds) - drawn == 3 * 4, "three candidates for each image"
    assert {one.strategy for one in chosen} == {"malign"}
    assert {one.inclusion for one in chosen} == {0.5}
    scores = [one.score for one in chosen]
    assert None not in scores
    assert [one.label for one in training.refits[-1]] == [
        *["benign"] * 5,
        *["malign"] * 4,
        "unsure",
    ]
    assert training.refits[-1][0].pixels.shape == SHAPE


def test_random_stays_random_when_asked_for_or_when_too_little_was_said(
    desk: Desk, store: Store, training: Training
) -> None:
    dataset = make_dataset(store)
    shown = propose(desk, dataset, 9)
    few: list[Label] = ["malign"] * (LEAST - 1)
    say(store, shown, *["benign"] * 5, *few)
    assert {one.strategy for one in propose(desk, dataset, annotator=BOB)} == {"random"}
    more = propose(desk, dataset, 2)
    say(store, more, "malign", "malign")
    third = propose(desk, dataset, annotator="label/Eve", strategy="random")
    assert {one.strategy for one in third} == {"random"}
    assert training.refits == []


def test_what_was_purged_does_not_count_as_enough_to_choose_by(
    desk: Desk, store: Store, training: Training
) -> None:
    dataset = make_dataset(store)
    shown = propose(desk, dataset, 11)
    say(store, shown, *["benign"] * 6, *["malign"] * 5)
    store.blobs.delete(shown[-1].blob)
    assert {one.strategy for one in propose(desk, dataset)} == {"random"}
    assert training.refits == []


def test_an_image_that_was_changed_stops_no_page(
    desk: Desk, store: Store, training: Training
) -> None:
    dataset = make_dataset(store)
    shown = propose(desk, dataset, 10)
    say(store, shown, *["benign"] * 5, *["malign"] * 5)
    Path(store.blobs._path(shown[0].blob)).write_bytes(b"another")
    assert {one.strategy for one in propose(desk, dataset)} == {"random"}


def test_under_a_policy_only_what_it_lets_through_is_shown(
    desk: Desk, store: Store, backbone: Backbone
) -> None:
    shown = propose(desk, make_dataset(store), policy="bright")
    assert {(one.policy, one.policy_version) for one in shown} == {("bright", 1)}
    for one in shown:
        assert from_png(store.blobs.get(one.blob))[0, 0, 0] >= 0.5 * 255
    assert any(one.draw for one in shown)


def test_a_judge_that_fails_shows_nothing(desk: Desk, store: Store, backbone: Backbone) -> None:
    async def broken(*_: Any) -> list[float]:
        raise CensorUnavailable("gone")

    backbone.score = broken  # type: ignore[method-assign]
    with pytest.raises(CensorUnavailable):
        propose(desk, make_dataset(store), policy="bright")


def test_policies_of_nobody_and_of_another_model_are_refused(desk: Desk, store: Store) -> None:
    dataset = make_dataset(store)
    with pytest.raises(PolicyNotFound):
        propose(desk, dataset, policy="moon")
    with pytest.raises(Conflict):
        propose(desk, replace(dataset, model="other"), policy="bright")


def test_a_backbone_without_images_shows_nothing(
    desk: Desk, store: Store, backbone: Backbone
) -> None:
    backbone.broken = True
    with pytest.raises(BackendUnavailable):
        propose(desk, make_dataset(store))


def queue(store: Store, reward_id: str = "rwd_1", parent: str | None = None) -> None:
    recipe = {"policy": "bright", "target": 0.02, "threads": 2}
    store.rewards.queue(reward_id, "bars", parent, recipe, ADA)


def run(desk: Desk, store: Store) -> None:
    taken = store.rewards.take()
    assert taken is not None
    desk.train(taken)


@pytest.fixture
def labelled(desk: Desk, store: Store) -> list[Shown]:
    shown = propose(desk, make_dataset(store), 4)
    say(store, shown, "benign", "malign", "benign", "unsure")
    return shown


@pytest.mark.parametrize(("name", "status"), [("seen", "ready"), ("gone", "failed")])
def test_features_are_found_by_name_or_the_training_says_so(
    desk: Desk, store: Store, training: Training, labelled: list[Shown], name: str, status: str
) -> None:
    recipe = {"policy": "bright", "features": name}
    store.rewards.queue("rwd_1", "bars", None, recipe, ADA)
    run(desk, store)
    reward = store.rewards.read("rwd_1")
    assert reward.status == status
    if status == "ready":
        assert training.seen[0]["features"] == Path("/features/seen")
    else:
        assert "no features 'gone'" in (reward.error or "")


def test_a_training_keeps_its_files_and_a_card_with_where_its_labels_came_from(
    desk: Desk, store: Store, training: Training, labelled: list[Shown]
) -> None:
    queue(store)
    run(desk, store)
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
    desk: Desk, store: Store, training: Training, labelled: list[Shown]
) -> None:
    queue(store)
    run(desk, store)
    queue(store, "rwd_2", "rwd_1")
    run(desk, store)
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
    desk: Desk,
    store: Store,
    training: Training,
    labelled: list[Shown],
    fault: Exception,
    said: str,
) -> None:
    before = store.datasets.labelled("bars")
    training.fault = fault
    queue(store)
    run(desk, store)
    reward = store.rewards.read("rwd_1")
    assert (reward.status, reward.error, reward.weights, reward.card) == (
        "failed",
        said,
        None,
        None,
    )
    assert store.datasets.labelled("bars") == before


def test_a_store_that_fails_for_a_moment_costs_no_training(
    desk: Desk, store: Store, labelled: list[Shown], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.feedback.desk.RETRY_S", 0.01)
    for part, name in ((store.rewards, "report"), (store.rewards, "finish"), (store.blobs, "put")):
        _fail_at_first(monkeypatch, part, name)
    queue(store)
    run(desk, store)
    assert store.rewards.read("rwd_1").status == "ready"


def test_a_store_that_is_gone_ends_a_training_in_time(
    desk: Desk,
    store: Store,
    training: Training,
    labelled: list[Shown],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.feedback.desk.RETRY_S", 0.01)
    monkeypatch.setattr("service.feedback.desk.SILENT_S", 0.1)
    for name, go in (("report", threading.Event()), ("finish", None)):
        training.go = go  # nobody sets it: without an end it reports for ever
        with monkeypatch.context() as patch:
            _fail_at_first(patch, store.rewards, name, times=1_000)
            queue(store, f"rwd_{name}")
            started = time.monotonic()
            run(desk, store)
            assert time.monotonic() - started < 5
        reward = store.rewards.read(f"rwd_{name}")
        assert (reward.status, reward.error) == ("failed", "the disk is full")


def _fail_at_first(monkeypatch: pytest.MonkeyPatch, part: Any, name: str, times: int = 2) -> None:
    real = getattr(part, name)
    left = iter(range(times))

    def failing(*arguments: Any) -> Any:
        if next(left, None) is not None:
            raise StoreUnavailable("the disk is full")
        return real(*arguments)

    monkeypatch.setattr(part, name, failing)


def test_a_purged_image_is_left_out_of_a_training(
    desk: Desk, store: Store, training: Training, labelled: list[Shown]
) -> None:
    store.blobs.delete(labelled[0].blob)
    queue(store)
    run(desk, store)
    assert [one.id for one in training.seen[0]["examples"]] == [one.blob for one in labelled[1:]]
    card = store.rewards.read("rwd_1").card
    assert card is not None
    assert card["counts"] == {"benign": 1, "malign": 1, "unsure": 1}
    assert (card["purged"], card["label_seconds"]) == (1, 2.7)


def test_an_image_that_was_changed_fails_a_training(
    desk: Desk, store: Store, training: Training, labelled: list[Shown]
) -> None:
    Path(store.blobs._path(labelled[0].blob)).write_bytes(b"another")
    queue(store)
    run(desk, store)
    reward = store.rewards.read("rwd_1")
    assert (reward.status, training.seen) == ("failed", [])
    assert "it was changed" in (reward.error or "")


def test_an_image_that_is_there_twice_is_learned_once_by_its_last_label(
    desk: Desk, store: Store, training: Training, labelled: list[Shown]
) -> None:
    twin = replace(labelled[0], id="shown_twin", batch="bat_twin", annotator=BOB)
    store.datasets.show([twin])
    say(store, [twin], "malign")
    queue(store)
    run(desk, store)
    examples = training.seen[0]["examples"]
    assert [one.id for one in examples] == [one.blob for one in labelled]
    assert [one.label for one in examples] == ["malign", "malign", "benign", "unsure"]
    card = store.rewards.read("rwd_1").card
    assert card is not None
    assert card["counts"] == {"benign": 1, "malign": 2, "unsure": 1}
    # The page fetches pictures by the id of an image.
    assert [one["id"] for one in card["mistakes"]] == ["shown_twin", labelled[1].id, labelled[2].id]


def _wait(condition: Any, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_worker_trains_one_after_another_and_stops_what_is_cancelled(
    desk: Desk, store: Store, training: Training, labelled: list[Shown]
) -> None:
    training.go = threading.Event()
    queue(store, "rwd_1")
    queue(store, "rwd_2")
    worker = Worker(store.rewards, desk.train)
    worker.check()
    _wait(lambda: store.rewards.read("rwd_1").progress > 0)
    assert store.rewards.read("rwd_2").status == "queued"
    store.rewards.cancel("rwd_1", ADA)
    _wait(lambda: store.rewards.read("rwd_1").status == "cancelled")
    _wait(lambda: store.rewards.read("rwd_2").status == "training")
    training.go.set()
    _wait(lambda: store.rewards.read("rwd_2").status == "ready")
    assert store.rewards.read("rwd_1").weights is None
    worker.close()


def test_a_new_worker_takes_up_what_waits_and_ends_what_died(
    desk: Desk, store: Store, labelled: list[Shown]
) -> None:
    queue(store, "rwd_1")
    queue(store, "rwd_2")
    store.rewards.take()
    time.sleep(0.2)
    worker = Worker(store.rewards, desk.train, silent_s=0.1)
    _wait(lambda: store.rewards.read("rwd_2").status == "ready")
    assert store.rewards.read("rwd_1").status == "failed"
    worker.close()


def test_a_training_that_says_nothing_for_long_is_spoken_for(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.feedback.worker.TEND_S", 0.05)
    make_dataset(store)
    ended = threading.Event()

    def train(reward: Any) -> None:
        time.sleep(1.5)  # a stage that reports nothing
        store.rewards.finish(reward.id, {}, {})
        ended.set()

    queue(store, "rwd_1")
    worker = Worker(store.rewards, train, silent_s=0.5)
    assert ended.wait(20), "it was taken for dead"
    assert store.rewards.read("rwd_1").status == "ready"
    worker.close()


def test_a_worker_outlives_a_training_that_breaks_the_rules(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.feedback.worker.TEND_S", 0.05)
    make_dataset(store)
    seen: list[str] = []

    def train(reward: Any) -> None:
        seen.append(reward.id)
        raise RuntimeError

    queue(store, "rwd_1")
    queue(store, "rwd_2")
    worker = Worker(store.rewards, train, silent_s=0.2)
    _wait(lambda: seen == ["rwd_1", "rwd_2"])
    _wait(lambda: {one.status for one in store.rewards.of()} == {"failed"}, 5)
    worker.check()
    worker.close()


@pytest.mark.skipif(sys.platform != "linux", reason="idle scheduling is Linux's")
def test_the_training_thread_alone_gives_way(store: Store) -> None:
    make_dataset(store)
    turns: list[int] = []
    queue(store, "rwd_1")
    worker = Worker(store.rewards, lambda _: turns.append(os.sched_getscheduler(0)))
    _wait(lambda: bool(turns))
    worker.close()
    assert turns == [os.SCHED_IDLE]
    assert os.sched_getscheduler(0) != os.SCHED_IDLE


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere niceness is the process's")
def test_where_idle_scheduling_is_forbidden_the_training_thread_is_nice(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbid(*_: object) -> None:
        raise PermissionError("a sandbox")

    monkeypatch.setattr(os, "sched_setscheduler", forbid)
    make_dataset(store)
    nice: list[int] = []
    queue(store, "rwd_1")
    worker = Worker(store.rewards, lambda _: nice.append(os.nice(0)))
    _wait(lambda: bool(nice))
    worker.close()
    assert nice[0] >= min(os.nice(0) + 10, 19)


def test_the_stand_ins_have_the_shape_of_the_real_modules() -> None:
    real = pytest.importorskip("service.feedback.training")
    for name in ("Example", "Recipe"):
        ours = getattr(Training, name).__dataclass_fields__
        assert list(ours) == list(getattr(real, name).__dataclass_fields__)
    assert issubclass(real.Cancelled, Exception)
    assert SimpleNamespace(train=real.train, refit=real.refit)
