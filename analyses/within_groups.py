"""Correlation within groups: what is left when differences between groups (clusters, architectures) are taken out.

Both columns lose the mean of their group; the rest correlates with n - g - 1 degrees of freedom for g groups (it is the partial
correlation given g - 1 indicators). The interval is Fisher's, atanh r +- 1.96 / sqrt(n - g - 2); the p-value is of permutations
within groups, exact if points of a group are exchangeable under "no association". The Spearman variant takes ranks among all
points first.
"""

from dataclasses import dataclass
from math import factorial, prod

import numpy as np
from scipy.stats import rankdata

from analyses.correlation import Method, checked_columns
from analyses.resampling import orders_within, p_value
from latentlab.errors import UserError
from latentlab.measurement import Interval

_CONSTANT = 1e-10
"""Share of a column's variance within groups below which there is nothing to correlate."""


@dataclass(frozen=True)
class WithinGroups:
    """A correlation within groups.

    Attributes:
        n: points in groups of at least two; others say nothing.
        groups: number of such groups.
        value: in [-1, 1].
        interval: 95 %, by Fisher's transformation.
        p: two-sided, of permutations within groups.
        orders: how many orders there are within the groups; 1 / orders is the least p that even a perfect association has.
    """

    n: int
    groups: int
    value: float
    interval: Interval
    p: float
    orders: int


def correlate_within(
    x: np.ndarray, y: np.ndarray, groups: np.ndarray, method: Method = "pearson", seed: int = 0
) -> WithinGroups:
    """Return the correlation of ``x`` and ``y`` [n] within ``groups`` [n] (labels).

    Raises:
        UserError: as `correlate`; Kendall; fewer than 3 more points than groups; or a column constant within all groups.
    """
    if method == "kendall":
        raise UserError("correlation within groups is by deviations from means: choose pearson or spearman")
    label, size = np.unique(groups, return_counts=True)
    kept = np.isin(groups, label[size > 1])
    columns, member = checked_columns(x, y)[kept], np.asarray(groups)[kept]
    n, g = int(kept.sum()), int((size > 1).sum())
    if n < g + 3:
        raise UserError(f"correlation within {g} groups needs at least {g + 3} points in them, got {n}")
    table = columns if method == "pearson" else rankdata(columns, axis=0)
    a, b = _deviations(table, member).T
    value = float(np.clip(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)), -1, 1))
    null = b[orders_within(member, seed)] @ a / (np.linalg.norm(a) * np.linalg.norm(b))
    orders = prod(factorial(int(members)) for members in size[size > 1])
    return WithinGroups(n, g, value, _fisher_interval(value, n - g - 2), p_value(value, null), orders)


def _deviations(table: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return columns [n,m] minus the means of their groups.

    Raises:
        UserError: nothing is left of a column.
    """
    _, member, size = np.unique(groups, return_inverse=True, return_counts=True)
    means = np.stack([np.bincount(member, column) / size for column in table.T], axis=1)
    left = table - means[member]
    if (np.var(left, axis=0) <= _CONSTANT * np.var(table, axis=0)).any():
        raise UserError("correlation within groups needs values that vary within groups, got a column that does not")
    return left


def _fisher_interval(value: float, weight: int) -> Interval:
    if abs(value) == 1:
        return value, value
    centre, half = np.arctanh(value), 1.959964 / np.sqrt(weight)
    return float(np.tanh(centre - half)), float(np.tanh(centre + half))
