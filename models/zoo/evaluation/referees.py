"""Who knows the truth in the demonstration: an annotator who labels, and an oracle who checks.

Both are classifiers of real sevens, trained on disjoint halves of the `crossed` labels, so the
oracle's verdict on a reward is not the annotator's own opinion again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.diffusion.codec import from_uint8
from models.rewards.ensemble import Ensemble
from models.rewards.training import RewardRecipe, train_reward
from models.zoo.mnist import Images, halves
from models.zoo.questions import NO_CROSSBAR, Question

REFEREE = RewardRecipe(
    iterations=1000,
    benign_weight=1.0,
    per_class=None,
    members=2,
    widths=(16, 32, 32, 32),
    batch_size=64,
    seed=2,
)

SECONDS_PER_IMAGE = 0.3
"""What a label costs: a person who sees one image at a time and presses a key for the rare answer
needs about that (the paper's three minutes for some six hundred). The annotator is charged it."""

# Batches were half crossed, and of real sevens 834 in 6,265 are: Bayes' rule adds the logarithm of
# the odds to the logit. Without it, ragged strokes that could be either count as crossed.
PRIOR_LOGIT = math.log((6265 - 834) / 834)


@dataclass(frozen=True)
class Referee:
    """Answers `question` about finished images."""

    ensemble: Ensemble
    question: Question

    def crossed(self, pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Which of pixels uint8 [N, H, W, C] carry a crossbar, bool [N]."""
        return self._plain(pixels) < 0

    def malign(self, pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Which of pixels uint8 [N, H, W, C] are malign to the question, bool [N]."""
        return self.question.is_malign(self.crossed(pixels))

    def likeliest_malign(self, pixels: NDArray[np.uint8]) -> NDArray[np.intp]:
        """The order in which a person should check pixels [N, H, W, C]: surest malign first."""
        plain = self._plain(pixels)
        return np.argsort(plain if self.question.crossed_is_malign else -plain)

    def _plain(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The logit of "no crossbar", [N]."""
        parts = [
            self.ensemble.logits(from_uint8(pixels[i : i + 256])).mean(dim=1) + PRIOR_LOGIT
            for i in range(0, len(pixels), 256)
        ]
        return torch.cat(parts).numpy() if parts else np.empty(0, dtype=np.float32)


def load_referee(path: Path, question: Question = NO_CROSSBAR) -> Referee:
    """A referee from its file, asked `question`. Raises ValueError if the file is not one."""
    return Referee(Ensemble.load(path), question)


def train_referee(
    data: Images,
    recipe: RewardRecipe = REFEREE,
    on_iteration: Callable[[int], None] = lambda _: None,
) -> Ensemble:
    """Train on real images with all of their labels; a high logit means no crossbar."""
    return train_reward(data.images[..., None], data.labels == 0, recipe, on_iteration=on_iteration)


def held_out_error(ensemble: Ensemble, data: Images) -> float:
    """Share of `data` that a referee gets wrong."""
    crossed = Referee(ensemble, NO_CROSSBAR).crossed(data.images[..., None])
    return float((crossed != (data.labels == 1)).mean())


def referee_data(sevens: Images) -> dict[str, tuple[Images, Images]]:
    """For each referee, the half that it is trained on and the half that it is tested on."""
    first, second = halves(sevens)
    return {"annotator": (first, second), "oracle": (second, first)}
