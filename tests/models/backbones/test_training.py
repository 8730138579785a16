from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel

from models.backbones.training import Labels, train
from models.backbones.training_loop import Progress, Recipe
from models.backbones.unet import SCHEDULER_CONFIG, UNET_CONFIG, save_pipeline

RECIPE = Recipe(steps=4, batch_size=2, warmup_steps=1, checkpoint_every=2)
DATA = torch.rand((8, 4, 14, 14), generator=torch.Generator().manual_seed(0)) * 2 - 1


def _interrupt(progress: Progress) -> None:
    if progress.step == 3:
        raise KeyboardInterrupt


def _train(
    out: Path, recipe: Recipe = RECIPE, on_step: Callable[[Progress], None] = lambda _: None
) -> UNet2DModel:
    return train(
        DATA,
        out,
        recipe,
        UNET_CONFIG,
        SCHEDULER_CONFIG,
        save=lambda unet: save_pipeline(unet, out / "backbone"),
        on_step=on_step,
    )


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    whole = _train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path / "broken", on_step=_interrupt)
    steps: list[int] = []
    resumed = _train(tmp_path / "broken", on_step=lambda now: steps.append(now.step))
    assert steps == [3, 4]
    saved = UNet2DModel.from_pretrained(tmp_path / "broken/backbone/unet", use_safetensors=True)
    for model in (resumed, saved):
        for one, other in zip(whole.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(one, other)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    _train(tmp_path, Recipe(steps=1, batch_size=2))
    with pytest.raises(ValueError, match="another recipe"):
        _train(tmp_path)


@pytest.mark.parametrize(("dropout", "learnt"), [(0.0, {3}), (1.0, {10}), (0.5, {3, 10})])
def test_hidden_labels_train_the_null_class_and_no_other(
    tmp_path: Path, dropout: float, learnt: set[int]
) -> None:
    network = UNET_CONFIG | {"block_out_channels": (8, 16), "attention_head_dim": 8}
    network["num_class_embeds"] = 11
    torch.manual_seed(RECIPE.seed)
    before = UNet2DModel(**network).class_embedding.weight
    labels = Labels(torch.full((len(DATA),), 3), null_class=10, dropout=dropout)
    recipe = replace(RECIPE, weight_decay=0.0)  # decay alone would move every row
    after = train(
        DATA, tmp_path, recipe, network, SCHEDULER_CONFIG, lambda _: None, labels
    ).class_embedding.weight
    moved = (after != before).any(dim=1).nonzero().flatten()
    assert set(moved.tolist()) == learnt
