"""LoRAs that are fused at import, held to what one is: y = W x + scale · alpha/rank · B A x."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from models.backbones.importing.bundle_folder import Options, make
from models.backbones.importing.lora import Asked
from models.backbones.importing.reference import open_source
from models.backbones.importing.source import CannotImport
from models.bundles.bundle import load, sha256_name
from models.diffusion.condition import Condition
from models.offline.generator import load_generator
from tests import loras
from tests.families import TINY
from tests.imports import MAKERS, import_folder, unheard
from tests.loras import Delta
from tests.single_files import tiny_file

COMPONENTS = {
    "sd": ("unet", "text_encoder"),
    "sdxl": ("unet", "text_encoder", "text_encoder_2"),
}
CLASSES: dict[str, Any] = {"sd": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}
FORMATS = {"kohya": loras.kohya, "diffusers": loras.diffusers, "peft": loras.peft}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    """A pipeline's folder and itself, by its kind; made once, and not to be changed."""

    @cache
    def made(kind: str) -> tuple[Path, Any]:
        folder = tmp_path_factory.mktemp(kind) / "pipeline"
        return folder, MAKERS[kind](folder)

    return made


@contextmanager
def _beside(pipeline: Any, found: list[Delta], scale: float) -> Iterator[None]:
    """Let every layer add what its LoRA says, by the layer's own operation."""

    def hook(one: Delta) -> Callable[[Any, Any, Tensor], Tensor]:
        factor = scale * one.alpha / len(one.down)

        def add(module: Any, given: tuple[Tensor], output: Tensor) -> Tensor:
            if isinstance(module, torch.nn.Linear):
                low = functional.linear(given[0], one.down)
                return output + factor * functional.linear(low, one.up)
            low = functional.conv2d(given[0], one.down, None, module.stride, module.padding)
            return output + factor * functional.conv2d(low, one.up)

        return add

    with ExitStack() as hooks:
        for one in found:
            module = getattr(pipeline, one.component).get_submodule(one.layer)
            hooks.enter_context(module.register_forward_hook(hook(one)))
        yield


@torch.no_grad()
def _outputs(pipeline: Any, kind: str) -> list[Tensor]:
    """What the text encoders and the denoiser say of something."""
    torch.manual_seed(3)
    words = torch.randint(0, 500, (2, 77))
    found = [
        getattr(pipeline, name)(words, output_hidden_states=True).hidden_states[-1]
        for name in COMPONENTS[kind][1:]
    ]
    x_t, width = torch.randn(2, 4, 16, 16), pipeline.unet.config.cross_attention_dim
    added = {"text_embeds": torch.randn(2, 32), "time_ids": torch.rand(2, 6)}
    found.append(
        pipeline.unet(
            x_t, torch.tensor([7, 700]), torch.randn(2, 77, width), added_cond_kwargs=added
        ).sample
    )
    return found


@pytest.mark.parametrize("form", list(FORMATS))
@pytest.mark.parametrize("kind", list(COMPONENTS))
def test_fused_weights_do_what_a_lora_beside_them_does(
    kind: str, form: str, pipeline: Callable[[str], tuple[Path, Any]], tmp_path: Path
) -> None:
    """Every linear and convolution layer, with ranks and alphas of its own."""
    folder, plain = pipeline(kind)
    found = loras.deltas(plain, COMPONENTS[kind][:1] if form == "peft" else COMPONENTS[kind])
    file = FORMATS[form](found, tmp_path / "lora" / "adapter_model.safetensors")
    made = import_folder(folder, tmp_path / "out", loras=(Asked(file, 0.7),))
    fused = CLASSES[kind].from_pretrained(tmp_path / "out" / "backbone", local_files_only=True)
    before = _outputs(plain, kind)
    assert not torch.equal(before[-1], _outputs(fused, kind)[-1])
    with _beside(plain, found, 0.7):
        wanted = _outputs(plain, kind)
    assert all(
        torch.equal(one, other) for one, other in zip(before, _outputs(plain, kind), strict=True)
    )
    for was, ours, theirs in zip(before, _outputs(fused, kind), wanted, strict=True):
        largest = theirs.abs().max()
        assert (ours - theirs).abs().max() <= 1e-5 * largest
        if not torch.equal(was, theirs):
            assert (was - theirs).abs().max() > 1e-2 * largest
    counts: dict[str, int] = {}
    for one in found:
        counts[one.component] = counts.get(one.component, 0) + 1
    assert made.manifest.backbone.training["loras"] == [
        {"file": file.name, "sha256": sha256_name(file), "scale": 0.7, "layers": counts}
    ]
    assert any("fused at 0.7 into" in note for note in made.notes)


def _weights(out: Path, component: str = "unet") -> dict[str, Tensor]:
    (file,) = (out / "backbone" / component).glob("*.safetensors")
    return load_file(file)


def test_several_add_up_and_are_rounded_once(
    pipeline: Callable[[str], tuple[Path, Any]], tmp_path: Path
) -> None:
    """In float16, as the weights are stored."""
    _, plain = pipeline("sd")
    folder = tmp_path / "half"
    half = CLASSES["sd"].from_pretrained(pipeline("sd")[0], dtype=torch.float16)
    half.save_pretrained(folder)
    found = loras.deltas(plain, ("unet",))
    one = loras.kohya(found, tmp_path / "one.safetensors")
    other = loras.diffusers(found[::2], tmp_path / "other.safetensors")
    import_folder(folder, tmp_path / "out", loras=(Asked(one, 0.3), Asked(other, -0.2)))
    before, after = half.unet.state_dict(), _weights(tmp_path / "out")
    assert after.keys() == before.keys()
    touched = set()
    for number, delta in enumerate(found):
        name = f"{delta.layer}.weight"
        touched.add(name)
        scale = 0.3 - 0.2 * (number % 2 == 0)
        product = delta.up.double().flatten(1) @ delta.down.double().flatten(1)
        wanted = before[name].double() + (
            scale * delta.alpha / len(delta.down) * product.view(before[name].shape)
        )
        assert after[name].dtype == torch.float16
        half_a_step = torch.from_numpy(np.spacing(wanted.abs().half().numpy())).double() / 2
        assert ((after[name].double() - wanted).abs() <= 1.001 * half_a_step + 1e-6).all()
    for name, value in before.items():
        assert name in touched or torch.equal(after[name], value)


def test_an_image_is_another_with_a_lora(
    pipeline: Callable[[str], tuple[Path, Any]], tmp_path: Path
) -> None:
    folder, plain = pipeline("sd")
    file = loras.kohya(loras.deltas(plain), tmp_path / "style.safetensors")
    images = []
    for name, asked in (("plain", ()), ("styled", (Asked(file, 0.1),))):
        import_folder(folder, tmp_path / name, loras=asked)
        bundle = load(str(tmp_path / name))
        generator = load_generator(bundle, "torch")
        asked_for = {"num_inference_steps": 3, "condition": lambda _: Condition("a cat")}
        images.append(replace(generator, **asked_for).images([1, 2]))
    assert (images[0] != images[1]).mean() > 0.5


def _refused(folder: Path, out: Path, file: Path) -> str:
    with pytest.raises(CannotImport) as error:
        import_folder(folder, out, loras=(Asked(file),))
    said = str(error.value)
    assert said.startswith(f"--lora: {file}: ")
    return said


def test_a_lora_for_another_model_says_which_layers_do_not_fit(
    pipeline: Callable[[str], tuple[Path, Any]], tmp_path: Path
) -> None:
    sd, sdxl = pipeline("sd"), pipeline("sdxl")
    found = loras.deltas(sdxl[1], COMPONENTS["sdxl"])
    said = _refused(sd[0], tmp_path / "one", loras.kohya(found, tmp_path / "xl.safetensors"))
    second = sum(one.component == "text_encoder_2" for one in found)
    assert f"{second} of its {len(found)} layers are not in it" in said
    assert "text_encoder_2.text_model.encoder.layers.0.mlp.fc1" in said
    assert f" and {second - 3} more. It was made for another one" in said
    # The same names, other widths: SD 1.x against 2.x.
    ours = loras.diffusers(loras.deltas(sdxl[1], ("unet",))[:60], tmp_path / "unet.safetensors")
    said = _refused(sd[0], tmp_path / "two", ours)
    assert "or of another shape: unet." in said
    assert "attn2.to_k" in said


def _lone(name: str) -> Callable[[Path], None]:
    return lambda path: save_file({name: torch.ones(2, 2)}, path)


def _layer(down: Tensor, up: Tensor, name: str = "conv_in", **said: Any) -> Callable[[Path], None]:
    """One layer of a U-Net, and what is said of it."""
    metadata = {"lora_adapter_metadata": json.dumps({f"unet.{k}": v for k, v in said.items()})}
    tensors = {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
    return lambda path: save_file(tensors, path, metadata)


FLAT, SMALL = torch.ones(2, 36), torch.ones(8, 2)
"""A and B that fit `conv_in`."""


OTHERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda path: None, "no such file"),
    "a folder": (lambda path: path.mkdir(), "is a folder, where weights should be"),
    "text": (lambda path: path.write_text("<!doctype html>"), "is an HTML page"),
    "a checkpoint": (_lone("model.diffusion_model.out.2.weight"), "no LoRA but a whole model"),
    "a ControlNet": (_lone("controlnet_down_blocks.0.weight"), "no LoRA but a ControlNet"),
    "an inversion": (_lone("emb_params"), "no LoRA but a textual inversion"),
    "anything": (_lone("a.b"), "is no LoRA: its tensors are a.b"),
    "LoHa": (_lone("lora_unet_conv_in.hada_w1_a"), "a LyCORIS adapter"),
    "DoRA": (_lone("unet.conv_in.dora_scale"), "is a DoRA"),
    "peft's, bare": (_lone("base_model.model.conv_in.lora_A.weight"), "adapter_config.json beside"),
    "half a layer": (_lone("unet.conv_in.lora_A.weight"), "1 of its 1 layers"),
    "half of kohya's": (_lone("lora_unet_conv_in.lora_down.weight"), "cannot make sense"),
    "numbers": (_layer(torch.tensor(1.0), torch.tensor(1.0)), "1 of its 1 layers"),
    "rank 0": (_layer(torch.ones(0, 36), torch.ones(8, 0)), "1 of its 1 layers"),
    "whole numbers": (_layer(FLAT.int(), SMALL.int()), "1 of its 1 layers"),
    "of a norm": (_layer(torch.ones(2, 1), torch.ones(8, 2), "conv_norm_out"), "1 of its 1"),
    "a strange alpha": (_layer(FLAT, SMALL, lora_alpha="much"), "cannot be made sense of"),
    "a strange pattern": (_layer(FLAT, SMALL, alpha_pattern={"(": 1}), "alpha_pattern: '('"),
    "strange patterns": (_layer(FLAT, SMALL, alpha_pattern=[1]), "cannot be made sense of"),
    "strange words": (
        lambda path: save_file({"lora_A": SMALL}, path, {"lora_adapter_metadata": "[1"}),
        "is no JSON object",
    ),
    "of a video model": (_lone("lora_unet_blocks_0_x.lora_down.weight"), "--lora: "),
}


@pytest.mark.parametrize("what", list(OTHERS))
def test_what_is_no_lora_is_named(
    what: str, pipeline: Callable[[str], tuple[Path, Any]], tmp_path: Path
) -> None:
    write, wanted = OTHERS[what]
    file = tmp_path / "lora.safetensors"
    write(file)
    assert wanted in _refused(pipeline("sd")[0], tmp_path / "out", file)


def test_what_names_a_layer_rightly_is_fused(
    pipeline: Callable[[str], tuple[Path, Any]], tmp_path: Path
) -> None:
    """What the table above damages."""
    file = tmp_path / "lora.safetensors"
    _layer(FLAT, SMALL, lora_alpha=1, alpha_pattern={"conv": 1})(file)
    import_folder(pipeline("sd")[0], tmp_path / "out", loras=(Asked(file),))


def test_pickles_are_never_read(
    pipeline: Callable[[str], tuple[Path, Any]], tmp_path: Path
) -> None:
    file = tmp_path / "lora.pt"
    file.write_bytes(b"\x80\x02cos\nsystem\n(S'touch owned'\ntR.")
    assert "python -c" in _refused(pipeline("sd")[0], tmp_path / "out", file)


def test_a_lora_that_breaks_the_weights_is_refused(
    pipeline: Callable[[str], tuple[Path, Any]], tmp_path: Path
) -> None:
    folder, plain = pipeline("sd")
    delta = loras.deltas(plain, ("unet",))[0]
    delta.up[0, 0] = float("nan")
    file = loras.diffusers([delta], tmp_path / "lora.safetensors")
    with pytest.raises(CannotImport, match="would not be finite in"):
        import_folder(folder, tmp_path / "out", loras=(Asked(file),))


@pytest.mark.parametrize("kind", list(TINY))
def test_a_lora_of_any_family_is_fused(kind: str, tmp_path: Path) -> None:
    """By the names that diffusers' own scripts write, PixArt's too, for which it has no others."""
    plain = TINY[kind](tmp_path / "pipeline")
    found = loras.deltas(plain, ("transformer",))
    file = loras.diffusers(found, tmp_path / "lora.safetensors")
    size = "32x32" if kind == "sana" else "16x16"
    import_folder(tmp_path / "pipeline", tmp_path / "out", size=size, loras=(Asked(file, 0.5),))
    before, after = plain.transformer.state_dict(), _weights(tmp_path / "out", "transformer")
    assert len(found) > 20
    for one in found:
        name = f"{one.layer}.weight"
        wanted = before[name] + one.product(0.5).view(before[name].shape)
        torch.testing.assert_close(after[name], wanted, rtol=1e-6, atol=1e-6)


def test_a_lora_of_flux_by_kohya_s_names_is_fused(tmp_path: Path) -> None:
    """There q, k and v are one layer."""
    plain = TINY["flux"](tmp_path / "pipeline")
    torch.manual_seed(5)
    down, up = torch.randn(2, 32), torch.randn(96, 2)
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    file = tmp_path / "lora.safetensors"
    tensors = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(1.0)}
    save_file({f"{name}.{key}": value for key, value in tensors.items()}, file)
    import_folder(tmp_path / "pipeline", tmp_path / "out", size="16x16", loras=(Asked(file, 0.5),))
    before, after = plain.transformer.state_dict(), _weights(tmp_path / "out", "transformer")
    for part, rows in zip("qkv", (0.25 * up @ down).chunk(3), strict=True):
        layer = f"transformer_blocks.0.attn.to_{part}.weight"
        torch.testing.assert_close(after[layer], before[layer] + rows, rtol=1e-5, atol=1e-6)


def test_a_model_that_nobody_makes_loras_for_takes_its_own_names_alone(tmp_path: Path) -> None:
    plain = MAKERS["ddpm"](tmp_path / "ddpm")
    found = loras.deltas(plain, ("unet",))
    ours = loras.diffusers(found, tmp_path / "ours.safetensors")
    import_folder(tmp_path / "ddpm", tmp_path / "out", loras=(Asked(ours),))
    after, one = _weights(tmp_path / "out"), found[0]
    before = plain.unet.state_dict()[f"{one.layer}.weight"]
    wanted = before + one.product(1.0).view(before.shape)
    torch.testing.assert_close(after[f"{one.layer}.weight"], wanted)
    kohya = loras.kohya(found, tmp_path / "kohya.safetensors")
    assert "not in it" in _refused(tmp_path / "ddpm", tmp_path / "again", kohya)


def test_peft_s_strengths_are_read_as_peft_reads_them(
    pipeline: Callable[[str], tuple[Path, Any]], tmp_path: Path
) -> None:
    """Rank-stabilised: alpha/√rank; a pattern names a layer by its end."""
    folder, plain = pipeline("sd")
    found = loras.deltas(plain, ("unet",))[:4]
    file = loras.peft(found, tmp_path / "lora" / "adapter_model.safetensors")
    path = file.with_name("adapter_config.json")
    patterns = {"linear_1": 5.0}
    path.write_text(
        json.dumps(
            json.loads(path.read_text())
            | {"use_rslora": True, "lora_alpha": 3.0, "alpha_pattern": patterns}
        )
    )
    import_folder(folder, tmp_path / "out", loras=(Asked(file),))
    after = _weights(tmp_path / "out")
    assert any(one.layer.endswith("linear_1") for one in found)
    for one in found:
        alpha = 5.0 if one.layer.endswith("linear_1") else 3.0
        product = alpha / len(one.down) ** 0.5 * (one.up.flatten(1) @ one.down.flatten(1))
        before = plain.unet.state_dict()[f"{one.layer}.weight"]
        wanted = before + product.view(before.shape)
        torch.testing.assert_close(after[f"{one.layer}.weight"], wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "path", "scale"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors:0.8", "a.safetensors", 0.8),
        ("a.safetensors:-1.5", "a.safetensors", -1.5),
        ("odd:2", "odd:2", 1.0),
        ("C:a.safetensors", "C:a.safetensors", 1.0),
    ],
)
def test_a_scale_stands_after_the_last_colon(
    text: str, path: str, scale: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.safetensors", "odd:2"):
        Path(name).touch()
    assert Asked.parse(text) == Asked(Path(path), scale)


@pytest.mark.parametrize("scale", ["0", "nan", "inf", "10.1", "-11", "x", ""])
def test_a_scale_that_is_none_is_refused(scale: str, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.touch()
    with pytest.raises(CannotImport, match="scale"):
        Asked.parse(f"{file}:{scale}")


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_a_lora_is_fused_into_a_single_file_as_into_a_folder(kind: str, tmp_path: Path) -> None:
    base, path = tmp_path / "base", tmp_path / "my-model.safetensors"
    plain = tiny_file(kind, base, path)
    file = loras.kohya(loras.deltas(plain, COMPONENTS[kind]), tmp_path / "style.safetensors")
    import_folder(base, tmp_path / "folder", loras=(Asked(file, 0.4),))
    (tmp_path / "scratch").mkdir()
    source = open_source(str(path), base=base, scratch=tmp_path / "scratch")
    make(source, tmp_path / "file", Options("tiny", loras=(Asked(file, 0.4),)), unheard)
    for component in COMPONENTS[kind]:
        ours, theirs = (
            {
                name.removeprefix("text_model."): value
                for name, value in _weights(tmp_path / out, component).items()
            }
            for out in ("file", "folder")
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
