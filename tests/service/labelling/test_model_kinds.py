"""Whatever kind of model: labels of its images become a reward, and three policies censor by it.

Each kind is imported, drawn from, labelled by brightness, taught, and censored by rejection with
probes, by a time-dependent guide, and by forward guidance, all by the parts that serve, in one
process. tests/integration/test_own_model.py goes the same way over REST, on Ray.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.bundles.parts import parts_for
from models.bundles.sampling_key import SamplingKey
from models.diffusion.condition import Condition, Mix
from models.offline.generator import load_generator
from service.config import Settings
from service.generation.sampling_loop import Outcome
from service.labelling import training
from service.labelling.examples import Example
from service.labelling.subject import uncensored
from service.labelling.training import Recipe
from service.policies.inputs import calibration_domain
from service.policies.policy import Overrides, Policy, derive, resolve
from service.ports import FinishReason, Pixels, SamplingPlan
from service.serving.in_process import InProcessService
from service.store.blobs import Blobs
from tests.families import TINY
from tests.parity import KINDS, Made
from tests.trainings import quick

pytestmark = pytest.mark.slow

STEPS, SCALE = 4, 2.0
POLICIES: dict[str, dict[str, Any]] = {
    "rejection": {"probes": [0.5]},
    "time-dependent guide": {"censor_scale": 1.0},
    "forward guide": {"censor_scale": 1.0, "guidance": "forward"},
}
# Of each network that differs, one, and each policy with several of them: a training takes ten
# seconds. tests/models/test_parity.py has all kinds.
CASES = [
    *(("ddpm", name) for name in POLICIES),
    ("class", "forward guide"),
    ("ldm-vq", "time-dependent guide"),
    ("sd", "forward guide"),
    ("sdxl", "time-dependent guide"),
    ("dit", "rejection"),
    ("sd3", "time-dependent guide"),
    ("flux", "rejection"),
    ("flux2", "time-dependent guide"),
    ("pixart", "forward guide"),
    ("sana", "rejection"),
    ("z-image", "forward guide"),
    ("qwen-image", "rejection"),
]


@dataclass(frozen=True)
class Trained:
    """What `derive` reads of a reward in the store."""

    weights: dict[str, str]
    card: dict[str, Any]
    id: str = "rwd_1"


@pytest.fixture(autouse=True)
def calibrate_whatever_was_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    # So small a training may tell nothing apart; what that means is test_calibration's.
    for module_name in ("models.rewards.calibration", "service.labelling.calibration"):
        monkeypatch.setattr(f"{module_name}.refuse_uninformative", lambda *_: None)


@pytest.fixture
def made(kind: str, tmp_path: Path) -> Made:
    return Made.make(kind, tmp_path)


@pytest.fixture
def service(made: Made, tmp_path: Path) -> Iterator[InProcessService]:
    with InProcessService(_settings(made), "tiny", blobs_url=str(tmp_path / "blobs")) as running:
        yield running


def _settings(made: Made) -> Settings:
    inputs = made.bundle.manifest.backbone.inputs
    spec: dict[str, Any] = {"model": "tiny", "num_inference_steps": [STEPS]}
    spec |= {"guidance_scale": [SCALE]} if inputs.guidable else {}
    spec |= {"class_labels": [0, 1]} if inputs.kind == "class" else {}
    judged = {
        name: spec | {"trained": True, "max_draws": 8} | more for name, more in POLICIES.items()
    }
    return Settings.model_validate(
        {
            "models": {
                "tiny": {
                    "bundle": str(made.bundle.folder),
                    "backbone": {"runtime": "torch", "forward_guidance": True, "max_batch": 8},
                }
            },
            "policies": {"none": spec} | {_key(name): one for name, one in judged.items()},
            "default_policy": _key("rejection"),
            "auth": {"anonymous": True},
        }
    )


def _key(policy: str) -> str:
    return policy.replace(" ", "-")


def _mix(made: Made) -> Mix:
    """Two things to ask of a model, guided where it can be; as `_settings` lets it be asked."""
    inputs = made.bundle.manifest.backbone.inputs
    asked: tuple[dict[str, Any], ...] = ({}, {})
    if inputs.kind == "text":
        asked = ({"prompt": "a cat"}, {"prompt": "a dog"})
    elif inputs.kind == "class":
        asked = ({"class_label": 0}, {"class_label": 1})
    scale = SCALE if inputs.guidable else 1.0
    return Mix(tuple(Condition(guidance_scale=scale, **one) for one in asked), (1.0, 1.0))


def _draw(service: InProcessService, plan: SamplingPlan, n: int) -> Outcome:
    return asyncio.run(service.sampling_loop.generate(plan, n, deadline_s=300))


def _images(service: InProcessService, plan: SamplingPlan, mix: Mix, n: int) -> list[Pixels]:
    """Half under each condition."""
    found = []
    for place, condition in enumerate(mix.conditions):
        asked = replace(plan, condition=condition, seed=1000 * place)
        found += [image.pixels for image in _draw(service, asked, n // 2).images]
    assert all(pixels is not None for pixels in found)
    return [pixels for pixels in found if pixels is not None]


def _examples(images: list[Pixels]) -> list[Example]:
    """The darkest third is malign."""
    limit = np.quantile([pixels.mean() for pixels in images], 1 / 3)
    return [
        Example(
            f"image-{i}", pixels, "malign" if pixels.mean() < limit else "benign", 1.0, "random"
        )
        for i, pixels in enumerate(images)
    ]


def _teach(made: Made, policy: Policy, examples: list[Example], blobs: Blobs) -> Trained:
    backbone, spec = made.bundle.manifest.backbone, policy.settings
    generator = load_generator(made.bundle, "torch", forward=True)
    found = training.train(
        examples,
        Recipe(policy.name, target=0.2, guide=spec.guidance == "time" and spec.censor_scale > 0),
        replace(generator, condition=_mix(made).of),
        (backbone.height, backbone.width, backbone.channels),
        {STEPS: spec.method(STEPS)},
        lambda stage, fraction: None,
        hyperparameters=quick(judge=60, pool=40),
    )
    assert not found.card["not_calibrated"], found.card["not_calibrated"]
    # As the labelling service notes it.
    weights = {part: blobs.put(file) for part, file in found.files.items()}
    method = spec.method(STEPS)
    key = SamplingKey(
        policy.backbone, method, parts_for(method, weights), **calibration_domain(_mix(made))
    )
    calibrations = {
        steps: entry | {"sampling": key.document()}
        for steps, entry in found.card["calibrations"].items()
    }
    return Trained(weights, found.card | {"calibrations": calibrations})


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_kind_of_model_is_censored(
    made: Made, service: InProcessService, name: str, tmp_path: Path
) -> None:
    waiting = service.policies[_key(name)]
    spec = waiting.settings
    free = uncensored("tiny", waiting.backbone.weights, spec.method(STEPS))
    drawn = _images(service, free, _mix(made), 48)
    examples = _examples(drawn)
    reward = _teach(made, waiting, examples, Blobs(str(tmp_path / "blobs")))
    policy = derive(waiting, reward)
    assert policy.censors
    assert not policy.uncalibrated

    condition = _mix(made).conditions[0]
    plan = replace(resolve(policy, Overrides(), 7, admin=False), condition=condition)
    # As strict as half of what it has seen, so that some draws are rejected.
    scores = asyncio.run(
        service.backends.score("tiny", plan.judge or "", [one.pixels for one in examples], 60)
    )
    plan = replace(plan, threshold=float(np.quantile(scores, 0.5)))
    outcome = _draw(service, plan, 6)
    accepted = [image for image in outcome.images if image.pixels is not None]
    assert accepted
    for image in outcome.images:
        delivered = image.finish_reason is FinishReason.SUCCESS
        assert (image.pixels is not None) == delivered
        assert not delivered or (image.score or 0) >= (plan.threshold or 1)
    if name == "rejection":
        assert outcome.draws > len(outcome.images)
    halves = 2 if made.generator.encoder.scale(condition) > 1 else 1
    # A flow begins with noise alone, where nothing is steered.
    lines = STEPS - made.generator.schedule.flow
    steered = 3 * lines if name == "forward guide" else 0
    whole = [one.nfe for one in outcome.judged if one.score is not None]
    assert set(whole) == {halves * (STEPS + steered)}

    # The seed of an entry gives that image again, alone in its batch, at the same draw.
    image = accepted[-1]
    again = _draw(service, replace(plan, seed=image.seed), 1).images[0]
    assert (again.draws, again.seed) == (image.draws, image.seed)
    assert again.pixels is not None
    assert image.pixels is not None
    off = np.abs(again.pixels.astype(int) - image.pixels.astype(int))
    assert off.max() <= 1, f"{off.max()} of 255"


def test_every_kind_is_here() -> None:
    """One that parity knows and this file leaves out shares its networks with one that is here."""
    left_out = {"ldm-kl", "sd-v", "sd3-clip", "flux-schnell", "flux2-distilled"}
    assert set(KINDS | TINY) - {kind for kind, _ in CASES} == left_out
