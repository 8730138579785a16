"""From a file to a network that steers, climbs or probes, and the canary that it has to pass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.codec import Codec
from models.conditioning import NOTHING, Conditions, Denoise, Encoded
from models.guidance import CleanReward, ForwardGuide, Guide
from models.rewards.ensemble import Ensemble
from models.rewards.graphs import DistilledGuide, Probe
from models.rewards.timed_classifier import TimedClassifier
from models.schedule import NoiseSchedule

SUFFIXES = {
    "guide": ".safetensors",
    "distilled": ".onnx",
    "forward": ".safetensors",
    "clean_guide": ".safetensors",
    "probe": ".onnx",
}
"""What a backbone loads of a reward, and the format of each."""

ROWS = 2
"""A canary has more than one row: a graph for single rows would fail a whole batch later."""


@dataclass(frozen=True)
class Networks:
    """Opens the networks of rewards for one backbone.

    `shape` is [C, H, W] of x_t. `denoise` is the denoiser in torch with gradients, which forward
    guidance needs; `example` any condition.
    """

    codec: Codec
    schedule: NoiseSchedule
    shape: tuple[int, int, int]
    threads: int = 1
    device: str = "cpu"
    denoise: Denoise | None = None
    example: Encoded = NOTHING

    def guide(self, part: str, path: Path) -> Guide:
        """A guide as `guide`, `distilled` or `forward`. Raises ValueError if it cannot be."""
        if part == "distilled":
            return DistilledGuide(path, self.threads, self.device)
        if part == "guide":
            return Ensemble.load(path).to(self._torch_device)
        if self.denoise is None:
            raise ValueError("forward guidance needs backbone.forward_guidance: true")
        return ForwardGuide(self.denoise, self.schedule, self.clean_guide(path))

    def clean_guide(self, path: Path) -> CleanReward:
        """A clean ensemble."""
        return CleanReward(Ensemble.load(path).to(self._torch_device), self.codec)

    def probe(self, path: Path) -> Probe:
        """A clean ensemble's graph."""
        return Probe(path, self.threads, self.device)

    def try_classifier(self, classifier: TimedClassifier, classes: int) -> None:
        """Let it steer pure grey. Raises ValueError when it knows fewer than so many classes, or
        gives no gradient."""
        known = classifier.classes
        if known < classes:
            raise ValueError(f"the classifier knows {known} classes, and the model {classes}")
        timestep, labels = self._middle(), torch.arange(ROWS, device=self._torch_device)
        try:
            self._check(classifier.gradient(self._grey(), timestep, labels))
        except RuntimeError as error:
            raise ValueError(f"the classifier does not take x_t of {list(self.shape)}") from error

    def try_guide(self, guide: Guide) -> None:
        """Let it steer pure grey. Raises ValueError when that gives no gradient."""
        told: tuple[Conditions, ...] = ()
        if isinstance(guide, ForwardGuide):
            told = (Conditions.stack([self.example] * ROWS, [1.0] * ROWS),)
        self._check(guide.gradient(self._grey(), self._middle(), *told))

    def try_clean_guide(self, reward: CleanReward) -> None:
        """See `try_guide`."""
        self._check(reward.gradient(self._grey()))

    def try_probe(self, probe: Probe) -> None:
        """Let it score pure grey. Raises ValueError when that gives no reward in [0, 1]."""
        scores = probe.score(self._grey())
        if scores.shape != (ROWS,) or not ((scores >= 0) & (scores <= 1)).all():
            raise ValueError(f"it scored its canary {scores.tolist()}")

    @property
    def _torch_device(self) -> str:
        return self.device if torch.cuda.is_available() else "cpu"

    def _middle(self) -> Tensor:
        half = self.schedule.num_train_timesteps // 2
        return torch.full((ROWS,), half, dtype=torch.int64, device=self._torch_device)

    def _grey(self) -> Tensor:
        return torch.zeros(ROWS, *self.shape, device=self._torch_device)

    def _check(self, gradient: Tensor) -> None:
        if gradient.shape != (ROWS, *self.shape) or not gradient.isfinite().all():
            raise ValueError(
                f"its canary gave a gradient {list(gradient.shape)} that is not finite, or not "
                f"of shape {[ROWS, *self.shape]}"
            )
