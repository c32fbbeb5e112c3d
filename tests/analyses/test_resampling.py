"""Resampling: BCa as scipy makes it of the same replicates, permutations all or random, p-values exact or never 0."""

import numpy as np
import pytest
from scipy.stats import bootstrap

from analyses.resampling import (
    PERMUTATIONS,
    REPLICATES,
    bca_interval,
    bootstrap_interval,
    drawn_counts,
    listed,
    orders,
    orders_within,
    p_value,
)


def test_bca_equals_scipy_on_the_same_replicates() -> None:
    """scipy's bootstrap takes over a given distribution and draws nothing of its own."""
    x = np.random.default_rng(0).gamma(1.0, size=15)
    first = bootstrap((x,), np.var, n_resamples=1500, method="BCa", rng=np.random.default_rng(1))
    again = bootstrap((x,), np.var, n_resamples=0, method="BCa", bootstrap_result=first)
    jackknife = np.array([np.var(np.delete(x, i)) for i in range(15)])
    ours = bca_interval(np.var(x), first.bootstrap_distribution, jackknife)
    np.testing.assert_allclose(ours, again.confidence_interval, rtol=1e-12)


def test_rounding_of_equal_replicates_changes_no_interval() -> None:
    """Rank correlations of resamplings are often equal to the value, but for the last bit, which depends on the processor."""
    value, rng = 0.3, np.random.default_rng(0)
    replicates = np.concatenate([rng.uniform(-1, 1, 400), np.full(100, value)])
    jackknife = rng.normal(value, 0.05, 12)
    exact = bca_interval(value, replicates, jackknife)
    for direction in (-1.0, 1.0):
        rounded = np.where(replicates == value, np.nextafter(value, direction), replicates)
        np.testing.assert_allclose(bca_interval(value, rounded, jackknife), exact, rtol=1e-12)


def test_counts_sum_to_n_and_repeat() -> None:
    counts = drawn_counts(17, seed=3)
    assert counts.shape == (REPLICATES, 17) and (counts.sum(1) == 17).all()
    assert counts.mean() == pytest.approx(1) and counts.var() == pytest.approx(16 / 17, rel=0.03)
    drawn_counts.cache_clear()
    np.testing.assert_array_equal(drawn_counts(17, seed=3), counts)


def test_a_statistic_often_undefined_has_no_interval() -> None:
    assert bootstrap_interval(lambda counts: np.where(counts[:, 0] > 0, 1.0, np.nan), 10) is None


def test_few_points_are_permuted_in_all_ways() -> None:
    assert listed(8) and not listed(9)
    assert len({tuple(row) for row in orders(6)}) == 720
    random = orders(9)
    assert random.shape == (PERMUTATIONS, 9)
    np.testing.assert_array_equal(np.sort(random, axis=1), np.tile(np.arange(9), (PERMUTATIONS, 1)))


def test_orders_within_groups_keep_groups() -> None:
    groups = np.array(["a", "b", "a", "b", "c", "a"])
    moved = orders_within(groups)
    assert (groups[moved] == groups).all()
    assert len(np.unique(moved, axis=0)) == 3 * 2 * 2


def test_p_values_count_the_observed_order() -> None:
    null = np.array([-0.9, 0.1, 0.2, 0.5])
    assert p_value(0.5, null) == pytest.approx(3 / 5)
    assert p_value(0.5, null, exact=True) == pytest.approx(2 / 4)
    assert p_value(0.95, null) == pytest.approx(1 / 5)
