"""A time-dependent classifier of x_t, for classifier guidance (Dhariwal & Nichol 2021).

It is a reward network with a logit for each class, in a reward's file. A policy with
`classifier_scale` steers by ∇ log p_t(y | x_t) towards the class y that a row is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.bundles.bundle import add_files
from models.bundles.manifest import Manifest
from models.diffusion.codec import Codec, from_uint8
from models.diffusion.noise_schedule import NoiseSchedule
from models.rewards.descent import descend
from models.rewards.ensemble import load_network, save_network
from models.rewards.network import RewardConfig, RewardNetwork
from models.rewards.training import noised, views


class TimedClassifier:
    """K networks whose logits are averaged; float32, in evaluation mode, without gradients."""

    def __init__(self, network: RewardNetwork) -> None:
        """Takes the network over and freezes it. Raises ValueError for a reward's."""
        config = network.config
        if config.classes < 2 or not config.timed:
            raise ValueError("a classifier of x_t has two classes at least, and takes a timestep")
        self.network = network.eval().requires_grad_(False)

    @property
    def classes(self) -> int:
        """How many it tells apart: labels are 0 to one less."""
        return self.network.config.classes

    def log_probability(self, x_t: Tensor, timestep: Tensor) -> Tensor:
        """log p_t(y | x_t) of every class y, [B, classes]; differentiable in x_t [B, C, H, W]."""
        logits: Tensor = self.network(x_t.float(), timestep)
        return functional.log_softmax(logits.mean(dim=1), dim=-1)

    def gradient(self, x_t: Tensor, timestep: Tensor, labels: Tensor) -> Tensor:
        """∇_{x_t} log p_t(label | x_t), float32 [B, C, H, W], for timesteps [B] and labels [B]."""
        with torch.inference_mode(False), torch.enable_grad():
            x = x_t.detach().clone().float().requires_grad_()
            found = self.log_probability(x, timestep.clone())
            total = found.gather(1, labels.clone().unsqueeze(1)).sum()
            return torch.autograd.grad(total, x)[0]

    def to(self, device: str | torch.device) -> TimedClassifier:
        """Move the networks to `device`; returns itself."""
        self.network.to(device)
        return self

    def save(self, path: Path, **metadata: str) -> None:
        """Write safetensors in float16, as a reward's."""
        save_network(self.network, path, **metadata)

    @classmethod
    def load(cls, path: Path) -> TimedClassifier:
        """Read what `save` wrote, as float32 on the CPU. Raises ValueError for anything else."""
        network = load_network(path)
        try:
            return cls(network)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


@dataclass(frozen=True)
class ClassifierRecipe:
    """Hyperparameters, as recorded in the manifest."""

    iterations: int = 2000
    members: int = 1
    widths: tuple[int, int, int, int] = (16, 32, 48, 48)
    strides: tuple[int, int, int, int] = (2, 1, 2, 1)
    batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    rotation_degrees: float = 10.0
    shift: float = 0.05
    scale: float = 0.05
    seed: int = 0


def train_classifier(
    pixels: NDArray[np.uint8],
    labels: NDArray[np.int64],
    classes: int,
    schedule: NoiseSchedule,
    codec: Codec,
    recipe: ClassifierRecipe,
    on_iteration: Callable[[int], None] = lambda _: None,
) -> TimedClassifier:
    """Train on `pixels` uint8 [N, H, W, C] with `labels` [N] in 0..classes − 1.

    It sees x_t of the augmented image, at timesteps uniform over the schedule, in the codec's
    space, and classes as often as there are images of them: that is the prior of its posterior.
    Raises ValueError where a class has no image, or a label is none of them.
    """
    if len(pixels) != len(labels):
        raise ValueError(f"{len(pixels)} images have {len(labels)} labels")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(f"labels must be 0 to {classes - 1}")
    counts = np.bincount(labels, minlength=classes)
    if not counts.all():
        raise ValueError(f"class {int(np.argmin(counts))} has no image")
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    view, channels = views(from_uint8(pixels), recipe, codec, generator)
    network = RewardNetwork(
        RewardConfig(
            members=recipe.members,
            channels=channels,
            pixel_shuffle=getattr(codec, "pixel_shuffle", 1),
            widths=recipe.widths,
            strides=recipe.strides,
            timed=True,
            classes=classes,
        )
    ).train()
    target = torch.from_numpy(labels)

    def loss() -> Tensor:
        rows = torch.randint(len(target), (recipe.batch_size,), generator=generator)
        x_t, timestep = noised(view(rows), schedule, generator)
        logits = network(x_t, timestep)
        # A sum over members, which share nothing: each gets its own mean loss.
        total = functional.cross_entropy(
            logits.flatten(0, 1),
            target[rows].repeat_interleave(recipe.members),
            reduction="sum",
        )
        return total / len(rows)

    descend(network, recipe, loss, on_iteration)
    return TimedClassifier(network)


FILE = "classifier.safetensors"


def add_classifier(folder: Path, classifier: TimedClassifier) -> None:
    """Put a classifier into a verified bundle, and vouch for it in the manifest.

    What draws has another name from then on (`Bundle.backbone_sha256`): calibrations that were
    made before hold no longer.
    """

    def name(manifest: Manifest) -> Manifest:
        backbone = manifest.backbone.model_copy(update={"classifier": FILE})
        return manifest.model_copy(update={"backbone": backbone})

    with TemporaryDirectory() as made:
        classifier.save(Path(made) / FILE)
        add_files(folder, {FILE: Path(made) / FILE}, name)
