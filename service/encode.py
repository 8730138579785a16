"""Accepted pixels to what travels: PNG, base64."""

from __future__ import annotations

import base64
import binascii
import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from service.errors import InvalidValue
from service.ports import Pixels

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
"""What is read. Pillow knows more, and hands some of them (EPS) to other programs."""

MODES = ("1", "L", "P", "RGB")
"""What converts without loss of what a judge should see: 16 bits would saturate, alpha hide."""


def to_png(pixels: Pixels) -> bytes:
    """Pixels [H, W, 1 or 3] uint8 as a PNG; lossless, so what was judged is what arrives."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def to_b64_png(pixels: Pixels) -> str:
    """The base64 text of `to_png`."""
    return base64.b64encode(to_png(pixels)).decode("ascii")


def from_png(data: bytes) -> Pixels:
    """The pixels [H, W, 1 or 3] of a PNG that `to_png` made."""
    pixels = np.asarray(Image.open(io.BytesIO(data), formats=("PNG",)))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def from_data_url(url: str, height: int, width: int, channels: int, param: str) -> Pixels:
    """The pixels of a `data:image/…;base64,` URL, [H, W, C] uint8.

    Raises InvalidValue, naming `param`, unless it holds an image of exactly this size.
    """
    head, comma, body = url.partition(",")
    if not (comma and head.startswith("data:image/") and head.endswith(";base64")):
        raise InvalidValue("must be a data URL: data:image/png;base64,…", param)
    try:
        image = Image.open(io.BytesIO(base64.b64decode(body, validate=True)), formats=FORMATS)
        # The size stands in the header: compare before decoding, so a small file that unpacks
        # to gigabytes is refused unread.
        if image.size != (width, height):
            raise InvalidValue(
                f"is {image.size[0]}x{image.size[1]}, this judge scores {width}x{height}", param
            )
        if image.mode not in MODES:
            raise InvalidValue(
                f"has mode {image.mode}: send 8 bits a channel, without alpha", param
            )
        pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except (
        binascii.Error,
        UnidentifiedImageError,
        Image.DecompressionBombError,
        OSError,
        ValueError,
        SyntaxError,
    ):
        raise InvalidValue("does not decode as an image", param) from None
    return pixels.reshape(height, width, channels)
