"""Energy of latents per spatial frequency (orthonormal DCT-II of every channel), in one pass and constant memory.

Per-channel standardisation is not applied to the latents but to the energies: a shift moves the DC coefficient only, a scale
divides all energies, and by Parseval the energies give the variance that it needs.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latentlab.errors import UserError
from latentlab.latents import Latents

GROUPS = 512
"""Energies are kept for at most this many random groups of images, the units of a bootstrap."""

_PIECE_BYTES = 2 << 20
"""A piece and its transform fit into the caches of two cores."""


@dataclass(frozen=True)
class Spectrum:
    """Energies of a set of latents, float64.

    Attributes:
        energy: summed over images and channels, [h,w], DC first.
        bands: energy in every band asked for, of every group of images, [bands,g].
        totals: energy of every group, DC included, [g].
    """

    energy: np.ndarray
    bands: np.ndarray
    totals: np.ndarray


def dct_matrix(side: int) -> Tensor:
    """Return the orthonormal DCT-II as a matrix, float64 [side,side]: row u is the basis function of frequency u."""
    u, x = torch.arange(side, dtype=torch.float64)[:, None], torch.arange(side, dtype=torch.float64)
    matrix = torch.cos(torch.pi * u * (2 * x + 1) / (2 * side)) * (2 / side) ** 0.5
    matrix[0] /= 2**0.5
    return matrix


def measure_spectrum(latents: Latents, bands: np.ndarray, *, normalize: bool, seed: int) -> Spectrum:
    """Measure the energies of all latents.

    Args:
        latents: with a grid.
        bands: which frequencies make up each band, bool [bands,h,w]; none may contain DC.
        normalize: standardise each channel over the whole set (ddof=1); constant channels become 0.
        seed: decides the groups of images.

    Raises:
        UserError: latents contain NaN or infinity.
    """
    sums = _Sums(latents, bands)
    group_of = _random_groups(latents.n, seed)
    start = 0
    for batch in latents.batches():
        for piece in batch.split(max(1, _PIECE_BYTES // batch[0].nbytes)):
            sums.add(piece, group_of[start : start + len(piece)])
            start += len(piece)
    if not torch.isfinite(sums.ac).all():
        _ = latents.moments  # says which images, if that is the reason
        raise UserError("latents are not finite, or too large for float32 squares (above 1e18): rescale them")
    return sums.spectrum(normalize)


def _random_groups(n: int, seed: int) -> Tensor:
    """Return the group of every image, [n]; groups differ by at most one image in size."""
    order = np.random.default_rng(seed).permutation(n)
    return torch.from_numpy(order % min(n, GROUPS))


class _Sums:
    """Sums over images from which the energies after any shift and scale of the channels follow."""

    def __init__(self, latents: Latents, bands: np.ndarray) -> None:
        c, groups, (h, w) = latents.channels, min(latents.n, GROUPS), bands.shape[1:]
        self._rows, self._columns = dct_matrix(h), dct_matrix(w)
        masks = np.concatenate([np.ones((1, h, w)), bands])  # the first band is all of AC
        self._masks = torch.from_numpy(masks).flatten(1).T
        self._origin: Tensor | None = None  # close to the mean: a large common offset would cost digits
        self._epsilon = 0.0
        self.ac = torch.zeros(c, h * w, dtype=torch.float64)  # per channel and frequency, 0 at DC
        self.bands = torch.zeros(groups, c, len(masks), dtype=torch.float64)
        self.dc = torch.zeros(groups, c, 2, dtype=torch.float64)  # DC coefficient from the origin, and its square
        self.counts = torch.zeros(groups, dtype=torch.float64)

    def add(self, latents: Tensor, groups: Tensor) -> None:
        """Add images [b,c,h,w], which belong to the ``groups`` [b]."""
        b, c, h, w = latents.shape
        if self._origin is None:
            self._origin, self._epsilon = latents.mean((0, 2, 3)), torch.finfo(latents.dtype).eps
        along_rows = (latents - self._origin[:, None, None]).view(-1, w) @ self._columns.to(latents).T
        coefficients = (self._rows.to(latents) @ along_rows.view(b * c, h, w)).view(b, c, h * w)
        dc = coefficients[:, :, 0].to(torch.float64, copy=True)
        coefficients[:, :, 0] = 0
        energies = coefficients.square_()
        self.ac += energies.sum(0)
        self.bands.index_add_(0, groups, (energies @ self._masks.to(latents)).double())
        self.dc.index_add_(0, groups, torch.stack([dc, dc**2], dim=2))
        self.counts += torch.bincount(groups, minlength=len(self.counts))

    def spectrum(self, normalize: bool) -> Spectrum:
        """Return the energies, of standardised channels or of the latents as they are."""
        assert self._origin is not None
        c, s = self.ac.shape
        n = self.counts.sum()
        origin = self._origin.double() * s**0.5  # as a DC coefficient
        centre, scale = -origin, torch.ones(c, dtype=torch.float64)
        if normalize:
            centre = self.dc[:, :, 0].sum(0) / n
            variance = (self.ac.sum(1) + self.dc[:, :, 1].sum(0) - n * centre**2) / (n * s - 1).clamp_min(1)
            mean = (centre + origin) / s**0.5
            scale = torch.where(variance > (8 * self._epsilon * mean) ** 2, 1 / variance, 0)  # constant up to rounding
        dc = self.dc[:, :, 1] - 2 * centre * self.dc[:, :, 0] + self.counts[:, None] * centre**2
        energy = scale @ self.ac
        energy[0] = dc.clamp_min(0).sum(0) @ scale
        bands = torch.einsum("gcb,c->bg", self.bands, scale)
        totals = bands[0] + dc.clamp_min(0) @ scale
        h, w = len(self._rows), len(self._columns)
        return Spectrum(energy.view(h, w).numpy(), bands[1:].numpy(), totals.numpy())
