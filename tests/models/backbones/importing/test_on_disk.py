"""What people have on their disks, and what Winnow says to each: the table of docs/models.md."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.backbones.importing.bundle_folder import Options, make
from models.backbones.importing.reference import open_source
from models.backbones.importing.source import CannotImport
from models.bundles.bundle import WEIGHTS
from tests.imports import unheard
from tests.models.backbones.importing.conftest import Copy
from tests.single_files import States, tiny_file

ROOT = Path(__file__).parents[4]
Pipelines = Callable[[str], Path]
Maker = Callable[[Path, Pipelines], Path]
"""Makes the thing in a folder of its own, and gives the path that is imported."""


def tensors(*names: str, shape: tuple[int, ...] = (4, 4, 1)) -> Maker:
    """A safetensors file with these names."""

    def write(folder: Path, pipelines: Pipelines) -> Path:
        save_file({name: torch.zeros(shape) for name in names}, folder / "m.safetensors")
        return folder / "m.safetensors"

    return write


def contents(data: bytes, name: str = "m.safetensors") -> Maker:
    """A file of these bytes."""

    def write(folder: Path, pipelines: Pipelines) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return write


def checkpoint(change: Callable[[States], States], kind: str = "sd") -> Maker:
    """A tiny checkpoint, changed."""

    def write(folder: Path, pipelines: Pipelines) -> Path:
        tiny_file(kind, folder / "base", folder / "m.safetensors", change=change)
        return folder / "m.safetensors"

    return write


def _pickle(name: str) -> Maker:
    def write(folder: Path, pipelines: Pipelines) -> Path:
        torch.save({"state_dict": {"a": torch.zeros(2)}}, folder / name)
        return folder / name

    return write


def _zip(folder: Path, pipelines: Pipelines) -> Path:
    with zipfile.ZipFile(folder / "m.zip", "w") as archive:
        archive.writestr("m.safetensors", b"")
    return folder / "m.zip"


def _cut(folder: Path, pipelines: Pipelines) -> Path:
    path = tensors("a", "b")(folder, pipelines)
    path.write_bytes(path.read_bytes()[:-8])
    return path


def _dangling(folder: Path, pipelines: Pipelines) -> Path:
    (folder / "m.safetensors").symlink_to(folder / "blobs" / "gone")
    return folder / "m.safetensors"


def _dangling_inside(folder: Path, pipelines: Pipelines) -> Path:
    copy = pipelines("ddpm")
    (copy / "unet" / WEIGHTS).unlink()
    (copy / "unet" / WEIGHTS).symlink_to("../../../blobs/gone")
    return copy


def _pointer_inside(folder: Path, pipelines: Pipelines) -> Path:
    copy = pipelines("ddpm")
    (copy / "unet" / WEIGHTS).write_bytes(POINTER)
    return copy


def _cache(folder: Path, pipelines: Pipelines, ref: str | None = "main") -> Path:
    cache = folder / "models--owner--my-model"
    (cache / "refs").mkdir(parents=True)
    if ref is not None:
        (cache / "refs" / ref).write_text("0123abc")
    (cache / "snapshots").mkdir()
    pipelines("ddpm").rename(cache / "snapshots" / "0123abc")
    return cache


def _half_only(folder: Path, pipelines: Pipelines) -> Path:
    copy = pipelines("ddpm")
    states = {name: value.half() for name, value in load_file(copy / "unet" / WEIGHTS).items()}
    (copy / "unet" / WEIGHTS).unlink()
    save_file(states, copy / "unet/diffusion_pytorch_model.fp16.safetensors")
    return copy


def _quantised_folder(folder: Path, pipelines: Pipelines) -> Path:
    copy = pipelines("ddpm")
    path = copy / "unet/config.json"
    config = json.loads(path.read_text()) | {"quantization_config": {"quant_method": "torchao"}}
    path.write_text(json.dumps(config))
    return copy


def _component(folder: Path, pipelines: Pipelines) -> Path:
    return pipelines("ddpm") / "unet"


def _component_file(folder: Path, pipelines: Pipelines) -> Path:
    return pipelines("sd") / "unet" / WEIGHTS


def _lora_folder(folder: Path, pipelines: Pipelines) -> Path:
    save_file({"a": torch.zeros(2)}, folder / "pytorch_lora_weights.safetensors")
    return folder


def _one_file_in_a_folder(folder: Path, pipelines: Pipelines) -> Path:
    save_file({"a": torch.zeros(2)}, folder / "m.safetensors")
    return folder


def _inpainting(states: States) -> States:
    name = "model.diffusion_model.input_blocks.0.0.weight"
    shape = list(states[name].shape)
    shape[1] = 9
    return states | {name: torch.zeros(shape)}


def _with(**more: Tensor) -> Callable[[States], States]:
    return lambda states: states | {name.replace("__", "."): value for name, value in more.items()}


def _word(text: str) -> Maker:
    return lambda folder, pipelines: Path(text)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1719125304\n"
UNET = "lora_unet_down_blocks_0_attentions_0"

THINGS: dict[str, tuple[Maker, str]] = {
    "a LoRA": (tensors(f"{UNET}.lora_up.weight"), "is a LoRA, not a model: .*--lora"),
    "a LoRA as diffusers saves it": (_lora_folder, "holds a LoRA: import the model .*--lora"),
    "a LyCORIS adapter (LoHa, LoKr, OFT)": (tensors(f"{UNET}.hada_w1_a"), "is a LyCORIS adapter"),
    "a textual inversion": (tensors("emb_params", shape=(2, 768)), "is a textual inversion"),
    "a textual inversion for SD XL": (tensors("clip_l", "clip_g"), "is a textual inversion"),
    "a ControlNet": (tensors("control_model.input_blocks.0.0.weight"), "is a ControlNet"),
    "an IP-Adapter": (tensors("image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"),
                      "is an IP-Adapter"),
    "an autoencoder (VAE) alone": (
        tensors("encoder.conv_in.weight", "decoder.conv_in.weight", "quant_conv.weight"),
        r"is an autoencoder \(VAE\) alone, one part of a model"),
    "a text encoder alone": (tensors("text_model.embeddings.token_embedding.weight",
                                     "text_model.final_layer_norm.weight", "logit_scale"),
                             "is a text encoder alone"),
    "an upscaler (ESRGAN)": (tensors("conv_first.weight", "conv_last.weight", "body.0.x"),
                             "is an upscaler"),
    "one component's file in diffusers' format": (
        _component_file, "is one component in diffusers' format"),
    "one component's folder": (_component, "It is one component of .*: import that"),
    "a folder with one file of weights": (_one_file_in_a_folder, "import that, .*m.safetensors"),
    "a GGUF file": (contents(b"GGUF\x03\0\0\0", "m.gguf"), "is a GGUF file, whose weights are qua"),
    "weights in nf4 (bitsandbytes)": (
        checkpoint(_with(x__weight__absmax=torch.zeros(3))), "by bitsandbytes"),
    "weights in int8 (bitsandbytes)": (
        checkpoint(_with(x__SCB=torch.zeros(3))), r"by bitsandbytes \(int8\)"),
    "GPTQ or AWQ": (checkpoint(_with(x__qweight=torch.zeros(3))), "quantised by GPTQ or AWQ"),
    "fp8 with scales": (checkpoint(_with(scaled_fp8=torch.zeros(3))), "by fp8 with scales"),
    "a quantised folder": (_quantised_folder, r"its weights are quantised \(torchao\)"),
    "a git-lfs pointer": (contents(POINTER), "is a git-lfs pointer, not the file: run `git lfs"),
    "a git-lfs pointer in a folder": (_pointer_inside, f"{WEIGHTS}: is a git-lfs pointer"),
    "an HTML page saved as weights": (contents(b"<!DOCTYPE html>\n<html>"), "is an HTML page"),
    "a server's answer saved as weights": (contents(b'{"error": "gated"}'), "is a JSON document"),
    "a `.ckpt` pickle": (_pickle("m.ckpt"), "pickled weights can run code.*\npython -c"),
    "a pickle named `.safetensors`": (_pickle("m.safetensors"), "pickled weights can run code"),
    "an empty file": (contents(b""), "is empty: fetch it again"),
    "a file that was cut short": (_cut, "is not whole"),
    "a zip": (_zip, "is a zip archive: unpack it"),
    "an ONNX graph": (contents(b"\x08\x08\x12\x07pytorch", "m.onnx"), "`winnow judge import`"),
    "a picture": (contents(b"\x89PNG\r\n\x1a\n"), "is a picture"),
    "a dangling link": (_dangling, "is a link to .*gone, which is not there"),
    "a dangling link in a folder": (_dangling_inside, "is a link to .*gone, which is not there"),
    "a folder of the hub's cache without `main`": (
        lambda folder, pipelines: _cache(folder, pipelines, None), "give one as --revision"),
    "an inpainting model": (checkpoint(_inpainting), "is an inpainting model: it draws after anot"),
    "EDM (Playground 2.5)": (
        checkpoint(_with(edm_mean=torch.zeros(4))), "is not supported"),
    "another family's file (Wan, LTX, Hunyuan Video …)": (
        tensors("head.modulation", "patch_embedding.weight", "blocks.0.x"), "is Wan"),
    "tensors of nothing known": (tensors("a.weight", "b.weight", "c.weight"), "are of no layout"),
    "a family's name (`FLUX`, `sdxl`)": (_word("FLUX"), "is the name of a family"),
    "a file that is not there": (_word("my-folder/model.safetensors"), "no such file$"),
}  # fmt: skip
"""What is refused: how it is made, and words of what is said."""

TAKEN: dict[str, tuple[Maker, str]] = {
    "a checkpoint of SD 1, SD 2 or SD XL": (
        checkpoint(lambda states: states), "one file, in the layout of Stable Diffusion 1"),
    "a folder of the hub's cache": (_cache, ""),
    "fp16 files alone": (_half_only, "unet: variant fp16, the only one there"),
    "fp8 weights": (
        checkpoint(lambda states: {name: value.to(torch.float8_e4m3fn) if value.ndim > 2 else value
                                   for name, value in states.items()}), "cast to float16, exactly"),
}  # fmt: skip
"""What is taken, and words of the note that goes with it."""


@pytest.fixture
def copied(pipeline: Copy) -> Pipelines:
    return pipeline


@pytest.mark.parametrize("name", THINGS)
def test_what_is_no_model_is_named_for_what_it_is(
    tmp_path: Path, copied: Pipelines, name: str
) -> None:
    maker, words = THINGS[name]
    for folder in ("thing", "scratch"):
        (tmp_path / folder).mkdir()
    path = maker(tmp_path / "thing", copied)
    base = tmp_path / "thing/base"
    given = {"base": base} if base.is_dir() else {}
    with pytest.raises(CannotImport) as refusal:
        make(open_source(str(path), scratch=tmp_path / "scratch", **given), tmp_path / "out",
             Options("tiny"), unheard)  # fmt: skip
    said = str(refusal.value)
    assert re.search(words, said, re.DOTALL), said
    assert len(said.splitlines()[0]) < 600


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_a_model_is_taken(tmp_path: Path, copied: Pipelines, name: str) -> None:
    maker, words = TAKEN[name]
    for folder in ("thing", "scratch"):
        (tmp_path / folder).mkdir()
    path = maker(tmp_path / "thing", copied)
    base = tmp_path / "thing/base"
    given = {"base": base} if base.is_dir() else {}
    source = open_source(str(path), scratch=tmp_path / "scratch", **given)
    made = make(source, tmp_path / "out", Options("tiny"), unheard)
    assert any(words in note for note in made.notes), made.notes
    if name == "a folder of the hub's cache":
        record = made.manifest.backbone.training
        assert (record["imported_from"], record["revision"]) == ("owner/my-model", "0123abc")


def test_what_is_there_is_no_hub_id(
    tmp_path: Path, copied: Pipelines, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owner").mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner/model").write_bytes(b"<html>")
    with pytest.raises(CannotImport, match="is an HTML page"):
        open_source("owner/model", scratch=tmp_path)


def test_the_table_of_the_documents_has_each() -> None:
    text = (ROOT / "docs/models.md").read_text()
    table = text.split("## What people have on their disks\n")[1].split("\n## ")[0]
    rows = set(re.findall(r"^\| ([^|]+?) \|", table, re.MULTILINE)) - {"what it is"}
    assert rows == set(THINGS) | set(TAKEN)
    assert len(rows) >= 30
