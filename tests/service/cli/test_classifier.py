"""`winnow bundle classifier`: of folders of images a classifier, which a policy may steer by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from models.bundles.bundle import load
from service.cli.main import app
from service.config import BackboneSettings
from service.engine.load import load_engine
from tests.parity import Made

SIZE = 16
NAMES = ("0", "1", "2")


def run(*arguments: str) -> Result:
    answer = CliRunner().invoke(app, ["bundle", "classifier", *arguments])
    assert isinstance(answer.exception, SystemExit | None), answer.exception
    return answer


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made.make("class", tmp_path)


@pytest.fixture
def images(made: Made, tmp_path: Path) -> Path:
    """Classes by their grey, far apart."""
    names = made.bundle.manifest.backbone.inputs.class_names
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    for label, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            low = 90 * label
            pixels = rng.integers(low, low + 40, (SIZE, SIZE, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def test_a_bundle_gets_a_classifier_that_knows_its_classes(made: Made, images: Path) -> None:
    before = made.bundle.backbone_sha256("torch")
    answer = run(str(made.bundle.folder), str(images), "--iterations", "60")
    assert answer.exit_code == 0, answer.output
    assert "knows 100.0% of 6 images" in " ".join(answer.output.split())
    bundle = load(str(made.bundle.folder))
    assert bundle.manifest.backbone.classifier is not None
    assert bundle.backbone_sha256("torch") != before
    engine = load_engine(bundle, BackboneSettings(runtime="torch", max_batch=2))
    assert engine._runner.classifies


def test_what_does_not_fit_is_a_sentence_and_changes_nothing(
    made: Made, images: Path, tmp_path: Path
) -> None:
    folder = made.bundle.folder
    manifest = (folder / "manifest.json").read_bytes()
    names = made.bundle.manifest.backbone.inputs.class_names
    Image.new("RGB", (SIZE + 1, SIZE)).save(images / names[0] / "0.png")
    answer = run(str(folder), str(images), "--iterations", "1")
    assert answer.exit_code == 1
    assert "is 17x16, must be 16x16" in " ".join(answer.output.split())
    (images / names[0] / "0.png").write_text("no image")
    assert "no image that can be read" in " ".join(run(str(folder), str(images)).output.split())
    (images / names[0] / "0.png").unlink()
    (images / names[1]).rename(tmp_path / "gone")
    assert f"no images of class 1, '{names[1]}'" in " ".join(
        run(str(folder), str(images)).output.split()
    )
    assert (folder / "manifest.json").read_bytes() == manifest


def test_a_model_without_classes_has_none_to_classify(tmp_path: Path) -> None:
    made = Made.make("ddpm", tmp_path)
    answer = run(str(made.bundle.folder), str(tmp_path))
    assert answer.exit_code == 1
    assert "draws no classes" in answer.output
