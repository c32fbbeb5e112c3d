"""Principal components of points that are read in chunks: as many as explain a given share of the variance.

Three ways to the same answer, chosen by size:

* few dimensions: the exact covariance [d,d];
* few points: the exact Gram matrix [n,n], which has the same non-zero eigenvalues;
* neither: subspace iteration (Halko, Martinsson & Tropp, SIAM Review 53, 2011, algorithms 4.3 and 4.4), with as many
  directions as the share needs, from the exact components of a sample of the points. The total variance is exact there
  too, the eigenvalues are (tight) lower bounds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from analyses.points import ArrayPoints, Points, sample
from latentlab.errors import UserError

EXACT_SIZE = 2048
"""Up to this many dimensions (or points) the whole covariance (or Gram) matrix is decomposed: 32 MiB, seconds."""

MOST_COMPONENTS = 1024
"""The search for the share stops at this many components."""

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


def pca(
    points: Points,
    *,
    explained: float = 0.9,
    dims: int | None = None,
    most: int = MOST_COMPONENTS,
    seed: int = 0,
) -> Pca:
    """Return the fewest leading components whose cumulative explained variance exceeds ``explained``, or ``dims`` of them.

    Args:
        points: [n,d].
        explained: share of the variance to exceed (strictly), in (0,1).
        dims: this many components instead, whatever they explain.
        most: return this many components where the share needs more of them: compare `Pca.explained`.
        seed: of the sample and the random directions of the third method.

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
    mean, total = _mean_and_variance(points)
    if total == 0:
        raise UserError("all points are equal: there are no principal components")
    if min(points.n, points.d) <= EXACT_SIZE:
        decompose = _from_covariance if points.d <= EXACT_SIZE else _from_gram
        variances, directions = decompose(points, mean)
    else:
        variances, directions = _iterated(points, mean, explained * total, dims, most, seed)
    k = dims or min(smallest_share(variances, explained * total), most)
    # A direction counts as empty when its variance is rounding error beside the total.
    if k > len(variances) or variances[k - 1] <= 1e-12 * total:
        rank = int((variances > 1e-12 * total).sum())
        raise UserError(f"dims is {k}, but the points vary in only {rank} directions: use dims={rank} or fewer")
    return Pca(mean, directions[:, :k].T.contiguous(), variances[:k].clone(), total)


def smallest_share(variances: Tensor, target: float) -> int:
    """Return the smallest k whose leading ``variances`` sum to more than ``target``; all of them where none does."""
    return min(int((variances.cumsum(0) <= target).sum()) + 1, len(variances))


def _mean_and_variance(points: Points) -> tuple[Tensor, float]:
    """Return the mean [d] and the summed variance of all dimensions, in one pass about the mean of the first chunk."""
    shift: Tensor | None = None
    total, squares = torch.zeros(points.d, dtype=torch.float64), 0.0
    for chunk in points.chunks():
        if shift is None:
            shift = chunk.mean(0, dtype=torch.float64).to(chunk.dtype)
        centred = chunk - shift
        total += centred.sum(0, dtype=torch.float64)
        squares += float(torch.linalg.vector_norm(centred, dim=1, dtype=torch.float64).square().sum())
    assert shift is not None
    offset = total / points.n
    variance = squares / points.n - float(offset.square().sum())
    # Below the rounding of the chunks around their common value there is no variance.
    rounding = 4 * torch.finfo(shift.dtype).eps ** 2 * float(shift.double().square().sum())
    return shift.double() + offset, variance if variance > rounding else 0.0


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


def _iterated(points: Points, mean: Tensor, target: float, dims: int | None, most: int, seed: int) -> Eigen:
    """Iterate a subspace until the variance it holds settles; widen it until it holds the ``target``.

    It starts from the components of `EXACT_SIZE` of the points, which also show about how many directions it needs, and
    random ones. Products run in the precision of the points, sums over chunks in float64.
    """
    widest = min((dims or most) + _OVERSAMPLING, points.n, points.d)
    basis, width = _start(points, target, dims, widest, seed)
    generator = torch.Generator().manual_seed(seed)
    while True:
        fresh = torch.randn(points.d, width - basis.shape[1], generator=generator, dtype=torch.float64)
        variances, basis = _subspace_iteration(points, mean, torch.cat([basis, fresh], dim=1))
        if dims:
            return variances, basis
        trusted = width - _OVERSAMPLING  # the last few directions have not settled
        if width == widest or variances[:trusted].sum() > target:
            return variances[:trusted], basis[:, :trusted]
        width = min(2 * width, widest)


def _start(points: Points, target: float, dims: int | None, widest: int, seed: int) -> tuple[Tensor, int]:
    """Return directions to start from, [d,m], and how many the first iteration should have."""
    rows = ArrayPoints(sample(points, EXACT_SIZE, seed))
    mean, total = _mean_and_variance(rows)
    if total == 0:  # a sample of equal points says nothing
        return torch.zeros(points.d, 0, dtype=torch.float64), widest if dims else min(_FIRST, widest)
    variances, directions = _from_gram(rows, mean) if len(mean) > EXACT_SIZE else _from_covariance(rows, mean)
    needed = dims or smallest_share(variances, target)
    width = widest if dims else min(max(needed + _OVERSAMPLING, _FIRST), widest)
    return directions[:, : min(needed, width - 1)], width


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
