"""Resampling of points: bootstrap as counts, BCa intervals, permutations; all of them functions of (number of points, seed).

A bootstrap resampling is a row of counts: how often each point was drawn. A statistic that takes rows of counts [r,n] gives its
value (all ones), its replicates, its jackknife (one count 0) and its value without a group (those counts 0) by one function,
without a loop over resamplings.
"""

from collections.abc import Callable
from functools import lru_cache
from itertools import permutations as all_permutations
from math import factorial

import numpy as np
from scipy.special import ndtr, ndtri

from analyses.intervals import percentile_interval
from latentlab.measurement import Interval

REPLICATES = 2000
PERMUTATIONS = 9999
MOST_LISTED = 50_000
"""Up to so many permutations all are listed (n <= 8) and a p-value is exact."""

_FEWEST_VALID = 0.9
"""Share of replicates that must have a value: a statistic undefined more often has no interval."""

_ROUNDING = 1e-12
"""Replicates that differ from the value by less, relative to their range, are equal to it: processors round otherwise."""

Statistic = Callable[[np.ndarray], np.ndarray]
"""Counts [r,n] -> values [r]; NaN where it is undefined."""


@lru_cache(maxsize=8)
def drawn_counts(n: int, seed: int = 0, replicates: int = REPLICATES) -> np.ndarray:
    """Return how often each of ``n`` points is drawn in each of r resamplings with replacement, [r,n] float64, read-only."""
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=replicates).astype(np.float64)
    counts.flags.writeable = False
    return counts


def estimate(statistic: Statistic, n: int) -> float:
    """Return the statistic of all ``n`` points, each once."""
    return float(statistic(np.ones((1, n)))[0])


def bootstrap_interval(statistic: Statistic, n: int, seed: int = 0) -> Interval | None:
    """Return the 95 % bootstrap interval over ``n`` points: BCa, percentiles where that is undefined.

    None where more than a tenth of the resamplings have no value. BCa (Efron, Journal of the American Statistical Association
    82, 1987) corrects percentiles for bias and skewness, which correlations near 1 have.
    """
    replicates = statistic(drawn_counts(n, seed))
    valid = replicates[np.isfinite(replicates)]
    if len(valid) < _FEWEST_VALID * len(replicates):
        return None
    jackknife = statistic(1 - np.eye(n))
    return bca_interval(estimate(statistic, n), valid, jackknife[np.isfinite(jackknife)])


def bca_interval(value: float, replicates: np.ndarray, jackknife: np.ndarray) -> Interval:
    """Return the 95 % BCa interval.

    With z0 the normal quantile of the share of replicates below the value (ties half) and the acceleration
    a = sum u^3 / (6 (sum u^2)^1.5), u = mean(jackknife) - jackknife, the ends are the percentiles
    Phi(z0 + (z0 + z) / (1 - a (z0 + z))) at z = -1.96 and 1.96.

    Args:
        value: the statistic of all points.
        replicates: bootstrap replicates [r].
        jackknife: the statistic without each point, [n].
    """
    off = replicates - value
    off[np.abs(off) <= _ROUNDING * np.ptp(replicates)] = 0  # of rank correlations many are equal, but for the last bit
    below = (np.mean(off < 0) + np.mean(off <= 0)) / 2
    u = np.mean(jackknife) - jackknife
    spread = np.sum(u**2) ** 1.5
    if not (0 < below < 1 and spread > 0):
        return percentile_interval(replicates)
    z0, a = ndtri(below), np.sum(u**3) / (6 * spread)
    z = z0 + ndtri([0.025, 0.975])
    low, high = np.percentile(replicates, 100 * ndtr(z0 + z / (1 - a * z)))
    return float(low), float(high)


@lru_cache(maxsize=8)
def orders(n: int, seed: int = 0) -> np.ndarray:
    """Return orders of ``n`` points, [r,n] integers, read-only: all n! where those are few, else `PERMUTATIONS` random ones."""
    if listed(n):
        found = np.array(list(all_permutations(range(n))))
    else:
        found = np.random.default_rng(seed).permuted(np.tile(np.arange(n), (PERMUTATIONS, 1)), axis=1)
    found.flags.writeable = False
    return found


def listed(n: int) -> bool:
    """Whether `orders` lists all permutations of ``n`` points."""
    return n <= 12 and factorial(n) <= MOST_LISTED


def orders_within(groups: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return `PERMUTATIONS` random orders that move points only within their group, [r,n]; ``groups`` [n] are any labels."""
    return _orders_within(tuple(np.unique(groups, return_inverse=True)[1].tolist()), seed)


@lru_cache(maxsize=8)
def _orders_within(groups: tuple[int, ...], seed: int) -> np.ndarray:
    rng, member = np.random.default_rng(seed), np.array(groups)
    found = np.tile(np.arange(len(member)), (PERMUTATIONS, 1))
    for group in np.unique(member):
        members = np.flatnonzero(member == group)
        found[:, members] = rng.permuted(found[:, members], axis=1)
    found.flags.writeable = False
    return found


def p_value(value: float, null: np.ndarray, exact: bool = False) -> float:
    """Return the two-sided p-value: the share of the permuted values [r] that are as far from 0 as ``value``.

    Random permutations count the observed order as one more of them, so p is never 0 (Phipson and Smyth, Statistical
    Applications in Genetics and Molecular Biology 9, 2010); listed ones already contain it.
    """
    extreme = np.count_nonzero(
        np.abs(null) >= abs(value) - 1e-12
    )  # rounding must not break ties with the observed order
    return extreme / len(null) if exact else (extreme + 1) / (len(null) + 1)
