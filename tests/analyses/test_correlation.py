"""Correlations against scipy and loops over resampled points; exact p-values; coverage and false alarms by simulation."""

import itertools

import numpy as np
import pytest
from scipy import stats

from analyses.correlation import METHODS, correlate, of_counts, permuted, resampled_ranks
from analyses.resampling import bca_interval, drawn_counts, orders
from latentlab.errors import UserError

SCIPY = {
    "pearson": lambda x, y: stats.pearsonr(x, y).statistic,
    "spearman": lambda x, y: stats.spearmanr(x, y).statistic,
    "kendall": lambda x, y: stats.kendalltau(x, y).statistic,
}


def pair(n: int, slope: float = 0.7, ties: bool = False, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    y = slope * x + np.sqrt(1 - slope**2) * rng.normal(size=n)
    return (x.round(), y.round()) if ties else (1e6 + x, y)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ties", [False, True])
def test_value_is_scipys(method, ties):
    x, y = pair(23, ties=ties)
    assert correlate(x, y, method).value == pytest.approx(SCIPY[method](x, y), abs=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_replicates_are_those_of_a_loop_over_resampled_points(method):
    x, y = pair(12, ties=True)
    counts = drawn_counts(12)[:40]
    ours = of_counts(np.column_stack([x, y]), method)(counts)
    for row, value in zip(counts.astype(int), ours, strict=True):
        points = np.repeat(np.arange(12), row)
        assert value == pytest.approx(SCIPY[method](x[points], y[points]), abs=1e-9)


def test_ranks_within_a_resampling_are_scipys():
    values = np.array([3.0, 1.0, 2.0, 2.0, 5.0])
    counts = np.array([2.0, 0, 1, 1, 1])
    ranks = resampled_ranks(values, counts[None])[0]
    points = np.repeat(np.arange(5), counts.astype(int))
    np.testing.assert_allclose(ranks[points], stats.rankdata(values[points]))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ties", [False, True])
def test_permuted_values_are_those_of_permuted_columns(method, ties):
    x, y = pair(10, ties=ties)
    ours = permuted(np.column_stack([x, y]), method)[:30]
    slow = [SCIPY[method](x, y[order]) for order in orders(10)[:30]]
    np.testing.assert_allclose(ours, slow, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_p_of_few_points_is_exact(method):
    x, y = pair(6, slope=0.8)
    all_values = [SCIPY[method](x, np.array(order)) for order in itertools.permutations(y)]
    slow = np.mean(np.abs(all_values) >= abs(SCIPY[method](x, y)) - 1e-9)
    assert correlate(x, y, method).p == pytest.approx(slow, abs=1e-12)


def test_p_of_many_points_is_close_to_scipys_exact_one():
    x, y = pair(14, slope=0.5, seed=2)
    exact = stats.kendalltau(x, y, method="exact").pvalue
    assert 0.01 < exact < 0.6
    assert correlate(x, y, "kendall").p == pytest.approx(exact, abs=4 * np.sqrt(exact / 9999))
    assert correlate(x, y).p == pytest.approx(stats.pearsonr(x, y).pvalue, abs=0.03)


@pytest.mark.parametrize("method", METHODS)
def test_order_scale_and_sign(method):
    x, y = pair(15)
    order = np.random.default_rng(1).permutation(15)
    first, again = correlate(x, y, method), correlate(3 * x[order] - 1, y[order], method)
    assert again.value == pytest.approx(first.value)
    turned = correlate(x, -y, method)
    assert turned.value == pytest.approx(-first.value)
    assert correlate(x, y, method) == first
    assert first.interval[0] < first.value < first.interval[1]


@pytest.mark.parametrize("method", METHODS)
def test_interval_takes_the_jackknife_of_left_out_points(method):
    x, y = pair(14)
    replicates = of_counts(np.column_stack([x, y]), method)(drawn_counts(14))
    jackknife = np.array([SCIPY[method](np.delete(x, i), np.delete(y, i)) for i in range(14)])
    slow = bca_interval(SCIPY[method](x, y), replicates, jackknife)
    assert correlate(x, y, method).interval == pytest.approx(slow, abs=1e-3)  # ties with the value decide by rounding
    if method == "pearson":  # and that differs from plain percentiles
        assert slow != pytest.approx(tuple(np.percentile(replicates, [2.5, 97.5])), abs=1e-3)


def test_perfect_correlation():
    x = np.arange(12.0)
    for method in METHODS:
        found = correlate(x, 2 * x, method)
        assert found.value == pytest.approx(1) and found.interval == pytest.approx((1, 1), abs=1e-9)
        assert found.p == pytest.approx(1 / 10_000)


def test_interval_covers_and_p_is_uniform():
    """200 samples of 24 points with r = 0.7: BCa covers 90 to 98 % (a little short at this n); false alarms are 5 %."""
    covered, alarms = 0, 0
    for seed in range(200):
        x, y = pair(24, slope=0.7, seed=seed)
        low, high = correlate(x, y).interval
        covered += low <= 0.7 <= high
        alarms += correlate(x, pair(24, seed=1000 + seed)[0]).p <= 0.05
    assert 0.90 <= covered / 200 <= 0.98
    assert 0.02 <= alarms / 200 <= 0.09


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1.0, 2, 3, 4], [1.0, 2, 3, 5], "5 to 2,000 points, got 4"),
        ([1.0, 2, 3, 4, 5], [1.0, 1, 1, 1, 1], "constant"),
        ([0.1 + 0.2, 0.3, 0.3, 0.3, 0.3], [1.0, 2, 3, 4, 5], "constant"),
        ([1.0, 2, 3, 4, np.nan], [1.0, 2, 3, 4, 5], "finite"),
        ([1.0, 2, 3, 4, 5], [1.0, 2, 3, 4], "equal length"),
        (np.arange(2001), np.arange(2001), "got 2,001"),
    ],
)
def test_bad_columns_are_refused(x, y, message):
    with pytest.raises(UserError, match=message):
        correlate(np.array(x), np.array(y))
