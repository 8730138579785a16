"""Small image classifiers in ONNX, as somebody else might bring them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

CLASSES = 4
HEIGHT, WIDTH = 20, 24


class Classifier(nn.Module):
    """Convolutions, a pool, a linear layer, and what comes last."""

    def __init__(
        self,
        last: Callable[[Tensor], Tensor] = lambda x: x,
        classes: int = CLASSES,
        channels: int = 3,
        nhwc: bool = False,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(channels, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes),
        )  # fmt: skip
        nn.init.normal_(self.body[-1].weight, std=4.0)
        self.last, self.nhwc = last, nhwc

    def forward(self, images: Tensor) -> Tensor:
        """[B, classes]."""
        x = images.permute(0, 3, 1, 2) if self.nhwc else images
        return self.last(self.body(x))


def softmax(x: Tensor) -> Tensor:
    """Over the classes."""
    return x.softmax(dim=1)


def write(
    path: Path, network: nn.Module, example: Tensor, fixed: bool = False, opset: int = 18
) -> Path:
    """Export with one file, input `images` and output `scores`; `fixed` keeps the example's rows.

    By torch's older exporter: it is quick, and its graphs are what most zoos hold.
    """
    axes = {} if fixed else {"images": {0: "n"}, "scores": {0: "n"}}
    torch.onnx.export(
        network.eval(), (example,), path, dynamo=False, opset_version=opset,
        input_names=["images"], output_names=["scores"], dynamic_axes=axes,
    )  # fmt: skip
    return path


def classifier(path: Path, fixed: bool = False, opset: int = 18, **options: Any) -> Path:
    """A `Classifier` in a file."""
    network = Classifier(**options)
    channels = options.get("channels", 3)
    shape = (HEIGHT, WIDTH, channels) if network.nhwc else (channels, HEIGHT, WIDTH)
    return write(path, network, torch.rand(1, *shape), fixed, opset)


def change(path: Path, edit: Callable[[onnx.ModelProto], None]) -> Path:
    """Change a file in place."""
    model = onnx.load(path)
    edit(model)
    onnx.save(model, path)
    return path


def pixels(n: int, *image: int, seed: int = 3) -> np.ndarray:
    """Random pixels uint8 [n, H, W, C]."""
    return np.random.default_rng(seed).integers(0, 256, (n, *image)).astype(np.uint8)
