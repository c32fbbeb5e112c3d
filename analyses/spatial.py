"""Cosine similarities between the tokens of an image by their distance on the grid, without the matrix of all pairs.

Sums over pairs of cells i rows and j columns apart are an autocorrelation of the grid. By the Wiener-Khinchin theorem they are
linear in the squared Fourier coefficients of the grid padded with zeros; and since (i, j), (i, -j), (-i, j) and (-i, -j) are at
the same Manhattan distance d, a real transform that is separable in rows and columns is enough. For fields p, q [c,h,w]:

    sum_{t,t'} f(d(t,t')) <p_t, q_t'> = sum_{k,l} F_kl sum_c P_ckl Q_ckl,    P_c = R_h p_c R_w^T

where the rows of R_m are the cosines and sines of one axis. For 32 x 16 x 16 latents these are a quarter of the operations of
the 256 x 256 matrix of cosines, and an eighth of its memory traffic.

Definitions of LDS, CDS, SRSS and RMSC: Singh et al., "What matters for Representation Alignment" (iREPA, arXiv 2512.10794).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analyses.intervals import bootstrap_means, percentile_band, percentile_interval
from analyses.threads import map_in_threads
from latentlab.errors import UserError
from latentlab.latents import Latents
from latentlab.measurement import Estimate

PUBLISHED_GRID = (16, 16)
"""The grid that the published distances, in cells, were chosen for."""

_PIECE_BYTES = 1 << 20
"""Latents of one step: enough that starting its operations costs little, few enough that their transforms stay in the cache."""


class PairSums:
    """Sums over all ordered pairs of cells of a function f of their Manhattan distance times the inner product of tokens.

    In float32 the sum over unit tokens is good to 1e-8 of the number of all pairs. The mean over the few pairs of opposite
    corners (4 of 65,536 on 16 x 16) of a single image can so be wrong by 1e-5, if its tokens are all alike; every other one, and
    averages over images, are good to 2e-6.
    """

    def __init__(self, grid: tuple[int, int], functions: Tensor, beyond: float = 0.0) -> None:
        """Prepare the transform.

        Args:
            grid: (h, w).
            functions: values of the m functions f at distances 0, 1, ..., float64 [m, reach + 1].
            beyond: their value at all larger distances. The fewer values are given, the shorter the transform.
        """
        reach = functions.shape[1] - 1
        (self._rows, by_row), (self._columns, by_column) = (_axis(side, reach) for side in grid)
        distance = torch.arange(len(by_row))[:, None] + torch.arange(len(by_column))
        excess = torch.where(distance <= reach, (functions - beyond)[:, distance.clamp_max(reach)], 0)
        weights = torch.einsum("mij,ik,jl->mkl", excess, by_row, by_column)
        weights[:, 0, 0] += beyond  # coefficient 0, 0 is the plain sum over cells
        self._weights = weights.flatten(1)

    def __call__(self, p: Tensor, q: Tensor | None = None) -> Tensor:  # [b,c,h,w] => float64 [b,m]
        """Return sum_{t,t'} f(d(t,t')) <p_t, q_t'> of every image, with q = p when it is not given."""
        coefficients = self._transform(p)
        products = coefficients.square_() if q is None else coefficients.mul_(self._transform(q))
        return products.sum(1).double() @ self._weights.T

    def _transform(self, fields: Tensor) -> Tensor:  # [b,c,h,w] => [b,c,k*l]
        b, c, h, w = fields.shape
        rows, columns = self._rows.to(fields), self._columns.to(fields)
        along_rows = (fields.reshape(-1, w) @ columns.T).view(b * c, h, -1)
        return (rows @ along_rows).view(b, c, -1)


def _axis(side: int, reach: int) -> tuple[Tensor, Tensor]:
    """Return R [k,side] of one axis, and weights [side,k] that turn squared coefficients into sums over pairs at a distance.

    With period N the sum over pairs at distance j is (2 - [j=0]) / N sum_{k<N} cos(2 pi k j / N) |X_k|^2, and frequencies k
    and N - k are one. It holds for j <= reach, since distances up to side - 1 do not wrap around to j.
    """
    period = side + min(side - 1, reach)
    period += -period % 8  # rows that suit vector instructions
    k = torch.arange(period // 2 + 1, dtype=torch.float64)
    x = torch.arange(side, dtype=torch.float64)
    angle = 2 * torch.pi / period * k[:, None] * x
    inner = slice(1, period // 2)  # the sines of the first and last frequency are 0
    fold = torch.full_like(k, 2.0)
    fold[[0, -1]] = 1.0
    weights = fold * torch.cos(angle).T / period
    weights[1:] *= 2
    return torch.cat([angle.cos(), angle.sin()[inner]]), torch.cat([weights, weights[:, inner]], dim=1)


def pair_counts(grid: tuple[int, int]) -> np.ndarray:
    """Return the number of ordered pairs of cells at Manhattan distance 0 to h + w - 2."""
    rows, columns = (np.array([side, *(2 * (side - np.arange(1, side)))]) for side in grid)
    return np.convolve(rows, columns)


def unit_tokens(latents: Tensor, epsilon: float) -> Tensor:
    """Return u_t = x_t / max(|x_t|, epsilon) of tokens x_t = latents[:, :, t], [b,c,h,w]."""
    norms = latents.square().sum(1, keepdim=True).sqrt_()
    return latents * norms.clamp_min_(epsilon).reciprocal_()


def rows_per_image(
    latents: Latents, function: Callable[[Tensor, slice], Tensor], *, normalize: bool, epsilon: float
) -> np.ndarray:
    """Return ``function(u, part)`` [b,m] of all images, float64 [n,m], one piece of the latents per thread at a time.

    Args:
        latents: with a grid.
        function: of unit tokens u [b,c,h,w] and the images they belong to.
        normalize: standardise each channel over the whole set first.
        epsilon: smallest norm of a token.

    Raises:
        UserError: non-finite latents.
    """
    moments = latents.moments  # also for raw latents: refuses what is not finite

    def rows(part: slice) -> Tensor:
        batch = latents.take(part)
        return function(unit_tokens(moments.standardise(batch) if normalize else batch, epsilon), part)

    size = max(1, _PIECE_BYTES // (4 * latents.channels * latents.cells))
    parts = list(latents.slices(size))
    return torch.cat(map_in_threads(rows, parts, most=len(parts))).double().numpy()


@dataclass(frozen=True)
class Decay:
    """How the mean cosine similarity of two tokens of an image depends on their Manhattan distance 1 to h + w - 2 = D.

    Attributes:
        pairs: number of ordered pairs at each distance, [D].
        similarity: of every image, float64 [n,D].
        replicates: bootstrap replicates over images of its mean, [r,D]; None for one image.
    """

    pairs: np.ndarray
    similarity: np.ndarray
    replicates: np.ndarray | None

    def mean_of(self, weights: np.ndarray) -> tuple[Estimate, np.ndarray | None]:
        """Return the mean over images of ``similarity @ weights`` [D], and its bootstrap replicates [r]."""
        value = float((self.similarity @ weights).mean())
        if self.replicates is None:
            return Estimate(value), None
        replicates = self.replicates @ weights
        return Estimate(value, percentile_interval(replicates, len(self.similarity))), replicates

    def details(self) -> dict[str, Any]:
        """Return the table for figures: ``distance``, ``similarity`` and, for several images, its 95 % band."""
        table = {"distance": np.arange(1, len(self.pairs) + 1), "similarity": self.similarity.mean(0)}
        if self.replicates is None:
            return table
        low, high = percentile_band(self.replicates, len(self.similarity))
        return {**table, "similarity_low": low, "similarity_high": high}


def measure_decay(latents: Latents, *, normalize: bool, seed: int) -> Decay:
    """Measure the similarity at every distance, of all images; ``seed`` is of the bootstrap."""
    assert latents.grid is not None
    pairs = pair_counts(latents.grid)[1:]
    at_distance = torch.diag(torch.from_numpy(1 / pairs))
    sums = PairSums(latents.grid, torch.cat([torch.zeros(len(pairs), 1), at_distance], dim=1))
    similarity = rows_per_image(latents, lambda u, _: sums(u), normalize=normalize, epsilon=1e-8)
    return Decay(pairs, similarity, bootstrap_means(similarity, seed) if latents.n > 1 else None)


def largest_distance(grid: tuple[int, int]) -> int:
    """Return the Manhattan distance of opposite corners."""
    return grid[0] + grid[1] - 2


def check_distance(name: str, value: int, least: int, grid: tuple[int, int]) -> None:
    """Raise `UserError` when a distance in cells is below ``least`` or above the largest one on the grid."""
    if value < least:
        raise UserError(f"{name} must be at least {least} cells, got {value}")
    if value > largest_distance(grid):
        raise UserError(
            f"{name}={value} does not fit a {grid[0]}x{grid[1]} grid: no two cells are more than "
            f"{largest_distance(grid)} apart"
        )


def described(latents: Latents, definition: str, normalize: bool) -> str:
    """Return the variant of a spatial measurement in words; the grid is part of it, as distances are in cells."""
    assert latents.grid is not None
    h, w = latents.grid
    return f"{definition}, {h}x{w} grid, {'per-channel normalised' if normalize else 'raw'}"


def cautions(latents: Latents, normalize: bool) -> list[str]:
    """Return what limits a measurement of tokens by distance."""
    assert latents.grid is not None
    h, w = latents.grid
    said = token_cautions(latents, normalize)
    if latents.grid != PUBLISHED_GRID:
        said.append(f"distances are in cells: compare only with values of other {h}x{w} grids (published ones: 16x16)")
    return said


def token_cautions(latents: Latents, normalize: bool) -> list[str]:
    """Return what limits any measurement of token directions."""
    said = []
    if normalize and not latents.moments.std.any():
        said.append("the latents do not vary at all: their tokens have no direction, and all similarities are 0")
    if latents.n < 2:
        said.append("one image only: an interval over images is not possible")
    return said
