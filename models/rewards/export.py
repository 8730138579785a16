"""Export judges, probes and students to ONNX. Serving imports none of this, and no `onnx`."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from models.diffusion.codec import Codec
from models.onnx.export import export_graph
from models.rewards.ensemble import Ensemble
from models.rewards.student import Student


class JudgeGraph(nn.Module):
    """Pixels uint8 [B, H, W, C] to the members' mean logit [B]; normalisation is inside."""

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        self.network = ensemble.network

    def forward(self, pixels: Tensor) -> Tensor:
        image = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
        logit: Tensor = self.network(image).mean(dim=1)
        return logit


def store_as_half(path: Path) -> None:
    """Keep a graph's weights as float16 and cast them back when it is loaded: half the file.

    ONNX Runtime folds the casts, so the graph computes in float32 as before.
    """
    model = onnx.load(path)
    casts = []
    for weight in model.graph.initializer:
        if weight.data_type != onnx.TensorProto.FLOAT or math.prod(weight.dims) < 64:
            continue
        name = weight.name
        half = onnx.numpy_helper.to_array(weight).astype(np.float16)
        weight.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}_half"))
        casts.append(
            onnx.helper.make_node("Cast", [f"{name}_half"], [name], to=onnx.TensorProto.FLOAT)
        )
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)


class ProbeGraph(nn.Module):
    """x̂_0 [B, C, H, W] in the backbone's space to the members' mean logit [B]."""

    def __init__(self, ensemble: Ensemble, codec: Codec) -> None:
        super().__init__()
        self.network = ensemble.network
        self.codec = codec

    def forward(self, x_0: Tensor) -> Tensor:
        logit: Tensor = self.network(self.codec.decode(x_0)).mean(dim=1)
        return logit


def export_probe(ensemble: Ensemble, codec: Codec, shape: tuple[int, int, int], path: Path) -> None:
    """Write one ONNX file: `x_0` float32 [batch, *shape] in, `logit` float32 [batch] out.

    Raises ValueError for a time-dependent ensemble.
    """
    if ensemble.config.timed:
        raise ValueError("a probe looks at x̂_0: its networks must not be time-dependent")
    export_graph(ProbeGraph(ensemble, codec), (torch.zeros(2, *shape),), ["x_0"], "logit", path)
    store_as_half(path)


def export_student(student: Student, shape: tuple[int, int, int], path: Path) -> None:
    """Write one ONNX file: `x_t` float32 [batch, *shape] and `timestep` int64 [batch] in,
    `gradient`, as x_t, out."""
    examples = torch.zeros(2, *shape), torch.tensor([1, 500])
    export_graph(student, examples, ["x_t", "timestep"], "gradient", path)
    store_as_half(path)


def export_judge(ensemble: Ensemble, height: int, width: int, path: Path, **metadata: str) -> None:
    """Write one ONNX file: `pixels` uint8 [batch, H, W, C] in, `logit` float32 [batch] out.

    `metadata` goes into the file as it is. Raises ValueError for a time-dependent ensemble.
    """
    if ensemble.config.timed:
        raise ValueError("a judge scores finished images: its networks must not be time-dependent")
    example = torch.zeros(2, height, width, ensemble.config.channels, dtype=torch.uint8)
    export_graph(JudgeGraph(ensemble), (example,), ["pixels"], "logit", path)
    if metadata:
        model = onnx.load(path)
        onnx.helper.set_model_props(model, metadata)
        onnx.save(model, path)
