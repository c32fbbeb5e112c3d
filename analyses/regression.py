"""Least squares of a target on a few predictors: R^2 plain, adjusted and cross-validated, and predictions of the left out.

With the hat matrix H = Q Q' (Q an orthonormal basis of constant and predictors) and residuals e = y - H y, the residuals of a
group G that was not part of the fit are (I - H_GG)^-1 e_G: leaving out one point or a whole cluster needs no second fit
(Cook and Weisberg, Residuals and Influence in Regression, 1982, section 2.2).
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from analyses.correlation import is_constant
from latentlab.errors import UserError

_RANK = 1e-9
"""Singular value, relative to the largest of standardised columns, below which predictors are dependent."""


@dataclass(frozen=True)
class Fit:
    """How well predictors explain a target.

    Attributes:
        n: number of points.
        r2: 1 - SSR / SST, in sample; at most 1, never falls when a predictor is added.
        r2_adjusted: 1 - (1 - r2) (n - 1) / (n - k - 1) with k predictors.
        r2_cross_validated: as `Prediction.r2`, leaving out one point at a time.
    """

    n: int
    r2: float
    r2_adjusted: float
    r2_cross_validated: float


@dataclass(frozen=True)
class Prediction:
    """Predictions of points by a fit without them.

    Attributes:
        predicted: [n]; NaN where the other points do not determine the fit.
        n: number of points predicted.
        r2: 1 - sum (observed - predicted)^2 / sum (observed - mean of the points fitted)^2: 0 is no better than that mean,
            below 0 is worse.
        rmse: root mean squared error, in units of the target.
        spearman: rank correlation of predicted and observed; NaN if either is constant.
    """

    predicted: np.ndarray
    n: int
    r2: float
    rmse: float
    spearman: float


def fit(x: np.ndarray, y: np.ndarray) -> Fit:
    """Return how well the columns of ``x`` [n,k] and a constant explain ``y`` [n].

    Raises:
        UserError: n < k + 3, a constant target, or predictors that are constant or linearly dependent.
    """
    basis = design_basis(x, y)
    n, k = len(y), basis.shape[1] - 1
    left = y - basis @ (basis.T @ y)
    r2 = 1 - float(left @ left / np.sum((y - y.mean()) ** 2))
    return Fit(n, r2, 1 - (1 - r2) * (n - 1) / (n - k - 1), leave_out(x, y, np.arange(n)).r2)


def design_basis(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis [n,1+k] of a constant and the columns of ``x`` [n,k].

    Raises:
        UserError: as `fit` says.
    """
    n, k = x.shape
    if n < k + 3:
        raise UserError(f"a regression on {k} predictors needs at least {k + 3} points, got {n}")
    if is_constant(np.column_stack([y, x])).any():
        raise UserError("a regression needs values that vary, got a constant column")
    standardised = (x - x.mean(0)) / x.std(0)
    left, sizes, _ = np.linalg.svd(standardised, full_matrices=False)
    if sizes[-1] < _RANK * sizes[0]:
        raise UserError("the predictors are linearly dependent: leave one of them out")
    return np.column_stack([np.full(n, n**-0.5), left])


def leave_out(x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> Prediction:
    """Return every point of ``y`` [n] predicted by the fit on ``x`` [n,k] of all other groups.

    Args:
        x: predictors.
        y: target.
        groups: [n] labels of what is left out together; ``np.arange(n)`` leaves out one point at a time.

    Raises:
        UserError: as `fit` says, or a single group.
    """
    labels = np.unique(groups)
    if len(labels) < 2:
        raise UserError("leaving out a group needs at least two groups")
    basis = design_basis(x, y)
    left = y - basis @ (basis.T @ y)
    predicted, baseline = np.empty(len(y)), np.empty(len(y))
    for label in labels:
        out = groups == label
        predicted[out] = y[out] - _residuals_left_out(basis[out], left[out])
        baseline[out] = y[~out].mean()
    return judged(y, predicted, baseline)


def _residuals_left_out(basis: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Return (I - Q Q')^-1 e of left-out rows Q [g,1+k] with residuals e [g]; NaN where the others determine no fit."""
    system = np.eye(len(left)) - basis @ basis.T
    if np.linalg.eigvalsh(system)[0] < _RANK:
        return np.full(len(left), np.nan)
    return np.linalg.solve(system, left)


def predict(x: np.ndarray, y: np.ndarray, x_new: np.ndarray, y_new: np.ndarray) -> Prediction:
    """Return ``y_new`` [m] predicted from ``x_new`` [m,k] by the fit of ``y`` [n] on ``x`` [n,k].

    Raises:
        UserError: as `fit` says.
    """
    design_basis(x, y)
    coefficients = np.linalg.lstsq(np.column_stack([np.ones(len(x)), x]), y, rcond=None)[0]
    predicted = np.column_stack([np.ones(len(x_new)), x_new]) @ coefficients
    return judged(y_new, predicted, np.full(len(y_new), y.mean()))


def judged(observed: np.ndarray, predicted: np.ndarray, baseline: np.ndarray) -> Prediction:
    """Return the scores of ``predicted`` [n] beside those of the ``baseline`` [n]; points without a prediction do not count."""
    known = np.isfinite(predicted)
    o, p, b = observed[known], predicted[known], baseline[known]
    n = int(known.sum())
    error, chance = np.sum((o - p) ** 2), np.sum((o - b) ** 2)
    r2 = 1 - float(error / chance) if n and chance > 0 else float("nan")
    varied = n > 2 and np.ptp(o) > 0 and np.ptp(p) > 0
    rank = float(spearmanr(o, p).statistic) if varied else float("nan")
    return Prediction(predicted, n, r2, float(np.sqrt(error / n)) if n else float("nan"), rank)
