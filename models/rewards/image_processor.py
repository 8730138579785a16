"""An image processor of transformers', rebuilt as nodes of a graph.

What it does is read from the processor itself, and held to it on images: one that does anything
else than resize, crop, rescale and normalise is refused.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.onnx.graph import Graph, GraphError, said
from models.onnx.preprocessing import Preparation, PreparationOptions, fit
from models.rewards.transformers_folder import CONFIG, PREPROCESSOR, numbers, quieten, read_json

LEVELS = 2.0
"""How far a pixel, of 0..255, may lie from the image processor's, which rounds to bytes after each
axis: half a level each, and a filter can make a little more of it."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class ImageProcessor:
    """The one that `path`, a preprocessor_config.json, describes: `theirs` is transformers' own."""

    path: Path
    theirs: Any

    @property
    def name(self) -> str:
        """Its class, without the library that it resizes by."""
        return type(self.theirs).__name__.removesuffix("Pil")

    def shown(self, pixels: Pixels) -> NDArray[np.float32]:
        """What it makes of pixels [B, H, W, C]: [B, C, h, w]."""
        colours = np.repeat(pixels, 3, axis=3) if pixels.shape[3] == 1 else pixels
        found = self.theirs([Image.fromarray(one) for one in colours], return_tensors="pt")
        shown: NDArray[np.float32] = found["pixel_values"].numpy().astype(np.float32)
        return shown

    def preparation(self, graph: Graph, pixels: Pixels) -> Preparation:
        """The same for `graph`, as nodes can do it, and as it does to `pixels` [B, H, W, C].

        Raises GraphError where they cannot.
        """
        try:
            image, shown = pixels.shape[1:], self.shown(pixels)
            wanted = self._options(image, (shown.shape[2], shown.shape[3]))
            sizes = list(self._sizes(image))
        except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise GraphError(f"{self.path}: cannot be made sense of: {said(error)}") from error
        least = np.inf
        # Pillow resizes the axis first that leaves less to do, which is not said anywhere.
        for resized, rows_first in product(sizes, (False, True)):
            made = fit(graph, image, replace(wanted, resized=resized, rows_first=rows_first))
            levels = np.array(made.std)[:, None, None] * 255 / made.scale
            off = float((np.abs(made.apply(pixels) - shown) * levels).max())
            if off <= LEVELS:
                return made
            least = min(least, off)
        raise GraphError(
            f"{self.path}: {self.name} does more than resize, crop, rescale and normalise: what "
            f"was read from it gives pixels up to {least:.3g} of 255 away. Export the network to "
            "ONNX, and say --size, --mean and --std yourself"
        )

    def _options(self, image: tuple[int, ...], size: tuple[int, int]) -> PreparationOptions:
        theirs = self.theirs
        rescales = getattr(theirs, "do_rescale", False)
        mean: tuple[float, ...] = (0.0,)
        std: tuple[float, ...] = (1.0,)
        if getattr(theirs, "do_normalize", False):
            mean, std = (
                numbers(self.path, key, getattr(theirs, key)) for key in ("image_mean", "image_std")
            )
        resample = getattr(theirs, "resample", None)
        how: Any = Image.Resampling(2 if resample is None else int(resample)).name.lower()
        return PreparationOptions(
            size=size,
            scale=255 * float(theirs.rescale_factor) if rescales else 255.0,
            mean=mean,
            std=std,
            bgr=bool(getattr(theirs, "do_flip_channel_order", False)) and image[2] == 3,
            resample=how,
        )

    def _sizes(self, image: tuple[int, ...]) -> Iterator[tuple[int, int]]:
        """What an image may have become before the middle was taken: by its own method, or by
        `crop_pct`, where that method crops as well.
        """
        height, width = image[:2]
        if not getattr(self.theirs, "do_resize", False):
            yield height, width
            return
        blank, size = np.zeros((3, height, width), np.uint8), self.theirs.size
        resized = self.theirs.resize(image=blank, size=size, resample=self.theirs.resample)
        yield int(resized.shape[1]), int(resized.shape[2])
        if (part := getattr(self.theirs, "crop_pct", None)) and size.shortest_edge:
            short, long = sorted((height, width))
            edge = int(size.shortest_edge / part)
            ends = (edge, int(edge * long / short))
            yield ends if height <= width else ends[::-1]


def open_processor(folder: Path) -> ImageProcessor:
    """The image processor of a folder of transformers'. Raises GraphError."""
    from transformers import AutoImageProcessor

    path = folder / PREPROCESSOR
    if not path.is_file():
        raise GraphError(
            f"{folder}: has no {PREPROCESSOR}, which says what pixels it takes: fetch it, too. Or "
            "export the network to ONNX, and say --size, --mean and --std yourself"
        )
    saying = read_json(path)
    for key in ("image_mean", "image_std"):
        numbers(path, key, saying.get(key))
    kind = saying.get("image_processor_type")
    if isinstance(kind, str):
        # What they were called before, which many files still say, and transformers forgot.
        saying["image_processor_type"] = kind.replace("FeatureExtractor", "ImageProcessor")
    quieten()
    with tempfile.TemporaryDirectory() as renamed:
        shutil.copyfile(folder / CONFIG, Path(renamed) / CONFIG)
        (Path(renamed) / PREPROCESSOR).write_text(json.dumps(saying))
        try:
            # Pillow's and not torchvision's: it is there wherever Winnow is.
            theirs = AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
                renamed, local_files_only=True, trust_remote_code=False, backend="pil"
            )
        except Exception as error:  # of many libraries
            raise GraphError(f"{path}: transformers cannot load it: {said(error)}") from error
    return ImageProcessor(path, theirs)
