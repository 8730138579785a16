"""Export a judge to ONNX. Apart from the judge itself: serving needs no `onnx` package."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from models.backbones.export import export_graph
from models.rewards.ensemble import Ensemble


class JudgeGraph(nn.Module):
    """Pixels uint8 [B, H, W, C] to the members' mean logit [B]; normalisation is inside."""

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        self.network = ensemble.network

    def forward(self, pixels: Tensor) -> Tensor:
        image = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
        logit: Tensor = self.network(image).mean(dim=1)
        return logit


def export_judge(ensemble: Ensemble, height: int, width: int, path: Path) -> None:
    """Write one ONNX file: `pixels` uint8 [batch, H, W, C] in, `logit` float32 [batch] out.

    Raises ValueError for a time-dependent ensemble.
    """
    if ensemble.config.timed:
        raise ValueError("a judge scores finished images: its networks must not be time-dependent")
    example = torch.zeros(2, height, width, ensemble.config.channels, dtype=torch.uint8)
    export_graph(JudgeGraph(ensemble), (example,), ["pixels"], "logit", path)
