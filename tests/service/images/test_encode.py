from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from service.errors import InvalidValue
from service.images.encode import from_b64, from_data_url, to_b64_png, to_png
from service.images.strict_decoder import METADATA_BYTES
from tests.pictures import data_url, png_header


def _pixels(channels: int) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (4, 6, channels), dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_png_is_lossless_so_what_was_judged_is_what_arrives(channels: int) -> None:
    pixels = _pixels(channels)
    with Image.open(io.BytesIO(to_png(pixels))) as image:
        assert image.size == (6, 4)
        np.testing.assert_array_equal(np.asarray(image).reshape(pixels.shape), pixels)
    url = f"data:image/png;base64,{to_b64_png(pixels)}"
    np.testing.assert_array_equal(from_data_url(url, 4, 6, channels, "input"), pixels)


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        (data_url(to_png(_pixels(1)[:, :5])), "is 5x4, must be 6x4"),
        (data_url(b"not an image"), "does not decode"),
        (data_url(to_png(_pixels(1))[:-30]), "does not decode"),
        (data_url(png_header(6, 4)), "does not decode"),
        ("data:image/png;base64,%%%", "does not decode"),
        ("data:image/png;base64,", "does not decode"),
        ("https://example.com/a.png", "must be a data URL"),
        ("data:text/plain;base64,AAAA", "must be a data URL"),
        ("", "must be a data URL"),
        # Three sizes of decompression bomb: unnoticed by Pillow, warned of, and refused by it.
        (data_url(png_header(8_000, 8_000)), "is 8000x8000"),
        (data_url(png_header(12_000, 12_000)), "is 12000x12000|does not decode"),
        (data_url(png_header(60_000, 60_000)), "does not decode|60000x60000"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_not_an_image_of_this_size_is_refused(url: str, complaint: str) -> None:
    with pytest.raises(InvalidValue, match=complaint) as refusal:
        from_data_url(url, 4, 6, 1, "input.0.image_url.url")
    assert refusal.value.param == "input.0.image_url.url"


def test_formats_that_run_programs_are_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow hands EPS to Ghostscript."""

    def ghostscript(*_: object, **__: object) -> None:
        pytest.fail("an upload reached Ghostscript")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", ghostscript)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(InvalidValue, match="does not decode"):
        from_data_url(data_url(eps, "x-eps"), 4, 6, 1, "input")


@pytest.mark.parametrize(
    ("head", "change"),
    [
        ("data:image/png;base64,", lambda text: text + "\n"),
        ("data:image/png;base64,", lambda text: text[:8] + " " + text[8:]),
        ("data:image/png;base64,", lambda text: text + "===="),
        ("data:image/png;base64,", lambda text: text + "AAAA"),
        ("data:image/png;base64,", lambda text: text.replace("=", "")[:-1]),
        ("data:image/png;base64,", lambda text: text.replace("/", "_").replace("+", "-")),
        ("data:image/png;base64,", lambda text: text[:-2] + "é="),
        ("data:image/png;charset=utf-8;base64,", str),
        ("data:image/png,", str),
        ("data:;base64,", str),
        ("data:image/jpeg;base64,", str),
        ("data:image/*;base64,", str),
        (" data:image/png;base64,", str),
        ("blob:image/png;base64,", str),
    ],
)
def test_a_data_url_has_one_spelling(head: str, change: Callable[[str], str]) -> None:
    text = to_b64_png(_pixels(1))
    assert set("+/") & set(text), "else the other alphabet is not tried"
    from_data_url(f"DATA:image/PNG;base64,{text}", 4, 6, 1, "input")
    with pytest.raises(
        InvalidValue, match=r"data URL|base64|says that it is|more bytes"
    ) as refusal:
        from_data_url(head + change(text), 4, 6, 1, "input")
    assert refusal.value.param == "input"


def test_bits_that_no_byte_has_are_no_second_spelling() -> None:
    from_b64("AA==")
    with pytest.raises(ValueError, match="base64"):
        from_b64("AB==")


def test_a_file_far_larger_than_its_image_is_refused_unread() -> None:
    padded = data_url(to_png(_pixels(1)) + bytes(2 * METADATA_BYTES))
    with pytest.raises(InvalidValue, match="characters of base64, the limit is"):
        from_data_url(padded, 4, 6, 1, "input")


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_the_usual_formats_are_read(kind: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 6), 200, np.uint8)).save(buffer, format=kind)
    pixels = from_data_url(data_url(buffer.getvalue(), kind), 4, 6, 1, "input")
    assert np.abs(pixels.astype(int) - 200).max() <= 3
