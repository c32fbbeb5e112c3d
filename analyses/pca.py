"""Principal components of points that are read in chunks: as many as explain a given share of the variance.

Three ways to the same answer, chosen by size:

* few dimensions: the exact covariance [d,d];
* few points: the exact Gram matrix [n,n], which has the same non-zero eigenvalues;
* neither: randomised subspace iteration (Halko, Martinsson & Tropp, SIAM Review 53, 2011, algorithms 4.3 and 4.4), with as
  many directions as the share needs. The total variance is exact there too, the eigenvalues are (tight) lower bounds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from analyses.points import Points
from latentlab.errors import UserError

EXACT_SIZE = 2048
"""Up to this many dimensions (or points) the whole covariance (or Gram) matrix is decomposed: 32 MiB, seconds."""

MOST_COMPONENTS = 1024
"""Randomised: the search for the share stops at this many components."""

_FIRST = 128
_OVERSAMPLING = 16
_SETTLED = 1e-3
_MOST_PASSES = 8

Eigen = tuple[Tensor, Tensor]
"""Variances in descending order [m] and their unit directions as columns [d,m]."""


@dataclass(frozen=True)
class Pca:
    """Principal components, float64.

    Attributes:
        mean: mean of the points, [d].
        components: orthonormal directions, [k,d], by descending variance.
        variances: variance of the points along each direction, ddof=0, [k].
        total_variance: sum of the variances of all d dimensions, ddof=0.
    """

    mean: Tensor
    components: Tensor
    variances: Tensor
    total_variance: float

    @property
    def explained(self) -> float:
        """Share of the total variance that the components hold, in [0,1]."""
        return float(self.variances.sum()) / self.total_variance

    def standardise(self, chunk: Tensor) -> Tensor:
        """Return the components of ``chunk`` [b,d] divided by their standard deviation (ddof=0), float64 [b,k]."""
        return (chunk.double() - self.mean) @ self._whitening

    @cached_property
    def _whitening(self) -> Tensor:
        return (self.components / self.variances.sqrt()[:, None]).T.contiguous()


def pca(points: Points, *, explained: float = 0.9, dims: int | None = None, seed: int = 0) -> Pca:
    """Return the fewest leading components whose cumulative explained variance exceeds ``explained``, or ``dims`` of them.

    Args:
        points: [n,d].
        explained: share of the variance to exceed (strictly), in (0,1). Where the randomised method does not get there with
            1024 components it returns those: compare `Pca.explained`.
        dims: this many components instead, whatever they explain.
        seed: of the randomised method.

    Raises:
        UserError: fewer than 2 points, a share outside (0,1), points without variance, or ``dims`` above the number of
            directions with any variance.
    """
    if points.n < 2:
        raise UserError(f"principal components need at least 2 points, got {points.n}")
    if not 0 < explained < 1:
        raise UserError(f"explained must lie between 0 and 1, got {explained}")
    if dims is not None and not 1 <= dims <= min(points.n - 1, points.d):
        raise UserError(
            f"dims must lie between 1 and {min(points.n - 1, points.d)} for {points.n} points of {points.d} numbers, got {dims}"
        )
    mean = _mean(points)
    total = _total_variance(points, mean)
    if total == 0:
        raise UserError("all points are equal: there are no principal components")
    if min(points.n, points.d) <= EXACT_SIZE:
        decompose = _from_covariance if points.d <= EXACT_SIZE else _from_gram
        variances, directions = decompose(points, mean)
    else:
        variances, directions = _randomised(points, mean, explained * total, dims, seed)
    k = dims or smallest_share(variances, explained * total)
    # A direction counts as empty when its variance is rounding error beside the total.
    if variances[k - 1] <= 1e-12 * total:
        rank = int((variances > 1e-12 * total).sum())
        raise UserError(f"dims is {k}, but the points vary in only {rank} directions: use dims={rank} or fewer")
    return Pca(mean, directions[:, :k].T.contiguous(), variances[:k].clone(), total)


def smallest_share(variances: Tensor, target: float) -> int:
    """Return the smallest k whose leading ``variances`` sum to more than ``target``; all of them where none does."""
    return min(int((variances.cumsum(0) <= target).sum()) + 1, len(variances))


def _mean(points: Points) -> Tensor:
    total = torch.zeros(points.d, dtype=torch.float64)
    for chunk in points.chunks():
        total += chunk.sum(0, dtype=torch.float64)
    return total / points.n


def _total_variance(points: Points, mean: Tensor) -> float:
    squares = sum(float((chunk.double() - mean).square().sum()) for chunk in points.chunks())
    return squares / points.n


def _from_covariance(points: Points, mean: Tensor) -> Eigen:
    covariance = torch.zeros(points.d, points.d, dtype=torch.float64)
    for chunk in points.chunks():
        centred = chunk.double() - mean
        covariance.addmm_(centred.T, centred, alpha=1 / points.n)
    values, vectors = torch.linalg.eigh(covariance)
    return values.flip(0).clamp_min(0), vectors.flip(1)


def _from_gram(points: Points, mean: Tensor) -> Eigen:
    """Decompose ``X X^T / n = U diag(variances) U^T``; the directions are ``X^T U / sqrt(n variances)``."""
    gram = torch.zeros(points.n, points.n, dtype=torch.float64)
    row = 0
    for chunk in points.chunks():
        left, column = chunk.double() - mean, 0
        for other in points.chunks():
            gram[row : row + len(chunk), column : column + len(other)] = left @ (other.double() - mean).T / points.n
            column += len(other)
        row += len(chunk)
    values, vectors = torch.linalg.eigh(gram)
    rank = int((values > 1e-12 * values.sum()).sum())
    variances, vectors = values.flip(0)[:rank], vectors.flip(1)[:, :rank]
    scaled = vectors / (points.n * variances).sqrt()
    return variances, _accumulate(
        points, lambda chunk, start: (chunk.double() - mean).T @ scaled[start : start + len(chunk)]
    )


def _accumulate(points: Points, term: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Return the float64 sum of ``term(chunk, index of its first row)`` over all chunks."""
    total, start = None, 0
    for chunk in points.chunks():
        part = term(chunk, start)
        total = part.double() if total is None else total.add_(part)
        start += len(chunk)
    assert total is not None
    return total


def _randomised(points: Points, mean: Tensor, target: float, dims: int | None, seed: int) -> Eigen:
    """Iterate a random subspace until the variance it holds settles; widen it until it holds the ``target``.

    Products run in the precision of the points, sums over chunks in float64.
    """
    most = min((dims or MOST_COMPONENTS) + _OVERSAMPLING, points.n, points.d)
    width = most if dims else min(_FIRST, most)
    generator = torch.Generator().manual_seed(seed)
    basis = torch.zeros(points.d, 0, dtype=torch.float64)
    while True:
        fresh = torch.randn(points.d, width - basis.shape[1], generator=generator, dtype=torch.float64)
        variances, basis = _subspace_iteration(points, mean, torch.cat([basis, fresh], dim=1))
        if dims:
            return variances, basis
        trusted = width - _OVERSAMPLING  # the last few directions have not settled
        if width == most or variances[:trusted].sum() > target:
            return variances[:trusted], basis[:, :trusted]
        width = min(2 * width, most)


def _subspace_iteration(points: Points, mean: Tensor, start: Tensor) -> Eigen:
    """Multiply ``start`` [d,m] by the covariance until the variance in its span grows by less than 0.1 %.

    Each pass gives the Rayleigh-Ritz variances and directions within the present span.
    """
    basis, held = torch.linalg.qr(start)[0], 0.0
    for _ in range(_MOST_PASSES):
        image = _times_covariance(points, mean, basis)
        values, rotation = torch.linalg.eigh(basis.T @ image)
        settled = float(values.sum()) <= held * (1 + _SETTLED)
        held, ritz = float(values.sum()), (values.flip(0).clamp_min(0), basis @ rotation.flip(1))
        if settled:
            break
        basis = torch.linalg.qr(image)[0]
    return ritz


def _times_covariance(points: Points, mean: Tensor, basis: Tensor) -> Tensor:
    """Return the covariance of the points times ``basis``, [d,m], in one pass."""

    def term(chunk: Tensor, _: int) -> Tensor:
        centred = chunk - mean.to(chunk)
        return centred.T @ (centred @ basis.to(chunk))

    return _accumulate(points, term) / points.n
