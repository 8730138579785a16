"""Images of a whole pipeline, drawn without a service."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from models.backbones.pipeline import Pipeline, PipelineEncoder
from models.backbones.runtime import DTYPES, DtypeName, available
from models.bundles.bundle import Bundle
from models.bundles.manifest import WHOLE
from models.diffusion.codec import PixelShuffle
from models.diffusion.conditioning import Named
from models.diffusion.method import Method
from models.diffusion.noise_schedule import NoiseSchedule
from models.offline.generator import Draws, Generator
from models.sampling.batch import Batch


@dataclass(frozen=True, kw_only=True)
class PipelineGenerator(Generator):
    """A generator whose steps are a pipeline's own.

    What steps a denoiser is not there: `denoiser` and `steps` refuse, and `schedule` stands where
    networks on images ask for one that they do not use.
    """

    pipeline: Pipeline
    steppable: ClassVar[bool] = False

    def steps(
        self,
        method: Method,
        seeds: Sequence[int],
        networks: Mapping[str, Any] = MappingProxyType({}),
    ) -> Iterator[Batch]:
        """Raises ValueError."""
        raise ValueError(f"guidance: {WHOLE}")

    def draw(
        self,
        method: Method,
        seeds: Sequence[int],
        networks: Mapping[str, Any] = MappingProxyType({}),
        batch_size: int = 16,
        on_draws: Callable[[int], None] = lambda _: None,
    ) -> Draws:
        """See `Generator`; one after another."""
        if method.beside_steps:
            raise ValueError(f"{method.beside_steps[0]}: {WHOLE}")
        pixels = []
        for number, seed in enumerate(seeds):
            on_draws(number)
            size = self.shape[1], self.shape[2]
            hear = partial(on_draws, number)
            image = self.pipeline.draw(method, self.condition(seed), seed, 0, size, hear)
            made, finite = self.codec.to_uint8(image[None])
            if not finite.all():
                raise ValueError(f"the backbone made NaN for seed {seed}")
            pixels.append(made)
        on_draws(len(seeds))
        return Draws(np.concatenate(pixels), np.zeros((len(seeds), 0)))


def open_pipeline(bundle: Bundle, device: str, dtype: DtypeName) -> Pipeline:
    """The pipeline of a bundle. Raises ValueError where it cannot be drawn with."""
    backbone = bundle.manifest.backbone
    folder = bundle.folder / backbone.folder
    return Pipeline(folder, backbone, available(device), DTYPES[dtype])


def pipeline_generator(bundle: Bundle, device: str, dtype: DtypeName) -> PipelineGenerator:
    """What draws a bundle's images, offline."""
    pipeline = open_pipeline(bundle, device, dtype)
    return PipelineGenerator(
        denoiser=_no_denoiser,
        schedule=NoiseSchedule.from_diffusers({}),
        codec=PixelShuffle(),
        shape=bundle.x_t_shape,
        encoder=PipelineEncoder(pipeline, bundle.manifest.backbone.inputs),
        pipeline=pipeline,
    )


def _no_denoiser(x_t: Tensor, timestep: Tensor, inputs: Named = MappingProxyType({})) -> Tensor:
    raise ValueError("a whole pipeline steps itself")
