"""Intrinsic dimension of known manifolds, against scikit-dimension on distances of scikit-learn, and its interval."""

import numpy as np
import pytest
import skdim
from sklearn.datasets import make_swiss_roll
from sklearn.neighbors import NearestNeighbors

import latentlab
from analyses import intrinsic_dimension as module
from latentlab.errors import UserError


def dimension(z: np.ndarray, **options: object) -> latentlab.Measurement:
    return latentlab.measure("intrinsic_dimension", z, **options)


def tokens(points: np.ndarray) -> np.ndarray:
    """Points [n,c] as latents of one token."""
    return points[:, None, :]


def cube(n: int, c: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((n, c))


def sphere(n: int = 1500) -> np.ndarray:
    points = np.random.default_rng(0).standard_normal((n, 5))
    return points / np.linalg.norm(points, axis=1)[:, None]


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        (np.outer(cube(1000, 1), [1.0, -2, 0.5]), 1),
        (cube(1500, 2), 2),
        (make_swiss_roll(1500, random_state=0)[0], 2),
        (sphere(), 4),
        (cube(1500, 5), 4.8),  # the boundary costs a little
    ],
    ids=["line", "square", "swiss roll", "sphere", "cube"],
)
def test_known_manifolds(points: np.ndarray, expected: float) -> None:
    for estimator in ("twonn", "mle"):
        measured = dimension(tokens(points), estimator=estimator)
        assert measured.value == pytest.approx(expected, rel=0.1)
        low, high = measured.interval
        assert low < measured.value < high
        assert low == pytest.approx(np.percentile(measured.replicates, 2.5))


@pytest.mark.parametrize("c", [3, 30])
def test_is_scikit_dimensions_estimate_of_standardised_points(c: int) -> None:
    points = np.random.default_rng(0).standard_normal((300, c)) * np.linspace(1, 9, c)
    standard = (points - points.mean(0)) / points.std(0, ddof=1)
    assert dimension(tokens(points)).value == pytest.approx(skdim.id.TwoNN().fit(standard).dimension_, rel=1e-9)
    for k in (3, 20):
        distances, indices = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(standard).kneighbors()
        fitted = skdim.id.MLE().fit(standard, precomputed_knn_arrays=(distances, indices))
        measured = dimension(tokens(points), estimator="mle", k=k)
        assert measured.value == pytest.approx(fitted.dimension_, rel=1e-9)
        np.testing.assert_allclose(measured.details["local"], fitted.dimension_pw_, rtol=1e-9)


def test_images_are_flattened_and_cells_are_drawn_one_per_image() -> None:
    """Every image moves along its own line, and its cells lie in a plane: 1 dimension of images, 2 of cells."""
    rng = np.random.default_rng(0)
    pattern = rng.standard_normal((1, 3, 4, 4))
    z = rng.random((800, 1, 1, 1)) * pattern
    assert dimension(z, normalize=False).value == pytest.approx(1, rel=0.1)
    plane = np.einsum("nkhw,kc->nchw", rng.random((800, 2, 4, 4)), rng.standard_normal((2, 3)))
    measured = dimension(plane, unit="cell")
    assert measured.value == pytest.approx(2, rel=0.15)
    assert measured.n == 800 and "single cells" in measured.variant


@pytest.mark.parametrize("estimator", ["twonn", "mle"])
def test_interval_has_about_the_width_of_repeated_samples(estimator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REPLICATES", 60)
    results = [dimension(tokens(cube(500, 3, seed)), estimator=estimator, k=10) for seed in range(30)]
    ratio = np.mean([m.replicates.std() for m in results]) / np.std([m.value for m in results])
    assert 0.65 < ratio < 1.5


def test_order_batches_dtype_scale_and_rotation_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REPLICATES", 20)
    points = cube(200, 4)
    for estimator in ("twonn", "mle"):
        value = dimension(tokens(points), estimator=estimator).value
        assert dimension(tokens(points[::-1].copy()), estimator=estimator).value == pytest.approx(value, rel=1e-9)
        assert dimension(tokens(points.astype(np.float32)), estimator=estimator).value == pytest.approx(value, rel=1e-4)
        assert dimension(tokens(points * [1, 9, 0.1, 2] + 5), estimator=estimator).value == pytest.approx(
            value, rel=1e-9
        )
        raw = dimension(tokens(points), estimator=estimator, normalize=False).value
        turned = points @ np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0] * 7
        assert dimension(tokens(turned), estimator=estimator, normalize=False).value == pytest.approx(raw, rel=1e-9)
        monkeypatch.setattr(module, "BATCH_BYTES", 1)
        assert dimension(tokens(points), estimator=estimator).value == pytest.approx(value, rel=1e-12)


def test_limit_takes_evenly_from_the_classes_and_seed_chooses() -> None:
    z, labels = tokens(cube(300, 3)), np.arange(300) % 3
    first, again, other = (latentlab.measure("intrinsic_dimension", z, labels, limit=90, seed=s) for s in (0, 0, 1))
    assert first.n == 90 and first.value == again.value != other.value
    np.testing.assert_array_equal(first.replicates, again.replicates)


def test_equal_points_are_left_out_and_counted() -> None:
    points = cube(100, 2)
    doubled = np.concatenate([points, points[:10]])
    measured = dimension(tokens(doubled), normalize=False)
    assert measured.value == pytest.approx(dimension(tokens(points), normalize=False).value, rel=1e-12)
    assert "10 of 110 points equal another one" in measured.warnings[0]


@pytest.mark.parametrize("options", [{}, {"estimator": "mle", "k": 4}])
@pytest.mark.parametrize("normalize", [True, False])
def test_points_of_a_lattice_have_no_dimension(options: dict, normalize: bool) -> None:
    """Ratios of distances are 1, or differ from it by rounding, or are one other number where the axes are standardised."""
    rng = np.random.default_rng(0)
    corners = np.float32(2 * rng.integers(0, 2, size=(2000, 8)) - 1)
    lattice = np.stack(np.meshgrid(np.arange(20.0), np.arange(20.0)), axis=-1).reshape(-1, 2)
    for points, told in ((corners, "256 of 256 points"), (lattice, "of 400 points")):
        with pytest.raises(UserError, match=f"{told} are equally placed among their [24] nearest neighbours"):
            dimension(tokens(points), normalize=normalize, **options)


@pytest.mark.parametrize("options", [{}, {"estimator": "mle", "k": 4}])
def test_a_few_ties_do_no_harm(options: dict) -> None:
    """A quarter of the points on a lattice far away from the others."""
    lattice = np.stack(np.meshgrid(np.arange(10.0), np.arange(10.0)), axis=-1).reshape(-1, 2)
    measured = dimension(tokens(np.concatenate([cube(300, 2), lattice + 20])), normalize=False, **options)
    assert np.isfinite([measured.value, *measured.interval]).all() and 1 < measured.value < 5


def test_too_few_points_for_the_dimension_are_announced() -> None:
    assert "reliably" in dimension(tokens(cube(100, 20))).warnings[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "danco"}, "unknown estimator"),
        ({"unit": "class"}, "unknown unit"),
        ({"k": 2}, "k must be at least 3, got 2"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"limit": 15}, r"at least 20 different points, got 15 \(of 15\)"),
        ({"estimator": "mle", "k": 99}, "at least 101 different points, got 100"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        dimension(tokens(cube(100, 3)), **options)


def test_unusable_latents_are_refused() -> None:
    z = tokens(cube(50, 3))
    with pytest.raises(UserError, match="got 1 "):
        dimension(np.ones_like(z))
    z[7] = np.nan
    with pytest.raises(UserError, match="image 7"):
        dimension(z)
