"""Jackknife+: a prediction interval that assumes no distribution, from what fits without one group say about it.

Barber, Candes, Ramdas and Tibshirani, Predictive inference with the jackknife+, Annals of Statistics 49 (2021): with fits mu_-i
that never saw point i and their errors R_i = |y_i - mu_-i(x_i)|, the interval of level 1 - alpha at x is

    [ the floor(alpha (n+1))-th smallest of mu_-i(x) - R_i,  the ceil((1-alpha)(n+1))-th smallest of mu_-i(x) + R_i ]

It holds at least 1 - 2 alpha of new points whatever the distribution and the model, and about 1 - alpha as a rule. Here mu_-i
leaves out the whole cluster of tokenizer i (their CV+, section 3, with clusters as folds): the errors are those on kinds of
tokenizers that a fit has not seen. The guarantee is for exchangeable points, which tokenizers of clusters are not: a
simulation in the tests shows that leaving out single ones then covers too little, and whole clusters about what they should.
"""

import math
from collections.abc import Sequence

import numpy as np

LEVEL = 0.9
"""Nominal level. 95 % would be the extremes of fewer than 40 errors."""


def fewest_points(level: float = LEVEL) -> int:
    """Return the number of points below which the interval is the whole line."""
    return math.ceil(1 / (1 - level) - 1 - 1e-9)


def jackknife_plus(
    predictions: np.ndarray | Sequence[float], errors: np.ndarray | Sequence[float], level: float = LEVEL
) -> tuple[float, float]:
    """Return the ends of the interval at a new point.

    Args:
        predictions: [n], mu_-i at the new point.
        errors: [n], R_i, not negative.
        level: 1 - alpha.
    """
    mu, r = np.asarray(predictions, dtype=np.float64), np.asarray(errors, dtype=np.float64)
    n = len(mu)
    if n < fewest_points(level):
        return -math.inf, math.inf
    rank = math.ceil(level * (n + 1) - 1e-9)  # counted from below for the upper end, from above for the lower one
    return float(np.sort(mu - r)[n - rank]), float(np.sort(mu + r)[rank - 1])
