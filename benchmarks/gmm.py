"""EM for a Gaussian mixture with full covariances: ours against `sklearn.mixture.GaussianMixture`, and ours from a file.

Both start from the same mixture and do the same work on the same points: ``ITERATIONS`` times an E-step and an M-step, and one
E-step more. The clusters overlap, as those of latents do; where clusters are apart ours is faster still, because it
leaves out of a component's sums the points that do not belong to it.

    python benchmarks/gmm.py
"""

import argparse
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from common import compare, peak_memory, print_setting
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits
from torch import Tensor

from analyses.mixture import Mixture, em, random_starts, score_samples
from analyses.points import ArrayPoints, Points

ITERATIONS = 5
THREADS = min(2, os.cpu_count() or 1)

Task = tuple[Points, Mixture]


class FileRows(Points):
    """Points in a raw float64 file, read chunk by chunk."""

    def __init__(self, path: Path, d: int, size: int = 1 << 14) -> None:
        self._path, self._size = path, size
        self.n, self.d = path.stat().st_size // (8 * d), d

    def chunks(self) -> Iterator[Tensor]:
        """Yield the rows in order."""
        with open(self._path, "rb") as file:
            while len(rows := np.fromfile(file, count=self._size * self.d)):
                yield torch.from_numpy(rows.reshape(-1, self.d))


def clusters(n: int, d: int, k: int, seed: int = 0) -> np.ndarray:
    """Return points [n,d], float64, of k overlapping, unequal, tilted Gaussians."""
    rng = np.random.default_rng(0)
    mixing = 0.1 * rng.standard_normal((k, d, d)) + 0.7 * np.eye(d)
    means = 0.5 * rng.standard_normal((k, d))
    weights = rng.dirichlet(np.full(k, 5.0))
    rng = np.random.default_rng(seed)
    labels = rng.choice(k, n, p=weights)
    rows = rng.standard_normal((n, d))
    for j in range(k):
        rows[labels == j] = rows[labels == j] @ mixing[j] + means[j]
    return rows


def task(n: int, d: int, k: int) -> Task:
    return _ready(ArrayPoints(torch.from_numpy(clusters(n, d, k))), k)


def file_task(path: Path, d: int, k: int) -> Task:
    return _ready(FileRows(path, d), k)


def _ready(points: Points, k: int) -> Task:
    torch.set_num_threads(THREADS)
    start = random_starts(points, k, "full", 1)[0]
    little = ArrayPoints(torch.from_numpy(clusters(500, 4, 2)))
    toy = (little, random_starts(little, 2, "full", 1)[0])
    ours(toy, 1), peer(toy, 1)  # libraries loaded, threads started
    return points, start


def ours(data: Task, iterations: int = ITERATIONS) -> float:
    """Return the NLL per point at the last iteration."""
    points, start = data
    fit = em(points, start, tol=0, max_iter=iterations)
    score_samples(points, fit.mixture)
    return -fit.log_likelihoods[-1]


def peer(data: Task, iterations: int = ITERATIONS) -> float:
    """Return the NLL per point at the last iteration; scikit-learn ends with the additional E-step by itself."""
    (rows,), start = data[0].chunks(), data[1]
    model = GaussianMixture(
        len(start.weights),
        tol=0,
        max_iter=iterations,
        weights_init=start.weights.numpy(),
        means_init=start.means.numpy(),
        precisions_init=np.linalg.inv(start.covariances.numpy()),
    )
    with warnings.catch_warnings(), threadpool_limits(THREADS):
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of iterations is fixed
        model.fit(rows.numpy())
    return -model.lower_bound_


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=50_000)
    parser.add_argument("--dims", type=int, default=64)
    parser.add_argument("--components", type=int, default=50)
    parser.add_argument("--file-points", type=int, default=400_000, help="points of the file that is streamed")
    parser.add_argument("--repeats", type=int, default=2)
    given = parser.parse_args()
    n, d, k = given.points, given.dims, given.components
    data = task(n, d, k)
    print_setting()
    name = f"EM, {ITERATIONS} iterations, {k} full covariances, {n:,} x {d}"
    outcome = compare(name, lambda: ours(data), lambda: peer(data), given.repeats)
    assert outcome["relative_difference"] < 1e-3, "the two do not reach the same likelihood"
    print(f"NLL per point: ours {ours(data, 1):.6f} after 1 iteration, {ours(data):.6f} after {ITERATIONS}")
    for label, run in (("ours", ours), ("peer", peer)):
        print(
            f"peak memory above the points in memory ({8e-6 * n * d:.0f} MB), {label}: {peak_memory(task, run, n, d, k):.0f} MiB"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "points.f64"
        with open(path, "wb") as file:
            for seed in range(max(1, given.file_points // 50_000)):
                clusters(50_000, d, k, seed).tofile(file)
        peak = peak_memory(file_task, _one_iteration, path, d, k)
        print(f"streamed from a file of {path.stat().st_size / 1e6:.0f} MB: peak memory of ours {peak:.0f} MiB")


def _one_iteration(data: Task) -> float:
    return ours(data, 1)


if __name__ == "__main__":
    main()
