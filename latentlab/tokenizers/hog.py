"""Histograms of oriented gradients (Dalal and Triggs 2005) of every patch: a target of masked prediction that needs no network.

As a target they were proposed in Wei et al. 2022 (arXiv 2112.09133, section 3).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 9
"""Orientations between 0 and 180 degrees; a gradient and its opposite count as one."""

_LARGEST_CELL = 8


def cell_size(patch: int) -> int:
    """Return the side of a cell in pixels: 8, or what divides both 8 and the side of the patch."""
    return math.gcd(patch, _LARGEST_CELL)


def hog_channels(patch: int) -> int:
    """Return how many numbers describe a patch: cells x 3 colours x 9 orientations."""
    return 3 * BINS * (patch // cell_size(patch)) ** 2


def hog(images: Tensor, patch: int) -> Tensor:  # [n,3,H,W] => [n,p,d]
    """Return the histograms of every patch, row by row; those of one patch ordered (cell row, cell column, colour, orientation).

    Each pixel votes for the orientation of its gradient (central differences, edges repeated, no interpolation between bins) in
    its own colour, with the gradient's magnitude. The nine numbers of a cell and colour have length 1, or are 0 where it is
    flat.

    Args:
        images: float, H and W multiples of ``patch``; computed in float32.
        patch: side in pixels.
    """
    cell = cell_size(patch)
    cells = F.normalize(_votes(images.float(), cell), dim=2)  # [n,3,9,H/cell,W/cell]
    k = patch // cell
    n, _, _, rows, columns = cells.shape
    by_patch = cells.reshape(n, 3, BINS, rows // k, k, columns // k, k)
    return by_patch.permute(0, 3, 5, 4, 6, 1, 2).flatten(1, 2).flatten(2)


def _votes(images: Tensor, cell: int) -> Tensor:
    """Return the mean vote of every cell for every orientation, [n,3,9,H/cell,W/cell]."""
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    along_x = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    along_y = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    orientation = torch.atan2(along_y, along_x) / math.pi  # in -1..1, of which halves are opposites
    bins = (orientation * BINS).floor().long().remainder(BINS)
    magnitude = (along_x.square() + along_y.square()).sqrt()
    votes = images.new_zeros(*images.shape[:2], BINS, *images.shape[2:]).scatter_(
        2, bins[:, :, None], magnitude[:, :, None]
    )
    return F.avg_pool2d(votes.flatten(0, 1), cell).unflatten(0, images.shape[:2])
