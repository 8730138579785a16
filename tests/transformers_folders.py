"""Tiny random image classifiers in transformers' format, by its own `save_pretrained`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextImageProcessorPil,
    MobileNetV2ImageProcessorPil,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from models.onnx.batch_invariance import trial
from models.rewards.image_processor import open_processor

LABELS = ("normal", "drawing", "nsfw")
SIZE = 32
"""Pixels of each side that the networks take."""


def vit(folder: Path, labels: tuple[str, ...] = LABELS, **processor: Any) -> Path:
    """A transformer; its image processor resizes the whole, bilinear."""
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=SIZE, patch_size=8, **_named(labels),
    )  # fmt: skip
    how = ViTImageProcessorPil(**({"size": {"height": SIZE, "width": SIZE}} | processor))
    return _save(ViTForImageClassification, config, how, folder)


def convnext(folder: Path) -> Path:
    """Convolutions; bicubic, four fifths of the middle."""
    config = ConvNextConfig(
        hidden_sizes=[8, 8], depths=[1, 1], num_stages=2, image_size=SIZE, **_named(LABELS)
    )
    how = ConvNextImageProcessorPil(size={"shortest_edge": SIZE}, crop_pct=0.8)
    return _save(ConvNextForImageClassification, config, how, folder)


def resnet(folder: Path) -> Path:
    """Convolutions and batch norms; the shortest edge is resized, then the middle cropped."""
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", **_named(LABELS)
    )
    how = MobileNetV2ImageProcessorPil(
        size={"shortest_edge": 41}, crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.25, 0.3],
    )  # fmt: skip
    return _save(ResNetForImageClassification, config, how, folder)


def change(folder: Path, file: str, edit: Callable[[dict[str, Any]], object]) -> Path:
    """Change a JSON file of a folder in place."""
    path = folder / file
    said = json.loads(path.read_text())
    edit(said)
    path.write_text(json.dumps(said))
    return folder


def _named(labels: tuple[str, ...]) -> dict[str, Any]:
    return {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def _save(kind: Any, config: Any, processor: Any, folder: Path) -> Path:
    """With a head that tells the images of a trial apart, at about a half."""
    torch.manual_seed(0)
    network = kind(config).eval()
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    shown = torch.from_numpy(open_processor(folder).shown(trial((SIZE, SIZE, 3))))
    head = [one for one in network.modules() if isinstance(one, nn.Linear)][-1]
    with torch.no_grad():
        nn.init.normal_(head.weight)
        logits = network(shown).logits
        factor = 2.0 / logits.std(dim=0)
        head.weight *= factor[:, None]
        head.bias.copy_(head.bias * factor - (logits * factor).median(dim=0).values)
    network.save_pretrained(folder)
    return folder


def own_scores(folder: Path, pixels: np.ndarray, benign: int = 0) -> np.ndarray:
    """P(benign) of pixels [B, H, W, C] as transformers' own pipeline gives it."""
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    colours = np.repeat(pixels, 3, axis=3) if pixels.shape[3] == 1 else pixels
    processor = AutoImageProcessor.from_pretrained(folder)
    network = AutoModelForImageClassification.from_pretrained(folder).eval()
    shown = processor([Image.fromarray(one) for one in colours], return_tensors="pt")
    with torch.no_grad():
        chances = network(**shown).logits.softmax(dim=1)
    return chances[:, benign].double().numpy()
