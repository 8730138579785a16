"""`winnow features import`: from a pretrained network to a judge that learned on it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ResNetConfig, ResNetModel, ViTImageProcessor
from typer.testing import CliRunner

from models.bundles import bundle as bundles
from models.bundles.bundle import ZOO
from models.rewards.features import OnnxFeatures
from service.cli.main import app
from service.errors import StoreUnavailable
from service.labelling.judge_training import FEW_JUDGE, train_judge_on
from service.serving.labelling import features as find
from tests import classifiers
from tests.service.labelling.test_training import images

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

Import = Callable[..., str]


@pytest.fixture
def run(bundle_folder: Path) -> Import:
    """Runs the command on a bundle; returns all that it prints."""

    def go(path: Path, *more: str, bundle: Path = bundle_folder, code: int = 0) -> str:
        arguments = ["features", "import", str(path), "--bundle", str(bundle), *more]
        answer = CliRunner().invoke(app, arguments)
        assert "Traceback" not in answer.output
        assert answer.exit_code == code, answer.output
        return " ".join(answer.output.split())

    return go


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """A small one, in transformers' format."""
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(tmp_path / "resnet")
    return tmp_path / "resnet"


@pytest.mark.slow
def test_a_folder_becomes_features_that_a_judge_learns_on(
    run: Import, network: Path, tmp_path: Path
) -> None:
    # Of the newer or the older kind, its file says the same.
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(network)
    folder = tmp_path / "sevens"
    shutil.copytree(ZOO / "mnist-sevens", folder)
    said = run(network, "--name", "small", bundle=folder)
    assert "16 features of 32x32 images, from resnet (ResNetModel, transformers)" in said
    assert "--features small" in said
    bundle = bundles.load(str(folder))
    entry = bundle.manifest.features["small"]
    assert (entry.width, entry.size, entry.mean) == (16, (32, 32), (0.5,) * 3)
    assert entry.source_sha256 == bundles.sha256_name(network / "model.safetensors")
    assert "the bundle has such features" in run(network, "--name", "small", bundle=folder, code=1)

    path = find(bundle, "small")
    with pytest.raises(ValueError, match=r"no features 'large' \(has small\)"):
        find(bundle, "large")
    shown = [
        type(one)(one.id, np.pad(one.pixels, ((8, 8), (8, 8), (0, 0))), one.label, 1.0, "random")
        for one in images(60)
    ]
    _, logits = train_judge_on(OnnxFeatures(path), "sha256:x", shown, FEW_JUDGE)
    malign = np.array([one.malign for one in shown])
    assert np.median(logits[~malign]) > np.median(logits[malign])
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(StoreUnavailable, match="was changed since the service started"):
        find(bundle, "small")


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("[]", "must hold a JSON object"),
        ("{", "is not JSON"),
        ('{"rescale_factor": null}', "rescale_factor must be one number"),
        ('{"image_mean": "x"}', "image_mean is 'x', must be a number, or one a channel"),
        ('{"image_mean": [0.5, "x"]}', "image_mean is [0.5, 'x'], must be a number"),
        ('{"image_mean": 0.5, "image_std": {}}', "image_std is {}, must be a number"),
    ],
)
def test_what_a_preprocessor_says_is_looked_at(
    run: Import, network: Path, bundle_folder: Path, text: str, wrong: str
) -> None:
    (network / "preprocessor_config.json").write_text(text)
    before = (bundle_folder / "manifest.json").read_bytes()
    said = run(network, "--name", "x", code=1)
    assert f"{network}/preprocessor_config.json: {wrong}" in said
    assert (bundle_folder / "manifest.json").read_bytes() == before


@pytest.mark.slow
def test_one_mean_may_stand_for_all_channels(
    run: Import, network: Path, bundle_folder: Path
) -> None:
    said = {"image_mean": 0.5, "image_std": 0.25, "size": 32}
    (network / "preprocessor_config.json").write_text(json.dumps(said))
    run(network, "--name", "one")
    entry = bundles.load(str(bundle_folder)).manifest.features["one"]
    assert (entry.mean, entry.std) == ((0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize(
    ("more", "wrong"),
    [
        (("--name", "seen"), "--name seen: the bundle has such features"),
        (("--name", "A"), "--name A: must be small letters"),
        (("--name", "x", "--size", "8x8"), "takes 20x24 alone, not --size 8x8"),
        (("--name", "x", "--output", "y"), "has no output 'y'"),
        (("--name", "x", "--mean", "1,2"), "--mean: 2 numbers, must be 1 or 3"),
        (("--name", "x", "--torchvision", "resnet18"), "needs its weights as a .safetensors file"),
    ],
)
def test_mistakes_are_sentences_and_leave_the_bundle_as_it_was(
    run: Import, bundle_folder: Path, tmp_path: Path, more: tuple[str, ...], wrong: str
) -> None:
    path = classifiers.classifier(tmp_path / "a.onnx")
    before = (bundle_folder / "manifest.json").read_bytes()
    assert wrong in run(path, *more, code=1)
    assert (bundle_folder / "manifest.json").read_bytes() == before
