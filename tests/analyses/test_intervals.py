"""Bootstrap over images: the normal interval, the same whether units or groups are resampled, and paired by seed."""

import numpy as np
import pytest
from scipy import stats

from analyses import intervals
from analyses.intervals import (
    SHARE,
    bootstrap_means,
    group_sums,
    mean_interval,
    percentile_band,
    percentile_interval,
    random_groups,
    share_interval,
)


@pytest.mark.parametrize("n", [400, 5000])
def test_interval_of_a_mean_is_the_normal_one(n: int) -> None:
    """5,000 units are resampled in 512 groups."""
    values = np.random.default_rng(0).gamma(2.0, size=n)
    half = 1.96 * values.std() / np.sqrt(n)
    assert mean_interval(values) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)
    assert np.mean(bootstrap_means(values)) == pytest.approx(values.mean(), abs=0.1 * half)


def test_few_units_are_resampled_one_by_one() -> None:
    """Each replicate of n units is a mean of n of them: their counts are whole and sum to n."""
    counts = bootstrap_means(np.eye(37)) * 37
    np.testing.assert_allclose(counts, counts.round(), atol=1e-9)
    np.testing.assert_allclose(counts.sum(1), 37)


def test_unequal_groups_do_not_bias() -> None:
    """513 units in 512 groups, one of them of two: a constant stays exactly constant."""
    np.testing.assert_allclose(bootstrap_means(np.full(513, 3.0)), 3.0, rtol=1e-14)


def test_the_same_units_and_seed_are_resampled_alike() -> None:
    """The replicates of a difference are the differences of the replicates: comparisons are paired."""
    a, b = np.random.default_rng(0).normal(size=(2, 2000))
    difference = bootstrap_means(a, 4) - bootstrap_means(a + 0.01 * b, 4)
    np.testing.assert_allclose(difference, bootstrap_means(-0.01 * b, 4), atol=1e-12)
    assert not np.allclose(bootstrap_means(a, 4), bootstrap_means(a, 5))


def test_columns_are_resampled_together() -> None:
    table = np.random.default_rng(0).normal(size=(700, 3, 2))
    means = bootstrap_means(table, 1)
    assert means.shape == (intervals.REPLICATES, 3, 2)
    np.testing.assert_allclose(means[:, 1, 1], bootstrap_means(table[:, 1, 1], 1), atol=1e-14)


def test_groups_differ_by_one_at_most_and_their_sums_are_the_obvious_ones() -> None:
    group = random_groups(1500, seed=0)
    assert set(np.bincount(group)) == {2, 3} and len(np.bincount(group)) == intervals.GROUPS
    values = np.random.default_rng(0).normal(size=(1500, 2))
    slow = [values[group == i].sum(0) for i in range(intervals.GROUPS)]
    np.testing.assert_allclose(group_sums(values, group), slow, atol=1e-12)


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_intervals_of_few_units_hold_the_mean_as_often_as_they_say(n: int) -> None:
    """Of 1000 normal samples; plain percentiles hold it in 51 % of them for n = 2, in 83 % for n = 5 and 90 % for n = 10."""
    samples = np.random.default_rng(n).normal(size=(1000, n))
    ends = [mean_interval(sample, seed) for seed, sample in enumerate(samples)]
    held = np.mean([low <= 0 <= high for low, high in ends])
    assert held == pytest.approx(0.95, abs=0.025)


def test_a_band_of_few_units_is_students() -> None:
    """Replicates of a normal mean, the percentiles of which are known: +-z s / sqrt(n) becomes +-t s / sqrt(n - 1)."""
    replicates = stats.norm.ppf((np.arange(20000) + 0.5) / 20000)[:, None] * [1.0, 3.0] + 5
    low, high = percentile_band(replicates, 4)
    half = np.sqrt(4 / 3) * stats.t.ppf(0.975, 3) * np.array([1, 3])
    np.testing.assert_allclose([low, high], [5 - half, 5 + half], rtol=1e-3)
    for many in (None, 30):
        np.testing.assert_array_equal(percentile_band(replicates, many), np.percentile(replicates, (2.5, 97.5), axis=0))


def test_intervals_ignore_nan_and_one_unit_has_none() -> None:
    assert percentile_interval(np.array([0.0, 1.0, np.nan])) == pytest.approx((0.025, 0.975))
    assert mean_interval(np.ones(1)) is None


@pytest.mark.parametrize("n", [5, 10, 300])
def test_units_that_are_all_alike_leave_room_for_others(n: int) -> None:
    """Against scipy's exact interval, two-sided at 95 %: the end that is reached is kept."""
    for hits in (0, n):
        exact = stats.binomtest(hits, n).proportion_ci(0.95, method="exact")
        found = share_interval(bootstrap_means(np.full(n, float(hits > 0))), n)
        assert found == pytest.approx((exact.low, exact.high), abs=1e-12)
    mixed = bootstrap_means(np.arange(n) % 2)
    assert share_interval(mixed, n) == percentile_interval(mixed, n, SHARE)
