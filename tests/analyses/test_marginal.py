"""Irreducible variance of Gaussian mixtures against exact one-dimensional values, bounds and the direct definition."""

import numpy as np
import pytest
import torch

from analyses.irreducible import velocity_variance
from analyses.kronecker import KroneckerCovariance
from analyses.marginal import Component, sampled_variance

TIMES = np.array([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0])
# Mixture with pi = (0.3, 0.7), mu = (-1.5, 0.8), variances (0.2, 0.5): exact, by quadrature
GIVEN_CLASS = [0.41, 0.50333948, 0.69382151, 1.13333333, 1.36103896, 1.1922107, 1.02000226, 1.0]
MARGINAL = [1.5209, 1.84301624, 2.30970944, 2.29167177, 1.5160605, 1.20463945, 1.02008688, 1.0]
INTEGRAL = 1.87059647


def component(weight: float, mean: np.ndarray, channels: np.ndarray, cells: np.ndarray) -> Component:
    covariance = KroneckerCovariance(
        *(torch.from_numpy(np.asarray(v, dtype=np.float64)) for v in (mean, channels, cells))
    )
    return Component.of(covariance, weight, torch.float64)


def line_mixture() -> list[Component]:
    return [component(0.3, [[-1.5]], [[1.0]], [[0.2]]), component(0.7, [[0.8]], [[1.0]], [[0.5]])]


def kronecker_mixture(k: int = 3, c: int = 2, s: int = 3, distance: float = 1.0) -> list[Component]:
    rng = np.random.default_rng(0)
    found = []
    for weight in rng.dirichlet(np.full(k, 4.0)):
        a, b = rng.standard_normal((c, c)), rng.standard_normal((s, s))
        found.append(component(float(weight), distance * rng.standard_normal((c, s)), a @ a.T, b @ b.T))
    return found


def pooled_eigenvalues(mixture: list[Component]) -> np.ndarray:
    """Eigenvalues of the covariance of the whole mixture, from explicit d x d matrices."""
    second, mean = 0.0, 0.0
    for k in mixture:
        basis = np.kron(k.channels.numpy(), k.cells.numpy())
        mu = k.mean.numpy().ravel()
        second += k.weight * (basis @ np.diag(k.eigenvalues.numpy().ravel()) @ basis.T + np.outer(mu, mu))
        mean += k.weight * mu
    return np.linalg.eigvalsh(second - np.outer(mean, mean)).clip(0)


@pytest.mark.parametrize("direct", [False, True])
def test_one_dimension_equals_quadrature(direct: bool) -> None:
    sampled = sampled_variance(line_mixture(), TIMES, 20_000, seed=1, direct=direct)
    error = sampled.std(0, ddof=1) / np.sqrt(len(sampled))
    assert (np.abs(sampled.mean(0) - MARGINAL) <= 3 * error + 1e-8).all()
    assert error.max() < (0.03 if direct else 0.01)


def test_class_conditional_bound_of_one_dimension() -> None:
    known = 0.3 * velocity_variance([0.2], TIMES) + 0.7 * velocity_variance([0.5], TIMES)
    np.testing.assert_allclose(known, GIVEN_CLASS, atol=1e-8)


def test_integral_of_one_dimension() -> None:
    """The Gauss rule in sqrt(t), as the measurement uses it."""
    nodes, weights = np.polynomial.legendre.leggauss(32)
    root = (nodes + 1) / 2
    integrals = sampled_variance(line_mixture(), root**2, 20_000, seed=2) @ (weights * root)
    error = integrals.std(ddof=1) / np.sqrt(len(integrals))
    assert integrals.mean() == pytest.approx(INTEGRAL, abs=3 * error)
    assert error < 0.005


@pytest.mark.parametrize("distance", [0.0, 1.0, 10.0])
def test_lies_between_the_class_conditional_and_the_pooled_variance(distance: float) -> None:
    mixture = kronecker_mixture(distance=distance)
    sampled = sampled_variance(mixture, TIMES, 4000, seed=0)
    curve, error = sampled.mean(0), sampled.std(0, ddof=1) / np.sqrt(len(sampled))
    known = sum(k.weight * velocity_variance(k.eigenvalues.flatten(), TIMES) for k in mixture)
    assert (sampled >= known - 1e-9).all()  # of every single sample
    assert (curve <= velocity_variance(pooled_eigenvalues(mixture), TIMES) + 3 * error + 1e-9).all()


def test_at_pure_noise_it_is_the_total_variance() -> None:
    mixture = kronecker_mixture(distance=2.0)
    sampled = sampled_variance(mixture, np.array([0.0]), 8, seed=0)
    np.testing.assert_allclose(sampled, pooled_eigenvalues(mixture).sum(), rtol=1e-12)


def test_kronecker_factors_equal_the_explicit_covariance() -> None:
    """The same mixture with its d x d covariances as single factors; other samples, so equal within their errors."""
    mixture = kronecker_mixture()
    explicit = []
    for k in mixture:
        basis = np.kron(k.channels.numpy(), k.cells.numpy())
        full = basis @ np.diag(k.eigenvalues.numpy().ravel()) @ basis.T
        explicit.append(component(k.weight, k.mean.numpy().reshape(1, -1), np.eye(1), full))
    first, second = (sampled_variance(m, TIMES[1:-1], 4000, seed=s) for m, s in ((mixture, 0), (explicit, 1)))
    error = np.sqrt((first.var(0) + second.var(0)) / 4000)
    assert (np.abs(first.mean(0) - second.mean(0)) <= 3.5 * error).all()


def test_direct_estimate_agrees_and_varies_more() -> None:
    mixture = kronecker_mixture()
    better, direct = (sampled_variance(mixture, TIMES[:-1], 4000, seed=0, direct=d) for d in (False, True))
    error = direct.std(0, ddof=1) / np.sqrt(4000)
    assert (np.abs(better.mean(0) - direct.mean(0)) <= 3.5 * error).all()
    assert (better.std(0) < direct.std(0) / 2).all()


def test_blocks_of_samples_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    from analyses import marginal

    whole = sampled_variance(kronecker_mixture(), TIMES, 50, seed=0)
    monkeypatch.setattr(marginal, "_BLOCK_BYTES", 1)
    np.testing.assert_allclose(sampled_variance(kronecker_mixture(), TIMES, 50, seed=0), whole, rtol=1e-10)


def test_classes_far_apart_add_nothing_at_the_end() -> None:
    mixture = kronecker_mixture(distance=1e3)
    known = sum(k.weight * velocity_variance(k.eigenvalues.flatten(), TIMES) for k in mixture)
    sampled = sampled_variance(mixture, TIMES, 50, seed=0)
    np.testing.assert_allclose(sampled[:, 2:], np.broadcast_to(known[2:], (50, 6)), rtol=1e-9)
