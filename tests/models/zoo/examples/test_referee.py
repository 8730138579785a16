from __future__ import annotations

from pathlib import Path

import numpy as np

from models.zoo.evaluation.features import FeatureRecipe, load_features
from models.zoo.examples.referee import make_referee
from models.zoo.mnist import Images


def test_a_referee_says_what_it_misses_and_what_it_mistakes(tmp_path: Path) -> None:
    labels = np.arange(400, dtype=np.uint8) % 2
    images = np.zeros((400, 32, 32), dtype=np.uint8)
    images[labels == 1, 8:24] = 255
    data = Images(images, labels)
    lied = data.labels.copy()
    lied[:40] = 1  # 20 blank images now pass for class 1, and the referee will not believe it
    recipe = FeatureRecipe(width=8, channels=(4, 8, 8), epochs=8, batch_size=32)
    path = tmp_path / "referee.safetensors"
    record = make_referee(data, Images(images, lied), recipe, path)
    assert record["error"] == 20 / 400
    assert record["classes"]["1"] == {"missed": 20 / 220, "false": 0.0}
    assert record["classes"]["0"] == {"missed": 0.0, "false": 20 / 220}
    pixels = images[..., None]
    referee = load_features(path)
    np.testing.assert_array_equal(referee.classes(pixels), labels)
    assert referee.features(pixels).shape == (400, 8)
