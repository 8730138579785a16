"""Guides that were exported to ONNX, in ONNX Runtime: what guidance and probes cost least by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.diffusion.conditioning import Conditions
from models.onnx.session import open_session, timestep_dtype


class DistilledGuide:
    """A student's graph as a `guidance.Guide`."""

    def __init__(self, path: Path, threads: int = 1, device: str = "cpu") -> None:
        self._session = open_session(path, threads, device)
        self._timestep = timestep_dtype(self._session)

    def gradient(
        self, x_t: Tensor, timestep: Tensor, conditions: Conditions | None = None
    ) -> Tensor:
        """About ∇_{x_t} log r_t(x_t), float32 [B, C, H, W], for timesteps [B]."""
        inputs = {"x_t": _array(x_t), "timestep": _array(timestep).astype(self._timestep)}
        output: NDArray[Any] = self._session.run(None, inputs)[0]
        return torch.from_numpy(output).to(x_t.device)


class Probe:
    """A clean ensemble's graph: it looks at x̂_0 halfway."""

    def __init__(self, path: Path, threads: int = 1, device: str = "cpu") -> None:
        self._session = open_session(path, threads, device)

    def score(self, x_0: Tensor) -> NDArray[np.float64]:
        """σ of the members' mean logit at x̂_0 [B, C, H, W], float64 [B] in [0, 1]."""
        output: NDArray[Any] = self._session.run(None, {"x_0": _array(x_0)})[0]
        return torch.sigmoid(torch.from_numpy(output).double()).numpy()


def _array(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.detach().cpu().contiguous().numpy()
    return array
