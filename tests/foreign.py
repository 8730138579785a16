"""Image files of every kind that must not be judged, made by Pillow and by hand."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def grey(height: int, width: int, value: int = 90) -> NDArray[np.uint8]:
    """A grey image [H, W], not quite flat."""
    return np.asarray(value + np.arange(height * width).reshape(height, width) % 3, dtype=np.uint8)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """An image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    crc = zlib.crc32(name + data)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)


def with_chunk(png: bytes, name: bytes, data: bytes) -> bytes:
    """A PNG with another chunk behind its header."""
    return png[:33] + chunk(name, data) + png[33:]


def with_segment(jpeg: bytes, marker: int, data: bytes) -> bytes:
    """A JPEG with another segment at its front."""
    return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data + jpeg[2:]


def exif(*orientations: int, order: str = "<") -> bytes:
    """EXIF with so many orientation tags."""
    entries = b"".join(struct.pack(f"{order}HHIHH", 0x112, 3, 1, one, 0) for one in orientations)
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8)
    return head + struct.pack(f"{order}H", len(orientations)) + entries + bytes(4)


def xmp(orientation: int) -> bytes:
    """XMP that says how an image is turned."""
    return b'<x:xmpmeta><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>' % orientation


TIFF_NAMESPACE = b"http://ns.adobe.com/tiff/1.0/"
TURNING_XMP = {
    "another prefix": b"<x xmlns:q='%s' q:Orientation='6'/>" % TIFF_NAMESPACE,
    "an element": b"<x xmlns:q='%s'><q:Orientation>6</q:Orientation></x>" % TIFF_NAMESPACE,
    "an element without prefix": b"<Orientation xmlns='%s'> 6 </Orientation>" % TIFF_NAMESPACE,
    "an attribute without prefix": b"<x Orientation = '6'/>",
    "a character's number": b"<x xmlns:q='%s' q:Orientation='&#54;'/>" % TIFF_NAMESPACE,
    "CDATA": b"<q:Orientation xmlns:q='%s'><![CDATA[6]]></q:Orientation>" % TIFF_NAMESPACE,
    "a resource": b"<q:Orientation xmlns:q='%s' rdf:resource='6'/>" % TIFF_NAMESPACE,
    "a value inside": b"<q:Orientation><rdf:Description rdf:value='6'/></q:Orientation>",
    "one of two": b"<x tiff:Orientation='1'/><y tiff:Orientation='8'/>",
}
"""XMP that turns an image, by how it says so."""
OPAQUE_XMP = {
    "UTF-16": "<x tiff:Orientation='6'/>".encode("utf-16"),
    "UTF-32": "<x tiff:Orientation='6'/>".encode("utf-32-be"),
    "an entity": b'<!DOCTYPE x [<!ENTITY six "6">]><x tiff:Width="&six;"/>',
    "a document type": b'<!DOCTYPE x SYSTEM "http://evil.example/x.dtd"><x/>',
}
"""XMP that could say anything, in words that not every reader knows."""


def with_xmp(image: Image.Image, text: bytes) -> dict[str, bytes]:
    """The image in each format, with this XMP."""
    packet = b"http://ns.adobe.com/xap/1.0/\0" + text
    webp = saved(image.convert("RGB"), "WEBP", lossless=True, xmp=text)
    return {
        "png": with_chunk(saved(image, "PNG"), b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + text),
        "jpeg": with_segment(saved(image, "JPEG", quality=100), 0xE1, packet),
        "webp": webp,
    }


def colour_exif(
    space: int | None = None, index: bytes = b"", profile: bool = False, order: str = "<"
) -> bytes:
    """EXIF with this colour space, in its own directory, and index of interoperability."""

    def directory(*entries: tuple[int, int, int, bytes]) -> bytes:
        packed = b"".join(struct.pack(f"{order}HHI4s", *entry) for entry in entries)
        return struct.pack(f"{order}H", len(entries)) + packed + bytes(4)

    def number(value: int, form: str = "I") -> bytes:
        return struct.pack(f"{order}{form}", value)

    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + number(8)
    own = 8 + 2 + 12 * (1 + profile) + 4
    first = [(0x8769, 4, 1, number(own)), *[(0x8773, 7, 4, b"icc!")] * profile]
    spaces = [] if space is None else [(0xA001, 3, 1, number(space, "H"))]
    further = own + 2 + 12 * (len(spaces) + bool(index)) + 4
    pointers = [(0xA005, 4, 1, number(further))] if index else []
    body = directory(*first) + directory(*spaces, *pointers)
    return head + body + (directory((1, 2, 4, index)) if index else b"")


def many_directories(count: int) -> bytes:
    """EXIF that leads to so many directories, all of them empty."""
    size = 2 + 12 * count + 4
    entries = b"".join(
        struct.pack("<HHII", 0x8769, 4, 1, 8 + size + 6 * number) for number in range(count)
    )
    return b"II*\0" + struct.pack("<IH", 8, count) + entries + bytes(4) + bytes(6 * count)


def with_header(png: bytes, at: int, value: int) -> bytes:
    """A PNG with another byte in its header."""
    header = bytearray(png[16:29])
    header[at] = value
    return png[:8] + chunk(b"IHDR", bytes(header)) + png[33:]


def interlaced(image: Image.Image) -> bytes:
    """A grey image as an interlaced PNG, which Pillow does not write."""
    pixels, raw = np.asarray(image), b""
    for x, y, across, down in (
        *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
        *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
    ):
        raw += b"".join(b"\0" + row.tobytes() for row in pixels[y::down, x::across] if row.size)
    header = struct.pack(">IIBBBBB", image.width, image.height, 8, 0, 0, 0, 1)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def bad_files(height: int, width: int) -> dict[str, tuple[str, bytes, str]]:
    """By a name of its own: media type, file, and a word of why it must be refused.

    Every one would decode to height × width grey pixels if one did not look.
    """
    image = Image.fromarray(grey(height, width))
    other = Image.fromarray(grey(height, width, 10))
    rgb = image.convert("RGB")
    rgba = rgb.convert("RGBA")
    rgba.putpixel((0, 0), (9, 9, 9, 0))
    png, jpeg, webp = saved(image, "PNG"), saved(image, "JPEG"), saved(rgb, "WEBP", lossless=True)
    sixteen = Image.fromarray(grey(height, width).astype(np.uint16) * 257)
    turned = Image.Exif()
    turned[0x112] = 6
    also = {"save_all": True, "append_images": [other]}
    header = jpeg.index(b"\xff\xc0")
    coded = jpeg.index(b"\xff\xda") + 10
    palette = png_of_palette(height, width)
    found: dict[str, tuple[str, bytes, str]] = {
        "PNG with tRNS": ("png", saved(image, "PNG", transparency=90), "transparency"),
        "PNG with tRNS in colour": ("png", saved(rgb, "PNG", transparency=(1, 2, 3)), "transp"),
        "PNG with an alpha channel": ("png", saved(rgba, "PNG"), "transparency"),
        "PNG with opaque alpha": ("png", saved(rgb.convert("RGBA"), "PNG"), "transparency"),
        "PNG of grey and alpha": ("png", saved(image.convert("LA"), "PNG"), "transparency"),
        "PNG whose palette has alpha": (
            *("png", saved(rgb.quantize(4), "PNG", transparency=bytes(4)), "transparency"),
        ),
        "APNG": ("png", saved(image, "PNG", **also), "animated"),
        "PNG of 16 bits": ("png", saved(sixteen, "PNG"), "16 bits"),
        "PNG of 1 bit": ("png", saved(image.convert("1"), "PNG"), "1 bits"),
        "PNG with a profile": ("png", saved(image, "PNG", icc_profile=PROFILE), "profile"),
        "PNG with a gamma": ("png", with_chunk(png, b"gAMA", struct.pack(">I", 10000)), "profile"),
        "PNG with primaries": ("png", with_chunk(png, b"cHRM", struct.pack(">8I", *range(8))), "p"),
        "PNG in PQ": ("png", with_chunk(png, b"cICP", bytes((9, 16, 0, 1))), "profile"),
        "PNG with EXIF that turns it": ("png", saved(image, "PNG", exif=turned), "orientation, 6"),
        "PNG with XMP that turns it": (
            *("png", with_chunk(png, b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(3)), "XMP"),
        ),
        "PNG with EXIF as text": (
            *("png", with_chunk(png, b"zTXt", b"Raw profile type exif\0\0x"), "as text"),
        ),
        "PNG with a critical chunk": ("png", with_chunk(png, b"CgBI", b""), "nobody knows"),
        "PNG with a new chunk": ("png", with_chunk(png, b"gmAP", b"a gain map"), "nobody knows"),
        "PNG with a wrong checksum": ("png", png[:-14] + b"\0" + png[-13:], "damaged"),
        "PNG with a zip behind it": ("png", png + b"PK\3\4", "more bytes"),
        "PNG with another behind it": ("png", png + saved(other, "PNG"), "more bytes"),
        "PNG of compression 1": ("png", with_header(png, 10, 1), "compression method 1"),
        "PNG of filter 1": ("png", with_header(png, 11, 1), "filter method 1"),
        "PNG of interlace 2": ("png", with_header(png, 12, 2), "interlace method 2"),
        "PNG with four bytes of palette": ("png", palette(bytes([90] * 4)), "palette of 4 bytes"),
        "PNG with an empty palette": ("png", palette(b""), "palette of 0 bytes"),
        "PNG with 257 colours": ("png", palette(bytes([90] * 771)), "of 1 to 256 colours"),
        "PNG of 2 bits with 5 colours": (
            *("png", palette(bytes([90] * 15), depth=2), "of 1 to 4 colours"),
        ),
        "colour PNG with half a palette": (
            *("png", with_chunk(saved(rgb, "PNG"), b"PLTE", bytes(10)), "palette of 10 bytes"),
        ),
        "PNG with XMP as other text": (
            *("png", with_chunk(png, b"tEXt", b"Comment\0" + xmp(3)), "XMP"),
        ),
        "PNG with packed XMP": (
            "png",
            with_chunk(png, b"iTXt", b"xml:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp(3))),
            "compressed",
        ),
        "PNG in Adobe RGB": ("png", with_chunk(png, b"eXIf", colour_exif(2)), "other colours"),
        "PNG cut short": ("png", png[:-20], "damaged"),
        "PNG without its end": ("png", png[:-12], "damaged"),
        "PNG with two headers": ("png", png[:33] + png[8:], "chunks"),
        "JPEG turned by EXIF": ("jpeg", saved(image, "JPEG", exif=turned), "orientation, 6"),
        "JPEG turned by one of two": (
            *("jpeg", with_segment(jpeg, 0xE1, b"Exif\0\0" + exif(1, 3, order=">")), "3"),
        ),
        "JPEG turned by the second EXIF": (
            "jpeg",
            with_segment(
                with_segment(jpeg, 0xE1, b"Exif\0\0" + exif(8)), 0xE1, b"Exif\0\0" + exif(1)
            ),
            "orientation, 8",
        ),
        "JPEG with broken EXIF": ("jpeg", with_segment(jpeg, 0xE1, b"Exif\0\0II*\0"), "cannot be"),
        "JPEG turned by XMP": (
            *("jpeg", with_segment(jpeg, 0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp(6)), "XMP"),
        ),
        "JPEG with a profile": ("jpeg", saved(image, "JPEG", icc_profile=PROFILE), "profile"),
        "JPEG in CMYK": ("jpeg", saved(rgb.convert("CMYK"), "JPEG"), "4 channels"),
        "JPEG of 12 bits": (
            *("jpeg", jpeg[: header + 4] + b"\x0c" + jpeg[header + 5 :], "12 bits"),
        ),
        "arithmetic JPEG": (*("jpeg", jpeg.replace(b"\xff\xc0", b"\xff\xc9", 1), "arithmetic"),),
        "MPO": ("jpeg", saved(rgb, "MPO", **also), "more than one picture"),
        "JPEG with another behind it": ("jpeg", jpeg + saved(other, "JPEG"), "more bytes"),
        "JPEG with a script behind it": ("jpeg", jpeg + b"<script>", "more bytes"),
        "JPEG without coded data": ("jpeg", jpeg[:coded] + b"\xff\xd9", "without coded data"),
        "JPEG of restarts alone": (
            *("jpeg", jpeg[:coded] + b"\xff\xd0\xff\xd1\xff\xd9", "without coded data"),
        ),
        "JPEG in Adobe RGB": (
            *("jpeg", with_segment(jpeg, 0xE1, b"Exif\0\0" + colour_exif(2)), "other colours"),
        ),
        "JPEG without calibration": (
            "jpeg",
            with_segment(jpeg, 0xE1, b"Exif\0\0" + colour_exif(0xFFFF, order=">")),
            "other colours",
        ),
        "JPEG in Adobe RGB, as cameras say it": (
            "jpeg",
            with_segment(jpeg, 0xE1, b"Exif\0\0" + colour_exif(index=b"R03\0")),
            "other colours",
        ),
        "JPEG with a profile in EXIF": (
            "jpeg",
            with_segment(jpeg, 0xE1, b"Exif\0\0" + colour_exif(1, profile=True)),
            "other colours",
        ),
        "JPEG with many directories": (
            *("jpeg", with_segment(jpeg, 0xE1, b"Exif\0\0" + many_directories(3000)), "cannot be"),
        ),
        "JPEG with XMP in parts": (
            "jpeg",
            with_segment(jpeg, 0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(40)),
            "several parts",
        ),
        "JPEG with another note": ("jpeg", with_segment(jpeg, 0xE1, b"what?"), "neither EXIF"),
        "JPEG cut short": ("jpeg", jpeg[: len(jpeg) // 2], "damaged"),
        "JPEG without its end": ("jpeg", jpeg[:-2], "damaged"),
        "animated WebP": ("webp", saved(rgb, "WEBP", lossless=True, **also), "animated"),
        "WebP with alpha": ("webp", saved(rgba, "WEBP"), "transparency"),
        "lossless WebP with alpha": ("webp", saved(rgba, "WEBP", lossless=True), "transparency"),
        "WebP with a profile": ("webp", saved(rgb, "WEBP", icc_profile=PROFILE), "profile"),
        "WebP turned by EXIF": ("webp", saved(rgb, "WEBP", exif=turned), "orientation, 6"),
        "WebP in Adobe RGB": (
            *("webp", saved(rgb, "WEBP", lossless=True, exif=colour_exif(2)), "other colours"),
        ),
        "WebP with bytes behind it": ("webp", webp + b"more", "more bytes"),
        "WebP cut short": ("webp", webp[:-8], "damaged"),
        "GIF": ("gif", saved(image, "GIF"), "is a GIF"),
        "animated GIF": ("gif", saved(image, "GIF", **also), "is a GIF"),
        "GIF that says it is a PNG": ("png", saved(image, "GIF"), "is a GIF"),
        "TIFF": ("tiff", saved(image, "TIFF"), "is a TIFF"),
        "BMP": ("bmp", saved(image, "BMP"), "is a BMP"),
        "AVIF": ("avif", saved(rgb, "AVIF"), "is an AVIF"),
        "JPEG 2000": ("jp2", saved(image, "JPEG2000"), "is a JPEG 2000"),
        "SVG": ("svg+xml", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is an SVG"),
        "PNG that says it is a JPEG": ("jpeg", png, "says that it is image/jpeg"),
        "nothing": ("png", b"", "does not decode"),
        "a colour image for a grey model": (
            *("png", saved(Image.new("RGB", (width, height), (90, 20, 90)), "PNG"), "in colour"),
        ),
    }
    notes = [(how, text, "XMP orientation") for how, text in TURNING_XMP.items()]
    notes += [(how, text, "plain UTF-8") for how, text in OPAQUE_XMP.items()]
    for how, text, why in notes:
        for kind, data in with_xmp(image, text).items():
            found[f"{kind} with XMP, {how}"] = (kind, data, why)
    return found


def png_of_palette(height: int, width: int) -> Callable[..., bytes]:
    """Makes a PNG whose every pixel has the first colour of a palette."""

    def made(colours: bytes, depth: int = 8) -> bytes:
        header = struct.pack(">IIBBBBB", width, height, depth, 3, 0, 0, 0)
        raw = bytes((1 + -(-width * depth // 8)) * height)
        parts = chunk(b"IHDR", header) + chunk(b"PLTE", colours)
        parts += chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + parts

    return made


def good_files(height: int, width: int) -> dict[str, tuple[str, bytes]]:
    """By a name of its own: media type and file, of the same grey pixels."""
    image = Image.fromarray(grey(height, width))
    rgb = image.convert("RGB")
    png, jpeg = saved(image, "PNG"), saved(image, "JPEG", quality=100)
    upright = Image.Exif()
    upright[0x112] = 1
    build: Callable[..., bytes] = saved
    return {
        "PNG": ("png", png),
        "PNG in three channels": ("png", build(rgb, "PNG")),
        "interlaced PNG": ("png", interlaced(image)),
        "PNG with a palette": ("png", build(rgb.quantize(16), "PNG")),
        "PNG that says sRGB": (
            "png",
            with_chunk(with_chunk(png, b"gAMA", struct.pack(">I", 45455)), b"sRGB", b"\0"),
        ),
        "PNG with EXIF, upright": ("png", build(image, "PNG", exif=upright)),
        "PNG with a bomb of text": (
            "png",
            with_chunk(png, b"zTXt", b"Comment\0\0" + zlib.compress(bytes(10**7))),
        ),
        "JPEG": ("jpeg", jpeg),
        "progressive JPEG": ("jpeg", build(rgb, "JPEG", quality=100, progressive=True)),
        "JPEG with EXIF, upright": (
            *("jpeg", with_segment(jpeg, 0xE1, b"Exif\0\0" + exif(1, order=">"))),
        ),
        "JPEG that says sRGB": (
            "jpeg",
            with_segment(jpeg, 0xE1, b"Exif\0\0" + colour_exif(1, index=b"R98\0", order=">")),
        ),
        **{
            f"{kind} with XMP, upright": (kind, data)
            for kind, data in with_xmp(
                image,
                b"<x q:Orientation='1' dc:title='Orientation of X'/>"
                b"<q:Orientation>1</q:Orientation>\0",
            ).items()
        },
        "JPEG with a comment": ("jpeg", with_segment(jpeg, 0xFE, b"a comment")),
        "lossless WebP": ("webp", build(rgb, "WEBP", lossless=True)),
        "WebP": ("webp", build(rgb, "WEBP", quality=100)),
        "WebP with EXIF, upright": ("webp", build(rgb, "WEBP", lossless=True, exif=upright)),
    }
