"""The batches of one denoiser: one for each size of image, as rows of a tensor share a shape."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from math import prod
from types import MappingProxyType

from models.diffusion.condition import Size
from models.sampling.batch import Batch

Shape = tuple[int, int, int]
Make = Callable[[Shape, int], Batch]
"""(shape of x_t, rows) to a batch of them."""


class Batches:
    """A `Batch` by size, [H, W] of the image; None is the model's default.

    The default's is made at once, any other when its first draw comes, so a size that nobody asks
    for takes no memory. Each size that was asked for takes as much as the default's batch, since
    it has as many rows as its images fit into the place of the default's. Any thread may ask.
    """

    def __init__(
        self,
        make: Make,
        shape: Shape,
        max_batch: int,
        others: Mapping[tuple[int, int], Shape] = MappingProxyType({}),
    ) -> None:
        """`shape` is x_t's at the default size, `others` those at the other sizes."""
        self.shapes: Mapping[Size, Shape] = {None: shape} | dict(others)
        self.costs: Mapping[Size, float] = {
            size: prod(one) / prod(shape) for size, one in self.shapes.items()
        }
        """What one row costs, in rows of the default size: the ratio of their areas."""
        self.slots: Mapping[Size, float] = {
            size: max(cost, 1.0) for size, cost in self.costs.items()
        }
        """The slots that one row takes: a larger row takes more than one, a smaller one no less."""
        self.made: dict[Size, Batch] = {None: make(shape, max_batch)}
        self._make = make
        self._max_batch = max_batch
        self._lock = threading.Lock()

    def __getitem__(self, size: Size) -> Batch:
        """The batch of a size. Raises KeyError for one that the model does not make."""
        if size not in self.made:
            with self._lock:
                if size not in self.made:
                    rows = max(int(self._max_batch / self.slots[size]), 1)
                    self.made[size] = self._make(self.shapes[size], rows)
        return self.made[size]
