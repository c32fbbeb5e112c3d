"""Gaussian mixtures by expectation maximisation, exact and streaming.

Each iteration reads all points once, chunk by chunk, and keeps only the sums of responsibilities, of responsibility-weighted
points and of their weighted squares: memory does not grow with the number of points, and the result does not depend on
how they are cut into chunks.

Letters: n points, b points of a chunk, d dimensions, k components.
Source: Dempster, Laird & Rubin, JRSS B 39 (1977); Bishop, "Pattern Recognition and Machine Learning" (2006), 9.2.2.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from analyses.gaussians import SHAPES, Covariance, DegenerateMixtureError, Shape
from analyses.kmeans import kmeans
from analyses.points import Points, sample
from latentlab.errors import UserError, unknown_name

CHUNK_BYTES = 1 << 20
"""Size of the [b,d] chunks: about the second-level cache."""

START_ROWS = 20_000
"""Random starts are looked for on at most this many points (or 20 per component)."""

NEGLIGIBLE = 1e-20
"""Responsibilities up to this are set to 0, alike in all sums: far below rounding, and zeros are skipped."""

SCOUT_ITERATIONS = 5
"""Length of the short runs that choose among several starts."""


@dataclass(frozen=True)
class Mixture:
    """Parameters of a Gaussian mixture, float64; shapes as in scikit-learn.

    Attributes:
        covariance: ``full`` (one matrix per component), ``diag`` (one variance per component and dimension) or
            ``tied`` (one matrix for all).
        weights: [k], sum 1.
        means: [k,d].
        covariances: [k,d,d] (full), [k,d] (diag) or [d,d] (tied).
    """

    covariance: Covariance
    weights: Tensor
    means: Tensor
    covariances: Tensor

    @property
    def shape(self) -> Shape:
        """The operations of this covariance shape."""
        return SHAPES[self.covariance]

    @property
    def n_parameters(self) -> int:
        """Number of free parameters: weights, means and covariances."""
        k, d = self.means.shape
        return count_parameters(k, d, self.covariance)

    @property
    def centre(self) -> Tensor:
        """Mean of the mixture [d]; after an M-step it is the mean of the points."""
        return self.weights @ self.means


@dataclass(frozen=True)
class Fit:
    """What `em` found.

    Attributes:
        mixture: the parameters after the last M-step.
        log_likelihoods: mean log-likelihood per point (scikit-learn's lower bound) at each E-step.
        converged: whether its last change was below the tolerance.
    """

    mixture: Mixture
    log_likelihoods: tuple[float, ...]
    converged: bool


def count_parameters(k: int, d: int, covariance: Covariance) -> int:
    """Return the number of free parameters of ``k`` Gaussians in ``d`` dimensions: weights, means and covariances."""
    return k - 1 + k * d + SHAPES[covariance].size(k, d)


def bic(mean_log_likelihood: float, n_parameters: int, n: int) -> float:
    """Return the Bayesian information criterion ``-2 n mean_log_likelihood + n_parameters log n`` (Schwarz 1978)."""
    return -2 * n * mean_log_likelihood + n_parameters * math.log(n)


def fit_mixture(
    points: Points,
    k: int,
    covariance: Covariance = "full",
    *,
    n_init: int = 3,
    warm: Mixture | None = None,
    tol: float = 1e-3,
    max_iter: int = 100,
    reg_covar: float = 1e-6,
    seed: int = 0,
) -> Fit:
    """Fit ``k`` components: short runs from several starts, then EM from the best of them to convergence.

    Short runs find about as good a maximum as full runs from every start, in a fraction of the time (Biernacki, Celeux &
    Govaert, "Choosing starting values for the EM algorithm", CSDA 41, 2003).

    Args:
        points: [n,d].
        k: number of components.
        covariance: shape of the covariances.
        n_init: number of random starts (`random_starts`).
        warm: a mixture with at most ``k`` components, whose split (`split_start`) is tried as well.
        tol: EM has converged when the mean log-likelihood changes by less.
        max_iter: most iterations, those of the short run included.
        reg_covar: added to every variance.
        seed: of the random starts.

    Raises:
        UserError: ``k`` exceeds the number of (different) points, there is no start, or every start degenerates.
    """
    if covariance not in SHAPES:
        raise unknown_name("covariance", covariance, SHAPES)
    if not 1 <= k <= points.n:
        raise UserError(f"the number of components must lie between 1 and the number of points {points.n}, got {k}")
    starts = [] if warm is None else [split_start(warm, k)]
    if k == 1:  # every start leads to the same maximum in one iteration
        n_init = min(n_init, 1)
    starts += random_starts(points, k, covariance, n_init, reg_covar, seed)
    if not starts:
        raise UserError(f"EM needs a start: n_init must be at least 1, got {n_init}")
    run = partial(em, points, tol=tol, reg_covar=reg_covar)
    if len(starts) == 1:
        return run(starts[0], max_iter=max_iter)
    scout = _best([partial(run, start, max_iter=min(SCOUT_ITERATIONS, max_iter)) for start in starts])
    left = max_iter - len(scout.log_likelihoods)
    if scout.converged or left <= 0:
        return scout
    rest = run(scout.mixture, max_iter=left)
    return Fit(rest.mixture, scout.log_likelihoods + rest.log_likelihoods, rest.converged)


def _best(runs: "list[partial[Fit]]") -> Fit:
    """Return the fit with the highest log-likelihood; a run that degenerates is passed over unless all do."""
    fits, failure = [], None
    for run in runs:
        try:
            fits.append(run())
        except DegenerateMixtureError as error:
            failure = error
    if failure is not None and not fits:
        raise failure
    return max(fits, key=lambda fit: fit.log_likelihoods[-1])


def em(
    points: Points,
    start: Mixture,
    *,
    tol: float = 1e-3,
    max_iter: int = 100,
    reg_covar: float = 1e-6,
) -> Fit:
    """Run expectation maximisation over all points from ``start``; one pass over the points per iteration.

    Iterations, tolerance and regularisation mean what they mean in `sklearn.mixture.GaussianMixture`: an iteration is an
    E-step and an M-step, and EM stops when the mean log-likelihood of two successive E-steps differs by less than ``tol``.

    Raises:
        UserError: fewer than one iteration, or another dimension than ``start``.
        DegenerateMixtureError: a component became empty or its covariance singular.
    """
    if max_iter < 1:
        raise UserError(f"max_iter must be at least 1, got {max_iter}")
    if points.d != start.means.shape[1]:
        raise UserError(f"points have {points.d} dimensions, the start has {start.means.shape[1]}")
    mixture, history, converged = start, [-math.inf], False
    while len(history) <= max_iter and not converged:
        mixture, total = _iterate(points, mixture, reg_covar)
        history.append(total / points.n)
        converged = abs(history[-1] - history[-2]) < tol
    return Fit(mixture, tuple(history[1:]), converged)


def score_samples(points: Points, mixture: Mixture) -> Tensor:
    """Return the log-likelihood (natural logarithm) of each point, float64 [n]."""
    return torch.cat([torch.logsumexp(joint, 0) for _, joint in _joint_densities(points, mixture)])


def _iterate(points: Points, mixture: Mixture, reg_covar: float) -> tuple[Mixture, float]:
    """Return the mixture after an E-step and an M-step, and the log-likelihood of all points before."""
    centre, shape = mixture.centre, mixture.shape
    counts, sums = torch.zeros_like(mixture.weights), torch.zeros_like(mixture.means)
    squares, total = torch.zeros_like(mixture.covariances), torch.zeros_like(centre[0])
    for rows, joint in _joint_densities(points, mixture):
        likelihood = torch.logsumexp(joint, 0)
        responsibilities = joint.sub_(likelihood).exp_()  # Bishop (2006), eq. 9.23
        torch.nn.functional.threshold(responsibilities, NEGLIGIBLE, 0.0, inplace=True)
        total += likelihood.sum()
        counts += responsibilities.sum(1)
        sums.addmm_(responsibilities, rows)
        shape.add_squares(squares, rows, responsibilities)
    _refuse_empty(counts)
    means = sums / counts[:, None]
    covariances = shape.covariances(squares, counts, means)
    variances = covariances if mixture.covariance == "diag" else covariances.diagonal(dim1=-2, dim2=-1)
    variances += reg_covar
    return Mixture(mixture.covariance, counts / counts.sum(), means + centre, covariances), float(total)


def _refuse_empty(counts: Tensor) -> None:
    empty = torch.nonzero(counts <= 10 * torch.finfo(counts.dtype).eps).flatten().tolist()
    if empty:
        raise DegenerateMixtureError(
            f"component {empty[0]} of {len(counts)} lost all its points: use fewer components or another seed"
        )


def _joint_densities(points: Points, mixture: Mixture) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield chunks of points [b,d] relative to the mixture's centre and ``log(w_k N_k(x))`` [k,b] of each."""
    centre, shape = mixture.centre, mixture.shape
    means, log_weights = mixture.means - centre, mixture.weights.log()[:, None]
    whiteners = shape.whiteners(mixture.covariances)
    width = max(64, CHUNK_BYTES // (8 * points.d))
    for chunk in points.chunks():
        for part in chunk.split(width):
            rows = part.double() - centre
            yield rows, shape.log_densities(rows, means, whiteners).add_(log_weights)


def random_starts(
    points: Points, k: int, covariance: Covariance, count: int, reg_covar: float = 1e-6, seed: int = 0
) -> list[Mixture]:
    """Return ``count`` starts: k-means clusters of a sample of the points, with the pooled within-cluster covariance.

    A covariance pooled over all clusters is well-conditioned where that of one small cluster would be singular.
    """
    if count < 1:
        return []
    rows = sample(points, max(START_ROWS, 20 * k), seed)
    generator = torch.Generator().manual_seed(seed)
    return [_cluster_start(rows, k, covariance, reg_covar, generator) for _ in range(count)]


def _cluster_start(
    rows: Tensor, k: int, covariance: Covariance, reg_covar: float, generator: torch.Generator
) -> Mixture:
    centres, nearest = kmeans(rows, k, generator)
    counts = torch.bincount(nearest, minlength=k).clamp_min(1).double()
    residuals = rows - centres[nearest]
    pooled = residuals.T @ residuals / len(rows)
    pooled.diagonal().add_(reg_covar)
    return Mixture(covariance, counts / counts.sum(), centres, SHAPES[covariance].from_pooled(pooled, k))


def split_start(mixture: Mixture, k: int) -> Mixture:
    """Return a start with ``k`` components: the widest of ``mixture`` split in two, again and again.

    Widest: largest weight times variance ``s^2`` along a principal axis ``v``. The halves lie at ``mean -+ s/2 v`` with
    ``s^2/4 v v^T`` less covariance, which leaves mean and covariance of the whole unchanged (a tied covariance stays as it
    is, and shrinks in the iterations).

    Raises:
        UserError: ``k`` is below the present number of components.
    """
    if k < len(mixture.weights):
        raise UserError(f"cannot split {len(mixture.weights)} components into {k}")
    weights, means = list(mixture.weights), list(mixture.means)
    variances, axes = map(list, mixture.shape.axes(mixture.covariances, len(weights)))
    covariances = list(mixture.covariances)
    while len(weights) < k:
        i = int((torch.stack(weights) * torch.stack([v.max() for v in variances])).argmax())
        first = int(variances[i].argmax())
        half = 0.5 * variances[i][first].sqrt() * axes[i][:, first]
        if mixture.covariance != "tied":
            covariances[i] = covariances[i] - (
                half.square() if mixture.covariance == "diag" else torch.outer(half, half)
            )
            covariances.append(covariances[i])
            variances[i] = variances[i].clone()
            variances[i][first] *= 0.75
        weights[i] = weights[i] / 2
        for column, twin in (
            (weights, weights[i]),
            (means, means[i] + half),
            (variances, variances[i]),
            (axes, axes[i]),
        ):
            column.append(twin)
        means[i] = means[i] - half
    return Mixture(mixture.covariance, *map(torch.stack, (weights, means, covariances)))
