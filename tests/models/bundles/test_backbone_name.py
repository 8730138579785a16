"""What draws has a name, and whatever changes an image changes the name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.bundles import bundle as bundles
from models.bundles.bundle import Bundle
from models.bundles.manifest import Backbone
from tests.parity import Made


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made.make("sdxl", tmp_path_factory.mktemp("sdxl"))


def _said(key: str, value: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

    return change


def _appended(path: Path) -> None:
    path.write_text(path.read_text() + "\n")


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("vae/config.json", _said("scaling_factor", 0.5)),
        ("text_encoder/config.json", _said("hidden_act", "relu")),
        ("text_encoder_2/config.json", _said("hidden_act", "relu")),
        ("unet/config.json", _said("freq_shift", 1)),
        ("scheduler/scheduler_config.json", _said("beta_end", 0.5)),
        ("tokenizer/tokenizer_config.json", _said("pad_token", "a")),
        ("tokenizer_2/merges.txt", _appended),
        ("model_index.json", _said("force_zeros_for_empty_prompt", False)),
    ],
)
def test_every_file_that_an_image_depends_on_is_in_it(
    made: Made, file: str, change: Callable[[Path], None], tmp_path: Path
) -> None:
    before = made.bundle.backbone_sha256("torch")
    folder = tmp_path / "changed"
    _copy(made.bundle.folder, folder)
    change(folder / "backbone" / file)
    bundles.write_manifest(folder, made.bundle.manifest)
    assert bundles.load(str(folder)).backbone_sha256("torch") != before


@pytest.mark.parametrize(
    "update", [{"height": 64}, {"inputs": {"null_class": 2}}, {"inputs": {"kind": "class"}}]
)
def test_what_the_manifest_says_of_size_and_inputs_is_in_it(
    made: Made, update: dict[str, Any]
) -> None:
    backbone = made.bundle.manifest.backbone
    document = backbone.model_dump(mode="json")
    inputs = document["inputs"] | update.get("inputs", {})
    changed = Backbone.model_validate(document | update | {"inputs": inputs})
    manifest = made.bundle.manifest.model_copy(update={"backbone": changed})
    other = Bundle(made.bundle.folder, manifest).backbone_sha256("torch")
    assert other != made.bundle.backbone_sha256("torch")


def test_a_denoiser_of_pixels_that_is_told_nothing_is_its_weights() -> None:
    shipped = bundles.load("mnist-sevens")
    onnx = shipped.manifest.backbone.onnx
    assert onnx is not None
    assert shipped.backbone_sha256("onnx") == shipped.sha256(onnx)


def _copy(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file():
            there = target / path.relative_to(source)
            there.parent.mkdir(parents=True, exist_ok=True)
            there.write_bytes(path.read_bytes())
