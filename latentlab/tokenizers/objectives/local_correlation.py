"""Local correlation (LCR of arXiv 2606.03578): neighbouring cells of a latent shall be alike, up to a threshold.

Choices of ours, where the publication gives a weight and a threshold only: the correlation of two cells is the cosine of their
vectors after the mean over the image's cells is subtracted, so that a common offset gains nothing; neighbours share an edge;
the hinge is on the mean over an image's pairs, so that edges in the image may stay.
"""

import torch.nn.functional as F
from torch import Tensor

from latentlab.errors import UserError


def local_correlation(latents: Tensor) -> Tensor:
    """Return the mean correlation of cells that share an edge, in [-1,1], [n] of latents [n,c,h,w].

    Raises:
        UserError: latents without a grid, or of a single cell.
    """
    if latents.ndim != 4 or latents.shape[2] * latents.shape[3] < 2:
        raise UserError(f"local_correlation needs latents on a grid [n,c,h,w], got shape {list(latents.shape)}")
    units = F.normalize(latents.float() - latents.float().mean((2, 3), keepdim=True), dim=1)
    across = (units[..., 1:] * units[..., :-1]).sum(1).flatten(1)
    down = (units[..., 1:, :] * units[..., :-1, :]).sum(1).flatten(1)
    return (across.sum(1) + down.sum(1)) / (across.shape[1] + down.shape[1])


def correlation_loss(latents: Tensor, threshold: float) -> Tensor:
    """Return mean relu(threshold - local correlation) over images, from 0."""
    return F.relu(threshold - local_correlation(latents)).mean()
