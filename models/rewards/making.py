"""Make one reward of the demonstration: draw images, have them labelled, train on the labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models import seeds
from models.evaluation.referees import Referee
from models.generate import Generator
from models.manifest import Labels, Reward
from models.rewards.ensemble import Ensemble
from models.rewards.export import export_judge
from models.rewards.training import CLEAN_GUIDE, JUDGE, TIME_GUIDE, RewardRecipe, train_reward

# A person who sees one image at a time and presses a key for the rare answer needs about 0.3 s
# for each (the paper's three minutes for some six hundred). The annotator is charged the same.
SECONDS_PER_IMAGE = 0.3
VIEWED_PER_PART = 300

Progress = Callable[[int], None]
StartProgress = Callable[[str, int], Progress]
"""Given a description and a total, starts a bar and returns the function that advances it."""


@dataclass(frozen=True)
class Labelled:
    """Images uint8 [N, H, W, C] that an annotator looked at, and its labels [N]."""

    pixels: NDArray[np.uint8]
    benign: NDArray[np.bool_]
    first_seed: int

    def labels(self, annotator: str) -> Labels:
        """The manifest's account of these labels."""
        count = len(self.pixels)
        benign = int(self.benign.sum())
        return Labels(
            annotator=annotator,
            first_seed=self.first_seed,
            viewed=count,
            benign=benign,
            malign=count - benign,
            seconds=round(count * SECONDS_PER_IMAGE, 1),
        )


def view(
    generator: Generator, referee: Referee, first_seed: int, count: int, advance: Progress
) -> Labelled:
    """Draw `count` images from consecutive seeds and have the referee label each."""
    pixels = generator.images(range(first_seed, first_seed + count), on_images=advance)
    return Labelled(pixels, ~referee.malign(pixels), first_seed)


def make_reward(
    generator: Generator,
    referee: Referee,
    annotator: str,
    denoiser: str,
    index: int,
    out: Path,
    start: StartProgress,
    viewed: int = VIEWED_PER_PART,
) -> Reward:
    """Draw, label, train and write guides and judge of one question into `out`.

    `index` is the question's place among the bundle's, which gives it seeds of its own;
    `annotator` and `denoiser` are the sha256 names of what labelled and what drew. Raises
    ValueError when a class has too few labels.
    """
    question = referee.question
    guide_data = view(
        generator, referee, seeds.first(seeds.GUIDE_LABELS, index), viewed,
        start(f"{question.name}: draw images for the guides", viewed),
    )  # fmt: skip
    judge_data = view(
        generator, referee, seeds.first(seeds.JUDGE_LABELS, index), viewed,
        start(f"{question.name}: draw images for the judge", viewed),
    )  # fmt: skip

    def train(what: str, data: Labelled, recipe: RewardRecipe, timed: bool = False) -> Ensemble:
        bar = start(f"{question.name}: train {what}", recipe.iterations)
        noising = (generator.schedule, generator.codec) if timed else None
        return train_reward(
            data.pixels, data.benign, recipe, noising=noising, on_iteration=lambda _: bar(1)
        )

    train("the time-dependent guide", guide_data, TIME_GUIDE, timed=True).save(
        out / "time.safetensors"
    )
    train("the clean guide", guide_data, CLEAN_GUIDE).save(out / "clean.safetensors")
    height, width = judge_data.pixels.shape[1:3]
    export_judge(train("the judge", judge_data, JUDGE), height, width, out / "judge.onnx")
    return Reward(
        question=question.text,
        malign=question.malign,
        guide=f"guides/{question.name}.time.safetensors",
        clean_guide=f"guides/{question.name}.clean.safetensors",
        judge=f"judges/{question.name}.onnx",
        guide_labels=guide_data.labels(annotator),
        judge_labels=judge_data.labels(annotator),
        training={
            "command": f"winnow train rewards --reward {question.name}",
            "denoiser": denoiser,
            "sampler": "ddim",
            "num_inference_steps": generator.num_inference_steps,
            "eta": generator.eta,
            "seconds_per_viewed_image": SECONDS_PER_IMAGE,
            "guide": asdict(TIME_GUIDE),
            "clean_guide": asdict(CLEAN_GUIDE),
            "judge": asdict(JUDGE),
        },
    )
