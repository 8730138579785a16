"""Images that a person looked at: they tell how often annotator and oracle are wrong on
generated sevens, which no data set labels.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

SIDE = 10
ZOOM = 3
PLAIN, CROSSED, UNSURE = 0, 1, 2


@dataclass(frozen=True)
class Viewed:
    """`pixels` uint8 [N, H, W, 1] and what the person saw, uint8 [N]: PLAIN, CROSSED or UNSURE.

    `source` says which backbone and seeds drew them.
    """

    pixels: NDArray[np.uint8]
    answers: NDArray[np.uint8]
    source: dict[str, str]

    def error(self, crossed: NDArray[np.bool_]) -> dict[str, Any]:
        """How a referee's answers [N] compare with the person's, where the person was sure."""
        sure = self.answers != UNSURE
        truth = self.answers == CROSSED
        wrong = sure & (crossed != truth)
        return {
            "viewed": len(self.answers),
            "unsure": int((~sure).sum()),
            "crossed": int(truth.sum()),
            "errors": int(wrong.sum()),
            "error_rate": float(wrong.sum() / max(1, sure.sum())),
            "wrong": [int(i) for i in np.flatnonzero(wrong)],
        }


def sha256(pixels: NDArray[np.uint8]) -> str:
    """Names a set of images, so that labels of another set are not taken for theirs."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def grids(pixels: NDArray[np.uint8]) -> list[Image.Image]:
    """10 × 10 sheets of pixels [N, H, W, 1], enlarged, with the index of each image over it."""
    _, height, width, _ = pixels.shape
    step_x, step_y = width * ZOOM + 4, height * ZOOM + 14
    sheets = []
    for start in range(0, len(pixels), SIDE * SIDE):
        sheet = Image.new("L", (SIDE * step_x, SIDE * step_y), 60)
        draw = ImageDraw.Draw(sheet)
        for i, image in enumerate(pixels[start : start + SIDE * SIDE]):
            x, y = i % SIDE * step_x, i // SIDE * step_y
            draw.text((x + 2, y + 1), str(start + i), fill=255)
            large = Image.fromarray(image[..., 0]).resize((width * ZOOM, height * ZOOM))
            sheet.paste(large, (x + 2, y + 12))
        sheets.append(sheet)
    return sheets


def read_answers(path: Path, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Answers [N] from a person's JSON: `{"images_sha256", "crossed": [...], "unsure": [...]}`.

    Indices count from 0; what is not listed is plain. Raises ValueError when the file is of other
    images or names an index that there is not.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        listed = {CROSSED: found["crossed"], UNSURE: found.get("unsure", [])}
        named = found["images_sha256"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path}: wants {{"images_sha256": "…", "crossed": [indices], "unsure": [indices]}} '
            f"({error})"
        ) from None
    if named != sha256(pixels):
        raise ValueError(f"{path}: these answers are about other images: look at the new ones")
    answers = np.full(len(pixels), PLAIN, dtype=np.uint8)
    for answer, indices in listed.items():
        for index in indices:
            if not isinstance(index, int) or not 0 <= index < len(pixels):
                raise ValueError(f"{path}: {index!r} is not an index from 0 to {len(pixels) - 1}")
            answers[index] = answer
    return answers


def save_viewed(viewed: Viewed, path: Path) -> None:
    """Write safetensors: `images`, `answers`, and the source in the metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"images": viewed.pixels, "answers": viewed.answers}, path, metadata=viewed.source)


def load_viewed(path: Path) -> Viewed:
    """Read what `save_viewed` wrote."""
    with safe_open(path, framework="np") as file:
        source = dict(file.metadata() or {})
    tensors = load_file(path)
    return Viewed(tensors["images"], tensors["answers"], source)
