"""95 % bootstrap intervals over images (or classes), for means and ratios of means."""

from typing import cast

import numpy as np

from latentlab.measurement import Interval

REPLICATES = 1000
_LEVELS = (2.5, 97.5)
_CHUNK = 1 << 22


def bootstrap_means(values: np.ndarray, seed: int = 0, replicates: int = REPLICATES) -> np.ndarray:
    """Return the column means of ``replicates`` resamplings with replacement of the rows of ``values``.

    Args:
        values: [n] or [n,m], one row per independently drawn unit (image, class).
        seed: the same seed gives the same resamplings, so statistics of the same units stay paired.
        replicates: number of resamplings r.

    Returns:
        [r] or [r,m], float64.
    """
    table = np.asarray(values, dtype=np.float64)
    columns = table.reshape(len(table), -1)
    n = len(columns)
    rng = np.random.default_rng(seed)
    means = np.empty((replicates, columns.shape[1]))
    step = max(1, _CHUNK // n)
    for start in range(0, replicates, step):
        rows = min(step, replicates - start)
        drawn = rng.integers(0, n, size=(rows, n)) + n * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        means[start : start + rows] = counts @ columns / n
    return means.reshape(replicates, *table.shape[1:])


def percentile_interval(replicates: np.ndarray) -> Interval:
    """Return the 2.5 and 97.5 percentiles of bootstrap ``replicates`` [r], ignoring NaN."""
    return cast(Interval, tuple(float(v) for v in np.nanpercentile(replicates, _LEVELS)))


def mean_interval(values: np.ndarray, seed: int = 0) -> Interval | None:
    """Return the bootstrap interval of the mean of ``values`` [n]; None for fewer than 2."""
    return percentile_interval(bootstrap_means(values, seed)) if len(values) > 1 else None


def level_mean_interval(values: np.ndarray, seed: int = 0) -> Interval | None:
    """Return the bootstrap interval of the mean of ``values`` [n] that take few levels (0 and 1, fractions of k).

    Resampling n units with replacement and counting the units at each level is one multinomial draw over the levels, so
    this is the bootstrap of `mean_interval` in a thousandth of its time. None for fewer than 2 values.
    """
    n = len(values)
    if n < 2:
        return None
    levels, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    resampled = np.random.default_rng(seed).multinomial(n, counts / n, size=REPLICATES)
    return percentile_interval(resampled @ levels / n)
