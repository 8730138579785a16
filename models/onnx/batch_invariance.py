"""Batch invariance of an imported network: is an image's result the same alone and in a batch?

Serving tries judges too, so this needs neither torch nor onnx.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

TRIAL = 7
"""Images of the trial: an odd number, so that no batch that a file insists on is met by chance."""

FLAT = 2
"""So many of them, the first, are of one colour. What a network says of those alone is no sign that
it tells pictures apart."""


class TrialError(ValueError):
    """What was tried does not do what it is for; the message says what it did."""


def trial(image: tuple[int, int, int]) -> NDArray[np.uint8]:
    """TRIAL images [TRIAL, H, W, C]: black, white, coarse patches, noise twice, a slope, a disc."""
    rng = np.random.default_rng(0)
    height, width, channels = image
    images = rng.integers(0, 256, (TRIAL, *image)).astype(np.uint8)
    images[0], images[1] = 0, 255
    patches = rng.integers(0, 256, (-(-height // 8), -(-width // 8), channels)).astype(np.uint8)
    images[2] = patches.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j][..., None]
    images[5] = 255 * columns * np.linspace(1, 0.4, channels)
    inside = (rows - 0.5) ** 2 + (columns - 0.5) ** 2 < 0.1
    images[6] = np.where(inside, np.linspace(230, 150, channels), 40)
    return images


def run_rows(
    run: Callable[[NDArray[np.uint8]], NDArray[Any]],
    pixels: NDArray[np.uint8],
    tolerance: float = 1e-4,
) -> NDArray[Any]:
    """What `run` gives for all of `pixels` [N, H, W, C] at once, [N, ...], if each alone, and all
    in another order, give the same within `tolerance`, relative above 1.

    Raises TrialError: a row must not depend on what else is in its batch, nor on how many are; and
    whatever `run` raises.
    """
    together = run(pixels)
    turned = run(pixels[::-1])[::-1]
    alone = [run(pixels[i : i + 1]) for i in range(len(pixels))]
    shapes = {np.shape(one) for one in alone}
    row = np.shape(together)[1:]
    if np.shape(together) != (len(pixels), *row) or shapes != {(1, *row)}:
        raise TrialError(
            f"gives {list(np.shape(together))} for {len(pixels)} images and "
            f"{list(max(shapes))} for one: it must give one row an image"
        )
    if not np.isfinite(together).all():
        raise TrialError("gives numbers that are not finite for a trial of images")
    single = np.concatenate(alone)
    limit = tolerance * max(1.0, float(np.abs(single).max(initial=0)))
    difference = max(float(np.abs(found - single).max()) for found in (together, turned))
    if not difference <= limit:
        raise TrialError(
            f"an image's numbers change by {difference:.2g} with what else is in its batch: export "
            "the network in evaluation mode (`network.eval()`)"
        )
    return together
