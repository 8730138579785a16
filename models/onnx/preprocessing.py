"""What happens to pixels before a pretrained network sees them: size, colours, range, layout.

Resizing is bilinear with antialiasing, as torchvision and Pillow do it. For fixed sizes that is a
matrix product for each axis, which every version of ONNX has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from models.onnx.graph import BEFORE, Graph, GraphError, Nodes

Layout = Literal["NCHW", "NHWC"]
LUMA = (0.299, 0.587, 0.114)
"""Grey of red, green and blue (ITU-R BT.601), as Pillow has it."""

Numbers = NDArray[np.float32]


@dataclass(frozen=True)
class PreparationOptions:
    """Options about a network's input; None where the graph decides.

    A pixel of value p, in 0..255, becomes (p/255·scale − mean)/std; `mean` and `std` are one number
    or one a channel. With `bgr` the network takes blue first.
    """

    size: tuple[int, int] | None = None
    layout: Layout | None = None
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    bgr: bool = False


@dataclass(frozen=True)
class Preparation:
    """From pixels uint8 [B, H, W, C], `image` = (H, W, C), to what a graph takes.

    `mean` and `std` have a number for each of the graph's `channels`.
    """

    image: tuple[int, int, int]
    size: tuple[int, int]
    channels: int
    layout: Layout
    dtype: str
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool

    def nodes(self, opset: int) -> tuple[Nodes, str]:
        """The nodes, and the name of what they give."""
        nodes = Nodes(opset, BEFORE)
        x = nodes.add("Cast", "pixels", to=_onnx("float32"))
        if (colours := self._colours()) is not None:
            x = nodes.add("MatMul", x, colours)
        x = nodes.add("Transpose", x, perm=[0, 3, 1, 2])
        for place, matrix in enumerate(self._resize()):
            if matrix is not None:
                x = nodes.add("MatMul", *((matrix, x) if place == 0 else (x, matrix)))
        if self.dtype == "uint8":
            x = nodes.add("Floor", nodes.add("Add", x, np.array(0.5, np.float32)))
        else:
            factor, offset = self._affine()
            x = nodes.add("Add", nodes.add("Mul", x, factor), offset)
        if self.layout == "NHWC":
            x = nodes.add("Transpose", x, perm=[0, 2, 3, 1])
        if self.dtype != "float32":
            x = nodes.add("Cast", x, to=_onnx(self.dtype))
        return nodes, x

    def apply(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        """The same without ONNX, by torch's own resizing: what `nodes` are compared with."""
        x: NDArray[Any] = pixels.astype(np.float32)
        if (colours := self._colours()) is not None:
            x = x @ colours
        tensor = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
        if self.size != self.image[:2]:
            tensor = functional.interpolate(
                tensor, size=self.size, mode="bilinear", align_corners=False, antialias=True
            )
        x = tensor.numpy()
        if self.dtype == "uint8":
            x = np.floor(x + 0.5)
        else:
            mean, std = (np.array(one, np.float32)[:, None, None] for one in (self.mean, self.std))
            x = (x / 255 * np.float32(self.scale) - mean) / std
        return (x.transpose(0, 2, 3, 1) if self.layout == "NHWC" else x).astype(self.dtype)

    def to_json(self) -> dict[str, Any]:
        """As a manifest keeps it."""
        return asdict(self)

    def _affine(self) -> tuple[Numbers, Numbers]:
        mean, std = (np.array(one)[:, None, None] for one in (self.mean, self.std))
        return (self.scale / 255 / std).astype(np.float32), (-mean / std).astype(np.float32)

    def _colours(self) -> Numbers | None:
        """[C, channels], by which a pixel is multiplied; None where colours stay."""
        if self.image[2] == self.channels:
            return np.eye(3, dtype=np.float32)[::-1].copy() if self.bgr else None
        if self.channels == 3:
            return np.ones((1, 3), np.float32)
        return np.array(LUMA, np.float32)[:, None]

    def _resize(self) -> tuple[Numbers | None, Numbers | None]:
        """(rows [h, H], columns [W, w]); None where the axis keeps its length."""
        rows, columns = (
            None if before == after else _resampling(before, after)
            for before, after in zip(self.image[:2], self.size, strict=True)
        )
        return rows, None if columns is None else columns.T


def fit(graph: Graph, image: tuple[int, int, int], wanted: PreparationOptions) -> Preparation:
    """What brings images [H, W, C] of a bundle to a graph's input.

    Raises GraphError where the graph and `wanted` contradict each other, or both are silent.
    """
    shape, path = graph.shape, graph.path
    if len(shape) != 4:
        raise GraphError(
            f"{path}: input {graph.input!r} has {len(shape)} axes, must have 4: [batch, channels, "
            "height, width] or [batch, height, width, channels]"
        )
    layout = _layout(graph, wanted.layout)
    channels = shape[1] if layout == "NCHW" else shape[3]
    channels = 3 if channels is None else channels
    size = _size(graph, shape[2:] if layout == "NCHW" else shape[1:3], wanted.size)
    if wanted.bgr and (channels, image[2]) != (3, 3):
        raise GraphError("--bgr: bundle and network must both have three channels")
    if graph.dtype == "uint8" and wanted != PreparationOptions(
        wanted.size, wanted.layout, bgr=wanted.bgr
    ):
        raise GraphError(
            f"{path}: takes uint8 pixels as they are: leave out --scale, --mean and --std"
        )
    if not all(np.isfinite(one) for one in (wanted.scale, *wanted.mean, *wanted.std)):
        raise GraphError("--scale, --mean and --std must be finite")
    if wanted.scale <= 0 or min(wanted.std, default=0) <= 0:
        raise GraphError("--scale and --std must be above 0")
    mean, std = (
        _each(name, values, channels)
        for name, values in (("--mean", wanted.mean), ("--std", wanted.std))
    )
    return Preparation(
        image, size, channels, layout, graph.dtype, wanted.scale, mean, std, wanted.bgr
    )


def _layout(graph: Graph, wanted: Layout | None) -> Layout:
    shape = graph.shape
    possible: list[Layout] = []
    if shape[1] in (1, 3):
        possible.append("NCHW")
    if shape[3] in (1, 3):
        possible.append("NHWC")
    if not possible:
        # A dynamic axis may hold anything; the trial shows if it was guessed right.
        possible = [name for name, at in (("NCHW", 1), ("NHWC", 3)) if shape[at] is None]  # type: ignore[misc]
        if wanted is None and possible:
            possible = ["NCHW", "NHWC"]
    said = ", ".join("?" if one is None else str(one) for one in shape)
    if not possible or (wanted is not None and wanted not in possible):
        raise GraphError(
            f"{graph.path}: input {graph.input!r} is [{said}]"
            + (f", which is not --layout {wanted}" if wanted else "")
            + ": an axis for 1 or 3 channels is missing, grey or RGB"
        )
    if wanted is None and len(possible) > 1:
        raise GraphError(
            f"{graph.path}: input {graph.input!r} is [{said}]: say --layout NCHW or --layout NHWC"
        )
    return wanted or possible[0]


def _size(
    graph: Graph, static: Sequence[int | None], wanted: tuple[int, int] | None
) -> tuple[int, int]:
    height, width = static
    if wanted is None and (height is None or width is None):
        raise GraphError(
            f"{graph.path}: takes images of any size: say with --size HxW, such as --size 224x224, "
            "which it was trained for"
        )
    size = wanted or (height or 0, width or 0)
    if any(fixed not in (None, given) for fixed, given in zip(static, size, strict=True)):
        raise GraphError(
            f"{graph.path}: takes {height or '?'}x{width or '?'} alone, not --size "
            f"{size[0]}x{size[1]}: leave it out"
        )
    if not all(1 <= one <= 4096 for one in size):
        raise GraphError(f"--size {size[0]}x{size[1]}: height and width must lie in 1..4096")
    return size


def _each(name: str, values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if len(values) not in (1, channels):
        raise GraphError(f"{name}: {len(values)} numbers, must be 1 or {channels}, one a channel")
    return values * channels if len(values) == 1 else values


def _resampling(before: int, after: int) -> Numbers:
    """[after, before]: torch's own resizing of each unit vector."""
    unit = torch.eye(before)[None, None]
    resized = functional.interpolate(
        unit, size=(after, before), mode="bilinear", align_corners=False, antialias=True
    )
    matrix: Numbers = resized[0, 0].numpy()
    return matrix


def _onnx(dtype: str) -> int:
    """ONNX's number of a type: TensorProto.DataType's."""
    return {"float32": 1, "uint8": 2, "float16": 10}[dtype]
