"""JPEG: its segments, and which of them may stand there."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from service.images.metadata import check_exif, check_xmp
from service.images.refusal import DAMAGED, PROFILE, TRAILING, CheckSize, ImageRefused

MAGIC = b"\xff\xd8\xff"
SOI, EOI, SOS = 0xD8, 0xD9, 0xDA
APP0, APP1, APP2, APP14 = 0xE0, 0xE1, 0xE2, 0xEE
FRAMES = (0xC0, 0xC1, 0xC2)
"""Baseline, extended and progressive: what every viewer shows."""
OTHER_FRAMES = {*range(0xC3, 0xD0)} - {0xC4, 0xC8, 0xCC}
TABLES = (0xC4, 0xDB, 0xDD)
NOTES = (*range(0xE0, 0xF0), 0xFE)
MAX_SCANS = 32
"""Of a progressive image; an encoder makes ten."""

XMP, XMP_PARTS = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"

NEXT = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
"""The marker that ends a scan: neither a stuffed byte nor a restart."""
RESTART = re.compile(rb"\xff[\xd0-\xd7]")


def strip_metadata(data: bytes, check_size: CheckSize) -> bytes:
    """The file with nothing but its pixels. Raises ImageRefused, also where `check_size` does."""
    core, size, scans = [MAGIC[:2]], None, 0
    for marker, content, scan in _segments(data):
        if marker in FRAMES:
            if size is not None:
                raise ImageRefused(f"{DAMAGED}; it has two frames")
            size = _size(content)
        elif marker == SOS:
            scans += 1
            if size is None or scans > MAX_SCANS:
                raise ImageRefused(f"{DAMAGED}; its scans are not those of one image")
            if not RESTART.sub(b"", scan):
                raise ImageRefused(f"{DAMAGED}; it has a scan without coded data")
        elif marker in NOTES:
            _check_note(marker, content)
        elif marker not in TABLES:
            raise ImageRefused(
                "is a lossless, arithmetic or hierarchical JPEG, which most viewers do not show"
                if marker in OTHER_FRAMES or marker == 0xCC
                else f"{DAMAGED}; it has a marker {marker:#x}"
            )
        if marker not in NOTES or _says_colours(marker, content):
            core.append(struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content + scan)
    if size is None or not scans:
        raise ImageRefused(DAMAGED)
    check_size(*size)
    return b"".join([*core, bytes((0xFF, EOI))])


def _segments(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Marker, content and, of a scan, the coded data behind it; up to EOI, which ends the file."""
    at = 2
    while True:
        if data[at : at + 1] != b"\xff":
            raise ImageRefused(DAMAGED)
        while data[at : at + 1] == b"\xff":
            at += 1
        marker = data[at] if at < len(data) else 0
        at += 1
        if marker == EOI:
            break
        if marker in (0, 1, SOI) or 0xD0 <= marker <= 0xD7:  # those have no length
            raise ImageRefused(DAMAGED)
        if at + 2 > len(data):
            raise ImageRefused(DAMAGED)
        (length,) = struct.unpack_from(">H", data, at)
        content = data[at + 2 : at + length]
        if length < 2 or at + length > len(data):
            raise ImageRefused(DAMAGED)
        at += length
        begins = at
        if marker == SOS:
            found = NEXT.search(data, at)
            if found is None:
                raise ImageRefused(DAMAGED)
            at = found.start()
        yield marker, content, data[begins:at]
    if at != len(data):
        raise ImageRefused(TRAILING)


def _size(frame: bytes) -> tuple[int, int]:
    """(width, height) of a frame of 8 bits a channel, grey or of three channels."""
    if len(frame) < 6:
        raise ImageRefused(DAMAGED)
    precision, height, width, channels = struct.unpack_from(">BHHB", frame)
    if precision != 8:
        raise ImageRefused(f"has {precision} bits a channel: send 8")
    if channels not in (1, 3):
        raise ImageRefused(
            f"has {channels} channels (CMYK, or YCCK): what is seen depends on the viewer, so "
            "convert it to sRGB"
        )
    if not (width and height):
        raise ImageRefused(DAMAGED)
    return width, height


def _check_note(marker: int, content: bytes) -> None:
    if marker == APP1 and content.startswith(b"Exif\0"):
        check_exif(content)
    elif marker == APP1 and content.startswith(XMP_PARTS):
        raise ImageRefused("has XMP in several parts: leave it out")
    elif marker == APP1 and content.startswith(XMP):
        check_xmp(content.removeprefix(XMP))
    elif marker == APP1:
        raise ImageRefused("has an APP1 segment that is neither EXIF nor XMP: leave it out")
    elif marker == APP2 and content.startswith(b"ICC_PROFILE\0"):
        raise ImageRefused(PROFILE)
    elif marker == APP2 and content.startswith(b"MPF\0"):
        raise ImageRefused("holds more than one picture (MPO, or a gain map): send one alone")


def _says_colours(marker: int, content: bytes) -> bool:
    """Whether a note tells decoders what its channels are."""
    return (marker == APP0 and content.startswith(b"JFIF\0")) or (
        marker == APP14 and content.startswith(b"Adobe")
    )
