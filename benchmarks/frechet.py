"""The Frechet distance of two Gaussians of 1280 and 2048 dimensions against `scipy.linalg.sqrtm`, which published code calls.

The second peer is the other common form, eigenvalues of the product of both covariances by a general eigensolver. Ours factors
both covariances and takes the eigenvalues of one symmetric matrix; what limits it is their reduction to tridiagonal form, half
of which is matrix-vector products. Covariances of real features are nearly singular, and so are these: what the values differ
by is the error of the square root (singular values of the product of the factors agree with ours to 1e-13). The error bar (a
third line) needs the eigenvectors too, once, and no resampled distances.

    python benchmarks/frechet.py [dimensions ...]
"""

import sys

import numpy as np
import scipy.linalg
from common import compare, print_setting

from analyses.frechet import frechet_distance, frechet_of_paired_features

Moments = tuple[np.ndarray, np.ndarray]


def features(n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Return correlated features [n,d] of images and of their reconstructions, with the uneven spectrum of real ones."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((d, d)) * np.geomspace(1, 0.02, d)[:, None]
    first = rng.standard_normal((n, d)) @ mix
    second = 0.9 * first + 0.3 * rng.standard_normal((n, d)) @ mix + 0.05
    return first, second


def moments(table: np.ndarray) -> Moments:
    return table.mean(0), np.cov(table.T)


def ours(first: Moments, second: Moments) -> float:
    return frechet_distance(*first, *second)


def by_square_root(first: Moments, second: Moments) -> float:
    (mu1, sigma1), (mu2, sigma2) = first, second
    root = scipy.linalg.sqrtm(sigma1 @ sigma2)
    return float(np.sum((mu1 - mu2) ** 2) + np.trace(sigma1) + np.trace(sigma2) - 2 * np.trace(root).real)


def by_general_eigenvalues(first: Moments, second: Moments) -> float:
    (mu1, sigma1), (mu2, sigma2) = first, second
    roots = np.sqrt(scipy.linalg.eigvals(sigma1 @ sigma2).real.clip(0)).sum()
    return float(np.sum((mu1 - mu2) ** 2) + np.trace(sigma1) + np.trace(sigma2) - 2 * roots)


def main(dimensions: list[int]) -> None:
    print_setting()
    for d in dimensions:
        first, second = features(4 * d, d)
        both = moments(first), moments(second)
        compare(
            f"Frechet distance, d={d}, sqrtm", lambda both=both: ours(*both), lambda both=both: by_square_root(*both)
        )
        compare(
            f"Frechet distance, d={d}, general eigenvalues",
            lambda both=both: ours(*both),
            lambda both=both: by_general_eigenvalues(*both),
        )
        compare(
            f"distance and interval from {4 * d} features, d={d}; the peer makes moments and distance only",
            lambda pair=(first, second): frechet_of_paired_features(*pair).value,
            lambda pair=(first, second): by_square_root(*map(moments, pair)),
            repeats=1,
        )


if __name__ == "__main__":
    main([int(d) for d in sys.argv[1:]] or [1280, 2048])
