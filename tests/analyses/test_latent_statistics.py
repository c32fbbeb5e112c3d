"""Latent statistics against numpy and scipy, closed forms of Gaussians, and what must not change the values."""

import numpy as np
import pytest
from scipy.special import gammaln
from scipy.stats import kurtosis, skew

import latentlab
from latentlab.errors import UserError


def statistics(z: np.ndarray, **options: object) -> latentlab.Measurement:
    return latentlab.measure("latent_statistics", z, **options)


def values(measured: latentlab.Measurement) -> dict[str, float]:
    return {name: estimate.value for name, estimate in measured.companions.items()}


def skewed_latents(n: int = 60, shape: tuple[int, int, int] = (4, 3, 5)) -> np.ndarray:
    """Correlated channels of different scale, offset and shape, and images of different mean."""
    rng = np.random.default_rng(0)
    z = rng.gamma(2.0, size=(n, *shape)) + rng.standard_normal((n, shape[0], 1, 1))
    mixed = np.einsum("nchw,kc->nkhw", z, np.eye(shape[0]) + 0.3 * rng.standard_normal((shape[0], shape[0])))
    return mixed * np.logspace(-1, 1, shape[0])[:, None, None] + np.linspace(-4, 9, shape[0])[:, None, None]


def test_everything_equals_numpy_and_scipy() -> None:
    z = skewed_latents()
    measured, found = statistics(z), values(statistics(z))
    columns = np.moveaxis(z, 1, -1).reshape(-1, 4)
    eigenvalues = np.linalg.eigvalsh(np.cov(columns.T))[::-1]
    details = measured.details
    assert measured.value == pytest.approx(np.linalg.norm(columns, axis=1).mean(), rel=1e-12)
    assert found["mean_image_norm"] == pytest.approx(np.linalg.norm(z.reshape(60, -1), axis=1).mean(), rel=1e-12)
    np.testing.assert_allclose(details["mean"], columns.mean(0), rtol=1e-10)
    np.testing.assert_allclose(details["std"], columns.std(0, ddof=1), rtol=1e-10)
    np.testing.assert_allclose(details["skewness"], skew(columns), rtol=1e-9)
    np.testing.assert_allclose(details["excess_kurtosis"], kurtosis(columns), rtol=1e-9)
    np.testing.assert_allclose(details["eigenvalues"], eigenvalues, rtol=1e-9)
    assert found["mean_excess_kurtosis"] == pytest.approx(kurtosis(columns).mean(), rel=1e-9)
    assert found["mean_absolute_skewness"] == pytest.approx(abs(skew(columns)).mean(), rel=1e-9)
    assert found["participation_ratio"] == pytest.approx(eigenvalues.sum() ** 2 / (eigenvalues**2).sum(), rel=1e-9)
    assert found["condition_number"] == pytest.approx(eigenvalues[0] / eigenvalues[-1], rel=1e-9)
    within = z.var((2, 3)).mean(0) / z.var((0, 2, 3))
    np.testing.assert_allclose(details["share_within_images"], within, rtol=1e-9)
    assert found["share_within_images"] == pytest.approx(within.mean(), rel=1e-9)


def test_gaussian_closed_forms() -> None:
    """Norm sqrt(2) gamma((c+1)/2) / gamma(c/2); no kurtosis; all dimensions count; (s-1)/s of the variance within images."""
    c, s = 8, 16
    measured = statistics(np.random.default_rng(0).standard_normal((2000, c, 4, 4)))
    found = values(measured)
    expected = np.sqrt(2) * np.exp(gammaln((c + 1) / 2) - gammaln(c / 2))
    assert expected == pytest.approx(2.7416, abs=5e-5)
    assert measured.value == pytest.approx(expected, rel=5e-3)
    low, high = measured.interval
    assert low < expected < high
    assert found["mean_excess_kurtosis"] == pytest.approx(0, abs=0.03)
    assert found["participation_ratio"] == pytest.approx(c, rel=1e-2)
    assert found["condition_number"] == pytest.approx(1, abs=0.1)
    assert found["share_within_images"] == pytest.approx((s - 1) / s, abs=2e-3)


@pytest.mark.parametrize(("draw", "expected"), [("uniform", -1.2), ("laplace", 3.0)])
def test_kurtosis_of_other_distributions(draw: str, expected: float) -> None:
    measured = statistics(getattr(np.random.default_rng(0), draw)(size=(1000, 4, 8, 8)))
    estimate = measured.companions["mean_excess_kurtosis"]
    assert estimate.value == pytest.approx(expected, abs=0.2)
    assert estimate.interval[0] < estimate.value < estimate.interval[1]


def test_intervals_have_the_width_of_repeated_samples() -> None:
    rng = np.random.default_rng(0)
    draws = [statistics(rng.laplace(size=(150, 2, 3, 3))) for _ in range(40)]
    spread = np.std([m.value for m in draws])
    assert np.mean([m.replicates.std() for m in draws]) == pytest.approx(spread, rel=0.4)
    estimates = [m.companions["mean_excess_kurtosis"] for m in draws]
    widths = [e.interval[1] - e.interval[0] for e in estimates]
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.std([e.value for e in estimates]), rel=0.5)
    low, high = draws[0].interval
    assert (low, high) == pytest.approx(np.percentile(draws[0].replicates, (2.5, 97.5)))


def test_batches_order_and_layout_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    z = skewed_latents()
    whole = statistics(z)
    as_tokens = np.moveaxis(z.reshape(60, 4, 15), 1, 2)
    monkeypatch.setattr("latentlab.latents.BATCH_BYTES", 1000)
    for same in (z, z[::-1].copy(), as_tokens):
        measured = statistics(same)
        assert measured.value == pytest.approx(whole.value, rel=1e-12)
        assert values(measured) == pytest.approx(values(whole), rel=1e-9)


def test_float32_equals_float64_also_far_from_zero() -> None:
    z = skewed_latents().astype(np.float32)
    quick, exact = statistics(z), statistics(z.astype(np.float64))
    assert quick.value == pytest.approx(exact.value, rel=1e-6)
    assert values(quick) == pytest.approx(values(exact), rel=1e-4)
    far = (z + 1000).astype(np.float32)
    assert values(statistics(far)) == pytest.approx(values(statistics(far.astype(np.float64))), rel=1e-3)


def test_scale_and_shift_change_what_they_should() -> None:
    z = skewed_latents()
    plain, moved = statistics(z), statistics(-3 * z)
    assert moved.value == pytest.approx(3 * plain.value, rel=1e-12)
    np.testing.assert_allclose(moved.details["eigenvalues"], 9 * plain.details["eigenvalues"], rtol=1e-9)
    np.testing.assert_allclose(moved.details["skewness"], -plain.details["skewness"], rtol=1e-9)
    assert values(statistics(z + 7))["mean_excess_kurtosis"] == pytest.approx(
        values(plain)["mean_excess_kurtosis"], rel=1e-8
    )


def test_constant_channels_and_images() -> None:
    z = skewed_latents()
    z[:, 2] = 0.7
    measured = statistics(z)
    assert "1 channels are constant" in measured.warnings[0]
    assert values(measured)["condition_number"] == np.inf
    assert measured.details["excess_kurtosis"][2] == 0
    flat = statistics(np.broadcast_to(z[:, :, :1, :1], z.shape).copy())
    assert values(flat)["share_within_images"] == pytest.approx(0, abs=1e-12)
    constant = statistics(np.ones((4, 2, 3, 3)))
    assert constant.value == pytest.approx(np.sqrt(2)) and values(constant)["participation_ratio"] == 0
    constant.to_json()


def test_one_image_has_no_interval() -> None:
    measured = statistics(skewed_latents(1))
    assert measured.interval is None and measured.replicates is None and "one image" in measured.warnings[-1]


def test_more_images_than_groups() -> None:
    z = np.random.default_rng(0).standard_normal((1300, 2, 2, 2))
    measured = statistics(z)
    assert measured.companions["mean_excess_kurtosis"].value == pytest.approx(
        kurtosis(z, axis=(0, 2, 3)).mean(), rel=1e-9
    )
    assert measured.replicates.shape == (1000,)


def test_nan_is_refused() -> None:
    z = skewed_latents()
    z[5, 0, 0, 0] = np.nan
    with pytest.raises(UserError, match="image 5"):
        statistics(z)
