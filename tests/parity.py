"""The same images by Winnow's engine and by diffusers' own pipelines, from the same noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from diffusers import DDIMPipeline
from numpy.typing import NDArray
from torch import Tensor

from models.backbones.importing.inputs import NOTHING, InputOptions
from models.backbones.runtime import DtypeName
from models.bundles.bundle import Bundle, load
from models.diffusion.codec import Codec
from models.diffusion.condition import Condition
from models.diffusion.conditioning import Named
from models.diffusion.method import Method
from models.diffusion.noise import Purpose, normal
from models.diffusion.noise_schedule import NoiseSchedule, read_config
from models.offline.generator import Generator, load_generator
from models.sampling.batch import Batch
from models.sampling.batches import Batches
from models.sampling.runner import Runner
from service.engine.engine import Engine
from service.engine.networks import Networks
from service.ports import DrawKey, DrawResult, SamplingPlan
from tests import pipelines
from tests.engines import make_plan, run_to_end, submit
from tests.families import SIZES, TINY
from tests.imports import import_folder
from tests.plans import FREE
from tests.schedulers import MODULES, scheduler_of

CLASSES = InputOptions(class_names=("a", "b", "c"), null_class=pipelines.CLASSES)
KINDS: dict[str, Callable[[Path], Any]] = {
    "ddpm": pipelines.tiny_ddpm,
    "class": pipelines.tiny_class,
    "ldm-vq": lambda folder: pipelines.tiny_ldm(folder, vq=True),
    "ldm-kl": lambda folder: pipelines.tiny_ldm(folder, vq=False),
    "sd": pipelines.tiny_sd,
    "sd-v": lambda folder: pipelines.tiny_sd(folder, "v_prediction"),
    "sdxl": pipelines.tiny_sdxl,
    "dit": pipelines.tiny_dit,
}
"""How a pipeline of each kind is made."""


@dataclass(frozen=True)
class Image:
    """A finished image: `x_0` [C, H, W] as sampled, and `decoded` [C, H, W], not clamped."""

    x_0: Tensor
    decoded: Tensor

    def difference(self, other: Image) -> float:
        """The greatest of all numbers' differences."""
        pairs = (self.x_0, other.x_0), (self.decoded, other.decoded)
        return max(float((a - b).abs().max()) for a, b in pairs)


@dataclass
class Made:
    """One tiny pipeline, as diffusers has it and as Winnow imports and loads it."""

    kind: str
    pipeline: Any
    scheduler: dict[str, Any]
    bundle: Bundle
    generator: Generator
    denoised: list[tuple[Tensor, Named]] = field(default_factory=list)
    """Every call of the denoiser by an engine: timesteps [B], and the inputs."""

    @classmethod
    def make(cls, kind: str, folder: Path, dtype: DtypeName = "float32") -> Made:
        """Write it under `folder`."""
        pipeline = (KINDS | TINY)[kind](folder / "pipeline")
        import_folder(
            folder / "pipeline",
            folder / "bundle",
            inputs=CLASSES if kind == "class" else NOTHING,
            size=SIZES.get(kind),
        )
        bundle = load(str(folder / "bundle"))
        # The file: a scheduler in memory forgets what it had by default when another is made of it.
        scheduler = read_config(folder / "pipeline")
        return cls(kind, pipeline, scheduler, bundle, load_generator(bundle, "torch", dtype=dtype))

    def engine(
        self, networks: Mapping[tuple[str, str], Any] | None = None, max_batch: int = 5
    ) -> Engine:
        """What `load_engine` builds, but that it delivers an `Image`'s numbers for pixels."""
        made = self.generator

        def denoise(x_t: Tensor, timestep: Tensor, inputs: Named) -> Tensor:
            self.denoised.append((timestep, inputs))
            return made.denoiser(x_t, timestep, inputs)

        return Engine(
            Runner(FREE.backbone, denoise, made.schedule, Networks(networks)),
            Batches(
                lambda shape, rows: Batch(made.schedule, shape, rows, "cpu"),
                made.shape,
                max_batch,
            ),
            Numbers(made.codec),
            max_batch,
            encoder=made.encoder,
        )

    def image(self, result: DrawResult) -> Image:
        """What `Numbers` delivered."""
        assert result.pixels is not None
        numbers = torch.from_numpy(result.pixels.view(np.float32).copy())
        count = int(np.prod(self.generator.shape))
        size = self.bundle.manifest.backbone
        return Image(
            numbers[:count].view(self.generator.shape),
            numbers[count:].view(size.channels, size.height, size.width),
        )

    def diffusers(self, plan: SamplingPlan, seed: int) -> Image:
        """By diffusers, alone in its batch."""
        pipeline, method, asked = self.pipeline, plan.method, plan.condition
        pipeline.scheduler = scheduler_of(NoiseSchedule.from_diffusers(self.scheduler), method)
        x_t = noise(seed, self.generator.shape)
        kept: list[Tensor] = []
        steps = {"num_inference_steps": method.num_inference_steps, "output_type": "np"}
        with watched(pipeline, kept), noisy(x_t, seed, method):
            if self.kind == "ddpm" and method.sampler == "ddim":
                ddim = DDIMPipeline(pipeline.unet, pipeline.scheduler)
                ddim.scheduler = pipeline.scheduler  # not its copy of it
                ddim.set_progress_bar_config(disable=True)
                ddim(eta=method.eta, **steps)
            elif self.kind in ("ddpm", "class"):
                _loop(pipeline, x_t, asked, method.num_inference_steps)
            elif self.kind == "dit":
                pipeline([asked.label(seed)], guidance_scale=asked.guidance_scale, **steps)
            elif self.kind.startswith("ldm"):
                pipeline(**steps)
            else:
                pipeline(
                    asked.prompt,
                    negative_prompt=asked.negative_prompt or None,
                    guidance_scale=asked.guidance_scale,
                    eta=method.eta,
                    latents=x_t,
                    **steps,
                )
        autoencoder = getattr(pipeline, "vae", None) or getattr(pipeline, "vqvae", None)
        x_0 = next(one for one in reversed(kept) if one.shape[1:] == x_t.shape[1:])[0]
        return Image(x_0, x_0 if autoencoder is None else kept[-1][0])


class Numbers:
    """Delivers x_0 and what a codec decodes of it, as the bytes of float32 numbers."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self.exact = codec.exact

    def to_uint8(self, x_0: Tensor) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """[B, 4·N], all finite."""
        numbers = torch.cat([x_0.flatten(1), self._codec.decode(x_0).flatten(1)], dim=1)
        return numbers.numpy().view(np.uint8), np.ones(len(x_0), dtype=np.bool_)

    encode = decode = None


def noise(seed: int, shape: tuple[int, ...]) -> Tensor:
    """The x_T of draw 0 of a seed, [1, C, H, W]."""
    return torch.from_numpy(normal(seed, 0, Purpose.INITIAL, shape))[None]


@contextmanager
def watched(pipeline: Any, kept: list[Tensor]) -> Iterator[None]:
    """Keep what every step and then the autoencoder make."""
    step = pipeline.scheduler.step

    @wraps(step)  # pipelines read its signature
    def keep_step(*args: Any, **kwargs: Any) -> Any:
        kwargs["return_dict"], dictionary = True, kwargs.get("return_dict", True)
        found = step(*args, **kwargs)
        kept.append(found.prev_sample)
        return found if dictionary else (found.prev_sample,)

    autoencoder = getattr(pipeline, "vae", None) or getattr(pipeline, "vqvae", None)
    with patch.object(pipeline.scheduler, "step", keep_step):
        if autoencoder is None:
            yield
            return
        decode = autoencoder.decode

        def keep_image(*args: Any, **kwargs: Any) -> Any:
            found = decode(*args, **kwargs)
            kept.append(found[0])
            return found

        with patch.object(autoencoder, "decode", keep_image):
            yield


@contextmanager
def noisy(x_t: Tensor, seed: int, method: Method) -> Iterator[None]:
    """Let diffusers draw our noise: x_T where it takes none, and then each step's."""
    shape = (method.num_inference_steps, *x_t.shape)
    steps = iter(torch.from_numpy(normal(seed, 0, Purpose.STEP, shape)))
    pipes, names = "diffusers.pipelines", ["ddim.pipeline_ddim", "dit.pipeline_dit"]
    names.append("deprecated.latent_diffusion_uncond.pipeline_latent_diffusion_uncond")
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(patch(f"{pipes}.{name}.randn_tensor", lambda *args, **kwargs: x_t))
        for module in MODULES:
            target = f"diffusers.schedulers.scheduling_{module}.randn_tensor"
            stack.enter_context(patch(target, lambda *args, **kwargs: next(steps)))
        yield


@torch.no_grad()
def _loop(pipeline: Any, x_t: Tensor, asked: Condition, steps: int) -> None:
    """Where diffusers has no such pipeline for a UNet2DModel: its loop, with its modules."""
    told, null = [
        {} if asked.class_label is None else {"class_labels": torch.tensor([label])}
        for label in (asked.class_label, pipelines.CLASSES)
    ]
    pipeline.scheduler.set_timesteps(steps)
    for t in pipeline.scheduler.timesteps:
        output = pipeline.unet(x_t, t, **told).sample
        if asked.guidance_scale > 1:
            negative = pipeline.unet(x_t, t, **null).sample
            output = negative + asked.guidance_scale * (output - negative)
        x_t = pipeline.scheduler.step(output, t, x_t).prev_sample


def draw_each(
    engine: Engine, plans: list[SamplingPlan], ticks_between: int = 0
) -> list[DrawResult]:
    """Plan i's image of seed i, each submitted so many ticks after the one before."""
    callers = []
    for seed, plan in enumerate(plans):
        callers.append(submit(engine, plan, [DrawKey(0, seed, 0)]))
        for _ in range(ticks_between):
            engine.tick()
    run_to_end(engine)
    engine.decoder.wait()
    for caller in callers:
        if caller.fault is not None:
            raise caller.fault
    return [next(iter(caller.results.values())) for caller in callers]


def ask(steps: int = 10, sampler: str = "ddim", eta: float = 0.0, **condition: Any) -> SamplingPlan:
    """A plan that censors nothing."""
    return make_plan(
        num_inference_steps=steps, sampler=sampler, eta=eta, condition=Condition(**condition)
    )
