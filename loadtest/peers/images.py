"""What both peers share: the request, the judge, and retries until an image is accepted."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from models.bundles import bundle as bundles
from models.rewards.onnx_judge import OnnxJudge
from service.images.encode import to_b64_png

STEPS, MAX_DRAWS, POLICY = 50, 8, "no-crossbar"
REDRAW = 10_000_000
"""Draw j of a seed is made from seed + j · REDRAW."""

Images = Callable[[Sequence[int]], NDArray[np.uint8]]
"""Seeds to images, uint8 [N, H, W, C]."""


class Ask(BaseModel):
    """A request for one image."""

    seed: int


class Judged:
    """Images with retries, under the threshold that Winnow's own policy has."""

    def __init__(self, images: Images) -> None:
        bundle = bundles.load("mnist-sevens")
        self._images = images
        self._judge = OnnxJudge(bundle.path(bundle.manifest.rewards[POLICY].judge))
        entries = bundle.manifest.calibrations[POLICY]
        self._threshold = next(
            entry.threshold
            for entry in entries
            if entry.sampling.method.num_inference_steps == STEPS
        )

    def __call__(self, seeds: Sequence[int]) -> list[str | None]:
        """The accepted image of each seed as base64 PNG; None when no draw was accepted."""
        found: list[str | None] = [None] * len(seeds)
        left = list(range(len(seeds)))
        for draw in range(MAX_DRAWS):
            pixels = self._images([seeds[i] + draw * REDRAW for i in left])
            scores = self._judge.score(pixels)
            for place, i in enumerate(left):
                if scores[place] >= self._threshold:
                    found[i] = base64_png(pixels[place])
            left = [i for i in left if found[i] is None]
            if not left:
                break
        return found


def base64_png(pixels: NDArray[np.uint8]) -> str:
    """As Winnow encodes them."""
    text = to_b64_png(pixels)
    assert base64.b64decode(text)[:4] == b"\x89PNG"
    return text
