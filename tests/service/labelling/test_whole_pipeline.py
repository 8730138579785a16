"""Labels of a whole pipeline's images become a reward, and rejection censors by it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.bundles.bundle import Bundle, load
from models.bundles.parts import parts_for
from models.bundles.sampling_key import SamplingKey
from models.diffusion.condition import Condition, Mix
from models.diffusion.method import Method
from models.offline.generator import Generator, load_generator
from service.config import Settings
from service.generation.sampling_loop import Outcome
from service.labelling import training
from service.labelling.examples import Example
from service.labelling.recipe import Recipe
from service.labelling.subject import uncensored
from service.policies.inputs import calibration_domain
from service.policies.policy import Overrides, derive, resolve
from service.ports import FinishReason, SamplingPlan
from service.serving.in_process import InProcessService
from service.store.blobs import Blobs
from tests.imports import import_folder
from tests.service.labelling.test_model_kinds import Trained
from tests.trainings import quick
from tests.whole_pipelines import SIDE, tiny_lumina2

STEPS, SCALE = 2, 2.0
MIX = Mix((Condition("a cat", guidance_scale=SCALE), Condition("a dog", guidance_scale=SCALE)),
          (1.0, 1.0))  # fmt: skip


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("whole")
    tiny_lumina2(folder / "pipeline")
    import_folder(folder / "pipeline", folder / "bundle")
    return load(str(folder / "bundle"))


@pytest.fixture(scope="module")
def generator(bundle: Bundle) -> Generator:
    return replace(load_generator(bundle, "torch"), condition=MIX.of)


@pytest.fixture
def service(bundle: Bundle, tmp_path: Path) -> Iterator[InProcessService]:
    spec: dict[str, Any] = {
        "model": "tiny", "num_inference_steps": [STEPS], "guidance_scale": [SCALE]
    }  # fmt: skip
    settings = Settings.model_validate(
        {
            "models": {
                "tiny": {
                    "bundle": str(bundle.folder),
                    "backbone": {"runtime": "torch", "max_batch": 1},
                }
            },
            "policies": {"none": spec, "screened": spec | {"trained": True, "max_draws": 8}},
            "default_policy": "screened",
            "auth": {"anonymous": True},
        }
    )
    with InProcessService(settings, "tiny", blobs_url=str(tmp_path / "blobs")) as running:
        yield running


def _draw(service: InProcessService, plan: SamplingPlan, n: int) -> Outcome:
    return asyncio.run(service.sampling_loop.generate(plan, n, deadline_s=300))


def _examples(pixels: Any) -> list[Example]:
    """The darkest third is malign."""
    limit = np.quantile([one.mean() for one in pixels], 1 / 3)
    return [
        Example(f"i-{i}", one, "malign" if one.mean() < limit else "benign", 1.0, "random")
        for i, one in enumerate(pixels)
    ]


def test_an_image_is_the_same_here_as_served(
    service: InProcessService, generator: Generator
) -> None:
    spec = service.policies["none"].settings
    plan = resolve(service.policies["none"], Overrides(), 0, admin=True)
    offline = generator.draw(spec.method(STEPS), range(4)).pixels
    for seed, condition in ((seed, MIX.of(seed)) for seed in range(4)):
        outcome = _draw(service, replace(plan, seed=seed, condition=condition), 1)
        assert outcome.images[0].pixels is not None
        assert np.array_equal(outcome.images[0].pixels, offline[seed])


@pytest.mark.slow
def test_labels_become_a_reward_that_rejects(
    service: InProcessService,
    generator: Generator,
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # So small a training may tell nothing apart; what that means is test_calibration's.
    for module_name in ("models.rewards.calibration", "service.labelling.calibration"):
        monkeypatch.setattr(f"{module_name}.refuse_uninformative", lambda *_: None)
    waiting = service.policies["screened"]
    method = waiting.settings.method(STEPS)
    free = uncensored("tiny", waiting.backbone.weights, method)
    drawn = []
    for place, condition in enumerate(MIX.conditions):
        asked = replace(free, condition=condition, seed=1000 * place)
        drawn += [image.pixels for image in _draw(service, asked, 24).images]
    found = training.train(
        _examples(drawn), Recipe("screened", target=0.2), generator, (SIDE, SIDE, 3),
        {STEPS: method}, lambda stage, fraction: None,
        hyperparameters=quick(judge=60, pool=40),
    )  # fmt: skip
    assert not found.card["not_calibrated"], found.card["not_calibrated"]
    blobs = Blobs(str(tmp_path / "blobs"))
    weights = {part: blobs.put(file) for part, file in found.files.items()}
    key = SamplingKey(
        waiting.backbone, method, parts_for(method, weights), **calibration_domain(MIX)
    )
    calibrations = {
        steps: entry | {"sampling": key.document()}
        for steps, entry in found.card["calibrations"].items()
    }
    policy = derive(waiting, Trained(weights, found.card | {"calibrations": calibrations}))
    assert policy.censors
    assert not policy.uncalibrated
    plan = resolve(policy, Overrides(), 7, admin=False)
    plan = replace(plan, condition=MIX.conditions[0])
    scores = asyncio.run(service.backends.score("tiny", plan.judge or "", drawn, 60))
    plan = replace(plan, threshold=float(np.quantile(scores, 0.5)))
    outcome = _draw(service, plan, 6)
    delivered = [image for image in outcome.images if image.pixels is not None]
    assert delivered
    assert outcome.draws > len(outcome.images), "some were rejected"
    for image in outcome.images:
        assert (image.pixels is not None) == (image.finish_reason is FinishReason.SUCCESS)
        assert image.pixels is None or (image.score or 0) >= (plan.threshold or 1)
    assert {one.nfe for one in outcome.judged if one.score is not None} == {2 * STEPS}
    again = _draw(service, replace(plan, seed=delivered[-1].seed), 1).images[0]
    assert again.pixels is not None
    assert delivered[-1].pixels is not None
    assert np.array_equal(again.pixels, delivered[-1].pixels)


def test_a_training_with_a_guide_is_refused_with_the_reason(generator: Generator) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, SIDE, SIDE, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"guide: .*whole pipeline"):
        training.train(
            _examples(pixels), Recipe("screened", guide=True), generator, (SIDE, SIDE, 3), {},
            lambda stage, fraction: None, hyperparameters=quick(judge=1, pool=1),
        )  # fmt: skip


def test_a_drawing_hears_of_every_step_and_can_be_ended_there(generator: Generator) -> None:
    class Ended(Exception):
        pass

    heard: list[int] = []

    def hear(done: int) -> None:
        heard.append(done)
        if len(heard) == 3:
            raise Ended

    with pytest.raises(Ended):
        generator.draw(Method(3), range(5), on_draws=hear)
    assert heard == [0, 0, 0]
