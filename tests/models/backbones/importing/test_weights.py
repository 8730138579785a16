"""Weights: found by their names, merged, never unpickled, and those of the network."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.backbones.importing.source import CannotImport
from models.bundles.bundle import WEIGHTS, load
from tests.imports import edit, import_folder
from tests.models.backbones.importing.conftest import Copy


def test_weights_are_copied_byte_for_byte(pipeline: Copy, tmp_path: Path) -> None:
    folder = pipeline("sd")
    made = import_folder(folder, tmp_path / "out")
    for name, file in (("unet", WEIGHTS), ("vae", WEIGHTS), ("text_encoder", "model.safetensors")):
        copied = tmp_path / "out/backbone" / name / file
        assert copied.read_bytes() == (folder / name / file).read_bytes()
    states = load_file(folder / "unet" / WEIGHTS)
    assert made.weights["unet"].parameters == sum(value.numel() for value in states.values())
    assert made.weights["unet"].dtype == "float32"


def _shard(folder: Path, stem: str) -> None:
    """Part the weights of a folder into two files, as large models have them."""
    states = load_file(folder / f"{stem}.safetensors")
    names = sorted(states)
    parts = {"00001": names[::2], "00002": names[1::2]}
    weight_map = {}
    for number, own in parts.items():
        file = f"{stem}-{number}-of-00002.safetensors"
        save_file({name: states[name] for name in own}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(own, file)
    index = folder / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / f"{stem}.safetensors").unlink()


def test_shards_are_merged_under_the_standard_name(pipeline: Copy, tmp_path: Path) -> None:
    folder = pipeline("sd")
    before = load_file(folder / "unet" / WEIGHTS)
    _shard(folder / "unet", "diffusion_pytorch_model")
    _shard(folder / "text_encoder", "model")
    import_folder(folder, tmp_path / "out")
    after = load_file(tmp_path / "out/backbone/unet" / WEIGHTS)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not list((tmp_path / "out").rglob("*-of-*"))
    assert not list((tmp_path / "out").rglob("*.index.json"))
    load(str(tmp_path / "out"))


def test_a_shard_that_is_missing_is_named(pipeline: Copy, tmp_path: Path) -> None:
    folder = pipeline("ddpm")
    _shard(folder / "unet", "diffusion_pytorch_model")
    (folder / "unet/diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CannotImport, match=r"00002-of-00002.safetensors: a shard .* is missing"):
        import_folder(folder, tmp_path / "out")


def test_an_index_cannot_name_files_elsewhere(pipeline: Copy, tmp_path: Path) -> None:
    folder = pipeline("ddpm")
    _shard(folder / "unet", "diffusion_pytorch_model")
    index = folder / "unet/diffusion_pytorch_model.safetensors.index.json"
    (folder / "secret.safetensors").write_bytes(b"")
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(CannotImport, match="a shard that the index names is missing"):
        import_folder(folder, tmp_path / "out")


@pytest.mark.parametrize("shards", ['{"weight_map": [1]}', '{"weight_map": {}}', "{}"])
def test_an_index_must_have_a_map(pipeline: Copy, tmp_path: Path, shards: str) -> None:
    folder = pipeline("ddpm")
    (folder / "unet" / WEIGHTS).unlink()
    (folder / "unet" / f"{WEIGHTS}.index.json").write_text(shards)
    with pytest.raises(CannotImport, match=f"unet/{WEIGHTS}.index.json: weight_map must say"):
        import_folder(folder, tmp_path / "out")


def test_a_variant_is_chosen_by_name(pipeline: Copy, tmp_path: Path) -> None:
    folder = pipeline("ddpm")
    states = load_file(folder / "unet" / WEIGHTS)
    half = {name: value.half() for name, value in states.items()}
    save_file(half, folder / "unet/diffusion_pytorch_model.fp16.safetensors", {"format": "pt"})
    assert import_folder(folder, tmp_path / "a").weights["unet"].dtype == "float32"
    made = import_folder(folder, tmp_path / "b", variant="fp16")
    assert made.weights["unet"].dtype == "float16"
    assert load_file(tmp_path / "b/backbone/unet" / WEIGHTS)["conv_in.weight"].dtype is torch.half
    (folder / "unet" / WEIGHTS).unlink()
    only = import_folder(folder, tmp_path / "c")
    assert only.weights["unet"].dtype == "float16"
    assert "unet: variant fp16, the only one there" in only.notes
    bf16 = {name: value.bfloat16() for name, value in states.items()}
    save_file(bf16, folder / "unet/diffusion_pytorch_model.bf16.safetensors", {"format": "pt"})
    with pytest.raises(CannotImport, match="none without a variant: add `--variant bf16`"):
        import_folder(folder, tmp_path / "several")
    (folder / "unet/diffusion_pytorch_model.bf16.safetensors").unlink()
    with pytest.raises(CannotImport, match="no variant 'bf16': add `--variant fp16`"):
        import_folder(folder, tmp_path / "d", variant="bf16")


@pytest.mark.parametrize("suffix", [".bin", ".ckpt", ".pt", ".pth", ".pkl"])
def test_a_pickle_is_never_read_and_the_command_that_converts_it_works(
    pipeline: Copy, tmp_path: Path, suffix: str
) -> None:
    folder = pipeline("ddpm")
    states = load_file(folder / "unet" / WEIGHTS)
    pickled = folder / "unet" / f"diffusion_pytorch_model{suffix}"
    torch.save(states, pickled)
    (folder / "unet" / WEIGHTS).unlink()
    with pytest.raises(CannotImport, match="pickled weights can run code") as refusal:
        import_folder(folder, tmp_path / "out")
    command = str(refusal.value).splitlines()[-1]
    if suffix != ".bin":  # five seconds, and the same command
        return
    assert command.startswith('python -c "')
    code, _, rest = command.removeprefix('python -c "').partition('" ')
    subprocess.run([sys.executable, "-c", code, *rest.split()], check=True, timeout=120)
    import_folder(folder, tmp_path / "again")
    after = load_file(tmp_path / "again/backbone/unet" / WEIGHTS)
    assert all(torch.equal(states[name], after[name]) for name in states)


@pytest.mark.parametrize(
    ("name", "part", "key", "number", "words"),
    [
        ("ldm", "vae", "encoder.conv_in.weight", float("nan"), "holds NaN"),
        ("ddpm", "unet", "conv_out.bias", float("inf"), "holds infinity"),
    ],
)
def test_all_weights_are_finite_those_too_that_draw_nothing(
    pipeline: Copy, tmp_path: Path, name: str, part: str, key: str, number: float, words: str
) -> None:
    folder = pipeline(name)
    part = next(one for one in (part, "vqvae") if (folder / one).is_dir())
    states = load_file(folder / part / WEIGHTS)
    states[key].view(-1)[-1] = number
    save_file(states, folder / part / WEIGHTS, {"format": "pt"})
    with pytest.raises(CannotImport, match=f"^{part}: {key} {words}"):
        import_folder(folder, tmp_path / "out")


def test_float8_in_a_folder_is_cast_and_said(pipeline: Copy, tmp_path: Path) -> None:
    folder = pipeline("ddpm")
    states = {
        name: value.to(torch.float8_e5m2)
        for name, value in load_file(folder / "unet" / WEIGHTS).items()
    }
    save_file(states, folder / "unet" / WEIGHTS, {"format": "pt"})
    made = import_folder(folder, tmp_path / "out")
    assert "unet: F8_E5M2 weights: cast to float16, exactly" in made.notes
    after = load_file(tmp_path / "out/backbone/unet" / WEIGHTS)
    assert all(torch.equal(after[name].float(), states[name].float()) for name in states)


def test_what_has_no_weights_or_broken_ones_is_named(pipeline: Copy, tmp_path: Path) -> None:
    folder = pipeline("ddpm")
    path = folder / "unet" / WEIGHTS
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(CannotImport, match="is not whole"):
        import_folder(folder, tmp_path / "a")
    path.unlink()
    with pytest.raises(CannotImport, match="unet: holds no weights"):
        import_folder(folder, tmp_path / "b")


@pytest.mark.parametrize(
    ("name", "part", "file", "key"),
    [
        ("ddpm", "unet", WEIGHTS, "conv_in.weight"),
        ("ldm-vq", "vqvae", WEIGHTS, "quantize.embedding.weight"),
        ("sd", "text_encoder", "model.safetensors", None),
        ("dit", "transformer", WEIGHTS, "proj_out_2.weight"),
    ],
)
def test_weights_that_are_missing_too_many_or_of_another_shape_are_named(
    pipeline: Copy, tmp_path: Path, name: str, part: str, file: str, key: str | None
) -> None:
    folder = pipeline(name)
    path = folder / part / file
    states = load_file(path)
    key = key or next(name for name in sorted(states) if name.endswith("weight"))

    def refused(changed: dict[str, torch.Tensor], words: str) -> None:
        save_file(changed, path, {"format": "pt"})
        with pytest.raises(CannotImport, match=words):
            import_folder(folder, tmp_path / f"out-{len(list(tmp_path.iterdir()))}")

    refused({n: v for n, v in states.items() if n != key}, f"^{part}: .*{key}")
    refused(states | {"stray.weight": torch.zeros(2)}, f"^{part}: .*unexpected.*stray.weight")
    refused(states | {key: torch.zeros(7, 7, 7)}, f"^{part}: ")


def test_weights_of_another_network_are_refused(pipeline: Copy, tmp_path: Path) -> None:
    folder = pipeline("ddpm")
    edit(folder / "unet/config.json", layers_per_block=2)
    with pytest.raises(CannotImport, match=r"unet: .*resnets.1.\S+ expected shape .*, but got"):
        import_folder(folder, tmp_path / "a")
    edit(folder / "unet/config.json", layers_per_block=1, num_class_embeds=None)
    states = load_file(folder / "unet" / WEIGHTS)
    few = {name: value for name, value in states.items() if "time_embedding" not in name}
    save_file(few, folder / "unet" / WEIGHTS, {"format": "pt"})
    with pytest.raises(CannotImport, match=r"missing weights: time_embedding.* and 1 more$"):
        import_folder(folder, tmp_path / "b")


def test_names_that_the_libraries_still_read_are_no_stray_weights(
    pipeline: Copy, tmp_path: Path
) -> None:
    """As the files of Stable Diffusion 1.x on the hub have them."""
    folder = pipeline("sd")
    path = folder / "text_encoder/model.safetensors"
    states = {f"text_model.{name}": value for name, value in load_file(path).items()}
    states["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(states, path, {"format": "pt"})
    path = folder / "vae" / WEIGHTS
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    states = load_file(path)
    for new, name in old.items():
        for key in [key for key in states if f"attentions.0.{new}." in key]:
            states[key.replace(new, name)] = states.pop(key)
    assert any("query" in key for key in states)
    save_file(states, path, {"format": "pt"})
    import_folder(folder, tmp_path / "out")


def test_all_that_is_missing_is_said_at_once(pipeline: Copy, tmp_path: Path) -> None:
    """Otherwise a pipeline of pickles takes a round for each of its parts."""
    folder = pipeline("sd").rename(tmp_path / "my model")
    for part in ("unet", "vae", "text_encoder"):
        (found,) = (folder / part).glob("*.safetensors")
        found.rename(found.with_suffix(".bin"))
    with pytest.raises(CannotImport) as wrong:
        import_folder(folder, tmp_path / "out")
    commands = [line for line in str(wrong.value).splitlines() if line.startswith("python -c")]
    assert len(commands) == 3
    # A path with a space is one word of the shell's.
    assert all(len(shlex.split(command)) == 5 for command in commands)
