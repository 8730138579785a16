from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, LDMPipeline
from safetensors.torch import load_file

from models.backbones.training_loop import Progress, Recipe
from models.diffusion.codec import from_uint8
from models.zoo.examples.autoencoder import AutoencoderRecipe, latents
from models.zoo.examples.fashion import train_fashion
from models.zoo.mnist import Images

RNG = np.random.default_rng(0)
DATA = Images(RNG.integers(0, 256, (16, 32, 32), np.uint8), np.zeros(16, np.uint8))
RECIPE = Recipe(steps=2, batch_size=2, checkpoint_every=1)
AUTOENCODER = AutoencoderRecipe(steps=2, batch_size=2, checkpoint_every=1)
WEIGHTS = "diffusion_pytorch_model.safetensors"


def _interrupt(progress: Progress) -> None:
    if progress.step == 2:
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fashion")
    train_fashion(DATA, out, RECIPE, AUTOENCODER)
    return out


def test_fashion_is_a_folder_that_diffusers_itself_draws_from(made: Path) -> None:
    suffixes = {path.suffix for path in made.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors"}
    pipeline = DiffusionPipeline.from_pretrained(made / "model", use_safetensors=True)
    assert isinstance(pipeline, LDMPipeline)
    assert isinstance(pipeline.vqvae, AutoencoderKL)
    assert not pipeline.scheduler.config.clip_sample
    images = pipeline(batch_size=2, num_inference_steps=2, output_type="np").images
    assert images.shape == (2, 32, 32, 1)
    assert np.isfinite(images).all()


def test_latents_have_unit_deviation(made: Path) -> None:
    vae = AutoencoderKL.from_pretrained(made / "model" / "vqvae", use_safetensors=True)
    x_0 = latents(vae, from_uint8(DATA.images))
    assert x_0.shape == (16, 4, 8, 8)
    assert float(x_0.std()) == pytest.approx(1, abs=1e-3)


def test_stopped_in_either_training_it_goes_on(made: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_fashion(DATA, tmp_path, RECIPE, AUTOENCODER, on_autoencoder_step=_interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_fashion(DATA, tmp_path, RECIPE, AUTOENCODER, on_step=_interrupt)
    train_fashion(DATA, tmp_path, RECIPE, AUTOENCODER)
    for part in ("unet", "vqvae"):
        whole = load_file(made / "model" / part / WEIGHTS)
        for name, value in load_file(tmp_path / "model" / part / WEIGHTS).items():
            torch.testing.assert_close(value, whole[name])
