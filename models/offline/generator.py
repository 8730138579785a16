"""Draw images offline, for labels, training and evaluation of a backbone by itself.

It takes the engine's own step, from the same noise: (seed, draw) names the same image here and
there. Here all rows begin and end together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from models.backbones.autoencoder import LatentCodec
from models.backbones.encoders import Encoder, Unconditional, load_encoder
from models.backbones.runtime import (
    DTYPES,
    Denoiser,
    DtypeName,
    TorchDenoiser,
    available,
    load_denoiser,
)
from models.bundles.bundle import Bundle
from models.bundles.parts import PARTS
from models.diffusion.codec import Codec, PixelShuffle
from models.diffusion.condition import PROMPT_CHUNKS, Condition
from models.diffusion.conditioning import Denoise
from models.diffusion.method import Method
from models.diffusion.noise_schedule import NoiseSchedule, read_config
from models.rewards.timed_classifier import TimedClassifier
from models.sampling.batch import Batch
from models.sampling.networks import NetworkTable
from models.sampling.runner import Runner


@dataclass(frozen=True)
class Draws:
    """Draws in the order of their seeds: pixels uint8 [N, H, W, C], and probe scores [N, P]."""

    pixels: NDArray[np.uint8]
    probe_scores: NDArray[np.float64]


@dataclass(frozen=True)
class Generator:
    """What turns seeds into images; `shape` is x_t's, [C, H, W].

    `condition` says what the image of a seed is to show, and `encoder` tells the denoiser.
    `differentiable` is the denoiser in torch, with gradients, where it was asked for;
    `classifier` steers towards a class, where the bundle has one.
    """

    denoiser: Denoiser
    schedule: NoiseSchedule
    codec: Codec
    shape: tuple[int, int, int]
    num_inference_steps: int = 50
    eta: float = 0.0
    encoder: Encoder = field(default_factory=Unconditional)
    differentiable: Denoise | None = None
    classifier: TimedClassifier | None = None
    condition: Callable[[int], Condition] = lambda seed: Condition()

    def steps(
        self,
        method: Method,
        seeds: Sequence[int],
        networks: Mapping[str, Any] = MappingProxyType({}),
    ) -> Iterator[Batch]:
        """Draw 0 of each seed by the step of the engine: yields the batch before each line.

        When it is exhausted, the batch's x_t is x_0. `networks` are those of a reward by part (see
        `bundles.parts`); probes look and stop nothing. Raises ConditionError, and ValueError where
        there is no such method.
        """
        table = NetworkTable()
        places = {PARTS[part].stage: table.append(part, one) for part, one in networks.items()}
        runner = Runner("", self.denoiser, self.schedule, table, self.classifier)
        batch = Batch(self.schedule, self.shape, len(seeds), "cpu")
        for row, seed in enumerate(seeds):
            asked = self.condition(seed)
            batch.put(
                row,
                method,
                seed,
                0,
                places,
                self.encoder.encode(asked, seed),
                self.encoder.scale(asked),
                (0.0,) * len(method.probes),
            )
        for _ in range(len(batch.program(method))):
            yield batch
            runner.advance(batch, len(seeds))

    def draw(
        self,
        method: Method,
        seeds: Sequence[int],
        networks: Mapping[str, Any] = MappingProxyType({}),
        batch_size: int = 16,
        on_draws: Callable[[int], None] = lambda _: None,
    ) -> Draws:
        """Draw 0 of each seed; see `steps`.

        `on_draws` hears how many are done, before every line. Raises ValueError if the backbone
        makes NaN, or the codec fails.
        """
        pixels, scores = [], []
        for start in range(0, len(seeds), batch_size):
            part = seeds[start : start + batch_size]
            for batch in self.steps(method, part, networks):
                on_draws(start)
                x_0, probe_scores = batch.x_t, batch.probe_scores  # advanced in place
            try:
                with torch.no_grad():
                    made, finite = self.codec.to_uint8(x_0)
            except RuntimeError as error:
                raise ValueError(
                    f"draws could not be finished: the decoder failed: {error}"
                ) from error
            if not finite.all():
                raise ValueError(f"the backbone made NaN for seeds {part[0]} to {part[-1]}")
            pixels.append(made)
            scores.append(probe_scores)
        on_draws(len(seeds))
        return Draws(np.concatenate(pixels), np.concatenate(scores))

    def images(
        self,
        seeds: Sequence[int],
        batch_size: int = 16,
        on_images: Callable[[int], None] = lambda _: None,
    ) -> NDArray[np.uint8]:
        """The image of draw 0 of each seed by plain DDIM, uint8 [N, H, W, C]; see `draw`.

        `on_images` gets the number of images done since its last call.
        """
        told = 0

        def more(done: int) -> None:
            nonlocal told
            if done > told:
                on_images(done - told)
                told = done

        method = Method(self.num_inference_steps, self.eta)
        return self.draw(method, seeds, batch_size=batch_size, on_draws=more).pixels


def load_generator(
    bundle: Bundle,
    runtime: Literal["onnx", "torch"],
    device: str = "cpu",
    dtype: DtypeName = "float32",
    compile_mode: str | None = None,
    threads: int = 1,
    forward: bool = False,
    prompt_chunks: int = PROMPT_CHUNKS,
) -> Generator:
    """The backbone of a bundle: see `runtime.load_denoiser`. Raises ValueError if it cannot be.

    `forward` asks for what forward guidance needs: the denoiser in torch as well; `prompt_chunks`
    see `load_encoder`.
    """
    backbone = bundle.manifest.backbone
    folder = bundle.folder / backbone.folder
    denoiser = load_denoiser(
        folder,
        None if backbone.onnx is None else bundle.path(backbone.onnx),
        runtime=runtime,
        device=device,
        dtype=dtype,
        compile_mode=compile_mode,
        threads=threads,
    )
    here = available(device)
    differentiable: Denoise | None = None
    classifier: TimedClassifier | None = None
    if forward:
        through = denoiser
        if not isinstance(through, TorchDenoiser):
            through = TorchDenoiser(folder, here, DTYPES[dtype])
        differentiable = through.differentiable
    classifier = None
    if backbone.classifier is not None:
        classifier = TimedClassifier.load(bundle.path(backbone.classifier)).to(here)
    codec: Codec = PixelShuffle(backbone.pixel_shuffle)
    if backbone.autoencoder is not None:
        codec = LatentCodec(folder / backbone.autoencoder, here, DTYPES[dtype])
    return Generator(
        denoiser=denoiser,
        schedule=NoiseSchedule.from_diffusers(read_config(folder)),
        codec=codec,
        shape=bundle.x_t_shape,
        encoder=load_encoder(folder, backbone, here, DTYPES[dtype], prompt_chunks),
        differentiable=differentiable,
        classifier=classifier,
    )
