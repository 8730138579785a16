"""What a dataset's images, and a training's draws, are drawn under."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from models.bundles.bundle import Bundle
from models.bundles.manifest import Inputs
from models.diffusion.condition import Condition
from models.diffusion.method import Method
from service.config import Settings
from service.errors import InvalidValue
from service.generation.sampling_loop import SamplingLoop
from service.labelling.label_batch import LabelBatch
from service.labelling.reward_training import RewardTraining
from service.labelling.service import LabellingService
from service.labelling.subject import Subject, uncensored
from service.policies.seeding import configured_policies
from service.store.datasets import Answer, Dataset, ImageToLabel
from service.store.store import Store
from tests.bundles import HEIGHT, WIDTH, asking, settings
from tests.echo import Echo
from tests.feedback import Training, choose, run_next
from tests.service.api.asking import CLASSES, TEXT
from tests.stores import open_store

ADA = "label/Ada"


class Scorer(Echo):
    """A backbone and a judge at once."""

    async def score(self, model: str, judge: str, pixels: Any, timeout_s: float) -> list[float]:
        return [float(image[0, 0, 0]) / 255 for image in pixels]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(f"sqlite:///{tmp_path}/store.sqlite")
    yield opened
    opened.close()


def labelling_of(
    store: Store, bundle: Bundle, inputs: dict[str, Any], **policy: Any
) -> tuple[LabellingService, Scorer, Training, RewardTraining]:
    document = settings(str(bundle.folder))
    document["policies"]["bright"] |= {"threshold": 0.5} | policy
    conditional = asking(bundle, **inputs)
    policies = configured_policies(Settings.model_validate(document), {"tiny": conditional})
    echo, training = Scorer(), Training()
    subject = Subject(
        uncensored("tiny", "sha256:b", Method(10)),
        (HEIGHT, WIDTH, 1),
        generator=lambda condition: condition,
        features=Path,
        inputs=Inputs(**inputs),
    )
    labelling = LabellingService(
        store=store,
        sampling_loops={"tiny": SamplingLoop(echo, echo, 1.0)},
        subjects={"tiny": subject},
        policy=policies.__getitem__,
        candidates=3,
        within=timedelta(hours=1),
        deadline_s=5,
        training=training,
        choose=choose,
    )
    trainings = RewardTraining(store, {"tiny": subject}, policies.__getitem__, training)
    return labelling, echo, training, trainings


def dataset_of(store: Store, *inputs: dict[str, Any]) -> Dataset:
    made = Dataset("bars", "tiny", "Is it dark?", list(inputs), "labels", datetime.now(UTC), ADA)
    store.datasets.create(made)
    return made


def propose(
    labelling: LabellingService, dataset: Dataset, size: int, policy: str | None = None
) -> list[ImageToLabel]:
    return asyncio.run(labelling.propose(dataset, size, "random", ADA, [], policy))


def test_each_image_has_an_input_of_its_own_as_often_as_its_weight_says(
    store: Store, bundle: Bundle
) -> None:
    labelling, echo, *_ = labelling_of(store, bundle, TEXT)
    dataset = dataset_of(store, {"prompt": "cats", "weight": 3.0}, {"prompt": "dogs"})
    shown = propose(labelling, dataset, 100)
    prompts = [one.input["prompt"] for one in shown if one.input]
    assert len(prompts) == 100
    found = Counter(prompts)
    assert 55 <= found["cats"] <= 92, "75 of 100, four deviations"
    assert prompts != sorted(prompts), "a page is not in the order of its inputs"
    for one in shown:
        assert one.input is not None
        assert echo.plans[one.seed, one.draw].condition.prompt == one.input["prompt"]
    assert store.datasets.image("bars", shown[7].id).input == shown[7].input


def test_without_inputs_a_class_is_drawn_uniformly_from_all(store: Store, bundle: Bundle) -> None:
    labelling, echo, *_ = labelling_of(store, bundle, CLASSES, class_labels=[1])
    shown = propose(labelling, dataset_of(store), 100)
    assert echo.calls == 1, "the seeds draw the classes of one call"
    found = Counter(one.input["class_label"] for one in shown if one.input)
    assert set(found) == {0, 1, 2, 3}, "all but the one that stands for none, whatever policies say"
    assert min(found.values()) >= 8
    for one in shown:
        condition = echo.plans[one.seed, 0].condition
        assert one.input == {"class_label": condition.label(one.seed), "guidance_scale": 3.0}


def test_a_model_without_inputs_has_none(store: Store, bundle: Bundle) -> None:
    labelling, echo, *_ = labelling_of(store, bundle, {})
    assert [one.input for one in propose(labelling, dataset_of(store), 3)] == [None] * 3
    assert {plan.condition for plan in echo.plans.values()} == {Condition()}


def test_under_a_policy_an_input_is_as_hard_guided_as_the_policy_says(
    store: Store, bundle: Bundle
) -> None:
    labelling, echo, *_ = labelling_of(store, bundle, TEXT, guidance_scale=[2.0, 9.0])
    dataset = dataset_of(store, {"prompt": "cats"}, {"prompt": "dogs", "guidance_scale": 5.0})
    propose(labelling, dataset, 30, "bright")
    used = {plan.condition.prompt: plan.condition.guidance_scale for plan in echo.plans.values()}
    assert used == {"cats": 2.0, "dogs": 5.0}
    assert {plan.policy for plan in echo.plans.values()} == {"bright"}
    echo.plans.clear()
    asyncio.run(labelling.propose(dataset, 30, "random", "label/Bob", []))
    used = {plan.condition.prompt: plan.condition.guidance_scale for plan in echo.plans.values()}
    assert used == {"cats": 7.5, "dogs": 5.0}, "without a policy, as the model says"


def test_a_prompt_that_the_model_cannot_read_is_named_by_its_place_alone(
    store: Store, bundle: Bundle
) -> None:
    labelling, *_ = labelling_of(store, bundle, TEXT)
    dataset = dataset_of(store, {"prompt": "secret " * 11}, {"prompt": "secret " * 12})
    with pytest.raises(InvalidValue, match="too many") as fault:
        propose(labelling, dataset, 8)
    assert fault.value.param in ("inputs.0.prompt", "inputs.1.prompt")
    assert "secret" not in str(fault.value)


def test_an_input_that_cannot_be_drawn_leaves_its_place_to_the_others(
    store: Store, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    labelling, _, training, trainings = labelling_of(store, bundle, TEXT)
    good = [{"prompt": "cats"}, {"prompt": "dogs", "weight": 3.0}]
    long, other, damaged = {"prompt": "secret " * 11}, {"class_label": 3}, {"weight": "much"}
    dataset = dataset_of(store, other, good[0], long, damaged, good[1], {"prompt": 7})
    page = propose(labelling, dataset, 100)
    assert isinstance(page, LabelBatch)
    assert len(page) == 100
    found = Counter(one.input["prompt"] for one in page if one.input)
    assert set(found) == {"cats", "dogs"}
    assert 55 <= found["dogs"] <= 92, "75 of 100, four deviations"
    assert set(page.left_out) == {0, 2, 3, 5}
    assert page.left_out[2] == "prompt: has 11 tokens, 3 too many"
    assert "takes none" in page.left_out[0]
    assert "secret" not in f"{page.left_out}{caplog.text}"
    store.datasets.label("bars", [Answer(one.id, "benign", 9) for one in page[:4]], ADA)
    card = trained(store, trainings, dataset)
    condition = training.seen[0]["generator"]
    assert {condition(seed).prompt for seed in range(50)} <= {"cats", "dogs", long["prompt"]}
    assert len(card["inputs"]["left_out"]) == 3, "how long a prompt is the training sees"


def test_a_training_draws_under_the_datasets_inputs_in_their_proportions(
    store: Store, bundle: Bundle
) -> None:
    labelling, _, training, trainings = labelling_of(store, bundle, TEXT, guidance_scale=[2.0])
    dataset = dataset_of(store, {"prompt": "cats"}, {"prompt": "dogs", "weight": 4.0})
    shown = propose(labelling, dataset, 4)
    store.datasets.label("bars", [Answer(one.id, "benign", 9) for one in shown], ADA)
    card = trained(store, trainings, dataset)
    condition = training.seen[0]["generator"]
    found = Counter(condition(seed).prompt for seed in range(2000))
    assert abs(found["dogs"] / 2000 - 0.8) < 0.04
    assert {condition(seed).guidance_scale for seed in range(50)} == {2.0}, "as the policy says"
    assert card["inputs"]["words"] == "of these 2 prompts, drawn by weight"
    assert [one["weight"] for one in card["inputs"]["conditions"]] == [0.2, 0.8]


def trained(store: Store, trainings: RewardTraining, dataset: Dataset) -> dict[str, Any]:
    store.rewards.queue("rwd_1", dataset.name, None, {"policy": "bright"}, ADA)
    run_next(store, trainings.kind)
    done = store.rewards.read("rwd_1")
    assert done.card is not None, done.error
    return dict(done.card)
