from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.backbones.training import BackboneRecipe, Progress, train

RECIPE = BackboneRecipe(steps=4, batch_size=2, warmup_steps=1, checkpoint_every=2)
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 28, 28), dtype=np.uint8)


def _interrupt(progress: Progress) -> None:
    if progress.step == 3:
        raise KeyboardInterrupt


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    whole = train(IMAGES, tmp_path / "whole", RECIPE)
    with pytest.raises(KeyboardInterrupt):
        train(IMAGES, tmp_path / "broken", RECIPE, _interrupt)
    steps: list[int] = []
    resumed = train(IMAGES, tmp_path / "broken", RECIPE, lambda now: steps.append(now.step))
    assert steps == [3, 4]
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    train(IMAGES, tmp_path, BackboneRecipe(steps=1, batch_size=2))
    with pytest.raises(ValueError, match="another recipe"):
        train(IMAGES, tmp_path, RECIPE)
