"""The Fréchet distance between two sets of features (Heusel et al. 2017, eq. 6)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import linalg


def frechet_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """|μ_a − μ_b|² + tr(Σ_a + Σ_b − 2(Σ_a Σ_b)^½) of features [N, D] and [M, D], at least 0.

    The squared 2-Wasserstein distance of the Gaussians with the sets' moments. It is biased
    upwards by about 1/N: compare only sets of equal size. Raises ValueError for sets that are
    too small for a covariance, or of different width.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"cannot compare features of shapes {a.shape} and {b.shape}")
    means = float(((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum())
    cov_a, cov_b = np.atleast_2d(np.cov(a, rowvar=False)), np.atleast_2d(np.cov(b, rowvar=False))
    # tr (Σ_a Σ_b)^½ = Σ √eig(Σ_a^½ Σ_b Σ_a^½): symmetric, so no complex rounding errors.
    values, vectors = linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.sqrt(np.clip(linalg.eigvalsh(root @ cov_b @ root), 0, None)).sum()
    return max(0.0, means + float(np.trace(cov_a) + np.trace(cov_b) - 2 * cross))
