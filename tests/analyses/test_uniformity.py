"""Uniformity: the 2-D core against scipy and known values, the sphere against closed forms, t-SNE through the interface."""

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import ive, loggamma
from scipy.stats import gaussian_kde

import latentlab
from analyses import point_density as density_module
from analyses import tsne
from analyses.cells import random_cells
from analyses.point_density import density_uniformity, evenness, point_density
from analyses.uniformity import _by_image, _Draw
from latentlab.errors import UserError


def uniformity(z: np.ndarray, **options: object) -> latentlab.Measurement:
    return latentlab.measure("uniformity", z, **options)


def tokens(points: np.ndarray) -> np.ndarray:
    """Points [n,c] as latents of one token."""
    return points[:, None, :]


def square(n: int = 1500, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((n, 2))


def gaussian(n: int = 1500, c: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, c))


def clusters(n: int = 1500, c: int = 2, seed: int = 0) -> np.ndarray:
    """Six far and narrow groups: on a hexagon in the plane, on the axes in more dimensions."""
    rng = np.random.default_rng(seed)
    angle = np.pi / 3 * np.arange(6)
    centres = (
        np.stack([np.cos(angle), np.sin(angle)], axis=1) if c == 2 else np.concatenate([np.eye(c), -np.eye(c)])[:6]
    )
    return 10 * centres[rng.integers(len(centres), size=n)] + 0.5 * rng.standard_normal((n, c))


def test_typical_values() -> None:
    """Typical at n = 1500; clusters come out as the most even, which is the known flaw of one bandwidth."""
    assert density_uniformity(square()) == pytest.approx((0.212, 0.119, 0.9967), abs=0.012)
    assert density_uniformity(gaussian()) == pytest.approx((0.519, 0.299, 0.9784), abs=0.03)
    assert density_uniformity(clusters()) == pytest.approx((0.076, 0.037, 0.9996), abs=0.02)


@pytest.mark.parametrize("block", [1, 5000, 4 << 20])
def test_density_is_scipys(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(density_module, "_BLOCK_BYTES", block)
    points = gaussian(137) @ [[3.0, 0.4], [0, 0.01]] + [100, -3]
    np.testing.assert_allclose(point_density(points), gaussian_kde(points.T)(points.T), rtol=1e-10)
    np.testing.assert_allclose(point_density(points.astype(np.float32)), point_density(points), rtol=1e-3)
    assert density_uniformity(torch.from_numpy(points)) == density_uniformity(points)


def test_statistics_follow_their_definitions() -> None:
    """By hand for (1, 2, 5); Gini as half the mean absolute difference over the mean, without n/(n-1)."""
    f = np.array([5.0, 1.0, 2.0])
    share = np.array([1, 2, 5]) / 8
    cv, gini, entropy = evenness(f)
    assert cv == pytest.approx(np.sqrt(26 / 9) / (8 / 3), abs=1e-12)
    assert gini == pytest.approx(np.abs(f[:, None] - f).mean() / (2 * f.mean()), abs=1e-12) == pytest.approx(1 / 3)
    assert entropy == pytest.approx(-(share * np.log2(share + 1e-10)).sum() / np.log2(3), abs=1e-12)
    assert evenness(np.full(7, 0.3)) == pytest.approx((0, 0, 1), abs=1e-8)


def test_affine_maps_and_order_do_not_matter() -> None:
    points = square(400)
    moved = points[::-1] @ [[2.0, 7.0], [-0.5, 0.1]] + [1e3, -5]
    assert density_uniformity(moved) == pytest.approx(density_uniformity(points), rel=1e-9)


def test_entropy_of_nearly_even_densities() -> None:
    """entropy = 1 - CV^2 / (2 ln n)."""
    f = 1 + 0.05 * np.random.default_rng(0).standard_normal(2000)
    cv, _, entropy = evenness(f)
    assert 1 - entropy == pytest.approx(cv**2 / (2 * np.log(2000)), rel=0.05)


def test_points_in_the_plane_need_no_embedding() -> None:
    points = square(300)
    measured = uniformity(tokens(points))
    assert (measured.value, *(e.value for e in measured.companions.values())) == density_uniformity(points)
    assert list(measured.companions) == ["gini", "normalized_entropy"]
    assert measured.interval is None and measured.replicates is None and measured.n == 300
    assert "one repeat only" in " ".join(measured.warnings) and "clusters" in measured.warnings[0]
    np.testing.assert_allclose(measured.details["points"], points, atol=5e-4)
    assert measured.details["density"].mean() == pytest.approx(1, abs=1e-4)


def grid_latents(n: int = 90) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, 3, 2, 2)) * [[[1.0]], [[5.0]], [[0.1]]] + [[[0.0]], [[2.0]], [[9.0]]]


def test_embeds_single_cells_and_averages_repeats() -> None:
    z = grid_latents()
    options = {"perplexity": 10, "iterations": 250, "repeats": 2}
    first, again, other = (uniformity(z, **options, seed=seed) for seed in (0, 0, 1))
    assert first.value == again.value != other.value
    assert first.value == pytest.approx(first.details["repeats"][:, 0].mean())
    assert first.companions["gini"].value == pytest.approx(first.details["repeats"][:, 1].mean())
    assert first.replicates is None and first.units is None  # draws of cells do not tell two spaces apart
    low, high = first.interval
    assert low <= first.value <= high
    half = stats.t.ppf(0.975, 1) * np.std(first.details["repeats"][:, 0], ddof=1) / np.sqrt(2)
    assert high - low == pytest.approx(2 * half, rel=0.35)  # two repeats have three different replicates
    assert "the interval covers the draw of the cells, not which images were measured" in first.warnings
    assert "2 repeats only: the interval over them is rough" in first.warnings
    assert first.details["points"].shape == (90, 2)
    assert "t-SNE of single cells, perplexity 10" in first.variant


def test_normalised_value_ignores_scales_of_channels() -> None:
    """Exactly so for powers of two, which round nothing: t-SNE itself amplifies rounding."""
    z = grid_latents(60)
    scaled = z * np.array([4.0, 0.25, 2.0])[:, None, None]
    options = {"perplexity": 10, "iterations": 250, "repeats": 1}
    assert uniformity(scaled, **options).value == uniformity(z, **options).value
    assert uniformity(scaled, **options, normalize=False).value != uniformity(z, **options, normalize=False).value


def test_repeats_that_see_the_same_cells_have_no_interval() -> None:
    z = tokens(gaussian(60, c=3))
    measured = uniformity(z, perplexity=10, iterations=250, repeats=2)
    assert measured.interval is None and "same cells" in measured.warnings[-1]


def test_cells_are_one_of_each_chosen_image(monkeypatch: pytest.MonkeyPatch) -> None:
    z = np.arange(5 * 2 * 3, dtype=np.float64).reshape(5, 2, 3, 1)
    latents = latentlab.ArrayLatents(z)
    images = np.array([0, 2, 3])
    drawn = random_cells(latents, images, np.random.default_rng(1), normalize=False)
    for row, image in zip(drawn.numpy(), images, strict=True):
        assert row.tolist() in z[image, :, :, 0].T.tolist()
    monkeypatch.setattr("analyses.cells.BATCH_BYTES", 1)
    torch.testing.assert_close(random_cells(latents, images, np.random.default_rng(1), normalize=False), drawn)
    standard = random_cells(latents, images, np.random.default_rng(1), normalize=True)
    channel = z[:, 0]
    np.testing.assert_allclose(standard[:, 0], (drawn[:, 0] - channel.mean()) / channel.std(ddof=1), rtol=1e-12)


def test_sphere_orders_what_one_bandwidth_does_not() -> None:
    """Uniform < Gaussian < separated clusters, in 2, 8 and 16 dimensions; the density CV of clusters is the lowest."""
    for c in (2, 8, 16):
        cube = np.random.default_rng(1).random((1500, c))
        values = [uniformity(tokens(x), method="sphere") for x in (cube, gaussian(c=c), clusters(c=c))]
        (_, uniform), (gauss_low, gauss_high), (clusters_low, _) = (m.interval for m in values)
        assert uniform < gauss_low and gauss_high < clusters_low
    by_density = [density_uniformity(x).density_cv for x in (square(), gaussian(), clusters())]
    assert by_density[2] < by_density[0] < by_density[1]


def test_sphere_is_wang_and_isolas_potential_of_the_lifted_points() -> None:
    """On explicit points of the sphere in R^(c+2), averaged over a grid of angles between the two of a pair."""
    points = clusters(60, c=3)
    centred = points - points.mean(0)
    ball = centred @ np.linalg.inv(np.linalg.cholesky(np.cov(centred.T)).T) / np.sqrt(5)
    ball /= np.maximum(np.linalg.norm(ball, axis=1), 1)[:, None]
    height = np.sqrt(np.maximum(1 - (ball**2).sum(1), 0))[:, None]
    pairs = ~np.eye(60, dtype=bool)
    first = np.hstack([ball, height, 0 * height])
    potentials = []
    for angle in np.linspace(0, 2 * np.pi, 32, endpoint=False):
        second = np.hstack([ball, height * np.cos(angle), height * np.sin(angle)])
        potentials.append(np.exp(-2 * ((first[:, None] - second) ** 2).sum(-1)[pairs]).mean())
    p, t = 5, 2.0  # least potential: e^(-2t) Gamma(p/2) t^(1-p/2) I_(p/2-1)(2t)
    least = np.exp(loggamma(p / 2) + (1 - p / 2) * np.log(t)) * ive(p / 2 - 1, 2 * t)
    measured = uniformity(tokens(points), method="sphere")
    assert measured.value == pytest.approx(np.log(np.mean(potentials)) - np.log(least), abs=1e-9)
    assert measured.details["least_potential"] == pytest.approx(np.log(least), abs=1e-12)


@pytest.mark.parametrize("c", [1, 2, 5, 20])
def test_sphere_is_zero_for_a_uniform_ball(c: int) -> None:
    rng = np.random.default_rng(0)
    direction = rng.standard_normal((3000, c))
    ball = direction / np.linalg.norm(direction, axis=1)[:, None] * rng.random((3000, 1)) ** (1 / c)
    value = uniformity(tokens(ball), method="sphere").value
    assert -10 / 3000 < value < 2e-3


def test_sphere_ignores_affine_maps_blocks_and_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    points = clusters(200, c=3)
    measured = uniformity(tokens(points), method="sphere")
    mixed = points @ np.random.default_rng(3).standard_normal((3, 3)) + 50
    assert uniformity(tokens(mixed), method="sphere").value == pytest.approx(measured.value, rel=1e-8)
    assert uniformity(tokens(points[::-1].copy()), method="sphere").value == pytest.approx(measured.value, rel=1e-10)
    assert uniformity(tokens(points.astype(np.float32)), method="sphere").value == pytest.approx(
        measured.value, rel=1e-4
    )
    monkeypatch.setattr(density_module, "_BLOCK_BYTES", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        parted = uniformity(tokens(points), method="sphere")
    finally:
        torch.set_num_threads(before)
    assert parted.value == pytest.approx(measured.value, rel=1e-12)
    np.testing.assert_allclose(parted.replicates, measured.replicates, rtol=1e-9)


def test_sphere_interval_has_the_width_of_repeated_samples() -> None:
    values = [uniformity(tokens(gaussian(300, 4, seed)), method="sphere") for seed in range(60)]
    spread = np.std([m.value for m in values])
    assert np.mean([m.replicates.std() for m in values]) == pytest.approx(spread, rel=0.35)


def test_sphere_interval_of_repeats_on_some_of_the_images_has_that_width_too() -> None:
    """Every image is in some of the 8 draws of 80 of 100: influences of position i in each are not those of one image."""
    z = [tokens(gaussian(100, 3, seed)) for seed in range(40)]
    measured = [uniformity(x, method="sphere", n_points=80, repeats=8) for x in z]
    spread = np.std([m.value for m in measured])
    assert 0.9 < np.mean([m.replicates.std() for m in measured]) / spread < 1.5
    assert all(m.n == 80 and m.units == 100 for m in measured)


def test_influences_of_draws_are_added_by_image() -> None:
    draws = [_Draw(np.array(images), torch.zeros(2, 1), 0) for images in ([0, 7], [3, 7])]
    influences = _by_image(draws, [np.array([1.0, 2.0]), np.array([5.0, -3.0])])
    np.testing.assert_allclose(influences, np.array([1, 5, 2 - 3]) * 3 / 4)  # images 0, 3, 7


def test_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    z = grid_latents()
    whole = uniformity(z, method="sphere", repeats=2, n_points=50)
    monkeypatch.setattr("latentlab.latents.BATCH_BYTES", 100)
    monkeypatch.setattr("analyses.cells.BATCH_BYTES", 100)
    assert uniformity(z, method="sphere", repeats=2, n_points=50).value == pytest.approx(whole.value, rel=1e-12)
    assert whole.n == 50


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.zeros((5, 3)), r"points must be \[n,2\], got shape \[5, 3\]"),
        (square(2), "at least 3 points, got 2"),
        (np.array([[0, 0], [1, np.nan], [2, 5.0]]), "NaN"),
        (np.outer(np.arange(9.0), [1, 2]), "singular"),
        (np.ones((9, 2)), "singular"),
    ],
)
def test_unusable_points_are_refused(points: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        density_uniformity(points)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"perplexity": 90}, "perplexity < number of points, got perplexity=90 and 90 points"),
        ({"n_points": 25}, "perplexity=30 and 25 points"),
        ({"perplexity": 0.5}, "1 <= perplexity"),
        ({"iterations": 100}, "iterations must be at least 250, got 100"),
        ({"repeats": 0}, "repeats must be at least 1, got 0"),
        ({"n_points": 2, "method": "sphere"}, "at least 3 images"),
        ({"method": "cube"}, "unknown method 'cube'"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        uniformity(grid_latents(), **options)


def test_unusable_latents_are_refused() -> None:
    z = grid_latents()
    z[4] = np.nan
    with pytest.raises(UserError, match="image 4"):
        uniformity(z, method="sphere")
    for method in ("tsne", "sphere"):
        with pytest.raises(UserError, match="collapsed"):
            uniformity(np.ones((40, 3, 2, 2)), method=method, perplexity=5)
    with pytest.raises(UserError, match="more of them than channels"):
        uniformity(tokens(gaussian(6, c=9)), method="sphere")


def test_processes_give_what_one_process_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    sets = [rng.normal(size=(60, 3)).astype(np.float32) for _ in range(2)]
    options = {"perplexity": 10, "iterations": 250, "seeds": [1, 2]}
    alone = tsne.embeddings(sets, workers=2, **options)
    monkeypatch.setattr(tsne, "ALONE", 10)
    np.testing.assert_array_equal(tsne.embeddings(sets, workers=2, **options), alone)
