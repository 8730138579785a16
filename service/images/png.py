"""PNG: its chunks, and which of them may stand there."""

from __future__ import annotations

import struct
import zlib
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

MAGIC = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE = 0, 2, 3
ALPHA = (4, 6)
ADAM7 = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
"""Of each pass of an interlaced image: its first column and row, and every how many follow."""

SAYS_SRGB = {
    b"gAMA": struct.pack(">I", 45455),
    b"cHRM": struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000),
    b"cICP": bytes((1, 13, 0, 1)),
}
"""Chunks about colour, with the one content that means sRGB."""

REFUSED = {
    b"tRNS": TRANSPARENT,
    b"acTL": ANIMATED,
    b"fcTL": ANIMATED,
    b"fdAT": ANIMATED,
    b"iCCP": PROFILE,
    b"mDCV": "is meant for a display of high dynamic range: convert it to sRGB",
    b"cLLI": "is meant for a display of high dynamic range: convert it to sRGB",
}
MAKE_PIXELS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
HARMLESS = (
    *(b"sRGB", b"sBIT", b"bKGD", b"hIST", b"pHYs", b"sPLT", b"tIME", b"oFFs", b"sCAL", b"pCAL"),
    *(b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"caBX", b"iDOT", b"vpAg"),
)
"""Notes that change no pixel of an opaque image. They are dropped, compressed ones unread."""


def strip_metadata(data: bytes, check_size: CheckSize) -> bytes:
    """The file with nothing but its pixels. Raises ImageRefused, also where `check_size` does."""
    chunks = list(_chunks(data))
    names = [name for name, _ in chunks]
    if names[0] != b"IHDR" or len(chunks[0][1]) != 13:
        raise ImageRefused(DAMAGED)
    width, height, depth, colour, *methods = struct.unpack(">IIBBBBB", chunks[0][1])
    _check_colour(depth, colour)
    _check_methods(*methods)
    check_size(width, height)
    for name, content in chunks:
        _check_chunk(name, content)
        if name == b"PLTE":
            _check_palette(len(content), depth if colour == PALETTE else 8)
    pixels = [name for name in names if name in MAKE_PIXELS]
    many = pixels.count(b"IDAT")
    palettes = pixels.count(b"PLTE")
    wanted = [b"IHDR", *[b"PLTE"] * palettes, *[b"IDAT"] * many, b"IEND"]
    first = names.index(b"IDAT") if many else 0
    if (
        pixels != wanted
        or not many
        or palettes > (colour != GREY)
        or (colour == PALETTE and not palettes)
        or names[first : first + many] != [b"IDAT"] * many
    ):
        raise ImageRefused(f"{DAMAGED}; its chunks are not those of a PNG")
    bits = depth * (3 if colour == RGB else 1)
    _check_whole(
        b"".join(content for name, content in chunks if name == b"IDAT"),
        sum(
            rows * (1 + -(-columns * bits // 8))
            for columns, rows in _passes(width, height, methods[-1])
            if columns and rows
        ),
    )
    core = b"".join(_packed(name, content) for name, content in chunks if name in MAKE_PIXELS)
    return MAGIC + core


def _passes(width: int, height: int, interlace: int) -> list[tuple[int, int]]:
    """Columns and rows of each pass; without interlace there is one."""
    if not interlace:
        return [(width, height)]
    return [(-(-(width - x) // across), -(-(height - y) // down)) for x, y, across, down in ADAM7]


def _check_whole(packed: bytes, size: int) -> None:
    """Raises ImageRefused unless this unpacks to exactly so many bytes: decoders fill a gap."""
    inflate = zlib.decompressobj()
    try:
        raw = inflate.decompress(packed, size + 1)
    except zlib.error:
        raise ImageRefused(DAMAGED) from None
    if len(raw) != size or not inflate.eof or inflate.unused_data:
        raise ImageRefused(DAMAGED)


def _check_colour(depth: int, colour: int) -> None:
    if colour in ALPHA:
        raise ImageRefused(TRANSPARENT)
    # A palette's colours have 8 bits, however few its indices have.
    if depth != 8 and not (colour == PALETTE and depth in (1, 2, 4)):
        raise ImageRefused(f"has {depth} bits a channel: send 8")
    if colour not in (GREY, RGB, PALETTE):
        raise ImageRefused(DAMAGED)


def _check_methods(compression: int, filters: int, interlace: int) -> None:
    """Raises ImageRefused for what viewers refuse, or read as if it were not said."""
    if compression:
        raise ImageRefused(f"has compression method {compression}: PNG knows 0 alone")
    if filters:
        raise ImageRefused(f"has filter method {filters}: PNG knows 0 alone")
    if interlace > 1:
        raise ImageRefused(f"has interlace method {interlace}: PNG knows 0 and 1")


def _check_palette(size: int, depth: int) -> None:
    if size % 3 or not 0 < size <= 3 * 2**depth:
        raise ImageRefused(
            f"has a palette of {size} bytes: it must be 3 a colour, of 1 to {2**depth} colours"
        )


def _check_chunk(name: bytes, content: bytes) -> None:
    if name in REFUSED:
        raise ImageRefused(f"{REFUSED[name]} (chunk {name.decode()})")
    if name in SAYS_SRGB:
        if content != SAYS_SRGB[name]:
            raise ImageRefused(f"{PROFILE} (chunk {name.decode()})")
    elif name not in MAKE_PIXELS and name not in HARMLESS:
        said = name.decode("ascii", "backslashreplace")
        raise ImageRefused(f"has a chunk {said!r}, which nobody knows here: leave it out")
    if name == b"eXIf":
        check_exif(content)
    elif name in (b"tEXt", b"zTXt", b"iTXt"):
        _check_text(name, content)


def _check_text(name: bytes, content: bytes) -> None:
    keyword, _, text = content.partition(b"\0")
    if keyword.lower().startswith(b"raw profile type"):
        raise ImageRefused("has EXIF or a profile as text: leave it out")
    if name == b"zTXt" or (name == b"iTXt" and text[:1] != b"\0"):
        if keyword.lower() == b"xml:com.adobe.xmp":
            raise ImageRefused("has XMP that is compressed: leave it out")
        return
    # Behind two bytes about compression stand a language and a keyword in it.
    check_xmp(text[2:].split(b"\0", 2)[-1] if name == b"iTXt" else text)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and content of each, up to IEND, which ends the file."""
    at = len(MAGIC)
    name = b""
    while name != b"IEND":
        if at + 12 > len(data):
            raise ImageRefused(DAMAGED)
        length, name = struct.unpack_from(">I4s", data, at)
        content = data[at + 8 : at + 8 + length]
        end = at + 12 + length
        if end > len(data) or data[end - 4 : end] != _crc(name, content):
            raise ImageRefused(DAMAGED)
        yield name, content
        at = end
    if content:
        raise ImageRefused(DAMAGED)
    if at != len(data):
        raise ImageRefused(TRAILING)


def _packed(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", len(content), name) + content + _crc(name, content)


def _crc(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(content, zlib.crc32(name)))
