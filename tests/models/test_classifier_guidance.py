"""Classifier guidance in a world where everything is known: two classes, each Gaussian.

With the exact posterior p_t(y | x_t) of the mixture, guidance at scale 1 is the class's own law:
p(x_0)·p(y | x_0) ∝ p(x_0 | y). So the mixture's denoiser must draw, from the same noise, the image
that the class's own denoiser draws.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.backbones.encoders import ClassEncoder
from models.bundles.bundle import Bundle, load
from models.bundles.manifest import Inputs
from models.diffusion.condition import Condition
from models.diffusion.conditioning import Named
from models.diffusion.method import Method
from models.diffusion.noise import Purpose, normal
from models.diffusion.noise_schedule import NoiseSchedule
from models.diffusion.parameterization import PREDICTION_TYPES, PredictionType
from models.diffusion.samplers import levels
from models.rewards.network import RewardConfig, RewardNetwork
from models.rewards.timed_classifier import TimedClassifier, add_classifier
from models.sampling.batch import Batch
from models.sampling.batches import Batches
from models.sampling.runner import Runner
from service.config import BackboneSettings
from service.engine.engine import Engine
from service.engine.load import load_engine
from service.engine.networks import Networks
from service.errors import BackendUnavailable
from service.ports import DrawKey, SamplingPlan
from tests.engines import Lossless, floats, make_plan, make_schedule, run_to_end, submit
from tests.gaussian import Gaussian
from tests.parity import Made, ask
from tests.plans import FREE, vary

SHAPE = (1, 3, 4)
MEANS, PRIOR, S = (-0.4, 0.3), (0.3, 0.7), 0.3
CLASSES = Inputs(kind="class", class_names=("low", "high"))


class Mixture:
    """Both classes: the denoiser of x_0 ~ Σ_y PRIOR_y·N(MEANS_y, S²), and the exact classifier."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.alone = [Gaussian(schedule, mean, S) for mean in MEANS]
        self._alphas_cumprod = torch.from_numpy(schedule.alpha**2)
        self.rows: list[int] = []

    def log_posterior(self, x_t: Tensor, timestep: Tensor) -> Tensor:
        """log p_t(y | x_t), [B, 2], in float64: all pixels of an image share its class."""
        alpha_bar = self._alphas_cumprod[timestep.long()].view(-1, 1, 1, 1)
        variance = alpha_bar * S**2 + 1 - alpha_bar
        logs = [
            np.log(prior)
            - ((x_t.double() - alpha_bar.sqrt() * mean) ** 2 / (2 * variance)).sum((1, 2, 3))
            for mean, prior in zip(MEANS, PRIOR, strict=True)
        ]
        return torch.log_softmax(torch.stack(logs, dim=1), dim=1)

    def __call__(self, x_t: Tensor, timestep: Tensor, inputs: Named) -> Tensor:
        posterior = self.log_posterior(x_t, timestep).exp()
        outputs = [one(x_t, timestep).double() for one in self.alone]
        weighted = [posterior[:, i].view(-1, 1, 1, 1) * outputs[i] for i in range(2)]
        return (weighted[0] + weighted[1]).float()

    def gradient(self, x_t: Tensor, timestep: Tensor, labels: Tensor) -> Tensor:
        self.rows.append(len(x_t))
        with torch.enable_grad():
            x = x_t.double().clone().requires_grad_()
            total = self.log_posterior(x, timestep)[range(len(x)), labels].sum()
            return torch.autograd.grad(total, x)[0].float()


def _engine(world: Mixture, schedule: NoiseSchedule, classifier: Any) -> Engine:
    encoder = ClassEncoder(CLASSES)
    return Engine(
        Runner(FREE.backbone, world, schedule, Networks(), classifier=classifier),
        Batches(lambda shape, rows: Batch(schedule, shape, rows, "cpu"), SHAPE, 4),
        Lossless(),
        4,
        encoder=encoder,
    )


def _draw(engine: Engine, plans: list[SamplingPlan]) -> list[NDArray[np.float32]]:
    """Plan i's image of seed i, each submitted two ticks after the one before."""
    callers = []
    for seed, plan in enumerate(plans):
        callers.append(submit(engine, plan, [DrawKey(0, seed, 0)]))
        engine.tick()
        engine.tick()
    run_to_end(engine)
    return [floats(next(iter(caller.results.values()))) for caller in callers]


def _plan(scale: float, label: int, steps: int = 20, **changes: Any) -> SamplingPlan:
    return make_plan(
        num_inference_steps=steps,
        classifier_scale=scale,
        condition=Condition(class_label=label),
        **changes,
    )


@pytest.mark.parametrize("prediction_type", sorted(PREDICTION_TYPES))
@pytest.mark.parametrize("sampler", ["ddim", "dpmsolver++"])
def test_the_exact_classifier_draws_the_class_itself(
    sampler: str, prediction_type: PredictionType
) -> None:
    schedule = make_schedule(prediction_type, beta_schedule="scaled_linear", beta_end=0.012)
    world = Mixture(schedule)
    labels = [0, 1, 1, 0, 0]
    plans = [_plan(1.0, label, sampler=sampler) for label in labels]
    found = _draw(_engine(world, schedule, world), plans)
    for seed, (label, image) in enumerate(zip(labels, found, strict=True)):
        own = Mixture(schedule)
        own.alone = [own.alone[label]] * 2
        (wanted,) = _one(_engine(own, schedule, None), _plan(0.0, label, sampler=sampler), seed)
        np.testing.assert_allclose(image, wanted, atol=2e-4)


def _one(engine: Engine, plan: SamplingPlan, seed: int) -> list[NDArray[np.float32]]:
    caller = submit(engine, plan, [DrawKey(0, seed, 0)])
    run_to_end(engine)
    return [floats(result) for result in caller.results.values()]


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_other_scales_follow_the_papers_algorithm(scale: float) -> None:
    """Dhariwal & Nichol 2021, algorithm 2: eps − √(1−ᾱ)·scale·∇ log p_t(y | x_t), then DDIM."""
    schedule = make_schedule("epsilon", beta_schedule="scaled_linear", beta_end=0.012)
    world = Mixture(schedule)
    (found,) = _one(_engine(world, schedule, world), _plan(scale, 1), 4)
    x = torch.from_numpy(normal(4, 0, Purpose.INITIAL, SHAPE))[None].double()
    alphas_cumprod = schedule.alpha**2
    timesteps = levels(schedule, Method(20)).timesteps.astype(int)
    for t, after in zip(timesteps, [*timesteps[1:], None], strict=True):
        here = alphas_cumprod[t]
        there = 1.0 if after is None else alphas_cumprod[after]
        timestep = torch.tensor([t])
        eps = world(x, timestep, {}).double()
        gradient = world.gradient(x, timestep, torch.tensor([1])).double()
        eps = eps - np.sqrt(1 - here) * scale * gradient
        x_0 = (x - np.sqrt(1 - here) * eps) / np.sqrt(here)
        x = np.sqrt(there) * x_0 + np.sqrt(1 - there) * eps
    np.testing.assert_allclose(found, x[0].numpy(), atol=2e-4)


def test_rows_without_it_pay_nothing_and_are_what_they_were() -> None:
    schedule = make_schedule("v_prediction")
    world = Mixture(schedule)
    plans = [_plan(1.0, 0, 8), _plan(0.0, 1, 12), _plan(2.0, 1, 5), _plan(0.0, 0, 6)]
    found = _draw(_engine(world, schedule, world), plans)
    assert sum(world.rows) == 8 + 5
    for seed in (1, 3):
        (alone,) = _one(_engine(Mixture(schedule), schedule, None), plans[seed], seed)
        np.testing.assert_allclose(found[seed], alone, atol=1e-6)
    for seed in (0, 2):
        (alone,) = _one(_engine(world, schedule, world), plans[seed], seed)
        np.testing.assert_allclose(found[seed], alone, atol=1e-6)
        plain = vary(plans[seed], classifier_scale=0.0)
        (unsteered,) = _one(_engine(world, schedule, world), plain, seed)
        assert np.abs(unsteered - alone).max() > 1e-3


def test_without_a_classifier_it_is_refused() -> None:
    schedule = make_schedule("v_prediction")
    engine = _engine(Mixture(schedule), schedule, None)
    submit(engine, _plan(1.0, 0), [DrawKey(0, 0, 0)])
    with pytest.raises(BackendUnavailable, match="no classifier"):
        engine.check(list(engine.scheduler.waiting))


def _with_classifier(made: Made, config: RewardConfig) -> Bundle:
    """The same bundle with a random classifier."""
    torch.manual_seed(0)
    add_classifier(made.bundle.folder, TimedClassifier(RewardNetwork(config)))
    return load(str(made.bundle.folder))


def test_a_bundles_classifier_steers_and_belongs_to_the_name_of_what_draws(tmp_path: Path) -> None:
    made = Made.make("class", tmp_path)
    config = RewardConfig(members=1, channels=3, timed=True, classes=3)
    bundle = _with_classifier(made, config)
    name = bundle.backbone_sha256("torch")
    assert name != made.bundle.backbone_sha256("torch")
    files = dict(bundle.manifest.files)
    file = files["classifier.safetensors"]
    files["classifier.safetensors"] = file.model_copy(update={"sha256": "0" * 64})
    other = Bundle(bundle.folder, bundle.manifest.model_copy(update={"files": files}))
    assert other.backbone_sha256("torch") not in (name, made.bundle.backbone_sha256("torch"))

    engine = load_engine(bundle, BackboneSettings(runtime="torch", max_batch=2))
    engine.warm_up()
    plan = vary(ask(5, class_label=1), backbone=name)
    images = []
    for scale in (0.0, 5.0):
        caller = submit(engine, vary(plan, classifier_scale=scale), [DrawKey(0, 1, 0)])
        engine.check(list(engine.scheduler.waiting))
        engine.run_to_end()
        (result,) = caller.results.values()
        assert result.nfe == 5
        images.append(result.pixels)
    assert not np.array_equal(images[0], images[1])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (RewardConfig(members=1, channels=3, timed=True, classes=2), "knows 2 classes, and the"),
        (RewardConfig(members=1, channels=4, timed=True, classes=3), "does not take x_t of"),
    ],
)
def test_a_classifier_of_something_else_is_refused_at_the_start(
    config: RewardConfig, words: str, tmp_path: Path
) -> None:
    bundle = _with_classifier(Made.make("class", tmp_path), config)
    with pytest.raises(ValueError, match=words):
        load_engine(bundle, BackboneSettings(runtime="torch", max_batch=2))
