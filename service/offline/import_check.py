"""The check of an imported model: an image through the engine that serves, drawn twice."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from models.bundles.bundle import Bundle
from models.bundles.manifest import Inputs
from models.diffusion.condition import Condition, Size
from models.diffusion.method import Method
from service.config import BackboneSettings
from service.engine.engine import Engine
from service.engine.load import load_engine
from service.engine.scheduler import Draw, Ticket
from service.errors import BackendUnavailable
from service.labelling.subject import uncensored
from service.ports import DrawKey, DrawResult, Pixels

SEED = 0
PROMPT = "a photograph of a red apple on a wooden table"


@dataclass(frozen=True)
class DrawnImage:
    """The image and what it cost: seconds of a step, NFE a second, bytes of memory at the most.

    `peak_bytes` are this process's on a CPU, and the GPU's on a GPU.
    """

    pixels: Pixels
    condition: Condition
    steps: int
    step_s: float
    nfe_per_s: float
    peak_bytes: int


def draw_twice(
    bundle: Bundle,
    settings: BackboneSettings,
    method: Method,
    prompt: str = PROMPT,
    on_step: Callable[[int], None] = lambda count: None,
    sizes: Sequence[Size] = (None,),
) -> DrawnImage:
    """Draw SEED's image twice at each of these sizes, and return that of the last.

    Raises ValueError where it is no image, or another each time.
    """
    condition = example(bundle.manifest.backbone.inputs, prompt)
    cuda = settings.device.startswith("cuda") and torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats(settings.device)
    name = bundle.manifest.name
    broken = (
        f"{name}: it draws NaN or infinity in {settings.dtype}: its weights are broken, or it "
        "needs another dtype"
    )
    engine = load_engine(bundle, settings)
    try:
        engine.warm_up(others=False)
        for size in sizes:
            condition = replace(condition, size=size)
            first, seconds = _draw(engine, bundle, settings, method, condition, on_step)
            second, _ = _draw(engine, bundle, settings, method, condition, on_step)
            _compare(name, broken, first, second)
    except BackendUnavailable as error:
        raise ValueError(f"{broken} ({error})") from error
    finally:
        engine.decoder.close()
    assert first.pixels is not None, "`_compare` has refused it"
    peak = torch.cuda.max_memory_allocated(settings.device) if cuda else _resident()
    steps = method.num_inference_steps
    return DrawnImage(
        first.pixels, condition, steps, seconds / steps, first.nfe / max(seconds, 1e-9), peak
    )


def _compare(name: str, broken: str, first: DrawResult, second: DrawResult) -> None:
    """Raises ValueError where two draws of one seed are no image, or two."""
    if first.pixels is None or second.pixels is None:
        raise ValueError(broken)
    if first.pixels.min() == first.pixels.max():
        raise ValueError(
            f"{name}: it draws an image of one colour ({int(first.pixels.min())}): its weights, or "
            "its noise schedule, are another model's"
        )
    if (first.pixels != second.pixels).any():
        raise ValueError(
            f"{name}: seed {SEED} drew two different images: a seed must own its image"
        )


def example(inputs: Inputs, prompt: str) -> Condition:
    """What the image of a check is to show."""
    if inputs.kind == "text":
        return Condition(prompt=prompt, guidance_scale=inputs.guidance_scale)
    if inputs.kind == "class":
        return Condition(class_label=0, guidance_scale=inputs.guidance_scale)
    return Condition()


def _draw(
    engine: Engine,
    bundle: Bundle,
    settings: BackboneSettings,
    method: Method,
    condition: Condition,
    on_step: Callable[[int], None],
) -> tuple[DrawResult, float]:
    plan = uncensored("", bundle.backbone_sha256(settings.runtime), method)
    plan = replace(plan, condition=condition)
    ends = []

    def ticked() -> None:
        ends.append(time.monotonic())
        on_step(1)

    found: list[DrawResult | Exception] = []

    def deliver(item: list[DrawResult] | Exception) -> None:
        # Not raised here: this may be the decoder's thread.
        found.extend([item] if isinstance(item, Exception) else item)

    draw = Draw(plan, DrawKey(0, SEED, 0), Ticket(deliver, deadline=float("inf")))
    engine.check([draw])
    engine.scheduler.add([draw])
    started = time.monotonic()
    engine.run_to_end(ticked)
    if isinstance(found[0], Exception):
        raise found[0]
    # An autoencoder decodes after the last step.
    return found[0], ends[-1] - started


def _resident() -> int:
    """The most memory that this process has had, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
