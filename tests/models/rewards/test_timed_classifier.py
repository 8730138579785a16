"""A classifier of x_t, trained on a problem of three classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.backbones.unet import SCHEDULER_CONFIG
from models.diffusion.codec import PixelShuffle, from_uint8
from models.diffusion.noise_schedule import NoiseSchedule
from models.rewards.ensemble import Ensemble
from models.rewards.network import RewardConfig, RewardNetwork
from models.rewards.timed_classifier import ClassifierRecipe, TimedClassifier, train_classifier

SCHEDULE = NoiseSchedule.from_diffusers(SCHEDULER_CONFIG)
CODEC = PixelShuffle(2)
RECIPE = ClassifierRecipe(iterations=200, members=2, widths=(4, 4, 8, 8), batch_size=32)


def corners(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Noise with a bright square: above left (0), above right (1), or below (2)."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 40, (count, 28, 28, 1)).astype(np.uint8)
    labels = rng.integers(0, 3, count)
    for image, label in zip(pixels, labels, strict=True):
        row, column = [(4, 4), (4, 16), (16, 10)][label]
        image[row : row + 8, column : column + 8] = 255
    return pixels, labels


@pytest.fixture(scope="module")
def classifier() -> TimedClassifier:
    return train_classifier(*corners(120, 0), 3, SCHEDULE, CODEC, RECIPE)


def test_it_knows_clean_classes_and_none_in_pure_noise(classifier: TimedClassifier) -> None:
    pixels, labels = corners(100, 1)
    x_0 = CODEC.encode(from_uint8(pixels))
    clean = classifier.log_probability(x_0, torch.zeros(100, dtype=torch.int64))
    assert (clean.argmax(dim=1).numpy() == labels).mean() > 0.95
    torch.testing.assert_close(clean.exp().sum(dim=1), torch.ones(100))
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
    last = torch.full((100,), 999)
    assert classifier.log_probability(noise, last).exp().max() < 0.7


def test_its_gradient_is_that_of_the_label_asked_for(classifier: TimedClassifier) -> None:
    generator = torch.Generator().manual_seed(3)
    x_t = torch.randn(3, 4, 14, 14, generator=generator)
    timestep, labels = torch.tensor([0, 300, 600]), torch.tensor([2, 0, 1])
    gradient = classifier.gradient(x_t, timestep, labels)
    assert gradient.shape == x_t.shape
    assert not x_t.requires_grad
    step = 1e-2 * torch.randn(x_t.shape, generator=generator)

    def log_p(x: torch.Tensor) -> torch.Tensor:
        return classifier.log_probability(x, timestep)[range(3), labels]

    rise = (log_p(x_t + step) - log_p(x_t - step)) / 2
    torch.testing.assert_close((gradient * step).flatten(1).sum(1), rise, rtol=0.02, atol=1e-4)
    other = classifier.gradient(x_t, timestep, (labels + 1) % 3)
    assert (other - gradient).abs().amax((1, 2, 3)).min() > 1e-4


def test_saved_and_loaded_it_says_the_same(classifier: TimedClassifier, tmp_path: Path) -> None:
    path = tmp_path / "classifier.safetensors"
    classifier.save(path)
    loaded = TimedClassifier.load(path)
    assert loaded.classes == 3
    x_t, timestep = torch.randn(2, 4, 14, 14), torch.tensor([10, 500])
    torch.testing.assert_close(
        loaded.log_probability(x_t, timestep),
        classifier.log_probability(x_t, timestep),
        rtol=0,
        atol=0.02,  # of float16
    )
    with pytest.raises(ValueError, match="tells 3 classes apart: no reward"):
        Ensemble.load(path)


@pytest.mark.parametrize("config", [RewardConfig(timed=True), RewardConfig(classes=3)])
def test_a_reward_is_no_classifier(config: RewardConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two classes at least, and takes a timestep"):
        TimedClassifier(RewardNetwork(config))
    if config.classes == 1:
        Ensemble(RewardNetwork(config)).save(tmp_path / "reward.safetensors")
        with pytest.raises(ValueError, match=r"reward\.safetensors: a classifier"):
            TimedClassifier.load(tmp_path / "reward.safetensors")


def test_labels_that_do_not_fit_are_refused() -> None:
    pixels, labels = corners(30, 0)
    with pytest.raises(ValueError, match="class 3 has no image"):
        train_classifier(pixels, labels, 4, SCHEDULE, CODEC, RECIPE)
    with pytest.raises(ValueError, match="labels must be 0 to 1"):
        train_classifier(pixels, labels, 2, SCHEDULE, CODEC, RECIPE)
    with pytest.raises(ValueError, match="30 images have 29 labels"):
        train_classifier(pixels, labels[1:], 3, SCHEDULE, CODEC, RECIPE)
