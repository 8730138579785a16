"""The labelling service over a backbone that makes grey images, in no time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.diffusion.method import Method
from service.errors import (
    BackendUnavailable,
    CensorUnavailable,
    Conflict,
    PolicyNotFound,
)
from service.generation.sampling_loop import SamplingLoop
from service.images.encode import from_png
from service.labelling.examples import LEAST
from service.labelling.service import LabellingService
from service.labelling.subject import Subject, uncensored
from service.ports import DrawKey, DrawResult, Pixels, SamplingPlan
from service.store.datasets import Answer, Dataset, ImageToLabel, Label
from service.store.store import Store
from tests.damage import change_blob
from tests.feedback import Training, choose
from tests.shown import make_dataset
from tests.stores import open_store

ADA, BOB = "label/Ada", "label/Bob"
SHAPE = (4, 6, 1)


def features(name: str) -> Path:
    if name != "seen":
        raise ValueError(f"no features {name!r}")
    return Path("/features") / name


SUBJECTS = {
    "tiny": Subject(
        uncensored("tiny", "sha256:b", Method(10)), SHAPE, lambda condition: None, features
    )
}


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


@pytest.fixture
def labelling(
    store: Store, backbone: Backbone, training: Training, policies: Any
) -> LabellingService:
    return LabellingService(
        store=store,
        sampling_loops={"tiny": SamplingLoop(backbone, backbone, 1.0)},
        subjects=SUBJECTS,
        policy=policies,
        candidates=3,
        within=timedelta(hours=1),
        deadline_s=5,
        training=training,
        choose=choose,
    )


@pytest.fixture
def policies(bundle: Any) -> Any:
    from service.config import Settings
    from service.policies.seeding import configured_policies
    from tests.bundles import settings

    found = configured_policies(
        Settings.model_validate(settings(str(bundle.folder))), {"tiny": bundle}
    )

    def find(name: str) -> Any:
        if name not in found:
            raise PolicyNotFound(f"no policy {name!r}", "policy")
        return found[name]

    return find


def propose(
    labelling: LabellingService, dataset: Dataset, size: int = 4, **changes: Any
) -> list[ImageToLabel]:
    values: dict[str, Any] = {"strategy": None, "annotator": ADA, "exclude_batches": []} | changes
    return asyncio.run(labelling.propose(dataset, size, **values))


def say(store: Store, shown: list[ImageToLabel], *labels: Label) -> None:
    answers = [Answer(one.id, label, 900) for one, label in zip(shown, labels, strict=True)]
    store.datasets.label("bars", answers, shown[0].annotator)


def test_page_one_is_random_and_every_image_is_traced(
    labelling: LabellingService, store: Store, backbone: Backbone
) -> None:
    shown = propose(labelling, make_dataset(store))
    assert len(shown) == 4
    for position, one in enumerate(shown):
        assert (one.strategy, one.inclusion, one.score) == ("random", 1.0, None)
        assert (one.policy, one.policy_version, one.backbone) == ("none", 0, "sha256:b")
        assert (one.seed, one.draw, one.position) == (backbone.seeds[position], 0, position)
        assert from_png(store.blobs.get(one.blob)).shape == SHAPE
    (plan,) = backbone.plans
    assert (plan.judge, plan.threshold, plan.max_draws) == (None, None, 1)
    assert backbone.tenants == {"feedback"}, "labelling must not spend another key's turns"


def test_seeds_are_nobodys_choice(
    labelling: LabellingService, store: Store, backbone: Backbone
) -> None:
    dataset = make_dataset(store)
    firsts = {
        propose(labelling, dataset, exclude_batches=[], annotator=f"a/{n}")[0].seed
        for n in range(5)
    }
    assert len(firsts) == 5
    assert max(firsts) > 2**40, "a seed that could be guessed"


def test_an_open_batch_comes_first_unless_the_page_holds_it(
    labelling: LabellingService, store: Store
) -> None:
    dataset = make_dataset(store)
    first = propose(labelling, dataset)
    assert [one.id for one in propose(labelling, dataset)] == [one.id for one in first]
    second = propose(labelling, dataset, exclude_batches=[first[0].batch])
    assert second[0].batch != first[0].batch
    other = propose(labelling, dataset, annotator=BOB)
    assert not {one.id for one in other} & {one.id for one in first + second}


def test_two_calls_of_one_person_at_once_get_one_batch(
    labelling: LabellingService, store: Store
) -> None:
    dataset = make_dataset(store)

    async def both() -> list[list[ImageToLabel]]:
        call = labelling.propose(dataset, 4, None, ADA, [])
        return list(await asyncio.gather(call, labelling.propose(dataset, 4, None, ADA, [])))

    one, two = asyncio.run(both())
    assert [image.id for image in one] == [image.id for image in two]


def test_later_pages_are_chosen_among_candidates_by_what_was_said(
    labelling: LabellingService, store: Store, backbone: Backbone, training: Training
) -> None:
    dataset = make_dataset(store)
    shown = propose(labelling, dataset, 10)
    say(store, shown, *["benign"] * 5, *["malign"] * 4, "unsure")
    drawn = len(backbone.seeds)
    chosen = propose(labelling, dataset)
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
    labelling: LabellingService, store: Store, training: Training
) -> None:
    dataset = make_dataset(store)
    shown = propose(labelling, dataset, 9)
    few: list[Label] = ["malign"] * (LEAST - 1)
    say(store, shown, *["benign"] * 5, *few)
    assert {one.strategy for one in propose(labelling, dataset, annotator=BOB)} == {"random"}
    more = propose(labelling, dataset, 2)
    say(store, more, "malign", "malign")
    third = propose(labelling, dataset, annotator="label/Eve", strategy="random")
    assert {one.strategy for one in third} == {"random"}
    assert training.refits == []


def test_what_was_purged_does_not_count_as_enough_to_choose_by(
    labelling: LabellingService, store: Store, training: Training
) -> None:
    dataset = make_dataset(store)
    shown = propose(labelling, dataset, 11)
    say(store, shown, *["benign"] * 6, *["malign"] * 5)
    store.blobs.delete(shown[-1].blob)
    assert {one.strategy for one in propose(labelling, dataset)} == {"random"}
    assert training.refits == []


def test_an_image_that_was_changed_stops_no_page(
    labelling: LabellingService, store: Store, training: Training
) -> None:
    dataset = make_dataset(store)
    shown = propose(labelling, dataset, 10)
    say(store, shown, *["benign"] * 5, *["malign"] * 5)
    change_blob(store, shown[0].blob)
    assert {one.strategy for one in propose(labelling, dataset)} == {"random"}, "too few are left"
    more = propose(labelling, dataset, 1, annotator=BOB)
    say(store, more, "benign")
    assert {one.strategy for one in propose(labelling, dataset, annotator="a/Eve")} == {"malign"}
    assert len(training.refits[-1]) == 10


def test_under_a_policy_only_what_it_lets_through_is_shown(
    labelling: LabellingService, store: Store, backbone: Backbone
) -> None:
    shown = propose(labelling, make_dataset(store), policy="bright")
    assert {(one.policy, one.policy_version) for one in shown} == {("bright", 1)}
    for one in shown:
        assert from_png(store.blobs.get(one.blob))[0, 0, 0] >= 0.5 * 255
    assert any(one.draw for one in shown)


def test_a_judge_that_fails_shows_nothing(
    labelling: LabellingService, store: Store, backbone: Backbone
) -> None:
    async def broken(*_: Any) -> list[float]:
        raise CensorUnavailable("gone")

    backbone.score = broken  # type: ignore[method-assign]
    with pytest.raises(CensorUnavailable):
        propose(labelling, make_dataset(store), policy="bright")


def test_policies_of_nobody_and_of_another_model_are_refused(
    labelling: LabellingService, store: Store
) -> None:
    dataset = make_dataset(store)
    with pytest.raises(PolicyNotFound):
        propose(labelling, dataset, policy="moon")
    with pytest.raises(Conflict):
        propose(labelling, replace(dataset, model="other"), policy="bright")


def test_a_backbone_without_images_shows_nothing(
    labelling: LabellingService, store: Store, backbone: Backbone
) -> None:
    backbone.broken = True
    with pytest.raises(BackendUnavailable):
        propose(labelling, make_dataset(store))
