"""The judge: scores finished images, forward only, in ONNX Runtime.

Its networks and its labels are its own. A sampler that is guided by a reward learns to please
that reward, so a judge that shared the guide's labels would wave the guide's mistakes through.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.onnx.session import open_session


class OnnxJudge:
    """A judge from its file."""

    def __init__(
        self,
        path: Path,
        threads: int = 1,
        device: str = "cpu",
        fits: Collection[tuple[int, int, int]] = (),
    ) -> None:
        """`fits` are the [H, W, C] of images that are resized to its own, where its graph takes
        none but those: a judge is trained once, and calibrated at each size of its model."""
        self.session = open_session(path, threads, device)
        sides = self.session.get_inputs()[0].shape[1:]
        self.shape = tuple(side if isinstance(side, int) else None for side in sides)
        """[H, W, C] of its images; None where it takes any, as a graph that resizes them does."""
        self._fits = frozenset(fits)

    def takes(self, image: tuple[int, ...]) -> bool:
        """Whether it scores images of this shape, [H, W, C]."""
        pairs = zip(self.shape, image, strict=False)
        return len(image) == len(self.shape) and all(own in (None, side) for own, side in pairs)

    def score(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        """σ(logit) of pixels uint8 [B, H, W, C], float64 [B] in (0, 1). NaN stays NaN.

        Raises ValueError on another dtype or size.
        """
        if pixels.dtype == np.uint8 and self._fits_in(pixels.shape[1:]):
            pixels = self._fitted(pixels)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or not self.takes(pixels.shape[1:]):
            wanted = ", ".join("any" if n is None else str(n) for n in self.shape)
            raise ValueError(
                f"the judge wants pixels uint8 [B, {wanted}], got {pixels.dtype} "
                f"{list(pixels.shape)}"
            )
        if len(pixels) == 0:
            return np.empty(0)
        outputs = self.session.run(["logit"], {"pixels": np.ascontiguousarray(pixels)})
        logit: NDArray[np.float64] = np.asarray(outputs[0], dtype=np.float64)
        # Two forms, so that exp never overflows; NaN takes the second and stays.
        small = np.exp(-np.abs(logit))
        return np.where(logit >= 0, 1 / (1 + small), small / (1 + small))

    def _fits_in(self, image: tuple[int, ...]) -> bool:
        """Whether it is resized first."""
        return not self.takes(image) and image in self._fits and image[2] == self.shape[2]

    def _fitted(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Images [B, H, W, C] at its own height and width: bilinear, with antialiasing."""
        height, width = self.shape[0] or pixels.shape[1], self.shape[1] or pixels.shape[2]
        fitted = np.empty((len(pixels), height, width, pixels.shape[3]), dtype=np.uint8)
        for row, image in enumerate(pixels):
            for channel in range(image.shape[2]):
                whole = Image.fromarray(np.ascontiguousarray(image[..., channel]))
                resized = whole.resize((width, height), Image.Resampling.BILINEAR)
                fitted[row, ..., channel] = np.asarray(resized)
        return fitted
