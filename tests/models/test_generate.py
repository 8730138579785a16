"""The offline generator against diffusers' DDIM, from the same noise."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from models import noise
from models.backbones.unet import SCHEDULER_CONFIG
from models.codec import PixelShuffle
from models.conditioning import Named
from models.generate import Generator
from models.schedule import NoiseSchedule


def denoise(x_t: Tensor, timestep: Tensor, inputs: Named | None = None) -> Tensor:
    return torch.tanh(x_t * (1 + timestep.view(-1, 1, 1, 1) / 1000)) - 0.1


def generator(steps: int = 20, eta: float = 0.0) -> Generator:
    schedule = NoiseSchedule.from_diffusers(SCHEDULER_CONFIG)
    return Generator(denoise, schedule, PixelShuffle(2), (4, 14, 14), steps, eta)


def test_images_are_diffusers_own() -> None:
    seeds = [3, 4, 5]
    scheduler = DDIMScheduler(**SCHEDULER_CONFIG)
    scheduler.set_timesteps(20)
    x = torch.from_numpy(
        np.stack([noise.normal(seed, 0, noise.Purpose.INITIAL, (4, 14, 14)) for seed in seeds])
    )
    for t in scheduler.timesteps:
        x = scheduler.step(denoise(x, t.expand(3)), t, x, eta=0.0).prev_sample
    wanted = PixelShuffle(2).to_uint8(x)[0].astype(int)
    found = generator().images(seeds).astype(int)
    assert found.shape == (3, 28, 28, 1)
    assert np.ptp(found) > 100
    assert np.abs(found - wanted).max() <= 1


def test_seed_names_its_image_whatever_the_batch() -> None:
    for eta in (0.0, 1.0):
        draws = generator(eta=eta)
        done: list[int] = []
        together = draws.images(range(7, 12), batch_size=3, on_images=done.append)
        alone = np.concatenate([draws.images([seed]) for seed in range(7, 12)])
        np.testing.assert_array_equal(together, alone)
        assert done == [3, 2]
    assert not np.array_equal(generator(eta=1.0).images([7]), generator(eta=0.0).images([7]))
