"""A pipeline of diffusers' whose denoiser has no adapter becomes a bundle as a whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models.backbones.importing.source import INDEX, CannotImport
from models.backbones.pipeline import Pipeline
from models.bundles.bundle import load, update_manifest
from models.bundles.manifest import Manifest
from models.diffusion.codec import to_uint8
from models.diffusion.condition import Condition, ConditionError
from models.diffusion.method import Method
from tests.families import tiny_flux, tiny_qwen_image, tiny_sd3
from tests.imports import edit, import_folder
from tests.whole_pipelines import SIDE, tiny_if

Copy = Callable[[str], Path]


def test_an_unknown_denoiser_is_imported_as_a_whole_and_a_note_says_so(
    pipeline: Copy, tmp_path: Path
) -> None:
    found = import_folder(pipeline("lumina2"), tmp_path / "out")
    backbone = found.manifest.backbone
    assert backbone.kind == "pipeline"
    assert (backbone.height, backbone.width, backbone.channels) == (SIDE, SIDE, 3)
    assert (backbone.inputs.kind, backbone.inputs.guidance_scale) == ("text", 4.0)
    assert found.sampling.num_inference_steps == 30  # as its call has it
    assert found.sampling.policy == {}
    assert "runs as a whole, as Lumina2Pipeline of diffusers has it" in found.notes[0]
    bundle = load(str(tmp_path / "out"))
    endings = {Path(name).suffix for name in bundle.manifest.files}
    assert endings == {".safetensors", ".json"}
    assert set(found.manifest.backbone.training["components"]) == {
        "transformer", "vae", "text_encoder"
    }  # fmt: skip


def test_a_denoiser_that_winnow_steps_runs_as_a_whole_where_that_is_asked(
    pipeline: Copy, tmp_path: Path
) -> None:
    folder = pipeline("sd")
    stepped = import_folder(folder, tmp_path / "stepped")
    assert stepped.manifest.backbone.kind == "denoiser"
    whole = import_folder(folder, tmp_path / "whole", whole=True)
    assert whole.manifest.backbone.kind == "pipeline"
    # All of it is what draws: no weights are those of the other way to run it.
    keys = [load(str(tmp_path / one)).backbone_key("torch") for one in ("stepped", "whole")]
    assert keys[0].weights != keys[1].weights


@pytest.mark.parametrize("name", ["transformer", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_its_sampling_key_is_another_where_any_file_is(
    pipeline: Copy, tmp_path: Path, name: str
) -> None:
    import_folder(pipeline("lumina2"), tmp_path / "out")
    bundle = load(str(tmp_path / "out"))
    before = bundle.backbone_key("torch")
    file = next(one for one in bundle.manifest.files if one.startswith(f"backbone/{name}/"))

    def change(manifest: Manifest) -> Manifest:
        return manifest

    path = tmp_path / "out" / file
    path.write_bytes(path.read_bytes() + b" ")
    changed = bundle.manifest.files[file].model_copy(update={"sha256": "0" * 64})
    bundle.manifest.files[file] = changed
    update_manifest(tmp_path / "out", change)
    assert bundle.backbone_key("torch").weights != before.weights


def test_code_is_never_copied(pipeline: Copy, tmp_path: Path) -> None:
    folder = pipeline("lumina2")
    (folder / "transformer/modeling.py").write_text("raise SystemExit")
    (folder / "pipeline.py").write_text("raise SystemExit")
    edit(folder / "text_encoder/config.json", auto_map={"AutoModel": "modeling.Mine"})
    found = import_folder(folder, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.py"))
    assert "auto_map" not in (tmp_path / "out/backbone/text_encoder/config.json").read_text()
    assert any("pipeline.py: not copied, since it can run code" in note for note in found.notes)


def test_pickled_weights_are_refused_with_the_command_that_converts_them(
    pipeline: Copy, tmp_path: Path
) -> None:
    folder = pipeline("lumina2")
    weights = folder / "transformer/diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(CannotImport, match=r"pickled weights can run code[^$]*python -c"):
        import_folder(folder, tmp_path / "out")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"_class_name": ["mine", "MyPipeline"]}, "code of its own is never run"),
    ({"_class_name": "MyPipeline"}, "is no pipeline of diffusers .*a newer diffusers may know it"),
    ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "is no pipeline of diffusers"),
    ({"_class_name": "DDPMPipeline"}, "takes no prompt"),
    ({"_class_name": "StableDiffusionControlNetPipeline"}, "draws after another image"),
    ({"_class_name": "WanVideoToVideoPipeline"}, "draws after another image"),
    ({"text_encoder": ["mine", "Gemma2Model"]}, "text_encoder is Gemma2Model of 'mine'"),
    ({"transformer": ["diffusers", "Mine2D"]}, "transformer is Mine2D of 'diffusers'"),
    ({"tokenizer": ["subprocess", "Popen"]}, "tokenizer is Popen of 'subprocess'"),
    ({"scheduler": None}, "scheduler"),
]


@pytest.mark.parametrize(("changes", "words"), REFUSED)
def test_what_would_run_code_or_draws_no_image_from_a_prompt_is_refused(
    pipeline: Copy, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    folder = pipeline("lumina2")
    edit(folder / INDEX, **changes)
    if "scheduler" in changes:
        shutil.rmtree(folder / "scheduler")
    with pytest.raises(CannotImport, match=words):
        import_folder(folder, tmp_path / "out", whole=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pixel_shuffle": 2}, "--pixel-shuffle: is not for a model that runs as a whole"),
        ({"size": "big"}, "--size: 'big' is not HxW"),
    ],
)
def test_options_that_say_nothing_to_it_are_refused(
    pipeline: Copy, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(CannotImport, match=words):
        import_folder(pipeline("lumina2"), tmp_path / "out", **options)


@pytest.mark.parametrize(
    "changes", [{"_class_name": ["mine", "Mine"]}, {"tokenizer": ["subprocess", "Popen"]}]
)
def test_a_bundle_that_names_code_is_not_loaded(
    pipeline: Copy, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Whoever wrote its manifest: diffusers would import what stands there."""
    found = import_folder(pipeline("lumina2"), tmp_path / "out")
    path = tmp_path / "out/backbone" / INDEX
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=r"code of its own|no code that comes with a model"):
        Pipeline(path.parent, found.manifest.backbone)


def test_an_image_of_another_size_than_was_asked_for_is_refused(
    pipeline: Copy, tmp_path: Path
) -> None:
    found = import_folder(pipeline("lumina2"), tmp_path / "out")
    pipe = Pipeline(tmp_path / "out/backbone", found.manifest.backbone)
    half = pipe._pipeline.image_processor.postprocess
    pipe._pipeline.image_processor.postprocess = lambda image, **named: half(
        image[..., :16, :16], **named
    )
    with pytest.raises(ValueError, match=r"makes images of 16x16 .* asked for 32x32 .*--size"):
        pipe.draw(Method(2), Condition("a cat"), 0, 0, (SIDE, SIDE))


def test_what_its_pipeline_does_not_draw_is_said_in_its_words(
    pipeline: Copy, tmp_path: Path
) -> None:
    found = import_folder(pipeline("lumina2"), tmp_path / "out", size="40x40")
    with pytest.raises(ValueError, match=r"draws no image of 40x40 .*divisible by 16 but are 40"):
        Pipeline(tmp_path / "out/backbone", found.manifest.backbone)


def test_no_tokenizer_cuts_a_prompt_in_silence(pipeline: Copy, tmp_path: Path) -> None:
    """Even of a caller that has not asked `check`."""
    found = import_folder(pipeline("lumina2"), tmp_path / "out")
    pipe = Pipeline(tmp_path / "out/backbone", found.manifest.backbone)
    for condition in (Condition("owl " * 90), Condition("owl", "dog " * 90, guidance_scale=3.0)):
        with pytest.raises(ValueError, match=r"has \d+ tokens, \d+ more than the 256"):
            pipe.draw(Method(2), condition, 0, 0, (SIDE, SIDE))
        with pytest.raises(ConditionError, match=r"more than the 256"):
            pipe.check(condition)


OTHERS: dict[str, tuple[Callable[[Path], Any], int, dict[str, Any]]] = {
    "older callback, pixels": (tiny_if, 32, {"guidance_scale": 7.0}),
    "embedded guidance": (tiny_flux, 16, {"guidance_scale": 3.5}),
    "without its third encoder": (partial(tiny_sd3, t5=False), 16, {"guidance_scale": 7.0}),
    "a template of conversations": (tiny_qwen_image, 16, {}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_whatever_the_pipeline_its_image_is_the_one_that_it_makes_by_hand(
    tmp_path: Path, name: str
) -> None:
    make, side, guidance = OTHERS[name]
    pipeline = make(tmp_path / "pipeline")
    found = import_folder(
        tmp_path / "pipeline", tmp_path / "out", whole=True, size=f"{side}x{side}"
    )
    scale = found.manifest.backbone.inputs.guidance_scale
    assert scale == guidance.get("guidance_scale", 1.0)
    asked, heard = Condition("a cat", guidance_scale=scale), []
    pipe = Pipeline(tmp_path / "out/backbone", found.manifest.backbone)
    image = pipe.draw(Method(4), asked, 5, 0, (side, side), lambda: heard.append(0))
    made, finite = to_uint8(image[None])
    assert finite.all()
    assert len(heard) == (4 if "older" in name else 3)  # after the last step too, or not
    generator = torch.Generator().manual_seed(5)
    by_hand = pipeline(prompt="a cat", height=side, width=side, num_inference_steps=4,
                       generator=generator, **guidance).images[0]  # fmt: skip
    assert np.array_equal(made[0], np.asarray(by_hand))
    with pytest.raises(ConditionError, match="more than the"):
        pipe.check(Condition("a cat " * 2000))
