"""Equivariance: the decoder shall turn a transformed latent into the transformed image (EQ-VAE, arXiv 2502.09509).

The transformed pair is a second reconstruction with a weight of its own beside that of the images as they are (ours; eq. 4 of
the paper has the transformed one only, with the identity among the transforms).
"""

import torch
from torch import Tensor

from analyses.affine import Transform
from latentlab.tokenizers.objectives.settings import EquivarianceSettings


def draw_transform(settings: EquivarianceSettings, side: int, generator: torch.Generator) -> Transform:
    """Return a transform of latents with ``side`` cells a side: a quarter turn, a flip, or a resize to whole cells."""
    kind = settings.transforms[_below(len(settings.transforms), generator)]
    if kind == "rotate":
        return Transform("rotate", 1 + _below(3, generator))
    if kind == "flip":
        return Transform("flip", -1 - _below(2, generator))
    smallest = smallest_side(settings, side)
    return Transform("scale", (smallest + _below(max(1, side - smallest), generator)) / side)


def smallest_side(settings: EquivarianceSettings, side: int) -> int:
    """Return how many of ``side`` cells a side are left by the smallest transform that may be drawn."""
    return max(1, round(settings.smallest_scale * side)) if "scale" in settings.transforms else side


def transformed_pair(latents: Tensor, images: Tensor, transform: Transform) -> tuple[Tensor, Tensor]:
    """Return latents [n,c,h,w] and images [n,3,H,W] after the same transform."""
    return transform(latents), transform(images)


def _below(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=generator))
