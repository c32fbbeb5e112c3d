"""Partial correlation: what x and y share beyond what chosen covariates Z explain of both.

Residual method: r_xy.Z is the correlation of the residuals of x and of y after regression on Z and a constant. From the
covariance matrix of (x, y, Z) with blocks A (x, y), B and C (Z) it is the correlation of the Schur complement A - B C^-1 B'.
The Spearman variant does the same with ranks. Kendall has no variant that means this (its matrix formula is no regression).

p-values permute residuals (Freedman and Lane, Journal of Business & Economic Statistics 1, 1983): with M the projection onto
residuals, x and y permuted under "no association given Z" correlate like M x and M P M y.
"""

import numpy as np
from scipy.stats import rankdata

from analyses.correlation import Correlation, Method, checked_columns, correlation_of, covariances, resampled
from analyses.resampling import Statistic, bootstrap_interval, estimate, listed, orders, p_value
from latentlab.errors import UserError

_UNEXPLAINED = 1e-10
"""Share of a column's variance below which covariates explain all of it."""


def partial_correlate(
    x: np.ndarray, y: np.ndarray, given: np.ndarray, method: Method = "pearson", seed: int = 0
) -> Correlation:
    """Return the partial correlation of ``x`` and ``y`` [n] given the columns of ``given`` [n,k].

    The interval is BCa over resampled points, regressions repeated in each.

    Raises:
        UserError: as `correlate`; Kendall; fewer than k + 5 points; or covariates that determine ``x`` or ``y``.
    """
    columns = checked_columns(x, y, *np.asarray(given, dtype=np.float64).reshape(len(x), -1).T)
    n = len(columns)
    _check(columns, method)
    statistic = partial_of_counts(columns, method)
    value = estimate(statistic, n)
    p = p_value(value, _permuted(columns, method, seed), exact=listed(n))
    return Correlation(method, n, value, bootstrap_interval(statistic, n, seed), p)


def _check(columns: np.ndarray, method: Method) -> None:
    n, k = len(columns), columns.shape[1] - 2
    if method == "kendall":
        raise UserError("partial correlation is by residuals: choose pearson or spearman")
    if k < 1:
        raise UserError("partial correlation needs at least one covariate")
    if n < k + 5:
        raise UserError(f"partial correlation given {k} columns needs at least {k + 5} points, got {n}")
    table = columns if method == "pearson" else rankdata(columns, axis=0)
    table = (table - table.mean(0)) / table.std(0)
    left = _residuals(table[:, :2], table[:, 2:])
    if (np.mean(left**2, axis=0) < _UNEXPLAINED).any():
        raise UserError("the covariates determine one of the columns: nothing is left to correlate")


def partial_of_counts(columns: np.ndarray, method: Method) -> Statistic:
    """Return the partial correlation of ``columns`` [n,2+k] (x, y, covariates) as a function of counts [r,n]."""

    def partial(counts: np.ndarray) -> np.ndarray:
        return correlation_of(schur_complement(covariances(resampled(columns, counts, method), counts)))

    return partial


def schur_complement(covariance: np.ndarray) -> np.ndarray:
    """Return the covariance [r,2,2] of the first two variables given the others, from matrices [r,m,m]."""
    a, b, c = covariance[:, :2, :2], covariance[:, :2, 2:], covariance[:, 2:, 2:]
    inverse = np.linalg.pinv(c, rcond=1e-10, hermitian=True)  # covariates may coincide, or be constant in a resampling
    return a - b @ inverse @ np.swapaxes(b, 1, 2)


def _residuals(columns: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Return what a regression of centred ``columns`` [n,m] on centred ``given`` [n,k] leaves."""
    return columns - given @ (np.linalg.pinv(given) @ columns)


def _permuted(columns: np.ndarray, method: Method, seed: int) -> np.ndarray:
    """Return the partial correlations [r] of x with permuted residuals of y."""
    table = columns if method == "pearson" else rankdata(columns, axis=0)
    table = table - table.mean(0)
    x, y = _residuals(table[:, :2], table[:, 2:]).T
    basis, sizes, _ = np.linalg.svd(table[:, 2:] / table[:, 2:].std(0), full_matrices=False)
    basis = basis[:, sizes > 1e-9 * sizes[0]]
    shuffled = y[orders(len(y), seed)]
    unexplained = y @ y - np.sum((shuffled @ basis) ** 2, axis=1)  # |M P y|^2; x is M x already
    return shuffled @ x / np.sqrt(unexplained * (x @ x))
