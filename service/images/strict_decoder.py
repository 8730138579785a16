"""From a file to pixels, or a refusal that says why."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image

from service.images import jpeg, png, webp
from service.images.refusal import DAMAGED, CheckSize, ImageRefused
from service.ports import Pixels

STRIP: Mapping[str, Callable[[bytes, CheckSize], bytes]] = {
    "PNG": png.strip_metadata,
    "JPEG": jpeg.strip_metadata,
    "WebP": webp.strip_metadata,
}
FORMATS = tuple(STRIP)
"""What is read. Pillow knows more, and hands some of them (EPS) to other programs."""

OTHERS = {
    b"GIF8": "a GIF",
    b"BM": "a BMP",
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"II+\0": "a TIFF",
    b"\0\0\1\0": "an icon",
    b"\0\0\0\x0cjP  ": "a JPEG 2000",
    b"\xff\x4f\xff\x51": "a JPEG 2000",
    b"\0\0\0\x0cJXL ": "a JPEG XL",
    b"\xff\x0a": "a JPEG XL",
    b"8BPS": "a Photoshop file",
    b"%PDF": "a PDF",
    b"%!PS": "a PostScript file",
    b"qoif": "a QOI",
    b"<svg": "an SVG",
    b"<?xml": "an SVG",
}
"""What other formats begin with, to say what was sent."""

MAX_PIXELS = 2**24
"""Of an image whose size nobody knows beforehand: 4096 × 4096."""

METADATA_BYTES = 2**17
"""What a file may hold beside pixels: a camera's notes and its thumbnail, say."""

GREY_SPREAD = 2
"""How far the channels of grey may lie apart, of 255: what lossy formats make of it."""


def decode(
    data: bytes,
    shape: tuple[int, int, int] | None = None,
    formats: Sequence[str] = FORMATS,
    media_type: str | None = None,
) -> Pixels:
    """The pixels [H, W, 1 or 3] uint8 of a file; of `shape` [H, W, C] where one is given.

    Grey becomes three equal channels where three are wanted; a colour image is never made grey. The
    file must be one of `formats`, and what `media_type` says (`image/png`) if it is given.
    Raises ImageRefused, a ValueError that says what is wrong with it.
    """
    name = _format(data)
    if name not in formats:
        raise ImageRefused(f"is a {name}: send {_listed(formats)}")
    is_one = f"image/{name.lower()}"
    if media_type not in (None, is_one):
        raise ImageRefused(f"says that it is {media_type}, and is {is_one}")
    if shape is not None and len(data) > most_bytes(*shape[:2]):
        raise ImageRefused(
            f"has {len(data)} bytes, the limit is {most_bytes(*shape[:2])} for an image of "
            f"{shape[1]}x{shape[0]}"
        )

    def check_size(width: int, height: int) -> None:
        # The size stands in the header: what would unpack to gigabytes is never unpacked.
        if shape is not None and (height, width) != shape[:2]:
            raise ImageRefused(f"is {width}x{height}, must be {shape[1]}x{shape[0]}")
        if width * height > MAX_PIXELS:
            raise ImageRefused(f"is {width}x{height}, the limit is {MAX_PIXELS} pixels")

    pixels = _pixels(STRIP[name](data, check_size), name, check_size)
    return pixels if shape is None else _with_channels(pixels, shape[2])


def most_bytes(height: int, width: int) -> int:
    """How large the file of an image may be: RGB that did not compress, and metadata."""
    raw = height * (3 * width + 1)
    # Deflate stores what does not compress in blocks, each with a few bytes of its own.
    return raw + raw // 1000 + METADATA_BYTES


def _format(data: bytes) -> str:
    """The format's name, by its first bytes."""
    if data.startswith(png.MAGIC):
        return "PNG"
    if data.startswith(jpeg.MAGIC):
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    other = "an AVIF, a HEIC or a video" if data[4:8] == b"ftyp" else None
    other = next((is_a for magic, is_a in OTHERS.items() if data.startswith(magic)), other)
    what = f"is {other}, which does not decode" if other else "does not decode as an image"
    raise ImageRefused(f"{what}: send {_listed(FORMATS)}")


def _pixels(core: bytes, name: str, check_size: CheckSize) -> Pixels:
    try:
        with Image.open(io.BytesIO(core), formats=(name,)) as image:
            check_size(*image.size)
            if getattr(image, "n_frames", 1) != 1:
                raise ImageRefused(DAMAGED)
            if image.mode == "P":
                _check_palette(image)
            elif image.mode not in ("L", "RGB"):
                raise ImageRefused(f"has mode {image.mode}: send grey or RGB")
            pixels = np.array(image.convert("RGB") if image.mode == "P" else image)
    except ImageRefused:
        raise
    except Exception:  # a decoder has many faults, and no pixels come of any
        raise ImageRefused(DAMAGED) from None
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _check_palette(image: Image.Image) -> None:
    colours = len(image.getpalette() or ()) // 3
    if int(np.asarray(image).max()) >= colours:
        raise ImageRefused("has pixels of colours that its palette does not have")


def _with_channels(pixels: Pixels, channels: int) -> Pixels:
    if pixels.shape[-1] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=-1)
    # Its brightness would be judged, and its colours seen.
    if int(np.ptp(pixels, axis=-1).max()) > GREY_SPREAD:
        raise ImageRefused("is in colour, and must be grey")
    return np.asarray(np.rint(pixels.mean(axis=-1, keepdims=True)), dtype=np.uint8)


def _listed(names: Sequence[str]) -> str:
    return " or ".join((", ".join(names[:-1]), names[-1])) if len(names) > 1 else names[0]
