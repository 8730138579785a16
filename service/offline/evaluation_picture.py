"""The evaluation picture: the same seeds before and after, malign images framed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from service.offline.evaluation_table import Malign
from service.offline.survey import Survey

COLUMNS, ROWS, SCALE, GAP, MARGIN, TITLE = 10, 6, 2, 8, 24, 56
PAPER, INK, MALIGN, EMPTY = "#ffffff", "#1c1f24", "#d92d20", "#e4e7ec"
SIZE = COLUMNS * ROWS


@dataclass(frozen=True)
class Panel:
    """One grid: a title, and for each entry its pixels and whether it is malign, or None."""

    title: str
    entries: Sequence[tuple[NDArray[np.uint8], bool] | None]


def panel(title: str, found: Survey, is_malign: Malign) -> Panel:
    """The first images that a survey sent, in the order of their seeds."""
    sent = found.delivered[:SIZE]
    malign = is_malign(found.pixels)
    return Panel(title, [None if i is None else (found.pixels[i], bool(malign[i])) for i in sent])


def draw(panels: Sequence[Panel]) -> Image.Image:
    """The panels side by side; malign entries framed, empty ones grey."""
    first = next(entry for panel in panels for entry in panel.entries if entry is not None)
    height, width = first[0].shape[0] * SCALE, first[0].shape[1] * SCALE
    panel_width = COLUMNS * (width + GAP) - GAP
    canvas = Image.new(
        "RGB",
        (
            MARGIN + len(panels) * (panel_width + MARGIN),
            TITLE + ROWS * (height + GAP) - GAP + MARGIN,
        ),
        PAPER,
    )
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=20)
    for number, panel in enumerate(panels):
        left = MARGIN + number * (panel_width + MARGIN)
        pen.text((left, 18), panel.title, fill=INK, font=font)
        for index, entry in enumerate(panel.entries[:SIZE]):
            x = left + index % COLUMNS * (width + GAP)
            y = TITLE + index // COLUMNS * (height + GAP)
            if entry is None:
                pen.rectangle((x, y, x + width - 1, y + height - 1), fill=EMPTY)
                continue
            pixels, malign = entry
            tile = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
            canvas.paste(tile.resize((width, height), Image.Resampling.LANCZOS), (x, y))
            if malign:
                pen.rectangle((x - 3, y - 3, x + width + 2, y + height + 2), None, MALIGN, 3)
    return canvas
