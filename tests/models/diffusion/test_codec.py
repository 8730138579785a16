from __future__ import annotations

import numpy as np
import pytest
import torch

from models.diffusion.codec import PixelShuffle, from_uint8


@pytest.mark.parametrize(("factor", "channels"), [(1, 1), (1, 3), (2, 1), (2, 3), (4, 1)])
def test_every_byte_survives_encode_and_decode(factor: int, channels: int) -> None:
    codec = PixelShuffle(factor)
    ramp = np.arange(256, dtype=np.uint8)
    pixels = np.random.default_rng(0).permuted(
        np.tile(ramp, channels).reshape(1, 16, 16, channels), axis=1
    )
    x_0 = codec.encode(from_uint8(pixels))
    assert x_0.shape == (1, channels * factor**2, 16 // factor, 16 // factor)
    back, finite = codec.to_uint8(x_0)
    np.testing.assert_array_equal(back, pixels)
    assert finite.tolist() == [True]


def test_encode_is_a_permutation_so_white_noise_stays_white() -> None:
    image = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).view(2, 3, 4, 4)
    x_0 = PixelShuffle(2).encode(image)
    assert torch.equal(x_0.flatten(1).sort().values, image.flatten(1))
    assert torch.equal(PixelShuffle(2).decode(x_0), image)


def test_values_beyond_the_range_are_clamped() -> None:
    pixels, finite = PixelShuffle().to_uint8(
        torch.tensor([-7.0, -1.0, 0.999, 1.0, 7.0]).view(5, 1, 1, 1)
    )
    assert pixels.ravel().tolist() == [0, 0, 255, 255, 255]
    assert finite.all()


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_a_broken_row_is_flagged_and_spoils_no_other(broken: float) -> None:
    x_0 = torch.zeros(3, 4, 2, 2)
    x_0[1, 3, 1, 1] = broken
    pixels, finite = PixelShuffle(2).to_uint8(x_0)
    assert finite.tolist() == [True, False, True]
    assert (pixels[[0, 2]] == 128).all()
