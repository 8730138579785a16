"""Images as callers send them, whole and malicious."""

from __future__ import annotations

import base64
import struct
import zlib


def data_url(data: bytes, kind: str = "png") -> str:
    """An image file as a URL."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _chunk(name: bytes, data: bytes) -> bytes:
    crc = zlib.crc32(name + data)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and holds next to nothing."""
    size = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = _chunk(b"IHDR", size) + _chunk(b"IDAT", zlib.compress(bytes(10))) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
