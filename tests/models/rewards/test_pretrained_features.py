"""Pretrained networks of each kind as features in a bundle, against running them by hand."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTModel,
)

from models.onnx.graph import GraphError
from models.onnx.preprocessing import PreparationOptions
from models.rewards.features import OnnxFeatures
from models.rewards.pretrained_features import make_features
from tests import classifiers
from tests.classifiers import pixels
from tests.models.rewards.test_imported_classifier import by_hand

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

OPEN = PreparationOptions(mean=(), std=())
IMAGE = (31, 17, 3)
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
SIZE = {"height": classifiers.HEIGHT, "width": classifiers.WIDTH}


def preprocessor(folder: Path, **changes: Any) -> None:
    said = {"size": SIZE, "image_mean": MEAN, "image_std": STD, "do_normalize": True} | changes
    (folder / "preprocessor_config.json").write_text(json.dumps(said))


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("zoo") / "resnet"
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(folder)
    preprocessor(folder)
    return folder


def make(
    path: Path, tmp_path: Path, wanted: PreparationOptions = OPEN, **more: Any
) -> tuple[Any, Any]:
    found = make_features(path, IMAGE, wanted, tmp_path / "out.onnx", **more)
    return found, OnnxFeatures(tmp_path / "out.onnx")


def test_a_folder_of_transformers(resnet: Path, tmp_path: Path) -> None:
    made, features = make(resnet, tmp_path)
    images = pixels(5, *IMAGE)
    network = ResNetModel.from_pretrained(resnet).eval()
    shown = torch.from_numpy(by_hand(images, PreparationOptions(mean=tuple(MEAN), std=tuple(STD))))
    expected = network(shown).pooler_output.flatten(1).detach().numpy()
    np.testing.assert_allclose(features.of(images), expected, atol=1e-4)
    assert (made.width, features.width) == (8, 8)
    assert made.preparation.size == (classifiers.HEIGHT, classifiers.WIDTH)
    assert made.preparation.mean == pytest.approx(MEAN)
    assert made.source == "resnet (ResNetModel, transformers)"
    other, _ = make(resnet, tmp_path, PreparationOptions(size=(32, 32), mean=(0.5,), std=(0.5,)))
    assert (other.preparation.size, other.preparation.std) == ((32, 32), (0.5,) * 3)


def test_a_pooler_that_was_never_trained_is_not_used(tmp_path: Path) -> None:
    """As in DINO's files, which have none: transformers would make one up at random."""
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ViTConfig(**small, intermediate_size=16, image_size=16, patch_size=8)
    torch.manual_seed(0)
    network = ViTModel(config, add_pooling_layer=False).eval()
    network.save_pretrained(tmp_path / "vit")
    preprocessor(tmp_path / "vit", size={"height": 16, "width": 16})
    _, features = make(tmp_path / "vit", tmp_path)
    images = pixels(3, 16, 16, 3)
    out = tmp_path / "square.onnx"
    make_features(tmp_path / "vit", (16, 16, 3), OPEN, out)
    mean, std = (np.array(one)[:, None, None] for one in (MEAN, STD))
    shown = (images.transpose(0, 3, 1, 2) / 255 - mean) / std
    hidden = network(torch.from_numpy(shown.astype(np.float32))).last_hidden_state
    expected = hidden.mean(dim=1).detach().numpy()
    np.testing.assert_allclose(OnnxFeatures(out).of(images), expected, atol=1e-4)
    assert features.width == 8


def test_of_clip_the_part_that_sees(tmp_path: Path) -> None:
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    seeing = CLIPVisionConfig(**small, intermediate_size=16, image_size=16, patch_size=8)
    text = CLIPTextConfig(**small, intermediate_size=16, vocab_size=50)
    both = CLIPConfig(text_config=text.to_dict(), vision_config=seeing.to_dict(), projection_dim=8)
    torch.manual_seed(0)
    network = CLIPModel(both).eval()
    network.save_pretrained(tmp_path / "clip")
    preprocessor(tmp_path / "clip", size={"shortest_edge": 18}, crop_size=16, do_center_crop=True)
    out = tmp_path / "out.onnx"
    made = make_features(tmp_path / "clip", (16, 16, 1), OPEN, out)
    assert made.preparation.size == (16, 16)
    images = pixels(3, 16, 16, 1)
    mean, std = (np.array(one)[:, None, None] for one in (MEAN, STD))
    shown = (np.repeat(images, 3, 3).transpose(0, 3, 1, 2) / 255 - mean) / std
    seen = network.vision_model(torch.from_numpy(shown.astype(np.float32))).pooler_output
    np.testing.assert_allclose(OnnxFeatures(out).of(images), seen.detach().numpy(), atol=1e-4)


def test_what_a_folder_leaves_out_is_asked_for(resnet: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((resnet / name).read_bytes())
    with pytest.raises(GraphError, match="say --mean and --std"):
        make(folder, tmp_path)
    with pytest.raises(GraphError, match="say --size HxW"):
        make(folder, tmp_path, PreparationOptions(mean=(0.5,), std=(0.5,)))
    made, _ = make(folder, tmp_path, PreparationOptions(size=(32, 32), mean=(0.5,), std=(0.5,)))
    assert made.width == 8
    weights = load_file(folder / "model.safetensors")
    weights.pop(next(name for name in sorted(weights) if name.startswith("encoder")))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(GraphError, match=r"lacks 1 weights of the network \(encoder"):
        make(folder, tmp_path)


def test_pickles_are_refused_with_what_converts_them(resnet: Path, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "config.json").write_bytes((resnet / "config.json").read_bytes())
    with pytest.raises(GraphError, match=r"has no model\.safetensors"):
        make(folder, tmp_path)
    torch.save({"a": torch.zeros(2)}, folder / "pytorch_model.bin")
    with pytest.raises(GraphError, match="convert it:\\npython -c") as wrong:
        make(folder, tmp_path)
    command = shlex.split(str(wrong.value).splitlines()[-1])
    # It is ours, and must work as it is printed.
    subprocess.run([sys.executable, *command[1:]], check=True, timeout=120)
    assert load_file(folder / "model.safetensors")["a"].shape == (2,)
    with pytest.raises(GraphError, match="is neither a file nor a folder"):
        make(tmp_path / "nowhere", tmp_path)
    with pytest.raises(GraphError, match=r"has no config\.json"):
        make(tmp_path, tmp_path)
    (tmp_path / "a.pth").write_bytes(b"")
    for more in ({}, {"torchvision": "resnet18"}):
        with pytest.raises(GraphError, match="a pickle can run code"):
            make(tmp_path / "a.pth", tmp_path, **more)


def test_vectors_and_maps_of_an_onnx_file(tmp_path: Path) -> None:
    images = pixels(4, *IMAGE)
    path = classifiers.classifier(tmp_path / "a.onnx")
    made, features = make(path, tmp_path)
    network = classifiers.Classifier().eval()
    shown = torch.from_numpy(by_hand(images, PreparationOptions()))
    np.testing.assert_allclose(features.of(images), network(shown).detach().numpy(), atol=1e-4)
    assert (made.source, made.preparation.mean) == ("a.onnx", (0.0,) * 3)
    body = network.body[:3]
    path = classifiers.write(tmp_path / "b.onnx", body, torch.rand(1, 3, 20, 24))
    _, features = make(path, tmp_path)
    expected = body(shown).mean(dim=(2, 3)).detach().numpy()
    np.testing.assert_allclose(features.of(images), expected, atol=1e-4)
    for classes in (1,):
        path = classifiers.classifier(tmp_path / "c.onnx", classes=classes)
        with pytest.raises(GraphError, match=r"must be \[batch, D\] or \[batch, D, h, w\]"):
            make(path, tmp_path)


def test_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for it: its networks are large, and it is an extra."""
    network = classifiers.Classifier().eval()
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    weights = tmp_path / "w.safetensors"
    with pytest.raises(GraphError, match="say --torchvision NAME"):
        make(weights, tmp_path)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(GraphError, match="torchvision is not installed: `pip install"):
        make(weights, tmp_path, torchvision="small")

    def get_model(name: str, weights: None) -> nn.Module:
        if name != "small":
            raise ValueError(name)
        return classifiers.Classifier()

    fake = SimpleNamespace(models=SimpleNamespace(get_model=get_model))
    monkeypatch.setitem(sys.modules, "torchvision", fake)
    made, features = make(
        weights, tmp_path, PreparationOptions((20, 24), mean=(), std=()), torchvision="small"
    )
    images = pixels(4, *IMAGE)
    imagenet = PreparationOptions(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    # Without its last layer, which knows classes.
    expected = network.body[:-1](torch.from_numpy(by_hand(images, imagenet))).detach().numpy()
    np.testing.assert_allclose(features.of(images), expected, atol=1e-4)
    assert (made.width, made.source) == (8, "w.safetensors (small, torchvision)")
    with pytest.raises(GraphError, match="torchvision has no such network"):
        make(weights, tmp_path, torchvision="large")
    save_file({"x": torch.zeros(1)}, weights)
    with pytest.raises(GraphError, match="is not a small's state dict"):
        make(weights, tmp_path, torchvision="small")
    with pytest.raises(GraphError, match="--output belongs to ONNX files"):
        make(weights, tmp_path, torchvision="small", output="x")
