"""A batch of images to label, and the inputs that were left out of it."""

from __future__ import annotations

from collections.abc import Sequence

from service.store.datasets import ImageToLabel


class LabelBatch(list[ImageToLabel]):
    """Images to label. `left_out` says of each input of the dataset, by its place there, why the
    model does not draw it: the others are drawn in its stead."""

    def __init__(
        self, shown: Sequence[ImageToLabel] = (), left_out: dict[int, str] | None = None
    ) -> None:
        super().__init__(shown)
        self.left_out = left_out or {}


def left_out(shown: Sequence[ImageToLabel]) -> list[dict[str, int | str]]:
    """What a page left out, as JSON."""
    found = shown.left_out if isinstance(shown, LabelBatch) else {}
    return [{"input": place, "why": why} for place, why in sorted(found.items())]
