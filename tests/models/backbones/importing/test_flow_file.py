"""SD 3, FLUX and Z-Image in one file: what a folder of the same weights becomes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.backbones.importing.source import CannotImport
from models.bundles.bundle import WEIGHTS, load
from tests.families import tiny_flux, tiny_sd3, tiny_z_image
from tests.imports import import_folder
from tests.models.backbones.importing.test_single_file import import_file
from tests.single_files import (
    States,
    clip_l,
    ldm_vae,
    original_flux,
    original_sd3,
    original_z_image,
)

FAMILIES: dict[str, tuple[Callable[[Path], Any], Callable[..., States], str]] = {
    "SD 3": (tiny_sd3, original_sd3, "Stable Diffusion 3"),
    "FLUX dev": (tiny_flux, original_flux, "FLUX.1 dev"),
    "FLUX schnell": (lambda folder: tiny_flux(folder, dev=False), original_flux, "FLUX.1 schnell"),
    "Z-Image": (tiny_z_image, original_z_image, "Z-Image"),
}


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", ""])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_transformer_alone_and_its_base_are_what_the_folder_is(
    tmp_path: Path, name: str, prefix: str
) -> None:
    maker, original, layout = FAMILIES[name]
    base, path = tmp_path / "base", tmp_path / "m.safetensors"
    pipeline = maker(base)
    states = original(pipeline.transformer, prefix)
    save_file({key: value.contiguous().clone() for key, value in states.items()}, path)
    made = import_file(path, tmp_path / "out", base)
    assert f"m.safetensors: one file, in the layout of {layout}" in made.notes
    theirs = import_folder(base, tmp_path / "folder")
    assert made.kind == theirs.kind
    for part in theirs.weights:
        file = WEIGHTS if (tmp_path / "out/backbone" / part / WEIGHTS).exists() else (
            "model.safetensors")  # fmt: skip
        ours = load_file(tmp_path / "out/backbone" / part / file)
        wanted = load_file(tmp_path / "folder/backbone" / part / file)
        assert ours.keys() == wanted.keys()
        assert all(torch.equal(ours[key], wanted[key]) for key in wanted), part
    load(str(tmp_path / "out"))


def test_flow_matching_is_not_told_what_it_predicts(tmp_path: Path) -> None:
    base, path = tmp_path / "base", tmp_path / "m.safetensors"
    states = original_z_image(tiny_z_image(base).transformer)
    save_file({key: value.contiguous().clone() for key, value in states.items()}, path)
    with pytest.raises(CannotImport, match="--prediction-type: Z-Image matches flows"):
        import_file(path, tmp_path / "out", base, prediction_type="epsilon")
    with pytest.raises(CannotImport, match="has no vae and text_encoder and tokenizer in it"):
        import_file(path, tmp_path / "again", None)


def test_a_whole_file_of_sd3_needs_tokenizers_alone(tmp_path: Path) -> None:
    base, path = tmp_path / "base", tmp_path / "m.safetensors"
    pipeline = tiny_sd3(base)
    states = original_sd3(pipeline.transformer) | ldm_vae(pipeline.vae)
    for name, short in (("text_encoder", "clip_l"), ("text_encoder_2", "clip_g")):
        states |= clip_l(getattr(pipeline, name), f"text_encoders.{short}.transformer.")
    prefix = "text_encoders.t5xxl.transformer."
    t5 = pipeline.text_encoder_3.state_dict()
    states |= {prefix + key: value for key, value in t5.items()}
    save_file({key: value.contiguous().clone() for key, value in states.items()}, path)
    made = import_file(path, tmp_path / "out", base)
    assert not any("since the file has none" in note for note in made.notes)
    theirs = import_folder(base, tmp_path / "folder")
    assert set(made.weights) == set(theirs.weights)
    for part in theirs.weights:
        (ours,) = (tmp_path / "out/backbone" / part).glob("*.safetensors")
        wanted = load_file(tmp_path / "folder/backbone" / part / ours.name)
        found = load_file(ours)
        assert all(torch.equal(found[key], value) for key, value in wanted.items()), part
