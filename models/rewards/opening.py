"""From the file of a reward's part to its network, and the canary that it has to pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.bundles.parts import PARTS, Stage
from models.diffusion.codec import Codec
from models.diffusion.conditioning import NOTHING, Conditions, Denoise, Encoded
from models.diffusion.guidance import CleanReward, ForwardGuide, Guide
from models.diffusion.noise_schedule import NoiseSchedule
from models.rewards.ensemble import Ensemble
from models.rewards.onnx_guides import DistilledGuide, Probe
from models.rewards.timed_classifier import TimedClassifier

ROWS = 2
"""A canary has more than one row: a graph for single rows would fail a whole batch later."""


@dataclass(frozen=True)
class Context:
    """The backbone that networks are opened for.

    `shape` is [C, H, W] of x_t. `denoise` is the denoiser in torch with gradients, where it was
    asked for; `example` any condition.
    """

    codec: Codec
    schedule: NoiseSchedule
    shape: tuple[int, int, int]
    threads: int = 1
    device: str = "cpu"
    denoise: Denoise | None = None
    example: Encoded = NOTHING

    @property
    def torch_device(self) -> str:
        """Where torch's networks run: the CPU where there is no GPU."""
        return self.device if torch.cuda.is_available() else "cpu"


def open_part(part: str, path: Path, context: Context) -> Any:
    """The network of a part, which has passed its canary.

    Raises ValueError where it has not, or the part needs what the backbone lacks; a file that is no
    such network raises what its reader does.
    """
    kind = PARTS[part]
    if kind.opens is None:
        raise ValueError(f"a {part} is none of the backbone's")
    if kind.nfe and context.denoise is None:
        raise ValueError(f"{part} guidance needs backbone.forward_guidance: true")
    module, function = kind.opens.split(":")
    network = getattr(import_module(module), function)(path, context)
    try_part(part, network, context)
    return network


def try_part(part: str, network: Any, context: Context) -> None:
    """Let a part's network see its canary. What it raises says why it cannot be used."""
    _TRIALS[PARTS[part].stage](network, context)


def time_guide(path: Path, context: Context) -> Ensemble:
    """An ensemble of x_t."""
    return Ensemble.load(path).to(context.torch_device)


def distilled_guide(path: Path, context: Context) -> DistilledGuide:
    """A student's graph."""
    return DistilledGuide(path, context.threads, context.device)


def forward_guide(path: Path, context: Context) -> ForwardGuide:
    """A clean ensemble with the denoiser before it."""
    assert context.denoise is not None, "`open_part` has refused it"
    return ForwardGuide(context.denoise, context.schedule, clean_guide(path, context))


def clean_guide(path: Path, context: Context) -> CleanReward:
    """An ensemble of clean images."""
    return CleanReward(Ensemble.load(path).to(context.torch_device), context.codec)


def probe(path: Path, context: Context) -> Probe:
    """A clean ensemble's graph."""
    return Probe(path, context.threads, context.device)


def try_classifier(classifier: TimedClassifier, classes: int, context: Context) -> None:
    """Let it steer pure grey. Raises ValueError when it knows fewer than so many classes, or gives
    no gradient."""
    known = classifier.classes
    if known < classes:
        raise ValueError(f"the classifier knows {known} classes, and the model {classes}")
    labels = torch.arange(ROWS, device=context.torch_device)
    try:
        gradient = classifier.gradient(_grey(context), _middle(context), labels)
    except RuntimeError as error:
        raise ValueError(f"the classifier does not take x_t of {list(context.shape)}") from error
    _check(gradient, context)


def _try_guide(guide: Guide, context: Context) -> None:
    conditions = Conditions.stack([context.example] * ROWS, [1.0] * ROWS)
    _check(guide.gradient(_grey(context), _middle(context), conditions), context)


def _try_clean_guide(reward: CleanReward, context: Context) -> None:
    _check(reward.gradient(_grey(context)), context)


def _try_probe(probe: Probe, context: Context) -> None:
    scores = probe.score(_grey(context))
    if scores.shape != (ROWS,) or not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError(f"it scored its canary {scores.tolist()}")


_TRIALS: dict[Stage, Callable[[Any, Context], None]] = {
    Stage.STEERS: _try_guide,
    Stage.BACKWARD: _try_clean_guide,
    Stage.PROBES: _try_probe,
}


def _grey(context: Context) -> Tensor:
    return torch.zeros(ROWS, *context.shape, device=context.torch_device)


def _middle(context: Context) -> Tensor:
    half = context.schedule.num_train_timesteps // 2
    return torch.full((ROWS,), half, dtype=torch.int64, device=context.torch_device)


def _check(gradient: Tensor, context: Context) -> None:
    expected = [ROWS, *context.shape]
    if list(gradient.shape) != expected or not gradient.isfinite().all():
        raise ValueError(
            f"its canary gave a gradient {list(gradient.shape)} that is not finite, or not of "
            f"shape {expected}"
        )
