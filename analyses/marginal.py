"""Irreducible variance of the flow-matching velocity of a mixture of Gaussians, by Monte Carlo (DRS, arXiv 2606.03578).

The class is not given, so x_t also leaves open which class it comes from. With pi_k the weights, Sigma_k = U diag(l) U^T,
S_k(t) = (1-t)^2 I + t^2 Sigma_k and r_k(x) the posterior probability of class k given x_t = x ~ N(t mu_k, S_k | k):

    m_k(x) = E[v | x, k] = mu_k + (t Sigma_k - (1-t) I) S_k^-1 (x - t mu_k),    v*(x) = E[v | x] = sum_k r_k m_k
    I(t)   = E[ sum_k r_k (tr(Sigma_k S_k^-1) + |m_k - v*|^2) ]
           = sum_k pi_k I_k(t) + E[ sum_k r_k |m_k - v*|^2 ]                     (law of total variance, E r_k = pi_k)

The paper says only "estimated via Monte Carlo". The last line is that expectation with its first term in closed form: only
what not knowing the class adds has to be sampled, and the result is never below the class-conditional variance.
Kronecker factors are used as such: x is rotated by the two small eigenbases, no d x d matrix appears.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from analyses.irreducible import velocity_variance
from analyses.kronecker import KroneckerCovariance, variances
from latentlab.randomness import generator

_NEGLIGIBLE = 1e-12
"""Posterior probabilities below this contribute nothing that float64 would keep."""

_BLOCK_BYTES = 64 << 20
"""Expected velocities of a block of samples at all times."""


@dataclass(frozen=True)
class Component:
    """One Gaussian of the mixture in its eigenbasis.

    Attributes:
        weight: its share pi_k of the images.
        mean: [c,s].
        channels: eigenvectors of Sigma_c in columns, [c,c].
        cells: eigenvectors of Sigma_s in columns, [s,s].
        eigenvalues: of the covariance, [c,s] float64, in the order of the two bases.
    """

    weight: float
    mean: Tensor
    channels: Tensor
    cells: Tensor
    eigenvalues: Tensor

    @classmethod
    def of(cls, covariance: KroneckerCovariance, weight: float, dtype: torch.dtype) -> "Component":
        """Diagonalise; ``dtype`` is what the mean and the bases are kept in (they are many)."""
        channel_values, channels = torch.linalg.eigh(covariance.channels)
        cell_values, cells = torch.linalg.eigh(covariance.cells)
        eigenvalues = torch.outer(variances(channel_values), variances(cell_values))
        return cls(weight, covariance.mean.to(dtype), channels.to(dtype), cells.to(dtype), eigenvalues)

    def double(self) -> "Component":
        """Return the same in float64, to compute with."""
        return replace(self, mean=self.mean.double(), channels=self.channels.double(), cells=self.cells.double())

    def into(self, x: Tensor) -> Tensor:
        """Return ``x`` [m,c,s] in the eigenbasis, [m,d]."""
        return (self.channels.T @ x @ self.cells).flatten(1)

    def out_of(self, y: Tensor) -> Tensor:
        """Return the inverse of `into`, [m,c,s]."""
        return self.channels @ y.unflatten(1, self.eigenvalues.shape) @ self.cells.T

    def noisy_variance(self, times: Tensor) -> Tensor:
        """Return the eigenvalues of S(t), [T,d] for times [T]."""
        t = times[:, None]
        return (1 - t) ** 2 + t**2 * self.eigenvalues.flatten()


def sampled_variance(
    mixture: Sequence[Component], times: np.ndarray, samples: int, seed: int, *, direct: bool = False
) -> np.ndarray:  # -> [samples,T]
    """Return estimates of I(t), summed over dimensions: the mean over samples is the curve.

    Args:
        mixture: the Gaussians; their weights sum to 1.
        times: flow times in (0,1), [T].
        samples: pairs (x0, x1); the same ones serve all times.
        seed: decides the pairs.
        direct: estimate E |v - v*(x_t)|^2 from the sampled velocities themselves; for comparison, it varies much more.
    """
    t = torch.from_numpy(times)
    noise, data = _draw(mixture, samples, seed)
    size = max(1, _BLOCK_BYTES // (8 * len(times) * noise[0].numel()))
    blocks = zip(noise.split(size), data.split(size), strict=True)
    varying = torch.cat([_block_variance(mixture, t, x0, x1, direct) for x0, x1 in blocks]).numpy()
    if direct:
        return varying
    given_class = [k.weight * velocity_variance(k.eigenvalues.flatten(), times) for k in mixture]
    return varying + np.sum(given_class, axis=0)


def _draw(mixture: Sequence[Component], samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return x0 and x1, [samples,c,s] float64; classes are drawn systematically, each as often as its weight says +-1."""
    random = generator(seed, "marginal velocity variance")
    shape = (samples, *mixture[0].mean.shape)
    noise, data = (torch.randn(shape, generator=random, dtype=torch.float64) for _ in range(2))
    edges = torch.tensor([k.weight for k in mixture], dtype=torch.float64).cumsum(0)
    offset = torch.rand((), generator=random, dtype=torch.float64)
    chosen = torch.searchsorted(edges, (torch.arange(samples) + offset) / samples).clamp_max(len(mixture) - 1)
    for i in chosen.unique().tolist():
        k, rows = mixture[i].double(), chosen == i
        data[rows] = k.mean + k.out_of(data[rows].flatten(1) * k.eigenvalues.flatten().sqrt())
    return noise, data


def _block_variance(mixture: Sequence[Component], times: Tensor, noise: Tensor, data: Tensor, direct: bool) -> Tensor:
    """Return what must be sampled of I(t), [m,T]: |v - v*|^2, or what not knowing the class adds."""
    posterior = torch.stack([_log_joint(k.double(), times, noise, data) for k in mixture]).softmax(0)  # [K,T,m]
    expected = torch.zeros(*posterior.shape[1:], noise[0].numel(), dtype=torch.float64)  # v*, [T,m,d]
    squares = torch.zeros(posterior.shape[1:], dtype=torch.float64)  # sum_k r_k |m_k|^2
    for k, r in zip(mixture, posterior, strict=True):
        # Where the class is certain, nothing is added: v* is needed there by the direct estimator only.
        needed = (r > _NEGLIGIBLE) & (direct | (r < 1 - _NEGLIGIBLE))
        if needed.any():
            _add_velocities(k.double(), times, noise, data, torch.where(needed, r, 0), expected, squares)
    if direct:
        return ((data - noise).flatten(1) - expected).square_().sum(2).T
    return (squares - expected.square_().sum(2)).clamp_min(0).T


def _log_joint(k: Component, times: Tensor, noise: Tensor, data: Tensor) -> Tensor:
    """Return log pi_k N(x_t; t mu_k, S_k) up to a constant, [T,m]."""
    a, b = k.into(noise), k.into(data - k.mean)  # x_t - t mu_k = (1-t) a + t b
    variance, t = k.noisy_variance(times), times[:, None]
    precision = 1 / variance
    squared = (1 - t) ** 2 * (precision @ (a * a).T) + t**2 * (precision @ (b * b).T)
    squared += 2 * t * (1 - t) * (precision @ (a * b).T)
    return np.log(k.weight) - (squared + variance.log().sum(1, keepdim=True)) / 2


def _add_velocities(
    k: Component, times: Tensor, noise: Tensor, data: Tensor, r: Tensor, expected: Tensor, squares: Tensor
) -> None:
    """Add ``r m_k`` to ``expected`` [T,m,d] and ``r |m_k|^2`` to ``squares`` [T,m], at the times where ``r`` [T,m] is not 0."""
    a, b = k.into(noise), k.into(data - k.mean)
    for i in torch.nonzero(r.any(1)).flatten().tolist():
        t = times[i]
        gain = (t * k.eigenvalues.flatten() - (1 - t)) / k.noisy_variance(times[i : i + 1])[0]
        velocity = k.out_of(torch.lerp(a, b, t).mul_(gain)).add_(k.mean).flatten(1)
        expected[i].addcmul_(velocity, r[i, :, None])
        squares[i] += r[i] * torch.linalg.vecdot(velocity, velocity)
