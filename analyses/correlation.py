"""Pearson, Spearman and Kendall correlation with a bootstrap interval over points and a permutation p-value.

Every statistic is a function of counts (how often a point was drawn, `analyses.resampling`), so replicates are matrix products:
Pearson from weighted moments, Spearman from the mid-ranks that points have within the resampling, and Kendall's tau-b from

    tau_b = w' (A * B) w / sqrt(w' A^2 w  w' B^2 w),   A_ij = sign(x_i - x_j),  B_ij = sign(y_i - y_j),  w = counts,

in which copies of one point are ties, as they are for a loop over resampled points.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from scipy.stats import rankdata

from analyses.resampling import Statistic, bootstrap_interval, estimate, listed, orders, p_value
from latentlab.errors import UserError
from latentlab.measurement import Interval

Method = Literal["pearson", "spearman", "kendall"]
METHODS: tuple[Method, ...] = get_args(Method)

FEWEST = 5
"""Fewer points have no correlation worth a number."""

MOST = 2000
"""Kendall compares all pairs of points, and permutations of more points do not fit small memories."""

_FLAT = 1e-12
"""Variance, relative to that of all points, below which resampled values are constant."""


@dataclass(frozen=True)
class Correlation:
    """A correlation of n points.

    Attributes:
        method: pearson, spearman or kendall.
        n: number of points.
        value: in [-1, 1].
        interval: 95 %; None where too many resamplings have no correlation.
        p: two-sided p-value of "no association".
    """

    method: Method
    n: int
    value: float
    interval: Interval | None
    p: float


def correlate(x: np.ndarray, y: np.ndarray, method: Method = "pearson", seed: int = 0) -> Correlation:
    """Return the correlation of ``x`` and ``y``, each [n].

    The interval is BCa over resampled points; p is the share of permutations of ``y`` with a correlation as far from 0: exact
    up to 8 points, of 9,999 random ones above. Takes 8 bytes x 9,999 n.

    Raises:
        UserError: unequal lengths, values that are not finite, constant values, fewer than 5 or more than 2,000 points.
    """
    columns = checked_columns(x, y)
    statistic = of_counts(columns, method)
    value = estimate(statistic, len(columns))
    p = p_value(value, permuted(columns, method, seed), exact=listed(len(columns)))
    return Correlation(method, len(columns), value, bootstrap_interval(statistic, len(columns), seed), p)


def checked_columns(*values: np.ndarray) -> np.ndarray:
    """Return the columns as one float64 array [n,m].

    Raises:
        UserError: as `correlate` says.
    """
    columns = [np.asarray(one, dtype=np.float64) for one in values]
    if len({one.shape for one in columns}) > 1 or columns[0].ndim != 1:
        raise UserError(f"correlations need columns of equal length, got shapes {[one.shape for one in columns]}")
    table = np.column_stack(columns)
    if not FEWEST <= len(table) <= MOST:
        raise UserError(f"correlations need {FEWEST} to {MOST:,} points, got {len(table):,}")
    if not np.isfinite(table).all():
        raise UserError("correlations need finite values: leave out points with missing ones")
    if is_constant(table).any():
        raise UserError("correlations need values that vary, got a constant column")
    return table


def is_constant(table: np.ndarray) -> np.ndarray:
    """Return whether columns [n,m] vary by no more than rounding, [m]."""
    return np.ptp(table, axis=0) <= 1e-12 * np.abs(table).max(axis=0)


def of_counts(columns: np.ndarray, method: Method) -> Statistic:
    """Return the correlation of the two ``columns`` [n,2] as a function of counts [r,n]."""
    if method == "kendall":
        return _kendall_of_counts(columns)
    return lambda counts: correlation_of(covariances(resampled(columns, counts, method), counts))


def resampled(columns: np.ndarray, counts: np.ndarray, method: Method) -> np.ndarray:
    """Return what is averaged in resamplings: standardised columns [1,n,m] (pearson) or ranks in each, [r,n,m]."""
    if method == "pearson":
        return ((columns - columns.mean(0)) / columns.std(0))[None]
    n = len(columns)
    ranks = np.stack([resampled_ranks(column, counts) for column in columns.T], axis=-1)
    return (ranks - (n + 1) / 2) / (n / np.sqrt(12))


def resampled_ranks(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the mid-rank, from 1, that every one of ``values`` [n] has among the points drawn in each resampling, [r,n]."""
    order = np.argsort(values, kind="stable")
    _, starts, tie = np.unique(values[order], return_index=True, return_inverse=True)
    drawn = np.add.reduceat(counts[:, order], starts, axis=1)  # of each distinct value, ascending
    ranks = np.empty_like(counts, dtype=np.float64)
    ranks[:, order] = (np.cumsum(drawn, axis=1) - (drawn - 1) / 2)[:, tie]
    return ranks


def covariances(columns: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the covariance matrices [r,m,m] of ``columns`` [1,n,m] or [r,n,m] under counts [r,n]."""
    weights = counts / counts.sum(axis=1, keepdims=True)
    means = np.einsum("rn,rnm->rm", weights, np.broadcast_to(columns, (len(counts), *columns.shape[1:])))
    if len(columns) == 1:  # the products of columns are the same in all resamplings
        products = np.einsum("ni,nj->nij", columns[0], columns[0])
        second = np.tensordot(weights, products, axes=1)
    else:
        second = np.swapaxes(columns, 1, 2) @ (weights[:, :, None] * columns)
    return second - means[:, :, None] * means[:, None, :]


def correlation_of(covariance: np.ndarray) -> np.ndarray:
    """Return cov(0,1) / sqrt(var(0) var(1)) of matrices [r,2,2], in [-1,1]; NaN where a variance vanishes."""
    variances = np.stack([covariance[:, 0, 0], covariance[:, 1, 1]])
    flat = (variances < _FLAT).any(axis=0)
    scale = np.sqrt(np.where(flat, np.nan, variances.prod(axis=0)))
    return np.clip(covariance[:, 0, 1] / scale, -1, 1)


def _kendall_of_counts(columns: np.ndarray) -> Statistic:
    a, b = (np.sign(column[:, None] - column) for column in columns.T)

    def tau(counts: np.ndarray) -> np.ndarray:
        both, first, second = (np.einsum("rn,rn->r", counts @ m, counts) for m in (a * b, a * a, b * b))
        with np.errstate(invalid="ignore", divide="ignore"):
            return both / np.sqrt(first * second)

    return tau


def permuted(columns: np.ndarray, method: Method, seed: int = 0) -> np.ndarray:
    """Return the correlations [r] of the first of ``columns`` [n,2] with permutations of the second."""
    moves = orders(len(columns), seed)
    if method == "kendall":
        return _permuted_kendall(columns[:, 0], columns[:, 1], moves)
    table = columns if method == "pearson" else rankdata(columns, axis=0)
    x, y = ((table - table.mean(0)) / table.std(0)).T
    return y[moves] @ x / len(table)


def _permuted_kendall(x: np.ndarray, y: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """Count concordant minus discordant pairs, x ascending; permutations leave the ties that scale it as they are."""
    ascending = np.argsort(x)
    sorted_x = x[ascending]
    shuffled = rankdata(y, method="dense").astype(np.int16)[moves[:, ascending]]
    surplus = np.zeros(len(moves), dtype=np.int64)
    for i, beyond in enumerate(np.searchsorted(sorted_x, sorted_x, side="right")):
        later, here = shuffled[:, beyond:], shuffled[:, i : i + 1]
        surplus += np.count_nonzero(later > here, axis=1) - np.count_nonzero(later < here, axis=1)
    pairs = [np.count_nonzero(np.sign(v[:, None] - v)) / 2 for v in (x, y)]
    return surplus / np.sqrt(pairs[0] * pairs[1])
