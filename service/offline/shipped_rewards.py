"""A reward of the shipped bundle: draws, an annotator's labels, and the training that a person's
labels go through."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from models.bundles.manifest import Labels, Reward
from models.offline import seed_ranges
from models.offline.generator import Generator
from models.rewards.distillation import DistilRecipe
from models.zoo.evaluation.referees import SECONDS_PER_IMAGE, Referee
from service.labelling.examples import Example
from service.labelling.judge_training import FEW_JUDGE
from service.labelling.progress import Report
from service.labelling.recipe import Recipe
from service.labelling.training import Hyperparameters, train

VIEWED = 600
HYPERPARAMETERS = Hyperparameters(judge=replace(FEW_JUDGE, iterations=600), student=DistilRecipe())
FILES = {
    "judge": "judges/{}.onnx",
    "guide": "guides/{}.time.safetensors",
    "clean_guide": "guides/{}.clean.safetensors",
    "distilled": "guides/{}.distilled.onnx",
    "probe": "guides/{}.probe.onnx",
    "canary": "canaries/{}.png",
    "control": "canaries/{}.control.png",
}
"""How the bundle calls each part of the reward of this name."""


def make_reward(
    generator: Generator,
    referee: Referee,
    annotator: str,
    denoiser: str,
    index: int,
    out: Path,
    on_images: Callable[[int], None],
    report: Report,
    *,
    viewed: int = VIEWED,
    hyperparameters: Hyperparameters = HYPERPARAMETERS,
    threads: int = 1,
) -> Reward:
    """Draw `viewed` images, have the referee label them, train on that, and write the parts into
    `out` as the bundle calls them.

    `index` is the question's place among the bundle's, which gives it seeds of its own;
    `annotator` and `denoiser` are the sha256 names of what labelled and what drew. Raises
    ValueError when a class has too few labels.
    """
    question = referee.question
    first = seed_ranges.first(seed_ranges.LABELS, index)
    pixels = generator.images(range(first, first + viewed), on_images=on_images)
    labelled = zip(pixels, referee.malign(pixels), strict=True)
    examples = {
        name: Example(name, image, "malign" if malign else "benign", 1.0, "random")
        for name, image, malign in (
            (hashlib.sha256(image.tobytes()).hexdigest(), image, malign)
            for image, malign in labelled
        )
    }
    made = train(
        list(examples.values()),
        Recipe(question.name, guide=True, distil=True, seed=index, threads=threads),
        generator,
        pixels.shape[1:],
        {},
        report,
        hyperparameters=hyperparameters,
    )
    files = {part: FILES[part].format(question.name) for part in made.files}
    for part, file in files.items():
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        (out / file).write_bytes(made.files[part])

    def labels(side: str) -> Labels:
        own = [examples[name] for name in made.card["split"][side]]
        malign = sum(example.malign for example in own)
        return Labels(
            annotator=annotator,
            first_seed=first,
            viewed=len(own),
            benign=len(own) - malign,
            malign=malign,
            seconds=round(len(own) * SECONDS_PER_IMAGE, 1),
        )

    training: dict[str, Any] = {
        "command": f"winnow train rewards --reward {question.name}",
        "denoiser": denoiser,
        "sampler": "ddim",
        "num_inference_steps": generator.num_inference_steps,
        "eta": generator.eta,
        "seconds_per_viewed_image": SECONDS_PER_IMAGE,
        "hyperparameters": asdict(hyperparameters),
    }
    return Reward(
        question=question.text,
        malign=question.malign,
        parts=files,
        guide_labels=labels("guide"),
        judge_labels=labels("judge"),
        training=training | {key: made.card[key] for key in ("auc", "student", "seconds")},
    )
