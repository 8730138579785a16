"""What a model is asked for: its classes, their names, the null class, the length of a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from models.backbones.importing.inputs import InputOptions, read_names
from models.backbones.importing.source import CannotImport
from models.bundles.manifest import Inputs
from tests.imports import edit, import_folder
from tests.models.backbones.importing.conftest import Copy


def _inputs(folder: Path, out: Path, **asked: Any) -> Inputs:
    return import_folder(folder, out, inputs=InputOptions(**asked)).manifest.backbone.inputs


@pytest.mark.parametrize(
    ("asked", "names", "null"),
    [
        ({}, ("0", "1", "2", "3"), None),
        ({"null_class": 3}, ("0", "1", "2"), 3),
        ({"null_class": 1}, ("0", "1", "2", "3"), 1),
        ({"class_names": ("a", "b", "c")}, ("a", "b", "c"), 3),
        ({"class_names": ("a", "b", "c", "d")}, ("a", "b", "c", "d"), None),
        ({"class_names": ("a", "b", "c", "none"), "null_class": 3}, ("a", "b", "c", "none"), 3),
    ],
)
def test_classes_have_names_and_perhaps_a_null_class(
    pipeline: Copy, tmp_path: Path, asked: Any, names: Any, null: int | None
) -> None:
    inputs = _inputs(pipeline("class"), tmp_path / "out", **asked)
    assert (inputs.kind, inputs.class_names, inputs.null_class) == ("class", names, null)
    assert inputs.guidance_scale == 1


@pytest.mark.parametrize(
    ("name", "asked", "words"),
    [
        ("class", {"class_names": ("a", "b")}, "are 2, and the model has 4 classes"),
        ("class", {"class_names": ("a",) * 5}, "are 5, and the model has 4 classes"),
        ("class", {"null_class": 4}, "--null-class: is 4, must be 0 to 3"),
        ("class", {"null_class": -1}, "--null-class: is -1"),
        ("class", {"guidance_scale": 2.0}, "above 1 needs a null class"),
        ("class", {"guidance_scale": 0.5, "null_class": 3}, "is 0.5, must be 0 or 1"),
        ("ddpm", {"class_names": ("a",)}, "--class-names: this model has no classes"),
        ("ddpm", {"null_class": 0}, "--null-class: this model has no classes"),
        ("ddpm", {"guidance_scale": 2.0}, "nothing to be guided by"),
        ("sd", {"class_names": ("a",)}, "--class-names: this model takes a prompt"),
        ("dit", {"null_class": 7}, "--null-class: is 7, DiT's is 1000"),
        ("dit", {"class_names": ("a", "b")}, "are 2, and the model has 1000 classes"),
    ],
)
def test_what_does_not_fit_the_model_names_the_option(
    pipeline: Copy, tmp_path: Path, name: str, asked: Any, words: str
) -> None:
    with pytest.raises(CannotImport, match=words):
        _inputs(pipeline(name), tmp_path / "out", **asked)


def test_dit_brings_its_names_and_its_null_class(pipeline: Copy, tmp_path: Path) -> None:
    folder = pipeline("dit")
    inputs = _inputs(folder, tmp_path / "out")
    assert inputs.class_names[:2] == ("thing 0", "thing 1")
    assert (len(inputs.class_names), inputs.null_class, inputs.guidance_scale) == (1000, 1000, 4)
    edit(folder / "model_index.json", id2label={"1": "one"})
    with pytest.raises(CannotImport, match="id2label does not number its classes from 0"):
        _inputs(folder, tmp_path / "again")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"class_embed_type": "identity"}, "class_embed_type 'identity' is not supported"),
        ({"class_embed_type": "timestep"}, "does not say how many classes"),
    ],
)
def test_other_ways_to_tell_a_class_are_refused(
    pipeline: Copy, tmp_path: Path, changes: Any, words: str
) -> None:
    folder = pipeline("class")
    edit(folder / "unet/config.json", **changes)
    with pytest.raises(CannotImport, match=words):
        _inputs(folder, tmp_path / "out")


@pytest.mark.parametrize(("name", "scale"), [("sd", 7.5), ("sdxl", 5.0)])
def test_a_prompt_has_a_length_and_a_scale(
    pipeline: Copy, tmp_path: Path, name: str, scale: float
) -> None:
    inputs = _inputs(pipeline(name), tmp_path / "out")
    assert (inputs.kind, inputs.max_tokens, inputs.guidance_scale) == ("text", 77, scale)
    asked = _inputs(tmp_path / "pipelines" / name, tmp_path / "again", guidance_scale=3.0)
    assert asked.guidance_scale == 3


def test_a_tokenizer_without_a_limit_gets_its_encoders(pipeline: Copy, tmp_path: Path) -> None:
    import json

    folder = pipeline("sd")
    edit(folder / "tokenizer/tokenizer_config.json", model_max_length=int(1e30))
    assert _inputs(folder, tmp_path / "out").max_tokens == 77
    written = json.loads((tmp_path / "out/backbone/tokenizer/tokenizer_config.json").read_text())
    assert written["model_max_length"] == 77


@pytest.mark.parametrize("limit", ["long", [1], -5, 2])
def test_a_tokenizers_limit_is_a_number_of_tokens(
    pipeline: Copy, tmp_path: Path, limit: Any
) -> None:
    folder = pipeline("sd")
    edit(folder / "tokenizer/tokenizer_config.json", model_max_length=limit)
    with pytest.raises(CannotImport, match=r"^tokenizer/tokenizer_config.json: model_max_length"):
        _inputs(folder, tmp_path / "out")


@pytest.mark.parametrize("limit", [None, 512, float("inf")])
def test_a_tokenizers_limit_is_at_most_its_encoders(
    pipeline: Copy, tmp_path: Path, limit: Any
) -> None:
    folder = pipeline("sd")
    edit(folder / "tokenizer/tokenizer_config.json", model_max_length=limit)
    assert _inputs(folder, tmp_path / "out").max_tokens == 77


def test_a_tokenizer_without_a_vocabulary_is_refused(pipeline: Copy, tmp_path: Path) -> None:
    folder = pipeline("sd")
    for path in (folder / "tokenizer").glob("*.json"):
        path.write_text("{}")
    with pytest.raises(CannotImport, match=r"^tokenizer: CLIPTokenizer cannot read its files"):
        _inputs(folder, tmp_path / "out")


def test_names_come_from_a_file_or_from_commas(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("tench, Tinca tinca\ngoldfish\n\n")
    assert read_names(str(file)) == ("tench, Tinca tinca", "goldfish")
    assert read_names("a, b,c") == ("a", "b", "c")
    many = tuple(f"class {number}" for number in range(99))
    assert read_names(",".join(many)) == many, "longer than a file's name may be"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(CannotImport, match=r"--class-names: .*names\.txt is not text"):
        read_names(str(file))
    for text in ("", "a,,b"):
        with pytest.raises(CannotImport, match="has an empty name"):
            read_names(text)
