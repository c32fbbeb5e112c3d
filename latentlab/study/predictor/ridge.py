"""Ridge regression for few, correlated predictors, with the penalty chosen by leaving whole groups out in closed form.

A study has 20 to 100 tokenizers and about a dozen measurements that repeat each other. Least squares would fit their noise
and give twins opposite signs; choosing a subset is unstable at this size; trees and kernels have too little to learn from.
Ridge shares the effect among twins and shrinks towards the mean of the study: one number to choose, and that one exactly.

Tokenizers of one cluster (one regulariser in several strengths) resemble each other, and a new tokenizer is usually of a new
kind. So what is left out is always a whole cluster: leaving single tokenizers out would reward remembering the cluster.

Model: y = a + sum_j b_j (x_j - mean_j) / sd_j, minimising |y - yhat|^2 + penalty |b|^2, the intercept unpenalised. Its fit is
linear in y, yhat = H y, and the errors of group C by the fit without C are exactly (I - H_CC)^-1 (y - yhat)_C while means and
sd of the standardisation stay. Groups of one are leave-one-out (Allen's PRESS, Technometrics 16, 1974; Golub, Heath and Wahba,
Technometrics 21, 1979).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SHARES = tuple(10.0 ** (k / 4) for k in range(-12, 13))
"""Penalties that are tried, per tokenizer: at 0.001 it is least squares, at 1000 the mean of the study."""


@dataclass(frozen=True)
class RidgeFit:
    """A fitted ridge.

    Attributes:
        intercept: prediction where all measurements are 0.
        slopes: [p], per unit of each measurement as it was given.
        penalty: of the squared slopes of standardised measurements.
        degrees_of_freedom: trace of H: 1 is the mean alone, p + 1 least squares.
    """

    intercept: float
    slopes: np.ndarray
    penalty: float
    degrees_of_freedom: float

    def at(self, x: np.ndarray) -> np.ndarray:  # [n,p] or [p] => [n] or a number
        """Return the predictions at ``x``."""
        return self.intercept + x @ self.slopes


def fit_ridge(
    x: np.ndarray, y: np.ndarray, groups: Sequence[str] | np.ndarray, penalties: Sequence[float] | None = None
) -> RidgeFit:
    """Fit, with the penalty that predicts left-out groups best; of equal ones the largest.

    Args:
        x: [n,p] measurements.
        y: [n] quality.
        groups: [n], what is left out together; at least two of them.
        penalties: those that are tried, ascending; n times `SHARES` by default.
    """
    tried = np.asarray(penalties if penalties is not None else [len(y) * share for share in SHARES], dtype=np.float64)
    mean, deviation = standards(x)
    errors = left_out_errors((x - mean) / deviation, y, groups, tried)
    squares = (errors**2).sum(1)
    best = len(tried) - 1 - int(squares[::-1].argmin())
    return ridge(x, y, float(tried[best]))


def ridge(x: np.ndarray, y: np.ndarray, penalty: float) -> RidgeFit:  # [n,p], [n]
    """Fit with this ``penalty``."""
    mean, deviation = standards(x)
    u, s, v = np.linalg.svd((x - mean) / deviation, full_matrices=False)
    kept = _shares(s, np.array([penalty]))[0]  # of each principal direction
    standardised = (_inverse(s) * kept * (u.T @ (y - y.mean()))) @ v
    slopes = standardised / deviation
    return RidgeFit(float(y.mean() - slopes @ mean), slopes, penalty, float(1 + kept.sum()))


def left_out_errors(
    z: np.ndarray, y: np.ndarray, groups: Sequence[str] | np.ndarray, penalties: np.ndarray
) -> np.ndarray:  # [n,p], [n], [n], [q] => [q,n]
    """Return, per penalty, y minus its prediction by the fit without the group; ``z`` keeps its standardisation."""
    names = np.asarray(groups)
    u, s, _ = np.linalg.svd(z - z.mean(0), full_matrices=False)
    hat = 1 / len(y) + (u * _shares(s, penalties)[:, None, :]) @ u.T  # [q,n,n]
    residuals = y - hat @ y
    errors = np.empty_like(residuals)
    for name in np.unique(names):
        (members,) = np.nonzero(names == name)
        own = np.eye(len(members)) - hat[:, members[:, None], members]
        errors[:, members] = np.linalg.solve(own, residuals[:, members, None])[..., 0]
    return errors


def standards(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # [n,p] => [p], [p]
    """Return mean and standard deviation (ddof=0) of each column; 1 for one that does not vary, which then has slope 0."""
    mean, deviation = x.mean(0), x.std(0)
    still = deviation <= 1e-12 * np.maximum(np.abs(mean), 1e-300)
    return mean, np.where(still, 1.0, deviation)


def _shares(s: np.ndarray, penalties: np.ndarray) -> np.ndarray:  # [r], [q] => [q,r]
    """Return how much of each principal direction is kept: s^2 / (s^2 + penalty), 0 for directions without variance."""
    empty = s <= 1e-10 * max(s.max(initial=0.0), 1e-300)
    return np.where(empty, 0.0, s**2 / np.where(empty, 1.0, s**2 + penalties[:, None]))


def _inverse(s: np.ndarray) -> np.ndarray:
    empty = s <= 1e-10 * max(s.max(initial=0.0), 1e-300)
    return np.where(empty, 0.0, 1 / np.where(empty, 1.0, s))
