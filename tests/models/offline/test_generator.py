"""The offline generator against diffusers' DDIM and the engine, from the same noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from numpy.typing import NDArray
from torch import Tensor

from models.backbones.unet import SCHEDULER_CONFIG
from models.diffusion import noise
from models.diffusion.codec import PixelShuffle
from models.diffusion.conditioning import Conditions, Named
from models.diffusion.method import Method
from models.diffusion.noise_schedule import NoiseSchedule
from models.offline.generator import Generator
from tests.engines import Lossless, draw_all, make_engine, make_plan


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


class Towards:
    """A guide that pulls x_t to 0.5."""

    def gradient(
        self, x_t: Tensor, timestep: Tensor, conditions: Conditions | None = None
    ) -> Tensor:
        return 0.5 - x_t


class Bright:
    """A probe."""

    def score(self, x_0: Tensor) -> NDArray[np.float64]:
        return torch.sigmoid(x_0.double().mean(dim=(1, 2, 3))).numpy()


@pytest.mark.parametrize(
    "method",
    [
        Method(9, sampler="dpmsolver++"),
        Method(8, eta=1.0),
        Method(6, censor_scale=1.0, recurrences=2, probes=(0.5,)),
    ],
)
def test_an_offline_draw_is_the_engines_to_the_last_bit(method: Method) -> None:
    """Whatever the method is: there is one step, and not one for serving and one for training."""
    offline = replace(generator(), codec=Lossless())
    networks = {"guide": Towards(), "probe": Bright()}
    found = offline.draw(method, range(7, 12), networks, batch_size=3)
    engine = make_engine(
        denoise, offline.schedule, offline.shape, {"g": Towards()}, probes={"p": Bright()}
    )
    plan = replace(
        make_plan(),
        method=method,
        parts=({"guide": "g"} if method.censor_scale else {}) | {"probe": "p"},
        probe_thresholds=(0.0,) * len(method.probes),
    )
    served = draw_all(engine, plan, range(7, 12))
    for row, result in enumerate(served):
        np.testing.assert_array_equal(found.pixels[row], result.pixels)
        assert tuple(found.probe_scores[row]) == result.probe_scores
