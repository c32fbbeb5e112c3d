"""Kernel density at the points themselves: ours against `scipy.stats.gaussian_kde`, and the time of all of uniformity.

Both are exact in float64. scipy computes every pair twice on one core; ours computes each pair once, with one matrix product per
block and all threads in it.

    python benchmarks/uniformity.py [n]
"""

import sys
import time

import numpy as np
from common import compare, print_setting, synthetic_latents
from scipy.stats import gaussian_kde

from analyses.point_density import point_density
from latentlab import measure


def points(n: int) -> np.ndarray:
    """Return three groups in the plane, [n,2]."""
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0], [40.0, 5.0], [10.0, 60.0]])
    return centres[rng.integers(3, size=n)] + rng.standard_normal((n, 2)) * [12, 20]


def time_measurement(latents: np.ndarray, method: str) -> None:
    start = time.perf_counter()
    value = measure("uniformity", latents, method=method).value
    print(
        f"uniformity, method='{method}', {len(latents)} latents: {time.perf_counter() - start:.1f} s, value {value:.4f}"
    )


def main(n: int) -> None:
    print_setting()
    data = points(n)
    compare(f"kernel density at {n} points", lambda: point_density(data), lambda: gaussian_kde(data.T)(data.T))
    latents, _ = synthetic_latents(n, classes=100, shape=(32, 4, 4))
    for method in ("sphere", "tsne"):
        time_measurement(latents, method)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
