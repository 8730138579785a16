from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from service.encode import from_data_url, to_b64_png, to_png
from service.errors import InvalidValue
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
        (data_url(to_png(_pixels(1)[:, :5])), "is 5x4, this judge scores 6x4"),
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


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif"])
def test_the_usual_formats_are_read(kind: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 6), 200, np.uint8)).save(buffer, format=kind)
    pixels = from_data_url(data_url(buffer.getvalue(), kind), 4, 6, 1, "input")
    assert np.abs(pixels.astype(int) - 200).max() <= 3
