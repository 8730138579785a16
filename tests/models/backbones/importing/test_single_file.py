"""A checkpoint in one file: the same weights as diffusers makes of it, and its own schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file

from models.backbones.importing.bundle_folder import Made, Options, make
from models.backbones.importing.reference import open_source
from models.backbones.importing.source import CannotImport
from models.bundles.bundle import WEIGHTS, load
from models.diffusion.noise_schedule import read_config
from tests.imports import edit, unheard
from tests.single_files import States, tiny_file

FILES = {"unet": WEIGHTS, "vae": WEIGHTS, "text_encoder": "model.safetensors",
         "text_encoder_2": "model.safetensors"}  # fmt: skip


def import_file(path: Path, out: Path, base: Path | None, **options: Any) -> Made:
    """The bundle of a file, without the service's check."""
    scratch = out.with_name(f"{out.name}-scratch")
    scratch.mkdir()
    source = open_source(str(path), base=base, scratch=scratch, **options)
    return make(source, out, Options("tiny"), unheard)


@pytest.mark.parametrize("kind", ["sd", "sd2", "sdxl"])
def test_the_weights_are_those_that_diffusers_had(tmp_path: Path, kind: str) -> None:
    base, path = tmp_path / "base", tmp_path / "my-model.safetensors"
    pipeline = tiny_file(kind, base, path)
    made = import_file(path, tmp_path / "out", base)
    for name in made.weights:
        ours = load_file(tmp_path / "out/backbone" / name / FILES[name])
        theirs = load_file(base / name / FILES[name])
        ours = {key.removeprefix("text_model."): value for key, value in ours.items()}
        theirs = {key.removeprefix("text_model."): value for key, value in theirs.items()}
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name
    bundle = load(str(tmp_path / "out"))
    record = bundle.manifest.backbone.training
    assert record["imported_from"] == "my-model.safetensors"
    assert set(record["components"]["unet"]["files"]) == {"my-model.safetensors"}
    assert made.weights["unet"].parameters == sum(p.numel() for p in pipeline.unet.parameters())
    assert bundle.x_t_shape == (4, 16, 16)
    said = "\n".join(made.notes)
    assert "my-model.safetensors: one file, in the layout of Stable Diffusion" in said
    assert "prediction_type: epsilon: nothing in the file says otherwise" in said
    assert "alphas_cumprod" in said
    schedule = read_config(tmp_path / "out/backbone")
    assert schedule["beta_schedule"] == "scaled_linear"
    assert (schedule["steps_offset"], schedule["prediction_type"]) == (1, "epsilon")
    assert str(tmp_path) not in bundle.manifest.model_dump_json(), "whose machine is nobody's"


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_diffusers_makes_the_same_of_the_same_file(tmp_path: Path, kind: str) -> None:
    base, path = tmp_path / "base", tmp_path / "my-model.safetensors"
    pipeline = tiny_file(kind, base, path)
    edit(base / "vae/config.json", scaling_factor=0.18215 if kind == "sd" else 0.13025)
    import_file(path, tmp_path / "out", base)
    names = {"sd": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}
    parts = {} if kind == "sd" else {"add_watermarker": False}
    theirs = names[kind].from_single_file(path, config=str(base), local_files_only=True, **parts)
    ours = names[kind].from_pretrained(tmp_path / "out/backbone", local_files_only=True, **parts)
    if kind == "sdxl":
        # diffusers tells the two encoders apart by their widths, which are the same here.
        theirs.text_encoder_2 = pipeline.text_encoder_2
    images = []
    for one in (ours, theirs):
        one.scheduler = ours.scheduler
        one.set_progress_bar_config(disable=True)
        noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
        images.append(one("a cat", num_inference_steps=4, latents=noise, output_type="pt").images)
    assert float((images[0] - images[1]).abs().max()) < 1e-4


MARKS: list[tuple[str, dict[str, str], tuple[str, ...], str | None, tuple[str, bool, str], str]] = [
    ("sdxl", {}, ("v_pred",), None, ("v_prediction", False, "leading"), "the file has v_pred"),
    ("sdxl", {}, ("v_pred", "ztsnr"), None, ("v_prediction", True, "trailing"),
     "v_prediction, zero terminal SNR: the file has v_pred"),
    ("sd", {"modelspec.prediction_type": "v"}, (), None, ("v_prediction", False, "leading"),
     "its metadata says so (modelspec.prediction_type)"),
    ("sd", {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}, (), None,
     ("v_prediction", True, "trailing"), "its metadata says so (ss_v_parameterization)"),
    ("sd", {"ss_v_parameterization": "False", "ss_zero_terminal_snr": "True"}, (), None,
     ("epsilon", True, "leading"), "epsilon, zero terminal SNR: its metadata says so"),
    ("sd", {"modelspec.prediction_type": "epsilon"}, (), "v_prediction",
     ("v_prediction", False, "leading"), "v_prediction: as --prediction-type says"),
    ("sdxl", {}, ("v_pred", "ztsnr"), "epsilon", ("epsilon", True, "leading"),
     "epsilon, zero terminal SNR: as --prediction-type says"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "metadata", "marks", "asked", "wanted", "words"), MARKS)
def test_what_it_predicts_is_found_by_the_marks_of_trainers(
    tmp_path: Path,
    kind: str,
    metadata: dict[str, str],
    marks: tuple[str, ...],
    asked: str | None,
    wanted: tuple[str, bool, str],
    words: str,
) -> None:
    def mark(states: States) -> States:
        return states | {name: torch.tensor([]) for name in marks}

    base, path = tmp_path / "base", tmp_path / "m.safetensors"
    tiny_file(kind, base, path, metadata, mark)
    made = import_file(path, tmp_path / "out", base, prediction_type=asked)
    schedule = read_config(tmp_path / "out/backbone")
    keys = ("prediction_type", "rescale_betas_zero_snr", "timestep_spacing")
    assert tuple(schedule[key] for key in keys) == wanted
    assert any(words in note for note in made.notes), made.notes


def test_the_schedule_of_the_file_shows_zero_snr(tmp_path: Path) -> None:
    base, path = tmp_path / "base", tmp_path / "m.safetensors"
    zero = {"v_pred": torch.tensor([]), "alphas_cumprod": torch.linspace(0.9, 0, 1000)}
    tiny_file("sdxl", base, path, change=lambda states: states | zero)
    import_file(path, tmp_path / "out", base)
    assert read_config(tmp_path / "out/backbone")["rescale_betas_zero_snr"]


def test_a_folder_predicts_what_it_is_told_to(pipeline: Any, tmp_path: Path) -> None:
    source = open_source(str(pipeline("sd")), prediction_type="v_prediction")
    made = make(source, tmp_path / "out", Options("tiny"), unheard)
    assert read_config(tmp_path / "out/backbone")["prediction_type"] == "v_prediction"
    assert "prediction_type: v_prediction: as --prediction-type says" in made.notes
    assert made.manifest.backbone.training["scheduler"]["prediction_type"] == "epsilon"
    with pytest.raises(CannotImport, match="--prediction-type: 'velocity' is not one of epsilon"):
        open_source(str(pipeline("sdxl")), prediction_type="velocity")


def test_what_a_file_lacks_comes_from_the_base_or_is_asked_for(tmp_path: Path) -> None:
    base, path = tmp_path / "base", tmp_path / "m.safetensors"

    def unet_alone(states: States) -> States:
        prefix = "model.diffusion_model."
        return {
            name.removeprefix(prefix): value
            for name, value in states.items()
            if name.startswith(prefix)
        }

    tiny_file("sd", base, path)
    with pytest.raises(CannotImport, match=r"has no tokenizer in it: give --base FOLDER"):
        import_file(path, tmp_path / "a", None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CannotImport, match=r"--base: \S+empty has no tokenizer, which"):
        import_file(path, tmp_path / "b", tmp_path / "empty")
    with pytest.raises(CannotImport, match=r"--base: \S+nowhere is no folder"):
        import_file(path, tmp_path / "c", tmp_path / "nowhere")
    tiny_file("sd", tmp_path / "again", path, change=unet_alone)
    with pytest.raises(CannotImport, match="has no vae and text_encoder and tokenizer in it"):
        import_file(path, tmp_path / "d", None)
    made = import_file(path, tmp_path / "e", base)
    assert f"vae: from {base.name}, since the file has none" in made.notes
    ours = load_file(tmp_path / "e/backbone/vae" / WEIGHTS)
    assert all(torch.equal(ours[name], value) for name, value in load_file(
        base / "vae" / WEIGHTS).items())  # fmt: skip


def test_float8_is_cast_exactly_and_said(tmp_path: Path) -> None:
    base, path = tmp_path / "base", tmp_path / "m.safetensors"
    kept: States = {}

    def narrow(states: States) -> States:
        for name, value in states.items():
            if name.startswith("model.") and value.ndim > 1:
                kept[name] = states[name] = value.to(torch.float8_e4m3fn)
        return states

    tiny_file("sd", base, path, change=narrow)
    made = import_file(path, tmp_path / "out", base)
    assert "F8_E4M3 weights: cast to float16, exactly" in made.notes
    assert made.weights["unet"].dtype == "float16"
    states = load_file(tmp_path / "out/backbone/unet" / WEIGHTS)
    name = "model.diffusion_model.input_blocks.0.0.weight"
    assert torch.equal(states["conv_in.weight"].float(), kept[name].float())


def test_weights_that_no_network_of_the_layout_has_are_refused(tmp_path: Path) -> None:
    base, path = tmp_path / "base", tmp_path / "m.safetensors"
    tiny_file("sd", base, path, change=lambda states: {
        name: value for name, value in states.items() if "input_blocks.1.0.in_layers" not in name
    })  # fmt: skip
    with pytest.raises(CannotImport, match=r"unet: the weights are not those of .*missing weights"):
        import_file(path, tmp_path / "out", base)
    stray = {"model.diffusion_model.stray.weight": torch.zeros(2)}
    tiny_file("sd", tmp_path / "again", path, change=lambda states: states | stray)
    with pytest.raises(CannotImport, match=r"unet, in .*stray.weight has no place in a U-Net"):
        import_file(path, tmp_path / "more", base)
