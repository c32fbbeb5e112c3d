"""Latent masking (LMR of arXiv 2606.03578): the decoder must cope with cells that are noise or missing.

With probability p an image has a share of its cells replaced by noise and another share by a mask. Choices of ours, where the
publication gives names and numbers only: which cells is drawn per image without overlap; the noise has mean and spread of the
image's cells in each channel, without a gradient; the mask is 0.
"""

import torch
from torch import Tensor

from latentlab.tokenizers.objectives.draws import normal, uniform
from latentlab.tokenizers.objectives.settings import MaskingSettings


class LatentMasking:
    """Replaces random cells of random latents."""

    def __init__(self, settings: MaskingSettings) -> None:
        self.settings = settings

    def __call__(self, latents: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return latents [n,c,h,w] or [n,l,c] of the same shape; kept cells are untouched, the others have no gradient."""
        grid = latents.ndim == 4
        cells = latents.flatten(2) if grid else latents.transpose(1, 2)  # [n,c,s]
        noisy, masked = (chosen[:, None] for chosen in self.choose(len(cells), cells.shape[2], generator))
        fixed = cells.detach().float()
        mean, spread = fixed.mean(2, keepdim=True), fixed.std(2, correction=0, keepdim=True)
        noise = mean + spread * normal(cells.shape, generator).to(cells.device)
        damaged = torch.where(noisy.to(cells.device), noise.to(cells.dtype), cells)
        damaged = damaged.masked_fill(masked.to(cells.device), 0.0)
        return damaged.view(latents.shape) if grid else damaged.transpose(1, 2)

    def choose(self, n: int, cells: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Return which of ``cells`` become noise and which the mask, bool [n,cells] each."""
        settings = self.settings
        hit = uniform((n, 1), generator) < settings.probability
        rank = uniform((n, cells), generator).argsort(1).argsort(1)
        noisy, masked = round(settings.noise_ratio * cells), round(settings.mask_ratio * cells)
        return hit & (rank < noisy), hit & (rank >= noisy) & (rank < noisy + masked)
