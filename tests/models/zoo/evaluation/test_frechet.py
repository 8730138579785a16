"""The Fréchet distance against its closed form for Gaussians."""

from __future__ import annotations

import numpy as np
import pytest

from models.zoo.evaluation.frechet import frechet_distance


def with_moments(mean: np.ndarray, root: np.ndarray, n: int = 400, seed: int = 0) -> np.ndarray:
    """Points whose sample mean and covariance are exactly `mean` and `root @ root.T`."""
    points = np.random.default_rng(seed).standard_normal((n, len(mean)))
    points -= points.mean(axis=0)
    points = points @ np.linalg.inv(np.linalg.cholesky(np.cov(points, rowvar=False))).T
    return mean + points @ root.T


def test_commuting_covariances_have_a_closed_form() -> None:
    # |μ|² + Σ (σ_a − σ_b)² for diagonal covariances.
    first = with_moments(np.zeros(3), np.diag([1.0, 2.0, 3.0]))
    second = with_moments(np.array([1.0, 0.0, -2.0]), np.diag([2.0, 2.0, 0.5]), n=700, seed=1)
    assert frechet_distance(first, second) == pytest.approx(5 + 1 + 0 + 6.25, rel=1e-9)
    assert frechet_distance(second, first) == pytest.approx(12.25, rel=1e-9)


def test_covariances_that_do_not_commute() -> None:
    # Two dimensions: tr (AB)^½ = √(tr AB + 2 √det AB), independently of any eigenvectors.
    a, b = np.array([[1.0, 0.0], [0.8, 0.6]]), np.array([[2.0, 0.5], [0.0, 0.3]])
    cov_a, cov_b = a @ a.T, b @ b.T
    cross = np.sqrt(np.trace(cov_a @ cov_b) + 2 * np.sqrt(np.linalg.det(cov_a @ cov_b)))
    expected = np.trace(cov_a) + np.trace(cov_b) - 2 * cross
    found = frechet_distance(with_moments(np.zeros(2), a), with_moments(np.zeros(2), b, seed=2))
    assert found == pytest.approx(expected, rel=1e-8)


def test_same_set_has_distance_zero_even_when_features_are_constant() -> None:
    points = with_moments(np.zeros(3), np.diag([1.0, 2.0, 0.0]) + 1e-9)
    points[:, 2] = 7
    assert frechet_distance(points, points) == pytest.approx(0, abs=1e-9)


def test_sets_that_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="cannot compare"):
        frechet_distance(np.zeros((5, 2)), np.zeros((5, 3)))
    with pytest.raises(ValueError, match="cannot compare"):
        frechet_distance(np.zeros((1, 2)), np.zeros((5, 2)))
