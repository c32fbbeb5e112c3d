"""Mixed slopes: generalised least squares at the fitted variances, known slopes, limits of no and of large group effects."""

import numpy as np
import pytest

from analyses.mixed_effects import mixed_slope
from latentlab.errors import UserError


def grouped(level: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(8), 4)
    x = rng.normal(size=32)
    return x, 0.8 * x + 0.6 * rng.normal(size=32) + level * rng.normal(size=8)[label], label


def test_slope_is_that_of_generalised_least_squares():
    """With the fitted group variance, V = I s^2 + J t^2 within groups and slope = (X' V^-1 X)^-1 X' V^-1 y."""
    x, y, label = grouped(1.0)
    found = mixed_slope(x, y, label)
    a, b = ((v - v.mean()) / v.std(ddof=1) for v in (x, y))
    same = (label[:, None] == label).astype(float)

    def solve(residual_variance: float) -> tuple[np.ndarray, np.ndarray]:
        inverse = np.linalg.inv(residual_variance * np.eye(32) + found.group_sd**2 * same)
        design = np.column_stack([np.ones(32), a])
        covariance = np.linalg.inv(design.T @ inverse @ design)
        return covariance @ design.T @ inverse @ b, covariance

    within = b - np.array([b[label == g].mean() for g in label])
    a_within = a - np.array([a[label == g].mean() for g in label])
    slope = within @ a_within / (a_within @ a_within)
    residual = np.sum((within - slope * a_within) ** 2) / (32 - 8 - 1)
    coefficients, covariance = solve(residual)
    assert found.value == pytest.approx(coefficients[1], abs=0.02)
    assert (found.interval[1] - found.interval[0]) / 2 == pytest.approx(1.96 * covariance[1, 1] ** 0.5, rel=0.1)
    assert found.converged and found.group_sd > 0.3


def test_without_differences_between_groups_it_is_the_plain_slope():
    x, y, label = grouped(0.0, seed=2)
    found = mixed_slope(x, y, label)
    assert found.value == pytest.approx(np.corrcoef(x, y)[0, 1], abs=0.05)


def test_large_differences_between_groups_leave_the_slope_within():
    x, y, label = grouped(50.0)
    found = mixed_slope(x, y, label)
    a, b = ((v - v.mean()) / v.std(ddof=1) for v in (x, y))
    for v in (a, b):
        v -= np.array([v[label == g].mean() for g in label])
    assert found.value == pytest.approx(a @ b / (a @ a), rel=0.01)
    assert found.p < 1e-4


def test_complaints_of_the_optimiser_are_told():
    """Groups that do not differ at all: the variance lies on its bound, which statsmodels says."""
    x, y, label = grouped(0.0, seed=2)
    for group in np.unique(label):
        y[label == group] -= y[label == group].mean()
    found = mixed_slope(x, y, label)
    assert found.warnings and all("\n" not in line for line in found.warnings)


@pytest.mark.parametrize("label", [np.zeros(32), np.arange(32)])
def test_groups_that_are_none_are_refused(label):
    with pytest.raises(UserError, match="mixed model needs groups"):
        mixed_slope(*grouped(1.0)[:2], label)
