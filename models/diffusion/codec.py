"""Between images and the space that the backbone diffuses in.

That is pixels, or an autoencoder's latents (`backbones.autoencoder`). `PixelShuffle` folds each
r × r patch of pixels into channels (Shi et al. 2016). It is a permutation, so white noise stays
white and the mathematics of sampling does not change, while a convolutional backbone runs at 1/r²
of the positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional


class Codec(Protocol):
    """`exact` says that it costs nothing and loses nothing."""

    @property
    def exact(self) -> bool: ...

    def encode(self, image: Tensor) -> Tensor:
        """Image [B, C, H, W] in [-1, 1] to x_0."""
        ...

    def decode(self, x_0: Tensor) -> Tensor:
        """x_0 to an image [B, C, H, W], not clamped; differentiable."""
        ...

    def to_uint8(self, x_0: Tensor) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """x_0 to the very bytes that are judged and delivered; see the function `to_uint8`."""
        ...


@dataclass(frozen=True)
class PixelShuffle:
    """`pixel_shuffle=1` is the identity."""

    pixel_shuffle: int = 1
    exact: ClassVar[bool] = True

    def encode(self, image: Tensor) -> Tensor:
        """Image [B, C, H, W] in [-1, 1] to x_0 [B, C·r², H/r, W/r]."""
        return functional.pixel_unshuffle(image, self.pixel_shuffle)

    def decode(self, x_0: Tensor) -> Tensor:
        """x_0 [B, C·r², H/r, W/r] to an image [B, C, H, W], not clamped."""
        return functional.pixel_shuffle(x_0, self.pixel_shuffle)

    def to_uint8(self, x_0: Tensor) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """See `Codec`."""
        return to_uint8(self.decode(x_0))


def to_uint8(image: Tensor) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """An image [B, C, H, W] in [-1, 1] to the very bytes that are judged and delivered.

    Returns (pixels [B, H, W, C], finite [B]); a row with NaN or infinity is not finite, and its
    pixels mean nothing: a broken image must not leave as a black one.
    """
    image = image.float()
    finite = torch.isfinite(image).flatten(1).all(1).cpu().numpy()
    pixels = ((image.nan_to_num().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return np.ascontiguousarray(pixels.permute(0, 2, 3, 1).cpu().numpy()), finite


def from_uint8(pixels: NDArray[np.uint8]) -> Tensor:
    """Pixels [B, H, W, C] (or [B, H, W]) in 0..255 to an image [B, C, H, W] in [-1, 1]."""
    array = pixels[..., None] if pixels.ndim == 3 else pixels
    return torch.from_numpy(array.astype(np.float32)).permute(0, 3, 1, 2) / 127.5 - 1
