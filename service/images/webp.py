"""WebP: its chunks, and which of them may stand there."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from service.images.metadata import check_exif, check_xmp
from service.images.refusal import (
    ANIMATED,
    DAMAGED,
    PROFILE,
    TRAILING,
    TRANSPARENT,
    CheckSize,
    ImageRefused,
)

EXTENDED, LOSSY, LOSSLESS = b"VP8X", b"VP8 ", b"VP8L"
FLAGS = {0x02: ANIMATED, 0x10: TRANSPARENT, 0x20: PROFILE}
"""Of the extended header."""
REFUSED = {b"ANIM": ANIMATED, b"ANMF": ANIMATED, b"ALPH": TRANSPARENT, b"ICCP": PROFILE}
START_CODE = b"\x9d\x01\x2a"


def strip_metadata(data: bytes, check_size: CheckSize) -> bytes:
    """The file with nothing but its pixels. Raises ImageRefused, also where `check_size` does."""
    chunks = list(_chunks(data))
    images = []
    for name, content in chunks:
        if name in REFUSED:
            raise ImageRefused(REFUSED[name])
        if name in (LOSSY, LOSSLESS):
            images.append((name, content))
        elif name == EXTENDED:
            _check_flags(content)
        elif name == b"EXIF":
            check_exif(content)
        elif name == b"XMP ":
            check_xmp(content)
        else:
            said = name.decode("ascii", "backslashreplace")
            raise ImageRefused(f"has a chunk {said!r}, which nobody knows here: leave it out")
    if len(images) != 1:
        raise ImageRefused(f"{DAMAGED}; it holds {len(images)} images")
    ((name, content),) = images
    size = _lossy(content) if name == LOSSY else _lossless(content)
    canvases = [_canvas(content) for name, content in chunks if name == EXTENDED]
    if any(canvas != size for canvas in canvases):
        raise ImageRefused(f"{DAMAGED}; its canvas has another size than its image")
    check_size(*size)
    padded = content + b"\0" * (len(content) % 2)
    body = b"WEBP" + name + struct.pack("<I", len(content)) + padded
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and content of each; the container says where the file ends."""
    (length,) = struct.unpack_from("<I", data, 4)
    end = 8 + length
    if end > len(data):
        raise ImageRefused(DAMAGED)
    if end < len(data):
        raise ImageRefused(TRAILING)
    at = 12
    while at < end:
        if at + 8 > end:
            raise ImageRefused(DAMAGED)
        name, length = struct.unpack_from("<4sI", data, at)
        if at + 8 + length + length % 2 > end:
            raise ImageRefused(DAMAGED)
        yield name, data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2


def _check_flags(content: bytes) -> None:
    if len(content) != 10:
        raise ImageRefused(DAMAGED)
    for flag, why in FLAGS.items():
        if content[0] & flag:
            raise ImageRefused(why)


def _canvas(content: bytes) -> tuple[int, int]:
    width, height = (int.from_bytes(content[i : i + 3], "little") + 1 for i in (4, 7))
    return width, height


def _lossy(content: bytes) -> tuple[int, int]:
    """(width, height) of a VP8 key frame that is shown."""
    if len(content) < 10 or content[0] & 1 or not content[0] & 16 or content[3:6] != START_CODE:
        raise ImageRefused(DAMAGED)
    width, height = struct.unpack_from("<HH", content, 6)
    return width & 0x3FFF, height & 0x3FFF


def _lossless(content: bytes) -> tuple[int, int]:
    """(width, height) of a VP8L image without alpha."""
    if len(content) < 5 or content[0] != 0x2F:
        raise ImageRefused(DAMAGED)
    (bits,) = struct.unpack_from("<I", content, 1)
    if bits >> 28 & 1:
        raise ImageRefused(TRANSPARENT)
    return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
