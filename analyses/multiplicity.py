"""p-values adjusted for how many there are: Holm (any error at all) and Benjamini-Hochberg (share of errors)."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy.stats import false_discovery_control

Multiplicity = Literal["holm", "benjamini-hochberg"]


def adjusted(p: Sequence[float] | np.ndarray, method: Multiplicity = "holm") -> np.ndarray:
    """Return adjusted p-values in the order given, [m]; NaN stay NaN and do not count.

    Args:
        p: in [0, 1], of one family of questions.
        method: ``holm`` (Scandinavian Journal of Statistics 6, 1979): below alpha with probability at most alpha for any of the
            true null hypotheses, however dependent; ``benjamini-hochberg`` (Journal of the Royal Statistical Society B 57,
            1995): among those below alpha at most a share of alpha is expected to be false.
    """
    values = np.asarray(p, dtype=np.float64)
    result = np.full(values.shape, np.nan)
    known = np.isfinite(values)
    if known.any():
        result[known] = _holm(values[known]) if method == "holm" else false_discovery_control(values[known])
    return result


def _holm(p: np.ndarray) -> np.ndarray:
    """Return the i-th smallest of m p-values times m - i + 1, made monotone and at most 1.

    (statsmodels' `multipletests` does the same and collects garbage, a tenth of a second, at every call.)
    """
    order = np.argsort(p)
    result = np.empty(len(p))
    result[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return result
