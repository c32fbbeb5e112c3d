"""The Frechet distance against closed forms and the matrix square root; its error bar against a real bootstrap."""

import math
import warnings

import numpy as np
import pytest
import scipy.linalg
import torch

from analyses.frechet import MomentSums, frechet_distance, frechet_of_paired_features, influence_values
from analyses.intervals import REPLICATES
from latentlab.errors import UserError


def by_matrix_square_root(mu1, sigma1, mu2, sigma2) -> float:
    root = scipy.linalg.sqrtm(sigma1 @ sigma2).real
    return float(np.sum((mu1 - mu2) ** 2) + np.trace(sigma1) + np.trace(sigma2) - 2 * np.trace(root))


def covariance(rng: np.random.Generator, d: int, rank: int | None = None) -> np.ndarray:
    factor = rng.standard_normal((d, rank or 2 * d)) * np.geomspace(1, 0.05, d)[:, None]
    return factor @ factor.T / (rank or 2 * d)


def features(rng: np.random.Generator, n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Correlated features of n images and of what became of them."""
    x = rng.standard_normal((n, d)) @ (np.eye(d) + rng.standard_normal((d, d)) / d)
    y = 0.8 * x + 0.5 * rng.standard_normal((n, d)) @ (np.eye(d) + rng.standard_normal((d, d)) / d) + 0.1
    return x, y


def distance_of(x: np.ndarray, y: np.ndarray) -> float:
    return frechet_distance(x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T))


def test_diagonal_covariances_have_a_closed_form() -> None:
    """Sum of (sqrt a - sqrt b)^2 plus the squared distance of the means: 4 + 1 + 0 + 5."""
    value = frechet_distance([1, 0, 2], np.diag([1, 4, 0.25]), np.zeros(3), np.diag([9, 1, 0.25]))
    assert value == pytest.approx(10, abs=1e-12)


def test_the_cross_term_counts_twice() -> None:
    """One dimension: (s - t)^2, which neither factor 1 nor no factor gives."""
    assert frechet_distance([0], [[4]], [0], [[9]]) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("d", [1, 5, 64])
def test_equals_the_matrix_square_root(d: int) -> None:
    rng = np.random.default_rng(d)
    moments = (rng.standard_normal(d), covariance(rng, d), rng.standard_normal(d), covariance(rng, d))
    assert frechet_distance(*moments) == pytest.approx(by_matrix_square_root(*moments), abs=5e-10)


def test_is_a_distance() -> None:
    rng = np.random.default_rng(0)
    mu, sigma, other = rng.standard_normal(12), covariance(rng, 12), covariance(rng, 12)
    assert frechet_distance(mu, sigma, mu, sigma) == pytest.approx(0, abs=1e-12)
    forth, back = frechet_distance(mu, sigma, mu + 1, other), frechet_distance(mu + 1, other, mu, sigma)
    assert forth == pytest.approx(back, rel=1e-12)
    assert frechet_distance(mu, sigma, mu + 2, sigma) == pytest.approx(48, rel=1e-12)


def test_singular_covariances() -> None:
    """Ranks 3 and 5 of 9 dimensions; in the basis of one, the other is arbitrary. Nuclear norm of the factors' product."""
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((9, 3)), rng.standard_normal((9, 5))
    expected = np.trace(a @ a.T) + np.trace(b @ b.T) - 2 * np.linalg.svd(a.T @ b, compute_uv=False).sum()
    assert frechet_distance(np.zeros(9), a @ a.T, np.zeros(9), b @ b.T) == pytest.approx(expected, abs=1e-9)
    assert frechet_distance(np.zeros(9), np.zeros((9, 9)), np.ones(9), b @ b.T) == pytest.approx(9 + np.trace(b @ b.T))
    line, other = np.outer(a[:, 0], a[:, 0]), np.diag([0.0] * 8 + [4.0])
    expected = np.trace(line) + 4 - 2 * 2 * abs(a[8, 0])
    assert frechet_distance(np.zeros(9), line, np.zeros(9), other) == pytest.approx(expected, abs=1e-9)


def test_float32_moments_of_few_images_are_accepted() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((2, 40, 60)).astype(np.float32)
    moments = [(z.mean(0), np.cov(z.T, dtype=np.float32)) for z in (x, y)]
    single = frechet_distance(*moments[0], *moments[1])
    assert single == pytest.approx(distance_of(x.astype(np.float64), y.astype(np.float64)), rel=1e-3)


def test_torch_tensors_are_accepted() -> None:
    sigma = torch.eye(2)
    assert frechet_distance(torch.zeros(2), sigma, torch.ones(2), sigma) == pytest.approx(2)


@pytest.mark.parametrize(
    ("moments", "message"),
    [
        ((np.zeros(2), np.eye(3), np.zeros(2), np.eye(2)), r"sigma1 must be \[d,d\] with d = 2"),
        ((np.zeros(2), np.eye(2), np.zeros(3), np.eye(3)), "one dimension, got mu1"),
        ((np.zeros((1, 2)), np.eye(2), np.zeros(2), np.eye(2)), "mu1 must have 1 dimension"),
        ((np.zeros(2), np.eye(2), np.zeros(2), np.array([[1, 0.5], [0, 1]])), "sigma2 must be symmetric"),
        ((np.zeros(2), np.diag([1, math.nan]), np.zeros(2), np.eye(2)), "sigma1 contains NaN"),
        ((np.array([math.inf, 0]), np.eye(2), np.zeros(2), np.eye(2)), "mu1 contains NaN"),
        ((np.zeros(2), np.diag([1, -1]), np.zeros(2), np.eye(2)), "sigma1 must be positive semi-definite"),
        ((np.zeros(2), np.eye(2), np.zeros(2), np.array([[0, 1], [1, 0]])), "sigma2 must be positive semi-definite"),
    ],
)
def test_what_is_no_gaussian_is_refused(moments: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message):
        frechet_distance(*moments)


def test_moments_of_a_stream_are_those_of_the_whole() -> None:
    """A mean a million times the deviation costs no digits, and ddof is 1."""
    x = np.random.default_rng(3).standard_normal((1000, 7)) * np.arange(1, 8) + 1e6
    sums = MomentSums()
    for part in np.split(x, [1, 10, 400]):
        sums.add(part)
    mean, sigma = sums.moments()
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(sigma, np.cov((x - 1e6).T), rtol=1e-9, atol=1e-9)
    with pytest.raises(UserError, match="must have 7 columns"):
        sums.add(np.zeros((2, 6)))
    with pytest.raises(UserError, match="at least 2 features, got 0"):
        MomentSums().moments()


def test_influence_is_the_derivative_by_the_weight_of_an_image() -> None:
    rng = np.random.default_rng(4)
    x, y = features(rng, 300, 6)
    value, of_x, of_y = influence_values(x, y)
    assert value == pytest.approx(distance_of(x, y), rel=1e-12)
    assert of_x.mean() == pytest.approx(0, abs=1e-12) and of_y.mean() == pytest.approx(0, abs=1e-12)
    step = 1e-5

    def moments(z: np.ndarray, image: int, more: float) -> tuple[np.ndarray, np.ndarray]:
        weights = np.ones(len(z)) / len(z) * (1 - more)
        weights[image] += more
        mean = weights @ z
        return mean, (z - mean).T * weights @ (z - mean) * len(z) / (len(z) - 1)

    for image in (0, 17, 255):
        for influence, args in ((of_x, (1, 0)), (of_y, (0, 1))):
            ends = [
                frechet_distance(*moments(x, image, args[0] * s), *moments(y, image, args[1] * s))
                for s in (step, -step)
            ]
            slope = (ends[0] - ends[1]) / (2 * step)
            factor = len(x) / (len(x) - 1)  # covariance terms carry ddof=1
            assert influence[image] == pytest.approx(slope, abs=2 * (factor - 1) * np.abs(influence).max() + 1e-6)


def test_interval_equals_a_real_bootstrap() -> None:
    rng = np.random.default_rng(5)
    n = 1500
    x, y = features(rng, n, 8)
    result = frechet_of_paired_features(x, y)
    resampled = []
    for _ in range(400):
        chosen = rng.integers(0, n, n)
        resampled.append(distance_of(x[chosen], y[chosen]))
    assert result.replicates is not None and result.replicates.shape == (REPLICATES,)
    assert result.replicates.std() == pytest.approx(np.std(resampled), rel=0.12)
    assert result.replicates.mean() == pytest.approx(result.value, abs=0.2 * result.replicates.std())
    low, high = result.estimate.interval
    assert low < result.value < high


def test_one_dimension_follows_normal_theory() -> None:
    """FD = (m - m')^2 + (s - s')^2 of independent normals: variance 4 (m-m')^2 (s^2+s'^2)/n + 2 (s-s')^2 (s^2+s'^2)/n."""
    rng = np.random.default_rng(6)
    n, s, t = 20000, 2.0, 1.0
    x, y = 0.5 + s * rng.standard_normal((n, 1)), t * rng.standard_normal((n, 1))
    result = frechet_of_paired_features(x, y)
    variance = (4 * 0.5**2 + 2 * (s - t) ** 2) * (s**2 + t**2) / n
    assert result.replicates.std() == pytest.approx(math.sqrt(variance), rel=0.08)


def test_constant_features_do_no_harm() -> None:
    x, y = features(np.random.default_rng(7), 100, 5)
    padded = [np.concatenate([z, np.full((100, 2), 3.0)], 1) for z in (x, y)]
    plain, wide = frechet_of_paired_features(x, y), frechet_of_paired_features(*padded)
    assert wide.value == pytest.approx(plain.value, rel=1e-9)
    np.testing.assert_allclose(wide.replicates, plain.replicates, rtol=1e-7)


def test_few_images_have_no_interval() -> None:
    x, y = features(np.random.default_rng(8), 20, 20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = frechet_of_paired_features(x, y)
    assert result.replicates is None and result.estimate.interval is None
    assert result.value == pytest.approx(distance_of(x, y), rel=1e-9)


def test_float32_features_agree() -> None:
    x, y = features(np.random.default_rng(9), 500, 10)
    exact, single = frechet_of_paired_features(x, y), frechet_of_paired_features(x.astype("f4"), y.astype("f4"))
    assert single.value == pytest.approx(exact.value, rel=2e-5)


def test_half_precision_features_are_taken() -> None:
    """Both kinds of 16 bits, of which numpy knows one only: the numbers they hold, in float64."""
    x, y = (torch.from_numpy(table) for table in features(np.random.default_rng(9), 500, 10))
    for dtype in (torch.float16, torch.bfloat16):
        first, second = x.to(dtype), y.to(dtype)
        expected = frechet_of_paired_features(first.double(), second.double()).value
        assert frechet_of_paired_features(first, second).value == pytest.approx(expected, rel=1e-12)


def test_wrong_features_are_refused() -> None:
    with pytest.raises(UserError, match="one shape"):
        frechet_of_paired_features(np.zeros((4, 2)), np.zeros((5, 2)))
    with pytest.raises(UserError, match=r"numbers \[n,d\], got float64 of shape \[4\]"):
        frechet_of_paired_features(np.zeros(4), np.zeros(4))
    with pytest.raises(UserError, match="NaN or infinity"):
        frechet_of_paired_features(np.full((4, 2), np.nan), np.zeros((4, 2)))
