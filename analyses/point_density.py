"""Kernel density of points in the plane at the points themselves, and how uneven it is.

The density is that of `scipy.stats.gaussian_kde` with its defaults: a Gaussian kernel with the covariance of the points
(ddof=1) times Scott's factor n^(-1/6) squared, each point included in its own density. The statistics are those of
VA-VAE's ``tools/latent_vis.py`` (Yao et al., arXiv 2501.01423; MIT licence), of densities f_i and p = f / sum f:

    density CV = std(f, ddof=0) / mean(f)
    Gini       = sum_i (2i - n - 1) f_(i) / (n sum f),  f_(1) <= ... <= f_(n)
    entropy    = -sum p log2(p + 1e-10) / log2 n
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from analyses.threads import map_in_threads
from latentlab.errors import UserError
from latentlab.latents import ArrayLike, tensor_of

_BLOCK_BYTES = 4 << 20
"""Size of a block of kernel values: it stays in the cache between the product, the exponential and the sums."""

_SINGULAR = 1e-14
"""Points are on a line when their covariance has a determinant below this share of the product of its variances."""


class Evenness(NamedTuple):
    """How evenly points are spread: of equal densities 0, 0 and 1."""

    density_cv: float
    gini: float
    normalized_entropy: float


def density_uniformity(points: ArrayLike) -> Evenness:
    """Return density CV, Gini coefficient and normalised entropy of points in the plane, [n,2].

    All three are invariant under affine maps of the plane. Well separated groups count as *more* even than a uniform square:
    one bandwidth for all, as wide as the whole set demands, smooths the groups over.

    Raises:
        UserError: not [n,2], fewer than 3 points, NaN or infinity, or points on one line.
    """
    return evenness(point_density(points))


def point_density(points: ArrayLike) -> np.ndarray:
    """Return the kernel density at each of the points [n,2], float64 [n]; exact, in blocks, O(n^2) in time and O(n) in memory.

    Raises:
        UserError: as `density_uniformity`.
    """
    white, volume = _whiten(_checked(points))
    n = len(white)
    # -|x-y|^2/2 = x.y - |x|^2/2 - |y|^2/2 is one product of rows of four numbers.
    halves = white.square().sum(1, keepdim=True) / 2
    ones = torch.ones_like(halves)
    left, right = torch.cat([white, -halves, ones], dim=1), torch.cat([white, ones, -halves], dim=1).T

    def add_up(blocks: list[slice]) -> Tensor:
        sums = torch.zeros(n, dtype=torch.float64)
        for rows in blocks:
            add_block(sums, torch.mm(left[rows], right[:, rows.start :]).exp_(), rows)
        return sums

    threads = torch.get_num_threads()
    total = torch.stack(map_in_threads(add_up, shares_of_pairs(n, threads), most=threads)).sum(0)
    return (total / (n * 2 * np.pi * volume)).numpy()


def shares_of_pairs(n: int, threads: int) -> list[list[slice]]:
    """Return all pairs of n points once, in blocks for each thread: rows, with every point from the first of them on."""
    blocks, start = [], 0
    while start < n:
        blocks.append(slice(start, min(n, start + max(1, _BLOCK_BYTES // (8 * (n - start))))))
        start = blocks[-1].stop
    return [blocks[i::threads] for i in range(min(threads, len(blocks)))]


def add_block(sums: Tensor, kernel: Tensor, rows: slice) -> None:
    """Add the values of one block of pairs, symmetric in the two points, to the sums of both, [n]."""
    sums[rows] += kernel.sum(1)
    sums[rows.stop :] += kernel[:, len(kernel) :].sum(0)


def evenness(density: np.ndarray) -> Evenness:
    """Return the three statistics of densities [n]; their scale does not matter."""
    n, ascending = len(density), np.sort(density)
    share = ascending / ascending.sum()
    ranks = 2 * np.arange(1, n + 1) - n - 1
    return Evenness(
        float(density.std() / density.mean()),
        float(ranks @ share / n),
        float(-(share @ np.log2(share + 1e-10)) / np.log2(n)),
    )


def _checked(points: ArrayLike) -> Tensor:
    found = tensor_of("points", points).double()
    if found.ndim != 2 or found.shape[1] != 2:
        raise UserError(f"points must be [n,2], got shape {list(found.shape)}")
    if len(found) < 3:
        raise UserError(f"a density in the plane needs at least 3 points, got {len(found)}")
    if not torch.isfinite(found).all():
        raise UserError("points contain NaN or infinity")
    return found


def _whiten(points: Tensor) -> tuple[Tensor, float]:
    """Return the points in units of the kernel's standard deviations, and the area of its unit square."""
    n = len(points)
    centred = points - points.mean(0)
    covariance = centred.T @ centred / (n - 1)
    if not torch.linalg.det(covariance) > _SINGULAR * covariance.diagonal().prod():
        raise UserError(
            "the points lie on one line or in one place: their covariance is singular, so they have no density"
        )
    factor = torch.linalg.cholesky(covariance) * n ** (-1 / 6)
    white = torch.linalg.solve_triangular(factor, centred.T, upper=False).T
    return white.contiguous(), float(factor.diagonal().prod())
