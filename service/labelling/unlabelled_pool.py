"""Fresh draws of a policy's own sampling, which nobody labels: what a threshold is chosen on.

They are made by the engine's step, with the networks that were just trained. Probes look and stop
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from models.bundles.manifest import WHOLE
from models.bundles.parts import PARTS, Stage
from models.diffusion.method import Method
from models.offline.generator import Draws, Generator
from models.rewards.opening import Context, open_part


def parts_of(method: Method, generator: Generator) -> set[str]:
    """The files of a reward that draws of this method need, beside the judge's.

    Raises ValueError for what a whole pipeline cannot follow, for guidance through the denoiser
    where that was loaded without gradients, and for classifier guidance where the bundle has no
    classifier.
    """
    if method.beside_steps and not generator.steppable:
        raise ValueError(f"{method.beside_steps[0]}: {WHOLE}")
    if method.classifier_scale and generator.classifier is None:
        raise ValueError("draws with classifier_scale need a classifier in the bundle")
    kinds = [PARTS[part] for part in _parts(method)]
    if any(kind.nfe for kind in kinds) and generator.differentiable is None:
        raise ValueError(
            f"draws with {method.guidance} guidance need backbone.forward_guidance: true"
        )
    return {kind.file for kind in kinds}


def draw_pool(
    generator: Generator,
    files: Mapping[str, Path],
    method: Method,
    seeds: Sequence[int],
    threads: int,
    on_draws: Callable[[int], None],
) -> Draws:
    """Draw number 0 of each seed, by this method and these files of a reward, by name.

    `on_draws` hears how many are done, before every step of a batch. Raises ValueError when a file
    that the method needs is missing, or the backbone makes NaN.
    """
    if missing := parts_of(method, generator) - set(files):
        raise ValueError(f"draws of this policy need a {', '.join(sorted(missing))}")
    context = Context(
        generator.codec,
        generator.schedule,
        generator.shape,
        threads,
        denoise=generator.differentiable,
        example=generator.encoder.encode(generator.encoder.example, 0),
    )
    networks = {part: open_part(part, files[PARTS[part].file], context) for part in _parts(method)}
    return generator.draw(method, seeds, networks, on_draws=on_draws)


def _parts(method: Method) -> list[str]:
    """The parts that draws of this method need, beside the judge."""
    return [
        part
        for part, kind in PARTS.items()
        if kind.stage is not Stage.JUDGES and kind.asked_by(method)
    ]
