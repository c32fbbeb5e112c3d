"""Intervals over repetitions at any level: Student's t over seeds, percentiles of resampled tokenizers.

Seeds are few (three say), so their intervals are Student's; those of ratios are made of logarithms. Tokenizers are two dozen, and
rank statistics of them have no closed form, so they are resampled.
"""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from latentlab.claims.verdict import Ends
from latentlab.measurement import Interval

_NOTHING: Interval = (-math.inf, math.inf)


def mean_ends(values: ArrayLike) -> Ends:
    """Return the t interval of the mean of ``values`` [n] by level; infinite for fewer than 2."""
    table = np.asarray(values, dtype=np.float64)
    if len(table) < 2:
        return lambda level: _NOTHING
    error = float(table.std(ddof=1)) / math.sqrt(len(table))
    return _student(float(table.mean()), error, len(table) - 1)


def difference_ends(first: ArrayLike, second: ArrayLike) -> Ends:
    """Return Welch's interval of mean(first) - mean(second) by level; infinite where either has fewer than 2."""
    tables = [np.asarray(values, dtype=np.float64) for values in (first, second)]
    if min(map(len, tables)) < 2:
        return lambda level: _NOTHING
    centre = float(tables[0].mean() - tables[1].mean())
    squares = [float(table.var(ddof=1)) / len(table) for table in tables]
    total = sum(squares)
    if total == 0:
        return lambda level: (centre, centre)
    freedom = total**2 / sum(s**2 / (len(t) - 1) for s, t in zip(squares, tables, strict=True))
    return _student(centre, math.sqrt(total), freedom)


def _student(centre: float, error: float, freedom: float) -> Ends:
    def ends(level: float) -> Interval:
        half = float(stats.t.ppf((1 + level) / 2, freedom)) * error
        return centre - half, centre + half

    return ends


def exponential(ends: Ends) -> Ends:
    """Return the interval of exp(x) from that of x: of a ratio from that of a logarithm."""

    def of(level: float) -> Interval:
        low, high = ends(level)
        return (math.exp(low), math.exp(high)) if math.isfinite(low) else _NOTHING

    return of


def replicate_ends(replicates: np.ndarray) -> Ends:
    """Return the percentile interval of bootstrap ``replicates`` [r] by level, ignoring NaN; infinite where most are NaN."""
    finite = replicates[np.isfinite(replicates)]
    if 2 * len(finite) < len(replicates):
        return lambda level: _NOTHING

    def ends(level: float) -> Interval:
        low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    return ends
