"""k Gaussians with full, diagonal or tied covariances: log-densities, moments and principal axes.

One class per covariance shape, the same five operations each. Everything is float64, and rows are given relative to a
common centre near their mean, so that ``E[x x^T] - mu mu^T`` does not cancel.

Letters: b rows of a chunk, d dimensions, k components.
Source: Bishop, "Pattern Recognition and Machine Learning" (2006), 2.43 and 9.24-9.26.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from latentlab.errors import UserError

Covariance = Literal["full", "diag", "tied"]


class DegenerateMixtureError(UserError):
    """A component lost all its points or collapsed onto too few of them."""


class Shape(ABC):
    """What depends on the shape of the covariances."""

    @abstractmethod
    def size(self, k: int, d: int) -> int:
        """Return the number of free parameters of the covariances."""

    @abstractmethod
    def whiteners(self, covariances: Tensor) -> Tensor:
        """Return the inverse Cholesky factors ``W`` (``W Sigma W^T = I``), in the layout of the covariances."""

    @abstractmethod
    def log_densities(self, rows: Tensor, means: Tensor, whiteners: Tensor) -> Tensor:
        """Return ``log N(x; mu_k, Sigma_k)`` of ``rows`` [b,d], [k,b]."""

    @abstractmethod
    def add_squares(self, squares: Tensor, rows: Tensor, responsibilities: Tensor) -> None:
        """Add the responsibility-weighted second moments of ``rows`` [b,d] to ``squares``; responsibilities are [k,b]."""

    @abstractmethod
    def covariances(self, squares: Tensor, counts: Tensor, means: Tensor) -> Tensor:
        """Return the covariances belonging to the summed second moments, the counts [k] and the means [k,d]."""

    @abstractmethod
    def axes(self, covariances: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the variances [k,d] along the principal axes and these axes as columns [k,d,d]."""

    @abstractmethod
    def from_pooled(self, covariance: Tensor, k: int) -> Tensor:
        """Return k covariances that all equal (the diagonal of) ``covariance`` [d,d]."""


class Full(Shape):
    """One matrix per component, [k,d,d]."""

    def size(self, k: int, d: int) -> int:
        """Return the number of entries of k symmetric matrices."""
        return k * d * (d + 1) // 2

    def whiteners(self, covariances: Tensor) -> Tensor:
        """Return [k,d,d], lower triangular."""
        return _inverse_cholesky(covariances)

    def log_densities(self, rows: Tensor, means: Tensor, whiteners: Tensor) -> Tensor:
        """Return ``-|W_k (x - mu_k)|^2 / 2 + log det W_k - d/2 log 2 pi``."""
        offsets = -torch.einsum("kij,kj->ki", whiteners, means)
        distances = torch.empty(len(means), len(rows), dtype=rows.dtype)
        white = torch.empty_like(rows)
        for offset, whitener, distance in zip(offsets, whiteners, distances, strict=True):
            torch.addmm(offset, rows, whitener.T, out=white)
            torch.linalg.vector_norm(white, dim=1, out=distance)
        constants = whiteners.diagonal(dim1=1, dim2=2).log().sum(1) - 0.5 * rows.shape[1] * math.log(2 * math.pi)
        return distances.square_().mul_(-0.5).add_(constants[:, None])

    def add_squares(self, squares: Tensor, rows: Tensor, responsibilities: Tensor) -> None:
        """Add ``sum_n r_nk x_n x_n^T``, skipping rows of responsibility 0: with many dimensions nearly all of them."""
        for total, weights in zip(squares, responsibilities, strict=True):
            counting = torch.nonzero(weights).flatten()
            own = rows.index_select(0, counting)
            total.addmm_((own * weights.index_select(0, counting)[:, None]).T, own)

    def covariances(self, squares: Tensor, counts: Tensor, means: Tensor) -> Tensor:
        """Return Bishop's eq. 9.25."""
        return squares / counts[:, None, None] - means[:, :, None] * means[:, None, :]

    def axes(self, covariances: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the eigenvalues and eigenvectors."""
        return torch.linalg.eigh(covariances)

    def from_pooled(self, covariance: Tensor, k: int) -> Tensor:
        """Return [k,d,d]."""
        return covariance.repeat(k, 1, 1)


class Diagonal(Shape):
    """One variance per component and dimension, [k,d]."""

    def size(self, k: int, d: int) -> int:
        """Return the number of variances."""
        return k * d

    def whiteners(self, covariances: Tensor) -> Tensor:
        """Return the inverse standard deviations [k,d]."""
        if not (covariances > 0).all():
            raise _singular()
        return covariances.rsqrt()

    def log_densities(self, rows: Tensor, means: Tensor, whiteners: Tensor) -> Tensor:
        """Return ``-sum_i w_ki^2 (x_i - mu_ki)^2 / 2 + ...``, the square expanded: two matrix products for all k."""
        precisions = whiteners.square()
        weighted = precisions * means
        constants = whiteners.log().sum(1) - 0.5 * ((weighted * means).sum(1) + means.shape[1] * math.log(2 * math.pi))
        linear = torch.addmm(constants[:, None], weighted, rows.T)
        return linear.addmm_(precisions, rows.square().T, alpha=-0.5)

    def add_squares(self, squares: Tensor, rows: Tensor, responsibilities: Tensor) -> None:
        """Add ``sum_n r_nk x_ni^2``."""
        squares.addmm_(responsibilities, rows.square())

    def covariances(self, squares: Tensor, counts: Tensor, means: Tensor) -> Tensor:
        """Return the diagonal of Bishop's eq. 9.25."""
        return squares / counts[:, None] - means.square()

    def axes(self, covariances: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the variances and the coordinate axes."""
        d = covariances.shape[1]
        return covariances, torch.eye(d, dtype=covariances.dtype).expand(k, d, d)

    def from_pooled(self, covariance: Tensor, k: int) -> Tensor:
        """Return [k,d]."""
        return covariance.diagonal().repeat(k, 1)


class Tied(Shape):
    """One matrix for all components, [d,d]."""

    def size(self, k: int, d: int) -> int:
        """Return the number of entries of one symmetric matrix."""
        return d * (d + 1) // 2

    def whiteners(self, covariances: Tensor) -> Tensor:
        """Return [d,d], lower triangular."""
        return _inverse_cholesky(covariances)

    def log_densities(self, rows: Tensor, means: Tensor, whiteners: Tensor) -> Tensor:
        """Return ``-|W x - W mu_k|^2 / 2 + log det W - d/2 log 2 pi``, the square expanded."""
        white, white_means = rows @ whiteners.T, means @ whiteners.T
        constant = whiteners.diagonal().log().sum() - 0.5 * rows.shape[1] * math.log(2 * math.pi)
        of_rows = constant - 0.5 * white.square().sum(1)
        return (white_means @ white.T).sub_(0.5 * white_means.square().sum(1, keepdim=True)).add_(of_rows)

    def add_squares(self, squares: Tensor, rows: Tensor, responsibilities: Tensor) -> None:
        """Add ``sum_n x_n x_n^T``: the responsibilities of a row sum to 1."""
        squares.addmm_(rows.T, rows)

    def covariances(self, squares: Tensor, counts: Tensor, means: Tensor) -> Tensor:
        """Return the average of the components' covariances, weighted by their counts."""
        return (squares - (counts[:, None] * means).T @ means) / counts.sum()

    def axes(self, covariances: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the eigenvalues and eigenvectors, the same for each component."""
        values, vectors = torch.linalg.eigh(covariances)
        return values.expand(k, -1), vectors.expand(k, -1, -1)

    def from_pooled(self, covariance: Tensor, k: int) -> Tensor:
        """Return it as it is."""
        return covariance.clone()


SHAPES: Mapping[str, Shape] = {"full": Full(), "diag": Diagonal(), "tied": Tied()}


def _inverse_cholesky(covariances: Tensor) -> Tensor:
    factors, failed = torch.linalg.cholesky_ex(covariances)
    if failed.any():
        raise _singular()
    identity = torch.eye(factors.shape[-1], dtype=factors.dtype)
    return torch.linalg.solve_triangular(factors, identity.expand_as(factors), upper=False)


def _singular() -> DegenerateMixtureError:
    return DegenerateMixtureError(
        "a component has a singular covariance (it collapsed onto too few points): use fewer components, "
        "covariance='diag', or fewer dims"
    )
