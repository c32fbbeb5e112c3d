"""Mean and covariance of 50,000 features of 2048 numbers, streamed in float64; the distance of two such Gaussians.

The peers are torch-fidelity, for both, and `scipy.linalg.sqrtm`, which published code calls for the distance.

Features arrive in batches, as from a network; ours keeps sums and a few blocks, the peer needs all features at once. Both
make a symmetric update per block (or of everything), so the time is that of n d^2 operations in float64. Covariances and the
distance differ by the order of summation. The peer sums the means of float32 features in float32, so its means (and, through
them, a small distance by a few millionths) are less exact than ours: both are held against the means in float64.

    python benchmarks/frechet_statistics.py [images] [dimensions]
"""

import sys
from collections.abc import Callable, Iterator

import numpy as np
import scipy.linalg
import torch
from common import compare, peak_memory, print_setting
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from analyses.frechet import Moments, MomentSums, frechet_distance

BATCH = 1024
RANK = 256


def batches(n: int, d: int, shift: float = 0.0) -> Iterator[np.ndarray]:
    """Yield float32 features as of pooled activations: nonnegative, correlated, with means far from 0."""
    mix = np.random.default_rng(0).standard_normal((RANK, d), dtype=np.float32) / np.float32(np.sqrt(RANK))
    for start in range(0, n, BATCH):
        rng = np.random.default_rng([1, start])
        rows = min(BATCH, n - start)
        noise = rng.standard_normal((rows, RANK), dtype=np.float32) @ mix
        yield np.maximum(noise + 0.3 * rng.standard_normal((rows, d), dtype=np.float32) + 0.3 + shift, 0)


def streamed(n: int, d: int) -> Moments:
    sums = MomentSums()
    for batch in batches(n, d):
        sums.add(batch)
    return sums.moments()


def ours(table: np.ndarray) -> Moments:
    sums = MomentSums()
    for start in range(0, len(table), BATCH):
        sums.add(table[start : start + BATCH])
    return sums.moments()


def peer(table: np.ndarray) -> Moments:
    statistics = fid_features_to_statistics(torch.from_numpy(table))
    return Moments(statistics["mu"], statistics["sigma"])


def compare_statistics(n: int, d: int) -> None:
    """Time both, and tell how far the moments are from each other or from the truth, as a share of the largest entry."""
    table = np.concatenate(list(batches(n, d)))
    found: dict[str, Moments] = {}

    def moments_by(name: str, function: Callable[[np.ndarray], Moments]) -> np.ndarray:
        found[name] = function(table)
        return found[name].covariance.diagonal()

    compare(
        f"statistics of {n} x {d}, torch-fidelity (variances)",
        lambda: moments_by("ours", ours),
        lambda: moments_by("peer", peer),
        repeats=2,
    )
    first, second = found["ours"].covariance, found["peer"].covariance
    print(f"covariances differ by {np.abs(first - second).max() / np.abs(second).max():.1e} of the largest entry")
    exact = table.mean(0, dtype=np.float64)
    errors = (np.abs(found[name].mean - exact).max() / exact.max() for name in ("ours", "peer"))
    print("means are off by {:.1e} (ours) and {:.1e} (peer) of the largest entry".format(*errors))


def by_square_root(first: Moments, second: Moments) -> float:
    root = scipy.linalg.sqrtm(first.covariance @ second.covariance).real
    traces = np.trace(first.covariance) + np.trace(second.covariance) - 2 * np.trace(root)
    return float(np.sum((first.mean - second.mean) ** 2) + traces)


def by_torch_fidelity(first: Moments, second: Moments) -> float:
    pair = [{"mu": one.mean, "sigma": one.covariance} for one in (first, second)]
    return float(fid_statistics_to_metric(*pair, verbose=False)["frechet_inception_distance"])


def prepare(n: int, d: int) -> tuple[int, int]:
    streamed(BATCH, 8)
    return n, d


def run(size: tuple[int, int]) -> Moments:
    return streamed(*size)


def main(n: int, d: int) -> None:
    print_setting()
    print(f"streamed statistics of {n} x {d}: {peak_memory(prepare, run, n, d):.0f} MiB")
    compare_statistics(n, d)
    first, second = streamed(min(n, 5 * d), d), _moved(min(n, 5 * d), d)
    for name, other in (("scipy.linalg.sqrtm", by_square_root), ("torch-fidelity", by_torch_fidelity)):
        compare(
            f"distance of Gaussians of {d} dimensions, {name}",
            lambda: frechet_distance(*first, *second),
            lambda other=other: other(first, second),
            repeats=1,
        )


def _moved(n: int, d: int) -> Moments:
    sums = MomentSums()
    for batch in batches(n, d, 0.05):
        sums.add(1.05 * batch)
    return sums.moments()


if __name__ == "__main__":
    main(*(int(size) for size in (sys.argv[1:] or ("50000", "2048"))))
