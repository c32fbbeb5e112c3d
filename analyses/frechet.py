"""Frechet distance of two Gaussians (Dowson and Landau 1982), of the features of two sets of images, and its error bar.

    d^2(N(mu1, S1), N(mu2, S2)) = |mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr (S1^1/2 S2 S1^1/2)^1/2

With factors S1 = A A^T and S2 = B B^T the last trace is the sum of the singular values of A^T B, which are the roots of the
eigenvalues of (A^T B)(A^T B)^T. Pivoted Cholesky factors do, end by themselves at the rank of a singular covariance, and
cost a fraction of a matrix square root; the one large step is the eigenvalues of one symmetric matrix.

The distance is a smooth function of the moments, so an image changes it to first order by its influence value. Resampling
the mean of these values is the bootstrap of the distance without decomposing a matrix a thousand times (delta method; van der
Vaart, Asymptotic Statistics, chapters 3 and 20).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.linalg
import torch
from scipy.linalg.blas import dsyrk
from scipy.linalg.lapack import dpotrf, dpstrf

from analyses.intervals import bootstrap_means, percentile_interval
from latentlab.errors import UserError
from latentlab.latents import ArrayLike
from latentlab.measurement import Estimate

_SYMMETRY = 1e-6
"""Largest difference between a covariance and its transpose, as a share of its largest entry: float32 sums stay below it."""

_SEMIDEFINITE = 1e-5
"""How much of the largest variance a covariance may lack to be positive semi-definite: again the rounding of float32."""

_SINGULAR = 1e-6
"""Share of the largest pivot of a Cholesky factor below which a covariance is treated as singular."""

_ROWS = 2048
"""Features in float64 at a time."""


class Moments(NamedTuple):
    """Mean [d] and covariance [d,d] (ddof=1) of features, float64."""

    mean: np.ndarray
    covariance: np.ndarray


class MomentSums:
    """Mean and covariance of features [n,d] that arrive in batches, summed in float64.

    Attributes:
        n: features seen so far.
    """

    def __init__(self) -> None:
        self.n = 0
        self._shift = self._sum = self._products = np.zeros(0)

    def add(self, features: ArrayLike) -> None:
        """Take in a batch [b,d].

        Raises:
            UserError: not [b,d] with the d of the batches before, or NaN or infinity.
        """
        table = _table(features)
        if self.n == 0:  # close to the mean, so that the sums of products do not cancel
            self._shift = table[:_ROWS].mean(0, dtype=np.float64)
            self._sum, self._products = np.zeros(table.shape[1]), np.zeros((table.shape[1], table.shape[1]))
        if table.shape[1] != len(self._shift):
            raise UserError(f"features must have {len(self._shift)} columns like those before, got {table.shape[1]}")
        for rows in _blocks(table):
            rows -= self._shift
            self.n += len(rows)
            self._sum += rows.sum(0)
            # The lower triangle in place: no second table of products, which is what small batches would pay for.
            self._products = dsyrk(1.0, rows.T, beta=1.0, c=self._products.T, overwrite_c=1).T

    def moments(self) -> Moments:
        """Return the moments of all features so far.

        Raises:
            UserError: fewer than 2 features.
        """
        if self.n < 2:
            raise UserError(f"a covariance needs at least 2 features, got {self.n}: give more images")
        products = self._products + np.tril(self._products, -1).T
        centre = self._sum / np.sqrt(self.n)
        products -= np.outer(centre, centre)
        products /= self.n - 1
        return Moments(self._shift + self._sum / self.n, products)


def frechet_distance(mu1: ArrayLike, sigma1: ArrayLike, mu2: ArrayLike, sigma2: ArrayLike) -> float:
    """Return the squared Frechet (2-Wasserstein) distance of two Gaussians, computed in float64; never below 0.

    Args:
        mu1: mean [d].
        sigma1: covariance [d,d], symmetric and positive semi-definite; it may be singular.
        mu2: mean [d].
        sigma2: covariance [d,d].

    Raises:
        UserError: shapes that do not fit, NaN or infinity, or a matrix that is not a covariance.
    """
    first, second = _moments("1", mu1, sigma1), _moments("2", mu2, sigma2)
    if first.mean.shape != second.mean.shape:
        raise UserError(
            f"both Gaussians must have one dimension, got mu1 {list(first.mean.shape)} and mu2 {list(second.mean.shape)}"
        )
    product = _Factor(first.covariance, "sigma1").matrix.T @ _Factor(second.covariance, "sigma2").matrix
    return _distance(first, second, np.sqrt(_squared_singular_values(product)))


@dataclass(frozen=True)
class FrechetEstimate:
    """Frechet distance of two sets of features.

    Attributes:
        value: the distance.
        replicates: [1000] bootstrap replicates, None where too few images make the linear approximation worthless.
        n: images.
    """

    value: float
    replicates: np.ndarray | None
    n: int

    @property
    def estimate(self) -> Estimate:
        """Value and 95 % interval."""
        return Estimate(self.value, None if self.replicates is None else percentile_interval(self.replicates, self.n))


def frechet_of_paired_features(first: ArrayLike, second: ArrayLike, seed: int = 0) -> FrechetEstimate:
    """Return the distance of two feature sets [n,d] whose i-th features come of the same image, and its replicates.

    An image that is drawn twice counts twice on both sides, so its two influence values are added before resampling. There
    are no replicates for n <= d: the covariances are singular, and the bias dwarfs what resampling shows.

    Raises:
        UserError: shapes that differ, fewer than 2 features, NaN or infinity.
    """
    x, y = _table(first), _table(second)
    if x.shape != y.shape:
        raise UserError(f"paired features must have one shape [n,d], got {list(x.shape)} and {list(y.shape)}")
    if len(x) <= x.shape[1]:
        return FrechetEstimate(frechet_distance(*_moments_of(x), *_moments_of(y)), None, len(x))
    value, influence_x, influence_y = influence_values(x, y)
    return FrechetEstimate(value, value + bootstrap_means(influence_x + influence_y, seed), len(x))


def sample_cautions(n: int, width: int, features: str) -> tuple[str, ...]:
    """Return what limits a distance of ``n`` images on ``width`` features of that name."""
    if n > width:
        return ()
    return (
        f"{n} images for {width} {features} features: the covariances are singular and the distance is far too large; it has "
        f"no interval, and may only be compared at the same n. Give more than {width} images",
    )


def influence_values(first: ArrayLike, second: ArrayLike) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the distance of two feature sets [n,d], [m,d] and the influence value of every feature on it, [n] and [m].

    With u = mu1 - mu2 and T the optimal map between the Gaussians, T S1 T = S2, the derivatives are 2 u with respect to mu1
    and I - T with respect to S1 (I - T^-1 to S2). The influence of x is therefore, up to a constant that makes the mean 0,

        2 u.(x - mu1) + |x - mu1|^2 - (x - mu1)^T T (x - mu1)

    T is never formed. In coordinates a = A^-1 (x - mu1), and with A^T B = U s V^T, the last term is a^T U s U^T a; it is
    b^T V s V^T b for the other set.
    """
    x, y = _table(first), _table(second)
    moments = _moments_of(x), _moments_of(y)
    factors = [_Factor(part.covariance, "the covariance of the features") for part in moments]
    product = factors[0].matrix.T @ factors[1].matrix
    squares, left = scipy.linalg.eigh(product @ product.T, driver="evd", overwrite_a=True, check_finite=False)
    singular = np.sqrt(squares.clip(0))
    inverse = np.where(singular > 0, 1 / np.where(singular > 0, singular, 1.0), 0.0)
    right = (inverse[:, None] * (left.T @ product)).T
    u = moments[0].mean - moments[1].mean
    influences = []
    for table, part, factor, side, towards in (
        (x, moments[0], factors[0], left, u),
        (y, moments[1], factors[1], right, -u),
    ):
        values = np.concatenate(
            [_influence(rows - part.mean, factor, side, singular, towards) for rows in _blocks(table)]
        )
        influences.append(values - values.mean())
    return _distance(*moments, singular), influences[0], influences[1]


def _influence(
    centred: np.ndarray, factor: "_Factor", side: np.ndarray, singular: np.ndarray, towards: np.ndarray
) -> np.ndarray:  # [b,d] => [b]
    mapped = np.square(factor.coordinates(centred) @ side) @ singular
    return 2 * (centred @ towards) + np.square(centred).sum(1) - mapped


class _Factor:
    """A positive semi-definite matrix S = A A^T of rank r.

    Attributes:
        matrix: A, [d,r].
    """

    def __init__(self, covariance: np.ndarray, name: str) -> None:
        # The transpose of a symmetric matrix is itself, in the order of memory that LAPACK wants.
        lower, failed = dpotrf(covariance.T, lower=1, clean=1)
        pivots = lower.diagonal()
        if failed or (len(pivots) and pivots.min() < _SINGULAR * pivots.max()):
            self._factor_singular(covariance, name)
        else:
            self._lower, self._rows, self.matrix = lower, np.arange(len(covariance)), lower

    def _factor_singular(self, covariance: np.ndarray, name: str) -> None:
        """Factor with pivots, up to the rank."""
        packed, pivots, rank, _ = dpstrf(covariance.T, lower=1)
        self._rows = pivots - 1
        self._lower = np.tril(packed[:rank, :rank])
        self.matrix = np.empty((len(covariance), rank))
        self.matrix[self._rows[:rank]] = self._lower
        self.matrix[self._rows[rank:]] = packed[rank:, :rank]
        if rank < len(covariance):
            left_over = np.abs(covariance - self.matrix @ self.matrix.T).max(initial=0)
            if left_over > _SEMIDEFINITE * np.abs(covariance).max(initial=0):
                raise UserError(f"{name} must be positive semi-definite, and has negative eigenvalues")

    def coordinates(self, rows: np.ndarray) -> np.ndarray:
        """Return a [n,r] with ``rows = a A^T``, for rows [n,d] in the range of the matrix."""
        pivots = self._rows[: len(self._lower)]
        return scipy.linalg.solve_triangular(self._lower, rows[:, pivots].T, lower=True, check_finite=False).T


def _squared_singular_values(matrix: np.ndarray) -> np.ndarray:
    """Return the squared singular values of [r,q], as many as its shorter side."""
    if not matrix.size:
        return np.zeros(0)
    short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    return scipy.linalg.eigvalsh(short @ short.T, driver="evr", overwrite_a=True, check_finite=False).clip(0)


def _distance(first: Moments, second: Moments, singular: np.ndarray) -> float:
    between = np.square(first.mean - second.mean).sum()
    return max(0.0, float(between + np.trace(first.covariance) + np.trace(second.covariance) - 2 * singular.sum()))


def _moments_of(table: np.ndarray) -> Moments:
    sums = MomentSums()
    sums.add(table)
    return sums.moments()


def _moments(which: str, mean: ArrayLike, covariance: ArrayLike) -> Moments:
    mu, sigma = _array(f"mu{which}", mean, 1), _array(f"sigma{which}", covariance, 2)
    if sigma.shape != (len(mu), len(mu)):
        raise UserError(f"sigma{which} must be [d,d] with d = {len(mu)} of mu{which}, got shape {list(sigma.shape)}")
    if np.array_equal(sigma, sigma.T):
        return Moments(mu, sigma)
    difference = np.abs(sigma - sigma.T).max(initial=0)
    if difference > _SYMMETRY * np.abs(sigma).max(initial=0):
        raise UserError(
            f"sigma{which} must be symmetric, entries differ from their mirror image by up to {difference:g}"
        )
    return Moments(mu, (sigma + sigma.T) / 2)


def _table(features: ArrayLike) -> np.ndarray:
    """Return features [n,d] as an array of numbers, in the type they have: float64 copies are made of few rows at a time."""
    if isinstance(features, torch.Tensor):  # numpy has no bfloat16
        features = features.detach().cpu()
        features = (features.float() if features.dtype == torch.bfloat16 else features).numpy()
    table = np.asarray(features)
    if table.ndim != 2 or table.dtype.kind not in "fiu":
        raise UserError(f"features must be numbers [n,d], got {table.dtype} of shape {list(table.shape)}")
    return table


def _blocks(table: np.ndarray) -> Iterator[np.ndarray]:
    """Yield copies of the rows in float64, `_ROWS` at a time."""
    for start in range(0, len(table), _ROWS):
        rows = table[start : start + _ROWS].astype(np.float64)
        if not np.isfinite(rows).all():
            raise UserError("features contain NaN or infinity")
        yield rows


def _array(name: str, values: ArrayLike, rank: int) -> np.ndarray:
    """Return ``values`` as finite float64 of ``rank`` dimensions."""
    try:
        array = values.detach().cpu().double().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
        array = array.astype(np.float64, copy=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} cannot be read as an array of numbers: {error}") from error
    if array.ndim != rank:
        raise UserError(f"{name} must have {rank} dimension{'s' * (rank > 1)}, got shape {list(array.shape)}")
    if not np.isfinite(array).all():
        raise UserError(f"{name} contains NaN or infinity")
    return array
