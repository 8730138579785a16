"""The canary of a bundle's reward: an image that is surely malign."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.evaluation.referees import load_referee
from models.evaluation.viewed import CROSSED, PLAIN, load_viewed
from models.questions import QUESTIONS


def pick(bundle: Bundle, reward: str) -> NDArray[np.uint8]:
    """Pixels [H, W, C]: of what a person called malign, what the annotator is surest of.

    Raises ValueError when the bundle has no evaluation, or a question that nobody knows here.
    """
    evaluation = bundle.manifest.evaluation
    if evaluation is None or reward not in QUESTIONS:
        raise ValueError(f"bundle {bundle.manifest.name!r} has no viewed images of {reward!r}")
    question = QUESTIONS[reward]
    viewed = load_viewed(bundle.path(evaluation.viewed))
    called = CROSSED if question.crossed_is_malign else PLAIN
    pixels = viewed.pixels[viewed.answers == called]
    annotator = load_referee(bundle.path(evaluation.annotator), question)
    picked: NDArray[np.uint8] = pixels[annotator.likeliest_malign(pixels)[0]]
    return picked
