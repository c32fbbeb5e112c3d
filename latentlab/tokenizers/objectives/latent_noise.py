"""Latent noise: a decoder that has seen latents slightly off maps neighbouring latents to similar images."""

import torch
from torch import Tensor

from latentlab.tokenizers.objectives.draws import normal
from latentlab.tokenizers.objectives.settings import NoiseSettings


class LatentNoise:
    """Adds ``sigma * s * eps`` with eps ~ N(0,1) and s the spread of the latent, without a gradient.

    The spread is that of an image's cells in each channel: noise of a fixed size would be escaped by larger latents.
    """

    def __init__(self, settings: NoiseSettings) -> None:
        self.sigma = settings.sigma

    def __call__(self, latents: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return noisy latents [n,c,h,w] or [n,l,c]."""
        cells = (2, 3) if latents.ndim == 4 else (1,)
        spread = latents.detach().float().std(cells, correction=0, keepdim=True)
        noise = normal(latents.shape, generator).to(latents.device)
        return latents + (self.sigma * spread * noise).to(latents.dtype)
