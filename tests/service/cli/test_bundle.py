"""`winnow bundle`: from a pipeline to a bundle that serves, and to its configuration."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from models.bundles import bundle as bundles
from models.bundles.bundle import WEIGHTS
from models.diffusion.method import Method
from service.cli.main import app
from service.cluster.preflight import check
from service.config import BackboneSettings, ConfigError
from service.config.serve_file import read
from service.errors import PolicyNotReady
from service.images.encode import from_png
from service.offline.import_check import draw_twice
from service.policies.policy import Overrides, resolve
from service.policies.seeding import configured_policies
from tests import loras
from tests.imports import MAKERS, edit
from tests.single_files import tiny_file


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A pipeline by its name in `MAKERS`; not to be damaged."""

    def made(name: str) -> Path:
        folder = tmp_path_factory.getbasetemp() / "sources" / name
        if not folder.exists():
            MAKERS[name](folder)
        return folder

    return made


def _run(*arguments: Any) -> Result:
    answer = CliRunner().invoke(app, ["bundle", *(str(one) for one in arguments)])
    assert "Traceback" not in answer.output
    assert isinstance(answer.exception, SystemExit | None), answer.exception
    return answer


def _said(*arguments: Any) -> str:
    answer = _run(*arguments)
    assert answer.exit_code == 0, answer.output
    return answer.output


def _refused(*arguments: Any) -> str:
    answer = _run(*arguments)
    assert answer.exit_code == 1, answer.output
    return answer.output


def test_loras_are_fused_in_and_named(source: Callable[[str], Path], tmp_path: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(source("sd"))
    one = loras.kohya(loras.deltas(pipeline), tmp_path / "one.safetensors")
    two = loras.diffusers(loras.deltas(pipeline, ("unet",)), tmp_path / "two.safetensors")
    out = tmp_path / "out"
    asked = ["--lora", f"{one}:0.1", "--lora", two, "--check-steps", 2]
    said = _said("import", source("sd"), "--out", out, *asked)
    assert "LoRA one.safetensors: fused at 0.1 into 83 layers of unet and 12 layers of text" in said
    assert "LoRA two.safetensors: fused at 1 into 83 layers of unet" in said
    record = bundles.load(str(out)).manifest.backbone.training["loras"]
    assert [(one["file"], one["scale"]) for one in record] == [
        ("one.safetensors", 0.1),
        ("two.safetensors", 1.0),
    ]
    assert "one.safetensors × 0.1" in _said("show", out)


def test_a_lora_that_does_not_fit_makes_no_bundle(
    source: Callable[[str], Path], tmp_path: Path
) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(source("sd"))
    file = loras.diffusers(loras.deltas(pipeline, ("unet",)), tmp_path / "sd.safetensors")
    out = tmp_path / "out"
    said = _refused("import", source("sdxl"), "--out", out, "--lora", f"{file}:0.5")
    assert "does not fit this model" in said
    assert not out.exists()
    assert "no such file" in _refused("import", source("sd"), "--out", out, "--lora", "away:1")


@pytest.mark.parametrize("name", list(MAKERS))
def test_each_kind_is_drawn_by_the_engine_that_serves(
    source: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    out = tmp_path / "my-model"
    said = _said("import", source(name), "--out", out, "--check-steps", 4)
    assert "drawn twice, same bytes" in said
    assert f"winnow serve {tmp_path}/my-model.yaml" in said
    bundle = bundles.load(str(out))
    backbone = bundle.manifest.backbone
    check = backbone.training["check"]
    assert check["num_inference_steps"] == 4
    assert check["peak_bytes"] > 0
    assert check["nfe_per_s"] > 0
    assert check["guidance_scale"] == backbone.inputs.guidance_scale
    sample = from_png((out / "sample.png").read_bytes())
    assert sample.shape == (backbone.height, backbone.width, backbone.channels)
    # The sample can be drawn again from what the manifest says.
    method = Method(4, sampler=backbone.training["sampling"]["sampler"])
    again = draw_twice(bundle, BackboneSettings(runtime="torch", max_batch=1), method)
    assert np.array_equal(again.pixels, sample)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my-model", "my-model.yaml"]


@pytest.mark.parametrize("name", list(MAKERS))
def test_the_configuration_can_be_served_and_lets_nothing_out_yet(
    source: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    config = tmp_path / "there" / "winnow.yaml"
    config.parent.mkdir()
    _said("import", source(name), "--out", tmp_path / "m", "--check-steps", 2, "--config", config,
          "--steps", 25)  # fmt: skip
    file = read(config)
    settings = file.settings
    bundle = bundles.load(settings.models["m"].bundle)
    policies = configured_policies(settings, {"m": bundle})
    assert settings.default_policy == "screened"
    assert settings.feedback.enabled
    with pytest.raises(PolicyNotReady):
        resolve(policies["screened"], Overrides(), 0, admin=True)
    assert not policies["none"].censors, "which needs the admin scope"
    assert policies["none"].settings.num_inference_steps == [25]
    assert not (tmp_path / "m.yaml").exists()


@pytest.mark.parametrize("kind", ["sd", "sd2", "sdxl"])
def test_a_checkpoint_in_one_file_is_drawn_twice(tmp_path: Path, kind: str) -> None:
    tiny_file(kind, tmp_path / "base", tmp_path / "model.safetensors")
    out = tmp_path / "m"
    said = _said("import", tmp_path / "model.safetensors", "--out", out, "--check-steps", 2,
                 "--base", tmp_path / "base")  # fmt: skip
    assert "drawn twice, same bytes" in said
    assert "  - model.safetensors: one file, in the layout of Stable Diffusion" in said
    assert "  - prediction_type: epsilon: nothing in the file says otherwise" in said
    bundles.load(str(out))
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["base", "m", "m.yaml", "model.safetensors"], "nothing else is left"


@pytest.mark.slow
def test_a_u_net_is_exported_and_compared_if_asked(
    source: Callable[[str], Path], tmp_path: Path
) -> None:
    out = tmp_path / "m"
    _said("import", source("class"), "--out", out, "--onnx", "--null-class", 3, "--guidance-scale",
          2, "--check-steps", 2)  # fmt: skip
    bundle = bundles.load(str(out))
    backbone = bundle.manifest.backbone
    assert backbone.onnx == "backbone/unet.onnx"
    assert 0 <= backbone.training["onnx"]["difference_from_torch"] < 1e-4
    assert backbone.training["check"]["runtime"] == "onnx"
    assert read(tmp_path / "m.yaml").settings.models["m"].backbone.runtime == "onnx"
    onnx = draw_twice(bundle, BackboneSettings(runtime="onnx", max_batch=1), Method(4))
    on_torch = draw_twice(bundle, BackboneSettings(runtime="torch", max_batch=1), Method(4))
    assert np.abs(onnx.pixels.astype(int) - on_torch.pixels.astype(int)).max() <= 1


@pytest.mark.parametrize("name", ["sd", "dit"])
def test_what_cannot_be_exported_is_said(
    source: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    said = _refused("import", source(name), "--out", tmp_path / "m", "--onnx")
    assert "--onnx: exports a UNet2DModel" in said
    assert "runtime: torch" in said
    assert list(tmp_path.iterdir()) == []


def _broken(source: Path, target: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    shutil.copytree(source, target)
    states = load_file(target / "unet" / WEIGHTS)
    changed = {name: change(value) for name, value in states.items()}
    save_file(changed, target / "unet" / WEIGHTS, {"format": "pt"})
    return target


def test_a_model_that_draws_no_image_becomes_no_bundle(
    source: Callable[[str], Path], tmp_path: Path
) -> None:
    broken = _broken(source("ddpm"), tmp_path / "nan", lambda value: value * float("nan"))
    said = _refused("import", broken, "--out", tmp_path / "m")
    assert "unet: " in said
    assert " holds NaN" in said
    assert not (tmp_path / "m").exists()
    assert not (tmp_path / "m.yaml").exists()
    # An autoencoder that has lost its last layer.
    flat = shutil.copytree(source("ldm"), tmp_path / "flat")
    part = next(name for name in ("vqvae", "vae") if (flat / name).is_dir())
    states = load_file(flat / part / WEIGHTS)
    for name in ("decoder.conv_out.weight", "decoder.conv_out.bias"):
        states[name] = torch.zeros_like(states[name])
    save_file(states, flat / part / WEIGHTS, {"format": "pt"})
    assert "image of one colour (128)" in _refused("import", flat, "--out", tmp_path / "m")
    assert {path.name for path in tmp_path.iterdir()} == {"nan", "flat"}, "nothing is left behind"


def test_a_bundle_is_replaced_only_by_force(source: Callable[[str], Path], tmp_path: Path) -> None:
    out = tmp_path / "m"
    _said("import", source("ddpm"), "--out", out, "--check-steps", 2)
    before = (out / "manifest.json").read_bytes()
    assert "exists already: give --force" in _refused("import", source("class"), "--out", out)
    (tmp_path / "m.yaml").unlink()
    assert "is a bundle already: give --force" in _refused("import", source("class"), "--out", out)
    assert (out / "manifest.json").read_bytes() == before
    (tmp_path / "m.yaml").write_text("# edited by hand")
    _said("import", source("class"), "--out", out, "--check-steps", 2, "--force")
    assert bundles.load(str(out)).manifest.backbone.inputs.kind == "class"
    assert (tmp_path / "m.yaml.old").read_text() == "# edited by hand"
    assert {path.name for path in tmp_path.iterdir()} == {"m", "m.yaml", "m.yaml.old"}


def test_a_failed_import_by_force_leaves_the_old_bundle(
    source: Callable[[str], Path], tmp_path: Path
) -> None:
    out = tmp_path / "m"
    _said("import", source("ddpm"), "--out", out, "--check-steps", 2)
    before = (out / "manifest.json").read_bytes()
    flow = shutil.copytree(source("dit"), tmp_path / "flow")
    edit(flow / "scheduler/scheduler_config.json", _class_name="EDMEulerScheduler")
    assert "EDM" in _refused("import", flow, "--out", out, "--force")
    assert (out / "manifest.json").read_bytes() == before


def test_what_is_no_bundle_is_never_replaced(source: Callable[[str], Path], tmp_path: Path) -> None:
    out = tmp_path / "m"
    out.mkdir()
    (out / "thesis.tex").write_text("years")
    said = _refused("import", source("ddpm"), "--out", out, "--force")
    assert "holds something that is no bundle" in said
    assert (out / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--name", "My Model"], "--name: 'My Model' must be small letters"),
        (["--device", "gpu"], "--device: "),
        (["--device", "cuda"], "--device: cuda is not there"),
        (["--dtype", "int8"], "--dtype: "),
        (["--onnx", "--dtype", "float16"], "--onnx: "),
        (["--class-names", "a,,b"], "--class-names: "),
        (["--size", "9999"], "--size: '9999' is not HxW"),
    ],
)
def test_a_mistake_is_a_sentence_that_names_the_option(
    source: Callable[[str], Path], tmp_path: Path, options: list[str], words: str
) -> None:
    assert words in _refused("import", source("ddpm"), "--out", tmp_path / "m", *options)
    assert list(tmp_path.iterdir()) == []


SCHEDULER = "scheduler/scheduler_config.json"
BAD_FILES: list[tuple[str, str, dict[str, Any], list[str], str]] = [
    ("ddpm", SCHEDULER, {"num_train_timesteps": 20}, ["--steps", "50"],
     "--steps: is 50, and the model was tra"),
    ("ddpm", SCHEDULER, {"num_train_timesteps": 5}, ["--steps", "5"], "--check-steps: is 10, and"),
    ("ddpm", SCHEDULER, {"num_train_timesteps": "many"}, [],
     f"{SCHEDULER}: num_train_timesteps is 'many', must be a whole number of 1 to 100000"),
    ("ddpm", SCHEDULER, {"beta_start": "x"}, [], f"{SCHEDULER}: DDPMScheduler cannot read it: "),
    ("ddpm", SCHEDULER, {"clip_sample_range": "x"}, [], f"{SCHEDULER}: cannot be made sense of: "),
    ("ddpm", "model_index.json", {"unet": ["mine", "UNet2DModel"]}, [], "is a class of 'mine'"),
    ("sd", "tokenizer/tokenizer_config.json", {"model_max_length": 3}, ["--check-steps", "2"],
     "--prompt: has "),
]  # fmt: skip


@pytest.mark.parametrize(("name", "file", "changes", "options", "words"), BAD_FILES)
def test_a_file_that_makes_no_sense_is_named_and_nothing_is_left(
    source: Callable[[str], Path],
    tmp_path: Path,
    name: str,
    file: str,
    changes: dict[str, Any],
    options: list[str],
    words: str,
) -> None:
    bad = shutil.copytree(source(name), tmp_path / "bad")
    edit(bad / file, **changes)
    said = _refused("import", bad, "--out", tmp_path / "m", *options)
    assert words in said
    assert len(said.splitlines()[-1]) < 400
    assert [path.name for path in tmp_path.iterdir()] == ["bad"], "nothing is left behind"


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("none/x.yaml", "/none is no folder: make it first"),
        (".", "must be a file, and not in the bundle's folder"),
        ("m/x.yaml", "must be a file, and not in the bundle's folder"),
    ],
)
def test_where_the_configuration_is_to_stand_is_looked_at_first(
    source: Callable[[str], Path], tmp_path: Path, place: str, words: str
) -> None:
    said = _refused("import", source("ddpm"), "--out", tmp_path / "m", "--config", tmp_path / place)
    assert said.startswith("--config: ")
    assert words in said
    assert len(said.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_that_is_refused_leaves_the_old_bundle(
    source: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m"
    _said("import", source("ddpm"), "--out", out, "--check-steps", 2)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def refuse(*arguments: Any) -> None:
        raise ConfigError("policies.none: no")

    monkeypatch.setattr("service.policies.seeding.configured_policies", refuse)
    again = ("import", source("class"), "--out", out, "--check-steps", 2, "--force")
    assert "policies.none: no" in _refused(*again)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_out_cannot_be_under_a_file(source: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = _refused("import", source("ddpm"), "--out", tmp_path / "file" / "m")
    assert said.startswith(f"{tmp_path}/file: ")


@pytest.mark.parametrize("licence", ["MIT [/b]", "[red] one"])
def test_what_others_call_their_licence_is_printed_as_it_is(
    source: Callable[[str], Path], tmp_path: Path, licence: str
) -> None:
    said = _said("import", source("ddpm"), "--out", tmp_path / "m", "--check-steps", 2,
                 "--licence", licence)  # fmt: skip
    assert f"licence: {licence}" in said


def test_a_link_to_a_bundle_stays_one(source: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "m").symlink_to(tmp_path / "there")
    _said("import", source("ddpm"), "--out", tmp_path / "m", "--check-steps", 2)
    assert (tmp_path / "m").is_symlink()
    settings = read(tmp_path / "there.yaml").settings
    assert settings.models["there"].bundle == str(tmp_path / "there")


def test_a_bundle_is_shown(source: Callable[[str], Path], tmp_path: Path) -> None:
    out = tmp_path / "m"
    _said("import", source("class"), "--out", out, "--class-names", "cat,dog,owl",
          "--check-steps", 2, "--licence", "CC0")  # fmt: skip
    said = _said("show", out)
    for words in (
        "licence        CC0",
        "images         16 × 16 × 3",
        "one of 3 classes (cat, dog, owl), null class 3, guidance_scale 1",
        "runtimes       torch",
        "rewards        none: train one from labels at /feedback",
        "UNet2DModel, 0.05 M float32",
        "float32 ",
        f"backbone/unet/{WEIGHTS}",
    ):
        assert words in said, words
    sample = bundles.load(str(out)).sha256("sample.png")
    assert sample[:19] in said
    (out / "sample.png").write_bytes(b"another")
    assert "sha256 is not the manifest's" in _refused("show", out)
    shipped = _said("show", "mnist-sevens")
    assert "no-crossbar, only-crossbar" in shipped
    assert "runtimes       onnx, torch" in shipped


def test_sizes_are_imported_and_the_largest_and_the_smallest_drawn(
    source: Callable[[str], Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    sizes = ["--size", "32x32", "--size", "32x64, 16x32"]
    said = _said("import", source("sdxl"), "--out", out, *sizes, "--check-steps", 2)
    assert "other sizes: 32 × 64, 16 × 32; the smallest and the largest were drawn" in said
    backbone = bundles.load(str(out)).manifest.backbone
    assert (backbone.height, backbone.width) == (32, 32)
    assert backbone.sizes == ((32, 32), (32, 64), (16, 32))
    assert from_png((out / "sample.png").read_bytes()).shape == (32, 64, 3)
    policies = read(tmp_path / "out.yaml").settings.policies
    assert policies["none"].sizes == ["64x32", "32x16"]
    # Each needs a threshold of its own.
    assert policies["screened"].sizes == []
    assert "32 × 64, 16 × 32" in _said("show", out)


@pytest.mark.parametrize(
    ("sizes", "why"),
    [
        (["32x32,30x32"], "--size: 30x32: this model needs multiples of 4"),
        (["32x32", "32x32"], "--size: 32x32 stands there twice"),
        (["32x32,"], "--size: '' is not HxW"),
    ],
)
def test_every_size_is_checked_before_anything_is_written(
    source: Callable[[str], Path], tmp_path: Path, sizes: list[str], why: str
) -> None:
    asked = [part for one in sizes for part in ("--size", one)]
    said = _refused("import", source("sdxl"), "--out", tmp_path / "out", *asked)
    assert why in " ".join(said.split())
    assert not (tmp_path / "out").exists()


def test_a_graph_has_one_size(source: Callable[[str], Path], tmp_path: Path) -> None:
    asked = ["--onnx", "--size", "16x16,16x32"]
    said = _refused("import", source("ddpm"), "--out", tmp_path / "out", *asked)
    assert "--onnx: a graph draws one size alone" in said


def test_a_family_that_is_new_is_imported_as_a_whole_and_served(
    source: Callable[[str], Path], tmp_path: Path
) -> None:
    out = tmp_path / "new"
    said = _said("import", source("lumina2"), "--out", out, "--check-steps", 2, "--prompt", "a cat")
    assert "new: Lumina2Pipeline, images of 32 × 32 × 3" in said
    assert "runs as a whole, as Lumina2Pipeline of diffusers has it" in said
    assert "drawn twice, same bytes" in said
    shown = _said("show", out)
    assert "a whole pipeline of diffusers': rejection alone" in shown
    settings = read(tmp_path / "new.yaml").settings
    backbone = settings.models["new"].backbone
    assert (backbone.runtime, backbone.max_batch) == ("torch", 1)
    assert settings.policies["screened"].num_inference_steps == [30]
    assert settings.policies["screened"].sampler == "ddim"
    policies = configured_policies(settings, {"new": bundles.load(str(out))})
    with pytest.raises(PolicyNotReady):
        resolve(policies["screened"], Overrides(), 0, admin=True)
    check(tmp_path / "new.yaml", {"WINNOW_ADMIN_KEY": "k" * 32})  # as before a start


def test_what_cannot_run_as_a_whole_is_refused_without_a_trace(
    source: Callable[[str], Path], tmp_path: Path
) -> None:
    lumina, out = source("lumina2"), tmp_path / "out"
    assert "--onnx: " in _refused("import", lumina, "--out", out, "--onnx")
    said = _refused("import", lumina, "--out", out, "--size", "40x40")
    assert "draws no image of 40x40" in " ".join(said.split())
    assert "--whole" not in said
    said = _refused("import", source("ddpm"), "--out", out, "--whole")
    assert "DDPMPipeline takes no prompt" in " ".join(said.split())
    assert not out.exists()
