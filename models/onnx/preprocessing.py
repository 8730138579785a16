"""What happens to pixels before a pretrained network sees them: size, colours, range, layout.

Resizing is Pillow's, with antialiasing, without its rounding to bytes. For fixed sizes that is a
matrix product for each axis, which every version of ONNX has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.onnx.graph import BEFORE, Graph, GraphError, Nodes

Layout = Literal["NCHW", "NHWC"]
Resample = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
"""How an image is resized, as Pillow calls it."""

OVERSHOOTING = frozenset({"bicubic", "lanczos"})
"""Filters that leave 0..255 beside an edge; Pillow cuts off what does, after each axis."""

LUMA = (0.299, 0.587, 0.114)
"""Grey of red, green and blue (ITU-R BT.601), as Pillow has it."""

Numbers = NDArray[np.float32]


@dataclass(frozen=True)
class PreparationOptions:
    """Options about a network's input; None where the graph decides.

    A pixel of value p, in 0..255, becomes (p/255·scale − mean)/std; `mean` and `std` are one number
    or one a channel. With `bgr` the network takes blue first. The whole image becomes `resized`, of
    which the network sees the middle, `size`; where `resized` is None, it sees all. `rows_first`
    says which axis is resized first, which counts where `resample` overshoots.
    """

    size: tuple[int, int] | None = None
    layout: Layout | None = None
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    bgr: bool = False
    resized: tuple[int, int] | None = None
    resample: Resample = "bilinear"
    rows_first: bool = False


@dataclass(frozen=True)
class Preparation:
    """From pixels uint8 [B, H, W, C], `image` = (H, W, C), to what a graph takes.

    `mean` and `std` have a number for each of the graph's `channels`. Images are resized to
    `resized`, of which the middle is cut out, or to which a black border is added: `size`.
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
    resized: tuple[int, int]
    resample: Resample
    rows_first: bool

    @property
    def seen(self) -> float:
        """How much of an image's area the network sees, in 0..1."""
        parts = (min(1.0, a / b) for a, b in zip(self.size, self.resized, strict=True))
        return float(np.prod(list(parts)))

    def nodes(self, opset: int) -> tuple[Nodes, str]:
        """The nodes, and the name of what they give."""
        nodes = Nodes(opset, BEFORE)
        x = nodes.add("Cast", "pixels", to=_onnx("float32"))
        if (colours := self._colours()) is not None:
            x = nodes.add("MatMul", x, colours)
        x = nodes.add("Transpose", x, perm=[0, 3, 1, 2])
        rows, columns = self._resize()
        axes = [(rows, True), (columns, False)]
        for matrix, left in axes if self.rows_first else axes[::-1]:
            if matrix is not None:
                x = nodes.add("MatMul", *((matrix, x) if left else (x, matrix)))
                x = nodes.clip(x, 0, 255) if self.resample in OVERSHOOTING else x
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
        """The same without ONNX, by Pillow's own resizing: what `nodes` are compared with."""
        x: NDArray[Any] = pixels.astype(np.float32)
        if (colours := self._colours()) is not None:
            x = x @ colours
        x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
        height, width = self.resized
        between = (height, x.shape[3]) if self.rows_first else (x.shape[2], width)
        for size in (between, self.resized):
            x = _resized(x, size, self.resample).clip(0, 255)
        x = _middle(_middle(x, self.size[0], 2), self.size[1], 3)
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
        """(rows [h, H], columns [W, w]); None where the axis stays as it is."""
        rows, columns = (
            None if before == whole == after else _resampling(before, whole, after, self.resample)
            for before, whole, after in zip(self.image[:2], self.resized, self.size, strict=True)
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
    as_they_are = replace(wanted, scale=1.0, mean=(0.0,), std=(1.0,))
    if graph.dtype == "uint8" and wanted != as_they_are:
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
        image=image,
        size=size,
        channels=channels,
        layout=layout,
        dtype=graph.dtype,
        scale=wanted.scale,
        mean=mean,
        std=std,
        bgr=wanted.bgr,
        resized=wanted.resized or size,
        resample=wanted.resample,
        rows_first=wanted.rows_first,
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


def _resampling(before: int, whole: int, after: int, resample: Resample) -> Numbers:
    """[after, before]: Pillow's own resizing to `whole` of each unit vector, and of that the
    middle."""
    unit = np.eye(before, dtype=np.float32)
    return _middle(_resized(unit[None, None], (whole, before), resample)[0, 0], after, 0)


def _resized(x: Numbers, size: tuple[int, int], resample: Resample) -> Numbers:
    """Images [B, C, h, w] at another size."""
    if x.shape[2:] == size:
        return x
    how = Image.Resampling[resample.upper()]
    planes = [
        np.asarray(Image.fromarray(plane).resize((size[1], size[0]), how))
        for plane in x.reshape(-1, *x.shape[2:])
    ]
    return np.array(planes, np.float32).reshape(*x.shape[:2], *size)


def _middle(x: Numbers, length: int, axis: int) -> Numbers:
    """The middle of an axis; black is added on both sides where it is shorter. As transformers'
    `center_crop` has it."""
    short = max(0, length - x.shape[axis])
    border = (-(-short // 2), short // 2)
    padded = np.pad(x, [border if i == axis else (0, 0) for i in range(x.ndim)])
    begin = max(0, x.shape[axis] - length) // 2
    return np.take(padded, range(begin, begin + length), axis)


def _onnx(dtype: str) -> int:
    """ONNX's number of a type: TensorProto.DataType's."""
    return {"float32": 1, "uint8": 2, "float16": 10}[dtype]
