"""Correlations with BCa interval and permutation p-value: ours against scipy's `bootstrap` and `permutation_test`.

As many resamplings (2,000) and permutations (9,999) on both sides, ten predictors of one target (one for Kendall: the peer takes
minutes). The peer's Pearson and Spearman are given vectorised statistics; `scipy.stats.kendalltau` takes one pair of columns at a
time. Ours draws resamplings once for all predictors. Intervals and p-values differ by chance; the correlations are compared.

    python benchmarks/correlation.py [n]
"""

import sys
from collections.abc import Callable

import numpy as np
from common import compare, print_setting
from scipy import stats

from analyses import resampling
from analyses.correlation import METHODS, Method, correlate


def columns(n: int, predictors: int) -> tuple[np.ndarray, np.ndarray]:
    """Return predictors [p,n] and a target [n] that they share something with."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=n)
    return y + rng.normal(size=(predictors, n)), y


def ours(x: np.ndarray, y: np.ndarray, method: Method) -> list[float]:
    resampling.drawn_counts.cache_clear()
    resampling.orders.cache_clear()
    return [correlate(one, y, method).value for one in x]


def pearson(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.asarray(stats.pearsonr(x, y, axis=axis).statistic)


def spearman(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    return pearson(stats.rankdata(x, axis=axis), stats.rankdata(y, axis=axis), axis)


def kendall(x: np.ndarray, y: np.ndarray) -> float:
    return float(stats.kendalltau(x, y).statistic)


PEERS: dict[Method, Callable[..., object]] = {"pearson": pearson, "spearman": spearman, "kendall": kendall}


def peer(x: np.ndarray, y: np.ndarray, method: Method) -> list[float]:
    return [one_by_peer(one, y, method) for one in x]


def one_by_peer(x: np.ndarray, y: np.ndarray, method: Method) -> float:
    of, vectorized, rng = PEERS[method], method != "kendall", np.random.default_rng(0)
    # only y is permuted: x is the same beside each of its orders
    of_y = (lambda z, axis=-1: of(np.broadcast_to(x, z.shape), z, axis)) if vectorized else (lambda z: of(x, z))
    common = {"vectorized": vectorized, "rng": rng}
    stats.permutation_test((y,), of_y, permutation_type="pairings", n_resamples=resampling.PERMUTATIONS, **common)
    stats.bootstrap((x, y), of, paired=True, n_resamples=resampling.REPLICATES, method="BCa", **common)
    return float(of(x, y))


def main(n: int) -> None:
    print_setting()
    for method in METHODS:
        few = method == "kendall"
        x, y = columns(n, 1 if few else 10)
        name = f"{method}, {n} points, {len(x)} predictors"
        compare(
            name, lambda m=method, x=x, y=y: ours(x, y, m), lambda m=method, x=x, y=y: peer(x, y, m), 1 if few else 3
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 30)
