"""Gaussian mixtures by expectation maximisation, exact, streaming, on CPU or GPU.

A Gaussian is an exponential family: ``log(w_k N(x; mu_k, Sigma_k)) = eta_k . phi(x)`` with the features
``phi(x) = (x_i x_j for i <= j, x, 1)``. So the E-step of a chunk is one matrix product of all ``eta`` with all ``phi``, and
the M-step needs only ``responsibilities . phi^T``, a second one. Using the symmetry of ``x x^T`` this is half the
arithmetic of handling one component after the other, in two large products instead of 2k small ones. Only these sums are kept between
chunks: memory does not grow with the number of points.

All arithmetic is float64, on points shifted to the mean of the mixture, so that ``E[x x^T] - mu mu^T`` does not cancel.

Letters: n points, b points of a chunk, d dimensions, k components, p features.
Source: Dempster, Laird & Rubin, JRSS B 39 (1977); Bishop, "Pattern Recognition and Machine Learning" (2006), 9.2.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from analyses.kmeans import kmeans
from analyses.points import ArrayPoints, Points, sample
from latentlab.errors import UserError

Covariance = Literal["full", "diag", "tied"]
COVARIANCES: tuple[Covariance, ...] = ("full", "diag", "tied")

FEATURE_BYTES = {"cpu": 16 << 20, "cuda": 256 << 20}
"""Size of the feature matrix of one chunk: about the last-level cache on a CPU, enough to fill a GPU."""

LEAST_WIDTH = 512
"""Chunks have at least this many points, below which the calls cost more than the arithmetic."""

START_ROWS = 20_000
"""Random starts are looked for on at most this many points (or 20 per component)."""

SCOUT_ITERATIONS = 10
"""Length of the short runs that choose among several starts."""


class DegenerateMixtureError(UserError):
    """A component lost all its points or collapsed onto too few of them."""


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
    def n_parameters(self) -> int:
        """Number of free parameters: weights, means and covariances."""
        k, d = self.means.shape
        shapes = {"full": k * d * (d + 1) // 2, "diag": k * d, "tied": d * (d + 1) // 2}
        return k - 1 + k * d + shapes[self.covariance]

    def to(self, device: torch.device | str) -> "Mixture":
        """Return the mixture on ``device``."""
        return Mixture(self.covariance, *(v.to(device) for v in (self.weights, self.means, self.covariances)))


@dataclass(frozen=True)
class Fit:
    """What `em` found.

    Attributes:
        mixture: the parameters after the last M-step.
        log_likelihoods: mean log-likelihood per point (the lower bound of scikit-learn) before each M-step.
        converged: whether the last change of it was below the tolerance.
    """

    mixture: Mixture
    log_likelihoods: tuple[float, ...]
    converged: bool


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
    device: torch.device | str = "cpu",
) -> Fit:
    """Fit ``k`` components: short runs from several starts, then EM from the best of them to convergence.

    Short runs find as good a maximum as full runs from every start, in a fraction of the time (Biernacki, Celeux & Govaert,
    "Choosing starting values for the EM algorithm", CSDA 41, 2003).

    Args:
        points: [n,d].
        k: number of components.
        covariance: shape of the covariances.
        n_init: number of random starts (k-means++ and a few Lloyd steps, pooled within-cluster covariance).
        warm: a mixture with fewer components, whose split (`split_start`) is tried as well.
        tol: EM has converged when the mean log-likelihood changes by less.
        max_iter: most iterations, those of the short run included.
        reg_covar: added to every variance.
        seed: of the random starts.
        device: where to compute.

    Raises:
        UserError: ``k`` exceeds the number of (different) points, or `DegenerateMixtureError` from every start.
    """
    if k > points.n:
        raise UserError(f"{k} components need at least {k} points, got {points.n}: ask for fewer")
    starts = [split_start(warm, k)] if warm is not None else []
    starts += random_starts(points, k, covariance, n_init, reg_covar, seed)
    settings = {"tol": tol, "reg_covar": reg_covar, "device": device}
    if len(starts) == 1:
        return em(points, starts[0], max_iter=max_iter, **settings)
    scout = _best_scout(points, starts, max_iter=min(SCOUT_ITERATIONS, max_iter), **settings)
    left = max_iter - len(scout.log_likelihoods)
    if scout.converged or left <= 0:
        return scout
    rest = em(points, scout.mixture, max_iter=left, **settings)
    return Fit(rest.mixture, scout.log_likelihoods + rest.log_likelihoods, rest.converged)


def _best_scout(points: Points, starts: Sequence[Mixture], **settings: object) -> Fit:
    """Return the short run with the highest log-likelihood; a start that degenerates is passed over."""
    scouts, failure = [], None
    for start in starts:
        try:
            scouts.append(em(points, start, **settings))  # type: ignore[arg-type]
        except DegenerateMixtureError as error:
            failure = error
    if not scouts and failure is not None:
        raise failure
    return max(scouts, key=lambda scout: scout.log_likelihoods[-1])


def em(
    points: Points,
    start: Mixture,
    *,
    tol: float = 1e-3,
    max_iter: int = 100,
    reg_covar: float = 1e-6,
    device: torch.device | str = "cpu",
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
    mixture, history, converged = start.to(device), [-math.inf], False
    while len(history) <= max_iter and not converged:
        statistics, total = _expect(points, mixture)
        mixture = _maximise(statistics, mixture, reg_covar)
        history.append(total / points.n)
        converged = abs(history[-1] - history[-2]) < tol
    return Fit(mixture.to("cpu"), tuple(history[1:]), converged)


def score_samples(points: Points, mixture: Mixture, device: torch.device | str = "cpu") -> Tensor:
    """Return the log-likelihood (natural logarithm) of each point, float64 [n] on the CPU."""
    mixture = mixture.to(device)
    eta = _natural_parameters(mixture)
    return torch.cat([torch.logsumexp(eta @ phi, 0).cpu() for phi in _feature_chunks(points, mixture)])


def _expect(points: Points, mixture: Mixture) -> tuple[Tensor, float]:
    """E-step: return ``sum_n responsibility_nk phi(x_n)`` [k,p] and the log-likelihood of all points."""
    eta = _natural_parameters(mixture)
    statistics = torch.zeros_like(eta)
    total = torch.zeros((), dtype=torch.float64, device=eta.device)
    for phi in _feature_chunks(points, mixture):
        joint = eta @ phi  # log(w_k N_k(x)), [k,b]
        likelihood = torch.logsumexp(joint, 0)
        responsibilities = joint.sub_(likelihood).exp_()
        statistics.addmm_(responsibilities, phi.T)
        total += likelihood.sum()
    return statistics, float(total)


def _maximise(statistics: Tensor, previous: Mixture, reg_covar: float) -> Mixture:
    """M-step: return the mixture with the moments in ``statistics`` [k,p] (Bishop 2006, eq. 9.24-9.26)."""
    d, shift = previous.means.shape[1], _centre(previous)
    counts = statistics[:, -1]
    empty = torch.nonzero(counts <= 10 * torch.finfo(torch.float64).eps).flatten().tolist()
    if empty:
        raise DegenerateMixtureError(
            f"component {empty[0]} of {len(counts)} lost all its points: use fewer components or another seed"
        )
    moments = statistics / counts[:, None]
    second, means = moments[:, : -d - 1], moments[:, -d - 1 : -1]
    weights = counts / counts.sum()
    if previous.covariance == "diag":
        covariances = second - means.square() + reg_covar
    else:
        covariances = _symmetric(second, d) - means[:, :, None] * means[:, None, :]
        if previous.covariance == "tied":
            covariances = torch.einsum("k,kij->ij", weights, covariances)
        covariances.diagonal(dim1=-2, dim2=-1).add_(reg_covar)
    return Mixture(previous.covariance, weights, means + shift, covariances)


def _centre(mixture: Mixture) -> Tensor:
    """Return the mean of the mixture [d], which after an M-step is the mean of the points."""
    return mixture.weights @ mixture.means


def _natural_parameters(mixture: Mixture) -> Tensor:
    """Return ``eta`` [k,p] with ``log(w_k N(x; mu_k, Sigma_k)) = eta_k . phi(x - centre)``.

    ``-1/2 (x-mu)^T P (x-mu) = -sum_i P_ii x_i^2 / 2 - sum_{i<j} P_ij x_i x_j + (P mu) . x - mu^T P mu / 2`` with ``P = Sigma^-1``.
    """
    means = mixture.means - _centre(mixture)
    k, d = means.shape
    if mixture.covariance == "diag":
        if not (mixture.covariances > 0).all():
            raise _singular()
        quadratic = -0.5 / mixture.covariances
        linear = means / mixture.covariances
        log_determinants = mixture.covariances.log().sum(1)
    else:
        factors, failed = torch.linalg.cholesky_ex(mixture.covariances)
        if failed.any():
            raise _singular()
        precisions = torch.cholesky_inverse(factors).expand(k, d, d)
        rows, columns = torch.triu_indices(d, d, device=means.device)
        quadratic = torch.where(rows == columns, -0.5, -1.0) * precisions[:, rows, columns]
        linear = torch.einsum("kij,kj->ki", precisions, means)
        log_determinants = 2 * factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    constant = mixture.weights.log() - 0.5 * (d * math.log(2 * math.pi) + log_determinants + (linear * means).sum(1))
    return torch.cat([quadratic, linear, constant[:, None]], dim=1)


def _singular() -> DegenerateMixtureError:
    return DegenerateMixtureError(
        "a component has a singular covariance (it collapsed onto too few points): use fewer components, a larger "
        "reg_covar, covariance='diag', or fewer dims"
    )


def _feature_chunks(points: Points, mixture: Mixture) -> Iterator[Tensor]:
    """Yield ``phi(x - centre)`` [p,b], chunk by chunk; each overwrites the one before."""
    shift = _centre(mixture)
    device, d, diagonal = shift.device, points.d, mixture.covariance == "diag"
    p = 1 + d + (d if diagonal else d * (d + 1) // 2)
    width = max(LEAST_WIDTH, FEATURE_BYTES["cpu" if device.type == "cpu" else "cuda"] // (8 * p))
    buffer = torch.empty(p, min(width, points.n), dtype=torch.float64, device=device)
    for chunk in points.chunks():
        for part in chunk.split(width):
            phi = buffer[:, : len(part)]
            x = phi[-d - 1 : -1].copy_(part.T).sub_(shift[:, None])
            phi[-1] = 1
            if diagonal:
                torch.square(x, out=phi[:d])
            else:
                _upper_products(x, out=phi)
            yield phi


def _upper_products(x: Tensor, out: Tensor) -> None:
    """Write ``x_i x_j`` for i <= j, row by row, into the first d(d+1)/2 rows of ``out``; x is [d,b]."""
    d, start = len(x), 0
    for i in range(d):
        torch.mul(x[i], x[i:], out=out[start : start + d - i])
        start += d - i


def _symmetric(upper: Tensor, d: int) -> Tensor:
    """Return the symmetric matrices [k,d,d] whose upper triangles, row by row, are ``upper`` [k,d(d+1)/2]."""
    rows, columns = torch.triu_indices(d, d, device=upper.device)
    full = upper.new_empty(len(upper), d, d)
    full[:, rows, columns] = upper
    full[:, columns, rows] = upper
    return full


def random_starts(
    points: Points, k: int, covariance: Covariance, count: int, reg_covar: float = 1e-6, seed: int = 0
) -> list[Mixture]:
    """Return ``count`` starts: k-means clusters of a sample, each with the pooled within-cluster covariance.

    A covariance pooled over the clusters is never singular where one of a small cluster would be.
    """
    if count < 1:
        return []
    rows = sample(points, max(START_ROWS, 20 * k), seed)
    generator = torch.Generator().manual_seed(seed)
    return [_cluster_start(rows, k, covariance, reg_covar, generator) for _ in range(count)]


def _cluster_start(rows: Tensor, k: int, covariance: Covariance, reg_covar: float, generator: torch.Generator) -> Mixture:
    centres, nearest = kmeans(rows, k, generator)
    residuals = rows - centres[nearest]
    counts = torch.bincount(nearest, minlength=k).clamp_min(1).double()
    if covariance == "diag":
        pooled = (residuals.square().mean(0) + reg_covar).repeat(k, 1)
    else:
        pooled = residuals.T @ residuals / len(rows) + reg_covar * torch.eye(rows.shape[1], dtype=torch.float64)
        pooled = pooled if covariance == "tied" else pooled.repeat(k, 1, 1)
    return Mixture(covariance, counts / counts.sum(), centres, pooled)


def split_start(mixture: Mixture, k: int) -> Mixture:
    """Return a start with ``k`` components: the widest ones split in two, again and again.

    Widest: largest weight times variance ``s^2`` along its first principal axis ``v``. The halves lie at ``mean -+ s/2 v``
    with ``s^2/4 v v^T`` less covariance, which leaves the mean and covariance of the whole unchanged (a tied covariance
    stays as it is).

    Raises:
        UserError: ``k`` is below the present number of components.
    """
    if k < len(mixture.weights):
        raise UserError(f"cannot split {len(mixture.weights)} components into {k}")
    weights, means = list(mixture.weights), list(mixture.means)
    variances, axes = _principal_axes(mixture)
    while len(weights) < k:
        widest = int((torch.stack(weights) * torch.stack([v.max() for v in variances])).argmax())
        first = int(variances[widest].argmax())
        half = 0.5 * variances[widest][first].sqrt() * axes[widest][:, first]
        if mixture.covariance != "tied":
            variances[widest] = variances[widest].clone()
            variances[widest][first] *= 0.75
        weights[widest] = weights[widest] / 2
        weights.append(weights[widest])
        means.append(means[widest] + half)
        means[widest] = means[widest] - half
        variances.append(variances[widest])
        axes.append(axes[widest])
    return Mixture(mixture.covariance, torch.stack(weights), torch.stack(means), _covariances(mixture, variances, axes))


def _principal_axes(mixture: Mixture) -> tuple[list[Tensor], list[Tensor]]:
    """Return the variances [d] of each component along its principal axes, and these axes as columns [d,d]."""
    k, d = mixture.means.shape
    if mixture.covariance == "diag":
        return list(mixture.covariances), [torch.eye(d, dtype=torch.float64)] * k
    values, vectors = torch.linalg.eigh(mixture.covariances)
    return list(values.expand(k, d)), list(vectors.expand(k, d, d))


def _covariances(mixture: Mixture, variances: list[Tensor], axes: list[Tensor]) -> Tensor:
    """Return the covariances with these principal axes, in the layout of ``mixture``."""
    if mixture.covariance == "tied":
        return mixture.covariances
    if mixture.covariance == "diag":
        return torch.stack(variances)
    return torch.stack([axis * variance @ axis.T for variance, axis in zip(variances, axes, strict=True)])
