"""Engines to test: the real Runner, Batch and Engine around a denoiser that a test writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models.diffusion.codec import Codec, PixelShuffle
from models.diffusion.conditioning import Named
from models.diffusion.guidance import CleanReward, Guide
from models.diffusion.noise_schedule import NoiseSchedule
from models.diffusion.parameterization import PredictionType
from models.sampling.batch import Batch
from models.sampling.batches import Batches
from models.sampling.runner import Probe, Runner
from service.engine.engine import Engine, Meter
from service.engine.networks import Networks
from service.engine.scheduler import Draw, Ticket
from service.ports import DrawKey, DrawResult, SamplingPlan
from tests.plans import FREE, vary

FOREVER = float("inf")


def make_plan(**changes: Any) -> SamplingPlan:
    """A plan of 4 steps that censors nothing, with some fields changed."""
    return vary(FREE, **({"num_inference_steps": 4, "seed": 0} | changes))


def make_schedule(prediction_type: PredictionType = "epsilon", **config: Any) -> NoiseSchedule:
    """The shipped schedule (cosine, trailing), without clipping unless asked for."""
    return NoiseSchedule.from_diffusers(
        {
            "num_train_timesteps": 1000,
            "beta_schedule": "squaredcos_cap_v2",
            "timestep_spacing": "trailing",
            "clip_sample": False,
            "prediction_type": prediction_type,
        }
        | config
    )


class Lossless(PixelShuffle):
    """Delivers x_0 as the bytes of its float32 numbers, so that a test sees every bit."""

    def to_uint8(self, x_0: Tensor) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """x_0 [B, C, H, W] to ([B, H, W, 4·C], all finite)."""
        numbers = np.ascontiguousarray(x_0.permute(0, 2, 3, 1).cpu().numpy())
        return numbers.view(np.uint8), np.ones(len(numbers), dtype=np.bool_)


def floats(result: DrawResult) -> NDArray[np.float32]:
    """What `Lossless` delivered: x_0 [C, H, W]."""
    assert result.pixels is not None
    return result.pixels.view(np.float32).transpose(2, 0, 1)


def make_engine(
    denoiser: Callable[..., Tensor],
    schedule: NoiseSchedule,
    shape: tuple[int, int, int] = (1, 2, 3),
    guides: Mapping[str, Guide] | None = None,
    max_batch: int = 8,
    codec: Codec | None = None,
    backbone: str = FREE.backbone,
    clean_guides: Mapping[str, CleanReward] | None = None,
    probes: Mapping[str, Probe] | None = None,
    forward: Mapping[str, Guide] | None = None,
    micro_batch: int = 4,
    meter: Meter | None = None,
    sizes: Mapping[tuple[int, int], tuple[int, int, int]] = MappingProxyType({}),
) -> Engine:
    """An engine over x_t of `shape`, and of those of other `sizes`; no condition is told."""

    def denoise(x_t: Tensor, timestep: Tensor, inputs: Named) -> Tensor:
        assert not inputs
        return denoiser(x_t, timestep)

    by_part: dict[str, Mapping[str, Any] | None] = {
        "guide": guides,
        "forward": forward,
        "clean_guide": clean_guides,
        "probe": probes,
    }
    networks = Networks(
        {
            (part, name): network
            for part, named in by_part.items()
            for name, network in (named or {}).items()
        }
    )
    return Engine(
        Runner(backbone, denoise, schedule, networks),
        Batches(partial(_batch, schedule), shape, max_batch, sizes),
        codec or Lossless(),
        max_batch,
        meter=meter,
        micro_batch=micro_batch,
    )


def _batch(schedule: NoiseSchedule, shape: tuple[int, int, int], rows: int) -> Batch:
    return Batch(schedule, shape, rows, "cpu")


class Collector:
    """A caller of an engine without a loop: gathers its results, or its fault."""

    def __init__(self) -> None:
        self.results: dict[DrawKey, DrawResult] = {}
        self.fault: Exception | None = None
        self.ticket = Ticket(self._deliver, FOREVER)

    def _deliver(self, item: list[DrawResult] | Exception) -> None:
        if isinstance(item, Exception):
            self.fault = item
        else:
            self.results |= {result.key: result for result in item}


def submit(engine: Engine, plan: SamplingPlan, keys: Iterable[DrawKey]) -> Collector:
    """Queue draws of one caller."""
    collector = Collector()
    engine.scheduler.add([Draw(plan, key, collector.ticket) for key in keys])
    return collector


def run_to_end(engine: Engine) -> None:
    """Tick until nothing runs or waits."""
    while not engine.idle:
        engine.tick()


def draw_all(engine: Engine, plan: SamplingPlan, seeds: Sequence[int]) -> list[DrawResult]:
    """Draw number 0 of each seed, in order."""
    keys = [DrawKey(index, seed, 0) for index, seed in enumerate(seeds)]
    collector = submit(engine, plan, keys)
    run_to_end(engine)
    return [collector.results[key] for key in keys]
