"""Features of a pretrained network: what judges of few labels learn on.

In a bundle they are one graph, from `pixels` uint8 [batch, H, W, C] to `features` float32
[batch, D]. They are frozen: only a head on them is trained.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.onnx.session import open_session

BATCH = 32


class OnnxFeatures:
    """A bundle's features from their file."""

    def __init__(self, path: Path, threads: int = 1, device: str = "cpu") -> None:
        self.path = path
        self._session = open_session(path, threads, device)
        self.width = int(self._session.get_outputs()[0].shape[1])

    def of(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features of pixels uint8 [B, H, W, C], float32 [B, D]."""
        parts = [
            self._session.run(["features"], {"pixels": np.ascontiguousarray(pixels[i : i + BATCH])})
            for i in range(0, len(pixels), BATCH)
        ]
        if not parts:
            return np.empty((0, self.width), dtype=np.float32)
        return np.concatenate([part[0] for part in parts])
