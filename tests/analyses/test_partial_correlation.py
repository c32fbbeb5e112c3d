"""Partial correlation against the closed form, regressions done one by one, and a confounder that explains everything."""

import numpy as np
import pytest
from scipy import stats

from analyses.correlation import correlate
from analyses.partial_correlation import _permuted, partial_correlate, partial_of_counts
from analyses.resampling import drawn_counts, orders
from latentlab.errors import UserError


def confounded(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x and y share z and nothing else."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=n)
    return z + 0.5 * rng.normal(size=n), z + 0.5 * rng.normal(size=n), z


def slow_partial(x: np.ndarray, y: np.ndarray, given: np.ndarray) -> float:
    """Correlate what two regressions leave."""
    design = np.column_stack([np.ones(len(x)), given])
    left = [v - design @ np.linalg.lstsq(design, v, rcond=None)[0] for v in (x, y)]
    return np.nan if min(map(np.linalg.norm, left)) < 1e-9 else np.corrcoef(*left)[0, 1]


def test_one_covariate_closed_form():
    x, y, z = confounded(20)
    rxy, rxz, ryz = np.corrcoef(x, y)[0, 1], np.corrcoef(x, z)[0, 1], np.corrcoef(y, z)[0, 1]
    closed = (rxy - rxz * ryz) / np.sqrt((1 - rxz**2) * (1 - ryz**2))
    assert partial_correlate(x, y, z).value == pytest.approx(closed, abs=1e-12)


@pytest.mark.parametrize("method", ["pearson", "spearman"])
def test_two_covariates_are_two_regressions(method):
    x, y, z = confounded(20)
    given = np.column_stack([z, np.random.default_rng(1).normal(size=20)])
    rank = stats.rankdata if method == "spearman" else lambda v, axis=0: v
    slow = slow_partial(rank(x), rank(y), rank(given, axis=0))
    assert partial_correlate(x, y, given, method).value == pytest.approx(slow, abs=1e-10)


def test_replicates_repeat_the_regressions():
    """In one of them z ranks the points as x does: nothing is left to correlate."""
    x, y, z = confounded(15)
    counts = drawn_counts(15)[:20]
    for method, rank in (("pearson", lambda v: v), ("spearman", stats.rankdata)):
        ours = partial_of_counts(np.column_stack([x, y, z]), method)(counts)
        for row, value in zip(counts.astype(int), ours, strict=True):
            i = np.repeat(np.arange(15), row)
            np.testing.assert_allclose(value, slow_partial(rank(x[i]), rank(y[i]), rank(z[i])), atol=1e-8)


def test_permuted_residuals_are_regressed_again():
    x, y, z = confounded(12)
    given = np.column_stack([z, 2 * z, z**2])
    ours = _permuted(np.column_stack([x, y, given]), "pearson", seed=0)[:20]
    design = np.column_stack([np.ones(12), z, z**2])
    left = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    slow = [slow_partial(x, left[order], given) for order in orders(12)[:20]]
    np.testing.assert_allclose(ours, slow, atol=1e-9)


def test_a_confounder_is_removed_and_false_alarms_are_rare():
    """Raw correlation about 0.8; given z nothing is left: 5 % of p-values below 0.05."""
    p = []
    for seed in range(200):
        x, y, z = confounded(20, seed)
        p.append(partial_correlate(x, y, z).p)
    assert correlate(*confounded(200)[:2]).value > 0.7
    assert 0.02 <= np.mean(np.array(p) <= 0.05) <= 0.09


def test_a_covariate_twice_is_the_covariate():
    x, y, z = confounded(20)
    once, twice = partial_correlate(x, y, z), partial_correlate(x, y, np.column_stack([z, 2 * z]))
    assert twice.value == pytest.approx(once.value, abs=1e-9)
    assert twice.interval == pytest.approx(once.interval, abs=1e-6)


@pytest.mark.parametrize(
    ("given", "method", "message"),
    [
        (lambda x, y, z: x, "pearson", "determine"),
        (lambda x, y, z: z, "kendall", "pearson or spearman"),
        (lambda x, y, z: np.ones(20), "pearson", "constant"),
        (lambda x, y, z: np.random.default_rng(0).normal(size=(20, 16)), "pearson", "at least 21 points"),
    ],
)
def test_bad_covariates_are_refused(given, method, message):
    x, y, z = confounded(20)
    with pytest.raises(UserError, match=message):
        partial_correlate(x, y, given(x, y, z), method)
