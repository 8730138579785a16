"""A training for a latent model: guides and probes of latents; none goes through the decoder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from models.diffusion.condition import Condition
from models.diffusion.method import Method
from models.offline.generator import load_generator
from models.rewards import training as rewards
from models.rewards.ensemble import Ensemble
from models.rewards.network import RewardConfig, RewardNetwork
from models.rewards.onnx_guides import Probe
from models.rewards.timed_classifier import TimedClassifier
from service.labelling.examples import Example
from service.labelling.training import Recipe, train
from service.labelling.unlabelled_pool import draw_pool
from tests.parity import Made
from tests.trainings import quick

SIZE = 32


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made.make("ldm-kl", tmp_path_factory.mktemp("ldm"))


def images(n: int) -> list[Example]:
    """Bright ones, and dark ones (malign, every third)."""
    rng = np.random.default_rng(0)
    found = []
    for i in range(n):
        malign = i % 3 == 0
        low = 0 if malign else 180
        pixels = rng.integers(low, low + 60, (SIZE, SIZE, 3)).astype(np.uint8)
        found.append(Example(f"image-{i}", pixels, "malign" if malign else "benign", 1.0, "random"))
    return found


@pytest.mark.slow
def test_guide_and_probe_see_latents_and_forward_guidance_is_calibrated(
    made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    generator = load_generator(made.bundle, "torch", forward=True)
    encoded: list[int] = []
    encode = generator.codec.encode

    def heard(image: torch.Tensor) -> torch.Tensor:
        encoded.append(len(image))
        return encode(image)

    monkeypatch.setattr(generator.codec, "encode", heard)
    methods = {
        2: Method(2, censor_scale=1.0, probes=(0.5,)),
        3: Method(3, censor_scale=1.0, guidance="forward"),
    }
    examples = images(36)
    found = train(
        examples, Recipe("p", guide=True), generator, (SIZE, SIZE, 3), methods,
        lambda stage, fraction: None, hyperparameters=quick(),
    )  # fmt: skip
    # Each label's image is encoded beforehand, so often for each network that sees latents.
    guided = len(found.card["split"]["guide"])
    assert sum(encoded) == 2 * rewards.VIEWS * guided

    (tmp_path / "guide").write_bytes(found.files["guide"])
    (tmp_path / "clean").write_bytes(found.files["clean_guide"])
    (tmp_path / "probe").write_bytes(found.files["probe"])
    channels, height, width = generator.shape
    assert Ensemble.load(tmp_path / "guide").config.channels == channels
    assert Ensemble.load(tmp_path / "clean").config.channels == 3
    scores = Probe(tmp_path / "probe").score(torch.randn(2, channels, height, width))
    assert scores.shape == (2,)
    # A probe with a decoder in it would be larger than the autoencoder.
    assert len(found.files["probe"]) < 100_000
    assert onnxruntime.InferenceSession(tmp_path / "probe").get_inputs()[0].shape[1] == channels
    assert set(found.card["calibrations"]) == {"2", "3"}, found.card["not_calibrated"]


@pytest.mark.slow
def test_forward_guidance_without_gradients_is_not_calibrated_and_says_why(made: Made) -> None:
    recipe: Any = Recipe("p")
    found = train(
        images(36), recipe, load_generator(made.bundle, "torch"), (SIZE, SIZE, 3),
        {2: Method(2, censor_scale=1.0, guidance="forward")}, lambda stage, fraction: None,
        hyperparameters=quick(),
    )  # fmt: skip
    assert found.card["calibrations"] == {}
    assert "backbone.forward_guidance" in found.card["not_calibrated"]["2"]


def test_a_decoder_that_fails_ends_the_training_with_a_sentence(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = load_generator(made.bundle, "torch")

    def broken(x_0: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(generator.codec, "decode", broken)
    with pytest.raises(ValueError, match="draws could not be finished: the decoder failed"):
        draw_pool(generator, {}, Method(2), range(3), 1, lambda count: None)


def test_draws_that_a_classifier_steers_are_made_while_training(tmp_path: Path) -> None:
    made = Made.make("class", tmp_path)
    generator = load_generator(made.bundle, "torch")
    steered = Method(2, classifier_scale=2.0)
    with pytest.raises(ValueError, match="need a classifier in the bundle"):
        draw_pool(generator, {}, steered, range(2), 1, lambda count: None)
    channels, height, width = generator.shape
    network = RewardNetwork(RewardConfig(members=1, channels=channels, timed=True, classes=3))
    taught = replace(
        generator,
        classifier=TimedClassifier(network),
        condition=lambda seed: Condition(class_label=1),
    )
    plain = draw_pool(taught, {}, Method(2), range(2), 1, lambda count: None)
    found = draw_pool(taught, {}, steered, range(2), 1, lambda count: None)
    assert found.pixels.shape == (2, height, width, 3)
    assert (found.pixels != plain.pixels).any()
