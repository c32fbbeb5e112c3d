import math

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

from analyses.gaussians import SHAPES, DegenerateMixtureError
from analyses.kmeans import kmeans, nearest_centre, seed_centres
from analyses.mixture import Mixture, bic, em, fit_mixture, random_starts, score_samples, split_start
from analyses.points import ArrayPoints, MappedPoints, in_memory, sample
from latentlab.errors import UserError

COVARIANCES = tuple(SHAPES)


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    """600 points of 4 overlapping, correlated, unequal clusters in 5 dimensions."""
    rng = np.random.default_rng(0)
    sizes = (50, 100, 200, 250)
    parts = [
        rng.standard_normal((n, 5)) @ (rng.standard_normal((5, 5)) * 0.5) + 3 * rng.standard_normal(5) for n in sizes
    ]
    return torch.from_numpy(np.concatenate(parts)[rng.permutation(600)])


def start(rows: torch.Tensor, covariance: str, k: int = 4) -> Mixture:
    (found,) = random_starts(ArrayPoints(rows), k, covariance, 1, seed=1)
    return found


def sklearn_fit(rows: torch.Tensor, first: Mixture, tol: float, max_iter: int) -> GaussianMixture:
    """scikit-learn's EM from the same start."""
    covariances = first.covariances.numpy()
    peer = GaussianMixture(
        len(first.weights),
        covariance_type=first.covariance,
        tol=tol,
        max_iter=max_iter,
        weights_init=first.weights.numpy(),
        means_init=first.means.numpy(),
        precisions_init=1 / covariances if first.covariance == "diag" else np.linalg.inv(covariances),
    )
    return peer.fit(rows.numpy())


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.filterwarnings("ignore:.*did not converge")
def test_iterations_are_those_of_scikit_learn(rows: torch.Tensor, covariance: str) -> None:
    first = start(rows, covariance)
    peer = sklearn_fit(rows, first, tol=0, max_iter=12)
    ours = em(ArrayPoints(rows), first, tol=0, max_iter=12)
    for ours_values, peer_values in (
        (ours.mixture.weights, peer.weights_),
        (ours.mixture.means, peer.means_),
        (ours.mixture.covariances, peer.covariances_),
        (ours.log_likelihoods, peer.lower_bounds_),
        (score_samples(ArrayPoints(rows), ours.mixture), peer.score_samples(rows.numpy())),
    ):
        np.testing.assert_allclose(np.asarray(ours_values), peer_values, rtol=1e-8, atol=1e-10)
    assert not ours.converged
    assert ours.mixture.n_parameters == peer._n_parameters()
    mean = float(score_samples(ArrayPoints(rows), ours.mixture).mean())
    assert bic(mean, ours.mixture.n_parameters, len(rows)) == pytest.approx(peer.bic(rows.numpy()), rel=1e-10)


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("tol", [1e-2, 1e-4])
def test_stops_where_scikit_learn_stops(rows: torch.Tensor, covariance: str, tol: float) -> None:
    first = start(rows, covariance)
    peer = sklearn_fit(rows, first, tol=tol, max_iter=200)
    ours = em(ArrayPoints(rows), first, tol=tol, max_iter=200)
    assert (len(ours.log_likelihoods), ours.converged) == (peer.n_iter_, peer.converged_)
    assert ours.log_likelihoods[-1] == pytest.approx(peer.lower_bound_, abs=1e-10)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_likelihood_never_falls(rows: torch.Tensor, covariance: str) -> None:
    fit = em(ArrayPoints(rows), start(rows, covariance), tol=0, max_iter=40, reg_covar=0)
    assert np.diff(fit.log_likelihoods).min() > -1e-12


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_chunks_order_and_precision_of_storage_do_not_matter(rows: torch.Tensor, covariance: str) -> None:
    stored = rows.float()
    first = start(rows, covariance)
    whole = em(ArrayPoints(stored.double()), first, max_iter=15, tol=0)
    shuffled = stored[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    for points in (ArrayPoints(stored, size=47), ArrayPoints(shuffled, size=201)):
        pieces = em(points, first, max_iter=15, tol=0)
        torch.testing.assert_close(pieces.mixture.covariances, whole.mixture.covariances, rtol=1e-9, atol=1e-11)
        assert pieces.log_likelihoods[-1] == pytest.approx(whole.log_likelihoods[-1], abs=1e-11)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_runs_over_a_memory_mapped_file(rows: torch.Tensor, covariance: str, tmp_path) -> None:
    np.save(tmp_path / "rows.npy", rows.numpy())
    mapped = ArrayPoints(torch.from_numpy(np.load(tmp_path / "rows.npy", mmap_mode="c")), size=64)
    ours, theirs = fit_mixture(mapped, 4, covariance), fit_mixture(ArrayPoints(rows), 4, covariance)
    torch.testing.assert_close(ours.mixture.means, theirs.mixture.means, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_far_from_the_origin_nothing_cancels(rows: torch.Tensor, covariance: str) -> None:
    first = start(rows, covariance)
    offset = 2.0**20
    far = Mixture(covariance, first.weights, first.means + offset, first.covariances)
    here, there = em(ArrayPoints(rows), first, max_iter=10), em(ArrayPoints(rows + offset), far, max_iter=10)
    torch.testing.assert_close(there.mixture.covariances, here.mixture.covariances, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_one_component_is_the_moments(rows: torch.Tensor, covariance: str) -> None:
    fit = fit_mixture(ArrayPoints(rows), 1, covariance, reg_covar=0)
    expected = torch.cov(rows.T, correction=0)
    found = fit.mixture.covariances.reshape(-1, 5) if covariance == "diag" else fit.mixture.covariances.reshape(5, 5)
    torch.testing.assert_close(found, expected.diagonal()[None] if covariance == "diag" else expected)
    assert fit.converged and len(fit.log_likelihoods) <= 3


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_finds_separated_clusters(covariance: str) -> None:
    generator = torch.Generator().manual_seed(3)
    true = 20 * torch.randn(6, 3, generator=generator, dtype=torch.float64)
    labels = torch.arange(1200) % 6
    rows = true[labels] + torch.randn(1200, 3, generator=generator, dtype=torch.float64)
    fit = fit_mixture(ArrayPoints(rows), 6, covariance)
    matched = torch.cdist(true, fit.mixture.means).argmin(1)
    assert sorted(matched.tolist()) == list(range(6))
    torch.testing.assert_close(fit.mixture.means[matched], true, atol=0.3, rtol=0)
    torch.testing.assert_close(fit.mixture.weights, torch.full((6,), 1 / 6, dtype=torch.float64), atol=0.01, rtol=0)


def test_same_seed_same_fit_and_starts_differ(rows: torch.Tensor) -> None:
    first, second = (fit_mixture(ArrayPoints(rows), 5, seed=4) for _ in range(2))
    assert torch.equal(first.mixture.covariances, second.mixture.covariances)
    a, b = random_starts(ArrayPoints(rows), 5, "full", 2)
    assert not torch.equal(a.means, b.means)


def test_more_starts_are_not_worse_after_the_short_runs(rows: torch.Tensor) -> None:
    one, many = (fit_mixture(ArrayPoints(rows), 6, n_init=n, max_iter=5, tol=0) for n in (1, 8))
    assert many.log_likelihoods[-1] >= one.log_likelihoods[-1]


@pytest.mark.parametrize("max_iter", [1, 5, 7])
def test_max_iter_counts_the_short_run(rows: torch.Tensor, max_iter: int) -> None:
    fit = fit_mixture(ArrayPoints(rows), 4, tol=0, max_iter=max_iter)
    assert len(fit.log_likelihoods) == max_iter and not fit.converged


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_split_keeps_mean_and_covariance_of_the_whole(rows: torch.Tensor, covariance: str) -> None:
    def moments(mixture: Mixture) -> tuple[torch.Tensor, torch.Tensor]:
        mean = mixture.weights @ mixture.means
        within = mixture.covariances if covariance == "full" else torch.diag_embed(mixture.covariances)
        centred = mixture.means - mean
        return mean, torch.einsum("k,kij->ij", mixture.weights, within + centred[:, :, None] * centred[:, None, :])

    mixture = em(ArrayPoints(rows), start(rows, covariance, 2), max_iter=10).mixture
    split = split_start(mixture, 9)
    assert split.means.shape == (9, 5) and split.weights.sum() == pytest.approx(1)
    for before, after in zip(moments(mixture), moments(split), strict=True):
        torch.testing.assert_close(after, before)
    assert torch.linalg.eigvalsh(split.covariances).min() > 0 if covariance == "full" else split.covariances.min() > 0


def test_split_divides_the_widest_component_along_its_axis() -> None:
    mixture = Mixture(
        "full",
        torch.tensor([0.5, 0.5], dtype=torch.float64),
        torch.tensor([[0.0, 0.0], [9.0, 9.0]], dtype=torch.float64),
        torch.stack([torch.eye(2), torch.diag(torch.tensor([1.0, 16.0]))]).double(),
    )
    split = split_start(mixture, 3)
    assert split.weights.tolist() == [0.5, 0.25, 0.25]
    assert sorted(split.means[1:, 1].tolist()) == [7.0, 11.0] and split.means[1:, 0].tolist() == [9.0, 9.0]
    torch.testing.assert_close(split.covariances[1:], torch.diag(torch.tensor([1.0, 12.0])).double().repeat(2, 1, 1))


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_second_split_takes_the_axis_that_is_now_widest(covariance: str) -> None:
    variances = torch.tensor([[16.0, 14.0]], dtype=torch.float64)
    mixture = Mixture(
        covariance,  # type: ignore[arg-type]
        torch.ones(1, dtype=torch.float64),
        torch.zeros(1, 2, dtype=torch.float64),
        torch.diag_embed(variances) if covariance == "full" else variances,
    )
    split = split_start(mixture, 4)
    offsets = sorted((round(abs(x), 9), round(abs(y), 9)) for x, y in split.means.tolist())
    assert offsets == [(2, round(0.5 * math.sqrt(14), 9))] * 4 and len({tuple(m) for m in split.means.tolist()}) == 4


def test_warm_start_alone_improves_on_what_was_split(rows: torch.Tensor) -> None:
    for covariance in COVARIANCES:
        small = fit_mixture(ArrayPoints(rows), 3, covariance)
        large = fit_mixture(ArrayPoints(rows), 6, covariance, n_init=0, warm=small.mixture)
        assert large.log_likelihoods[-1] > small.log_likelihoods[-1]


def test_empty_component_is_an_error(rows: torch.Tensor) -> None:
    first = start(rows, "full", 2)
    first.means[1] = 1e6
    with pytest.raises(DegenerateMixtureError, match="component 1 of 2 lost all its points"):
        em(ArrayPoints(rows), first)


def test_negligible_responsibilities_are_left_out_of_all_sums_alike() -> None:
    """Component 1 has 5e-15 of one point, and 9e-21 (dropped) of each of 20,000 others: its variance is 0."""
    ones = torch.ones(2, 1, 1, dtype=torch.float64)
    first = Mixture("full", ones[:, 0, 0] / 2, torch.tensor([[0.0], [10.0]], dtype=torch.float64), ones)
    # Odds of the components at x are exp(10 (x - 5)).
    at = [5 + math.log(odds) / 10 for odds in (5e-15, 9e-21)]
    rows = torch.tensor([at[0]] + [at[1]] * 20_000, dtype=torch.float64)[:, None]
    found = em(ArrayPoints(rows), first, max_iter=1).mixture
    assert found.weights[1].item() * len(rows) == pytest.approx(5e-15)
    assert found.means[1].item() == pytest.approx(at[0])
    assert found.covariances[1].item() == pytest.approx(1e-6, rel=1e-6)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_singular_covariance_is_an_error(rows: torch.Tensor, covariance: str) -> None:
    flat = rows.clone()
    flat[:, 2] = 0
    with pytest.raises(DegenerateMixtureError, match="singular covariance"):
        fit_mixture(ArrayPoints(flat), 3, covariance, reg_covar=0)


def test_degenerate_start_is_passed_over(rows: torch.Tensor) -> None:
    bad = start(rows, "full", 2)
    bad.means[1] = 1e6
    fit = fit_mixture(ArrayPoints(rows), 2, n_init=1, warm=bad)
    assert fit.mixture.means.abs().max() < 100


def test_what_cannot_be_fitted_is_refused(rows: torch.Tensor) -> None:
    points = ArrayPoints(rows)
    with pytest.raises(UserError, match="between 1 and the number of points 600, got 601"):
        fit_mixture(points, 601)
    with pytest.raises(UserError, match="unknown covariance 'spherical'"):
        fit_mixture(points, 2, "spherical")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="n_init must be at least 1"):
        fit_mixture(points, 2, n_init=0)
    with pytest.raises(UserError, match="max_iter must be at least 1, got 0"):
        fit_mixture(points, 2, max_iter=0)
    with pytest.raises(UserError, match="3 dimensions, the start has 5"):
        em(ArrayPoints(rows[:, :3]), start(rows, "full"))
    with pytest.raises(UserError, match="cannot split 4 components into 3"):
        split_start(start(rows, "full"), 3)
    with pytest.raises(UserError, match="5 components need 5 different points, there are only 2"):
        fit_mixture(ArrayPoints(torch.tensor([[0.0], [1.0]]).repeat(10, 1)), 5)


def test_score_samples_is_the_textbook_density() -> None:
    mixture = Mixture(
        "diag",
        torch.tensor([0.25, 0.75], dtype=torch.float64),
        torch.tensor([[0.0], [2.0]], dtype=torch.float64),
        torch.tensor([[1.0], [4.0]], dtype=torch.float64),
    )
    x = 1.5
    expected = math.log(
        0.25 * math.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
        + 0.75 * math.exp(-((x - 2) ** 2) / 8) / math.sqrt(8 * math.pi)
    )
    found = score_samples(ArrayPoints(torch.tensor([[x]])), mixture)
    assert found.item() == pytest.approx(expected, abs=1e-14)


def test_kmeans_finds_separated_clusters_and_lloyd_steps_help(rows: torch.Tensor) -> None:
    def inertia(centres: torch.Tensor) -> float:
        return float((rows - centres[nearest_centre(rows, centres)]).square().sum())

    seeded, refined = (inertia(kmeans(rows, 5, torch.Generator().manual_seed(0), steps)[0]) for steps in (0, 5))
    assert refined < seeded
    brute = torch.cdist(rows, rows[:7], compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    assert torch.equal(nearest_centre(rows, rows[:7]), brute)


def test_seeding_prefers_distant_points() -> None:
    rows = torch.cat([torch.zeros(1000, 1), torch.full((1, 1), 100.0)]).double()
    for seed in range(5):  # the outlier is the only point at a positive distance
        assert sorted(seed_centres(rows, 2, torch.Generator().manual_seed(seed)).flatten().tolist()) == [0, 100]


def test_points_are_sampled_cached_and_mapped_the_same_in_any_chunks(rows: torch.Tensor) -> None:
    small, large = ArrayPoints(rows, size=13), ArrayPoints(rows)
    assert torch.equal(sample(small, 50, seed=2), sample(large, 50, seed=2))
    assert torch.equal(sample(small, 1000, seed=2), rows)
    doubled = MappedPoints(small, lambda chunk: 2 * chunk[:, :2], 2)
    for kept in (in_memory(doubled, limit=8 * 2 * 600), in_memory(doubled, limit=8 * 2 * 600 - 1)):
        assert (kept.n, kept.d) == (600, 2) and torch.equal(torch.cat(list(kept.chunks())), 2 * rows[:, :2])
    assert in_memory(doubled, limit=8 * 2 * 600 - 1) is doubled
