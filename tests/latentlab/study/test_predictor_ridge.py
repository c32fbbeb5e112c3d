"""Ridge with left-out groups, jackknife+ and the reach of a study, against slow loops, scikit-learn and simulation."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.preprocessing import StandardScaler

from latentlab.study.predictor.domain import fit_domain, limit_of
from latentlab.study.predictor.interval import fewest_points, jackknife_plus
from latentlab.study.predictor.ridge import fit_ridge, left_out_errors, ridge, standards

PENALTIES = np.array([0.01, 1.0, 30.0, 1e4])


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Twenty points of five measurements in unlike units, two of them nearly the same, in six unequal groups."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 5)) * [1, 100, 0.01, 1, 5] + [0, 3, 7, -2, 1]
    x[:, 3] = x[:, 0] + 0.01 * rng.normal(size=20)
    return x, x @ [1, 0.02, 30, 1, 0] + rng.normal(size=20), np.array(list("aabbbbccddddddeeefff"))


@pytest.mark.parametrize("penalty", PENALTIES)
def test_ridge_is_that_of_scikit_learn(data, penalty):
    x, y, _ = data
    scaler = StandardScaler().fit(x)
    theirs = Ridge(alpha=penalty).fit(scaler.transform(x), y)
    ours = ridge(x, y, float(penalty))
    np.testing.assert_allclose(ours.at(x), theirs.predict(scaler.transform(x)), rtol=1e-9)
    np.testing.assert_allclose(ours.slopes, theirs.coef_ / scaler.scale_, rtol=1e-6)


def test_degrees_of_freedom_lie_between_the_mean_and_least_squares(data):
    x, y, _ = data
    assert ridge(x, y, 0.0).degrees_of_freedom == pytest.approx(6)
    assert ridge(x, y, 1e12).degrees_of_freedom == pytest.approx(1)
    np.testing.assert_allclose(ridge(x, y, 1e12).at(x), y.mean())


def test_left_out_groups_are_those_of_a_slow_loop(data):
    x, y, groups = data
    z = StandardScaler().fit_transform(x)  # once, of all: what the closed form keeps
    fast = left_out_errors(z, y, groups, PENALTIES)
    for q, penalty in enumerate(PENALTIES):
        slow = np.empty(20)
        for group in set(groups):
            own = groups == group
            slow[own] = y[own] - Ridge(alpha=penalty).fit(z[~own], y[~own]).predict(z[own])
        np.testing.assert_allclose(fast[q], slow, rtol=1e-7)


def test_single_points_left_out_give_the_penalty_of_scikit_learn(data):
    x, y, _ = data
    grid = np.geomspace(0.01, 1e3, 13)
    theirs = RidgeCV(alphas=grid, scoring="neg_mean_squared_error").fit(StandardScaler().fit_transform(x), y)
    assert fit_ridge(x, y, np.arange(20), grid).penalty == pytest.approx(theirs.alpha_)
    assert grid[0] < theirs.alpha_ < grid[-1]


def test_units_and_order_change_nothing(data):
    x, y, groups = data
    new = x[:3] + 0.1
    plain = fit_ridge(x, y, groups)
    order = np.random.default_rng(1).permutation(20)
    scale = np.array([1e6, 1e-6, 3, 1, 1])
    other = fit_ridge(x[order] * scale + 5, y[order], groups[order])
    np.testing.assert_allclose(other.at(new * scale + 5), plain.at(new), rtol=1e-9)
    assert other.penalty == plain.penalty


def test_noise_is_shrunk_to_the_mean():
    rng = np.random.default_rng(3)
    fit = fit_ridge(rng.normal(size=(24, 10)), rng.normal(size=24), np.arange(24) // 3)
    assert fit.degrees_of_freedom < 1.5


def test_a_measurement_that_does_not_vary_has_no_slope(data):
    x, y, groups = data
    still = np.column_stack([x, np.full(20, 0.1)])
    assert standards(still)[1][-1] == 1
    fit = fit_ridge(still, y, groups)
    assert abs(fit.slopes[-1]) < 1e-12
    np.testing.assert_allclose(fit.at(still), fit_ridge(x, y, groups).at(x))


# ---- jackknife+


def test_interval_by_hand():
    """n = 19, level 0.9: the 2nd smallest of mu - R and the 18th smallest of mu + R."""
    mu, r = np.arange(19.0), np.ones(19)
    assert jackknife_plus(mu, r, 0.9) == (0.0, 18.0)
    assert fewest_points(0.9) == 9 and fewest_points(0.95) == 19
    assert jackknife_plus(mu[:8], r[:8], 0.9) == (-np.inf, np.inf)
    assert jackknife_plus(mu[:9], r[:9], 0.9) == (-1.0, 9.0)


def _coverage(alike: bool, leave_out_clusters: bool, trials: int = 24) -> float:
    """Return the share of tokenizers of new clusters that their 90 % interval holds, the penalty chosen in every fit.

    Studies of 24 tokenizers in 8 clusters with 5 measurements; each fit is tried on 24 tokenizers of 8 new clusters.

    Args:
        alike: tokenizers of a cluster have nearly the same measurements and a common offset in quality.
        leave_out_clusters: as the predictor does; else single tokenizers, as in plain jackknife+.
        trials: number of studies.
    """
    rng = np.random.default_rng(5)
    cluster = np.arange(48) // 3
    left_out = cluster[:24] if leave_out_clusters else np.arange(24)
    held = []
    for _ in range(trials):
        x = (rng.normal(size=(16, 5))[cluster] + 0.2 * rng.normal(size=(48, 5))) if alike else rng.normal(size=(48, 5))
        y = x @ [1, -1, 0, 0.5, 0.3] + 0.5 * rng.standard_t(4, size=48) + alike * rng.normal(size=16)[cluster]
        known, new = x[:24], x[24:]
        fits = {
            g: fit_ridge(known[left_out != g], y[:24][left_out != g], left_out[left_out != g])
            for g in np.unique(left_out).tolist()
        }
        errors = [abs(y[i] - fits[left_out[i]].at(known[i])) for i in range(24)]
        said = np.array([fits[g].at(new) for g in left_out])  # [24 fits, 24 new]
        ends = [jackknife_plus(mu, errors, 0.9) for mu in said.T]
        held += [low <= value <= high for (low, high), value in zip(ends, y[24:], strict=True)]
    return float(np.mean(held))


@pytest.mark.parametrize("leave_out_clusters", [False, True])
def test_interval_of_independent_tokenizers_covers_what_it_should(leave_out_clusters):
    """The guarantee is 80 %, the nominal level 90 %; over 576 of them it varies by about 2 %."""
    assert _coverage(False, leave_out_clusters) == pytest.approx(0.91, abs=0.05)


def test_only_left_out_clusters_cover_a_new_kind():
    assert _coverage(True, leave_out_clusters=True) >= 0.85
    assert _coverage(True, leave_out_clusters=False) < 0.75


# ---- reach


def test_distances_without_correlation_are_euclidean():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 3)) * [1, 10, 100] + 5
    domain = fit_domain(x, np.arange(4000) // 500)
    assert domain.distance(np.array([5 + 3, 5, 5 + 400.0])) == pytest.approx(5, rel=0.03)
    np.testing.assert_allclose(domain.parts(np.array([8.0, 5, 405])), [9 / 25, 0, 16 / 25], atol=0.02)


def test_distance_of_a_left_out_point_is_that_of_a_slow_loop():
    from sklearn.covariance import LedoitWolf

    rng = np.random.default_rng(1)
    x = rng.normal(size=(12, 3))
    slow = []
    for i in range(12):
        scaler = StandardScaler().fit(np.delete(x, i, 0))
        shape = LedoitWolf(assume_centered=True).fit(scaler.transform(np.delete(x, i, 0)))
        slow.append(np.sqrt(shape.mahalanobis(scaler.transform(x[[i]]))[0]))
    domain = fit_domain(x, np.arange(12))
    np.testing.assert_allclose(domain.distances, sorted(slow))
    assert domain.limit == max(slow) == limit_of(domain.distances)


def test_limit_is_an_order_statistic():
    assert limit_of(np.arange(1.0, 40)) == 38  # ceil(0.95 * 40)
    assert limit_of(np.arange(1.0, 39)) == 38  # the largest of fewer


def test_a_strange_combination_is_far():
    rng = np.random.default_rng(2)
    u = rng.normal(size=40)
    x = np.column_stack([u, u + 0.1 * rng.normal(size=40)])
    domain = fit_domain(x, np.arange(40) // 4)
    assert domain.distance(np.array([1.5, 1.5])) < domain.limit < domain.distance(np.array([1.5, -1.5]))


def test_few_refusals_of_tokenizers_like_those_of_the_study():
    rng = np.random.default_rng(4)
    refused = []
    for _ in range(20):
        x = rng.normal(size=(64, 6)) @ rng.normal(size=(6, 6))
        domain = fit_domain(x[:24], np.arange(24) // 3)
        refused += (domain.distance(x[24:]) > domain.limit).tolist()
    assert 0.005 < np.mean(refused) < 0.08
