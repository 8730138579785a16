"""A judge's graph for images of any size: its logit is the mean brightness, about a middle."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper


def write_judge(
    path: Path,
    channels: int = 1,
    middle: float = 0.2,
    slope: float = 20.0,
    blind_from: int = 1_000_000,
) -> Path:
    """Write it: `pixels` uint8 [batch, height, width, C] in, `logit` float32 [batch] out.

    It says the same of all images that are as wide as `blind_from`.
    """
    one = helper.make_tensor("one", TensorProto.INT64, [1], [2])
    last = helper.make_tensor("last", TensorProto.INT64, [1], [3])
    limit = helper.make_tensor("limit", TensorProto.INT64, [1], [blind_from])
    axes = helper.make_tensor("axes", TensorProto.INT64, [3], [1, 2, 3])
    scale = helper.make_tensor("scale", TensorProto.FLOAT, [], [slope / 255])
    offset = helper.make_tensor("offset", TensorProto.FLOAT, [], [-slope * middle])
    nodes = [
        helper.make_node("Cast", ["pixels"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["numbers", "axes"], ["mean"], keepdims=0),
        helper.make_node("Shape", ["pixels"], ["shape"]),
        helper.make_node("Slice", ["shape", "one", "last"], ["width"]),
        helper.make_node("Less", ["width", "limit"], ["sees"]),
        helper.make_node("Cast", ["sees"], ["seen"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["mean", "seen"], ["looked"]),
        helper.make_node("Mul", ["looked", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], ["logit"]),
    ]
    shape = ["batch", "height", "width", channels]
    graph = helper.make_graph(
        nodes,
        "brightness",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["batch"])],
        [axes, scale, offset, one, last, limit],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return path
