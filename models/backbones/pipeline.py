"""A pipeline of diffusers', run as it is: from a condition and a seed to an image.

Nothing here knows its denoiser. What it is told, it takes by the names of its own call.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.backbones.encoders import Encoder, Unreadable
from models.backbones.prompt_limits import PromptLimits
from models.bundles.manifest import Backbone, Inputs
from models.diffusion.condition import UNCONDITIONAL, Condition, ConditionError
from models.diffusion.conditioning import Encoded
from models.diffusion.method import Method
from models.diffusion.noise import torch_seed

CALLBACKS = ("callback_on_step_end", "prior_callback_on_step_end")
OLD_CALLBACK = "callback"
"""What diffusers called it before: (step, timestep, latents)."""
TRIAL_SCALE = 4.0

OnStep = Callable[[], None]
"""Called between two steps; what it raises ends the draw."""


class _Seen(Exception):
    """Ends the trial after its first step."""


class Pipeline:
    """A pipeline of a bundle. One draw at a time: its scheduler keeps state."""

    def __init__(
        self,
        folder: Path,
        backbone: Backbone,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Load `folder`, in diffusers' format. Raises ValueError where it cannot be drawn with."""
        import transformers

        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        index = json.loads((folder / "model_index.json").read_text())
        absent = []
        for name, value in index.items():
            if isinstance(value, list) and any(value):
                # diffusers would import any library that stands there.
                component_class(name, *value)
            elif isinstance(value, list):
                absent.append(name)
        self._pipeline = pipeline_class(index.get("_class_name")).from_pretrained(
            folder,
            torch_dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            **dict.fromkeys(absent),
        )
        self._pipeline.to(device)
        self._pipeline.set_progress_bar_config(disable=True)
        self._takes = parameters(type(self._pipeline))
        self._channels = backbone.channels
        self._finite = True
        self._ended: BaseException | None = None
        self._watch_processor()
        self._limits = PromptLimits(self._pipeline)
        with self._limits.trial() as prompts:
            said = Condition(prompts["prompt"], prompts["negative_prompt"], None, TRIAL_SCALE)
            self._try(said, backbone)

    def check(self, condition: Condition) -> None:
        """Raises ConditionError for what the pipeline cannot be told."""
        if condition.negative_prompt and "negative_prompt" not in self._takes:
            name = type(self._pipeline).__name__
            raise ConditionError(f"is not taken by this model ({name})", "negative_prompt")
        self._limits.check(condition)

    def draw(
        self,
        method: Method,
        condition: Condition,
        seed: int,
        draw: int,
        size: tuple[int, int],
        on_step: OnStep = lambda: None,
    ) -> Tensor:
        """The image [C, H, W] in [-1, 1] of a draw, NaN where anything on the way was not finite.

        `size` is [H, W]. `on_step` is called after each step but the last. Raises ValueError where
        an image of another size comes out, or none, and what `on_step` raises.
        """
        self._finite = True
        images = self._call(method, condition, seed, draw, size, on_step)
        image = _first(images)
        if tuple(image.shape) != (self._channels, *size):
            found, wanted = ("x".join(map(str, one)) for one in (image.shape[1:], size))
            raise ValueError(
                f"{type(self._pipeline).__name__} makes images of {found} with {len(image)} "
                f"channels, and was asked for {wanted} with {self._channels} (--size of an import)"
            )
        return 2 * image - 1 if self._finite else torch.full_like(image, torch.nan)

    def _call(
        self,
        method: Method,
        condition: Condition,
        seed: int,
        draw: int,
        size: tuple[int, int],
        on_step: OnStep,
    ) -> Any:
        given: dict[str, Any] = {
            "prompt": condition.prompt,
            "negative_prompt": condition.negative_prompt or None,
            "height": size[0],
            "width": size[1],
            "num_inference_steps": method.num_inference_steps,
            "guidance_scale": condition.guidance_scale,
            # On the CPU whatever the device, so that a seed has one image.
            "generator": torch.Generator().manual_seed(torch_seed(seed, draw)),
            # Some pipelines give tensors as they come, in [-1, 1].
            "output_type": "np",
        }

        def stepped(pipeline: Any, step: int, latents: Any) -> None:
            if isinstance(latents, Tensor) and not torch.isfinite(latents).all():
                self._finite = False
            if step + 1 != getattr(pipeline, "num_timesteps", None):
                try:
                    on_step()
                except BaseException as ended:
                    self._ended = ended
                    raise

        def on_step_end(pipeline: Any, step: int, timestep: Any, kept: dict[str, Any]) -> Any:
            stepped(pipeline, step, kept.get("latents"))
            return kept

        def callback(step: int, timestep: Any, latents: Any) -> None:
            stepped(self._pipeline, step, latents)

        callbacks = dict.fromkeys(CALLBACKS, on_step_end) | {OLD_CALLBACK: callback}
        if any(name in self._takes for name in CALLBACKS):
            del callbacks[OLD_CALLBACK]
        given |= callbacks
        taken = {k: v for k, v in given.items() if k in self._takes and v is not None}
        self._ended = None
        try:
            return self._pipeline(**taken).images
        except Exception as error:
            # Not of the pipeline's making: whoever ended it knows why.
            if error is self._ended or isinstance(error, Unreadable):
                raise
            raise ValueError(
                f"{type(self._pipeline).__name__} draws no image of {size[0]}x{size[1]} from a "
                f"prompt alone: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            ) from error

    def _try(self, condition: Condition, backbone: Backbone) -> None:
        """Begin a draw, and end it after a step."""

        def stop() -> None:
            raise _Seen

        try:
            self._call(Method(2), condition, 0, 0, (backbone.height, backbone.width), stop)
        except _Seen:
            return

    def _watch_processor(self) -> None:
        """It clamps what it is given, and an infinity would become a white pixel."""
        processor = getattr(self._pipeline, "image_processor", None)
        if processor is None:
            return
        original = processor.postprocess

        def postprocess(image: Any, *arguments: Any, **named: Any) -> Any:
            if isinstance(image, Tensor) and not torch.isfinite(image).all():
                self._finite = False
            return original(image, *arguments, **named)

        processor.postprocess = postprocess


@dataclass(frozen=True)
class Asked(Encoded):
    """A condition as a pipeline takes it: in words."""

    condition: Condition = UNCONDITIONAL

    def to(self, device: torch.device) -> Asked:
        """Words are on no device."""
        return self


class PipelineEncoder(Encoder):
    """Leaves the encoding of a condition to the pipeline, and refuses what it cannot take."""

    slow = False
    example = Condition()

    def __init__(self, pipeline: Pipeline, inputs: Inputs) -> None:
        self._pipeline, self._inputs = pipeline, inputs

    def scale(self, condition: Condition) -> float:
        """See `Encoder`: embedded guidance costs no second evaluation."""
        return condition.guidance_scale if self._inputs.guidance == "classifier-free" else 1.0

    def check(self, condition: Condition, seed: int) -> None:
        """See `Encoder`."""
        self._pipeline.check(condition)

    def encode(self, condition: Condition, seed: int) -> Asked:
        """See `Encoder`."""
        self.check(condition, seed)
        return Asked({}, {}, condition=condition)


def pipeline_class(name: object) -> Any:
    """A pipeline's class by its name. Raises ValueError where it is none of diffusers'."""
    import diffusers

    found = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline)):
        raise ValueError(
            f"model_index.json: {name!r} is no pipeline of diffusers {diffusers.__version__}: code "
            "of its own is never run, and a newer diffusers may know it"
        )
    return found


def component_class(name: str, library: str, class_name: str) -> type:
    """A component's class. Raises ValueError where it is of neither library that is run here."""
    import diffusers
    import transformers

    package = {"diffusers": diffusers, "transformers": transformers}.get(library)
    found = getattr(package, class_name, None) if package else None
    if not isinstance(found, type):
        raise ValueError(
            f"model_index.json: {name} is {class_name} of {library!r}: Winnow runs the classes of "
            f"diffusers {diffusers.__version__} and transformers {transformers.__version__} alone, "
            "and no code that comes with a model"
        )
    return found


def parameters(pipeline: type) -> dict[str, Any]:
    """What a pipeline's call takes, by name, with its defaults."""
    call = inspect.signature(pipeline.__call__).parameters
    return {name: one.default for name, one in call.items() if name != "self"}


def _first(images: Any) -> Tensor:
    """The first of a pipeline's images, NumPy's [N, H, W, C] in [0, 1], as [C, H, W]."""
    if not isinstance(images, np.ndarray) or images.ndim != 4 or images.dtype.kind != "f":
        raise ValueError("the pipeline gives no images as numbers")
    return torch.from_numpy(images[0]).float().permute(2, 0, 1)
