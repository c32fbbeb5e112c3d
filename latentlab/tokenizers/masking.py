"""Which patches an encoder does not see while a masked autoencoder trains (MAETok: Chen et al. 2025, arXiv 2502.03444)."""

import torch
from torch import Tensor, nn

from latentlab.tokenizers.objectives.draws import uniform


def draw_hidden(
    n: int, patches: int, ratios: tuple[float, float], generator: torch.Generator | None = None
) -> Tensor:  # => bool [n,p]
    """Return which patches of each image are hidden: a share drawn uniformly between ``ratios``, at random places.

    Args:
        n: images; each draws its own share.
        patches: p, of one image.
        ratios: smallest and largest share, in 0..1. The share is rounded to whole patches.
        generator: source of the draws; the mask is made on its device.
    """
    low, high = ratios
    draws = uniform((n, 1 + patches), generator)
    shares = low + (high - low) * draws[:, :1]
    rank = draws[:, 1:].argsort(1).argsort(1)
    return rank < (shares * patches).round()


def hide(patches: Tensor, hidden: Tensor, mask_token: Tensor) -> Tensor:
    """Return patches [n,p,w] with ``mask_token`` [1,1,w] in place of the ``hidden`` ones, bool [n,p].

    They are replaced, not dropped: all tokens stay, so that batches with different shares fit together.
    """
    return torch.where(hidden.to(patches.device)[..., None], mask_token.to(patches.dtype), patches)


def annealed_ratio(step: int, steps: int, start: float = 0.6) -> float:
    """Return the share of hidden patches at ``step`` (from 0): ``start``, then falling linearly to 0 at ``steps``, then 0."""
    return start * max(0.0, 1 - step / steps)


def new_mask_token(width: int) -> nn.Parameter:
    """Return the learnable token [1,1,w] that stands in for hidden patches."""
    return nn.Parameter(torch.randn(1, 1, width) * 0.02)
