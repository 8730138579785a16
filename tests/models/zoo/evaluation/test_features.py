from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from models.zoo.evaluation.features import load_features
from models.zoo.mnist import SEVENS, sevens

SHIPPED = SEVENS.parents[1] / "mnist-sevens/evaluation/features.safetensors"


def test_the_shipped_features_know_a_seven() -> None:
    """The file is older than `FeatureRecipe.channels`, and must mean what it meant."""
    data = sevens()
    pixels = data.images[:500, ..., None]
    classifier = load_features(SHIPPED)
    assert (classifier.classes(pixels) == 7).mean() > 0.97
    assert classifier.features(pixels).shape == (500, 40)
    assert classifier.classes(pixels[:0]).shape == (0,)


def test_another_file_is_refused(tmp_path: Path) -> None:
    save_file({"a": np.zeros(1)}, tmp_path / "file.safetensors")
    with pytest.raises(ValueError, match="not a classifier"):
        load_features(tmp_path / "file.safetensors")
