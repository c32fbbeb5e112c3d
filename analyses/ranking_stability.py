"""Do two settings (generators, guidance scales, judges) rank the same tokenizers alike?"""

from dataclasses import dataclass

import numpy as np

from analyses.correlation import checked_columns, of_counts
from analyses.resampling import bootstrap_interval, estimate
from latentlab.measurement import Interval


@dataclass(frozen=True)
class Stability:
    """Agreement of two rankings of n tokenizers.

    Attributes:
        n: number of tokenizers.
        spearman: rank correlation; 1: the same order, 0: unrelated.
        kendall: tau-b: share of pairs in the same order minus share in opposite orders.
        interval: 95 % BCa bootstrap interval of ``spearman`` over tokenizers; None where it has none.
    """

    n: int
    spearman: float
    kendall: float
    interval: Interval | None


def ranking_stability(first: np.ndarray, second: np.ndarray, seed: int = 0) -> Stability:
    """Return how alike two settings rank the same tokenizers, by their qualities [n] under each.

    Raises:
        UserError: as `analyses.correlation.correlate`.
    """
    columns = checked_columns(first, second)
    n = len(columns)
    spearman, kendall = (of_counts(columns, method) for method in ("spearman", "kendall"))
    return Stability(n, estimate(spearman, n), estimate(kendall, n), bootstrap_interval(spearman, n, seed))
