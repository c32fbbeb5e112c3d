"""VIV as a measurement: definition, variants, refusals, and what must not change the value."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from scipy import stats

import latentlab
from analyses import class_latents
from latentlab.compare import compare
from latentlab.errors import UserError

SHAPE = (3, 2, 4)
D = 24


def classes(k: int = 4, n: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Latents [k*n,3,2,4] of ``k`` classes that differ in mean, scale and orientation, and shuffled labels."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(k), n))
    z = rng.standard_normal((k * n, 3, 8))
    for label in range(k):
        a, b = rng.standard_normal((3, 3)), rng.standard_normal((8, 8))
        z[labels == label] = (0.5 + label) * (a @ z[labels == label] @ b) + rng.standard_normal((3, 8))
    return z.reshape(-1, *SHAPE), labels


def viv(z: np.ndarray, labels: np.ndarray | None = None, **options: object) -> latentlab.Measurement:
    return latentlab.measure("viv", z, labels, **options)


def reference(z: np.ndarray, labels: np.ndarray, normalize: bool = True) -> float:
    """The definition, as slowly as it is written."""
    if normalize:
        z = (z - z.mean((0, 2, 3), keepdims=True)) / z.std((0, 2, 3), ddof=1, keepdims=True)
    values = []
    for label in np.unique(labels):
        x = z[labels == label].reshape(-1, 3, 8)
        n = len(x)
        x = x - x.mean(0)
        cells = np.eye(8)
        for _ in range(5):
            channels = sum(m @ np.linalg.inv(cells) @ m.T for m in x) / (n * 8)
            cells = sum(m.T @ np.linalg.inv(channels) @ m for m in x) / (n * 3)
        spectrum = np.outer(np.linalg.eigvalsh(channels), np.linalg.eigvalsh(cells))
        spectrum *= x.reshape(n, -1).var(0, ddof=0).sum() / spectrum.sum()
        values.append(np.pi / 2 * np.sqrt(spectrum).mean())
    return float(np.mean(values))


@pytest.mark.parametrize("normalize", [True, False])
def test_equals_the_definition(normalize: bool) -> None:
    z, labels = classes()
    assert viv(z, labels, normalize=normalize).value == pytest.approx(reference(z, labels, normalize), rel=1e-10)


def test_sum_is_d_times_the_mean() -> None:
    z, labels = classes()
    mean, total = (viv(z, labels, reduce=r) for r in ("mean", "sum"))
    assert total.value == pytest.approx(D * mean.value, rel=1e-12)
    assert total.unit == "variance" and mean.unit == "variance per dimension"
    np.testing.assert_allclose(total.details["curve_low"], D * mean.details["curve_low"], rtol=1e-12)
    np.testing.assert_allclose(total.interval, np.multiply(D, mean.interval), rtol=1e-12)


def test_scales_with_raw_latents_and_not_with_normalised_ones() -> None:
    z, labels = classes()
    assert viv(-3 * z, labels, normalize=False).value == pytest.approx(
        3 * viv(z, labels, normalize=False).value, rel=1e-10
    )
    scaled = z * np.array([0.1, 5.0, 30.0])[:, None, None] + 2.0
    assert viv(scaled, labels).value == pytest.approx(viv(z, labels).value, rel=1e-10)


def test_white_latents_stay_below_half_pi_by_the_announced_bias() -> None:
    """32 x 16 x 16 white latents, 50 images of one class: 1.523 instead of 1.571."""
    z = np.random.default_rng(0).standard_normal((50, 32, 16, 16)).astype(np.float32)
    measured = viv(z, np.zeros(50, dtype=int))
    assert measured.value == pytest.approx(1.523, abs=2e-3)
    assert any("3.1% too low" in warning for warning in measured.warnings)
    assert measured.interval is None and any("one class" in warning for warning in measured.warnings)


def test_float32_equals_float64() -> None:
    z, labels = classes()
    quick = viv(z.astype(np.float32), labels).value
    assert quick == pytest.approx(viv(z, labels).value, rel=1e-6)


def test_curve_has_the_value_as_its_integral_and_trace_and_rank_as_ends() -> None:
    z, labels = classes()
    measured = viv(z, labels, times=2001, normalize=False)
    t, curve = measured.details["t"], measured.details["curve"]
    assert np.trapezoid(curve, t) == pytest.approx(measured.value, rel=1e-4)
    traces = [z[labels == k].reshape(-1, D).var(0).sum() for k in range(4)]
    assert curve[0] == pytest.approx(np.mean(traces) / D, rel=1e-10)
    assert curve[-1] == pytest.approx(1.0, rel=1e-10)
    assert (measured.details["curve_low"] <= curve).all() and (curve <= measured.details["curve_high"]).all()


@pytest.mark.parametrize("options", [{}, {"covariance": "full"}, {"condition": "marginal", "samples": 500}])
def test_directions_without_variance_do_not_count_at_the_end(options: dict[str, object]) -> None:
    """I(1) per dimension is the rank over d: 3/4 of four channels of which one repeats another, whatever rounding leaves."""
    z = np.random.default_rng(0).standard_normal((300, 4, 2, 4))
    labels = np.arange(300) % 3
    z[:, 0] += labels[:, None, None]
    z[:, 3] = z[:, 0]
    measured = viv(z, labels, times=(0.5, 1.0), eigenvalues=True, **options)
    assert measured.details["curve"][-1] == pytest.approx(0.75, abs=1e-6)
    assert all((spectrum > 0).sum() == 24 for spectrum in measured.details["class_eigenvalues"].values())


def test_interval_is_over_classes() -> None:
    z, labels = classes(k=8)
    measured = viv(z, labels)
    values = np.array(list(measured.details["per_class"].values()))
    assert measured.value == pytest.approx(values.mean(), rel=1e-12)
    low, high = measured.interval
    half = stats.t.ppf(0.975, 7) * values.std(ddof=1) / np.sqrt(8)
    assert (high - low) == pytest.approx(2 * half, rel=0.15) and low < measured.value < high
    assert measured.units == 8 and not any("classes only" in warning for warning in measured.warnings)
    assert viv(z, labels).interval == measured.interval
    assert viv(z, labels, seed=1).interval != measured.interval


def test_a_handful_of_classes_is_said_to_give_a_rough_interval() -> None:
    measured = viv(*classes(k=4))
    assert "4 classes only: the interval over them is rough" in measured.warnings


def test_order_of_images_and_names_of_classes_do_not_matter() -> None:
    z, labels = classes()
    order = np.random.default_rng(1).permutation(len(z))
    value = viv(z, labels).value
    assert viv(z[order], labels[order]).value == pytest.approx(value, rel=1e-10)
    assert viv(z, 7 - 2 * labels).value == pytest.approx(value, rel=1e-10)


def test_classes_in_threads_or_streamed_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    z, labels = classes()
    before, value = torch.get_num_threads(), viv(z, labels).value
    torch.set_num_threads(2)
    try:
        assert viv(z, labels).value == pytest.approx(value, rel=1e-10)
    finally:
        torch.set_num_threads(before)
    monkeypatch.setattr(class_latents, "CACHE_BYTES", 0)
    monkeypatch.setattr(class_latents, "PIECE_BYTES", 900)
    assert viv(z, labels).value == pytest.approx(value, rel=1e-10)


def test_a_store_gives_the_same(tmp_path: Path) -> None:
    z, labels = classes()
    z = z.astype(np.float32)
    for i, part in enumerate((slice(0, 17), slice(17, None))):
        save_file({"latents": z[part], "labels": labels[part]}, tmp_path / f"latents_rank00_shard{i:03d}.safetensors")
    assert latentlab.measure("viv", store=latentlab.LatentStore(tmp_path)).value == viv(z, labels).value


def test_tokens_are_channels_times_tokens() -> None:
    z, labels = classes()
    tokens = z.reshape(-1, 3, 8).transpose(0, 2, 1)  # [n,l,c]
    assert viv(tokens, labels).value == pytest.approx(viv(z, labels).value, rel=1e-10)


def test_eigenvalues_are_the_mean_class_spectrum() -> None:
    z, labels = classes()
    details = viv(z, labels, normalize=False, covariance="full", shrinkage=1e-12).details
    spectra = [np.linalg.eigvalsh(np.cov(z[labels == k].reshape(-1, D).T, ddof=0))[::-1].clip(0) for k in range(4)]
    np.testing.assert_allclose(details["eigenvalues"], np.mean(spectra, axis=0), atol=1e-9)
    assert details["ranks"].tolist() == list(range(1, D + 1))
    many = np.random.default_rng(0).standard_normal((40, 10, 10, 10))
    ranks = viv(many, np.zeros(40, dtype=int)).details["ranks"]
    assert len(ranks) == 512 and ranks[0] == 1 and ranks[-1] == 1000 and (np.diff(ranks) > 0).all()


def test_full_covariance_equals_numpy_and_needs_more_images_than_dimensions() -> None:
    z, labels = classes(k=2, n=30)
    expected = []
    for k in range(2):
        spectrum = np.linalg.eigvalsh(np.cov(z[labels == k].reshape(-1, D).T, ddof=0))
        expected.append(np.pi / 2 * np.sqrt(spectrum).mean())
    measured = viv(z, labels, covariance="full", normalize=False)
    assert measured.value == pytest.approx(np.mean(expected), rel=1e-10)
    z, labels = classes(k=2, n=24)
    with pytest.raises(UserError, match=r"class 0: a full covariance of 24 dimensions needs more than 24 images"):
        viv(z, labels, covariance="full")
    assert viv(z, labels, covariance="full", shrinkage=0.1).value > 0


def test_classes_with_one_image_are_left_out_and_counted() -> None:
    z, labels = classes()
    extra = viv(np.concatenate([z, z[:2]]), np.concatenate([labels, [8, 9]]), normalize=False)
    assert extra.value == pytest.approx(viv(z, labels, normalize=False).value, rel=1e-12)
    assert extra.n == len(z) and sorted(extra.details["per_class"]) == [0, 1, 2, 3]
    assert any("2 of 6 classes have fewer than 2 images" in warning for warning in extra.warnings)
    with pytest.raises(UserError, match="at least 2 images: all 4 classes have one"):
        viv(z[:4], np.arange(4))


def test_too_few_images_are_refused_naming_class_and_remedy() -> None:
    z, labels = classes(n=3)
    with pytest.raises(UserError, match=r"class 0: .*3 channels x 8 cells needs at least 4 images.*shrinkage"):
        viv(z, labels)
    shrunk = viv(z, labels, shrinkage=0.2)
    assert shrunk.value > 0 and any("shrinkage" in warning for warning in shrunk.warnings)


def test_unequal_class_sizes_are_named() -> None:
    z, labels = classes()
    keep = (labels > 0) | (np.cumsum(labels == 0) <= 6)
    measured = viv(z[keep], labels[keep])
    assert measured.details["n_per_class"] == {0: 6, 1: 12, 2: 12, 3: 12}
    assert any("6 to 12 images per class" in warning for warning in measured.warnings)


def test_collapsed_latents_have_no_variance() -> None:
    assert viv(np.ones((12, *SHAPE)), np.arange(12) % 2).value == 0


def test_marginal_lies_above_the_class_conditional_value() -> None:
    z, labels = classes()
    given = viv(z, labels)
    for estimator in ("rao-blackwell", "direct"):
        measured = viv(z, labels, condition="marginal", estimator=estimator, samples=2000, times=24)
        low, high = measured.interval
        known = measured.companions["given the class, weighted by class size"].value
        assert known == pytest.approx(given.value, rel=1e-10)  # equal class sizes
        assert known < low < measured.value < high
        assert estimator in measured.variant
    assert (measured.details["curve_low"] <= measured.details["curve_high"]).all()


def test_two_draws_of_one_mixture_are_not_told_apart_by_their_monte_carlo_error() -> None:
    """Pairs (x0, x1) are no images: more of them would make any two sets of images differ significantly."""
    first, second = (viv(*classes(k=3, seed=seed), condition="marginal", times=8, samples=2000) for seed in (0, 1))
    assert first.replicates is None and first.units is None and first.interval is not None
    (difference,) = compare({"a": [first], "b": [second]}, paired=True).differences
    assert difference.value == first.value - second.value and difference.p is None


def test_both_marginal_estimators_agree() -> None:
    z, labels = classes(k=2)
    better, direct = (
        viv(z, labels, condition="marginal", estimator=e, samples=4000) for e in ("rao-blackwell", "direct")
    )
    width = direct.interval[1] - direct.interval[0]
    assert abs(better.value - direct.value) < width
    assert better.interval[1] - better.interval[0] < width / 2


def test_marginal_without_labels_is_one_gaussian() -> None:
    z, _ = classes()
    measured = viv(z, condition="marginal")
    assert measured.value == pytest.approx(viv(z, np.zeros(len(z), dtype=int)).value, rel=1e-10)
    assert measured.interval is None and any("closed form" in warning for warning in measured.warnings)


def test_marginal_is_repeatable_and_depends_on_the_seed() -> None:
    z, labels = classes()
    first, same, other = (viv(z, labels, condition="marginal", samples=20, seed=s).value for s in (0, 0, 1))
    assert first == same != other


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduce": "median"}, "unknown reduce 'median'"),
        ({"covariance": "diag"}, "unknown covariance"),
        ({"condition": "image"}, "unknown condition"),
        ({"estimator": "rao"}, "unknown estimator"),
        ({"shrinkage": 0.0}, r"shrinkage must lie in \(0, 1\]"),
        ({"shrinkage": 1.5}, r"shrinkage must lie in \(0, 1\]"),
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"times": 1}, "times must be at least 2"),
        ({"samples": 1}, "samples must be at least 2"),
        ({"iteration": 3}, "iterations"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    z, labels = classes()
    with pytest.raises(UserError, match=message):
        viv(z, labels, **options)


@pytest.mark.parametrize("normalize", [True, False])
def test_non_finite_latents_are_refused(normalize: bool) -> None:
    z, labels = classes()
    z[5, 0, 0, 0] = np.nan
    with pytest.raises(UserError, match="image 5"):
        viv(z, labels, normalize=normalize)


def test_labels_are_needed_for_the_class_conditional_value_only() -> None:
    with pytest.raises(UserError, match="condition='marginal'"):
        viv(classes()[0])


def test_result_is_complete_json() -> None:
    z, labels = classes()
    data = json.loads(viv(z, labels).to_json())
    assert data["parameters"]["iterations"] == 5 and data["direction"] == "lower" and data["n"] == 48
    assert len(data["details"]["curve"]) == 32


def test_marginal_mixture_has_the_exact_curve_and_integral() -> None:
    """1-D mixture pi = (0.3, 0.7), mu = (-1.5, 0.8), l = (0.2, 0.5); exact values by quadrature (metrics.md, section 1)."""
    rng = np.random.default_rng(0)
    labels = (np.arange(10_000) >= 3_000).astype(int)
    z = rng.normal(size=10_000)
    for k, (mean, variance) in enumerate(((-1.5, 0.2), (0.8, 0.5))):
        own = z[labels == k]
        z[labels == k] = (own - own.mean()) / own.std() * np.sqrt(variance) + mean
    times = (0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1)
    exact = (1.5209, 1.84301624, 2.30970944, 2.29167177, 1.5160605, 1.20463945, 1.02008688, 1)
    options = {"condition": "marginal", "normalize": False, "reduce": "sum", "times": times}
    measured = viv(z[:, None, None, None], labels, **options)
    assert measured.value == pytest.approx(1.87059647, abs=4e-3)
    np.testing.assert_allclose(measured.details["t"], times)
    np.testing.assert_allclose(measured.details["curve"], exact, atol=6e-3)


def test_curve_at_chosen_times_and_all_eigenvalues_on_request() -> None:
    z, labels = classes()
    times = [0, 0.3, 1]
    measured = viv(z, labels, times=times, eigenvalues=True)
    spectra = measured.details["class_eigenvalues"]
    d = z[0].size
    assert all(len(spectrum) == d for spectrum in spectra.values())
    expected = [np.mean([latentlab.velocity_variance(v, t) / d for v in spectra.values()]) for t in times]
    np.testing.assert_allclose(measured.details["curve"], expected, rtol=1e-12)
    assert measured.value == viv(z, labels).value
    with pytest.raises(UserError, match="times must lie in"):
        viv(z, labels, times=[0, 1.5])
