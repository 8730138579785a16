"""Pixels to PNG and base64, and back."""

from __future__ import annotations

import base64
import binascii
import io
import re

from PIL import Image

from service import images
from service.errors import InvalidValue
from service.ports import Pixels

DATA_URL = re.compile(r"data:(image/[a-z0-9.+-]{1,40});base64,", re.IGNORECASE)


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
    """The pixels [H, W, 1 or 3] of a PNG, as strictly as any. Raises ImageRefused."""
    return images.decode(data, formats=("PNG",))


def from_data_url(url: str, height: int, width: int, channels: int, param: str) -> Pixels:
    """The pixels of a `data:image/…;base64,` URL, [H, W, C] uint8. Takes a while: for a thread.

    Raises InvalidValue, naming `param`, unless it holds an image of exactly this size; see
    `images.decode`.
    """
    head = DATA_URL.match(url)
    if head is None:
        raise InvalidValue("must be a data URL: data:image/png;base64,…", param)
    text = url[head.end() :]
    # Four characters for three bytes: looked at before anything is unpacked.
    if len(text) > (most := b64_length(images.most_bytes(height, width))):
        raise InvalidValue(
            f"has {len(text)} characters of base64, the limit is {most} for an image of "
            f"{width}x{height}",
            param,
        )
    try:
        data = from_b64(text)
        media_type = head.group(1).lower()
        return images.decode(data, (height, width, channels), media_type=media_type)
    except ValueError as error:
        raise InvalidValue(str(error), param) from None


def from_b64(text: str) -> bytes:
    """The bytes of standard base64, with its padding and nothing else. Raises ValueError.

    Bytes have one spelling: what some decoders would read and others not is refused.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        data = None
    if data is None or base64.b64encode(data).decode("ascii") != text:
        raise ValueError("does not decode as base64 (the standard alphabet, padded, no spaces)")
    return data


def b64_length(size: int) -> int:
    """How many characters of base64 hold so many bytes."""
    return 4 * -(-size // 3)
