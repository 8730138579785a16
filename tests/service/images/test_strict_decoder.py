"""What is judged is what is seen: one still, opaque, upright image in sRGB, or a refusal."""

from __future__ import annotations

import random
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from service.images import ImageRefused, decode
from service.images.encode import from_png, to_png
from tests.foreign import PROFILE, bad_files, chunk, good_files, grey, saved, with_chunk

HEIGHT, WIDTH = 8, 12
BAD = bad_files(HEIGHT, WIDTH)
GOOD = good_files(HEIGHT, WIDTH)
SHAPE = (HEIGHT, WIDTH, 1)


@pytest.mark.parametrize("name", BAD)
def test_what_a_viewer_might_show_otherwise_is_refused_by_name(name: str) -> None:
    kind, data, why = BAD[name]
    with pytest.raises(ImageRefused, match=why):
        decode(data, SHAPE, media_type=f"image/{kind}")


@pytest.mark.parametrize("name", GOOD)
def test_what_every_viewer_shows_alike_is_decoded(name: str) -> None:
    kind, data = GOOD[name]
    for shape in (SHAPE, (HEIGHT, WIDTH, 3)):
        pixels = decode(data, shape, media_type=f"image/{kind}")
        assert pixels.shape == shape
        assert pixels.dtype == np.uint8
        assert np.abs(pixels.astype(int) - grey(HEIGHT, WIDTH)[..., None]).max() <= 2


def test_only_what_makes_pixels_reaches_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text and profiles are packed, and may unpack to anything."""
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_CHUNK", 10)
    monkeypatch.setattr(PngImagePlugin.PngStream, "chunk_zTXt", lambda *_: pytest.fail("read"))
    _, data = GOOD["PNG with a bomb of text"]
    decode(data, SHAPE)


def test_a_size_is_refused_before_anything_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    for data in (_png(20_000, 20_000), _png(2**31 - 1, 2**31 - 1)):
        with pytest.raises(ImageRefused, match=r"must be 12x8"):
            decode(data, SHAPE)
        with pytest.raises(ImageRefused, match="the limit is 16777216 pixels"):
            decode(data)
    with pytest.raises(ImageRefused, match="bytes, the limit is"):
        decode(saved(Image.fromarray(grey(HEIGHT, WIDTH)), "PNG") + bytes(10**6), SHAPE)


@pytest.mark.parametrize("rows", [HEIGHT - 1, 0, HEIGHT + 1, 10**6])
def test_a_png_with_another_number_of_rows_is_refused(rows: int) -> None:
    """Decoders fill a gap with black, or pass over the rest."""
    with pytest.raises(ImageRefused, match="cut short"):
        decode(_png(WIDTH, HEIGHT, bytes(rows * (WIDTH + 1))), SHAPE)


def test_a_colour_that_the_palette_lacks_is_refused() -> None:
    """Viewers show black, or nothing, or refuse it themselves."""
    raw = (b"\0" + bytes([5] * WIDTH)) * HEIGHT
    data = _png(WIDTH, HEIGHT, raw, colour=3, palette=bytes(6))
    with pytest.raises(ImageRefused, match="palette"):
        decode(data, SHAPE)


def test_a_canary_is_as_strict_and_any_png_is_read_as_it_is_seen() -> None:
    palette = Image.fromarray(np.full((4, 4, 3), 200, np.uint8)).quantize(4)
    assert (from_png(saved(palette, "PNG")) == 200).all(), "not its indices"
    for data in (
        saved(palette, "JPEG" if palette.mode == "L" else "GIF"),
        saved(palette, "PNG", icc_profile=PROFILE),
        to_png(np.zeros((4, 4, 1), np.uint8)) + b"more",
    ):
        with pytest.raises(ImageRefused):
            from_png(data)


def test_no_damage_ends_in_anything_but_pixels_or_a_refusal() -> None:
    rng = random.Random(0)
    files = [data for _, data in GOOD.values() if len(data) < 5000]
    for _ in range(3000):
        data = bytearray(rng.choice(files))
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data))
            data[at : at + rng.randint(0, 3)] = rng.randbytes(rng.randint(0, 3))
        with suppress(ImageRefused):
            assert decode(bytes(data), SHAPE).shape == SHAPE


def test_a_chunk_of_a_gamma_that_is_srgb_changes_nothing() -> None:
    png = to_png(grey(HEIGHT, WIDTH)[..., None])
    srgb = with_chunk(png, b"gAMA", struct.pack(">I", 45455))
    assert (decode(srgb, SHAPE) == decode(png, SHAPE)).all()


def _png(
    width: int, height: int, raw: bytes = bytes(10), colour: int = 0, palette: bytes = b""
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    colours = chunk(b"PLTE", palette) if palette else b""
    pixels = chunk(b"IDAT", zlib.compress(raw))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + colours + pixels + chunk(b"IEND", b"")
