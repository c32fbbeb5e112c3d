"""Closed forms of the irreducible velocity variance against exact values, quadrature and regression on samples."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad

import latentlab
from analyses.irreducible import gaussian_length_ratio, integrated_variance, velocity_variance

RNG = np.random.default_rng(0)
SPECTRUM = np.concatenate([RNG.uniform(1e-3, 4, 20), [0.0, 0.0]])


def test_ends_are_the_trace_and_the_rank() -> None:
    assert velocity_variance(SPECTRUM, 0.0) == pytest.approx(SPECTRUM.sum(), rel=1e-12)
    assert velocity_variance(SPECTRUM, 1.0) == pytest.approx(20, rel=1e-12)


def test_symmetry_of_time_and_eigenvalue() -> None:
    """l/((1-t)^2 + t^2 l) turns into its l-th part under t -> 1-t, l -> 1/l."""
    t = np.linspace(0, 1, 9)
    for value in (0.01, 0.49, 3.0):
        mirrored = velocity_variance([1 / value], 1 - t)
        np.testing.assert_allclose(velocity_variance([value], t), value * mirrored, rtol=1e-12)


def test_integral_equals_quadrature() -> None:
    by_quadrature = quad(lambda t: velocity_variance(SPECTRUM, t), 0, 1, epsabs=1e-10, limit=200)[0]
    assert integrated_variance(SPECTRUM) == pytest.approx(by_quadrature, rel=1e-7)


def test_mean_form_of_equal_eigenvalues() -> None:
    assert integrated_variance(np.full(11, 0.49)) / 11 == pytest.approx(1.0995574288, abs=1e-10)


def test_trace_and_dispersion_form() -> None:
    """Eq. 6: (pi/2) sqrt(d (tau - d A)) with the ddof=0 variance A of the roots; ddof=1 would give another number."""
    d, tau, dispersion = 37, 28.4978528116, 0.2134292257
    spread = np.sqrt(dispersion * d / (d - 1)) * np.array([1.0] * 18 + [-1.0] * 18 + [0.0])
    roots = np.sqrt(tau / d - dispersion) + spread
    assert (roots > 0).all() and (roots**2).sum() == pytest.approx(tau) and roots.var() == pytest.approx(dispersion)
    assert integrated_variance(roots**2) == pytest.approx(43.3675201852, abs=1e-8)
    assert integrated_variance(roots**2) / d == pytest.approx(1.1720951401, abs=1e-9)


def test_equals_the_residual_of_regression_on_samples() -> None:
    """What is left of v after affine regression on x_t, for one correlated Gaussian (error of 2e5 pairs below 1 %)."""
    root = RNG.standard_normal((4, 4))
    x0 = RNG.standard_normal((200_000, 4))
    x1 = RNG.standard_normal((200_000, 4)) @ root.T + 3.0
    eigenvalues = np.linalg.eigvalsh(root @ root.T)
    for t in (0.0, 0.3, 0.7, 1.0):
        x = np.column_stack([(1 - t) * x0 + t * x1, np.ones(len(x0))])
        v = x1 - x0
        residual = v - x @ np.linalg.lstsq(x, v, rcond=None)[0]
        assert (residual**2).sum(1).mean() == pytest.approx(velocity_variance(eigenvalues, t), rel=1e-2)


@pytest.mark.parametrize("lam", [0.04, 0.49, 3.0])
def test_lengths_of_the_flow_to_one_centred_gaussian(lam: float) -> None:
    """The path is s x_0 with s = sqrt((1-t)^2 + t^2 l): speed |s'| |x_0|, distance of the ends |sqrt(l) - 1| |x_0|."""
    t = np.linspace(0, 1, 11)
    slope = (t * lam - (1 - t)) / np.sqrt((1 - t) ** 2 + t**2 * lam)
    found = gaussian_length_ratio(1 + lam, velocity_variance([lam], t), integrated_variance(np.array([lam])))
    np.testing.assert_allclose(found, np.abs(slope) / abs(lam**0.5 - 1), rtol=1e-6, atol=1e-7)
    with pytest.raises(latentlab.UserError, match="does not move"):
        gaussian_length_ratio(2.0, [0.5], np.pi / 2)


def test_the_variance_of_other_data_lies_below_that_of_their_gaussian() -> None:
    """Two points at +-1 (variance 1): E[z | y] = tanh(t y / (1-t)^2), so 1 - E[z | y]^2 is left; eq. 4 is its upper bound and
    equal at t = 0, and E|v*|^2 + I = E|v|^2.
    """
    eps = np.random.default_rng(3).standard_normal(400_000)
    for t in (0.0, 0.2, 0.5, 0.8, 0.95):
        y = (1 - t) * eps + t  # by symmetry the point +1 is enough
        mean = np.tanh(t * y / (1 - t) ** 2)
        left = (1 - mean**2).mean() / (1 - t) ** 2
        assert left <= velocity_variance([1.0], t) * 1.001 and (t or left == 1)
        assert (((mean - y) / (1 - t)) ** 2).mean() + left == pytest.approx(2.0, rel=1e-2)
    assert left < 1e-3 and velocity_variance([1.0], 0.95) > 1.1  # known late, which a Gaussian never is


def test_takes_numpy_and_torch_and_keeps_the_shape_of_t() -> None:
    t = torch.linspace(0, 1, 6).reshape(2, 3)
    from_torch = latentlab.velocity_variance(torch.tensor(SPECTRUM), t)
    assert from_torch.dtype == np.float64 and from_torch.shape == (2, 3)
    np.testing.assert_array_equal(from_torch, velocity_variance(SPECTRUM, t.numpy()))
    assert velocity_variance([1.0, 1.0], 0.5).shape == ()


def test_takes_bfloat16() -> None:
    found = velocity_variance(torch.tensor([0.5, 2.0], dtype=torch.bfloat16), torch.tensor(0.5, dtype=torch.bfloat16))
    assert found == velocity_variance([0.5, 2.0], 0.5)


@pytest.mark.parametrize(
    ("eigenvalues", "t", "named"),
    [
        ([1.0, -1e-3], 0.5, "eigenvalues"),
        ([[1.0]], 0.5, "eigenvalues"),
        ([np.nan], 0.5, "eigenvalues"),
        ([1.0], 1.1, "t must"),
    ],
)
def test_refuses_what_has_no_meaning(eigenvalues: list, t: float, named: str) -> None:
    with pytest.raises(latentlab.UserError, match=named):
        velocity_variance(eigenvalues, t)
