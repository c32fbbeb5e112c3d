"""Spectral low-pass: a latent without its high frequencies shall decode to the image without them.

Skorokhodov et al. 2025 (arXiv 2502.14831) get there by decoding downsampled latents; here the frequencies above a cut-off are
set to 0 in the cosine transform (DCT-II, orthonormal) of both, at the same share of each one's band: whole numbers of the
latent's frequencies are kept, and the image has a multiple of them.
"""

import math

import torch
from torch import Tensor

from latentlab.tokenizers.objectives.settings import LowPassSettings


def draw_band(settings: LowPassSettings, side: int, generator: torch.Generator) -> float:
    """Return the share of the frequencies per axis that is kept: k/side of latents with ``side`` cells a side.

    k is uniform from smallest_band * side, rounded and at least 1, to side - 1.
    """
    low = min(max(1, round(settings.smallest_band * side)), max(1, side - 1))
    return int(torch.randint(low, max(low + 1, side), (), generator=generator)) / side


def low_pass(grids: Tensor, band: float) -> Tensor:
    """Return [n,c,h,w] without the frequencies from ``band`` times the side on, at least the mean of each grid is left."""
    rows, columns = (_projection(side, band).to(grids) for side in grids.shape[2:])
    return rows @ grids @ columns


def _projection(side: int, band: float) -> Tensor:  # [side,side], float64
    """Return the projection on the lowest frequencies: C^T C with the kept rows C of the cosine transform."""
    kept = max(1, round(band * side))
    place = torch.arange(side, dtype=torch.float64)[None] + 0.5
    frequency = torch.arange(kept, dtype=torch.float64)[:, None]
    cosines = torch.cos(math.pi / side * place * frequency) * math.sqrt(2 / side)
    cosines[0] /= math.sqrt(2)
    return cosines.T @ cosines
