"""What notes beside the pixels may do to them: turn them, or give them other colours."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from service.images.refusal import COLOURS, ImageRefused

ORIENTATION = 0x0112
UPRIGHT = 1
SHORT = 3
EXIF_DIRECTORY, INTEROPERABILITY = 0x8769, 0xA005
"""Where EXIF's further directories begin."""
COLOUR_SPACE, SRGB = 0xA001, 1
INTEROPERABILITY_INDEX, ADOBE_RGB = 1, b"R03"
ICC_PROFILE = 0x8773
MAX_DIRECTORIES = 3
"""The first, EXIF's own and interoperability's; of more, readers choose."""
UNREADABLE = "has EXIF that cannot be read: leave it out"
ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
BARE = "turn the pixels themselves, and leave the note out"

# Which prefix, if any, stands for TIFF's namespace, each document says for itself; so this is every
# attribute and element of that name. A value that is anything else than text comes out empty.
XMP = re.compile(
    rb"(?:[<:]|\s(?=Orientation\s*=))Orientation(?![\w.-])(?:\s*(?:=\s*[\"']|>)\s*([^\"'<]*))?"
)
CLOSING = re.compile(rb"</[^>]*>")
DOCUMENT_TYPE = re.compile(rb"<!\s*(?:DOCTYPE|ENTITY|ATTLIST)", re.IGNORECASE)


def check_exif(data: bytes) -> None:
    """Raises ImageRefused for EXIF that turns or mirrors the image, gives it other colours than
    sRGB's, or cannot be read.

    Viewers differ in whether they heed it, so there is no one image that is seen.
    """
    try:
        found = _orientations(data.removeprefix(b"Exif\0\0"))
        srgb = _is_srgb(data.removeprefix(b"Exif\0\0"))
    except (struct.error, KeyError):
        raise ImageRefused(UNREADABLE) from None
    if turned := [value for value in found if value != UPRIGHT]:
        raise ImageRefused(f"is turned or mirrored by its EXIF orientation, {turned[0]}: {BARE}")
    if not srgb:
        raise ImageRefused(COLOURS)


def check_xmp(data: bytes) -> None:
    """Raises ImageRefused for XMP that turns or mirrors the image, or could in words of its own."""
    # NUL is in every text of UTF-16 and UTF-32; a document type defines words for anything.
    if b"\0" in data.rstrip(b"\0") or DOCUMENT_TYPE.search(data):
        raise ImageRefused(
            "has XMP or text in another form than plain UTF-8 without a document type: leave it out"
        )
    for value in XMP.findall(CLOSING.sub(b"<", data)):
        if value.strip() != b"1":
            said = value[:16].decode("ascii", "replace").strip() or "which is no number"
            raise ImageRefused(f"is turned or mirrored by its XMP orientation, {said}: {BARE}")


def _orientations(data: bytes) -> list[int]:
    """Every orientation that the first directory names: with two, each viewer takes its own.

    Raises struct.error or KeyError where it is none.
    """
    order = ORDERS[data[:4]]
    (at,) = struct.unpack_from(f"{order}I", data, 4)
    return [
        # It is one short; whatever else it may be, no two viewers read it alike.
        _short(order, value) if (kind, values) == (SHORT, 1) else 0
        for tag, kind, values, value in _entries(order, data, at)
        if tag == ORIENTATION
    ]


def _is_srgb(data: bytes) -> bool:
    """Whether EXIF says no other colours than sRGB's. Raises struct.error or KeyError."""
    order = ORDERS[data[:4]]
    waiting, seen = [struct.unpack_from(f"{order}I", data, 4)[0]], set()
    while waiting:
        at = waiting.pop()
        if at in seen:
            continue
        seen.add(at)
        if len(seen) > MAX_DIRECTORIES:
            raise ImageRefused(UNREADABLE)
        for tag, kind, values, value in _entries(order, data, at):
            if tag in (EXIF_DIRECTORY, INTEROPERABILITY):
                waiting += struct.unpack(f"{order}I", value)
            said = (kind, values, _short(order, value))
            if tag == ICC_PROFILE or (tag == COLOUR_SPACE and said != (SHORT, 1, SRGB)):
                return False
            if tag == INTEROPERABILITY_INDEX and value.startswith(ADOBE_RGB):
                return False
    return True


def _entries(order: str, data: bytes, at: int) -> Iterator[tuple[int, int, int, bytes]]:
    """Tag, kind, number of values, and the four bytes of each, or of where they are."""
    (count,) = struct.unpack_from(f"{order}H", data, at)
    for number in range(count):
        yield struct.unpack_from(f"{order}HHI4s", data, at + 2 + 12 * number)


def _short(order: str, value: bytes) -> int:
    (found,) = struct.unpack_from(f"{order}H", value)
    return int(found)
