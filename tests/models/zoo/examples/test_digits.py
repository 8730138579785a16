from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMPipeline

from models.backbones.training_loop import Recipe
from models.zoo.examples.digits import NULL_CLASS, train_digits
from models.zoo.mnist import Images

RNG = np.random.default_rng(0)
DATA = Images(RNG.integers(0, 256, (20, 28, 28), np.uint8), np.arange(20, dtype=np.uint8) % 10)


def test_digits_are_a_folder_of_diffusers_that_tells_classes_apart(tmp_path: Path) -> None:
    train_digits(DATA, tmp_path, Recipe(steps=2, batch_size=8))
    suffixes = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors"}
    pipeline = DDIMPipeline.from_pretrained(tmp_path / "model", use_safetensors=True)
    x_t = torch.randn((1, 4, 14, 14), generator=torch.Generator().manual_seed(0))
    rows = x_t.expand(3, -1, -1, -1)
    with torch.no_grad():
        one, other, none = pipeline.unet(rows, 500, torch.tensor([0, 9, NULL_CLASS])).sample
    assert one.shape == (4, 14, 14)
    assert not torch.equal(one, other)
    assert not torch.equal(one, none)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
