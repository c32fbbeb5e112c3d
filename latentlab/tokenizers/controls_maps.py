"""Invertible affine maps of whole latents, whose effect on a latent space is known: the controls of a study.

Every map takes latents flattened channel first, x [n,d] with d = c*s, and is undone exactly, so that a tokenizer behind it
reconstructs as before. With m and s the channel means and standard deviations of a set of latents, z = (x - m)/s, and S the
covariance of z:

    orthogonal           y = Q z                  Q random orthogonal [d,d]: norms stay, spatial structure is gone
    whitening            y = S_a^-1/2 (z - mean)  S_a = (1-a) S + a tr(S)/d I with the shrinkage a: no direction grows by more
                                                  than 1/sqrt(a tr(S)/d), not even constant corners of padded images
    cell_permutation     cells of every channel in one random order
    checkerboard         y = m + sign (x - m)     the sign is -1 in every second cell
    power_law            y = k^-e z               channel k = 1, 2, ...: undone by whoever normalises per channel
    channel_permutation  channels in a random order: must change nothing
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from analyses.frechet import Moments, MomentSums
from latentlab.errors import UserError
from latentlab.latents import Latents
from latentlab.randomness import generator

SHRINKAGE = 0.01
"""a of ``whitening``: a direction with 0.3 of the mean variance comes out at 0.97, and gains are at most about 10."""

EXPONENT = 1.0
"""e of ``power_law``."""


class DenseMap(nn.Module):
    """y = A (x - centre).

    Attributes:
        matrix: A, [d,d].
        inverse_matrix: [d,d], computed in float64 and kept, since inverting the rounded A again would cost digits.
        centre: [d].
    """

    matrix: Tensor
    inverse_matrix: Tensor
    centre: Tensor

    def __init__(self, d: int) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.empty(d, d))
        self.register_buffer("inverse_matrix", torch.empty(d, d))
        self.register_buffer("centre", torch.empty(d))

    def forward(self, x: Tensor) -> Tensor:  # [n,d] => [n,d]
        """Return y of ``x``."""
        return (x - self.centre) @ self.matrix.T

    def inverse(self, y: Tensor) -> Tensor:  # [n,d] => [n,d]
        """Return x of ``y``."""
        return y @ self.inverse_matrix.T + self.centre


class ScaledPermutation(nn.Module):
    """y_i = factor_i (x - centre)_j + offset_i with j = order_i.

    Attributes:
        order: int64 [d], a permutation.
        factor: [d], none of them 0.
        centre: [d].
        offset: [d].
    """

    order: Tensor
    factor: Tensor
    centre: Tensor
    offset: Tensor

    def __init__(self, d: int) -> None:
        super().__init__()
        self.register_buffer("order", torch.arange(d))
        for name, value in (("factor", 1.0), ("centre", 0.0), ("offset", 0.0)):
            self.register_buffer(name, torch.full((d,), value))

    def forward(self, x: Tensor) -> Tensor:  # [n,d] => [n,d]
        """Return y of ``x``."""
        return (x - self.centre)[:, self.order] * self.factor + self.offset

    def inverse(self, y: Tensor) -> Tensor:  # [n,d] => [n,d]
        """Return x of ``y``."""
        return ((y - self.offset) / self.factor)[:, self.order.argsort()] + self.centre


Map = DenseMap | ScaledPermutation


def orthogonal(latents: Latents, seed: int) -> DenseMap:
    """Mix all coordinates by a random rotation (with reflections), uniform over the orthogonal group.

    QR of a Gaussian matrix, with the signs that make R's diagonal positive (Mezzadri 2007, arXiv math-ph/0609050).
    """
    d = latents.channels * latents.cells
    gaussian = torch.randn(d, d, generator=generator(seed, "controls/orthogonal"), dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    q = q * r.diagonal().sign()
    mean, std = _channel_moments(latents)
    return _dense(q / std, std[:, None] * q.T, mean)


def whitening(latents: Latents, seed: int) -> DenseMap:
    """Give all coordinates about unit covariance, by the symmetric root that moves them least; the seed does not matter."""
    covariance = torch.from_numpy(_moments(latents).covariance)
    _, std = _channel_moments(latents)
    standardised = covariance / std / std[:, None]
    noise = SHRINKAGE * standardised.diagonal().mean() * torch.eye(len(std), dtype=torch.float64)
    values, vectors = torch.linalg.eigh((1 - SHRINKAGE) * standardised + noise)
    roots = values.sqrt()
    whiten, colour = ((vectors * v) @ vectors.T for v in (1 / roots, roots))
    return _dense(whiten / std, std[:, None] * colour, torch.from_numpy(_moments(latents).mean))


def cell_permutation(latents: Latents, seed: int) -> ScaledPermutation:
    """Put cells in another order, the same in every channel."""
    cells = _shuffled(latents.cells, seed, "cells")
    return _permutation(torch.arange(latents.channels)[:, None] * latents.cells + cells)


def channel_permutation(latents: Latents, seed: int) -> ScaledPermutation:
    """Put channels in another order."""
    channels = _shuffled(latents.channels, seed, "channels")
    return _permutation(channels[:, None] * latents.cells + torch.arange(latents.cells))


def checkerboard(latents: Latents, seed: int) -> ScaledPermutation:
    """Flip the sign about the channel mean in every second cell (token, of a sequence); the seed does not matter."""
    place = torch.stack(torch.meshgrid(*map(torch.arange, latents.shape[1:]), indexing="ij")).sum(0).flatten()
    mean, _ = _channel_moments(latents)
    found = ScaledPermutation(len(mean))
    found.factor.copy_((1.0 - 2.0 * (place % 2)).repeat(latents.channels))
    found.centre.copy_(mean)
    found.offset.copy_(mean)
    return found


def power_law(latents: Latents, seed: int) -> ScaledPermutation:
    """Give channel k = 1, 2, ... the standard deviation k^-e; the seed does not matter."""
    mean, std = _channel_moments(latents)
    rank = torch.arange(1, latents.channels + 1, dtype=torch.float64).repeat_interleave(latents.cells)
    found = ScaledPermutation(len(mean))
    found.factor.copy_(rank**-EXPONENT / std)
    found.centre.copy_(mean)
    return found


MAPS: dict[str, Callable[[Latents, int], Map]] = {
    "orthogonal": orthogonal,
    "cell_permutation": cell_permutation,
    "checkerboard": checkerboard,
    "whitening": whitening,
    "power_law": power_law,
    "channel_permutation": channel_permutation,
}
"""By the name of the control."""

STANDARDISING = ("orthogonal", "whitening", "power_law")
"""Controls that take latents in units of the channels' standard deviations; the others leave units as they are."""

_DENSE = ("orthogonal", "whitening")


def empty_map(control: str, d: int) -> Map:
    """Return the map of a control for d coordinates, its numbers to be filled in."""
    return DenseMap(d) if control in _DENSE else ScaledPermutation(d)


def _dense(matrix: Tensor, inverse: Tensor, centre: Tensor) -> DenseMap:
    found = DenseMap(len(centre))
    for buffer, value in ((found.matrix, matrix), (found.inverse_matrix, inverse), (found.centre, centre)):
        buffer.copy_(value)
    return found


def _permutation(order: Tensor) -> ScaledPermutation:
    found = ScaledPermutation(order.numel())
    found.order.copy_(order.flatten())
    return found


def _shuffled(n: int, seed: int, what: str) -> Tensor:
    """Return a random order of n things that is not the one they have."""
    if n < 2:
        raise UserError(f"latents have {n} {what}: there is nothing to permute, choose another control")
    random, unchanged = generator(seed, f"controls/{what}"), torch.arange(n)
    order = unchanged
    while torch.equal(order, unchanged):
        order = torch.randperm(n, generator=random)
    return order


def _channel_moments(latents: Latents) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (1 where that is 0) of the channel of every coordinate, float64 [d] each."""
    mean, std = (v.repeat_interleave(latents.cells) for v in (latents.moments.mean, latents.moments.std))
    return mean, torch.where(std > 0, std, 1.0)


def _moments(latents: Latents) -> Moments:
    """Return mean and covariance of all coordinates."""
    sums = MomentSums()
    for batch in latents.batches():
        sums.add(batch.flatten(1))
    return sums.moments()
