"""Slope of a target on a predictor when groups (clusters, architectures) have their own level: a random intercept per group.

Linear mixed model y = a + slope x + b_group + e with both columns standardised over all points, fitted by REML (statsmodels). Its
slope lies between that of all points and that within groups, by how much groups differ.
"""

import warnings
from dataclasses import dataclass

import numpy as np

from analyses.correlation import checked_columns
from latentlab.errors import UserError
from latentlab.measurement import Interval


@dataclass(frozen=True)
class MixedSlope:
    """A standardised slope with random intercepts.

    Attributes:
        n: points.
        groups: groups.
        value: change of the target, in its standard deviations, per standard deviation of the predictor.
        interval: 95 %, normal approximation; None where the fit gave no standard error.
        p: two-sided, the same approximation; NaN likewise.
        group_sd: standard deviation of the levels of groups, in standard deviations of the target.
        converged: whether the optimiser found an optimum.
        warnings: what it complained about, one line each.
    """

    n: int
    groups: int
    value: float
    interval: Interval | None
    p: float
    group_sd: float
    converged: bool
    warnings: tuple[str, ...]


def mixed_slope(x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> MixedSlope:
    """Return the slope of ``y`` on ``x`` [n] with a random intercept for each of ``groups`` [n] (labels).

    Raises:
        UserError: as `analyses.correlation.correlate`; fewer than two groups, no group of two, or no fit at all.
    """
    from statsmodels.regression.mixed_linear_model import MixedLM

    columns = checked_columns(x, y)
    labels, member = np.unique(groups, return_inverse=True)
    if not 2 <= len(labels) < len(columns):
        raise UserError(f"a mixed model needs groups with several points, got {len(labels)} of {len(columns)} points")
    a, b = ((columns - columns.mean(0)) / columns.std(0, ddof=1)).T
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            result = MixedLM(b, np.column_stack([np.ones(len(a)), a]), groups=member).fit(reml=True)
            value, error, p = float(result.params[1]), float(result.bse[1]), float(result.pvalues[1])
            group_sd = float(result.cov_re[0, 0]) ** 0.5
        except np.linalg.LinAlgError as failure:
            raise UserError(f"the mixed model has no solution for these points: {failure}") from failure
    told = tuple(dict.fromkeys(" ".join(str(one.message).split()) for one in said))
    interval = (value - 1.959964 * error, value + 1.959964 * error) if np.isfinite(error) else None
    return MixedSlope(len(a), len(labels), value, interval, p, group_sd, bool(result.converged), told)
