"""Kronecker-factored covariance of the latents of one class, ``Sigma = Sigma_s (x) Sigma_c`` (DRS, arXiv 2606.03578, eq. 3).

The factors come from flip-flop iterations (maximum likelihood of the matrix normal distribution):
    Sigma_c = 1/(n s) sum_n Z_n Sigma_s^-1 Z_n^T,    then    Sigma_s = 1/(n c) sum_n Z_n^T Sigma_c^-1 Z_n.
Each half-step whitens the data with what it has just estimated, so that the next one works on numbers whose covariance is
close to the identity. Products of many numbers may then be taken in float32, whatever the condition of the covariance: the
small factors, their maps and the sums over pieces are float64.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from analyses.class_latents import ClassLatents
from latentlab.errors import UserError
from latentlab.latents import ChannelMoments, Latents

_RANK_TOLERANCE = 1e-12
"""Directions with less than this share of the largest variance count as constant."""

_AMPLIFICATION = {torch.float32: 1e5, torch.float64: 1e11}
"""How much whitening may raise the mean variance of rounding noise (about 1e-13 of the signal's in float32)."""


@dataclass(frozen=True)
class KroneckerCovariance:
    """Covariance of a class; its trace is the class's total variance (ddof=0).

    Attributes:
        mean: class mean, [c,s] float64.
        channels: Sigma_c [c,c] float64.
        cells: Sigma_s [s,s] float64.
    """

    mean: Tensor
    channels: Tensor
    cells: Tensor

    def eigenvalues(self) -> Tensor:
        """Return the d = c*s eigenvalues, descending, float64."""
        channels, cells = (variances(torch.linalg.eigvalsh(factor)) for factor in (self.channels, self.cells))
        return torch.outer(channels, cells).flatten().sort(descending=True).values


def variances(eigenvalues: Tensor) -> Tensor:
    """Return ascending ``eigenvalues`` of a covariance with those of constant directions, which rounding moves off 0, set to 0.

    However small, a variance counts fully at the end of the flow: I(1) is the number of those above 0.
    """
    return torch.where(eigenvalues > _RANK_TOLERANCE * eigenvalues[-1], eigenvalues, 0).clamp_min(0)


class _IllConditioned(Exception):
    """The latents vary too little in some direction for the precision at hand."""


def fit_kronecker(
    latents: Latents,
    images: np.ndarray,
    moments: ChannelMoments | None = None,
    *,
    iterations: int = 5,
    shrinkage: float | None = None,
) -> KroneckerCovariance:
    """Fit the covariance of some images.

    Args:
        latents: where they are; read once if the chosen ones fit into memory, else once per half-step.
        images: their indices.
        moments: standardise the channels with these first, or None.
        iterations: flip-flop iterations, at least 1, starting from Sigma_s = I.
        shrinkage: in (0,1]: in every half-step replace this share of the factor by a multiple of the identity with the
            same trace.

    Raises:
        UserError: too few images for factors of full rank, and no shrinkage.
    """
    if shrinkage is None:
        _check_rank(latents, len(images))
    dtype = latents.take(images[:1]).dtype if shrinkage is None else torch.float64
    read = partial(ClassLatents, latents, images, moments)
    fitted = _attempt(read(dtype), iterations, shrinkage, _AMPLIFICATION[dtype])
    if fitted is None:
        fitted = _fit_degenerate(read, iterations, shrinkage)
    if fitted is None:
        raise UserError(
            "the latents of a class are too degenerate for a Kronecker covariance: set shrinkage (0.1, say)"
        )
    return fitted


def shrunk(covariance: Tensor, shrinkage: float | None) -> Tensor:
    """Return the mixture of ``covariance`` and, with weight ``shrinkage``, the multiple of the identity of equal trace."""
    if shrinkage is None:
        return covariance
    mean = covariance.trace() / len(covariance)
    return (1 - shrinkage) * covariance + shrinkage * mean * torch.eye(len(covariance)).to(covariance)


def _check_rank(latents: Latents, n: int) -> None:
    c, s = latents.channels, latents.cells
    needed = 1 + max(-(-s // c), -(-c // s))  # images that still span both factors once their mean is removed
    if n < needed:
        raise UserError(
            f"a Kronecker covariance of {c} channels x {s} cells needs at least {needed} images per class, one has {n}: "
            "give more images, or set shrinkage (0.1, say)"
        )


def _fit_degenerate(
    read: Callable[..., ClassLatents], iterations: int, shrinkage: float | None
) -> KroneckerCovariance | None:
    """Fit in float64 and, where no shrinkage gives every direction some variance, only in those that have any."""
    if shrinkage is not None:
        return _attempt(read(torch.float64), iterations, shrinkage, torch.inf)
    mean, bases = _varying_directions(read(torch.float64))
    inner = _attempt(read(torch.float64, bases), iterations, None, torch.inf)
    if inner is None:
        return None
    channels, cells = (b @ factor @ b.T for b, factor in zip(bases, (inner.channels, inner.cells), strict=True))
    return KroneckerCovariance(mean, channels, cells)


def _varying_directions(data: ClassLatents) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return the mean, and orthonormal bases [c,c'], [s,s'] (at least one vector each) of where the latents vary."""
    bases = []
    for gram in (data.channel_gram(), data.cell_gram()):
        eigenvalues, vectors = torch.linalg.eigh(gram)
        varies = eigenvalues > _RANK_TOLERANCE * eigenvalues[-1]
        varies[-1] = True
        bases.append(vectors[:, varies])
    return data.mean, (bases[0], bases[1])


def _attempt(data: ClassLatents, iterations: int, shrinkage: float | None, limit: float) -> KroneckerCovariance | None:
    """Fit by flip-flop; None where a factor is too ill conditioned."""
    try:
        return KroneckerCovariance(data.mean, *_flip_flop(data, iterations, shrinkage, limit))
    except _IllConditioned:
        return None


def _flip_flop(
    data: ClassLatents, iterations: int, shrinkage: float | None, limit: float
) -> tuple[Tensor, Tensor]:  # -> Sigma_c [c,c], Sigma_s [s,s] with tr(Sigma_c) tr(Sigma_s) = total variance
    channel_gram, channel_map = data.channel_gram(), data.channel_map
    total = channel_gram.trace() / data.n  # nothing is whitened yet
    if not torch.isfinite(total):
        raise UserError("the latents contain NaN or infinity, or are too large for their type")
    if not total > 0:
        return torch.zeros_like(data.channel_map), torch.zeros_like(data.cell_map)
    cell_gram = data.cell_gram(_whitening(channel_gram, channel_map, shrinkage, limit))
    for _ in range(iterations - 1):
        channel_map = data.channel_map
        channel_gram = data.channel_gram(_whitening(cell_gram, data.cell_map, shrinkage, limit))
        cell_gram = data.cell_gram(_whitening(channel_gram, channel_map, shrinkage, limit))
    channels = _covariance(channel_gram, channel_map, shrinkage)
    cells = _covariance(cell_gram, data.cell_map, shrinkage)
    return channels * (total / channels.trace() / cells.trace()), cells


def _covariance(gram: Tensor, chain: Tensor, shrinkage: float | None) -> Tensor:
    """Return the factor, up to scale, in the latents' coordinates: ``gram`` is of data mapped by ``chain``."""
    back = _triangular_inverse(chain)
    return shrunk(back @ gram @ back.T, shrinkage)


def _whitening(gram: Tensor, chain: Tensor, shrinkage: float | None, limit: float) -> Tensor:
    """Return the lower triangular step after which the data, mapped by ``chain`` so far, have the identity as factor."""
    if shrinkage is None:
        return _inverse_root(gram, limit)
    return _inverse_root(_covariance(gram, chain, shrinkage), limit) @ _triangular_inverse(chain)


def _inverse_root(matrix: Tensor, limit: float) -> Tensor:
    """Return W, lower triangular, with ``W matrix W^T = I``.

    Raises:
        _IllConditioned: not positive definite, or white noise of the same trace as ``matrix`` would have more than
            ``limit`` times its variance after W.
    """
    root, failed = torch.linalg.cholesky_ex(matrix / matrix.trace() * len(matrix))
    inverse = _triangular_inverse(root)
    if failed or not inverse.square().sum() <= limit * len(matrix):
        raise _IllConditioned
    return inverse


def _triangular_inverse(lower: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(lower, torch.eye(len(lower), dtype=lower.dtype), upper=False)
