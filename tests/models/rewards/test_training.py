"""Training on a problem that a few labels decide."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.backbones.unet import SCHEDULER_CONFIG
from models.diffusion.codec import PixelShuffle
from models.diffusion.noise_schedule import NoiseSchedule
from models.rewards.training import CLEAN_GUIDE, RewardRecipe, augment, train_reward

RECIPE = replace(
    CLEAN_GUIDE, iterations=60, benign_weight=1.0, members=2, widths=(4, 4, 8, 8), batch_size=16
)


def bars(n: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Noise with a bright bar, upright (benign) or level (malign)."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 40, (n, 28, 28, 1)).astype(np.uint8)
    benign = rng.random(n) < 0.5
    for i in range(n):
        at = rng.integers(9, 17)
        if benign[i]:
            pixels[i, 4:24, at : at + 3] = 255
        else:
            pixels[i, at : at + 3, 4:24] = 255
    return pixels, benign


def accuracy(recipe: RewardRecipe, timed: bool) -> float:
    schedule = NoiseSchedule.from_diffusers(SCHEDULER_CONFIG)
    reward = train_reward(
        *bars(60, 0), recipe, noising=(schedule, PixelShuffle(2)) if timed else None
    )
    pixels, benign = bars(200, 1)
    image = torch.from_numpy(pixels.astype(np.float32)).permute(0, 3, 1, 2) / 127.5 - 1
    if timed:
        logits = reward.logits(PixelShuffle(2).encode(image), torch.zeros(200, dtype=torch.int64))
    else:
        logits = reward.logits(image)
    return float(((logits.mean(dim=1).numpy() > 0) == benign).mean())


def test_clean_and_timed_rewards_learn_which_way_is_benign() -> None:
    assert accuracy(RECIPE, timed=False) > 0.95
    assert accuracy(replace(RECIPE, iterations=150), timed=True) > 0.9


def test_same_seed_gives_the_same_weights() -> None:
    short = replace(RECIPE, iterations=3)
    first, second = (train_reward(*bars(60, 0), short).network.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = train_reward(*bars(60, 0), replace(short, seed=9)).network.state_dict()
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_weight_on_benign_shifts_the_logit_by_its_logarithm() -> None:
    # Images that say nothing: the best constant logit is log α on balanced batches.
    pixels = np.zeros((40, 28, 28, 1), dtype=np.uint8)
    benign = np.arange(40) % 2 == 0
    recipe = replace(RECIPE, iterations=250, benign_weight=0.2)
    reward = train_reward(pixels, benign, recipe)
    logits = reward.logits(torch.full((1, 1, 28, 28), -1.0))
    assert logits.mean().item() == pytest.approx(np.log(0.2), abs=0.15)


def test_too_few_labels_are_refused() -> None:
    pixels, _ = bars(30, 0)
    benign = np.ones(30, dtype=bool)
    benign[:9] = False
    with pytest.raises(ValueError, match="9 labels of one class, and 10 are needed"):
        train_reward(pixels, benign, RECIPE)


def test_augmentation_of_strength_zero_changes_nothing_and_background_stays() -> None:
    still = replace(RECIPE, rotation_degrees=0.0, shift=0.0, scale=0.0)
    images = torch.rand(3, 1, 28, 28) * 2 - 1
    generator = torch.Generator().manual_seed(0)
    torch.testing.assert_close(augment(images, still, generator), images, atol=1e-5, rtol=0)
    empty = torch.full((3, 1, 28, 28), -1.0)
    torch.testing.assert_close(augment(empty, RECIPE, generator), empty)
    assert (augment(images, RECIPE, generator) - images).abs().mean() > 0.05
