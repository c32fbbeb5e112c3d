"""Energy of latents per spatial frequency (orthonormal DCT-II of every channel), in one pass and constant memory.

Per-channel standardisation is not applied to the latents but to the energies: a shift moves the DC coefficient only, a scale
divides all energies, and by Parseval the energies give the variance that it needs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from analyses.intervals import random_groups
from analyses.threads import map_in_threads
from latentlab.errors import UserError
from latentlab.latents import Latents

_PIECE_BYTES = 2 << 20
"""Large enough that starting the operations on a piece costs nothing, small enough for the cache."""


@dataclass(frozen=True)
class Spectrum:
    """Energies of a set of latents, float64.

    Attributes:
        energy: summed over images and channels, [h,w], DC first.
        bands: energy in every band asked for, of every group of images that a bootstrap resamples, [bands,g].
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
    group_of = torch.from_numpy(random_groups(latents.n, seed))
    counts = torch.bincount(group_of)
    start = latents.take(slice(0, 32))

    def add_up(parts: Sequence[slice]) -> _Sums:
        sums = _Sums(start, bands, groups=len(counts))
        for part in parts:
            batch = latents.take(part)
            step = max(1, _PIECE_BYTES // batch[0].nbytes)
            for piece, groups in zip(batch.split(step), group_of[part].split(step), strict=True):
                sums.add(piece, groups)
        return sums

    slices, threads = list(latents.slices()), torch.get_num_threads()
    total, *others = map_in_threads(
        add_up, [slices[i::threads] for i in range(min(threads, len(slices)))], most=threads
    )
    for sums in others:
        total.merge(sums)
    if not torch.isfinite(total.energy).all():
        _ = latents.moments  # says which images, if that is the reason
        raise UserError("latents are not finite, or too large for float32 squares (above 1e18): rescale them")
    return total.spectrum(counts.double(), normalize)


class _Sums:
    """Sums over images from which the energies after any shift and scale of the channels follow."""

    def __init__(self, sample: Tensor, bands: np.ndarray, groups: int) -> None:
        """Start at zero; ``sample`` [b,c,h,w] shows what the latents are like."""
        _, c, h, w = sample.shape
        self._offset, self._epsilon = _large_offset(sample), torch.finfo(sample.dtype).eps
        self._rows, self._columns = (dct_matrix(side).to(sample.dtype) for side in (h, w))
        all_ac = np.arange(h * w) > 0
        self._masks = torch.from_numpy(np.stack([all_ac, *bands.reshape(-1, h * w)])).to(sample.dtype)
        self.energy = torch.zeros(c, h * w, dtype=torch.float64)  # per channel and frequency; DC as it came
        self.bands = torch.zeros(len(self._masks), groups, c, dtype=torch.float64)
        self.dc = torch.zeros(2, groups, c, dtype=torch.float64)  # sums of the DC coefficients and of their squares

    def add(self, latents: Tensor, groups: Tensor) -> None:
        """Add images [b,c,h,w], which belong to the ``groups`` [b]."""
        b, c, h, w = latents.shape
        if self._offset is not None:
            latents = latents - self._offset[:, None, None]
        coefficients = self._rows @ (latents.reshape(-1, w) @ self._columns.T).view(b * c, h, w)
        dc = coefficients[:, 0, 0].view(b, c).to(torch.float64, copy=True)
        energies = coefficients.square_().view(b * c, h * w)
        self.energy += energies.view(b, c, h * w).sum(0)
        self.bands.index_add_(1, groups, (self._masks @ energies.T).view(-1, b, c).double())
        self.dc.index_add_(1, groups, torch.stack([dc, dc**2]))

    def merge(self, other: "_Sums") -> None:
        """Add what ``other`` has added up, with the same groups and bands and from the same sample."""
        for mine, theirs in zip(self._all(), other._all(), strict=True):
            mine += theirs

    def _all(self) -> tuple[Tensor, ...]:
        return self.energy, self.bands, self.dc

    def spectrum(self, counts: Tensor, normalize: bool) -> Spectrum:
        """Return the energies, of standardised channels or of the latents as they are; ``counts`` [g] images per group."""
        c, s = self.energy.shape
        n = counts.sum()
        # DC coefficients are sqrt(s) times the mean over cells: where they are counted from, and where they should be.
        origin = s**0.5 * (torch.zeros(c) if self._offset is None else self._offset).double()
        centre, scale = -origin, torch.ones(c, dtype=torch.float64)
        dc_sum, dc_squares = self.dc
        if normalize:
            centre = dc_sum.sum(0) / n
            squares = self.bands[0].sum(0) + dc_squares.sum(0) - n * centre**2
            variance = squares / (n * s - 1).clamp_min(1)
            rounding = 8 * self._epsilon * (centre + origin) / s**0.5
            scale = torch.where(variance > rounding**2, 1 / variance, 0)
        dc = (dc_squares - 2 * centre * dc_sum + counts[:, None] * centre**2).clamp_min(0)
        energy = scale @ self.energy
        energy[0] = dc.sum(0) @ scale
        bands = self.bands @ scale
        h, w = len(self._rows), len(self._columns)
        return Spectrum(energy.view(h, w).numpy(), bands[1:].numpy(), (bands[0] + dc @ scale).numpy())


def _large_offset(latents: Tensor) -> Tensor | None:
    """Return the channel means [c] if some are so far from 0 that they would cost the products digits, else None."""
    std, mean = torch.std_mean(latents, dim=(0, 2, 3), correction=0)
    return mean if (mean.abs() > 100 * std).any() else None
