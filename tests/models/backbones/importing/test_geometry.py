"""Which sizes a model is imported with."""

from __future__ import annotations

import pytest

from models.backbones.importing.geometry import BUCKETS, Geometry, geometry
from models.backbones.importing.source import CannotImport

XL = geometry(
    {"block_out_channels": [320, 640, 1280]}, {"block_out_channels": [128, 256, 512, 512]}, 1
)


def test_a_latent_model_of_a_megapixel_gets_the_usual_sizes_its_own_first() -> None:
    assert Geometry(factor=8, multiple=32) == XL
    assert XL.sizes(None, 128, latent=True) == list(BUCKETS)
    assert BUCKETS[0] == (1024, 1024)
    assert {(height, width) for width, height in BUCKETS} == set(BUCKETS)
    # One that needs larger multiples gets those that it can draw.
    assert Geometry(8, 512).sizes(None, 128, latent=True) == [
        (1024, 1024), (1024, 1536), (1536, 1024),
    ]  # fmt: skip


def test_any_other_has_its_own_size_alone_unless_more_are_asked_for() -> None:
    assert XL.sizes(None, 64, latent=True) == [(512, 512)]
    assert XL.sizes(None, 128, latent=False) == [(1024, 1024)]
    assert XL.sizes("1024x1024", 128, latent=True) == [(1024, 1024)]
    assert XL.sizes("768x512, 512x768", 128, latent=True) == [(768, 512), (512, 768)]
    with pytest.raises(CannotImport, match="500x512: this model needs multiples of 32"):
        XL.sizes("512x512,500x512", 128, latent=True)
