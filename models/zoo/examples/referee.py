"""The examples' referees: classifiers of real images, for the classes and the Fréchet distance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from models.zoo.evaluation.features import (
    FeatureRecipe,
    load_features,
    save_features,
    train_features,
)
from models.zoo.mnist import Images

DIGITS = FeatureRecipe()
FASHION = FeatureRecipe(width=64, channels=(32, 64, 96), epochs=8, learning_rate=3e-3)


def make_referee(
    data: Images,
    held_out: Images,
    recipe: FeatureRecipe,
    path: Path,
    on_step: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Train on `data`, write `path` (safetensors), and say how well the file does on `held_out`.

    `error` is the share of wrong classes. For each class, `missed` is the share of its images
    that the referee takes for another, `false` the share of all others that it takes for this.
    """
    save_features(train_features(data, recipe, on_step), recipe, path)
    guess, truth = load_features(path).classes(held_out.images[..., None]), held_out.labels
    return {
        "recipe": asdict(recipe),
        "trained_on": len(data),
        "tested_on": len(held_out),
        "error": float((guess != truth).mean()),
        "classes": {
            str(label): {
                "missed": float((guess[truth == label] != label).mean()),
                "false": float((guess[truth != label] == label).mean()),
            }
            for label in np.unique(truth)
        },
    }
