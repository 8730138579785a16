"""Draw images offline: a plain batched loop, for labels and evaluation of a backbone by itself.

It takes the same steps from the same noise as the service's engine, so (seed, draw) names the
same image here and there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models import noise
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
from models.bundle import Bundle
from models.codec import Codec, PixelShuffle
from models.condition import Condition
from models.conditioning import Conditions, Denoise, predict
from models.method import Method
from models.parameterization import to_x0_eps, x0_to_eps
from models.rewards.timed_classifier import TimedClassifier
from models.samplers import Trajectory, linear_step, trajectory
from models.schedule import NoiseSchedule, read_config


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

    def conditions(self, seeds: Sequence[int]) -> Conditions:
        """What the images of these seeds are conditioned on. Raises ConditionError."""
        asked = [self.condition(seed) for seed in seeds]
        encoded = [self.encoder.encode(one, seed) for one, seed in zip(asked, seeds, strict=True)]
        return Conditions.stack(encoded, [one.guidance_scale for one in asked])

    def images(
        self,
        seeds: Sequence[int],
        batch_size: int = 16,
        on_images: Callable[[int], None] = lambda _: None,
    ) -> NDArray[np.uint8]:
        """The image of draw 0 of each seed, uint8 [N, H, W, C] in 0..255.

        `on_images` hears how many more are done. Raises ValueError if the backbone makes NaN.
        """
        lines = trajectory(self.schedule, Method(self.num_inference_steps, self.eta))
        parts = []
        for start in range(0, len(seeds), batch_size):
            batch = seeds[start : start + batch_size]
            pixels, finite = self.codec.to_uint8(self._batch(batch, lines))
            if not finite.all():
                raise ValueError(f"the backbone made NaN for seeds {batch[0]} to {batch[-1]}")
            parts.append(pixels)
            on_images(len(batch))
        return np.concatenate(parts)

    def _batch(self, seeds: Sequence[int], lines: Trajectory) -> Tensor:
        x_t = self._noise(seeds, noise.Purpose.INITIAL, self.shape)
        steps = self._step_noise(seeds, len(lines))
        conditions = self.conditions(seeds)
        for i in range(len(lines)):
            timestep = torch.full((len(seeds),), int(lines.timesteps[i]), dtype=torch.int64)

            def number(column: NDArray[np.float64], i: int = i) -> Tensor:
                return torch.tensor(column[i], dtype=torch.float32)

            output = predict(self.denoiser, x_t, timestep, conditions).clone()
            x_0, eps = to_x0_eps(
                output, x_t, number(lines.alpha_bar), self.schedule.prediction_type
            )
            limit, guided = self.schedule.clip_sample_range, conditions.guided
            if limit is not None:
                x_0 = x_0.clamp(-limit, limit)
                eps[guided] = x0_to_eps(x_t[guided], x_0[guided], number(lines.alpha_bar))
            # Plain DDIM looks at no x̂_0 of the past.
            coefficients = (
                number(lines.x_t),
                number(lines.x_0),
                number(lines.eps),
                torch.zeros(()),
            )
            x_t = linear_step(coefficients, x_t, x_0, eps, x_0)
            if steps is not None:
                x_t = x_t + number(lines.sigma) * steps[:, i]
        return x_t

    def _noise(
        self, seeds: Sequence[int], purpose: noise.Purpose, shape: tuple[int, ...]
    ) -> Tensor:
        rows = [noise.normal(seed, 0, purpose, shape) for seed in seeds]
        return torch.from_numpy(np.stack(rows))

    def _step_noise(self, seeds: Sequence[int], steps: int) -> Tensor | None:
        if self.eta == 0:
            return None
        return self._noise(seeds, noise.Purpose.STEP, (steps, *self.shape))


def load_generator(
    bundle: Bundle,
    runtime: Literal["onnx", "torch"],
    device: str = "cpu",
    dtype: DtypeName = "float32",
    compile_mode: str | None = None,
    threads: int = 1,
    forward: bool = False,
) -> Generator:
    """The backbone of a bundle: see `runtime.load_denoiser`. Raises ValueError if it cannot be.

    `forward` asks for what forward guidance needs: the denoiser in torch as well.
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
        encoder=load_encoder(folder, backbone, here, DTYPES[dtype]),
        differentiable=differentiable,
        classifier=classifier,
    )
