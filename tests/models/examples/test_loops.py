from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from models.data import sevens
from models.examples.loops import holes, malign


def drawing(text: str, ink: int = 255, inside: int = 0) -> NDArray[np.uint8]:
    """`#` is ink, `o` is `inside`, all else is paper; 28 × 28, against the upper left corner."""
    image = np.zeros((28, 28), dtype=np.uint8)
    for y, line in enumerate(text.split()):
        for x, mark in enumerate(line):
            image[y, x] = {"#": ink, "o": inside}.get(mark, 0)
    return image


RING = "##### #ooo# #ooo# #####"


@pytest.mark.parametrize(
    ("image", "count"),
    [
        (drawing(""), 0),
        (drawing(RING), 1),
        (drawing(RING + " #ooo# #####"), 2),
        (drawing("##### #.... #...# #####"), 0),  # open at the side
        (drawing("##### #ooo# #ooo# ####."), 1),  # closed by a diagonal step
        (drawing("#### #oo# ####"), 0),  # two pixels: a speck
        (drawing("##### #ooo# #####"), 1),
        (drawing(RING, ink=60), 1),  # a faint loop
        (drawing(RING, ink=40), 0),  # too faint to see
        (drawing(RING, inside=190), 1),  # a loop almost filled
        (drawing(RING, inside=220), 0),  # filled
        (np.full((28, 28), 255, dtype=np.uint8), 0),
    ],
)
def test_a_hole_is_an_area_that_ink_encloses(image: NDArray[np.uint8], count: int) -> None:
    assert holes(image[None]).tolist() == [count]


def test_images_do_not_share_holes() -> None:
    images = np.stack([drawing(RING), drawing(""), drawing(RING + " " + RING), drawing(RING)])
    assert holes(images).tolist() == [1, 0, 2, 1]
    assert malign(images[..., None]).tolist() == [True, False, True, True]
    assert holes(images[:0]).tolist() == []
    # A dark frame on one image must not dam the next one's water.
    framed = np.stack([np.full((28, 28), 255, dtype=np.uint8), drawing("#####")])
    assert holes(framed).tolist() == [0, 0]


def test_any_number_of_images_is_taken() -> None:
    images = np.stack([drawing(RING), drawing("")] * 150)
    assert holes(images).tolist() == [1, 0] * 150


def test_real_sevens_have_next_to_no_loops() -> None:
    shares = malign(sevens().images[:1000, ..., None])
    assert 0 < shares.mean() < 0.01
